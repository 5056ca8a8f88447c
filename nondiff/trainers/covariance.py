"""What covariance matrix adaptation learns: a full covariance, or one of the coordinates alone."""

import abc
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from nondiff.core.domain import Leaf
from nondiff.core.exact import namespace
from nondiff.core.record import record


class AbstractSpread(abc.ABC):
    """A covariance, and what follows from it, of NumPy's arrays or of JAX's.

    Plain records: one is built at every step, and a module of equinox would take longer to build than to compute.
    """

    @classmethod
    @abc.abstractmethod
    def standard(cls, like: Float[Leaf, " n"], every: Any) -> "AbstractSpread":
        """The identity, whose axes may be computed at every `every`th step alone."""

    @staticmethod
    @abc.abstractmethod
    def speed(n: int) -> float:
        """How much faster than a full covariance of `n` coordinates it is learned."""

    @abc.abstractmethod
    def times(self, z: Float[Leaf, "*pop n"]) -> Float[Leaf, "*pop n"]:
        """Normals with this covariance, from standard ones: C^1/2 z."""

    @abc.abstractmethod
    def turned(self, z: Float[Leaf, " n"]) -> Float[Leaf, " n"]:
        """The same as `times`, without lengths: C^-1/2 times(z)."""

    @abc.abstractmethod
    def variances(self) -> Float[Leaf, " n"]:
        """Of the coordinates."""

    @abc.abstractmethod
    def lengths(self) -> Float[Leaf, " n"]:
        """Standard deviations along the axes."""

    @abc.abstractmethod
    def learned(
        self, keep: Any, path: Float[Leaf, " n"], one: Any, y: Float[Leaf, "pop n"], weights: Float[Leaf, " pop"]
    ) -> "AbstractSpread":
        """`keep C + one path path' + sum_i weights_i y_i y_i'`."""


@record
class Full(AbstractSpread):
    """Any covariance. Its axes are computed only every so often: `age` counts the steps since then."""

    covariance: Any  # [n, n]
    axes: Any  # [n, n], its eigenvectors
    scale: Any  # [n], the standard deviations along them
    age: Any
    every: Any

    @classmethod
    def standard(cls, like: Any, every: Any) -> "Full":
        here = namespace(like)
        eye = here.eye(like.size, dtype=like.dtype)
        return cls(eye, eye, here.ones_like(like), here.zeros((), here.int32), every)

    @staticmethod
    def speed(n: int) -> float:
        del n
        return 1.0

    def times(self, z: Any) -> Any:
        return (z * self.scale) @ self.axes.T

    def turned(self, z: Any) -> Any:
        return self.axes @ z

    def variances(self) -> Any:
        return namespace(self.covariance).diagonal(self.covariance)

    def lengths(self) -> Any:
        return self.scale

    def learned(self, keep: Any, path: Any, one: Any, y: Any, weights: Any) -> "Full":
        here = namespace(self.scale)
        rows, shares = here.concatenate([y, path[None]]), here.append(weights, one)
        covariance = keep * self.covariance + (rows.T * shares) @ rows
        age = here.asarray(self.age + 1, self.age.dtype)

        def anew() -> tuple[Any, Any, Any]:
            squares, axes = _eigh(here, (covariance + covariance.T) / 2)
            least = here.finfo(squares.dtype).eps ** 2 * squares[-1]
            return axes, here.sqrt(here.maximum(squares, least)), here.zeros_like(age)

        same = self.axes, self.scale, age
        if here is np:
            axes, scale, age = anew() if age >= self.every else same
            return Full(covariance, axes, scale, age, self.every)
        axes, scale, age = jax.lax.cond(age >= self.every, anew, lambda: same)
        return Full(covariance, axes, scale, age, self.every)


def _eigh(here: Any, symmetric: Any) -> tuple[Any, Any]:
    """NaN is answered with NaN, as JAX does: NumPy would raise an error."""
    if here is np and not np.isfinite(symmetric).all():
        return np.full(len(symmetric), np.nan), np.full_like(symmetric, np.nan)
    return here.linalg.eigh(symmetric)


@record
class Diagonal(AbstractSpread):
    """A variance for each coordinate."""

    scale: Any  # [n]

    @classmethod
    def standard(cls, like: Any, every: Any) -> "Diagonal":
        del every
        return cls(namespace(like).ones_like(like))

    @staticmethod
    def speed(n: int) -> float:
        return max(1.0, (n + 1.5) / 3)  # as pycma has it; the paper's is (n + 2) / 3

    def times(self, z: Any) -> Any:
        return z * self.scale

    def turned(self, z: Any) -> Any:
        return z

    def variances(self) -> Any:
        return self.scale**2

    def lengths(self) -> Any:
        return self.scale

    def learned(self, keep: Any, path: Any, one: Any, y: Any, weights: Any) -> "Diagonal":
        return Diagonal(namespace(self.scale).sqrt(keep * self.scale**2 + one * path**2 + weights @ y**2))
