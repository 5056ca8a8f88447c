"""The programs behind the network, what they are asked about, how it learns, and what was published on such tasks."""

import dataclasses
import functools
import math
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax

import nondiff as nd
from nondiff.launch.load import load

EXPERIMENTS = Path(__file__).parents[1]
formula: Any = load(EXPERIMENTS / "formula.py", "formula.py")  # its images and its network serve all tasks but one
sudoku: Any = load(EXPERIMENTS / "visual_sudoku.py", "visual_sudoku.py")
NUMBER, WHOLE = jax.ShapeDtypeStruct((), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)


class Learned(NamedTuple):
    """What came of a training."""

    accuracy: float
    program: nd.Opaque
    seconds: float


@dataclasses.dataclass(frozen=True)
class Task:
    """A program of symbols that a network reads from as many images."""

    program: Callable[[np.ndarray], Any]
    """Symbols `[parts]` to an answer."""
    parts: int
    symbols: int = 10
    """0 to 9, + - * /: the first ones of these."""
    out: jax.ShapeDtypeStruct = WHOLE
    """Shape and dtype of an answer."""
    draw: Callable[[np.random.Generator, int], np.ndarray] | None = None
    """Symbols of so many cases, int32 `[cases, parts]` (default: all alike and independent). Only with 14 symbols some
    may be `formula.PAD`: no image, no symbol."""

    def learn(self, method: "Method | None", seed: int, options: Any) -> Learned:
        """Trains on answers, or on symbols without a method."""
        train, test = cases_of(self, seed, options.cases, options.test_cases)
        program = nd.Opaque(self.program, self.out, failure=nd.Raise(allow_nan=True))
        loss, told, more = on_symbols(train) if method is None else on_answers(self, method, program, train)

        def params(key: Any) -> Any:
            return {"network": formula.network(self.symbols, options.width)(key), **more}

        data = train.pixels, train.there, *told
        problem = nd.Supervised(loss, data, params=params, batch_size=options.batch_size)
        # An estimator with a net of its own (Surrogate) has to follow a network that moves.
        rates: dict[Hashable, Any] = {"network": optax.adam(1e-3), "via": optax.adam(1e-2)}
        trainer = nd.Backprop(optax.partition(rates, lambda params: {part: part for part in params}))
        result = nd.fit(problem, trainer, steps=options.steps, key=jr.key(seed))
        return Learned(formula.accuracy(result.params["network"], test, self.program), program, result.seconds)


@functools.lru_cache(maxsize=8)
def cases_of(task: Task, seed: int, train: int, test: int) -> tuple[Any, Any]:
    """No image is in both."""
    random = np.random.default_rng([seed, 1])

    def drawn(images: Any, count: int) -> Any:
        if task.draw is None:
            symbols = random.integers(0, task.symbols, (count, task.parts), np.int32)
        else:
            symbols = task.draw(random, count)
        return formula.Cases.of(images, symbols, random)

    images, unseen = formula.Images.split(seed)
    return drawn(images, train), drawn(unseen, test)


def on_symbols(cases: Any) -> tuple[Any, ...]:
    """The ceiling's loss, what it compares with, and no more parameters."""
    return lambda params, batch, key: formula.on_symbols(params["network"], batch, key), (cases.symbols,), {}


def on_answers(task: Task, method: "Method", program: nd.Opaque, cases: Any) -> tuple[Any, ...]:
    """The loss behind a program, what it compares with, and the estimator, which may have parameters of its own."""
    answers = cases.answers(task.program).astype(task.out.dtype)
    different, which = np.unique(answers, axis=0, return_inverse=True)

    def loss(params: Any, batch: Any, key: Any) -> Any:
        *batch, which = batch
        via = params["via"].given(jax.nn.one_hot(which, len(different)))
        return formula.on_answers(program, via)(params["network"], batch, key)

    return loss, (answers, which), {"via": method.make(task, len(different))}


@dataclasses.dataclass(frozen=True)
class Boards:
    """Visual Sudoku: its own images, steps and test, those of its experiment."""

    parts: int = 16
    symbols: int = 4

    def learn(self, method: "Method | None", seed: int, options: Any) -> Learned:
        """As a `Task` learns; of `options` it has none."""
        del options
        config = sudoku.Config(seed=seed)
        solver = nd.Opaque(sudoku.solve, jax.ShapeDtypeStruct((16,), jnp.int32))
        if method is None:
            problem = sudoku.on_digits(config)
        else:
            problem = sudoku.on_answers(config, solver, method.make(self, 0))
        result = nd.fit(problem, nd.Backprop(optax.adam(1e-3)), steps=config.steps, key=jr.key(seed))
        cells, _, _ = sudoku.judge(
            result.params, sudoku.Source(config, test=True).draw(0, config.test_boards, config.images)
        )
        return Learned(cells, solver, result.seconds)


def product(digits: np.ndarray) -> int:
    return int(digits[0]) * int(digits[1])


def remainder(digits: np.ndarray) -> int:
    """By one more than the second, as in the paper's experiments: no division by zero."""
    return int(digits[0]) % (int(digits[1]) + 1)


def add_subtract(digits: np.ndarray) -> int:
    return int(digits[0]) + int(digits[1]) - int(digits[2])


def total(digits: np.ndarray) -> int:
    return int(digits.sum())


TASKS: dict[str, Task | Boards] = {
    "sum2": Task(total, 2),
    "sum3": Task(total, 3),
    "sum4": Task(total, 4),
    "mult2": Task(product, 2),
    "mod2": Task(remainder, 2),
    "add-sub": Task(add_subtract, 3),
    "sort3": Task(np.sort, 3, out=jax.ShapeDtypeStruct((3,), jnp.int32)),
    "hwf": Task(formula.calculate, 7, 14, NUMBER, formula.draw_formulas),
    "sudoku": Boards(),
}


@dataclasses.dataclass(frozen=True)
class Method:
    """An estimator, and which tasks it fits."""

    make: Callable[[Any, int], nd.AbstractEstimator]
    """From a task and the number of different answers in its training cases."""
    fits: Callable[[Any], bool] = lambda task: True


def short(task: Task | Boards) -> bool:
    """Can all assignments be listed?"""
    return task.parts * math.log10(task.symbols) <= 5


def surrogate(task: Task, answers: int) -> nd.Surrogate:
    """Told which of the answers is right. A board would have to be told as well."""
    symbols = task.symbols + (task.symbols == formula.PAD)  # where some may be missing, this is a symbol
    return nd.Surrogate(nd.LossModel(task.parts, symbols, context=answers, key=jr.key(0)))


METHODS: dict[str, Method] = {
    "Auto": Method(lambda task, answers: nd.Auto()),
    "MarginalLikelihood": Method(lambda task, answers: nd.MarginalLikelihood(100)),
    "Smoothing": Method(lambda task, answers: nd.Smoothing(32)),
    "IndeCateR": Method(lambda task, answers: nd.IndeCateR(4)),
    "ScoreFunction": Method(lambda task, answers: nd.ScoreFunction(16, entropy=0.02)),
    "Splitting": Method(lambda task, answers: nd.Splitting(16)),
    "Surrogate": Method(surrogate, lambda task: isinstance(task, Task)),
    "Tabulate": Method(lambda task, answers: nd.Tabulate(), short),
}

SOURCE = "https://debugml.github.io/neural-programs/, 11 June 2024"
QUOTED_TASKS = ("sum2", "sum3", "sum4", "mult2", "mod2", "add-sub", "hwf", "sudoku")
QUOTED: dict[str, tuple[float | None, ...]] = {
    "DeepProbLog": (95.14, 93.80, None, 95.43, 96.34, 93.86, None, None),
    "Scallop": (91.18, 91.86, 80.10, 87.26, 77.98, 92.02, 96.65, None),
    "A-NeSI": (96.66, 94.39, 78.10, 96.25, 96.89, 93.95, 3.13, 26.36),
    "REINFORCE": (74.46, 19.40, 13.84, 96.62, 94.40, 17.86, 88.27, 79.08),
    "IndeCateR": (95.70, 66.24, 13.02, 96.32, 93.88, 70.12, 95.08, 66.50),
    "NASR": (6.08, 5.48, 4.86, 5.34, 20.02, 5.26, 1.85, 82.78),
    "ISED": (80.34, 95.10, 94.10, 96.02, 96.68, 95.32, 97.34, 80.32),
}
"""Per cent of right answers, as the authors of ISED (Solko-Breslin et al., 2024) print them; None: timed out."""
