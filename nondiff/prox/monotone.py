"""Isotonic regression by pooling adjacent violators (Ayer, Brunk, Ewing, Reid & Silverman, 1955, "An Empirical
Distribution Function for Sampling with Incomplete Information", https://doi.org/10.1214/aoms/1177728423).
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nondiff.core.prox import AbstractProx, Rho
from nondiff.prox.indicator import indicator, slack


class Monotone(AbstractProx):
    """No entry is below the one before it along an axis: calibration curves, dose and response.

    It takes up to twice as many steps, one after another, as the axis is long; all lines of a leaf go together.

    **Arguments:**

    - `axis`: the one along which values rise (default the last).

    **Raises** `ValueError` for an axis that is no number and, on a leaf, for one that it has not.

    >>> import jax.numpy as jnp
    >>> Monotone()(jnp.array([1.0, 3.0, 2.0, 4.0]), rho=1.0)
    Array([1. , 2.5, 2.5, 4. ], dtype=float32)
    """

    axis: int = eqx.field(static=True, default=-1)

    def __check_init__(self) -> None:
        if isinstance(self.axis, bool) or not isinstance(self.axis, int):
            raise ValueError(f"`Monotone(axis={self.axis!r})`: expected a whole number, such as -1 for the last axis.")

    def _check(self, x: Array) -> None:
        if not -x.ndim <= self.axis < x.ndim:
            raise ValueError(
                f"`Monotone(axis={self.axis})` was given a leaf of shape {list(x.shape)}, which has no such axis. Give "
                "it those that have: `Parts({'rising': Monotone(...), 'free': None}, labels)`."
            )

    def __call__(self, v: Array, rho: Rho) -> Array:
        del rho
        self._check(v)
        lines = jnp.moveaxis(v, self.axis, -1)
        rising = jax.vmap(_pool)(lines.reshape(-1, lines.shape[-1]))
        return jnp.moveaxis(rising.reshape(lines.shape), -1, self.axis)

    def value(self, z: Array) -> Float[Array, ""]:
        self._check(z)
        return indicator(jnp.all(jnp.diff(z, axis=self.axis) >= -slack(z) * jnp.max(jnp.abs(z))))


def _pool(v: Float[Array, " n"]) -> Float[Array, " n"]:
    """A stack of blocks of equal values: one below that before it is pooled with it, else the next entry comes."""
    n = v.shape[0]

    def falls(state: tuple[Array, ...]) -> Array:
        _, blocks, means, _ = state
        return (blocks > 1) & (means[blocks - 2] > means[blocks - 1])

    def more(state: tuple[Array, ...]) -> Array:
        return falls(state) | (state[0] < n)

    def go(state: tuple[Array, ...]) -> tuple[Array, ...]:
        read, blocks, means, starts = state
        pool = falls(state)
        last = blocks - 1
        middle, end = starts[last], read  # the two last blocks are [start, middle) and [middle, end)
        left, right = middle - starts[last - 1], end - middle
        pooled = (left * means[last - 1] + right * means[last]) / (left + right)
        place = jnp.where(pool, last - 1, blocks)
        means = means.at[place].set(jnp.where(pool, pooled, v[read]))
        starts = starts.at[place].set(jnp.where(pool, starts[last - 1], read))
        return read + ~pool, place + 1, means, starts

    # Beyond the stack, every start is the end of the line.
    empty = jnp.zeros((), int), jnp.zeros((), int), jnp.zeros_like(v), jnp.full(n, n)
    _, blocks, means, starts = jax.lax.while_loop(more, go, empty)
    starts = jnp.where(jnp.arange(n) < blocks, starts, n)
    return means[jnp.searchsorted(starts, jnp.arange(n), side="right") - 1]
