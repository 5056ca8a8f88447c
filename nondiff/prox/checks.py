"""What the operators share: checks of their numbers, and how much rounding is forgiven."""

import math
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float


def check_number(owner: str, name: str, value: Any, *, positive: bool = False) -> None:
    """**Raises** `ValueError` unless `value` is finite and at least 0, or `positive`: above 0."""
    bound = "above 0" if positive else "at least 0"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"`{owner}({name}={value!r})`: expected a number {bound}.")
    if not math.isfinite(value) or value < 0 or (positive and value == 0):
        raise ValueError(f"`{owner}({name}={value!r})`: it must be finite and {bound}, for example {name}=1.0.")


def slack(z: Array) -> float:
    """The relative error that rounding may leave in a sum over a large leaf: 7e-5 in 32 bits, 4e-10 in 64."""
    return float(jnp.finfo(z.dtype).eps) ** 0.6


def indicator(inside: Array) -> Float[Array, ""]:
    """0 inside of a set, infinity outside."""
    return jnp.where(inside, 0.0, jnp.inf)
