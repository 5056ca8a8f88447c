"""Rows of `decoupled.py`: two modules in two processes, beside backpropagation in one.

Each is a run of `experiments/pipeline.py` with the launcher, on the same data and for as many steps. Backpropagation
has one core, each module of a pipeline another. `delay` is added to the way of every message. In `killed`, the process
of the lower module is killed in mid-run.
"""

import contextlib
import json
import os
import pathlib
import re
import signal as signal_numbers
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

EXPERIMENT = pathlib.Path(__file__).parents[1] / "pipeline.py"
DELAYS = 0.0, 0.02
PIPELINES = "local", "synthetic"
LOCKED = "locked"
COLUMNS = ("signal", "delay", "killed", "samples/s", "beside locked", "beside no delay", "accuracy")


def run(signal: str, delay: float, seed: int, steps: int, *, kill: bool = False) -> dict[str, float]:
    """The report of one."""
    words = ["run", str(EXPERIMENT), "--signal", signal, "--delay", str(delay), "--steps", str(steps)]
    command = [sys.executable, "-m", "nondiff.launch.main", *words, "--seed", str(seed), "--no-save", "--json"]
    if signal == LOCKED:
        command = ["taskset", "-c", str(min(os.sched_getaffinity(0))), *command]
    with tempfile.TemporaryFile("w+") as out:
        with subprocess.Popen(command, stdout=out, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            said = []
            for line in process.stderr:
                said.append(line)
                step = re.match(r"step (\d+)/", line)
                if kill and step is not None and 2 * int(step[1]) >= steps:
                    os.kill(_module(process.pid), signal_numbers.SIGKILL)
                    kill = False
        if process.returncode or kill:
            raise SystemExit(f"{' '.join(command)}\n{''.join(said)}")
        out.seek(0)
        return json.loads(out.read().splitlines()[-1])["metrics"]


def _module(driver: int) -> int:
    """The process of the lower module: the first that was started of those below this one."""
    parents = {}
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (process / "stat").read_text().rsplit(")", 1)[1].split()
            parents[int(process.name)] = int(fields[1])
    below = {driver}
    while more := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= more
    return min(pid for pid in below if b"ray::ModuleActor" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes())


def rows(seeds: int, steps: int) -> Iterator[dict[str, Any]]:
    """One for each kind of run, with the figures of all seeds."""
    kinds = [(signal, delay, False) for delay in DELAYS for signal in (LOCKED, *PIPELINES)]
    found: dict[Any, list[dict[str, float]]] = {kind: [] for kind in [*kinds, (PIPELINES[0], 0.0, True)]}
    for seed in range(seeds):
        for (signal, delay, kill), reports in found.items():
            reports.append(run(signal, delay, seed, steps, kill=kill))
            print(signal, delay, "killed" * kill, reports[-1], file=sys.stderr, flush=True)
    rates = {kind: statistics.median(r["samples_per_second"] for r in reports) for kind, reports in found.items()}
    for (signal, delay, kill), reports in found.items():
        yield {
            "signal": signal,
            "delay": delay,
            "killed": kill,
            "samples_per_second": rates[signal, delay, kill],
            "beside_locked": rates[signal, delay, kill] / rates[LOCKED, delay, False],
            "beside_no_delay": rates[signal, delay, kill] / rates[signal, 0.0, False],
            "accuracy": [report["accuracy"] for report in reports],
        }


def cells(row: dict[str, Any]) -> list[str]:
    numbers = row["samples_per_second"], row["beside_locked"], row["beside_no_delay"], statistics.mean(row["accuracy"])
    shown = [f"{x:{form}}" for x, form in zip(numbers, (".0f", ".2f", ".2f", ".4f"), strict=True)]
    return [row["signal"], f"{row['delay']:g}", "yes" if row["killed"] else "no", *shown]
