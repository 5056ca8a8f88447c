"""What products, convolutions and look-ups in a table do to a perturbed array, without multiplying it out.

A rule gets the equation's operands, at least one of them `LowRank`, and its parameters; it returns the result, or
`None` where there is no short way for these operands: then the interpreter multiplies them out.
"""

from typing import Any

import jax.extend.core.primitives as lax
import jax.numpy as jnp
from jaxtyping import Array

from nondiff.arrays.low_rank import LowRank, Operand, is_low_rank


def _dot_general(x: Operand, y: Operand, *, dimension_numbers: Any, out_sharding: Any, **how: Any) -> Array | None:
    """`x (W + a b') = x W + (x a) b'`, in any orientation: the sum of the products of what the operands consist of."""
    if out_sharding is not None:
        return None
    (contract_x, contract_y), (batch_x, batch_y) = dimension_numbers
    if is_low_rank(x) and not is_low_rank(y) and not batch_x:
        # The perturbed operand comes second, so that the members' rows stay rows: `x W'`, not `W x'`, whose columns
        # are copied before the next layer. For a network of 1 M parameters the whole generation is a sixth faster.
        swapped = ((contract_y, contract_x), (batch_y, batch_x))
        if getattr(how["precision"], "lhs_precision_type", 0) != getattr(how["precision"], "rhs_precision_type", 0):
            return None  # an algorithm that is not the same for both operands
        how["precision"] = _swapped(how["precision"])
        out = _dot_general(y, x, dimension_numbers=swapped, out_sharding=None, **how)
        if out is None:
            return None
        free = x.ndim - len(contract_x)
        return jnp.moveaxis(out, range(out.ndim - free, out.ndim), range(free))
    labels_x = list(range(x.ndim))
    shared = dict(zip((*contract_y, *batch_y), (*contract_x, *batch_x), strict=True))
    labels_y = [shared.get(i, x.ndim + i) for i in range(y.ndim)]
    free_x = [i for i in range(x.ndim) if i not in (*contract_x, *batch_x)]
    free_y = [labels_y[i] for i in range(y.ndim) if i not in (*contract_y, *batch_y)]
    out = [*batch_x, *free_x, *free_y]
    total = None
    for left in _terms(x, labels_x, x.ndim + y.ndim):
        for right in _terms(y, labels_y, x.ndim + y.ndim + 1):
            if len(left) + len(right) == 2:
                (a, _), (b, _) = left[0], right[0]
                part = lax.dot_general_p.bind(a, b, dimension_numbers=dimension_numbers, out_sharding=None, **how)
            else:
                operands = [operand for pair in (*left, *right) for operand in pair]
                part = jnp.einsum(*operands, out, optimize="optimal", **how)
            total = part if total is None else total + part
    return total


def _swapped(precision: Any) -> Any:
    return precision[::-1] if isinstance(precision, tuple) else precision


def _terms(x: Operand, labels: list[int], rank: int) -> list[list[tuple[Array, list[int]]]]:
    """A value as a sum of products, each a list of arrays with the labels of their axes."""
    if not isinstance(x, LowRank):
        return [[(x, labels)]]
    left, right = ([*(labels[i] for i in axes), rank] for axes in (x.rows, x.columns))
    return [[(x.base, labels)], [(x.a, left), (x.b, right)]]


def _convolution(x: Operand, kernel: Operand, *, dimension_numbers: Any, **how: Any) -> Array | None:
    """A convolution with `rank` channels, and each of these spread over the output's channels."""
    grouped = how["feature_group_count"] * how["batch_group_count"] != 1
    if is_low_rank(x) or not isinstance(kernel, LowRank) or grouped:
        return None
    channel, out = dimension_numbers.rhs_spec[0], dimension_numbers.out_spec[1]
    groups = ((kernel.a, kernel.rows, kernel.b, kernel.columns), (kernel.b, kernel.columns, kernel.a, kernel.rows))
    spread, own, thin, axes = next(group for group in groups if channel in group[1])
    lone = [i for i in own if i != channel]  # of size 1, as the input's channels are: they may go to the other group
    if any(kernel.shape[i] != 1 for i in lone):
        return None
    spread = spread.reshape(spread.shape[own.index(channel)], spread.shape[-1])
    thin = thin.reshape((1,) * len(lone) + thin.shape)
    places = [*lone, *axes, channel]  # of the axes of `thin`, whose last one is the rank
    thin = jnp.transpose(thin, [places.index(i) for i in range(kernel.ndim)])
    how |= {"dimension_numbers": dimension_numbers}
    base = lax.conv_general_dilated_p.bind(x, kernel.base, **how)
    narrow = lax.conv_general_dilated_p.bind(x, thin, **how)
    numbers = ((out,), (1,))
    wide = jnp.tensordot(narrow, spread, numbers, precision=how["precision"], preferred_element_type=base.dtype)
    return base + jnp.moveaxis(wide, -1, out)


def _gather(table: Operand, indices: Operand, *, dimension_numbers: Any, slice_sizes: Any, **how: Any) -> Array | None:
    """Rows of a table, as of an embedding: those of both factors, multiplied out there alone."""
    numbers = dimension_numbers
    if not isinstance(table, LowRank) or isinstance(indices, LowRank) or numbers.operand_batching_dims:
        return None
    base = lax.gather_p.bind(table.base, indices, dimension_numbers=numbers, slice_sizes=slice_sizes, **how)
    batch = [i for i in range(base.ndim) if i not in numbers.offset_dims]
    kept = [i for i in range(table.ndim) if i not in numbers.collapsed_slice_dims]
    place = dict(zip(kept, numbers.offset_dims, strict=True))
    how |= {"fill_value": 0}  # a row that is not there is what `base` has been filled with, and nothing more

    def part(factor: Array, axes: tuple[int, ...]) -> tuple[Array, list[int]]:
        labels = [*(place[i] for i in axes if i in place), base.ndim]
        own = [k for k, i in enumerate(numbers.start_index_map) if i in axes]
        if not own:
            factor = factor[tuple(slice(slice_sizes[i]) for i in axes)]
            return factor.reshape([*(slice_sizes[i] for i in axes if i in place), factor.shape[-1]]), labels
        here = type(numbers)(
            offset_dims=tuple(range(len(batch), len(batch) + len(labels))),
            collapsed_slice_dims=tuple(sorted(axes.index(i) for i in numbers.collapsed_slice_dims if i in axes)),
            start_index_map=tuple(axes.index(numbers.start_index_map[k]) for k in own),
        )
        if len(own) < len(numbers.start_index_map):  # what is promised of pairs need not hold for one of the two
            how.update(indices_are_sorted=False, unique_indices=False)
        sizes = (*(slice_sizes[i] for i in axes), factor.shape[-1])
        starts = indices[..., jnp.array(own)]
        return lax.gather_p.bind(factor, starts, dimension_numbers=here, slice_sizes=sizes, **how), [*batch, *labels]

    near, far = part(table.a, table.rows), part(table.b, table.columns)
    return base + jnp.einsum(*near, *far, list(range(base.ndim)))


PRODUCTS = {
    lax.dot_general_p: _dot_general,
    lax.conv_general_dilated_p: _convolution,
    lax.gather_p: _gather,
}
