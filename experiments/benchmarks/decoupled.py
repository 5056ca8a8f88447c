"""How deep decoupled modules go: accuracy by depth for every signal, beside backpropagation.

    python experiments/benchmarks/decoupled.py
    python experiments/benchmarks/decoupled.py --parts pipeline
    python experiments/benchmarks/decoupled.py --parts copy
    python experiments/benchmarks/decoupled.py --signals synthetic local --depths 2 8 --seeds 2
    python experiments/benchmarks/decoupled.py --json

The network of `experiments/decoupled_mlp.py`: layers of 128 units with layer normalisation, 4,000 MNIST images to train
on, 1,000 unseen, 40 epochs of Adam. Every signal and backpropagation get the same learning rates, and each has the
row of its best one by mean accuracy. `unconditioned` is a synthetic gradient that does not see the answers, `damped`
one that least squares fit, `inputs` one beside predicted inputs. Then a pipeline of two processes beside
backpropagation in one (`decoupled_pipeline.py`); leave the machine alone meanwhile. Then recurrent networks, with
synthetic gradients at the ends of windows beside truncated backpropagation (`decoupled_copy.py`); an hour or more.
"""

import dataclasses
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import jax.random as jr
import tyro

import nondiff as nd
from nondiff.launch.load import load
from nondiff.launch.words import aligned
from nondiff.run.versions import versions

mlp: Any = load(Path(__file__).parents[1] / "decoupled_mlp.py", "decoupled_mlp.py")
pipeline: Any = load(Path(__file__).parent / "decoupled_pipeline.py", "decoupled_pipeline.py")
copy: Any = load(Path(__file__).parent / "decoupled_copy.py", "decoupled_copy.py")
SIGNALS: dict[str, dict[str, Any]] = {
    "synthetic": {"signal": "synthetic"},
    "damped": {"signal": "synthetic", "damping": 0.1},
    "unconditioned": {"signal": "synthetic", "unconditioned": True},
    "inputs": {"signal": "synthetic", "inputs": True},
    "local": {"signal": "local"},
    "similarity": {"signal": "similarity"},
    "feedback": {"signal": "feedback"},
    "forward": {"signal": "forward"},
}
BACKPROP = "backprop"
COLUMNS = ("signal", "depth", "rate", "accuracy", "least", "backprop", "cosine below", "above", "seconds")


@dataclasses.dataclass(frozen=True)
class Options:
    """What can be chosen."""

    parts: tuple[Literal["accuracy", "pipeline", "copy"], ...] = ("accuracy", "pipeline", "copy")
    """What is measured."""
    signals: tuple[str, ...] = tuple(SIGNALS)
    """Only these, beside backpropagation."""
    depths: tuple[int, ...] = (2, 3, 5, 8)
    """Hidden layers."""
    rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
    """Of Adam, for all."""
    seeds: int = 5
    """Of images, network and batches."""
    epochs: int = 40
    """Of every training."""
    pipeline_seeds: int = 3
    """Of images, network and batches in the pipeline's rows, of which the rates are medians."""
    pipeline_steps: int = 600
    """Of every training there."""
    tasks: tuple[Literal["copy", "repeat-copy"], ...] = ("copy", "repeat-copy")
    """Of recurrent networks; to write the symbols once, or three times."""
    copy_signals: tuple[Literal["synthetic", "unconditioned", "local", "none"], ...] = ("synthetic",)
    """Only these, beside `none`, truncated backpropagation."""
    windows: tuple[int, ...] = (2, 3, 4, 5)
    """Steps through which gradients go."""
    copy_seeds: int = 3
    """Of network and sequences."""
    copy_updates: int = 40_000
    """Of every training there, a window each."""
    json: bool = False
    """The last line is one JSON object with all of it."""

    def __post_init__(self) -> None:
        if unknown := set(self.signals) - set(SIGNALS):
            raise SystemExit(f"--signals {' '.join(sorted(unknown))}: expected some of {', '.join(SIGNALS)}.")
        counts = self.seeds, self.epochs, self.pipeline_seeds, self.pipeline_steps, *self.depths
        counts += self.copy_seeds, self.copy_updates, *self.windows
        if min(counts) < 1 or not self.rates or min(self.rates) <= 0:
            raise SystemExit("seeds, epochs, steps, --depths and --windows: expected at least 1; --rates: above 0.")


def trained(chosen: dict[str, Any], depth: int, rate: float, seed: int, options: Options) -> dict[str, float]:
    """The report of a run."""
    config = mlp.Config(**chosen, depth=depth, learning_rate=rate, seed=seed, epochs=options.epochs)
    experiment = mlp.make(config)
    result = nd.fit(
        experiment.problem, experiment.trainer, steps=experiment.steps, key=jr.key(seed),
        metrics=experiment.metrics, log_every=experiment.steps,
    )  # fmt: skip
    report = dict(experiment.report(result))
    jax.clear_caches()  # hundreds of compiled networks are more than one process may map
    return report


def best(chosen: dict[str, Any], depth: int, options: Options) -> dict[str, Any]:
    """Of the learning rates."""
    tried = []
    for rate in options.rates:
        reports = [trained(chosen, depth, rate, seed, options) for seed in range(options.seeds)]
        tried.append({"rate": rate, "reports": reports, "accuracy": [r["accuracy"] for r in reports]})
        shown = [round(a, 4) for a in tried[-1]["accuracy"]]
        print(*chosen.values(), depth, rate, shown, file=sys.stderr, flush=True)
    return max(tried, key=lambda t: statistics.mean(t["accuracy"]))


def rows(options: Options) -> Iterator[dict[str, Any]]:
    for depth in options.depths:
        true = best({"signal": "locked"}, depth, options)
        for name in (BACKPROP, *options.signals):
            found = true if name == BACKPROP else best(SIGNALS[name], depth, options)
            cosines = [[v for n, v in r.items() if n.startswith("cosine/")] for r in found["reports"]]
            yield {
                "task": "mnist-5k",
                "signal": name,
                "depth": depth,
                "rate": found["rate"],
                "accuracy": found["accuracy"],
                "backprop": true["accuracy"],
                "cosine": [statistics.mean(of) for of in zip(*cosines, strict=True)],
                "seconds": statistics.median(r["train_seconds"] for r in found["reports"]),
            }


def cells(row: dict[str, Any]) -> list[str]:
    numbers = statistics.mean(row["accuracy"]), min(row["accuracy"]), statistics.mean(row["backprop"])
    below, above = row["cosine"][0], row["cosine"][-1]
    return [
        row["signal"], str(row["depth"]), f"{row['rate']:g}", *(f"{x:.4f}" for x in numbers), f"{below:.2f}",
        f"{above:.2f}", f"{row['seconds']:.1f}",
    ]  # fmt: skip


def main(options: Options) -> None:
    found: dict[str, list[dict[str, Any]]] = {"rows": [], "pipeline": [], "copy": []}
    if "accuracy" in options.parts:
        found["rows"] = list(rows(options))
        print("\n".join(aligned([COLUMNS, *map(cells, found["rows"])], right=range(1, len(COLUMNS)))))
    if "pipeline" in options.parts:
        found["pipeline"] = list(pipeline.rows(options.pipeline_seeds, options.pipeline_steps))
        table = [pipeline.COLUMNS, *map(pipeline.cells, found["pipeline"])]
        print("\n".join(aligned(table, right=range(1, len(pipeline.COLUMNS)))))
    if "copy" in options.parts:
        found["copy"] = list(
            copy.rows(options.tasks, options.copy_signals, options.windows, options.copy_seeds, options.copy_updates)
        )
        print("\n".join(aligned([copy.COLUMNS, *map(copy.cells, found["copy"])], right=range(2, len(copy.COLUMNS)))))
    if options.json:
        print(json.dumps({**found, "settings": dataclasses.asdict(options), "versions": versions()}))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
