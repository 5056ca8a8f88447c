"""A sorting routine from sixteen examples, found by genetic programming.

    nondiff run experiments/learn_to_sort.py
    nondiff run experiments/learn_to_sort.py --search random
    nondiff run experiments/learn_to_sort.py --lines store --length 12 --population 2048 --steps 2440
    nondiff run experiments/learn_to_sort.py --networks

Eight arrays of 4 numbers and eight of 6, each with the same numbers in order. A program has `length` lines, three
registers and the array's length; a line counts up or down, copies a register, goes back until a counter reaches
another, or

- `swap`: leaves out the next line if two elements are in order, and exchanges two elements;
- `store`: has two variables, into which elements are loaded, from which they are stored, and which are compared.

No line compares and exchanges in one. The loss of a case is how far its array is from sorted; `lexicase` and the others
choose parents by it, `random` draws every program anew. The program that does all cases is simplified, printed, and
run on arrays ten and a hundred times as long. `networks` also trains a perceptron and a bidirectional recurrent
network, on a million arrays of 3 to 6 numbers; their outputs are moved to the nearest element of the array.

Results: docs/programs.md.
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

import nondiff as nd

COUNTING = [
    "r[a] = r[a] + 1",
    "r[a] = r[a] - 1",
    "r[a] = r[b]",
    "r[a], again = (r[a] + 1, True) if r[a] + 1 < r[b] else (0, False)",
]
REGISTERS = nd.Cells(3, fixed=["len(x)"])
SETS = {
    "swap": nd.Instructions(
        [*COUNTING, "skip = x[r[a]] <= x[r[b]]", "x[r[a]], x[r[b]] = x[r[b]], x[r[a]]"],
        {"r": REGISTERS, "x": nd.Memory()},
        result="x",
    ),
    "store": nd.Instructions(
        [*COUNTING, "skip = v[a] <= v[b]", "v[a] = x[r[b]]", "x[r[a]] = v[b]"],
        {"r": REGISTERS, "v": nd.Cells(2), "x": nd.Memory()},
        result="x",
    ),
}
LENGTHS = 4, 6


@dataclasses.dataclass(frozen=True)
class Config:
    """What can be chosen."""

    lines: Literal["swap", "store"] = "swap"
    """What a line may do with elements."""
    search: Literal["lexicase", "dalex", "tournament", "random"] = "lexicase"
    """How parents are chosen, or that there are none."""
    population: int = 1024
    """Programs a step."""
    steps: int = 300
    """At most; a program that does all examples ends the search."""
    length: int = 8
    """Lines of a program."""
    networks: bool = False
    """Train networks beside it."""
    seed: int = 0
    """Of the examples and the search."""


def arrays(random: np.random.Generator, cases: int, length: int) -> np.ndarray:
    """Different numbers in random order, int32 `[cases, length]`."""
    return np.stack([random.permutation(10 * length)[:length] for _ in range(cases)]).astype(np.int32)


def some(random: np.random.Generator, cases: int) -> tuple[np.ndarray, np.ndarray]:
    """Arrays of 1 to as many elements as the longest example has: `[cases, length]`, and their lengths."""
    return arrays(random, cases, max(LENGTHS)), random.integers(1, max(LENGTHS) + 1, cases)


def budget(length: int) -> int:
    """Lines that a program may take on an array."""
    return 6 * length**2 + 16


def loss(program: nd.Program) -> Callable[..., Any]:
    """Of every case: elements that are not where they belong, are followed by a smaller one, or were lost, and whether
    the program has not ended."""

    def one(genome: nd.Genome, x: Any) -> Any:
        ran, wanted = program.run(genome, x), jnp.sort(x, 1)
        found = ran.result
        misplaced = jnp.mean(found != wanted, 1)
        falling = jnp.mean(found[:, 1:] < found[:, :-1], 1)
        lost = jnp.mean(jnp.sort(found, 1) != wanted, 1)
        return misplaced + 0.5 * falling + lost + 0.5 * ~ran.halted

    return lambda genome, batch, key: jnp.concatenate([one(genome, x) for x in batch])


def exact(config: Config, genome: nd.Genome, x: np.ndarray) -> float:
    """The share of arrays that are sorted, with a budget for their length."""
    program = nd.Program(SETS[config.lines], length=config.length, steps=2 * budget(x.shape[1]))
    ran = jax.jit(program.run)(genome, x)
    return float(np.mean(np.all(np.asarray(ran.result) == np.sort(x, 1), 1) & np.asarray(ran.halted)))


def choose_trainer(config: Config, program: nd.Program) -> nd.AbstractTrainer:
    chosen = {"lexicase": nd.Lexicase(), "dalex": nd.DALex(), "tournament": nd.Tournament(4)}
    if config.search == "random":
        return nd.GeneticProgramming(
            population=config.population, selection=nd.Tournament(), mutate=lambda params, key: program.init(key)
        )
    return nd.GeneticProgramming(population=config.population, selection=chosen[config.search])


MOST = 10 * max(LENGTHS)
"""Elements of the longest array that a network is asked about."""
SHORT = 3, 4, 5, 6
"""Those it is trained with."""


def perceptron(key: Any) -> Any:
    return eqx.nn.MLP(2 * MOST, MOST, 256, 2, key=key)


def by_perceptron(net: Any, x: Any) -> Any:
    """Arrays `[cases, length]` in [0, 1] to what should stand at each place."""
    wide = jnp.pad(jnp.stack([x, jnp.ones_like(x)], 1), ((0, 0), (0, 0), (0, MOST - x.shape[1])))
    return jax.vmap(net)(wide.reshape(len(x), -1))[:, : x.shape[1]]


def recurrent(key: Any) -> Any:
    keys = jr.split(key, 5)
    cells = [eqx.nn.GRUCell(n, 64, key=k) for n, k in zip((1, 1, 128, 128), keys, strict=False)]
    return {"cells": cells, "read": eqx.nn.Linear(128, 1, key=keys[4])}


def by_recurrent(net: Any, x: Any) -> Any:
    def scan(cell: Any, x: Any, reverse: bool) -> Any:
        def go(h: Any, x: Any) -> tuple[Any, Any]:
            h = cell(x, h)
            return h, h

        return jax.lax.scan(go, jnp.zeros(64), x, reverse=reverse)[1]

    def one(x: Any) -> Any:
        h = x[:, None]
        for forward, backward in (net["cells"][:2], net["cells"][2:]):
            h = jnp.concatenate([scan(forward, h, False), scan(backward, h, True)], 1)
        return jax.vmap(net["read"])(h)[:, 0]

    return jax.vmap(one)(x)


def networks(config: Config) -> dict[str, float]:
    """The share of arrays of the training lengths' last, and of ten times as many elements, that each network sorts."""
    found: dict[str, float] = {}
    for name, init, apply in (("mlp", perceptron, by_perceptron), ("gru", recurrent, by_recurrent)):

        def loss(net: Any, batch: Any, key: Any, apply: Any = apply) -> Any:
            return jnp.concatenate([jnp.mean((apply(net, x) - jnp.sort(x, 1)) ** 2, 1) for x in batch])

        def draw(step: int) -> Any:
            random = np.random.default_rng([config.seed, 2, step])
            return [random.random((64, n), np.float32) for n in SHORT]

        first = init(jr.key(config.seed))
        arrays_of, rest = eqx.partition(first, eqx.is_array)
        problem = nd.Supervised(
            lambda p, b, key, loss=loss, rest=rest: loss(eqx.combine(p, rest), b, key), draw, params=arrays_of
        )
        adam = nd.Backprop(optax.adam(optax.cosine_decay_schedule(2e-3, 4_000)))
        net = eqx.combine(nd.fit(problem, adam, steps=4_000, key=jr.key(0)).params, rest)
        for label, length in (("", max(LENGTHS)), ("_10x", MOST)):
            x = np.random.default_rng([config.seed, 3]).random((1_000, length), np.float32)
            out = np.asarray(apply(net, x))
            near = np.take_along_axis(x, np.abs(out[:, :, None] - x[:, None]).argmin(2), 1)
            found[f"{name}_exact{label}"] = float(np.mean(np.all(near == np.sort(x, 1), 1)))
    return found


def make(config: Config) -> nd.Experiment:
    random = np.random.default_rng([config.seed, 1])
    program = nd.Program(SETS[config.lines], length=config.length, steps=budget(max(LENGTHS)))
    examples = tuple(arrays(random, 8, n) for n in LENGTHS)
    problem = nd.Supervised(loss(program), examples, params=program.init, domain=program.domain)

    def report(result: nd.Result) -> dict[str, Any]:
        solved = result.history[-1]["best"] == 0
        found = {"solved": int(solved), "evaluations": result.evaluations, "train_seconds": result.seconds}
        genome = program.simplify(result.params, some(random, 200))
        source = program.to_python(genome, name="sort")
        print(source, flush=True)
        made: dict[str, Any] = {}
        exec(source, made)
        found |= {"exact_10x": 0.0, "exact_100x": 0.0, "exact_python": 0.0}
        if solved:
            far = arrays(random, 1_000, 10 * max(LENGTHS))
            found["exact_10x"] = exact(config, genome, far)
            found["exact_100x"] = exact(config, genome, arrays(random, 20, 100 * max(LENGTHS)))
            if found["exact_10x"] == 1:  # then the printed one, which has no budget, ends as well
                found["exact_python"] = float(np.mean([made["sort"](x) == sorted(x) for x in far[:100].tolist()]))
        found |= {"lines": int(genome.lines)}
        return found | (networks(config) if config.networks else {})

    return nd.Experiment(
        problem,
        choose_trainer(config, program),
        config.steps,
        stop=[nd.Target(0, "best")],
        report=report,
        log_every=min(5, config.steps),
    )
