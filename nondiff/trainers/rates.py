"""How fast covariance matrix adaptation learns, from the dimension and the population.

Equation numbers are those of Hansen, 2016, "The CMA Evolution Strategy: A Tutorial", https://arxiv.org/abs/1604.00772.
"""

import functools
import math
from typing import Any, NamedTuple

import jax.tree_util as jtu
import numpy as np


class Rates(NamedTuple):
    """Table 1 of the tutorial, and what else follows, as arrays of NumPy."""

    path: Any
    """c_c."""
    length: Any
    """c_sigma."""
    damping: Any
    """d_sigma."""
    one: Any
    """c_1."""
    many: Any
    """c_mu."""
    every: Any
    """Steps between two decompositions."""
    alpha: Any
    """The margin of whole numbers."""
    lately: Any
    """How many steps show whether the best loss still changes."""


@functools.lru_cache(maxsize=64)
def rates(n: int, population: int, speed: float = 1.0) -> tuple[np.ndarray, Rates]:
    """The weight of the k best members together, for k from 0 to the population, and the rates.

    Of a covariance with few parameters, c_1 and c_mu may be `speed` times as large.
    """
    n = max(n, 1)
    raw = math.log((population + 1) / 2) - np.log(np.arange(1, population + 1))  # (49)
    plus, minus = np.maximum(raw, 0), np.maximum(-raw, 0)
    mean = plus.sum() ** 2 / (plus**2).sum()
    one = min(1.0, speed * 2 / ((n + 1.3) ** 2 + mean))  # (57)
    many = min(1 - one, speed * 2 * (0.25 + mean - 2 + 1 / mean) / ((n + 2) ** 2 + mean))  # (58)
    # As pycma 4.5 has them, not as (55): with large populations sigma shrinks more slowly, and fewer of them end
    # in a local optimum.
    length = min(0.5, (mean + 2) / (n + mean + 3))
    large = max(1.0, 3 * (1 - 0.5 ** (n / 9))) * math.sqrt((mean - 1) / (n + 1))
    damping = 1 + 2 * max(0.0, large - 1) + length
    path = (4 + mean / n) / (n + 4 + 2 * mean / n)  # (56)
    # How much the worst may take away: (50) to (53).
    other = minus.sum() ** 2 / (minus**2).sum() if minus.any() else 0.0
    bounds = [1 + one / many, 1 + 2 * other / (mean + 2), (1 - one - many) / (n * many)] if many else [0.0]
    weights = plus / plus.sum() - min(bounds) * minus / max(minus.sum(), 1e-300)
    every = math.ceil(1 / (10 * n * (one + many)))  # as pycma has it; the tutorial, B.2, rounds down
    found = Rates(path, length, damping, one, many, every, 1 / (n * population), 10 + math.ceil(30 * n / population))
    return np.append(0.0, np.cumsum(weights)), jtu.tree_map(np.asarray, found)
