"""The command line: experiments that run, and files, flags and settings that do not fit."""

import dataclasses
import json
import math
import os
import pathlib
import re
import signal
import subprocess
import sys
import textwrap

import jax.numpy as jnp
import numpy as np
import pytest

import nondiff
from nondiff.launch.load import extra_with, missing_package
from nondiff.launch.main import main
from nondiff.launch.output import strict

ROOT = pathlib.Path(nondiff.__file__).parents[1]

TOY = '''
"""Down a parabola."""

import dataclasses
import pathlib

import jax.numpy as jnp
import numpy as np
import optax

import nondiff


@dataclasses.dataclass(frozen=True)
class Config:
    learning_rate: float = 0.25
    """Of gradient descent."""
    steps: int = 3  # how many
    place: pathlib.Path = pathlib.Path("a/b")


def make(config: Config) -> nondiff.Experiment:
    problem = nondiff.BlackBox(lambda x: jnp.sum((x - 1.0) ** 2), jnp.zeros(2))
    trainer = nondiff.Backprop(optax.sgd(config.learning_rate))

    def report(result):
        return {"x": result.params[0], "nan": np.float32("nan"), "n": np.int64(7), "why": result.reason}

    return nondiff.Experiment(problem, trainer, config.steps, report=report)
'''


@pytest.fixture
def write(tmp_path):
    """Writes an experiment's file and returns its path."""

    def write(text: str, name: str = "toy.py") -> str:
        path = tmp_path / name
        path.write_text(textwrap.dedent(text))
        return str(path)

    return write


@pytest.fixture
def launch(capsys, tmp_path, monkeypatch):
    """Runs the command in this process: its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def launch(*arguments: str) -> tuple[int, str, str]:
        try:
            code = main(arguments)
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return launch


def command(*arguments: str, **options) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", "nondiff.launch.main", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(line, env=environment, stdout=pipe, stderr=pipe, text=True, **options)


def test_a_process_trains_and_ends_with_json(write, tmp_path):
    write(TOY)
    process = command("run", "toy.py", "--steps", "4", "--seed", "5", "--json", cwd=tmp_path)
    out, err = process.communicate()
    assert process.returncode == 0, err
    *lines, last = out.splitlines()
    got = json.loads(last, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert list(got) == ["experiment", "config", "seed", "steps", "seconds", "metrics", "run"]
    folder = got.pop("run")
    assert re.fullmatch(r"runs/toy/\d{8}-\d{6}-[0-9a-f]{4}", folder) and (tmp_path / folder / "summary.json").is_file()
    seconds = got.pop("seconds")
    assert isinstance(seconds, float) and seconds > 0
    assert got == {
        "experiment": "toy",
        "config": {"learning_rate": 0.25, "steps": 4, "place": "a/b"},
        "seed": 5,
        "steps": 4,
        "metrics": {"x": 1 - 0.5**4, "nan": None, "n": 7, "why": "all 4 steps done"},  # the error halves each step
    }
    assert re.fullmatch(r"4 steps in [\d.]+ s, loss 0\.03125: all 4 steps done", lines[0])
    assert lines[1:] == ["x  0.9375", "nan  nan", "n  7", "why  all 4 steps done"]
    assert err.splitlines()[0] == f"run {folder}"
    assert err.splitlines()[1].startswith("step 1/4  loss 2  best 2  ")
    assert err.splitlines()[-1].startswith("step 4/4  loss 0.03125  ")


def test_ctrl_c_stops_after_a_step(write, tmp_path):
    write("""
        import dataclasses, time, nondiff, jax.numpy as jnp, optax

        @dataclasses.dataclass(frozen=True)
        class Config:
            pass

        def make(config: Config):
            fn = lambda x: (time.sleep(0.001), float(x) ** 2)[1]
            problem = nondiff.BlackBox(fn, 1.0)
            trainer = nondiff.OpenES(optax.sgd(0.01), sigma=0.1, population=2)
            return nondiff.Experiment(problem, trainer, 10**6, log_every=2)
        """)
    process = command("run", "toy.py", cwd=tmp_path)
    try:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("run runs/toy/")
        assert process.stderr.readline().startswith("step 2/1000000  ")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    finally:
        process.kill()
    assert process.returncode == 130
    said = r"toy\.py: stopped after step \d+\. To go on: nondiff resume runs/toy/\S+"
    assert re.fullmatch(said, err.splitlines()[-1])
    assert "Traceback" not in err and out == ""


def test_a_failure_while_training_shows_all_of_it(write, tmp_path):
    write(TOY.replace("jnp.sum((x - 1.0) ** 2)", "jnp.sum(x) * jnp.nan"))
    process = command("run", "toy.py", cwd=tmp_path)
    _, err = process.communicate()
    assert process.returncode == 1
    assert err.startswith("run runs/toy/") and "Traceback" in err
    assert "NonFiniteError: step 1: all evaluations of a query failed" in err


def test_help_of_the_command(launch):
    code, out, _ = launch("--help")
    assert code == 0 and "`nondiff run FILE --help` lists the flags of an experiment." in out
    code, out, _ = launch("--version")
    assert code == 0 and re.match(r"nondiff (\d+\.\d+|\(not installed)", out)
    code, out, _ = launch("run", "--help")
    assert code == 0 and out.startswith("usage: nondiff run FILE")
    code, _, err = launch("run")
    assert code == 2 and err.startswith("usage: nondiff run FILE")
    code, _, err = launch("rum")
    assert code == 2 and "invalid choice: 'rum'" in err


def test_help_of_an_experiment(write, launch):
    code, out, _ = launch("run", write(TOY), "--help")
    words = " ".join(re.sub(r"[^\w\s.,():=/-]", "", out).split())
    assert code == 0
    for said in (
        "Down a parabola.",
        "--learning-rate FLOAT Of gradient descent. (default: 0.25)",
        "--steps INT how many (default: 3)",
        "--json Print the result as one JSON object",
        "--seed INT",
    ):
        assert said in words


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--learning-rat", "1"],
            ["Unrecognized options: --learning-rat", "Perhaps you meant", "--learning-rate FLOAT"],
        ),
        (["--learning-rate", "fast"], ["Error parsing --learning-rate", "could not convert string to float: 'fast'"]),
        (["--steps", "2.5"], ["Error parsing --steps"]),
        (["--seed", "-1"], ["`--seed -1`: a seed is a whole number from 0 to 2**32 - 1."]),
        (["--seed", str(2**32)], ["`--seed 4294967296`: a seed is a whole number"]),
    ],
)
def test_flags_that_do_not_fit(write, launch, flags, said):
    code, out, err = launch("run", write(TOY), *flags)
    assert code == 2 and out == ""
    assert all(part in err for part in said), err


def test_the_largest_seed(write, launch):
    code, out, _ = launch("run", write(TOY), "--seed", str(2**32 - 1), "--json")
    assert code == 0 and json.loads(out.splitlines()[-1])["seed"] == 2**32 - 1


def test_a_seed_of_its_own_is_the_seed(write, launch):
    path = write(TOY.replace("    steps: int = 3", "    seed: int = 2\n    steps: int = 3"))
    code, out, _ = launch("run", path, "--json")
    got = json.loads(out.splitlines()[-1])
    assert code == 0 and got["seed"] == 2 and got["config"]["seed"] == 2
    code, out, _ = launch("run", path, "--json", "--seed", "9")
    got = json.loads(out.splitlines()[-1])
    assert code == 0 and got["seed"] == 9 and got["config"]["seed"] == 9
    code, _, err = launch("run", path, "--seed", "-9")
    assert code == 2 and "`--seed -9`" in err


def test_a_neighbour_can_be_imported_and_the_path_is_left_as_it_was(write, launch):
    write("rate = 0.5", "launch_test_neighbour.py")
    before = list(sys.path)
    path = write("import launch_test_neighbour as other\n" + TOY.replace("0.25", "other.rate"))
    code, out, _ = launch("run", path, "--json")
    assert code == 0 and json.loads(out.splitlines()[-1])["metrics"]["x"] == 1.0
    assert sys.path == before


def test_the_only_dataclass_is_the_settings(write, launch):
    text = TOY.replace("def make(config: Config)", "class Model(eqx.Module):\n    w: float\n\n\ndef make(config)")
    code, _, err = launch("run", write(text.replace("import optax", "import equinox as eqx\nimport optax")))
    assert code == 0, err


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing.py", "missing.py: no such file."),
        (".", " is a folder; name one file. It holds other.py, toy.py."),
        ("notes.txt", "notes.txt is not a Python file (.py)."),
    ],
)
def test_no_experiment(write, launch, tmp_path, name, said):
    write(TOY)
    for other in ("notes.txt", "other.py"):
        write("", other)
    code, out, err = launch("run", str(tmp_path / name))
    assert code == 2 and err.endswith(said + "\n") and out == ""


def test_flags_before_the_file(launch):
    code, _, err = launch("run", "--seed", "1", "toy.py")
    assert code == 2 and "the file comes first: nondiff run FILE --seed ..." in err


FROZEN = "@dataclasses.dataclass(frozen=True)"
CONFIG = FROZEN + "\nclass Config"
REPORT = 'return {"x": result.params[0], "nan": np.float32("nan"), "n": np.int64(7), "why": result.reason}'
RETURN = "return nondiff.Experiment(problem, trainer, config.steps, report=report)"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "def make(",
            "def build(",
            "toy.py has no `make`. An experiment is a file with a frozen dataclass of settings",
        ),
        ("make(config: Config)", "make()", "`make` takes no settings. Write a frozen dataclass `Config`"),
        (CONFIG, "class Config", "`make` takes no settings. Write a frozen dataclass `Config`"),
        (FROZEN, "@dataclasses.dataclass", "`Config` can be changed after the fact; use `@dataclass(frozen=True)`."),
        ("learning_rate: float = 0.25", "learning_rate: float", "`Config` has no default for `learning_rate`"),
        ("learning_rate", "json", "`Config.json` would hide the flag `--json` of `nondiff run`; rename it."),
        (RETURN, "return 3", "toy.py: `make` returned 3; expected a `nondiff.Experiment`."),
        (REPORT, "return [1]", "toy.py: `report` returned [1]; expected a dict of numbers and words."),
        ("steps: int = 3", "steps: int = -3", "toy.py: `Experiment(steps=-3)`: expected a whole number of at least 0."),
        ("float = 0.25", "float = -1.0", "toy.py: `Backprop(optimizer)`: its first step on a gradient of 1 is 1,"),
        (
            RETURN,
            RETURN.replace("report=report", "log_every=0"),
            "toy.py: `Experiment(log_every=0)`: expected a whole number of at least 1.",
        ),
    ],
)
def test_files_that_are_no_experiment(write, launch, old, new, said):
    assert old in TOY
    code, _, err = launch("run", write(TOY.replace(old, new)))
    assert code == 1
    assert said in err and "Traceback" not in err


def test_a_bad_setting_names_the_line(write, launch):
    path = write(TOY)
    line = 1 + TOY[: TOY.index("nondiff.Backprop")].count("\n")
    code, _, err = launch("run", path, "--learning-rate", "nan")
    assert code == 1 and err.endswith(f"(toy.py, line {line})\n")


def test_a_file_with_an_error_shows_its_own_frames_only(write, launch):
    path = write("import json\n\ndef parse():\n    return json.loads('{')\n\nparse()\n")
    code, _, err = launch("run", path)
    assert code == 1
    assert err.startswith(f"{path} could not be loaded.\nTraceback (most recent call last):\n")
    assert "line 6, in <module>" in err and "line 4, in parse" in err and "JSONDecodeError" in err
    assert err.count("  File ") == 2  # neither json's nor the launcher's


def test_a_syntax_error_shows_the_line(write, launch):
    path = write("x = 1\ndef make(:\n")
    code, _, err = launch("run", path)
    assert code == 1 and f'File "{path}", line 2' in err and "SyntaxError: invalid syntax" in err
    assert err.count("  File ") == 1


def test_a_missing_package_says_how_to_get_it(write, launch, monkeypatch):
    wanted = ["jax>=0.10", 'no_such-thing>=2; extra == "examples"', 'nondiff[examples]; extra == "test"']
    monkeypatch.setattr("importlib.metadata.requires", lambda name: wanted)
    path = write("import no_such_thing.part")
    code, _, err = launch("run", path)
    assert code == 1 and err == f"{path} needs no_such_thing: pip install no-such-thing\n"
    wanted[1] = 'no-such-thing>=2; extra == "examples"'
    code, _, err = launch("run", path)
    assert code == 1 and err == f'{path} needs no_such_thing: pip install "nondiff[examples]"\n'
    late = write(TOY.replace("    problem =", "    import no_such_thing\n    problem ="))
    code, _, err = launch("run", late)
    assert code == 1 and err == f'{late} needs no_such_thing: pip install "nondiff[examples]"\n'
    code, _, err = launch("run", write("import json.no_such_part"))
    assert code == 1 and "could not be loaded" in err and "No module named 'json.no_such_part'" in err


def test_packages_with_another_name():
    assert missing_package(ModuleNotFoundError(name="sklearn.svm")).startswith("sklearn: pip install ")
    assert extra_with("mlxtend", ["mlxtend ; extra == 'examples'"]) == "examples"
    assert extra_with("mlx", ["mlxtend ; extra == 'examples'"]) is None
    assert extra_with("jax", ["jax>=0.10"]) is None


def test_strict_json():
    @dataclasses.dataclass(frozen=True)
    class Inner:
        rate: float = math.inf

    value = {"a": jnp.float32(0.5), "b": (np.int8(3), -math.inf), "c": Inner(), "d": None, "e": True, 1: len}
    expected = {"a": 0.5, "b": [3, None], "c": {"rate": None}, "d": None, "e": True, "1": "builtins.len"}
    assert strict(value) == expected
