"""Closed arithmetic: every operation has a value for all arguments, so that every program has one.

Whole numbers have 31 bits and are cut off at `LIMIT`; division by zero and its remainder are 0. Floats follow IEEE 754.
"""

import ast
from collections.abc import Callable
from typing import Any

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
    ast.Mult: jnp.multiply,
    ast.Div: jnp.divide,
    ast.FloorDiv: jnp.floor_divide,
    ast.Mod: jnp.mod,
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
    "sin": jnp.sin,
    "cos": jnp.cos,
    "tanh": jnp.tanh,
    "exp": jnp.exp,
    "log": jnp.log,
    "sqrt": jnp.sqrt,
}
REAL_ONLY = {"sin", "cos", "tanh", "exp", "log", "sqrt"}
