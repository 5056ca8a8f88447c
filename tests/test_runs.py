"""Looking at runs and at the machine: `nondiff list`, `show` and `doctor`, and what they read."""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import subprocess
import sys

import pytest

from nondiff.launch import checks, machine
from nondiff.launch.checks import Finding
from nondiff.launch.list import read_runs, table
from nondiff.launch.main import COMMANDS, main
from nondiff.launch.refusal import Refusal
from nondiff.launch.runs import find_run, summary_of
from nondiff.launch.show import checkpoints, last_row, lines, read_run
from nondiff.run.lock import Lock
from nondiff.run.versions import git, versions

FIRST, SECOND, THIRD = "20261121-071503-3f2a", "20261121-081503-9c01", "20261122-071503-3f2b"
CONFIG = {
    "format": 1,
    "experiment": "toy",
    "file": "/there/toy.py",
    "arguments": ["--steps", "4"],
    "config": {"steps": 4, "rate": 0.25},
    "seed": 7,
    "steps": 4,
    "log_every": 1,
    "command": ["nondiff", "run", "my toy.py", "--steps", "4"],
    "folder": "/there",
    "versions": {"python": "3.11.7", "jax": "0.10.2"},
    "git": {"commit": "a3" * 20, "dirty": True},
    "created": "2026-11-21T07:15:03+00:00",
}


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Makes a run below the working folder; what is `None` is not written."""
    monkeypatch.chdir(tmp_path)

    def make(id: str = FIRST, experiment: str = "toy", *, config: object = CONFIG, **summary) -> pathlib.Path:
        folder = tmp_path / "runs" / experiment / id
        folder.mkdir(parents=True)
        (folder / ".lock").touch()
        day, time = id[:8], id[9:15]
        known = {
            "format": 1,
            "experiment": experiment,
            "id": id,
            "status": "finished",
            "step": 4,
            "steps": 4,
            "loss": 0.03125,
            "seconds": 12.3,
            "reason": "all 4 steps done",
            "metrics": {"accuracy": 0.83, "why": "it went well"},
            "started": datetime.datetime.strptime(f"{day}{time}+0000", "%Y%m%d%H%M%S%z").isoformat(),
            "updated": "2026-11-21T07:15:16+00:00",
            "pid": 4711,
            "host": "here",
        }
        if summary.get("summary", "") is not None:
            (folder / "summary.json").write_text(summary.get("summary") or json.dumps(known | summary))
        if config is not None:
            (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


@pytest.fixture
def launch(capsys):
    """Runs the command in this process: its exit code, stdout and stderr."""

    def launch(*arguments: str) -> tuple[int, str, str]:
        try:
            code = main(arguments)
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return launch


NOW = datetime.datetime(2026, 11, 21, 9, 15, 3, tzinfo=datetime.UTC).timestamp()


def test_the_commands(launch):
    code, out, _ = launch("--help")
    assert code == 0 and list(COMMANDS) == ["run", "resume", "list", "show", "replay", "doctor"]
    for name, (_, line) in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(line)}$", out, re.MULTILINE)
    for name in ("list", "show", "doctor"):
        code, out, _ = launch(name, "--help")
        assert code == 0 and out.startswith(f"usage: nondiff {name} [-h] [--json]")
        code, _, err = launch(name, "--nope")
        assert code == 2 and err.startswith(f"usage: nondiff {name} ")


def test_a_list_has_a_line_for_each_run_and_the_newest_is_the_last(make, launch):
    make(THIRD, status="stopped", step=2, loss=None, seconds=4000, reason="the target 0.1\n was reached")
    make(SECOND, experiment="digits", status="failed", loss=1e-9, reason="NonFiniteError: step 4")
    make(FIRST)
    (pathlib.Path("runs") / "toy" / ".aside-1").mkdir()
    (pathlib.Path("runs") / "toy" / "models").mkdir()
    (pathlib.Path("runs") / "toy" / "models" / "config.json").write_text("{}")  # another program's
    runs = read_runs("runs")
    assert table(runs, now=NOW, width=None) == [
        "run                               status    step     loss       time  started  reason",
        "runs/toy/20261121-071503-3f2a     finished   4/4  0.03125       12 s  2 h ago  all 4 steps done",
        "runs/digits/20261121-081503-9c01  failed     4/4    1e-09       12 s  1 h ago  NonFiniteError: step 4",
        "runs/toy/20261122-071503-3f2b     stopped    2/4        -  1 h 6 min      now  the target 0.1 was reached",
    ]
    assert table(runs, now=NOW, width=95)[1:] == [
        "runs/toy/20261121-071503-3f2a     finished   4/4  0.03125       12 s  2 h ago  all 4 steps done",
        "runs/digits/20261121-081503-9c01  failed     4/4    1e-09       12 s  1 h ago  NonFiniteErro...",
        "runs/toy/20261122-071503-3f2b     stopped    2/4        -  1 h 6 min      now  the target 0....",
    ]
    assert table(runs, now=NOW, width=20)[3].endswith("      now  ...")  # a reason may go, numbers may not
    code, out, err = launch("list")
    assert (
        code == 0
        and err == ""
        and [line.split()[0] for line in out.splitlines()[1:]]
        == [
            "runs/toy/20261121-071503-3f2a",
            "runs/digits/20261121-081503-9c01",
            "runs/toy/20261122-071503-3f2b",
        ]
    )
    for folder, count in (("runs/toy", 2), (f"runs/digits/{SECOND}", 1), ("runs/", 3)):
        assert len(launch("list", folder)[1].splitlines()) == 1 + count


def test_a_list_as_json(make, launch):
    make()
    make(SECOND, status="stopped", loss=None, metrics=None)
    code, out, _ = launch("list", "--json")
    first, second = json.loads(out)
    assert code == 0 and first == {
        "path": f"runs/toy/{FIRST}",
        "experiment": "toy",
        "id": FIRST,
        "status": "finished",
        "step": 4,
        "steps": 4,
        "loss": 0.03125,
        "seconds": 12.3,
        "reason": "all 4 steps done",
        "metrics": {"accuracy": 0.83, "why": "it went well"},
        "started": "2026-11-21T07:15:03+00:00",
        "updated": "2026-11-21T07:15:16+00:00",
        "pid": 4711,
        "host": "here",
    }
    assert list(second) == list(first) and second["loss"] is None and second["status"] == "stopped"


def test_running_or_killed_says_the_lock(make):
    folder = make(status="running", reason=None)
    lock = Lock(folder)
    assert summary_of(folder)["status"] == "running"
    lock.release()
    run = summary_of(folder)
    assert (run["status"], run["reason"]) == ("killed", "its process is gone without a word")
    (folder / ".lock").unlink()
    assert summary_of(folder)["status"] == "killed"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "summary.json is missing"),
        ('{"format": 1, "status": "fin', "summary.json is damaged: it is not JSON (Unterminated string starting at"),
        ("[1]", "summary.json is damaged: it holds no JSON object but [1]"),
        ('{"format": 1}', "summary.json is damaged: it has no `status`"),
        ('{"format": 1, "status": "finished", "step": "four"}', "summary.json is damaged: `step` is 'four'"),
        ('{"format": 1, "status": "finished", "step": true}', "summary.json is damaged: `step` is True"),
        (
            '{"format": 2, "status": "finished"}',
            "summary.json has format 2, this nondiff reads 1; another version wrote it",
        ),
        ("\udcff", "summary.json is damaged: "),
    ],
)
def test_a_damaged_run_is_listed_beside_others(make, launch, text, said):
    make(FIRST)
    folder = make(SECOND, summary=None)
    if text is not None:
        (folder / "summary.json").write_bytes(text.encode(errors="surrogateescape"))
    code, out, _ = launch("list", "--json")
    whole, damaged = sorted(json.loads(out), key=lambda run: run["id"])
    assert code == 0 and whole["status"] == "finished"
    assert damaged["status"] == "damaged" and damaged["reason"].startswith(said)
    assert (damaged["path"], damaged["experiment"], damaged["id"]) == (f"runs/toy/{SECOND}", "toy", SECOND)
    code, out, _ = launch("list")
    assert code == 0 and len(out.splitlines()) == 3 and said in out
    code, out, _ = launch("show", SECOND)
    assert code == 0 and f"status    damaged: {said}" in out and "seed      7" in out


def test_no_folder_and_no_runs(tmp_path, monkeypatch, launch):
    monkeypatch.chdir(tmp_path)
    said = "runs: there is no such folder. `nondiff list FOLDER` lists the runs in one; default: runs.\n"
    assert launch("list") == (2, "", said)
    (tmp_path / "file").touch()
    assert launch("list", "file")[2].startswith("file: is not a folder. ")
    (tmp_path / "runs").mkdir()
    assert launch("list") == (0, "", "There are no runs in runs. `nondiff run FILE` makes one.\n")
    assert launch("list", "--json")[:2] == (0, "[]\n")


def test_a_reader_may_leave_early(make):
    for i in range(800):
        make(f"20261121-071503-{i:04x}", reason="a reason that fills the pipe " * 5)
    line = [sys.executable, "-m", "nondiff.launch.main", "list"]
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[1])}
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline().startswith("run ")
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 0 and said == ""


def test_a_run_is_found_by_path_id_or_beginning(make):
    make(FIRST)
    make(SECOND, experiment="digits")
    make(THIRD)
    here = pathlib.Path("runs")
    for name in (f"runs/toy/{FIRST}", f"runs/toy/{FIRST}/", FIRST, "20261121-07", f"toy/{FIRST}", "toy/20261121"):
        assert find_run(name) == here / "toy" / FIRST
    assert find_run("20261121-08") == find_run("digits/2") == here / "digits" / SECOND
    assert find_run("20261122") == here / "toy" / THIRD
    make(f"{FIRST}-2")
    assert find_run(FIRST) == here / "toy" / FIRST  # whole, though another begins so


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("20261121-0", f"20261121-0: which one? runs/toy/{FIRST}, runs/digits/{SECOND}."),
        ("toy", f"toy is a folder of runs; name one: runs/toy/{FIRST}, runs/toy/{THIRD}."),
        ("runs", f"runs is a folder of runs; name one: runs/toy/{FIRST}, runs/digits/{SECOND}, runs/toy/{THIRD}."),
        (
            "20261121-081503-9c02",
            f"20261121-081503-9c02: no such run. Did you mean {SECOND} or {FIRST} or {THIRD}? ",
        ),
        (
            "first",
            f"first: no such run. The newest: runs/toy/{FIRST}, runs/digits/{SECOND}, runs/toy/{THIRD}. "
            "`nondiff list` shows all.",
        ),
        ("", ": no such run. The newest: "),
    ],
)
def test_no_run_or_more_than_one_is_refused(make, launch, name, said):
    make(FIRST)
    make(SECOND, experiment="digits")
    make(THIRD)
    with pytest.raises(Refusal) as refusal:
        find_run(name)
    assert refusal.value.code == 2 and str(refusal.value).startswith(said)
    code, out, err = launch("show", name)
    assert (code, out) == (2, "") and err.startswith(said)


def test_at_most_five_are_named_and_none_is_said(make, tmp_path, monkeypatch):
    for i in range(7):
        make(f"2026112{i}-071503-aaaa")
    with pytest.raises(Refusal, match=r"which one\? runs/toy/20261122.*runs/toy/20261126-071503-aaaa and 2 older\.$"):
        find_run("2026")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(Refusal, match=rf"^2026: no such run; there are none in runs/ of {tmp_path}/empty\.$"):
        find_run("2026")


def test_show_says_all(make, launch):
    folder = make(status="stopped", step=3, reason="the target 0.1 was reached")
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 3, "loss": 0.123456, "best": NaN}\n{"st')
    for step, files in ((1, ["manifest.json"]), (3, ["manifest.json", "manifest.sha256", "state.safetensors"])):
        (folder / "checkpoints" / str(step)).mkdir(parents=True)
        for file in files:
            (folder / "checkpoints" / str(step) / file).write_bytes(bytes(1000))
        os.utime(folder / "checkpoints" / str(step), (NOW - 60 * step, NOW - 60 * step))
    (folder / "checkpoints" / ".aside-4").mkdir()
    run = read_run(find_run(FIRST))
    assert lines(run, now=NOW) == [
        f"run       runs/toy/{FIRST}",
        "status    stopped: the target 0.1 was reached",
        "progress  3 of 4 steps, loss 0.03125, 12 s",
        "started   2026-11-21T07:15:03+00:00 (2 h ago)",
        "process   4711 on here",
        "seed      7",
        "command   nondiff run 'my toy.py' --steps 4",
        "in        /there",
        f"git       {'a3' * 20} and changes that are not in it",
        "versions  python 3.11.7, jax 0.10.2",
        "",
        "settings",
        "  steps  4",
        "  rate   0.25",
        "",
        "step 3",
        "  loss  0.1235",
        "  best  -",
        "",
        "report",
        "  accuracy  0.83",
        "  why       it went well",
        "",
        "checkpoints",
        "  1  1 kB  1 min ago  damaged: manifest.sha256, state.safetensors missing",
        "  3  3 kB  3 min ago",
    ]
    code, out, _ = launch("show", FIRST, "--json")
    assert code == 0 and json.loads(out) == run
    assert list(run)[-4:] == ["config", "damage", "row", "checkpoints"] and run["config"] == CONFIG
    assert run["row"] == {"step": 3, "loss": 0.123456, "best": None}
    assert run["checkpoints"][1] == {
        "step": 3,
        "path": f"runs/toy/{FIRST}/checkpoints/3",
        "bytes": 3000,
        "written": "2026-11-21T09:12:03+00:00",
        "lacks": [],
    }


def test_show_of_next_to_nothing(make, launch):
    folder = make(config=None, summary='{"format": 1, "status": "failed"}')
    code, out, _ = launch("show", str(folder))
    assert code == 0
    assert out == f"run     {folder}\nstatus  failed\ndamage  config.json is missing\n"
    (folder / "config.json").write_text('{"git": null, "config": 3, "command": "x", "versions": []}')
    code, out, _ = launch("show", str(folder))
    assert code == 0 and out.splitlines()[2:] == ["git     not in a repository"]
    assert checkpoints(folder / "checkpoints") == [] and last_row(folder / "metrics.jsonl") is None


@pytest.mark.parametrize("length", [10, 70_000, 1_000_000])
def test_the_newest_row_of_a_long_log(tmp_path, length):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step, "text": "x" * length}) + "\n" for step in (1, 2)) + '{"step": 3')
    assert last_row(path) == {"step": 2, "text": "x" * length}
    path.write_text('{"step": 1')
    assert last_row(path) is None


def test_text_cannot_steer_the_terminal(make, launch):
    make(reason="\x1b[2J\nbad \x07", metrics={"a\nb": "c\rd"})
    assert "?[2J bad ?\n" in launch("list")[1]
    assert "  a b  c d\n" in launch("show", FIRST)[1]


def test_versions():
    found = versions()
    assert found["python"] == platform.python_version()
    assert found["jax"] == importlib.metadata.version("jax")


def test_git_says_the_commit_and_whether_code_differs(tmp_path, monkeypatch):
    def ask(*words: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        return subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    inner = tmp_path / "inner"
    inner.mkdir()
    assert git(inner) is None and git(tmp_path / "nowhere") is None
    ask("init")
    assert git(inner) is None  # no commit yet
    (tmp_path / "code.py").write_text("1")
    ask("add", ".")
    ask("commit", "-m", "first")
    clean = {"commit": ask("rev-parse", "HEAD").strip(), "dirty": False}
    assert git(inner) == clean
    (inner / "metrics.jsonl").touch()  # results
    assert git(tmp_path) == clean
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))  # as in a hook of another repository
    assert git(tmp_path) == clean
    (tmp_path / "new.py").touch()
    assert git(inner) == clean | {"dirty": True}
    (tmp_path / "new.py").unlink()
    (tmp_path / "code.py").write_text("2")
    assert git(inner) == clean | {"dirty": True}
    monkeypatch.setenv("PATH", "")
    assert git(inner) is None


CPU = "32-bit floats on cpu: the same versions, kind of device and chunk give the same bits"
FLAGS = "--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0"


@pytest.mark.parametrize(
    ("finding", "level", "found", "way_out"),
    [
        (checks.check_versions({"python": "3.12.1", "jax": "0.10.2"}), "ok", "python 3.12.1, jax 0.10.2", ""),
        (
            checks.check_versions({"jax": "not installed", "optax": "not installed"}),
            "problem",
            "jax not installed, optax not installed",
            "pip install jax optax",
        ),
        (checks.check_devices("gpu", ["A", "B", "A"], None), "ok", "gpu (2 x A, 1 x B)", ""),
        (
            checks.check_devices(None, [], "RuntimeError: no"),
            "problem",
            "JAX does not start: RuntimeError: no",
            "pip install --upgrade jax jaxlib",
        ),
        (checks.check_gpu("cpu", 0, ""), "ok", "no NVIDIA GPU here", ""),
        (checks.check_gpu("gpu", 2, ""), "ok", "2 NVIDIA here, JAX uses gpu", ""),
        (
            checks.check_gpu("cpu", 1, ""),
            "problem",
            "1 NVIDIA here, but JAX runs on the CPU",
            'pip install "jax[cuda12]"',
        ),
        (
            checks.check_gpu("cpu", 1, "cpu"),
            "note",
            "1 NVIDIA here, not used: JAX_PLATFORMS=cpu",
            "unset JAX_PLATFORMS",
        ),
        (
            checks.check_bits("cpu", "", 1, False),
            "ok",
            f"{CPU}, as tested",
            "",
        ),
        (
            checks.check_bits("cpu", "", 8, False),
            "note",
            f"{CPU}; tested with one thread for each operation, here it may use 8",
            "export NPROC=1, where bits matter more than time",
        ),
        (
            checks.check_bits("gpu", f"--other=1 {FLAGS}", 8, True),
            "ok",
            "64-bit floats on gpu: the same versions, kind of device and chunk give the same bits; deterministic "
            "operations, chosen without timing",
            "",
        ),
        (
            checks.check_bits("gpu", "--xla_gpu_autotune_level=0 --xla_gpu_autotune_level=4", 8, False),
            "note",
            "32-bit floats on gpu: the same bits only with --xla_gpu_deterministic_ops=true and "
            "--xla_gpu_autotune_level=0",
            f'export XLA_FLAGS="--xla_gpu_autotune_level=0 --xla_gpu_autotune_level=4 {FLAGS}"',
        ),
        (
            checks.check_bits("tpu", "", 1, False),
            "note",
            "32-bit floats on tpu: no promise, nothing was tested there",
            "a CPU or an NVIDIA GPU",
        ),
        (checks.check_cache("/there"), "ok", "compiled programs are kept in /there", ""),
        (
            checks.check_cache(None),
            "note",
            "every process compiles anew",
            "export JAX_COMPILATION_CACHE_DIR=~/.cache/jax (yours alone)",
        ),
        (checks.check_niceness(0), "ok", "0", ""),
        (checks.check_niceness(-5), "ok", "-5", ""),
        (checks.check_niceness(19), "note", "19: others on this machine go first", "start without `nice`"),
        (checks.check_cores(8, 8, None), "ok", "8", ""),
        (checks.check_cores(8, 8, 8.0), "ok", "8", ""),
        (
            checks.check_cores(8, 2, 4.0),
            "note",
            "2 out of 8 (affinity of the process)",
            "start without `taskset`, or ask the scheduler for more cores",
        ),
        (
            checks.check_cores(8, 8, 1.5),
            "note",
            "the time of 1.5 out of 8 (limit of the cgroup)",
            "give the container or the job more CPU (`docker run --cpus`, `--cpus-per-task`)",
        ),
        (checks.check_disk("/d", 100 * 10**9, 10**12), "ok", "100 GB of 1 TB free in /d", ""),
        (
            checks.check_disk("/d", 99 * 10**9, 10**12),
            "note",
            "99 GB of 1 TB free in /d",
            "delete what is old, `nondiff list` shows the runs",
        ),
        (
            checks.check_disk("/d", 10**9 - 1, 2 * 10**9),
            "problem",
            "1 GB of 2 GB free in /d",
            "delete what is old; a checkpoint that does not fit is lost",
        ),
        (checks.check_writes("/d", [0.004, 9.0, 0.001], None), "ok", "1 MB is safe on the disk of /d after 4 ms", ""),
        (
            checks.check_writes("/d", [0.25], None),
            "note",
            "1 MB is safe on the disk of /d after 250 ms",
            "start in a folder on a local disk, or keep checkpoints rare",
        ),
        (
            checks.check_writes("/d", [], "Read-only file system"),
            "problem",
            "/d cannot be written: Read-only file system",
            "start in a folder of yours",
        ),
        (checks.check_memory(None, None), "ok", "unknown on this system", ""),
        (checks.check_memory(16 * 10**9, 2**63), "ok", "16 GB free", ""),
        (
            checks.check_memory(16 * 10**9, 5 * 10**8),
            "note",
            "500 MB is the limit of the cgroup",
            "end other programs, or give the container or the job more",
        ),
        (checks.check_extra("rl", ["gymnax"], lambda package: True), "ok", "installed", ""),
        (
            checks.check_extra("rl", ["gymnax", "jax", "gym"], lambda package: package == "jax"),
            "note",
            "not installed: gymnax, gym",
            'pip install "nondiff[rl]"',
        ),
        (checks.check_extra("", ["jax", "rich"], lambda package: True), "ok", "all 2 installed", ""),
        (
            checks.check_extra("", ["jax", "rich"], lambda package: False),
            "problem",
            "not installed: jax, rich",
            'pip install "nondiff"',
        ),
    ],
    ids=lambda value: value.name if isinstance(value, Finding) else "",
)
def test_each_check_says_what_was_found_and_the_way_out(finding, level, found, way_out):
    assert (finding.level, finding.found, finding.way_out) == (level, found, way_out)


def test_limits_of_either_kind_of_cgroup(tmp_path):
    def write(path: str, text: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    def limits() -> machine.Limits:
        return machine.limits(tmp_path / "membership", tmp_path / "root")

    assert limits() == (None, None)
    write("membership", "0::/job/step\n")
    assert limits() == (None, None)
    write("root/job/step/cpu.max", "max 100000\n")
    write("root/job/cpu.max", "150000 100000\n")
    write("root/job/step/memory.max", "2000\n")
    write("root/job/memory.max", "max\n")
    assert limits() == (1.5, 2000)
    write("membership", "3:cpu,cpuacct:/job\n2:memory:/job\n1:name=systemd:/\n")
    write("root/cpu/job/cpu.cfs_quota_us", "-1\n")
    write("root/cpu/job/cpu.cfs_period_us", "100000\n")
    write("root/memory/memory.limit_in_bytes", "9223372036854771712\n")
    assert limits() == (None, 9223372036854771712)
    write("root/cpu/job/cpu.cfs_quota_us", "50000\n")
    write("root/memory/job/memory.limit_in_bytes", "3000\n")
    assert limits() == (0.5, 3000)


def test_the_machine(tmp_path):
    here = machine.jax_here()
    assert (here.platform, here.error) == ("cpu", None) and set(here.kinds) == {"cpu"}
    assert machine.nearest(tmp_path / "a" / "b") == tmp_path
    times, error = machine.write_times(tmp_path)
    assert len(times) == 5 and error is None and list(tmp_path.iterdir()) == []
    assert machine.write_times(tmp_path / "nowhere") == ([], "No such file or directory")
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    3 kB\n")
    assert machine.available_memory(tmp_path / "meminfo") == 3072
    assert machine.available_memory(tmp_path / "nowhere") is None


def test_doctor(launch, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = launch("doctor", "--json")
    found = {record["name"]: Finding(**record) for record in json.loads(out)}
    plain = ["versions", "devices", "gpu", "bits", "cache", "cores", "niceness", "memory", "disk", "writes"]
    extras = [name for name in found if name.startswith("extra ")]
    assert list(found) == [*plain, "requirements", *extras] and {"extra ray", "extra test"} <= set(extras)
    assert code == int("problem" in {finding.level for finding in found.values()})
    assert found["devices"].found.startswith("cpu (") and found["requirements"].level == "ok"
    assert found["versions"].found == ", ".join(f"{name} {version}" for name, version in versions().items())
    assert not list(tmp_path.iterdir())
    code, out, _ = launch("doctor")
    for finding in found.values():
        assert re.search(rf"^{finding.level} +{finding.name} ", out, re.MULTILINE)
    assert out.count("-> ") == sum(finding.way_out != "" for finding in found.values())


def test_doctor_of_a_broken_jax(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[1]), "JAX_PLATFORMS": "abacus"}
    line = [sys.executable, "-m", "nondiff.launch.main", "doctor"]
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 1, done.stderr
    assert re.search(r"^problem +devices +JAX does not start: RuntimeError: .*abacus", done.stdout, re.MULTILINE)
    assert " bits " not in done.stdout and "Traceback" not in done.stdout + done.stderr
