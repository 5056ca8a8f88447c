"""Runs that are stopped, killed, starved of disk or called wrongly: what is on the disk goes on, bit for bit."""

import contextlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import pytest

import nondiff
from nondiff.launch.main import main

ROOT = pathlib.Path(nondiff.__file__).parents[1]

EXPERIMENT = '''
"""A parabola in many dimensions, by an evolution strategy with a state of some megabytes."""

import dataclasses
import os
import resource
import time

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax

import nondiff


@dataclasses.dataclass(frozen=True)
class Config:
    size: int = 1_000
    steps: int = 60
    pause: float = 0.0
    at: int = 30
    fault: str = ""


def make(config: Config) -> nondiff.Experiment:
    loss = lambda x, batch, key: jnp.mean((x - batch) ** 2 + 0.1 * jr.normal(key, x.shape))
    problem = nondiff.Supervised(loss, lambda step: jnp.float32(1 + step % 7), params=jnp.zeros(config.size))
    trainer = nondiff.OpenES(optax.adam(0.05), sigma=0.1, population=4)

    def rest(moment):
        time.sleep(config.pause)
        if moment.step == config.at and config.fault:
            fault(config.fault)

    return nondiff.Experiment(problem, trainer, config.steps, log_every=1, callbacks=[rest],
                              report=lambda result: {"mean": jnp.mean(result.params), "rows": len(result.history)})


def fault(name):
    if name == "size":  # as a full disk, for files that are not tiny
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
    elif name == "room":
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    elif name == "loop":
        import jax
        jax.jit(lambda x: jax.lax.while_loop(lambda x: x > 0, lambda x: x + 1 - x % 1, x))(1.0).block_until_ready()
    elif name == "error":
        raise RuntimeError("a broken callback")
'''


@pytest.fixture
def place(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "toy.py").write_text(EXPERIMENT)
    return tmp_path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The folder of a run that nothing disturbed."""
    place = tmp_path_factory.mktemp("undisturbed")
    (place / "toy.py").write_text(EXPERIMENT)
    assert run(place, "whole")[0] == 0
    return place / "whole"


@pytest.fixture
def launch(place: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """Runs the command in this process, where JAX is imported already."""
    monkeypatch.chdir(place)

    def launch(*arguments: str) -> tuple[int, str, str]:
        try:
            code = main(arguments)
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return launch


def start(place: pathlib.Path, *arguments: str, **options) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", "nondiff.launch.main", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(line, env=environment, cwd=place, stdout=pipe, stderr=pipe, text=True, **options)


def command(place: pathlib.Path, *arguments: str, **options) -> tuple[int, str, str]:
    process = start(place, *arguments, **options)
    out, err = process.communicate()
    return process.returncode, out, err


def run(place: pathlib.Path, name: str, *flags: str) -> tuple[int, str, str]:
    return command(place, "run", "toy.py", "--run-dir", name, *flags)


def state(folder: pathlib.Path, step: int) -> bytes:
    return (folder / "checkpoints" / str(step) / "state.safetensors").read_bytes()


def summary(folder: pathlib.Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def rows(folder: pathlib.Path) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def saved(folder: pathlib.Path) -> list[int]:
    return sorted(int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdigit())


@contextlib.contextmanager
def running(place: pathlib.Path, *arguments: str, until: str, **options) -> Iterator[subprocess.Popen]:
    """A process that has said so much, and does not outlive the test."""
    process = start(place, *arguments, **options)
    try:
        assert process.stderr is not None
        seen = ""
        while not re.search(until, line := process.stderr.readline()):
            assert line, f"it ended early: {seen}"
            seen += line
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_after_a_step_and_the_run_goes_on(place, whole, number: int, code: int) -> None:
    with running(place, "run", "toy.py", "--run-dir", "cut", "--pause", "0.05", until="^step 1/60 ") as process:
        process.send_signal(number)
        out, err = process.communicate()
        assert process.returncode == code
    cut = place / "cut"
    done = summary(cut)["step"]
    assert 1 <= done < 60 and saved(cut) == [done]
    assert summary(cut)["status"] == "stopped" and summary(cut)["reason"] == f"stopped after step {done}"
    assert err.splitlines()[-1] == f"toy.py: stopped after step {done}. To go on: nondiff resume cut"
    assert "Traceback" not in err and out == ""
    code, out, err = command(place, "resume", "cut", "--json")
    assert code == 0, err
    assert f"run cut: goes on from step {done}" in err
    assert json.loads(out.splitlines()[-1])["metrics"]["rows"] == 60
    assert state(cut, 60) == state(whole, 60)
    assert rows(cut) == rows(whole)
    assert summary(cut)["status"] == "finished" and summary(cut)["metrics"] == summary(whole)["metrics"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_does_not_wait(place: pathlib.Path, number: int, code: int) -> None:
    """Not even for a compiled call that never returns."""
    flags = ("--fault", "loop", "--at", "3", "--checkpoint-every", "2")
    with running(place, "run", "toy.py", "--run-dir", "stuck", *flags, until="^step 1/60 ") as process:
        assert process.stderr is not None
        while not (place / "stuck" / "checkpoints" / "2").exists():
            pass
        process.send_signal(number)
        while "a second signal stops at once" not in (line := process.stderr.readline()):
            assert line, "it ended at the first signal"
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode == code
    assert saved(place / "stuck") == [2]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_25_moments_it_always_goes_on(place: pathlib.Path) -> None:
    steps, torn = killed_and_resumed(place, 25, ("--size", "300000", "--steps", "700", "--checkpoint-every", "1"))
    assert torn >= 3, "no kill hit a save"
    assert steps > 100


def test_killed_at_some_moments_it_goes_on(place: pathlib.Path) -> None:
    steps, _ = killed_and_resumed(place, 3, ("--size", "300000", "--steps", "150", "--checkpoint-every", "1"))
    assert steps > 0


def killed_and_resumed(place: pathlib.Path, kills: int, flags: tuple[str, ...]) -> tuple[int, int]:
    """From which step a run goes on in the end, bit for bit, and how many kills hit a save."""
    assert run(place, "whole", *flags)[0] == 0
    rng, torn, folder, steps = random.Random(0), 0, place / "cut", [0]
    first: tuple[str, ...] = ("run", "toy.py", "--run-dir", "cut", *flags)
    for _ in range(kills):
        arguments = first if not folder.exists() else ("resume", "cut")
        with running(place, *arguments, until="^step ") as process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(rng.uniform(0.0, 0.6))
            process.kill()
            _, err = process.communicate()
        assert process.returncode == -signal.SIGKILL, err
        torn += any(p.name.startswith(".aside-") for p in (folder / "checkpoints").iterdir())
        steps.append(saved(folder)[-1] if saved(folder) else 0)
        assert steps[-1] >= steps[-2]
    code, _, err = command(place, "resume", "cut")
    assert code == 0, err
    assert f"run cut: goes on from step {steps[-1]}" in err and re.search(r"taken over: process \d+ on .* is gone", err)
    last = int(flags[flags.index("--steps") + 1])
    assert state(folder, last) == state(place / "whole", last)
    assert rows(folder) == rows(place / "whole")
    left = [p.name for p in (folder / "checkpoints").iterdir() if p.name.startswith(".aside-")]
    assert left == []
    return steps[-1], torn


def test_killed_before_anything_was_saved(place, whole, launch) -> None:
    with running(place, "run", "toy.py", "--run-dir", "cut", "--pause", "0.1", until="^step 1/60 ") as process:
        process.kill()
        process.communicate()
    code, _, err = launch("resume", "cut")
    assert code == 0 and "goes on from the beginning: there is no checkpoint" in err, err
    assert re.search(r"cut is taken over: process \d+ on \S+ \(since 20\S+\) is gone", err)
    assert state(place / "cut", 60) == state(whole, 60) and rows(place / "cut") == rows(whole)


@pytest.mark.filterwarnings("always")  # as for users, who see them
def test_a_damaged_newest_checkpoint_is_skipped_and_named(place, launch) -> None:
    assert launch("run", "toy.py", "--run-dir", "whole", "--checkpoint-every", "20")[0] == 0
    folder, good = place / "whole", state(place / "whole", 60)
    newest = folder / "checkpoints" / "60"
    (newest / "state.safetensors").write_bytes(b"x" + good[1:])
    code, _, err = launch("resume", "whole", "--steps", "61")
    assert code == 0 and "goes on from step 40" in err, err
    assert (
        "warning: a damaged checkpoint is skipped, going on from step 40" in err
        and str(newest.relative_to(place)) in err
    )
    assert state(folder, 60) == good and rows(folder)[59]["step"] == 60
    for step in saved(folder):
        (folder / "checkpoints" / str(step) / "manifest.json").write_text("{}")
    code, out, err = launch("resume", "whole", "--steps", "70")
    assert code == 1 and "Traceback" not in err and out == ""
    assert all(f"checkpoints/{step}/manifest.json" in err for step in saved(folder))


def test_a_full_disk_ends_the_run_and_keeps_the_last_checkpoint(place: pathlib.Path) -> None:
    flags = ("--size", "20000", "--checkpoint-every", "10", "--fault", "size", "--at", "25")
    code, out, err = run(place, "full", *flags)
    assert code == 1 and out == "" and "Traceback" not in err
    assert "the checkpoint of step 30 was not saved" in err and "File too large" in err
    assert "full/checkpoints/30" in err and f"the last good checkpoint is {place}/full/checkpoints/20" in err
    assert saved(place / "full") == [10, 20]
    assert summary(place / "full")["status"] == "failed" and "was not saved" in summary(place / "full")["reason"]
    (place / "toy.py").write_text(EXPERIMENT.replace("(10_000,", "(10_000_000,"))  # room is made
    code, _, err = command(place, "resume", "full")
    assert code == 0 and "goes on from step 20" in err, err
    assert "toy.py is not what it was when the run began" in err
    assert run(place, "whole", "--size", "20000", "--checkpoint-every", "10")[0] == 0
    assert state(place / "full", 60) == state(place / "whole", 60)


def test_a_full_disk_is_warned_about_where_the_run_is_to_go_on(place: pathlib.Path) -> None:
    flags = ("--size", "20000", "--checkpoint-every", "10", "--fault", "size", "--at", "25", "--no-stop-on-failed-save")
    code, out, err = run(place, "full", *flags)
    assert code == 0 and out.startswith("60 steps in "), err
    assert err.count("was not saved") == 4 and saved(place / "full") == [10, 20]  # 30, 40, 50, 60
    assert summary(place / "full")["status"] == "finished"
    code, _, err = command(place, "resume", "full", "--steps", "70")
    assert code == 0 and "goes on from step 20" in err, err


UNPRIVILEGED = """
import ctypes, os, sys
if os.geteuid() == 0:  # root may write anywhere unless it gives that up
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None, use_errno=True).capset(header, data) == 0, ctypes.get_errno()
from nondiff.launch.main import main
sys.exit(main(sys.argv[1:]))
"""


def unprivileged(place: pathlib.Path, *arguments: str) -> tuple[int, str, str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-c", UNPRIVILEGED, *arguments]
    done = subprocess.run(line, env=environment, cwd=place, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_a_folder_that_cannot_be_written(place, launch) -> None:
    (place / "closed").mkdir(mode=0o555)
    code, out, err = unprivileged(place, "run", "toy.py", "--run-dir", "closed/run")
    assert code == 1 and out == "" and "Traceback" not in err
    assert "closed/run: the folder of the run cannot be written (Permission denied)" in err and "--no-save" in err
    assert launch("run", "toy.py", "--no-save")[0] == 0 and not (place / "runs").exists()
    assert launch("run", "toy.py", "--run-dir", "whole", "--checkpoint-every", "20")[0] == 0
    before = {p: p.read_bytes() for p in (place / "whole").rglob("*") if p.is_file() and not p.name.startswith(".")}
    for folder in (place / "whole" / "checkpoints", place / "whole"):
        folder.chmod(0o555)
    code, out, err = unprivileged(place, "resume", "whole", "--steps", "80")
    assert code == 1 and out == "" and "Traceback" not in err and "Permission denied" in err and "whole" in err
    assert before == {p: p.read_bytes() for p in before}
    for folder in (place / "whole" / "checkpoints", place / "whole"):
        folder.chmod(0o755)


def test_a_failure_leaves_a_checkpoint_and_a_log_and_goes_on(place, whole, launch) -> None:
    code, _, err = run(place, "broken", "--fault", "error", "--at", "7")
    assert code == 1 and "RuntimeError: a broken callback" in err
    assert summary(place / "broken")["status"] == "failed" and saved(place / "broken") == [7]
    log = (place / "broken" / "log").read_text()
    assert "a broken callback" in log and "checkpoint of step 7 saved" in log and "Traceback" in log
    (place / "toy.py").write_text(EXPERIMENT.replace('raise RuntimeError("a broken callback")', "pass"))
    code, _, err = launch("resume", "broken")
    assert code == 0 and "goes on from step 7" in err, err
    assert state(place / "broken", 60) == state(whole, 60) and rows(place / "broken") == rows(whole)


def test_two_processes_in_one_folder(place, launch) -> None:
    with running(place, "run", "toy.py", "--run-dir", "mine", "--pause", "0.2", until="^step 1/60 ") as process:
        code, _, err = launch("resume", "mine")
        assert code == 1 and re.search(rf"mine is in use by process {process.pid} on \S+ \(since 20", err), err
        code, out, _ = launch("list", ".", "--json")
        assert [r["status"] for r in json.loads(out)] == ["running"]
        process.kill()
        process.communicate()
    code, out, _ = launch("list", ".", "--json")
    assert code == 0 and [r["status"] for r in json.loads(out)] == ["killed"]


@pytest.mark.filterwarnings("always")  # as for users, who see them
def test_what_is_refused(place, launch) -> None:
    assert launch("run", "toy.py", "--run-dir", "done")[0] == 0
    config = (place / "done" / "config.json").read_text()

    def refused(code: int, said: str, *arguments: str) -> None:
        got, out, err = launch(*arguments)
        assert (got, out) == (code, "") and said in err and "Traceback" not in err, err

    refused(
        2, "done is there already. Go on with that run (`nondiff resume done`)", "run", "toy.py", "--run-dir", "done"
    )
    refused(2, "`--run-dir` names a folder and `--no-save` wants none", "run", "toy.py", "--run-dir", "a", "--no-save")
    refused(2, "nothing: no such run", "resume", "nothing")
    refused(
        2, "done is finished: all 60 steps done. To train it further: nondiff resume done --steps", "resume", "done"
    )
    refused(2, "`--steps 60`: done has done 60 already", "resume", "done", "--steps", "60")
    shutil.copytree(place / "done", place / "other")
    source = place / "toy.py"
    source.write_text(EXPERIMENT.replace("size: int = 1_000", "size: int = 1_001"))
    refused(1, "config.size: 1000 in the run, 1001 here", "resume", "other", "--steps", "70")
    refused(1, "float32[1000] in the checkpoint, float32[1001] here", "resume", "other", "--steps", "70", "--inexact")
    source.write_text(EXPERIMENT.replace("steps: int = 60", "steps: int = 61"))
    got, _, err = launch("resume", "other", "--steps", "70", "--inexact")
    assert got == 0 and "config.steps: 60 in the checkpoint, 61 here" in err
    source.unlink()
    refused(1, "its experiment is neither", "resume", "done", "--steps", "70")
    source.write_text(EXPERIMENT)
    for damaged, said in (
        (config[: len(config) // 2], "config.json is damaged: it is not JSON"),
        ("", "config.json is damaged"),
        ("[1]", "config.json is damaged: it holds no JSON object"),
        (config.replace('"seed": 0', '"seed": "zero"'), "config.json is damaged: `seed` is 'zero'"),
        (config.replace('"format": 1', '"format": 9'), "config.json has format 9"),
    ):
        (place / "done" / "config.json").write_text(damaged)
        refused(1, said, "resume", "done", "--steps", "70")
    (place / "done" / "config.json").unlink()
    refused(1, "config.json is missing", "resume", "done", "--steps", "70")
    source.write_text(
        textwrap.dedent(EXPERIMENT).replace("pause: float", "run_dir: float").replace("config.pause", "0")
    )
    refused(1, "`Config.run_dir` would hide the flag `--run-dir`", "run", "toy.py")
