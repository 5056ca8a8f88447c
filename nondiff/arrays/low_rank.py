"""A matrix plus a low-rank perturbation that is never multiplied out.

`base + sum_k a[..., k] b[..., k]`: the axes of `base` fall into two groups, the rows, which `a` has, and the columns,
which `b` has. For a weight `[m, n]` that is `base + a @ b.T` with `a [m, rank]` and `b [n, rank]`; a convolution's
kernel or an attention's `[features, heads, size]` has several axes to a group.
"""

import math
from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


class LowRank(eqx.Module):
    """An array-like value with the shape of `base`, and with its dtype, which the factors have too."""

    base: Float[Array, "*shape"]
    a: Float[Array, "*rows rank"]
    b: Float[Array, "*columns rank"]
    rows: tuple[int, ...] = eqx.field(static=True)
    """The axes of `base` that `a` has, in the order in which `a` has them."""
    columns: tuple[int, ...] = eqx.field(static=True)
    name: str = eqx.field(static=True, default="")
    """Of the leaf, for messages."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def ndim(self) -> int:
        return self.base.ndim

    @property
    def dtype(self) -> jnp.dtype:
        return self.base.dtype

    def dense(self) -> Float[Array, "*shape"]:
        """Multiplied out."""
        return self.base + factors(self.a, self.b, self.rows, self.columns)

    def at_axes(self, rows: Sequence[int], columns: Sequence[int], base: Array) -> "LowRank":
        """The same factors at other axes of another base."""
        return LowRank(base, self.a, self.b, tuple(rows), tuple(columns), self.name)


Operand = Array | LowRank


def is_low_rank(x: object) -> bool:
    return isinstance(x, LowRank)


def halves(shape: tuple[int, ...]) -> int:
    """Where to cut the axes into rows and columns: where both together have the fewest entries.

    >>> halves((64, 32, 3, 3)), halves((3, 3, 32, 64)), halves((64, 4, 16))  # equinox's and flax's kernels, attention
    (1, 3, 1)
    """
    return min(range(1, len(shape)), key=lambda i: math.prod(shape[:i]) + math.prod(shape[i:]))


def factors(a: Array, b: Array, rows: Sequence[int], columns: Sequence[int]) -> Array:
    """`sum_k a[..., k] b[..., k]`, the axes of `a` at `rows` and those of `b` at `columns`."""
    n = len(rows) + len(columns)
    left, right = ("".join(_LETTERS[i] for i in axes) for axes in (rows, columns))
    return jnp.einsum(f"{left}Z,{right}Z->{_LETTERS[:n]}", a, b, precision="highest")
