"""How well a network learns to read when it is told only a program's answers: every estimator, beside the ceiling.

    python experiments/benchmarks/neural_programs.py
    python experiments/benchmarks/neural_programs.py --tasks sum3 hwf --methods MarginalLikelihood --seeds 0 1
    python experiments/benchmarks/neural_programs.py --out rows.jsonl

A 784-128-C network reads images of digits and operators (`experiments/formula.py`: 5,000 of MNIST, of which 1,000 make
only test cases), a Python program behind `nd.Opaque` makes one answer of them, and the loss sees whether it is right.
`sum` adds 2, 3 or 4 digits, `mult2` multiplies, `mod2` is a % (b + 1), `add-sub` a + b - c, `sort3` sorts 3 digits,
`hwf` is formulas of 1 to 7 of 14 symbols. One setting for these: 5,000 training cases, batches of 64, 2,400 steps of
Adam(1e-3). `sudoku` fills the blanks of 4 x 4 boards, as `experiments/visual_sudoku.py` has it: a curriculum of 500
steps with 32 boards each, `answers` the share of right blanks on 2,000 boards. Estimators are those of `METHODS`, the
same on every task: their own defaults but for the number of samples and ScoreFunction's entropy; the net that belongs
to Surrogate has Adam(1e-2).

The `ceiling` is the same network with the same start, cases, batches and steps, trained on the symbols themselves. It
can be passed: so trained, the network overfits 4,000 digits (sum4, seed 0: .704 after 1,200 steps, .690 after 2,400).
`answers` is the share of right answers to 10,000 test cases; `ratio` divides it by the ceiling of the same seed: its
mean over the seeds and its least. `calls` is what was asked of the program, `distinct` what it really ran on, the most
of any seed. `s` is the median time of a training, compilation included. What others published follows, quoted: it was
measured on all 60,000 images of MNIST, and on the handwritten operators of HWF.

With `--out` each measurement is a line of that file, and what stands there already is not measured again.
"""

import dataclasses
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from neural_programs_tasks import METHODS, QUOTED, QUOTED_TASKS, SOURCE, TASKS

from nondiff.launch.words import aligned
from nondiff.run.versions import version, versions

LABELS = "labels"
"""The method of the ceiling."""
COLUMNS = ("task", "method", "seeds", "answers", "ceiling", "ratio", "least", "calls", "distinct", "s")
Line = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Options:
    """What can be chosen."""

    tasks: tuple[str, ...] = tuple(TASKS)
    """Only these."""
    methods: tuple[str, ...] = tuple(METHODS)
    """Only these, where they fit."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Each with its own split, cases, network and samples."""
    steps: int = 2_400
    """Of every training."""
    cases: int = 5_000
    """To train on."""
    test_cases: int = 10_000
    batch_size: int = 64
    """Cases a step."""
    width: int = 128
    """Hidden units."""
    out: Path | None = None
    """Measurements as JSON lines: read before, written on."""
    json: bool = False
    """The last line is one JSON object with all of it."""

    def __post_init__(self) -> None:
        for option, given, known in (("tasks", self.tasks, TASKS), ("methods", self.methods, METHODS)):
            if unknown := set(given) - set(known):
                raise SystemExit(f"--{option} {' '.join(sorted(unknown))}: expected some of {', '.join(known)}.")

    @property
    def settings(self) -> Line:
        """What measurements must have in common."""
        return {name: getattr(self, name) for name in ("steps", "cases", "test_cases", "batch_size", "width")}


def main(options: Options) -> None:
    known = {key(line): line for line in kept(options)}
    for task, method, seed in wanted(options):
        if (task, method, seed) not in known:
            line = known[task, method, seed] = measure(task, method, seed, options)
            print(f"{task} {method} {seed}: {line['accuracy']:.4f}", file=sys.stderr, flush=True)
            keep(line, options)
    rows = summary(known, options)
    print("\n".join(aligned([COLUMNS, *map(cells, rows)], right=range(2, len(COLUMNS)))))
    print(f"\nQuoted, not measured here, per cent ({SOURCE}):")
    quoted = [["" if x is None else f"{x:.2f}" for x in of] for of in QUOTED.values()]
    table = [[name, *of] for name, of in zip(QUOTED, quoted, strict=True)]
    print("\n".join(aligned([["method", *QUOTED_TASKS], *table], right=range(1, len(QUOTED_TASKS) + 1))))
    if options.json:
        found = versions() | {"mlxtend": version("mlxtend")}
        print(json.dumps({"rows": rows, "settings": options.settings, "quoted": QUOTED, "versions": found}))


def kept(options: Options) -> list[Line]:
    """The lines of the file that were measured with the same settings."""
    if options.out is None or not options.out.exists():
        return []
    lines = [json.loads(line) for line in options.out.read_text().splitlines()]
    return [line for line in lines if line["settings"] == options.settings]


def keep(line: Line, options: Options) -> None:
    if options.out is not None:
        with open(options.out, "a") as file:
            file.write(json.dumps(line) + "\n")


def key(line: Line) -> tuple[str, str, int]:
    return line["task"], line["method"], line["seed"]


def wanted(options: Options) -> Iterator[tuple[str, str, int]]:
    """What is to be measured, each task's ceiling first."""
    for task in options.tasks:
        methods = [method for method in options.methods if METHODS[method].fits(TASKS[task])]
        for method in (LABELS, *methods) if methods else ():
            yield from ((task, method, seed) for seed in options.seeds)


def measure(name: str, method: str, seed: int, options: Options) -> Line:
    """One training and its test."""
    learned = TASKS[name].learn(None if method == LABELS else METHODS[method], seed, options)
    return {
        "task": name,
        "method": method,
        "seed": seed,
        "accuracy": learned.accuracy,
        "calls": learned.program.requests,
        "distinct_calls": learned.program.distinct_calls,
        "seconds": learned.seconds,
        "settings": options.settings,
    }


def summary(known: dict[tuple[str, str, int], Line], options: Options) -> list[Line]:
    """A row for each task and method, over the seeds."""
    rows = []
    for task, method in dict.fromkeys((task, method) for task, method, _ in wanted(options) if method != LABELS):
        lines = [known[task, method, seed] for seed in options.seeds]
        rows.append(
            {
                "task": task,
                "method": method,
                "seeds": options.seeds,
                "accuracy": [line["accuracy"] for line in lines],
                "ceiling": [known[task, LABELS, seed]["accuracy"] for seed in options.seeds],
                "calls": max(line["calls"] for line in lines),
                "distinct_calls": max(line["distinct_calls"] for line in lines),
                "seconds": statistics.median(line["seconds"] for line in lines),
            }
        )
    return rows


def cells(row: Line) -> list[str]:
    ratios = np.array(row["accuracy"]) / np.maximum(row["ceiling"], 1e-9)
    shares = np.mean(row["accuracy"]), np.mean(row["ceiling"]), ratios.mean(), ratios.min()
    counts = f"{row['calls']:,}", f"{row['distinct_calls']:,}", f"{row['seconds']:.1f}"
    return [row["task"], row["method"], str(len(ratios)), *(f"{share:.3f}" for share in shares), *counts]


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
