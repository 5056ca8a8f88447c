"""Rows of `decoupled.py`: how many symbols a recurrent network learns to copy through windows of a few steps.

Each is a training of `experiments/decoupled_rnn.py`, in this process. Truncated backpropagation (`none`) and synthetic
gradients have equal windows, network, learning rate and updates; an update with a synthetic gradient takes longer.
"""

import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.random as jr

import nondiff as nd
from nondiff.launch.load import load

rnn: Any = load(Path(__file__).parents[1] / "decoupled_rnn.py", "decoupled_rnn.py")
TASKS = {"copy": 1, "repeat-copy": 3}
"""How often the symbols are to be written."""
TRUNCATED = "none"
SIGNALS = "synthetic", "unconditioned", "local", TRUNCATED
COLUMNS = ("task", "signal", "window", "solved", "least", "truncated", "most", "least / most", "seconds")


def trained(task: str, signal: str, window: int, seed: int, updates: int) -> dict[str, float]:
    """The report of a run."""
    config = rnn.Config(signal=signal, window=window, repeats=TASKS[task], updates=updates)
    experiment = rnn.make(config)
    result = nd.fit(
        experiment.problem, experiment.trainer, steps=experiment.steps, key=jr.key(seed),
        metrics=experiment.metrics, log_every=experiment.steps,
    )  # fmt: skip
    report = dict(experiment.report(result))
    jax.clear_caches()
    print(task, signal, window, seed, report, file=sys.stderr, flush=True)
    return report


def rows(
    tasks: Sequence[str], signals: Sequence[str], windows: Sequence[int], seeds: int, updates: int
) -> Iterator[dict[str, Any]]:
    """One for each task, window and signal, with the symbols that all seeds solved; truncated backpropagation first."""
    for task in tasks:
        for window in windows:
            found: dict[str, list[dict[str, float]]] = {}
            for signal in (TRUNCATED, *(s for s in signals if s != TRUNCATED)):
                found[signal] = [trained(task, signal, window, seed, updates) for seed in range(seeds)]
                yield {
                    "task": task,
                    "signal": signal,
                    "window": window,
                    "solved": [report["solved"] for report in found[signal]],
                    "truncated": [report["solved"] for report in found[TRUNCATED]],
                    "seconds": statistics.median(report["train_seconds"] for report in found[signal]),
                }


def cells(row: dict[str, Any]) -> list[str]:
    solved, truncated = row["solved"], row["truncated"]
    numbers = statistics.mean(solved), min(solved), statistics.mean(truncated), max(truncated)
    shown = [f"{x:{form}}" for x, form in zip(numbers, (".1f", ".0f", ".1f", ".0f"), strict=True)]
    ratio = f"{min(solved) / max(truncated):.2f}" if max(truncated) else ""
    return [row["task"], row["signal"], str(row["window"]), *shown, ratio, f"{row['seconds']:.0f}"]
