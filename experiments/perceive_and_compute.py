"""A network that perceives and a program that computes, learned together from answers alone.

    nondiff run experiments/perceive_and_compute.py
    nondiff run experiments/perceive_and_compute.py --task modular --seed 1

Two handwritten digits and one number, which is their sum, or product, or something else: 6,000 such pairs, made of
1,297 of scikit-learn's images. Nobody says which digits they show, nor what the number has to do with them. A network
reads an image as one of ten symbols; a program, searched for by `GeneticProgramming`, makes a number of two symbols.
They learn in turns (`Alternate`), each while the other stands still, by the same loss: minus the log probability of the
answer, which is that of all pairs of symbols for which the program gives it. So even a network that knows nothing tells
programs apart, by how often each answer comes. Where both are caught in a bad pair, `Restart` begins anew.

The symbols' names are the network's own: 9 minus the digit serves differences as well. `exact` is whether there is a
renaming of the digits, namely what the network says of most unseen images of each, for which the program's answers to
all 100 pairs of digits are the task's. Digit labels make the answers and serve to report; no trainer sees them.

Results: docs/programs.md. Cost: 20 s to a minute on 2 cores.
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
from sklearn.datasets import load_digits

import nondiff as nd

TASKS: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b,
    "multiply": lambda a, b: a * b,
    "max": np.maximum,
    "difference": lambda a, b: abs(a - b),
    "modular": lambda a, b: (a + 2 * b) % 10,
}
LINES = nd.Instructions(
    [
        "v[a] = v[b]",
        "v[a] = v[a] + v[b]",
        "v[a] = v[a] - v[b]",
        "v[a] = v[a] * v[b]",
        "v[a] = max(v[a], v[b])",
        "v[a] = min(v[a], v[b])",
        "v[a] = abs(v[a])",
        "v[a] = v[a] % 10",
    ],
    {"v": nd.Cells(["x", "y"], fixed=["1", "2"])},
    result="v[0]",
)
"""The same for all tasks."""
PROGRAM = nd.Program(LINES, length=6)
EVERY = {"x": np.repeat(np.arange(10), 10), "y": np.tile(np.arange(10), 10)}
"""All pairs of symbols."""
FLOOR = 1e-6
"""Added to a probability: an answer that the program cannot give costs 14, not infinity."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What can be chosen."""

    task: Literal["add", "multiply", "max", "difference", "modular"] = "add"
    """What the answers are."""
    pairs: int = 6_000
    """Training pairs."""
    batch_size: int = 256
    """Pairs a step."""
    width: int = 64
    """Hidden units."""
    learning_rate: float = 3e-3
    """Of Adam."""
    population: int = 256
    """Programs a step."""
    search: int = 15
    """Steps of the search in its turn."""
    gradient: int = 200
    """Steps of the network in its turn."""
    rounds: int = 8
    """Turns of both, after which a try that was not given up ends."""
    tries: int = 60
    """At most."""
    end_to_end: int = 4_000
    """Steps of the network without a program that is printed beside it; 0: none."""
    seed: int = 0
    """Of the images and pairs, the network and the search."""


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Pairs of images with their digits; a trainer sees the images and `answers`."""

    images: np.ndarray  # float32 [pairs, 2, 64]
    digits: np.ndarray  # int32 [pairs, 2]
    answers: np.ndarray  # int32 [pairs]


def load(config: Config) -> tuple[Pairs, Pairs]:
    """Training pairs and test pairs; no image is in both."""
    bundled: Any = load_digits()
    images, digits = (bundled.data / 16).astype(np.float32), bundled.target.astype(np.int32)
    random = np.random.default_rng(config.seed)
    train, test = np.split(random.permutation(len(images)), [-500])

    def pairs(of: np.ndarray, count: int) -> Pairs:
        chosen = random.choice(of, (count, 2))
        return Pairs(images[chosen], digits[chosen], TASKS[config.task](*digits[chosen].T))

    return pairs(train, config.pairs), pairs(test, 10_000)


def layers(*sizes: int) -> Callable[[Any], Any]:
    """The parameters of a perceptron, from a key."""

    def init(key: Any) -> Any:
        keys = jr.split(key, len(sizes) - 1)
        return [eqx.nn.Linear(m, n, key=k) for m, n, k in zip(sizes, sizes[1:], keys, strict=False)]

    return init


def apply(params: Any, x: Any) -> Any:
    """`[..., inputs]` to `[..., outputs]`."""
    for i, layer in enumerate(params):
        x = (jax.nn.relu(x) if i else x) @ layer.weight.T + layer.bias
    return x


def start(config: Config) -> Callable[[Any], Any]:
    """A random program and a random network, from a key."""

    def init(key: Any) -> Any:
        k_program, k_reader = jr.split(key)
        return {"program": PROGRAM.init(k_program), "reader": layers(64, config.width, 10)(k_reader)}

    return init


def loss(params: Any, batch: Any, key: Any) -> Any:
    """Minus the log probability of each answer. `through(..., via=Tabulate())` has the same gradient in the network,
    but the value at its likeliest symbols, which tell a search nothing while the network has not learned."""
    del key
    images, answers = batch
    logp = jax.nn.log_softmax(apply(params["reader"], images))
    both = jnp.exp(logp[:, 0, :, None] + logp[:, 1, None, :]).reshape(-1, 100)
    gives = PROGRAM(params["program"], EVERY) == answers[:, None]
    return -jnp.log(jnp.sum(jnp.where(gives, both, 0.0), 1) + FLOOR)


def choose_trainer(config: Config) -> nd.AbstractTrainer:
    turns = nd.Alternate(
        {
            "search": nd.GeneticProgramming(population=config.population, selection=nd.Tournament(3)),
            "gradient": nd.Backprop(optax.adam(config.learning_rate)),
        },
        {"program": "search", "reader": "gradient"},
        steps={"search": config.search, "gradient": config.gradient},
    )
    once = config.search + config.gradient
    given_up = nd.Stall(good=0.3, window=once, least=0.1, best=True)
    steps = config.rounds * once
    return nd.Restart(turns, on=given_up, schedule=nd.Same(), tries=config.tries, begin=start(config), steps=steps)


def renaming(symbols: np.ndarray, digits: np.ndarray) -> np.ndarray:
    """What is said of most images of each digit, `[10]`."""
    return np.array([np.bincount(symbols[digits == digit], minlength=10).argmax() for digit in range(10)])


def read(params: Any, pairs: Pairs) -> np.ndarray:
    """The likeliest symbols, `[pairs, 2]`."""
    return np.asarray(jnp.argmax(jax.jit(apply)(params["reader"], pairs.images), -1))


def end_to_end(config: Config, train: Pairs, test: Pairs) -> float:
    """The share of right answers of a network without a program: one encoder for both images, and a head."""
    answers, numbers = np.unique(train.answers, return_inverse=True)

    def init(key: Any) -> Any:
        k_encoder, k_head = jr.split(key)
        head = layers(2 * config.width, 2 * config.width, len(answers))
        return {"encoder": layers(64, config.width, config.width)(k_encoder), "head": head(k_head)}

    def logits(params: Any, images: Any) -> Any:
        seen = jax.nn.relu(apply(params["encoder"], images))
        return apply(params["head"], seen.reshape(len(images), -1))

    def entropy(params: Any, batch: Any, key: Any) -> Any:
        del key
        return optax.softmax_cross_entropy_with_integer_labels(logits(params, batch[0]), batch[1])

    data = train.images, numbers.reshape(-1).astype(np.int32)
    problem = nd.Supervised(entropy, data, params=init, batch_size=config.batch_size)
    adam = nd.Backprop(optax.adam(1e-3))
    params = nd.fit(problem, adam, steps=config.end_to_end, key=jr.key(config.seed)).params
    said = answers[np.asarray(jnp.argmax(jax.jit(logits)(params, test.images), -1))]
    return float(np.mean(said == test.answers))


def make(config: Config) -> nd.Experiment:
    train, test = load(config)
    problem = nd.Supervised(
        loss,
        (train.images, train.answers),
        params=start(config),
        batch_size=config.batch_size,
        domain={"program": PROGRAM.domain, "reader": nd.Real()},
    )

    def report(result: nd.Result) -> dict[str, Any]:
        genome = PROGRAM.simplify(result.params["program"], EVERY)
        print(PROGRAM.to_python(genome, name="compute"), flush=True)
        table = np.asarray(PROGRAM(genome, EVERY)).reshape(10, 10)
        symbols = read(result.params, test)
        new = renaming(symbols, test.digits)
        renamed = sorted(new) == list(range(10))
        wanted = TASKS[config.task](EVERY["x"], EVERY["y"]).reshape(10, 10)
        found = {
            "exact": int(renamed and np.array_equal(table[np.ix_(new, new)], wanted)),
            "answer_accuracy": float(np.mean(table[symbols[:, 0], symbols[:, 1]] == test.answers)),
            "digit_accuracy": float(np.mean(new[test.digits] == symbols)) if renamed else 0.0,
            "lines": int(genome.lines),
            "tries": int(result.history[-1]["tries"]),
            "evaluations": result.evaluations,
            "train_seconds": result.seconds,
        }
        return found | ({"end_to_end": end_to_end(config, train, test)} if config.end_to_end else {})

    once = config.search + config.gradient
    steps = config.tries * config.rounds * once
    return nd.Experiment(problem, choose_trainer(config), steps, report=report, log_every=once)
