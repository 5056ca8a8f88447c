"""The programs behind the network, what they are asked about, and what was published about such tasks."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import nondiff as nd
from nondiff.launch.load import load

formula: Any = load(
    Path(__file__).parents[1] / "formula.py", "formula.py"
)  # its images and its network serve all tasks
NUMBER, WHOLE = jax.ShapeDtypeStruct((), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)


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

    def cases(self, seed: int, train: int, test: int) -> tuple[Any, Any]:
        """No image is in both."""
        random = np.random.default_rng([seed, 1])

        def drawn(images: Any, count: int) -> Any:
            if self.draw is None:
                symbols = random.integers(0, self.symbols, (count, self.parts), np.int32)
            else:
                symbols = self.draw(random, count)
            return formula.Cases.of(images, symbols, random)

        images, unseen = formula.Images.split(seed)
        return drawn(images, train), drawn(unseen, test)


def product(digits: np.ndarray) -> int:
    return int(digits[0]) * int(digits[1])


def remainder(digits: np.ndarray) -> int:
    """By one more than the second, as in the paper's experiments: no division by zero."""
    return int(digits[0]) % (int(digits[1]) + 1)


def add_subtract(digits: np.ndarray) -> int:
    return int(digits[0]) + int(digits[1]) - int(digits[2])


def total(digits: np.ndarray) -> int:
    return int(digits.sum())


TASKS: dict[str, Task] = {
    "sum2": Task(total, 2),
    "sum3": Task(total, 3),
    "sum4": Task(total, 4),
    "mult2": Task(product, 2),
    "mod2": Task(remainder, 2),
    "add-sub": Task(add_subtract, 3),
    "sort3": Task(np.sort, 3, out=jax.ShapeDtypeStruct((3,), jnp.int32)),
    "hwf": Task(formula.calculate, 7, 14, NUMBER, formula.draw_formulas),
}


@dataclasses.dataclass(frozen=True)
class Method:
    """An estimator, and which tasks it fits."""

    make: Callable[[Task, int], nd.AbstractEstimator]
    """From a task and the number of different answers in its training cases."""
    fits: Callable[[Task], bool] = lambda task: True


def short(task: Task) -> bool:
    """Can all assignments be listed?"""
    return task.parts * math.log10(task.symbols) <= 5


def surrogate(task: Task, answers: int) -> nd.Surrogate:
    """Told which of the answers is right."""
    symbols = task.symbols + (task.symbols == formula.PAD)  # where some may be missing, this is a symbol
    return nd.Surrogate(nd.LossModel(task.parts, symbols, context=answers, key=jr.key(0)))


METHODS: dict[str, Method] = {
    "Auto": Method(lambda task, answers: nd.Auto()),
    "MarginalLikelihood": Method(lambda task, answers: nd.MarginalLikelihood(100)),
    "Smoothing": Method(lambda task, answers: nd.Smoothing(32)),
    "IndeCateR": Method(lambda task, answers: nd.IndeCateR(4)),
    "ScoreFunction": Method(lambda task, answers: nd.ScoreFunction(16, entropy=0.02)),
    "Splitting": Method(lambda task, answers: nd.Splitting(16)),
    "Surrogate": Method(surrogate),
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
