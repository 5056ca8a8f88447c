"""How many members at once: as many as fit near the processor, by shapes and platform alone."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.tree_util as jtu
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxprs_in_params

LARGEST = {"cpu": 6 * 2**20, "gpu": 2**30, "tpu": 2**28}
"""Bytes of the largest intermediate result of a chunk. CPU: measured on networks of 10 k, 100 k and 1 M parameters,
full and low rank; near the size of a processor's caches. GPU and TPU: a small share of their memory, not measured."""


SMALL = 16
"""Fewer members may all be one chunk."""


def fitting(n: int, one: Callable[..., Any], *own: Any) -> int:
    """The chunk for `n` members, where `one(*own)` is the work of one; `own` are the shapes of what it alone has.

    The largest power of two that keeps every intermediate result of all its members below `LARGEST`, but at least 2,
    so that the two of a pair stay together, and at most half of the population; then as small as the number of chunks
    allows, so that they are equal. Half: without a loop around the members, XLA fuses the end of the random numbers'
    computation into the model and repeats it for every row of the batch, 4 times slower for 10 k parameters.
    """
    leaves, treedef = jtu.tree_flatten(own)
    jaxpr = jax.make_jaxpr(lambda *xs: one(*treedef.unflatten(xs)))(*leaves)
    fit = LARGEST.get(jax.default_backend(), LARGEST["cpu"]) // max(_largest(jaxpr.jaxpr, [True] * len(leaves)), 1)
    most = min(max(2, 2 ** max(fit.bit_length() - 1, 0)), n if n < SMALL else n // 4 * 2)
    even = math.ceil(n / math.ceil(n / most))
    return min(most, even + even % 2)


def _largest(jaxpr: Jaxpr, own: Sequence[bool]) -> int:
    """The bytes of the largest result that depends on a member's own inputs; what all share is computed once."""
    mine = {x for x, flag in zip(jaxpr.invars, own, strict=True) if flag}
    most = 0
    for equation in jaxpr.eqns:
        flags = [not isinstance(x, Literal) and x in mine for x in equation.invars]
        if not any(flags):
            continue
        mine.update(equation.outvars)
        sizes = [_bytes(x.aval) for x in equation.outvars]
        for inner in jaxprs_in_params(equation.params):
            inner = inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner
            passed = flags[len(flags) - len(inner.invars) :]  # a `cond` keeps its index to itself
            sizes.append(_largest(inner, passed if len(passed) == len(inner.invars) else [True] * len(inner.invars)))
        most = max([most, *sizes])
    return most


def _bytes(x: Any) -> int:
    return math.prod(x.shape) * x.dtype.itemsize if hasattr(x, "dtype") else 0
