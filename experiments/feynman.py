"""The hundred equations of the Feynman Symbolic Regression Database (Udrescu & Tegmark, 2020, "AI Feynman",
https://arxiv.org/abs/1905.11481), `feynman_equations.csv`: points of them, and whether a formula is one of them.

It is if it is SRBench's `exact` (La Cava et al., 2021, https://arxiv.org/abs/2107.14351): the simplified formula is not
constant, and differs from the true one by a constant, or by a constant factor; numbers have three digits.
"""

import contextlib
import csv
import dataclasses
import functools
import pathlib
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import sympy

FILE = pathlib.Path(__file__).parent / "feynman_equations.csv"
NAMES = ("exp", "log", "sqrt", "sin", "cos", "tanh", "arcsin")
WORDS: dict[str, Any] = {name: getattr(np, name) for name in NAMES} | {"pi": np.float64(np.pi)}
"""What an equation may use, for NumPy."""


@dataclasses.dataclass(frozen=True)
class Equation:
    """A formula, and where its variables lie."""

    name: str
    text: str
    ranges: dict[str, tuple[float, float]]

    def drawn(self, cases: int, noise: float, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Variables `[cases, variables]`, float32, and values."""
        columns = [random.uniform(low, high, cases) for low, high in self.ranges.values()]
        x = np.stack(columns, 1).astype(np.float32)
        y = self(x)
        return x, (y + noise * np.sqrt(np.mean(y**2)) * random.normal(size=cases)).astype(np.float32)

    def unseen(self) -> np.ndarray:
        """A thousand other points."""
        return self.drawn(1_000, 0.0, np.random.default_rng(1))[0]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return eval(self.text, WORDS | dict(zip(self.ranges, x.T.astype(float), strict=True)))


@functools.cache
def equations() -> dict[str, Equation]:
    """All of the table, by name."""
    found = {}
    with FILE.open() as rows:
        for row in csv.DictReader(rows):
            parts = [part.split() for part in row["ranges"].split(";")]
            ranges = {name: (float(low), float(high)) for name, low, high in parts}
            found[row["name"]] = Equation(row["name"], row["expression"], ranges)
    return found


def symbols(equation: Equation) -> dict[str, Any]:
    """Its variables for sympy; all ranges are positive."""
    return {name: sympy.Symbol(name, positive=True) for name in equation.ranges}


def words() -> dict[str, Any]:
    """Functions for sympy; pi is a number like others."""
    return {name: getattr(sympy, "asin" if name == "arcsin" else name) for name in NAMES} | {"pi": sympy.Float(np.pi)}


def rounded(expression: Any, digits: int = 3) -> Any:
    """Numbers with a point have so many digits."""
    floats = expression.atoms(sympy.Float)
    return expression.xreplace({x: sympy.Rational(f"{float(x):.{digits}g}") for x in floats})


def recovered(found: Any, equation: Equation, seconds: int = 20) -> bool:
    """Is a sympy expression the formula, but for a constant that is added or multiplied? One that sympy does not
    simplify in time is not."""
    named = symbols(equation)
    found = sympy.sympify(found)
    if not found.free_symbols:
        return False
    x, y = equation.drawn(200, 0.0, np.random.default_rng(1))
    with np.errstate(all="ignore"):
        values = np.asarray(sympy.lambdify(list(named.values()), found, "numpy")(*x.T.astype(float)))
    if values.dtype.kind not in "fiu" or not np.isfinite(values).all() or np.ptp(values) == 0:
        return False
    difference, ratio = y - values, values / np.where(y == 0, 1, y)
    if np.ptp(difference) > 0.02 * np.ptp(y) and np.ptp(ratio) > 0.02 * np.abs(ratio).max():
        return False  # most are far from it, and need no algebra
    truth = eval(equation.text, words() | named)
    with limited(seconds):
        found, truth = rounded(sympy.simplify(found)), rounded(sympy.simplify(truth))
        for test in (found / truth, (found / truth) ** 2, found - truth):
            if not rounded(sympy.simplify(test)).free_symbols:
                return True
    return False


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    """What takes longer is left."""

    def end(number: int, frame: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        with contextlib.suppress(TimeoutError):
            yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
