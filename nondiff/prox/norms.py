"""Penalties that shrink: norms of entries, of rows or columns, of singular values (Parikh & Boyd, 2014, "Proximal
Algorithms", https://doi.org/10.1561/2400000003, sections 6.1, 6.5 and 6.7).

That paper's lambda is `1 / rho` here.
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from nondiff.core.checks import check_number
from nondiff.core.prox import AbstractProx, Rho


class L1(AbstractProx):
    """`weight * sum |z_i|`: the lasso's penalty, which makes entries exactly 0.

    **Arguments:**

    - `weight`: at least 0; 0 changes nothing.

    **Raises** `ValueError` for a weight that is negative or not finite.

    >>> import jax.numpy as jnp
    >>> L1(0.5)(jnp.array([2.0, -0.25, -1.0]), rho=1.0)
    Array([ 1.5,  0. , -0.5], dtype=float32)
    """

    weight: float | int

    def __check_init__(self) -> None:
        check_number("L1", "weight", self.weight)

    def __call__(self, v: Array, rho: Rho) -> Array:
        return _soft(v, _threshold(self.weight, rho, v))

    def value(self, z: Array) -> Float[Array, ""]:
        return self.weight * jnp.sum(jnp.abs(z))


class SquaredL2(AbstractProx):
    """`weight / 2 * sum z_i^2`: ridge, or weight decay.

    **Arguments:**

    - `weight`: at least 0.

    **Raises** `ValueError` for a weight that is negative or not finite.

    >>> import jax.numpy as jnp
    >>> SquaredL2(3.0)(jnp.array([4.0, -8.0]), rho=1.0)
    Array([ 1., -2.], dtype=float32)
    """

    weight: float | int

    def __check_init__(self) -> None:
        check_number("SquaredL2", "weight", self.weight)

    def __call__(self, v: Array, rho: Rho) -> Array:
        return _decay(v, self.weight, rho)

    def value(self, z: Array) -> Float[Array, ""]:
        return 0.5 * self.weight * jnp.sum(z**2)


class ElasticNet(AbstractProx):
    """`l1 * sum |z_i| + l2 / 2 * sum z_i^2`.

    **Arguments:**

    - `l1`, `l2`: at least 0.

    **Raises** `ValueError` for one that is negative or not finite.

    >>> import jax.numpy as jnp
    >>> ElasticNet(1.0, 1.0)(jnp.array([3.0, -0.5]), rho=1.0)
    Array([1., 0.], dtype=float32)
    """

    l1: float | int
    l2: float | int

    def __check_init__(self) -> None:
        check_number("ElasticNet", "l1", self.l1)
        check_number("ElasticNet", "l2", self.l2)

    def __call__(self, v: Array, rho: Rho) -> Array:
        return _decay(_soft(v, _threshold(self.l1, rho, v)), self.l2, rho)

    def value(self, z: Array) -> Float[Array, ""]:
        return self.l1 * jnp.sum(jnp.abs(z)) + 0.5 * self.l2 * jnp.sum(z**2)


class L2(AbstractProx):
    """`weight * sqrt(sum z_i^2)`, the norm of a whole leaf, not squared: all of it becomes 0, or nothing.

    **Arguments:**

    - `weight`: at least 0.

    **Raises** `ValueError` for a weight that is negative or not finite.

    >>> import jax.numpy as jnp
    >>> L2(1.0)(jnp.array([3.0, 4.0]), rho=0.5), L2(1.0)(jnp.array([0.3, 0.4]), rho=1.0)
    (Array([1.8000001, 2.4      ], dtype=float32), Array([0., 0.], dtype=float32))
    """

    weight: float | int

    def __check_init__(self) -> None:
        check_number("L2", "weight", self.weight)

    def __call__(self, v: Array, rho: Rho) -> Array:
        return _shrink(v, _threshold(self.weight, rho, v), axis=None)

    def value(self, z: Array) -> Float[Array, ""]:
        return self.weight * jnp.sum(_norms(z, axis=None))


class Group(AbstractProx):
    """`weight` times the sum of the l2 norms of the rows, columns or channels of a leaf: they become 0 as a whole.

    **Arguments:**

    - `weight`: at least 0.
    - `axis`: the axis, or axes, along which the entries of one group lie. In `x @ w` with `w[inputs, outputs]`,
      `axis=1` drops inputs, and `axis=0` drops outputs.

    **Raises** `ValueError` for a weight that is negative or not finite, an axis that is none or stands twice, and, on
    a leaf, for an axis that it has not.

    >>> import jax.numpy as jnp
    >>> Group(1.0, axis=1)(jnp.array([[3.0, 4.0], [0.3, 0.4]]), rho=0.5)
    Array([[1.8000001, 2.4      ],
           [0.       , 0.       ]], dtype=float32)
    """

    weight: float | int
    axis: int | tuple[int, ...] = eqx.field(static=True)

    def __check_init__(self) -> None:
        check_number("Group", "weight", self.weight)
        axes = self._axes
        if not axes or not all(isinstance(a, int) for a in axes) or len(set(axes)) < len(axes):
            raise ValueError(f"`Group(axis={self.axis!r})`: expected a number, or several that differ, such as (0, 1).")

    @property
    def _axes(self) -> tuple[int, ...]:
        return self.axis if isinstance(self.axis, tuple) else (self.axis,)

    def _check(self, x: Array) -> None:
        if not all(-x.ndim <= axis < x.ndim for axis in self._axes):
            raise ValueError(
                f"`Group(axis={self.axis})` was given a leaf of shape {list(x.shape)}, which has no such axis. Give it "
                "those that have: `Parts({'grouped': Group(...), 'free': None}, labels)`."
            )

    def __call__(self, v: Array, rho: Rho) -> Array:
        self._check(v)
        return _shrink(v, _threshold(self.weight, rho, v), self._axes)

    def value(self, z: Array) -> Float[Array, ""]:
        self._check(z)
        return self.weight * jnp.sum(_norms(z, self._axes))


class Nuclear(AbstractProx):
    """`weight` times the sum of the singular values: matrices of low rank.

    The matrices are the last two axes of a leaf; of more axes, the norms are added. A vector is one row.

    **Arguments:**

    - `weight`: at least 0.

    **Raises** `ValueError` for a weight that is negative or not finite.

    >>> import jax.numpy as jnp
    >>> Nuclear(1.0)(jnp.diag(jnp.array([3.0, 0.5])), rho=1.0)
    Array([[2., 0.],
           [0., 0.]], dtype=float32)
    """

    weight: float | int

    def __check_init__(self) -> None:
        check_number("Nuclear", "weight", self.weight)

    def __call__(self, v: Array, rho: Rho) -> Array:
        left, values, right = jnp.linalg.svd(jnp.atleast_2d(v), full_matrices=False)
        values = _soft(values, _threshold(self.weight, rho, v))
        return ((left * values[..., None, :]) @ right).reshape(v.shape)

    def value(self, z: Array) -> Float[Array, ""]:
        return self.weight * jnp.sum(jnp.linalg.svd(jnp.atleast_2d(z), compute_uv=False))


def _threshold(weight: float | int, rho: Rho, v: Array) -> Array:
    return jnp.asarray(weight / rho, v.dtype)


def _soft(v: Array, threshold: Array) -> Array:
    """Soft thresholding, by Moreau's decomposition: exactly 0, without a sign, up to the threshold."""
    return v - jnp.clip(v, -threshold, threshold)


def _decay(v: Array, weight: float | int, rho: Rho) -> Array:
    return v / jnp.asarray(1 + weight / rho, v.dtype)


def _norms(v: Array, axis: tuple[int, ...] | None) -> Array:
    return jnp.sqrt(jnp.sum(v**2, axis=axis, keepdims=True))


def _shrink(v: Array, threshold: Array, axis: tuple[int, ...] | None) -> Array:
    """Block soft thresholding."""
    norms = _norms(v, axis)
    return v * jnp.maximum(0, 1 - threshold / jnp.where(norms > 0, norms, 1))
