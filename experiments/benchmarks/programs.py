"""Programs: what evaluating them costs beside other libraries, and how many evaluations it takes to find some.

    python experiments/benchmarks/programs.py
    python experiments/benchmarks/programs.py --parts interpreter
    python experiments/benchmarks/programs.py --parts sort --seeds 3 --json
    python experiments/benchmarks/programs.py --parts psb2
    python experiments/benchmarks/programs.py --parts psb2 --problems gcd --psb2-seeds 0 1 --seconds 30
    python experiments/benchmarks/programs.py --parts feynman --formulas I.12.2 I.27.6

`interpreter`: the same 1,000 random trees on 32, 256 and 2,048 cases by every engine (`programs_interpreter.py`), which
take turns; all must give the same values. Rates are of CPU time, all threads together, medians.

`sort`: `experiments/learn_to_sort.py` with both sets of lines and lexicase selection; of `swap` also with tournaments,
and with programs drawn at random. `solved` is how many seeds found a program that does all sixteen examples, `exact`
how many of these sort all of 1,000 unseen arrays ten times, and of 20 a hundred times, as long as the longest example.

`psb2`: eight problems in the manner of PSB2, with our own generators (`programs_psb2_tasks.py`), by down-sampled
lexicase (`programs_psb2.py`). `solved` is how many runs found a program that does all of 1,200 unseen cases; a run that
finds none takes all of its time, and its evaluations count in the median. Beside it stand PushGP's published successes
of 100 runs of 300,000 evaluations, with other instructions and the suite's own data.

`feynman`: `experiments/symbolic_regression.py` and gplearn on formulas from physics, at as many nodes
(`programs_feynman.py`). `exact` is how many were found but for a constant, `R2 > .999` the share of those that fit at
1,000 unseen points.

gplearn and deap are compared where they are installed.
"""

import dataclasses
import json
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, Literal

import programs_feynman
import programs_interpreter
import programs_psb2
import tyro

from nondiff.launch.words import aligned, number
from nondiff.run.versions import version, versions

SORT = pathlib.Path(__file__).parents[1] / "learn_to_sort.py"
SEARCHES: dict[str, tuple[str, ...]] = {
    "swap, lexicase": (),
    "swap, tournament": ("--search", "tournament"),
    "swap, random": ("--search", "random", "--steps", "600"),
    "store, lexicase": ("--lines", "store", "--length", "12", "--population", "2048", "--steps", "2440"),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What can be chosen."""

    parts: tuple[Literal["interpreter", "sort", "psb2", "feynman"], ...] = ("interpreter", "sort", "psb2", "feynman")
    """What is measured."""
    cases: tuple[int, ...] = (32, 256, 2048)
    """Of the interpreters."""
    trees: int = 1_000
    """Of the interpreters."""
    turns: int = 9
    """Of the interpreters, of which medians are reported."""
    searches: tuple[str, ...] = tuple(SEARCHES)
    """Of the sort: which lines, and how parents are chosen."""
    seeds: int = 10
    """Of the sort."""
    problems: tuple[str, ...] = tuple(programs_psb2.TASKS)
    """Of psb2."""
    psb2_seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Of psb2: of the examples and the search."""
    seconds: float = 60.0
    """Of psb2: time of the processor that a run may take, compilation included."""
    formulas: tuple[str, ...] = ()
    """Of feynman. Default: all that have no arcsine, 98."""
    noises: tuple[float, ...] = (0.0, 0.01)
    """Of feynman, in units of the root mean square of the values."""
    formula_seeds: int = 1
    """Of feynman."""
    formula_cases: int = 64
    """Of feynman."""
    nodes: float = 2e5
    """Of feynman: lines, or nodes of trees, of all programs of a search, each computed for all cases."""
    processes: int = 2
    """Of feynman."""
    methods: tuple[Literal["nondiff", "nondiff, 10 times", "gplearn", "gplearn, scaled"], ...] = (
        programs_feynman.METHODS
    )
    """Of feynman."""
    json: bool = False
    """The last line is one JSON object with all of it."""


def sort(search: str, seeds: int) -> dict[str, Any]:
    """One kind of search, all seeds."""
    reports = []
    for seed in range(seeds):
        words = ["run", str(SORT), *SEARCHES[search], "--seed", str(seed), "--no-save", "--json"]
        done = subprocess.run([sys.executable, "-m", "nondiff.launch.main", *words], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        reports.append(json.loads(done.stdout.splitlines()[-1])["metrics"])
        print(search, seed, reports[-1], file=sys.stderr, flush=True)
    exact = [report["exact_10x"] == report["exact_100x"] == 1 for report in reports]
    return {
        "search": search,
        "solved": sum(report["solved"] for report in reports),
        "exact": sum(exact),
        "seeds": seeds,
        "evaluations": [report["evaluations"] for report in reports],
        "median_evaluations": statistics.median(report["evaluations"] for report in reports),
        "seconds": statistics.median(report["train_seconds"] for report in reports),
    }


def tables(options: Options, found: dict[str, list[Any]]) -> Iterator[str]:
    if "interpreter" in options.parts:
        found["interpreter"] = list(
            programs_interpreter.rows(options.cases, options.trees, options.turns, found["skipped"])
        )
        rows = [
            (row["engine"], str(row["cases"]), number(row["nodes_per_cpu_second"] / 1e6), number(row["nondiff_times"]))
            for row in found["interpreter"]
        ]
        yield from aligned(
            [("engine", "cases", "M nodes per CPU second", "nondiff is so many times"), *rows], right=range(1, 4)
        )
    if "sort" in options.parts:
        found["sort"] = [sort(search, options.seeds) for search in options.searches]
        rows = [
            (
                row["search"],
                str(row["solved"]),
                str(row["exact"]),
                str(row["seeds"]),
                number(row["median_evaluations"]),
                number(row["seconds"]),
            )
            for row in found["sort"]
        ]
        yield from aligned([("sort", "solved", "exact", "of", "evaluations", "s"), *rows], right=range(1, 6))
    if "psb2" in options.parts:
        found["psb2"] = list(programs_psb2.rows(options.problems, options.psb2_seeds, options.seconds))
        rows = [
            (
                row["problem"],
                str(row["solved"]),
                str(row["seeds"]),
                number(row["median_evaluations"]),
                number(row["median_seconds"]),
                str(row["pushgp"]),
            )
            for row in found["psb2"]
        ]
        head = ("psb2", "solved", "of", "evaluations", "CPU s", "PushGP, of 100")
        yield from aligned([head, *rows], right=range(1, 6))
    if "feynman" in options.parts:
        found["feynman"] = list(
            programs_feynman.rows(
                options.formulas or tuple(programs_feynman.names()), options.noises, options.formula_seeds,
                options.formula_cases, options.nodes, options.processes, options.methods, found["skipped"],
            )
        )  # fmt: skip
        head = ("feynman", "noise", "exact", "of", "%", "R2 > .999", "M nodes", "CPU s")
        yield from aligned([head, *programs_feynman.summary(found["feynman"])], right=range(1, 8))


def main(options: Options) -> None:
    unknown = set(options.searches) - set(SEARCHES)
    if unknown:
        raise SystemExit(f"--searches: {', '.join(unknown)} is none of {', '.join(SEARCHES)}.")
    unknown = set(options.problems) - set(programs_psb2.TASKS)
    if unknown:
        raise SystemExit(f"--problems: {', '.join(unknown)} is none of {', '.join(programs_psb2.TASKS)}.")
    missing = set(options.formulas) - set(programs_feynman.names())
    if missing:
        raise SystemExit(f"--formulas: {', '.join(missing)} is none of {', '.join(programs_feynman.names())}.")
    found: dict[str, list[Any]] = {"interpreter": [], "sort": [], "psb2": [], "feynman": [], "skipped": []}
    for line in tables(options, found):
        print(line, flush=True)
    for line in found["skipped"]:
        print(line)
    if options.json:
        peers = {peer: version(peer) for peer in ("gplearn", "deap", "sympy")}
        print(json.dumps(found | {"settings": dataclasses.asdict(options), "versions": versions() | peers}))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
