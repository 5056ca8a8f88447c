"""The answers of a batch as numbers that a small network may look at."""

import math

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float

from nondiff.core.signal import Place, Seen
from nondiff.signals.nets import flat


def width_of(owner: str, place: Place) -> int:
    """How many numbers `encoded` gives a case. **Raises** `ValueError` where there are no answers."""
    leaves = jtu.tree_leaves(place.answers)
    if not leaves:
        raise ValueError(
            f"`{owner}` behind `{place.name}`: there are no answers to look at. Give them, `Decoupled(like="
            "(inputs, answers))` or `Unroll(ahead=...)`, or let it do without: `conditioned=False`."
        )
    return sum(math.prod(x.shape[1:]) * (1 if _is_float(x) else symbols(owner, place)) for x in leaves)


def symbols(owner: str, place: Place) -> int:
    """How many an answer may be: as many as the chain has outputs. **Raises** `ValueError` where that is not known."""
    outputs = jtu.tree_leaves(place.outputs)
    if len(outputs) != 1 or len(outputs[0].shape) < 2 or not _is_float(outputs[0]):
        raise ValueError(
            f"`{owner}` behind `{place.name}`: answers are whole numbers, of which there may be as many as the chain's "
            "outputs have in their last axis; these outputs are no logits. Give answers as floats, such as one-hot."
        )
    return outputs[0].shape[-1]


def encoded(seen: Seen) -> Float[Array, "cases width"]:
    """A row a case; symbols are one-hot."""

    def one(x: Array) -> Array:
        return flat(x if _is_float(x) else jax.nn.one_hot(x, symbols("encoded", seen.place)))

    return jnp.concatenate([one(jnp.asarray(x)) for x in jtu.tree_leaves(seen.answers)], -1)


def _is_float(x: Array | jax.ShapeDtypeStruct) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)
