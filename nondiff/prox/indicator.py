"""Whether a leaf lies in a set, and how much rounding is forgiven."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def slack(z: Array) -> float:
    """The relative error that rounding may leave in a sum over a large leaf: 7e-5 in 32 bits, 4e-10 in 64."""
    return float(jnp.finfo(z.dtype).eps) ** 0.6


def indicator(inside: Array) -> Float[Array, ""]:
    """0 inside of a set, infinity outside."""
    return jnp.where(inside, 0.0, jnp.inf)
