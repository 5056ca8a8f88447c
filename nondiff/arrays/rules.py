"""What sums, scales, shapes and types do to a perturbed array, without multiplying it out; and all rules.

A rule gets the equation's operands, at least one of them `LowRank`, and its parameters; it returns the result, or
`None` where there is no short way for these operands: then the interpreter multiplies them out. An operation without a
rule always has its operands multiplied out.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core.primitives as lax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jaxtyping import Array

from nondiff.arrays.low_rank import LowRank, Operand, is_low_rank
from nondiff.arrays.products import PRODUCTS

# Sums and scales.


def _add(x: Operand, y: Operand) -> LowRank | None:
    if not isinstance(x, LowRank):
        x, y = y, x
    assert isinstance(x, LowRank)
    if not isinstance(y, LowRank):
        fits = jnp.broadcast_shapes(x.shape, y.shape) == x.shape
        return dataclasses.replace(x, base=x.base + y) if fits else None
    if (y.columns, y.rows) == (x.rows, x.columns):  # as of `W + W.T`
        y = dataclasses.replace(y, a=y.b, b=y.a, rows=y.columns, columns=y.rows)
    if (x.rows, x.columns, x.shape) != (y.rows, y.columns, y.shape):
        return None
    a, b = (jnp.concatenate(parts, -1) for parts in ((x.a, y.a), (x.b, y.b)))
    if a.size + b.size >= x.base.size:
        return None  # so many ranks that nothing is gained
    return dataclasses.replace(x, base=x.base + y.base, a=a, b=b)


def _negate(x: LowRank) -> LowRank:
    return dataclasses.replace(x, base=-x.base, a=-x.a)


def _subtract(x: Operand, y: Operand) -> LowRank | None:
    return _add(x, _negate(y) if isinstance(y, LowRank) else -y)


def _multiply(x: Operand, y: Operand, *, out_dtype: Any = None) -> LowRank | None:
    if not isinstance(x, LowRank):
        x, y = y, x
    assert isinstance(x, LowRank)
    if isinstance(y, LowRank) or y.size != 1 or out_dtype not in (None, x.dtype):
        return None
    return dataclasses.replace(x, base=x.base * y, a=x.a * y.reshape(()))


def _divide(x: Operand, y: Operand) -> LowRank | None:
    if not isinstance(x, LowRank) or isinstance(y, LowRank) or y.size != 1:
        return None
    return dataclasses.replace(x, base=x.base / y, a=x.a / y.reshape(()))


# Shapes and types.


def _convert(x: LowRank, *, new_dtype: Any, **how: Any) -> LowRank | None:
    del how
    if not jnp.issubdtype(new_dtype, jnp.floating):
        return None
    return jax.tree_util.tree_map(lambda part: part.astype(new_dtype), x)


def _same(x: LowRank, **how: Any) -> LowRank:
    del how
    return x


def _transpose(x: LowRank, *, permutation: Any) -> LowRank:
    rows, columns = ([list(permutation).index(i) for i in axes] for axes in (x.rows, x.columns))
    return x.at_axes(rows, columns, jnp.transpose(x.base, permutation))


def _reshape(x: LowRank, *, new_sizes: Any, dimensions: Any, sharding: Any) -> LowRank | None:
    """Where no new axis mixes rows with columns."""
    everything = tuple(range(x.ndim))
    if x.rows + x.columns == everything:
        first = x.rows
    elif x.columns + x.rows == everything:
        first = x.columns
    else:
        return None
    size = math.prod(x.shape[i] for i in first)
    cuts = [i for i in range(len(new_sizes) + 1) if math.prod(new_sizes[:i]) == size]
    if dimensions is not None or sharding is not None or not cuts or 0 in new_sizes:
        return None
    before, after = tuple(range(cuts[0])), tuple(range(cuts[0], len(new_sizes)))
    rows, columns = (before, after) if first == x.rows else (after, before)
    a, b = (part.reshape(*(new_sizes[i] for i in axes), part.shape[-1]) for part, axes in ((x.a, rows), (x.b, columns)))
    return LowRank(x.base.reshape(new_sizes), a, b, rows, columns, x.name)


def _squeeze(x: LowRank, *, dimensions: Any) -> LowRank:
    a, b = (
        part.squeeze(tuple(place for place, i in enumerate(axes) if i in dimensions))
        for part, axes in ((x.a, x.rows), (x.b, x.columns))
    )
    rows, columns = (
        tuple(i - sum(int(gone) < i for gone in dimensions) for i in axes if i not in dimensions)
        for axes in (x.rows, x.columns)
    )
    return LowRank(x.base.squeeze(dimensions), a, b, rows, columns, x.name)


def _expand(x: LowRank, *dynamic: Any, shape: Any, broadcast_dimensions: Any, sharding: Any) -> LowRank | None:
    """New axes of size 1, as rows. What grows is mostly a bias, which is better multiplied out while it is small."""
    if dynamic or sharding is not None or math.prod(shape) != math.prod(x.shape):
        return None
    new = [i for i in range(len(shape)) if i not in broadcast_dimensions]
    rows, columns = ([int(broadcast_dimensions[i]) for i in axes] for axes in (x.rows, x.columns))

    def grown(part: Array, axes: Sequence[int]) -> Array:
        to = [*(shape[i] for i in axes), part.shape[-1]]
        return jax.lax.broadcast_in_dim(part, to, range(len(to) - part.ndim, len(to)))

    base = jax.lax.broadcast_in_dim(x.base, shape, broadcast_dimensions)
    a, b = grown(x.a, [*new, *rows]), grown(x.b, columns)
    return LowRank(base, a, b, (*new, *rows), tuple(columns), x.name)


def _slice(x: LowRank, *, start_indices: Any, limit_indices: Any, strides: Any) -> LowRank:
    cut = [slice(*s) for s in zip(start_indices, limit_indices, strides or [1] * x.ndim, strict=True)]
    a, b = (part[tuple(cut[i] for i in axes)] for part, axes in ((x.a, x.rows), (x.b, x.columns)))
    return dataclasses.replace(x, base=x.base[tuple(cut)], a=a, b=b)


def _split(x: LowRank, *, sizes: Any, axis: int) -> list[LowRank]:
    parts, start = [], 0
    for n in sizes:
        starts, ends = [0] * x.ndim, list(x.shape)
        starts[axis], ends[axis] = start, start + n
        parts.append(_slice(x, start_indices=starts, limit_indices=ends, strides=None))
        start += n
    return parts


def _dynamic_slice(x: Operand, *starts: Operand, slice_sizes: Any) -> LowRank | None:
    if not isinstance(x, LowRank) or any(map(is_low_rank, starts)):
        return None

    def cut(part: Array, axes: Sequence[int]) -> Array:
        begin = [*(starts[i] for i in axes), *[0] * (part.ndim - len(axes))]
        size = [*(slice_sizes[i] for i in axes), *part.shape[len(axes) :]]
        # The starts have been counted from the front already; what is still negative is out of bounds, and clamped.
        return jax.lax.dynamic_slice(part, begin, size, allow_negative_indices=False)

    return dataclasses.replace(x, base=cut(x.base, range(x.ndim)), a=cut(x.a, x.rows), b=cut(x.b, x.columns))


def _concatenate(*parts: Operand, dimension: int) -> LowRank | None:
    """Side by side, each with its own ranks: where one has its factors, those of the others are 0."""
    perturbed = [x for x in parts if isinstance(x, LowRank)]
    first = perturbed[0]
    if any((x.rows, x.columns) != (first.rows, first.columns) for x in perturbed):
        return None
    in_rows = dimension in first.rows
    axes = first.rows if in_rows else first.columns
    rank = sum(x.a.shape[-1] for x in perturbed)
    blocks, before = [], 0
    for x in parts:
        if isinstance(x, LowRank):
            own = x.a if in_rows else x.b
            after = rank - before - own.shape[-1]
            blocks.append(jnp.pad(own, [*[(0, 0)] * len(axes), (before, after)]))
            before += own.shape[-1]
        else:
            blocks.append(jnp.zeros([*(x.shape[i] for i in axes), rank], x.dtype))
    split = jnp.concatenate(blocks, axes.index(dimension))
    shared = jnp.concatenate([x.b if in_rows else x.a for x in perturbed], -1)
    base = jnp.concatenate([x.base if isinstance(x, LowRank) else x for x in parts], dimension)
    if split.size + shared.size >= base.size:
        return None  # so many ranks that nothing is gained
    a, b = (split, shared) if in_rows else (shared, split)
    return dataclasses.replace(first, base=base, a=a, b=b)


def _stack(*parts: Operand, axis: int) -> LowRank | None:
    if not all(isinstance(x, LowRank) for x in parts):
        return None
    shape = [*parts[0].shape[:axis], 1, *parts[0].shape[axis:]]
    old = [i for i in range(len(shape)) if i != axis]
    grown = [_expand(x, shape=shape, broadcast_dimensions=old, sharding=None) for x in parts if isinstance(x, LowRank)]
    return _concatenate(*(x for x in grown if x is not None), dimension=axis)


RULES: dict[Primitive, Callable[..., Operand | list[LowRank] | None]] = {
    **PRODUCTS,
    lax.add_p: _add,
    lax.add_jaxvals_p: _add,
    lax.neg_p: _negate,
    lax.sub_p: _subtract,
    lax.mul_p: _multiply,
    lax.div_p: _divide,
    lax.convert_element_type_p: _convert,
    lax.copy_p: _same,
    lax.name_p: _same,
    lax.stop_gradient_p: _same,
    lax.transpose_p: _transpose,
    lax.reshape_p: _reshape,
    lax.squeeze_p: _squeeze,
    lax.broadcast_in_dim_p: _expand,
    lax.slice_p: _slice,
    lax.dynamic_slice_p: _dynamic_slice,
    jax.lax.split_p: _split,
    lax.concatenate_p: _concatenate,
    **({jax.lax.stack_p: _stack} if hasattr(jax.lax, "stack_p") else {}),
}
