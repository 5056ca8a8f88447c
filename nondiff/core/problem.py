"""What is minimised: `E[loss(params, batch, key)]`, over any pytree of parameters.

A problem without state defines `init`, `batch` and `loss`, and nothing else. The loss is minimised, everywhere in
nondiff; NaN marks a failed evaluation, and a failed evaluation is ranked last.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

Params = PyTree
Batch = PyTree
Aux = PyTree


class AbstractProblem(eqx.Module):
    """A loss, a starting point and the data of each step.

    **Traceable** problems are run under `jax.jit` and `jax.vmap`; the others are plain Python on NumPy arrays and
    define `losses`.
    """

    @property
    @abc.abstractmethod
    def traceable(self) -> bool:
        """May `loss` run under `jax.jit`?"""

    @abc.abstractmethod
    def init(self, *, key: Key[Array, ""]) -> Params:
        """A starting point: the trained leaves, arrays all of them, and nothing else."""

    @abc.abstractmethod
    def batch(self, state: Any, *, key: Key[Array, ""]) -> Batch:
        """The data of one step, shared by all its candidates. The loss sees the problem's state through it."""

    @abc.abstractmethod
    def loss(
        self, params: Params, batch: Batch, *, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""] | Float[Array, " cases"], Aux]:
        """`(loss, aux)`, one loss or one per case (their mean is minimised). NaN is a failed evaluation.

        `aux` is any pytree of arrays, for `absorb`; `None` if there is nothing to remember.
        """

    def rows(self, batch: Batch, number: int, of: int) -> tuple[Batch, int]:
        """Piece `number` of `of` of a batch, from 0, and how many rows it has: for queries about their own part of the
        data (`Query.rows`).

        Default: the first axis, which all leaves share, cut in order into pieces whose sizes differ by one at most.
        """
        lengths = {np.shape(x)[0] if np.ndim(x) else None for x in jtu.tree_leaves(batch)}
        (length,) = lengths if len(lengths) == 1 else (None,)
        if length is None or length < of:
            shapes = [list(np.shape(x)) for x in jtu.tree_leaves(batch)]
            raise ValueError(
                f"`{type(self).__name__}`: {of} pieces are wanted of a batch of arrays {shapes}; expected one first "
                f"axis for all, of at least {of} rows. Ask for fewer pieces, or define `rows(batch, number, of)`, "
                "which cuts a batch."
            )
        part = piece(length, number, of)
        return jtu.tree_map(lambda x: x[part], batch), part.stop - part.start

    def bare(self) -> "AbstractProblem":
        """Without what `loss` and `losses` never read, such as data that the batch brings; only this is sent to far
        workers.
        """
        return self

    def losses(
        self, members: Params, batch: Batch, *, keys: Key[Array, " pop"]
    ) -> tuple[Float[Array, " pop"] | Float[Array, "pop cases"], Aux]:
        """A chunk of members at once, every leaf `[pop, ...]`. Host problems that can do better override it."""
        if self.traceable:
            return jax.vmap(lambda member, key: self.loss(member, batch, key=key))(members, keys)
        outs = [self.loss(jtu.tree_map(lambda x: x[i], members), batch, key=k) for i, k in enumerate(keys)]
        return jtu.tree_map(lambda *xs: np.stack([np.asarray(x) for x in xs]), *outs)

    def init_state(self, *, key: Key[Array, ""]) -> Any:
        """What the problem remembers between steps: observation statistics, a curriculum, a place in the data."""
        del key
        return ()

    def absorb(self, state: Any, aux: Aux, batch: Batch) -> Any:
        """The next state. `aux` holds those of all evaluations of the step, every leaf `[evaluations, ...]`."""
        del aux, batch
        return state

    def batches(self) -> Any:
        """Batches from outside the compiled step: `None`, a function of the step number, or an iterable."""
        return None

    def domain(self, params: Params) -> PyTree:
        """The domain of each leaf, a prefix of `params`. `None`: floats are `Real()`, integers must be declared."""
        del params
        return None

    def differentiable(self, params: Params) -> PyTree:
        """Which leaves `jax.grad` may be asked about; a tree of `bool` like `params`."""
        return jtu.tree_map(lambda x: self.traceable and jnp.issubdtype(x.dtype, jnp.inexact), params)


def piece(rows: int, number: int, of: int) -> slice:
    """Where piece `number` of `of` is among so many rows.

    >>> [piece(10, i, 4) for i in range(4)]
    [slice(0, 2, None), slice(2, 5, None), slice(5, 7, None), slice(7, 10, None)]
    """
    return slice(number * rows // of, (number + 1) * rows // of)


def starting_point(params: Params | Callable[[Key[Array, ""]], Params], key: Key[Array, ""]) -> Params:
    """Parameters as they are given, or as a function of a key makes them."""
    # A model may be callable, too; a function holds no arrays.
    is_function = callable(params) and not any(eqx.is_array_like(x) for x in jtu.tree_leaves(params))
    return params(key) if is_function else params
