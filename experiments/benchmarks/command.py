"""How long one waits for the `nondiff` command: its help, a list of 1,000 runs, one of them in full.

    python experiments/benchmarks/command.py

The runs are made with nondiff's own functions: a tenth each failed, were stopped, or say that they are running. Half of
the latter are held by this process and do run; the others were killed, which `list` finds out by trying their locks.
Beside it: other commands of the same environment, and what Python alone and JAX alone cost. CPU seconds are user and
system time of a process and its children, medians of 5.

Result (2 cores): `nondiff --help` 0.06 CPU seconds, `nondiff list` of 1,000 runs 0.14 s, `nondiff show` 0.09 s; beside
them `import jax` 0.73 CPU seconds, `tensorboard --help` 0.56, `ray --help` 0.49. Cost: half a minute.
"""

import collections
import contextlib
import dataclasses
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from nondiff.launch.words import aligned
from nondiff.run import directory
from nondiff.run.versions import versions

BARS = {"nondiff --help": ("cpu_seconds", 0.5), "nondiff list": ("wall_seconds", 0.5)}  # what we allow ourselves
PEERS = ("tensorboard", "ray")


@dataclasses.dataclass(frozen=True)
class Options:
    """What can be chosen."""

    runs: int = 1_000
    """In the folder that is listed."""
    turns: int = 5
    """Each runs every command once; the median is reported."""
    json: bool = False
    """The last line is one JSON object with all of it."""


def make(runs: int) -> tuple[list[Path], list[directory.RunDirectory]]:
    """Runs below the working folder: where they are, and those that go on."""
    paths, held = [], []
    for i in range(runs):
        moment = time.strftime("%Y%m%d-%H%M%S", time.gmtime(1_800_000_000 + i))
        path = Path(directory.RUNS) / ("reads", "adds")[i % 2] / f"{moment}-{i:04x}"
        run = directory.create(path, settings(path), Path(__file__))
        run.update(step=i % 500, loss=1 / (i + 1), seconds=0.1 * i)
        with open(path / directory.METRICS, "w") as rows:
            rows.writelines(json.dumps({"step": step, "loss": 1 / (step + 1)}) + "\n" for step in range(100))
        paths.append(path)
        if i % 20 == 0:
            held.append(run)
            continue
        if i % 10 == 1:
            run.update(status="failed", reason="ValueError: the loss is not finite")
        elif i % 10 == 2:
            run.update(status="stopped", reason="Ctrl-C")
        elif i % 20 != 10:
            run.update(status="finished", reason="all 500 steps done", step=500, metrics={"accuracy": 0.9})
        run.release()
    return paths, held


def settings(path: Path) -> dict[str, Any]:
    """What `nondiff run` writes down of a run."""
    return {
        "experiment": path.parent.name,
        "file": __file__,
        "arguments": ["--rate", "0.1"],
        "config": {"rate": 0.1, "network": {"width": 128, "depth": 2}, "seed": 0},
        "seed": 0,
        "steps": 500,
        "log_every": 5,
        "checkpoints": {"every": None, "minutes": 5.0, "keep": 3},
        "command": ["nondiff", "run", "reads.py", "--rate", "0.1"],
        "folder": os.getcwd(),
        "versions": versions(),
        "git": None,
    }


def measure(command: Sequence[str]) -> tuple[float, float]:
    """CPU and wall seconds of a command."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    answer(command)
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, wall


def answer(command: Sequence[str]) -> str:
    """What it prints. Python may keep its bytecode, as it does for who installs nondiff."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONDONTWRITEBYTECODE", "XLA_FLAGS")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr}")
    return done.stdout


def main(options: Options) -> None:
    scripts = {name: shutil.which(name, path=Path(sys.executable).parent) for name in ("nondiff", *PEERS)}
    peers = {f"{name} --help": [script, "--help"] for name in PEERS if (script := scripts[name])}
    skipped = [name for name in PEERS if not scripts[name]]
    nondiff = [scripts["nondiff"]] if scripts["nondiff"] else [sys.executable, "-m", "nondiff.launch.main"]
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        paths, held = make(options.runs)
        commands = {
            "nondiff --help": [*nondiff, "--help"],
            "nondiff list": [*nondiff, "list"],
            "nondiff list --json": [*nondiff, "list", "--json"],
            "nondiff show": [*nondiff, "show", paths[-1].name],
            "python -c pass": [sys.executable, "-c", "pass"],
            "python -c 'import jax'": [sys.executable, "-c", "import jax"],
            **peers,
        }
        statuses = collections.Counter(run["status"] for run in json.loads(answer(commands["nondiff list --json"])))
        for command in commands.values():
            answer(command)  # once before the clock runs: files are in memory then
        turns = [{name: measure(command) for name, command in commands.items()} for _ in range(options.turns)]
        for run in held:
            run.release()
    rows = [
        {
            "command": name,
            "cpu_seconds": statistics.median(turn[name][0] for turn in turns),
            "wall_seconds": statistics.median(turn[name][1] for turn in turns),
        }
        for name in commands
    ]
    table = [(row["command"], f"{row['cpu_seconds']:.3f}", f"{row['wall_seconds']:.3f}", bar(row)) for row in rows]
    print("\n".join(aligned([("command", "CPU s", "wall s", "bar"), *table], right=(1, 2))))
    print(f"{options.runs} runs: " + ", ".join(f"{count} {status}" for status, count in sorted(statuses.items())))
    for peer in skipped:
        print(f"{peer} is skipped: it is not installed")
    if options.json:
        print(json.dumps({"rows": rows, "skipped": skipped, "runs": options.runs, "statuses": statuses}))


def bar(row: dict[str, Any]) -> str:
    if row["command"] not in BARS:
        return ""
    name, most = BARS[row["command"]]
    return f"{name.replace('_', ' ')} under {most}: {'met' if row[name] < most else 'MISSED'}"


if __name__ == "__main__":
    main(tyro.cli(Options))
