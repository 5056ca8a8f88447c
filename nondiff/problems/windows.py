"""Sequences, a window of steps at a time: truncated backpropagation through time, and a curriculum if wanted."""

import abc
import functools
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float, Int, Key

from nondiff.core import words
from nondiff.core.problem import AbstractProblem, Batch, Params
from nondiff.core.unroll import WindowLoss
from nondiff.core.window import Sequences, Window


class Carried(NamedTuple):
    """Between two windows: all that a checkpoint needs to go on in mid-sequence."""

    sequences: Sequences
    at: Int[Array, ""]
    """Where the next window starts."""
    state: Array
    """Of the model, `[cases, ...]`."""
    score: Float[Array, ""]
    """Of these sequences so far."""
    drawn: Int[Array, ""]
    """Batches of sequences before this one."""
    progress: Any
    key: Key[Array, ""]


class Told(NamedTuple):
    """A window, and the model's state before it."""

    window: Window
    state: Array


@functools.partial(jax.jit, static_argnums=0)  # for `Host`: steps one by one would be compiled at every call
def _loss(loss_of: WindowLoss, *told: Any) -> tuple[Array, tuple[Array, Array]]:
    return loss_of(*told)


class AbstractWindows(AbstractProblem):
    """The losses of a recurrent model over sequences: every step is one window, and when nothing that counts is left,
    the next sequences are drawn.

    A subclass has `loss_of`, from `Unroll.loss`, and defines `draw`; `start` and `learned` if sequences should become
    harder. The state and the score that are carried to the next window are those of a step's first evaluation.

    An example is in `Unroll`; one that becomes harder, in `experiments/decoupled_rnn.py`.
    """

    loss_of: eqx.AbstractVar[WindowLoss]
    traceable: ClassVar[bool] = True

    @abc.abstractmethod
    def draw(self, progress: Any, *, key: Key[Array, ""]) -> Sequences:
        """The next batch of sequences, of the same shapes every time."""

    def start(self) -> Any:
        """What is known of the progress before the first sequences, a pytree of arrays. Default: nothing."""
        return ()

    def learned(self, progress: Any, score: Float[Array, ""]) -> Any:
        """The progress after a batch of sequences; `score` is the sum over its windows of the loss's score. Default:
        the same as before.
        """
        del score
        return progress

    def init(self, *, key: Key[Array, ""]) -> Params:
        return self.loss_of.unroll.init(key)

    def init_state(self, *, key: Key[Array, ""]) -> Carried:
        zero, progress = jnp.zeros((), jnp.int32), self.start()
        sequences = self.draw(progress, key=words.fold_in(key, 0))
        state = self.loss_of.first(sequences.weights.shape[0])
        return Carried(sequences, zero, state, jnp.zeros(()), zero, progress, key)

    def batch(self, state: Carried, *, key: Key[Array, ""]) -> Told:
        del key
        return Told(self.loss_of.unroll.cut(state.sequences, state.at), state.state)

    def loss(self, params: Params, batch: Batch, *, key: Key[Array, ""]) -> tuple[Array, tuple[Array, Array]]:
        return _loss(self.loss_of, params, batch.window, key, batch.state)

    def absorb(self, state: Carried, aux: Any, batch: Batch) -> Carried:
        end, score = jtu.tree_map(lambda x: x[0], aux)
        after = state._replace(at=state.at + self.loss_of.unroll.window, state=end, score=state.score + score)
        return jax.lax.cond(batch.window.last, self._next, lambda same: same, after)

    def _next(self, state: Carried) -> Carried:
        """New sequences."""
        progress, drawn = self.learned(state.progress, state.score), state.drawn + 1
        sequences = self.draw(progress, key=words.fold_in(state.key, drawn))
        return Carried(
            sequences, jnp.zeros_like(state.at), state.state, jnp.zeros_like(state.score), drawn, progress, state.key
        )
