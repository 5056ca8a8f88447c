"""What covariance matrix adaptation learns: a full covariance, or one of the coordinates alone."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class AbstractSpread(eqx.Module):
    """A covariance, and what follows from it."""

    @classmethod
    @abc.abstractmethod
    def standard(cls, like: Float[Array, " n"], every: Any) -> "AbstractSpread":
        """The identity, whose axes may be computed at every `every`th step alone."""

    @staticmethod
    @abc.abstractmethod
    def speed(n: int) -> float:
        """How much faster than a full covariance of `n` coordinates it is learned."""

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

    @staticmethod
    @abc.abstractmethod
    def sum(y: Float[Array, "pop n"], weights: Float[Array, " pop"]) -> Array:
        """`sum_i weights_i y_i y_i'`, as far as `learned` needs it."""

    @abc.abstractmethod
    def learned(self, keep: Array, path: Float[Array, " n"], one: Any, many: Array) -> "AbstractSpread":
        """`keep C + one path path' + many`, which is a `sum`."""


class Full(AbstractSpread):
    """Any covariance. Its axes are computed only every so often: `age` counts the steps since then."""

    covariance: Float[Array, "n n"]
    axes: Float[Array, "n n"]
    scale: Float[Array, " n"]
    age: Int[Array, ""]
    every: Int[Array, ""]

    @classmethod
    def standard(cls, like: Array, every: Any) -> "Full":
        eye = jnp.eye(like.size, dtype=like.dtype)
        return cls(eye, eye, jnp.ones_like(like), jnp.zeros((), jnp.int32), every)

    @staticmethod
    def speed(n: int) -> float:
        del n
        return 1.0

    def times(self, z: Array) -> Array:
        return (z * self.scale) @ self.axes.T

    def turned(self, z: Array) -> Array:
        return self.axes @ z

    def variances(self) -> Array:
        return jnp.diagonal(self.covariance)

    def lengths(self) -> Array:
        return self.scale

    @staticmethod
    def sum(y: Array, weights: Array) -> Array:
        return (y.T * weights) @ y

    def learned(self, keep: Array, path: Array, one: Any, many: Array) -> "Full":
        covariance = keep * self.covariance + one * jnp.outer(path, path) + many
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

    @classmethod
    def standard(cls, like: Array, every: Any) -> "Diagonal":
        del every
        return cls(jnp.ones_like(like))

    @staticmethod
    def speed(n: int) -> float:
        return max(1.0, (n + 1.5) / 3)  # as pycma has it; the paper's is (n + 2) / 3

    def times(self, z: Array) -> Array:
        return z * self.scale

    def turned(self, z: Array) -> Array:
        return z

    def variances(self) -> Array:
        return self.scale**2

    def lengths(self) -> Array:
        return self.scale

    @staticmethod
    def sum(y: Array, weights: Array) -> Array:
        return weights @ y**2

    def learned(self, keep: Array, path: Array, one: Any, many: Array) -> "Diagonal":
        return Diagonal(jnp.sqrt(keep * self.scale**2 + one * path**2 + many))
