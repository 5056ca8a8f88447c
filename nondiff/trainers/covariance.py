"""What covariance matrix adaptation learns, and how fast: a full covariance, or one of the coordinates alone.

Equation numbers are those of Hansen, 2016, "The CMA Evolution Strategy: A Tutorial", https://arxiv.org/abs/1604.00772.
"""

import abc
import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


class Rates(NamedTuple):
    """What follows from the dimension n and the population (table 1 of the tutorial)."""

    weights: np.ndarray
    """Of the members, the best first; the positive ones sum to 1, the rest are negative."""
    mean: float
    """mu_eff, of the positive ones."""
    path: float
    """c_c."""
    length: float
    """c_sigma."""
    damping: float
    """d_sigma."""
    one: float
    """c_1."""
    many: float
    """c_mu."""


def rates(n: int, population: int, speed: float = 1.0) -> Rates:
    """Of a covariance with few parameters, c_1 and c_mu may be `speed` times as large."""
    raw = math.log((population + 1) / 2) - np.log(np.arange(1, population + 1))  # (49)
    plus, minus = np.maximum(raw, 0), np.maximum(-raw, 0)
    mean = plus.sum() ** 2 / (plus**2).sum()
    one = min(1.0, speed * 2 / ((n + 1.3) ** 2 + mean))  # (57)
    many = min(1 - one, speed * 2 * (0.25 + mean - 2 + 1 / mean) / ((n + 2) ** 2 + mean))  # (58)
    length = (mean + 2) / (n + mean + 5)  # (55)
    damping = 1 + 2 * max(0.0, math.sqrt((mean - 1) / (n + 1)) - 1) + length  # (55)
    path = (4 + mean / n) / (n + 4 + 2 * mean / n)  # (56)
    # How much the worst may take away: (50) to (53).
    other = minus.sum() ** 2 / (minus**2).sum() if minus.any() else 0.0
    bounds = [1 + one / many, 1 + 2 * other / (mean + 2), (1 - one - many) / (n * many)] if many else [0.0]
    weights = plus / plus.sum() - min(bounds) * minus / max(minus.sum(), 1e-300)
    return Rates(weights, mean, path, length, damping, one, many)


class AbstractSpread(eqx.Module):
    """A covariance, and what follows from it."""

    @abc.abstractmethod
    def times(self, z: Float[Array, "*pop n"]) -> Float[Array, "*pop n"]:
        """Normals with this covariance, from standard ones: C^1/2 z."""

    @abc.abstractmethod
    def turned(self, z: Float[Array, " n"]) -> Float[Array, " n"]:
        """The same as `times`, without lengths: C^-1/2 times(z)."""

    @abc.abstractmethod
    def variances(self) -> Float[Array, " n"]:
        """Of the coordinates."""

    @abc.abstractmethod
    def lengths(self) -> Float[Array, " n"]:
        """Standard deviations along the axes."""

    @abc.abstractmethod
    def learned(
        self, keep: Array, path: Float[Array, " n"], one: Any, y: Float[Array, "pop n"], weights: Float[Array, " pop"]
    ) -> "AbstractSpread":
        """`keep C + one path path' + sum_i weights_i y_i y_i'`."""


class Full(AbstractSpread):
    """Any covariance. Its axes are computed only every so often: `age` counts the steps since then."""

    covariance: Float[Array, "n n"]
    axes: Float[Array, "n n"]
    scale: Float[Array, " n"]
    age: Int[Array, ""]
    every: int = eqx.field(static=True)

    def times(self, z: Array) -> Array:
        return (z * self.scale) @ self.axes.T

    def turned(self, z: Array) -> Array:
        return self.axes @ z

    def variances(self) -> Array:
        return jnp.diagonal(self.covariance)

    def lengths(self) -> Array:
        return self.scale

    def learned(self, keep: Array, path: Array, one: Any, y: Array, weights: Array) -> "Full":
        covariance = keep * self.covariance + one * jnp.outer(path, path) + (y.T * weights) @ y
        age = self.age + 1

        def fresh() -> tuple[Array, Array, Array]:
            squares, axes = jnp.linalg.eigh((covariance + covariance.T) / 2)
            least = jnp.finfo(squares.dtype).eps ** 2 * squares[-1]
            return axes, jnp.sqrt(jnp.maximum(squares, least)), jnp.zeros_like(age)

        axes, scale, age = jax.lax.cond(age >= self.every, fresh, lambda: (self.axes, self.scale, age))
        return Full(covariance, axes, scale, age, self.every)


class Diagonal(AbstractSpread):
    """A variance for each coordinate."""

    scale: Float[Array, " n"]

    def times(self, z: Array) -> Array:
        return z * self.scale

    def turned(self, z: Array) -> Array:
        return z

    def variances(self) -> Array:
        return self.scale**2

    def lengths(self) -> Array:
        return self.scale

    def learned(self, keep: Array, path: Array, one: Any, y: Array, weights: Array) -> "Diagonal":
        return Diagonal(jnp.sqrt(keep * self.scale**2 + one * path**2 + weights @ y**2))
