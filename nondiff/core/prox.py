"""Constraints and penalties, known by their proximal operators (Parikh & Boyd, 2014, "Proximal Algorithms",
https://doi.org/10.1561/2400000003).

A method such as ADMM asks nothing else of `g`: neither a derivative nor convexity. The implementations are in
`nondiff.prox`.
"""

import abc
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float, PyTree

from nondiff.core.problem import Params
from nondiff.core.tree import map_named

Rho = Float[Array, ""] | float | int
"""The weight of the quadratic, above 0; often traced, since ADMM adapts it."""


class AbstractProx(eqx.Module):
    """A function `g` of the parameters, by its proximal operator: `prox(v, rho) = argmin_z g(z) + rho/2 |z - v|^2`.

    `g` may be a penalty, as the l1 norm, or a set: 0 inside, infinity outside, so that the operator is the projection.
    A subclass defines `__call__` and `value`. Both are pure and work under `jit` and `vmap`.

    >>> import jax.numpy as jnp
    >>> class NonNegative(AbstractProx):
    ...     def __call__(self, v, rho):
    ...         return jnp.maximum(v, 0)
    ...     def value(self, z):
    ...         return jnp.where(jnp.all(z >= 0), 0.0, jnp.inf)
    >>> NonNegative().tree({"a": jnp.array([-1.0, 2.0]), "b": None}, 1.0)
    {'a': Array([0., 2.], dtype=float32), 'b': None}
    """

    @abc.abstractmethod
    def __call__(self, v: Array, rho: Rho) -> Array:
        """The best `z` for one leaf: the shape and dtype of `v`. Where several are best, one of them, always the same.

        `rho` is above 0; a projection ignores it.
        """

    @abc.abstractmethod
    def value(self, z: Array) -> Float[Array, ""]:
        """`g(z)`; infinity outside of its set. What the operator returns is inside, so rounding is forgiven."""

    def tree(self, v: Params, rho: Rho) -> Params:
        """The operator on every leaf; `None` stays `None`. One over all leaves at once overrides this.

        **Raises** `ValueError` for a leaf that is not real, and if the operator changes a shape or a dtype.
        """

        def one(name: str, x: Any) -> Array:
            check_float(self, name, x)
            return same_shape(self, x, self(x, rho), name)

        return map_named(one, v)

    def tree_value(self, z: Params) -> Float[Array, ""]:
        """`g` of a whole tree: the sum over its leaves, unless `tree` looks at all of them at once."""
        return sum(map(self.value, jtu.tree_leaves(z)), jnp.zeros(()))

    def constrained(self, params: Params) -> PyTree[bool]:
        """Which leaves `g` says anything about; all by default, `None` where a leaf is not mine."""
        return jtu.tree_map(lambda _: True, params)


def check_float(prox: AbstractProx, name: str, leaf: Any) -> None:
    """**Raises** `ValueError` for a leaf that is not real."""
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        raise ValueError(
            f"`{type(prox).__name__}` was given `{name}`, which is {leaf.dtype}: it moves real numbers. "
            "Leave that leaf out: `nondiff.prox.Parts({'mine': ..., 'free': None}, labels)`."
        )


def same_shape(prox: AbstractProx, v: Array, z: Any, name: str = "v") -> Array:
    """`z`, as an array. **Raises** `ValueError` if it has not the shape and dtype of `v`."""
    z = jnp.asarray(z)
    if z.shape != v.shape or z.dtype != v.dtype:
        raise ValueError(
            f"`{type(prox).__name__}` was given `{name}`, {v.dtype}{list(v.shape)}, and returned {z.dtype}"
            f"{list(z.shape)}. A proximal operator keeps shape and dtype."
        )
    return z
