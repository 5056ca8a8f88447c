"""Closed arithmetic: every operation has a value for all arguments, so that every program has one.

Whole numbers have 31 bits and are cut off at `LIMIT`; division by zero and its remainder are 0. Floats follow IEEE 754,
and have a derivative of 0 where they have no finite one.
"""

import ast
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from nondiff.programs.line import LIMIT


def whole(x: Array) -> Array:
    """Cut off at the limit."""
    return jnp.clip(x, -LIMIT, LIMIT)


def _times(x: Array, y: Array) -> Array:
    # Far outside, the product of floats tells; else the whole product has not left 32 bits, and is exact.
    size = jnp.abs(x.astype(jnp.float32)) * jnp.abs(y.astype(jnp.float32))
    sign = jnp.where((x < 0) != (y < 0), -LIMIT, LIMIT)
    return jnp.where(size > 1.5 * 2**30, sign, whole(x * y))


def _over(x: Array, y: Array) -> Array:
    return jnp.where(y == 0, 0, x // jnp.where(y == 0, 1, y))


def _rest(x: Array, y: Array) -> Array:
    return jnp.where(y == 0, 0, x % jnp.where(y == 0, 1, y))


def _tamed(function: Callable[..., Array]) -> Callable[..., Array]:
    """With a derivative of 0 where it has no finite one: lines that a program does not take are computed as well, and
    0 times infinity is no number."""
    tamed = jax.custom_jvp(function)

    @tamed.defjvp
    def _(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
        def slope(i: int) -> Array:
            def of_one(x: Array) -> Array:
                return function(*primals[:i], x, *primals[i + 1 :])

            found = jax.jvp(of_one, (primals[i],), (jnp.ones_like(primals[i]),))[1]
            return jnp.where(jnp.isfinite(found), found, 0.0)

        return function(*primals), sum((slope(i) * t for i, t in enumerate(tangents)), jnp.zeros(()))

    return tamed


WHOLE: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: lambda x, y: whole(x + y),
    ast.Sub: lambda x, y: whole(x - y),
    ast.Mult: _times,
    ast.FloorDiv: _over,
    ast.Mod: _rest,
}
REAL: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: jnp.add,
    ast.Sub: jnp.subtract,
    ast.Mult: _tamed(jnp.multiply),
    ast.Div: _tamed(jnp.divide),
    ast.FloorDiv: _tamed(jnp.floor_divide),
    ast.Mod: _tamed(jnp.mod),
}
COMPARE: dict[type, Callable[[Any, Any], Any]] = {
    ast.Lt: jnp.less,
    ast.LtE: jnp.less_equal,
    ast.Gt: jnp.greater,
    ast.GtE: jnp.greater_equal,
    ast.Eq: jnp.equal,
    ast.NotEq: jnp.not_equal,
}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": jnp.abs,
    "min": jnp.minimum,
    "max": jnp.maximum,
    "sin": _tamed(jnp.sin),
    "cos": _tamed(jnp.cos),
    "tanh": _tamed(jnp.tanh),
    "exp": _tamed(jnp.exp),
    "log": _tamed(jnp.log),
    "sqrt": _tamed(jnp.sqrt),
}
REAL_ONLY = {"sin", "cos", "tanh", "exp", "log", "sqrt"}
