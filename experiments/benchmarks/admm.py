"""What ADMM reaches beside others on the same work: convex problems, constrained weights, layers without a gradient.

    python experiments/benchmarks/admm.py
    python experiments/benchmarks/admm.py --tasks lasso binary step --seeds 2 --json
    python experiments/benchmarks/admm.py --tasks folder --folder fashion-mnist

- `lasso`, `elastic-net`, `box-qp`, `completion`: `ADMM` around gradient steps, in 64 bits, and the solvers of
  scikit-learn, OSQP and SCS (the last two through CVXPY). `excess` is by how much the objective is above the best one
  found, relative to it, on the worst seed.
- `binary`, `ternary`, `2-bit`, `4-bit` (`experiments/quantized_admm.py`) and `90 %`, `95 %`, `98 %` of the weights 0
  (`experiments/pruned_admm.py`): `ADMM` around Adam; straight-through estimation, rounding after training, removal of
  the smallest weights with the same fine-tuning; Adam without a constraint.
- `digits` (64-128-128-10, 1,797 images of 8 x 8), `mnist` (784-300-300-10, 5,000 images), `step` and `sign` (the same
  with units that are on or off) and `folder` (the same on the 60,000 images of `--folder`; only if asked for):
  `LayerwiseADMM`, and Adam, straight through the units where they have no derivative
  (`experiments/step_network.py`); and the best accuracy of any step, which the last one should be close to.

Accuracies are of unseen images, mean and least of the seeds; `s` is the median time of a training, compilation
included.
"""

import dataclasses
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax.random as jr
import numpy as np
import tyro
from admm_convex import CONVEX, SKIPPED, convex
from sklearn.datasets import load_digits

import nondiff as nd
from nondiff.launch.load import load
from nondiff.launch.words import aligned
from nondiff.run.versions import version, versions

EXPERIMENTS = Path(__file__).parents[1]
quantized: Any = load(EXPERIMENTS / "quantized_admm.py", "quantized_admm.py")
pruned: Any = load(EXPERIMENTS / "pruned_admm.py", "pruned_admm.py")
layers: Any = load(EXPERIMENTS / "step_network.py", "step_network.py")
WEIGHTS = ("binary", "ternary", "2-bit", "4-bit")
ZEROS = {"90 %": 0.9, "95 %": 0.95, "98 %": 0.98}
UNITS = {"digits": "relu", "mnist": "relu", "step": "step", "sign": "sign", "folder": "relu"}
TASKS = (*CONVEX, *WEIGHTS, *ZEROS, *UNITS)
COLUMNS = ("task", "method", "accuracy_mean", "accuracy_min", "excess", "seconds")
Found = dict[str, tuple[float, float]]
"""Of one seed: a method's accuracy and seconds."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What can be chosen."""

    tasks: tuple[str, ...] = TASKS[:-1]
    """Only these."""
    seeds: int = 5
    """Of data, network and batches."""
    epochs: int | None = None
    """Of every training of networks; default: those of the experiments."""
    folder: str = ""
    """Where the four files of MNIST or of Fashion-MNIST lie, for `folder`."""
    folder_steps: int = 60
    """Of `LayerwiseADMM` there."""
    folder_rows: int | None = None
    """Images to train on there; default: all."""
    json: bool = False
    """The last line is one JSON object with all of it."""

    def __post_init__(self) -> None:
        if unknown := set(self.tasks) - set(TASKS):
            raise SystemExit(f"--tasks {' '.join(sorted(unknown))}: expected some of {', '.join(TASKS)}.")
        if "folder" in self.tasks and not self.folder:
            raise SystemExit("--tasks folder: where are the images? Give --folder, too.")
        if self.seeds < 1:
            raise SystemExit(f"--seeds {self.seeds}: expected at least 1.")


def ran(experiment: nd.Experiment, seed: int) -> dict[str, Any]:
    """The report of an experiment."""
    assert experiment.report is not None
    every: dict[str, Any] = {} if experiment.log_every is None else {"log_every": experiment.log_every}
    result = nd.fit(
        experiment.problem, experiment.trainer, steps=experiment.steps, key=jr.key(seed),
        metrics=experiment.metrics, **every,
    )  # fmt: skip
    return dict(experiment.report(result))


def few_values(weights: str, seed: int, options: Options) -> Found:
    epochs = {} if options.epochs is None else {"epochs": options.epochs, "warmup": 0}
    found = ran(quantized.make(quantized.Config(weights=weights, seed=seed, **epochs)), seed)
    return {
        "ADMM": (found["accuracy"], found["train_seconds"]),
        "straight-through": (found["straight_through"], found["straight_through_seconds"]),
        "rounded afterwards": (found["rounded_afterwards"], found["float_seconds"]),
        "Adam, no constraint": (found["float"], found["float_seconds"]),
    }


def few_weights(zeros: float, seed: int, options: Options) -> Found:
    epochs = {} if options.epochs is None else {"epochs": options.epochs, "fine_tuning": 1, "warmup": 0}
    found = ran(pruned.make(pruned.Config(zeros=zeros, seed=seed, **epochs)), seed)
    return {
        "ADMM": (found["accuracy"], found["train_seconds"]),
        "smallest removed": (found["magnitude"], found["magnitude_seconds"]),
        "Adam, no constraint": (found["dense"], found["dense_seconds"]),
    }


def small_digits(seed: int) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """1,437 of scikit-learn's images to train on, 360 unseen ones."""
    data: Any = load_digits()
    order = np.random.default_rng(seed).permutation(len(data.target))
    x, y = (data.data[order] / 16).astype(np.float32), data.target[order].astype(np.int32)
    x = (x - x[:1437].mean(0)) / x[:1437].std()
    return (x[:1437], y[:1437]), (x[1437:], y[1437:])


def by_layers(task: str, seed: int, options: Options) -> Found:
    more: dict[str, Any] = {} if options.epochs is None else {"epochs": options.epochs, "steps": options.epochs}
    if task == "folder":
        more = {"folder": options.folder, "epochs": 5, "steps": options.folder_steps, "rows": options.folder_rows}
    if task == "digits":
        more["width"] = 128
    config = layers.Config(activation=UNITS[task], seed=seed, **more)
    data = small_digits(seed) if task == "digits" else layers.load(config)
    found = ran(layers.experiment(config, *data), seed)
    other = "straight-through" if task in layers.WITHOUT_DERIVATIVE else "Adam"
    return {
        "LayerwiseADMM": (found["accuracy"], found["train_seconds"]),
        "the best of its steps": (found["best_accuracy"], found["train_seconds"]),
        other: (found["backprop_accuracy"], found["backprop_seconds"]),
    }


def measured(task: str) -> Callable[[int, Options], Found]:
    if task in WEIGHTS:
        return lambda seed, options: few_values(task, seed, options)
    if task in ZEROS:
        return lambda seed, options: few_weights(ZEROS[task], seed, options)
    return lambda seed, options: by_layers(task, seed, options)


def rows(options: Options) -> Iterator[dict[str, Any]]:
    for task in options.tasks:
        if task in CONVEX:
            yield from convex(task, options.seeds)
            continue
        found: list[Found] = []
        for seed in range(options.seeds):
            found.append(measured(task)(seed, options))
            print(task, seed, {m: round(a, 4) for m, (a, _) in found[-1].items()}, file=sys.stderr, flush=True)
        for method in found[0]:
            accuracies = [of[method][0] for of in found]
            yield {
                "task": task,
                "method": method,
                "accuracy_mean": statistics.mean(accuracies),
                "accuracy_min": min(accuracies),
                "accuracies": accuracies,
                "seconds": statistics.median(of[method][1] for of in found),
            }


def cells(row: dict[str, Any]) -> list[str]:
    forms = {"excess": "{:.1e}", "seconds": "{:.1f}"}
    return [x if isinstance(x := row.get(c, ""), str) else forms.get(c, "{:.4f}").format(x) for c in COLUMNS]


def main(options: Options) -> None:
    table = list(rows(options))
    print("\n".join(aligned([COLUMNS, *map(cells, table)], right=range(2, len(COLUMNS)))))
    if SKIPPED:
        print(f"\nNot installed: {', '.join(SKIPPED)} (pip install cvxpy).")
    if options.json:
        found = versions() | {name: version(name) for name in ("scikit-learn", "cvxpy", "osqp", "scs")}
        settings = dataclasses.asdict(options)
        print(json.dumps({"rows": table, "skipped": SKIPPED, "settings": settings, "versions": found}))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
