"""How many members at once: as many as fit near the processor, by shapes and platform alone."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.tree_util as jtu
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxprs_in_params
from jax.extend.core.primitives import scan_p, while_p

LARGEST = {"cpu": 4 * 10**6, "gpu": 2**30, "tpu": 2**28}
"""Bytes of the largest intermediate result of a chunk. CPU: near the size of a processor's caches, measured by
`experiments/benchmarks/es_limit.py --chunks`. GPU and TPU: a small share of their memory, not measured."""

SMALL = 16
"""Fewer members may all be one chunk."""


def fitting(n: int, one: Callable[..., Any], *own: Any) -> int:
    """The chunk for `n` members, where `one(*own)` is the work of one; `own` are the shapes of what it alone has.

    The largest power of two that keeps every intermediate result of all its members below `LARGEST`, but at least 2,
    so that the two of a pair stay together, and at most half of a population of `SMALL` or more; then as small as the
    number of chunks allows, so that they are equal. Half: without a loop around the members, XLA fuses the end of the
    random numbers' computation into the model and repeats it for every row of the batch.
    """
    leaves, treedef = jtu.tree_flatten(own)
    jaxpr = jax.make_jaxpr(lambda *xs: one(*treedef.unflatten(xs)))(*leaves)
    fit = LARGEST.get(jax.default_backend(), LARGEST["cpu"]) // max(_largest(jaxpr, [True] * len(leaves))[0], 1)
    most = min(max(2, 2 ** max(fit.bit_length() - 1, 0)), n if n < SMALL else n // 4 * 2)
    even = math.ceil(n / math.ceil(n / most))
    return min(most, even + even % 2)


def _largest(jaxpr: Jaxpr | ClosedJaxpr, own: Sequence[bool]) -> tuple[int, list[bool]]:
    """The bytes of the largest result that depends on a member's own inputs, and which outputs do.

    What does not depend on them is computed once for all.
    """
    jaxpr = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    mine = {x for x, flag in zip(jaxpr.invars, own, strict=True) if flag}
    most = 0
    for equation in jaxpr.eqns:
        flags = [not isinstance(x, Literal) and x in mine for x in equation.invars]
        if not any(flags):
            continue
        inside, outs = _of_equation(equation, flags)
        found = [x for x, flag in zip(equation.outvars, outs, strict=True) if flag]
        mine.update(found)
        most = max([most, inside, *(_bytes(x.aval) for x in found)])
    return most, [not isinstance(x, Literal) and x in mine for x in jaxpr.outvars]


def _of_equation(equation: JaxprEqn, flags: list[bool]) -> tuple[int, list[bool]]:
    """The largest result inside of an operation, and which of its outputs depend on the inputs marked by `flags`."""
    params = equation.params
    if equation.primitive is scan_p:
        n, k = params["num_consts"], params["num_consts"] + params["num_carry"]

        def turn(carry: list[bool]) -> tuple[int, list[bool]]:
            return _largest(params["jaxpr"], [*flags[:n], *carry, *flags[k:]])

        return _settled(turn, flags[n:k])
    if equation.primitive is while_p:
        n, k = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]

        def turn(carry: list[bool]) -> tuple[int, list[bool]]:
            first, (goes_on,) = _largest(params["cond_jaxpr"], [*flags[:n], *carry])
            most, outs = _largest(params["body_jaxpr"], [*flags[n:k], *carry])
            return max(first, most), [flag or goes_on for flag in outs]  # who has ended keeps its values

        return _settled(turn, flags[k:])
    called = [x.jaxpr if isinstance(x, ClosedJaxpr) else x for x in jaxprs_in_params(params)]
    most, outs = 0, [not called] * len(equation.outvars)
    for inner in called:
        before = len(flags) - len(inner.invars)  # a `cond` keeps its index to itself
        if before < 0 or len(inner.outvars) != len(outs):  # a kind of call that is not known here
            return max(most, _largest(inner, [True] * len(inner.invars))[0]), [True] * len(outs)
        inside, found = _largest(inner, flags[before:])
        most, outs = max(most, inside), [x or y or any(flags[:before]) for x, y in zip(outs, found, strict=True)]
    return most, outs


def _settled(turn: Callable[[list[bool]], tuple[int, list[bool]]], carry: list[bool]) -> tuple[int, list[bool]]:
    """A turn of a loop, once no more of what it carries comes to depend on a member's own inputs."""
    while True:
        most, outs = turn(carry)
        grown = [a or b for a, b in zip(carry, outs[: len(carry)], strict=True)]
        if grown == carry:
            return most, [*carry, *outs[len(carry) :]]
        carry = grown


def _bytes(x: Any) -> int:
    return math.prod(x.shape) * x.dtype.itemsize if hasattr(x, "dtype") else 0
