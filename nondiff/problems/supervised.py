"""A loss over data: arrays in memory, drawn without replacement, or batches from any Python iterator."""

from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Int, Key, PyTree

from nondiff.core import words
from nondiff.core.checks import check_count
from nondiff.core.problem import AbstractProblem, Batch, Params, piece, starting_point
from nondiff.core.tree import is_none


class _Order(eqx.Module):
    """A place in shuffled data."""

    order: Int[Array, " n"]
    position: Int[Array, ""]
    epoch: Int[Array, ""]
    key: Key[Array, ""]


class Remembered(eqx.Module):
    """What a loss wants to be told at the next step."""

    order: Any
    memory: Any


class Told(NamedTuple):
    """A batch, and what the loss remembers."""

    rows: Any
    memory: Any


class _Outside:
    """Batches from outside. Held apart: trees of arrays and static fields hold no generators."""

    def __init__(self, batches: Any):
        self.batches = batches


class Supervised(AbstractProblem):
    """`loss(params, batch, key)`, minimised over data.

    **Arguments:**

    - `loss`: takes the parameters, a batch and a key; returns one number, or one per case (their mean is minimised; a
      trainer may ask for them). It may return `(loss, aux)`. One with a method `memory(batch)`, which makes what it
      remembers at first from the shapes of a batch, takes that as its fourth argument and returns the next as `aux`:
      that of a step's first evaluation is kept. Not for batches from outside, or pieces of batches.
    - `data`: a pytree of arrays with the same first axis, of which every step draws `batch_size` rows; or batches from
      outside: a function of the step number, or any iterable (a `DataLoader`, a generator). An iterable that can be
      started again is, at its end; a generator ends the training.
    - `params`: the starting point, arrays only, or a function of a key that makes it.
    - `batch_size`: rows a step (default `None`: all of them). Rows are drawn without replacement until fewer than a
      batch are left; then they are shuffled anew. Only for arrays.
    - `shards`: of how many fixed parts of the data each batch has equally many rows, one part after the other, for
      `Consensus(shards=...)`, where each shard sees its own rows only. Their sizes may differ by one. Default `None`:
      all of a batch's rows are drawn from all the data.
    - `domain`: a domain, or a tree of them, a prefix of the parameters; floats default to `Real()`.

    **Raises** `ValueError` for no data, arrays of unequal length, a batch size that is not between 1 and the number
    of rows or no multiple of `shards`, or one of them given for batches from outside.

    >>> import jax, jax.numpy as jnp, nondiff, optax
    >>> x = jnp.linspace(-1.0, 1.0, 64)
    >>> loss = lambda w, batch, key: (w * batch[0] - batch[1]) ** 2
    >>> problem = Supervised(loss, (x, 3.0 * x), params=jnp.zeros(()), batch_size=16)
    >>> result = nondiff.fit(problem, nondiff.Backprop(optax.adam(0.1)), steps=200, key=jax.random.key(0))
    >>> round(float(result.params), 2)
    3.0
    """

    fn: Callable[..., Any] = eqx.field(static=True)
    data: PyTree
    stream: Any = eqx.field(static=True)
    params: Any
    batch_size: int | None = eqx.field(static=True)
    shards: int | None = eqx.field(static=True)
    domains: PyTree
    traceable: ClassVar[bool] = True

    def __init__(
        self,
        loss: Callable[..., Any],
        data: Any,
        *,
        params: Params | Callable[[Key[Array, ""]], Params],
        batch_size: int | None = None,
        shards: int | None = None,
        domain: PyTree = None,
    ):
        self.fn, self.params, self.domains, self.batch_size, self.shards = loss, params, domain, batch_size, shards
        self.stream = None if _is_arrays(data) else _Outside(data)
        self.data = jtu.tree_map(jnp.asarray, data) if _is_arrays(data) else None
        if self.stream is not None:
            if not (callable(data) or hasattr(data, "__iter__")):
                raise ValueError(
                    f"`Supervised(data={data!r})`: expected arrays, an iterable, or a function of the step."
                )
            if hasattr(loss, "memory"):
                raise ValueError("`Supervised`: its loss remembers earlier batches; give the data as arrays.")
            for name, value in (("batch_size", batch_size), ("shards", shards)):
                if value is not None:
                    raise ValueError(f"`Supervised({name}={value})`: these batches come from outside, as they are.")
            return
        lengths = {np.shape(x)[0] if np.ndim(x) else None for x in jtu.tree_leaves(self.data)}
        if len(lengths) != 1 or None in lengths or 0 in lengths:
            shapes = [list(np.shape(x)) for x in jtu.tree_leaves(self.data)]
            raise ValueError(
                f"`Supervised(data)` has shapes {shapes}; expected one first axis for all, of 1 or more rows."
            )
        if batch_size is not None:
            check_count("Supervised", "batch_size", batch_size)
            if batch_size > self._rows:
                raise ValueError(f"`Supervised(batch_size={batch_size})`: there are only {self._rows} rows.")
        if shards is not None:
            check_count("Supervised", "shards", shards)
            least = self._rows // shards
            if batch_size is None or batch_size % shards or batch_size // shards > least:
                raise ValueError(
                    f"`Supervised(batch_size={batch_size}, shards={shards})`: a batch has equally many rows of each "
                    f"shard, and there are {self._rows}; expected a multiple of {shards} up to {shards * least}. "
                    "Without `batch_size`, a step sees all rows, and needs no `shards`."
                )

    @property
    def _rows(self) -> int:
        return jtu.tree_leaves(self.data)[0].shape[0]

    @property
    def cases(self) -> int:
        """Rows of a batch, of data in memory."""
        return self.batch_size or self._rows

    def init(self, *, key: Key[Array, ""]) -> Params:
        return starting_point(self.params, key)

    def init_state(self, *, key: Key[Array, ""]) -> Any:
        order = self._first_order(key)
        if not hasattr(self.fn, "memory"):
            return order
        rows = jax.eval_shape(lambda: self._drawn(order))
        return Remembered(order, self.fn.memory(rows))  # pyright: ignore[reportFunctionMemberAccess]

    def _first_order(self, key: Key[Array, ""]) -> _Order | tuple[()]:
        if self.stream is not None or self.batch_size is None:
            return ()
        zero = jnp.zeros((), jnp.int32)
        return _Order(self._shuffled(key, zero), zero, zero, key)

    def batch(self, state: Any, *, key: Key[Array, ""]) -> Batch:
        del key
        if self.stream is not None:
            raise ValueError(
                "`Supervised`: these batches come from outside; `fit` passes them on, `step(batch=)` takes one."
            )
        if isinstance(state, Remembered):
            return Told(self._drawn(state.order), state.memory)
        return self._drawn(state)

    def _drawn(self, state: _Order | tuple[()]) -> Batch:
        if not isinstance(state, _Order) or self.batch_size is None:
            return self.data
        rows = jax.lax.dynamic_slice_in_dim(state.order, state.position, self.batch_size)
        return jtu.tree_map(lambda x: x[rows], self.data)

    def loss(self, params: Params, batch: Batch, *, key: Key[Array, ""]) -> tuple[Array, PyTree]:
        told = (batch.rows, key, batch.memory) if isinstance(batch, Told) else (batch, key)
        out = self.fn(params, *told)
        return out if isinstance(out, tuple) else (out, None)

    def absorb(self, state: Any, aux: PyTree, batch: Batch) -> Any:
        del batch
        if isinstance(state, Remembered):
            return Remembered(self._next_order(state.order), jtu.tree_map(lambda x: x[0], aux))
        return self._next_order(state)

    def _next_order(self, state: _Order | tuple[()]) -> _Order | tuple[()]:
        if not isinstance(state, _Order) or self.batch_size is None:
            return state
        position = state.position + self.batch_size
        over = position + self.batch_size > state.order.shape[0]
        epoch = state.epoch + over
        order = jax.lax.cond(over, lambda: self._shuffled(state.key, epoch), lambda: state.order)
        return _Order(order, jnp.where(over, 0, position), epoch, state.key)

    def _shuffled(self, key: Key[Array, ""], epoch: Int[Array, ""]) -> Int[Array, " n"]:
        """Of which rows each batch of an epoch is made, one batch after the other."""
        drawn = words.words(words.fold_in(key, epoch), self._rows)
        if self.shards is None or self.batch_size is None:
            return words.permutation(drawn)
        each = self.batch_size // self.shards
        batches = self._rows // self.shards // each
        parts = [piece(self._rows, i, self.shards) for i in range(self.shards)]
        orders = [p.start + words.permutation(drawn[p.start : p.stop]) for p in parts]
        return jnp.stack([x[: batches * each].reshape(batches, each) for x in orders], 1).ravel()

    def rows(self, batch: Batch, number: int, of: int) -> tuple[Batch, int]:
        if self.batch_size is not None and self.shards != of:
            raise ValueError(
                f"`Supervised(batch_size={self.batch_size}, shards={self.shards})`: {of} shards are wanted, and each "
                f"is to see its own rows of the data at every step. Give `shards={of}`."
            )
        if isinstance(batch, Told):
            raise ValueError("`Supervised`: its loss remembers whole batches, and pieces of them are wanted.")
        return AbstractProblem.rows(self, batch, number, of)

    def bare(self) -> "Supervised":
        return eqx.tree_at(lambda p: (p.data, p.params), self, (None, None), is_leaf=is_none)

    def batches(self) -> Any:
        return None if self.stream is None else self.stream.batches

    def domain(self, params: Params) -> PyTree:
        del params
        return self.domains


def _is_arrays(data: Any) -> bool:
    if callable(data) or isinstance(data, Iterator):
        return False
    leaves = jtu.tree_leaves(data)
    return bool(leaves) and all(eqx.is_array_like(x) for x in leaves)
