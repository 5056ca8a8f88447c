"""What modules tell one another, and what they remember until an answer comes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
from jaxtyping import Array, Int, Key


class Message(NamedTuple):
    """From one module to another."""

    content: Any
    """Activations; from above a gradient at the boundary, or the error at the outputs."""
    about: Int[Array, ""]
    """The number of the batch it is about; -1: nothing has come."""


class Mail(NamedTuple):
    """What a module is given at a step."""

    below: Message
    above: Message


class Now(NamedTuple):
    """A batch, where a module sees it."""

    step: Int[Array, ""]
    """Its number."""
    x: Any
    """The inputs of the whole model, for a module that wants them."""
    answers: Any
    key: Key[Array, ""]


class Then(NamedTuple):
    """What a module remembers of a batch."""

    at: Any
    """Its inputs, or the activations that it made of them."""
    answers: Any
    key: Key[Array, "..."]


class Past(NamedTuple):
    """Rings of what a module remembers; `()` where it needs nothing."""

    then: Then | tuple[()]
    """For what comes from above."""
    x: Any
    """For what comes from below: the inputs of the whole model."""


class Handed(NamedTuple):
    """What a module hands on at a step; the content is `()` where nobody wants it."""

    up: Message
    """Its activations."""
    down: Message
    """The gradient in its inputs."""
    error: Message
    """Of the last module: the derivative of each case's loss in the outputs."""


def ring(like: Any, length: int) -> Any:
    """Room for so many of them; zeros at first."""

    def one(s: Any) -> Array:
        if jnp.issubdtype(s.dtype, jax.dtypes.prng_key):
            return jr.split(jr.key(0), length)
        return jnp.zeros((length, *s.shape), s.dtype)

    return jtu.tree_map(one, like)


def repeated(like: Any, length: int) -> Any:
    """A ring of so many of the same; `()` of none."""
    return jtu.tree_map(lambda x: jnp.repeat(x[None], length, 0), like) if length else ()


def turned(held: Any, new: Any, step: Int[Array, ""], about: Int[Array, ""]) -> tuple[Any, Any]:
    """What a ring holds about a step, and the ring with what is new in the place of the oldest; without a ring, what is
    new itself.
    """
    leaves = jtu.tree_leaves(held)
    if not leaves:
        return new, held
    length = leaves[0].shape[0]
    found = jtu.tree_map(lambda ring: ring[about % length], held)
    return found, jtu.tree_map(lambda ring, x: ring.at[step % length].set(x), held, new)


def cases_of(answers: Any) -> int:
    return jtu.tree_leaves(answers)[0].shape[0]


def delivered(coming: tuple[Any, Any], sent: Mail, step: Int[Array, ""]) -> tuple[Mail, tuple[Any, Any]]:
    """What comes at a step out of two queues, and the queues with what is sent behind the others."""
    below, above = (turned(queue, message, step, step) for queue, message in zip(coming, sent, strict=True))
    return Mail(below[0], above[0]), (below[1], above[1])


def with_cases(like: jax.ShapeDtypeStruct, cases: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((cases, *like.shape[1:]), like.dtype)
