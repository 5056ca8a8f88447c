"""What `blackbox.py` minimises: functions with a known least value of 0, and a count of what a search needs for them.

The five of the functions part are NumPy in float64. Those of COCO (https://coco-platform.org, `coco-experiment`) are
given less their least value: as they come, they have offsets of up to 1,000, and 32 bits would tell no two values near
the optimum apart.
"""

import contextlib
import dataclasses
import importlib
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

Name = Literal["sphere", "ellipsoid", "rotated", "rosenbrock", "rastrigin"]
Suite = Literal["bbob", "bbob-mixint"]
Values = Callable[[np.ndarray], np.ndarray]

TARGET = 1e-8
TARGETS = tuple(10 ** (2 - i / 5) for i in range(51))  # COCO's: 100 to 1e-8
GROUPS = {
    "separable": range(1, 6),
    "moderate": range(6, 10),
    "ill-conditioned": range(10, 15),
    "multimodal": range(15, 20),
    "weak structure": range(20, 25),
    "all": range(1, 25),
}


@dataclasses.dataclass(frozen=True)
class Function:
    """Defined everywhere; the optimum lies in a box, whose first `whole` coordinates are integers."""

    values: Values
    """Of rows, one each."""
    lower: np.ndarray
    upper: np.ndarray
    whole: int = 0
    restarts: bool = True
    """Has it more than one local optimum?"""

    @property
    def dim(self) -> int:
        return len(self.lower)


class Run:
    """A function as a search sees it, and when each target was reached.

    Called with rows, it gives their values. Searches that know nothing of integers look into the cube [-5, 5]^dim;
    `boxed` brings its points to the box.
    """

    def __init__(self, function: Function, targets: Sequence[float], budget: int, seed: int):
        self.function, self.targets, self.budget, self.seed = function, targets, budget, seed
        self.evaluations = 0
        self.reached: list[int] = []
        """Evaluations up to the first value at or below each target, the easiest first."""
        self._draws = np.random.default_rng(seed)

    @property
    def done(self) -> bool:
        return len(self.reached) == len(self.targets) or self.evaluations >= self.budget

    @property
    def spent(self) -> int:
        """What the last of a generation may spend beyond the last target, or the budget, does not count."""
        return self.reached[-1] if len(self.reached) == len(self.targets) else min(self.evaluations, self.budget)

    def __call__(self, rows: Any) -> np.ndarray:
        values = self.function.values(np.asarray(rows, np.float64))
        best = np.fmin.accumulate(values[: max(self.budget - self.evaluations, 0)])
        for target in self.targets[len(self.reached) :]:
            hits = np.flatnonzero(best <= target)
            if not len(hits):
                break
            self.reached.append(self.evaluations + int(hits[0]) + 1)
        self.evaluations += len(values)
        return values

    def start(self) -> np.ndarray:
        """Another point of the cube with every call; the same ones for every library."""
        return self._draws.uniform(-4, 4, self.function.dim)

    def boxed(self, rows: Any) -> np.ndarray:
        lower, upper = self.function.lower, self.function.upper
        return (lower + upper) / 2 + np.asarray(rows, np.float64) * (upper - lower) / 10


def made(name: Name, dim: int, seed: int) -> Function:
    """One of the five: its optimum, and the axes of the rotated one, are drawn with the seed."""
    draws = np.random.default_rng([dim, seed])
    optimum = draws.uniform(-3, 3, dim)
    axes = np.linalg.qr(draws.standard_normal((dim, dim)))[0]
    weights = 10 ** np.linspace(0, 6, dim)

    def rosenbrock(z: np.ndarray) -> np.ndarray:
        y = z + 1
        return (100 * (y[:, 1:] - y[:, :-1] ** 2) ** 2 + (1 - y[:, :-1]) ** 2).sum(1)

    centred: dict[Name, Values] = {
        "sphere": lambda z: (z**2).sum(1),
        "ellipsoid": lambda z: z**2 @ weights,
        "rotated": lambda z: (z @ axes) ** 2 @ weights,
        "rosenbrock": rosenbrock,
        "rastrigin": lambda z: (10 * (1 - np.cos(2 * math.pi * z)) + z**2).sum(1),
    }
    values, ends = centred[name], np.full(dim, 5.0)
    return Function(lambda rows: values(rows - optimum), -ends, ends, restarts=name in ("rosenbrock", "rastrigin"))


def coco(suite: Suite, dim: int, instances: Sequence[int]) -> Iterator[tuple[int, int, Function]]:
    """Number, instance and function of all 24."""
    cocoex: Any = importlib.import_module("cocoex")
    cocoex.log_level("warning")
    chosen = "instances: " + ",".join(map(str, instances))
    for problem in cocoex.Suite(suite, chosen, f"dimensions: {dim}"):
        least = problem(optimum(problem))
        if not problem.final_target_hit:
            raise RuntimeError(f"{problem.id}: {least} is not its least value")

        def values(rows: np.ndarray, problem: Any = problem, least: float = least) -> np.ndarray:
            return np.array([problem(row) for row in rows]) - least

        whole = problem.number_of_integer_variables
        function = Function(values, problem.lower_bounds, problem.upper_bounds, whole)
        yield problem.id_function, problem.id_instance, function


def optimum(problem: Any) -> np.ndarray:
    """COCO does not give it away: it writes it to a file in the working directory."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        problem._best_parameter("print")
        (file,) = Path(folder).iterdir()
        return np.array(file.read_text().split(), float)


def area(run: Run) -> float:
    """Under the share of targets reached, over the logarithm of evaluations from 1 to the budget, from 0 to 1."""
    return sum(1 - math.log(spent) / math.log(run.budget) for spent in run.reached) / len(run.targets)


def curve(run: Run) -> list[float]:
    """The share of targets reached within as many evaluations as `moments` says."""
    return [sum(spent <= moment for spent in run.reached) / len(run.targets) for moment in moments(run.budget)]


def moments(budget: int) -> list[float]:
    """From 1 evaluation to the budget, evenly on a logarithmic scale."""
    return [budget ** (i / 60) for i in range(61)]
