"""A batch of sequences, and a window of steps that is cut from it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Float, Int, PyTree


class Sequences(NamedTuple):
    """A batch of sequences of equally many steps; what is shorter has weights of 0 at its end, any answers,
    and inputs that are finite.
    """

    inputs: PyTree[Array]
    """`[cases, steps, ...]`."""
    answers: PyTree[Array]
    """`[cases, steps, ...]`."""
    weights: Float[Array, "cases steps"]
    """How much the loss at each step counts."""


class Coming(NamedTuple):
    """Answers that are still to be given: what later losses depend on, beside the model's state."""

    answers: PyTree[Array]
    """`[cases, ahead, ...]`. Where none counts, whole numbers are -1, and floats 0."""
    weights: Float[Array, "cases ahead"]


class Window(NamedTuple):
    """Some steps of a batch of sequences."""

    inputs: PyTree[Array]
    """`[cases, window, ...]`; 0 beyond the end of the sequences."""
    answers: PyTree[Array]
    """`[cases, window, ...]`; 0 where none counts."""
    weights: Float[Array, "cases window"]
    before: Any
    """What is `Coming` where the window starts; `()` if nothing is told."""
    after: Any
    """What is `Coming` where it ends."""
    first: Bool[Array, ""]
    """Is it the first?"""
    last: Bool[Array, ""]
    """Does nothing that counts come after it?"""


def cut(sequences: Sequences, at: Int[Array, ""], window: int, ahead: int) -> Window:
    """The `window` steps from `at` on, and `ahead` answers that are still to be given.

    >>> weights = jnp.array([[0.0, 0.0, 1.0, 1.0]])
    >>> found = cut(Sequences(jnp.arange(4)[None], jnp.array([[0, 0, 7, 8]]), weights), jnp.int32(1), 2, 3)
    >>> found.answers.tolist(), found.before.answers.tolist(), found.after.answers.tolist()
    ([[0, 7]], [[-1, 7, 8]], [[8, -1, -1]])
    >>> bool(found.first), bool(found.last)
    (False, False)
    """
    counts = sequences.weights != 0
    clean = sequences._replace(answers=jtu.tree_map(lambda x: _where(counts, x, 0), sequences.answers))
    long = jtu.tree_map(lambda x: jnp.pad(x, [(0, 0), (0, window + ahead), *[(0, 0)] * (x.ndim - 2)]), clean)

    def some(part: Any, start: Array, size: int) -> Any:
        return jtu.tree_map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size, 1), part)

    def coming(start: Array) -> Any:
        if not ahead:
            return ()
        weights = some(long.weights, start, ahead)
        return Coming(jtu.tree_map(lambda x: _counted(x, weights), some(long.answers, start, ahead)), weights)

    end, steps = at + window, sequences.weights.shape[1]
    last = ~jnp.any(counts & (jnp.arange(steps) >= end))
    inputs, answers, weights = some(long, at, window)
    return Window(inputs, answers, weights, coming(at), coming(end), at == 0, last)


def _counted(x: Array, weights: Float[Array, "cases ahead"]) -> Array:
    """Answers that count, and what says that there is none."""
    if jnp.issubdtype(x.dtype, jnp.inexact):
        return _where(weights != 0, x, 0)
    return _where(weights != 0, x.astype(jnp.int32), -1)


def _where(counts: Array, x: Array, none: int) -> Array:
    """`x` at the steps that count."""
    return jnp.where(counts.reshape(*counts.shape, *[1] * (x.ndim - 2)), x, jnp.array(none, x.dtype))
