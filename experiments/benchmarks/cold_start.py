"""How long one waits for a first answer: small searches in processes of their own, nondiff and its peers.

    python experiments/benchmarks/cold_start.py
    python experiments/benchmarks/cold_start.py --tasks function --libraries nondiff pycma --repeats 9

Wall and CPU seconds of the whole process, imports included, as its parent measures them (user and system time); the
processes run in turns, one at a time, and medians count. No compiled program is taken from a cache on the disk.
`programs` counts what XLA compiled, `loss` is what was reached, so that the work can be seen to be the same.

- function: `(x - 1)^2` in NumPy, 10 dimensions from 0, 2,000 evaluations. nondiff is `minimise` without settings, which
  takes `CMAES`; pycma, cmaes and optuna's `CmaEsSampler` have sigma 0.5 or their own; SciPy is
  `differential_evolution` with its own 150 members and as many evaluations, which brings it less far.
- category: a whole number, a category of three and a number, 2,000 evaluations, of nondiff (`Genetic`, its own choice)
  and of nevergrad's `NGOpt`. optuna's default, TPE, builds a model of all trials before each: it has a tenth of them,
  as one would give it. A second row is a second such call in the same process, as that process measures it.
- fit: `OpenES` with a population of 16 and Adam on a function of two parameters in JAX, 100 steps, beside the loop that
  one writes by hand in JAX and optax for the same estimate, with one compiled step.

A library that is not installed is skipped by name; optuna (`pip install optuna`) is in no extra of nondiff.

Result: docs/performance.md. Cost: 4 minutes on two quiet cores.
"""

import dataclasses
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import tyro
from cold_start_tasks import CALLS, TASKS

from nondiff.launch.words import aligned, number
from nondiff.run.versions import version, versions

Task = Literal["function", "category", "fit"]
PACKAGES = {"pycma": "cma", "SciPy": "scipy", "by hand": "optax"}  # others have the library's name
COLUMNS = {
    "library": "library", "task": "task", "wall": "wall s", "cpu": "CPU s", "programs": "programs", "value": "loss",
    "evaluations": "evaluations",
}  # fmt: skip
UNSET = ("JAX_COMPILATION_CACHE_DIR", "PYTHONDONTWRITEBYTECODE")  # as for who has just installed nondiff


@dataclasses.dataclass(frozen=True)
class Options:
    """What can be chosen."""

    tasks: tuple[Task, ...] = ("function", "category", "fit")
    """Only these."""
    libraries: tuple[str, ...] = ("nondiff", "pycma", "cmaes", "SciPy", "optuna", "nevergrad", "by hand")
    """Only these."""
    repeats: int = 5
    """Processes for each library and task; the median is reported."""
    evaluations: int = 2_000
    """Of a search."""
    json: bool = False
    """The last line is one JSON object with all of it."""


def measure(library: str, task: str, evaluations: int) -> list[dict[str, Any]]:
    """Its calls: what the process says of each, but the first has all the seconds that the others do not have."""
    script = Path(__file__).with_name("cold_start_tasks.py")
    environment = {k: v for k, v in os.environ.items() if k not in UNSET}
    with tempfile.TemporaryFile("w+") as errors:
        begin = time.perf_counter()
        command = [sys.executable, str(script), library, task, str(evaluations)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        assert child.stdout is not None
        with child.stdout as stream:
            printed = stream.read()
        _, status, used = os.wait4(child.pid, 0)  # of this child alone, and of those that it waited for
        wall, child.returncode = time.perf_counter() - begin, os.waitstatus_to_exitcode(status)
        if child.returncode:
            errors.seek(0)
            raise RuntimeError(f"`{library}` failed on `{task}`: {errors.read()}")
    first, *others = json.loads(printed.splitlines()[-1])["calls"]
    first["wall"] = wall - sum(call["wall"] for call in others)
    first["cpu"] = used.ru_utime + used.ru_stime - sum(call["cpu"] for call in others)
    return [first, *others]


def main(options: Options) -> None:
    known = {library for libraries in TASKS.values() for library in libraries}
    if unknown := [name for name in options.libraries if name not in known]:
        raise SystemExit(f"`--libraries {' '.join(unknown)}`: known are {', '.join(sorted(known))}.")
    skipped = [name for name in options.libraries if importlib.util.find_spec(PACKAGES.get(name, name)) is None]
    libraries = [name for name in options.libraries if name not in skipped]
    pairs = [(library, task) for task in options.tasks for library in TASKS[task] if library in libraries]
    turns = []
    for i in range(options.repeats):
        turns.append([measure(*pair, options.evaluations) for pair in pairs])
        print(f"turn {i + 1} of {options.repeats}", file=sys.stderr, flush=True)
    rows = [
        {
            "library": library,
            "task": f"{task}, second call" if call else task,
            "wall": statistics.median(turn[i][call]["wall"] for turn in turns),
            "cpu": statistics.median(turn[i][call]["cpu"] for turn in turns),
            **{key: turns[0][i][call][key] for key in ("value", "evaluations", "programs")},  # the same in each
        }
        for i, (library, task) in enumerate(pairs)
        for call in range(CALLS[task])
    ]
    table = [tuple(COLUMNS.values()), *([number(row[key]) for key in COLUMNS] for row in rows)]
    print("\n".join(aligned(table, right=range(2, len(COLUMNS)))))
    for name in skipped:
        print(f"{name} is skipped: it is not installed")
    if options.json:
        found = versions() | {package: version(package) for name in libraries if (package := PACKAGES.get(name, name))}
        print(json.dumps({"rows": rows, "skipped": skipped, "repeats": options.repeats, "versions": found}))


if __name__ == "__main__":
    main(tyro.cli(Options))
