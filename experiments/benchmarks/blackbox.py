"""How many evaluations black-box optimisers need, and what a generation of theirs costs: nondiff and its peers.

    python experiments/benchmarks/blackbox.py
    python experiments/benchmarks/blackbox.py --functions sphere rastrigin --dims 10 --seeds 3 --libraries nondiff pycma
    python experiments/benchmarks/blackbox.py --part coco --suites bbob --dims 5 --instances 1 2 3
    python experiments/benchmarks/blackbox.py --part time

A search begins with sigma 2 at a point drawn from [-4, 4]^dim, the same ones for every library; its optimum is drawn
from [-3, 3]^dim. All else is the library's default. `hits` counts the seeds that reach 1e-8 within 10,000 evaluations
for each dimension (50,000 on Rastrigin, so that where one large population fails, the next has its turn), `median` is
of the evaluations until then, and `expected` what all seeds spent over the hits: the mean cost of success, if one
begins again after each failure. The sphere and the ellipsoids (axes of 1 to 1,000) are searched once; on Rosenbrock and
Rastrigin each library restarts as it says in the table. All are CMA-ES, but nevergrad is NGOpt, which chooses for
itself; it is not run unless named, for it takes milliseconds for an evaluation (and 1.0.12 needs numpy below 2.4).
evosax looks in 32 bits.

With `--part coco`, the 24 functions of COCO's suites (https://coco-platform.org), 1,000 evaluations for each dimension,
with restarts. `area` is that under the share of the 51 targets 100 to 1e-8 reached, over the logarithm of evaluations:
1 if all were reached at once, 0 if none was. All but evosax know which coordinates are integers; for it the suite
rounds.

With `--part time`, a whole generation on a sphere (sample, evaluate, update), on one thread as is all of this: every
turn is a new search of so many generations; medians over the turns, which the libraries take one after another. nondiff
is what `fit` does for a function in NumPy, in pieces; `nondiff x64` is one compiled step, as where JAX has 64 bits.

Result: docs/blackbox.md. Cost: pycma takes 5 minutes without Rastrigin in 40 dimensions, which takes it 7; COCO in 5
dimensions takes pycma a minute, the time takes all of them 3.
"""

import dataclasses
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any, Literal

import jax
import numpy as np
import tyro
from blackbox_functions import GROUPS, TARGET, TARGETS, Function, Name, Run, Suite, area, coco, curve, made
from blackbox_peers import GENERATIONS, PACKAGES, SEARCHES, Library, Regime, kind_of_restarts

from nondiff.launch.words import aligned, number
from nondiff.run.versions import version, versions

Part = Literal["functions", "coco", "time"]
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}
COLUMNS: dict[Part, dict[str, str]] = {
    "functions": {
        "library": "library", "function": "function", "dim": "dim", "restarts": "restarts", "hits": "hits",
        "seeds": "seeds", "median_evaluations": "median", "expected_running_time": "expected", "seconds": "s",
    },
    "coco": {
        "library": "library", "suite": "suite", "dim": "dim", "restarts": "restarts", "group": "group",
        "problems": "problems", "hits": "solved", "area": "area", "seconds": "s",
    },
    "time": {
        "library": "library", "dim": "dim", "population": "population", "milliseconds": "ms", "ratio": "ratio to pycma",
    },
}  # fmt: skip
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Options:
    """What can be chosen."""

    part: Part = "functions"
    libraries: tuple[Library, ...] = ("nondiff", "pycma", "cmaes", "evosax")
    """Only these; nevergrad, too, if it is named."""
    functions: tuple[Name, ...] = ("sphere", "ellipsoid", "rotated", "rosenbrock", "rastrigin")
    """Only these."""
    dims: tuple[int, ...] = ()
    """Default: 10 and 40; of COCO 5 and 20."""
    seeds: int = 15
    """Each with its own optimum and starting points."""
    budget: int | None = None
    """Evaluations for each dimension, instead of the part's."""
    restarts: Regime = "bipop"
    """Of libraries that have both."""
    suites: tuple[Suite, ...] = ("bbob", "bbob-mixint")
    """Of COCO."""
    instances: tuple[int, ...] = (1, 2, 3, 4, 5)
    """Of each of COCO's functions."""
    cells: tuple[str, ...] = ("10/10", "100/256", "500/22", "500/256")
    """Dimension/population, of the time."""
    generations: int = 50
    """In a turn of the time."""
    turns: int = 9
    """Of the time."""
    x64: bool = False
    """JAX in 64 bits."""
    json: bool = False
    """The last line is one JSON object with all of it."""


def main(options: Options) -> None:
    jax.config.update("jax_enable_x64", options.x64)
    missing = [name for name in options.libraries if importlib.util.find_spec(PACKAGES.get(name, name)) is None]
    skipped = [f"{name}: not installed, skipped" for name in missing]
    libraries: list[Library] = [name for name in options.libraries if name not in missing]
    columns, rows = COLUMNS[options.part], []
    for row in {"functions": functions, "coco": suites, "time": times}[options.part](libraries, options, skipped):
        rows.append(row)
        print(f"{len(rows)}. {' '.join(number(row[key]) for key in columns)}", file=sys.stderr, flush=True)
    table = [tuple(columns.values()), *([number(row[key]) for key in columns] for row in rows)]
    print("\n".join(aligned(table, right=[i for i, key in enumerate(columns) if key not in WORDS])))
    skipped = list(dict.fromkeys(skipped))
    for line in skipped:
        print(line)
    if options.json:
        packages = {PACKAGES.get(name, name) for name in options.libraries} | {"coco-experiment"}
        found = versions() | {package: version(package) for package in sorted(packages)}
        print(json.dumps({"rows": rows, "skipped": skipped, "versions": found}))


WORDS = ("library", "function", "restarts", "suite", "group")


def functions(libraries: list[Library], options: Options, skipped: list[str]) -> Iterator[Row]:
    for dim in options.dims or (10, 40):
        for name in options.functions:
            budget = dim * (options.budget or (50_000 if name == "rastrigin" else 10_000))
            for library in libraries:
                begin, runs = time.perf_counter(), []
                for seed in range(options.seeds):
                    runs.append(minimised(library, made(name, dim, seed), (TARGET,), budget, seed, options, skipped))
                hits = [run.spent for run in runs if run.reached]
                yield {
                    "library": library,
                    "function": name,
                    "dim": dim,
                    "restarts": kind_of_restarts(library, options.restarts) if runs[0].function.restarts else None,
                    "seeds": options.seeds,
                    "hits": len(hits),
                    "median_evaluations": round(statistics.median(hits)) if hits else None,
                    "expected_running_time": round(sum(run.spent for run in runs) / len(hits)) if hits else None,
                    "evaluations": [run.spent for run in runs],
                    "budget": budget,
                    "seconds": time.perf_counter() - begin,
                }


def suites(libraries: list[Library], options: Options, skipped: list[str]) -> Iterator[Row]:
    if importlib.util.find_spec("cocoex") is None:
        skipped.append("coco-experiment: not installed, skipped")
        return
    for suite in options.suites:
        for dim in options.dims or (5, 20):
            budget = dim * (options.budget or 1_000)
            for library in libraries:
                runs: list[tuple[int, Run, float]] = []
                for which, instance, function in coco(suite, dim, options.instances):
                    begin = time.perf_counter()
                    seed = 100 * which + instance  # of 24 functions with the same draws, one would hardly know more
                    run = minimised(library, function, TARGETS, budget, seed, options, skipped)
                    runs.append((which, run, time.perf_counter() - begin))
                for group, members in GROUPS.items():
                    found = [(run, seconds) for which, run, seconds in runs if which in members]
                    yield {
                        "library": library,
                        "suite": suite,
                        "group": group,
                        "dim": dim,
                        "restarts": kind_of_restarts(library, options.restarts),
                        "problems": len(found),
                        "hits": sum(len(run.reached) == len(TARGETS) for run, _ in found),
                        "area": statistics.mean(area(run) for run, _ in found),
                        "areas": [area(run) for run, _ in found],
                        "curve": np.mean([curve(run) for run, _ in found], 0).tolist(),
                        "budget": budget,
                        "seconds": sum(seconds for _, seconds in found),
                    }


def minimised(
    library: Library,
    function: Function,
    targets: tuple[float, ...],
    budget: int,
    seed: int,
    options: Options,
    skipped: list[str],
) -> Run:
    """A peer that fails has spent what it has."""
    run = Run(function, targets, budget, seed)
    try:
        SEARCHES[library](run, options.restarts if function.restarts else None)
    except Exception as error:
        if library == "nondiff":
            raise
        skipped.append(f"{library}: a run failed after {run.evaluations} evaluations, {error!r}")
    return run


def times(libraries: list[Library], options: Options, skipped: list[str]) -> Iterator[Row]:
    del skipped
    for cell in options.cells:
        dim, population = map(int, cell.split("/"))
        begins = {name: of(dim, population) for name, of in GENERATIONS.items() if name.split()[0] in libraries}
        taken = {library: list[float]() for library in begins}
        for turn in range(options.turns + 1):
            for library, begin in begins.items():
                generation = begin()
                start = time.perf_counter()
                for _ in range(options.generations):
                    generation()
                if turn:  # what is compiled is compiled in the first
                    taken[library].append((time.perf_counter() - start) / options.generations)
        seconds = {library: statistics.median(of) for library, of in taken.items()}
        for library in begins:
            yield {
                "library": library,
                "dim": dim,
                "population": population,
                "milliseconds": 1e3 * seconds[library],
                "ratio": seconds[library] / seconds["pycma"] if "pycma" in seconds else None,
                "turns": options.turns,
                "generations": options.generations,
            }


if __name__ == "__main__":
    if not ONE_THREAD.items() <= os.environ.items():  # they are read when the libraries are loaded
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ONE_THREAD)
    main(tyro.cli(Options))
