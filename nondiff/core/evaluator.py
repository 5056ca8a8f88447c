"""Where losses are computed, never what; and what the answer to a query is, member by member."""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Key, PyTree

from nondiff.core.chunk import fitting
from nondiff.core.compiled import ARRAYS, STEPS, Rest, apart, shapes_of, whole
from nondiff.core.exact import exactly, is_exact
from nondiff.core.problem import AbstractProblem, Batch
from nondiff.core.query import Evaluation, Query


class AbstractEvaluator(eqx.Module):
    """Answers queries. Two evaluators with the same `chunk` give the same answer, on the same kind of device."""

    @property
    @abc.abstractmethod
    def traceable(self) -> bool:
        """Does `evaluate` run under `jax.jit`?"""

    @abc.abstractmethod
    def evaluate(self, problem: AbstractProblem, query: PyTree[Query], batch: Batch) -> PyTree[Evaluation]:
        """The answers to all queries of a step at once, so that they may overlap; a tree like `query`."""

    @property
    def gradients(self) -> bool:
        """Does it answer queries that want one?"""
        return self.traceable

    def part(self, problem: AbstractProblem, query: Query, batch: Batch, start: Any, size: int) -> Evaluation:
        """Members `start .. start + size - 1` of one query, without sums: what a far worker does for `Ray`, with the
        bits that these members have in `evaluate`.
        """
        del problem, query, batch, start, size
        raise TypeError(f"`{type(self).__name__}` does not evaluate a part of a population.")

    def chunks(self, problem: AbstractProblem, query: PyTree[Query], batch: Batch) -> list[int]:
        """How many members of each query exist at once, from shapes alone; it decides the last bits, so a run keeps it.

        Default: nothing to keep.
        """
        del problem, query, batch
        return []


def measure(problem: AbstractProblem, query: Query, batch: Batch, drawn: PyTree, key: Key[Array, ""]) -> Evaluation:
    """The answer for one member: the meaning of a query, the same in this process and on a worker."""
    population, wants = query.population, query.wants
    batch, count = about(problem, query, batch)

    def total(member: PyTree) -> tuple[Array, tuple[Array, Array, Array, PyTree]]:
        value, aux = problem.loss(eqx.combine(member, query.others), batch, key=key)
        value = jnp.asarray(value)
        value = value.astype(jnp.promote_types(value.dtype, jnp.float32))
        loss = jnp.mean(value)
        penalty = query.penalty(member).astype(loss.dtype)
        return loss + penalty, (loss, penalty, value, aux)

    def run(member: PyTree) -> tuple[tuple[Array, Array, Array, PyTree], PyTree]:
        if wants.gradient or wants.mean_gradient:
            (_, out), gradient = eqx.filter_value_and_grad(total, has_aux=True)(member)
            return out, gradient
        return total(member)[1], None

    (loss, penalty, value, aux), gradient = population.sampler.apply(run, population.shared, drawn)
    if gradient is not None:
        # An evaluation whose gradient is not finite has failed, too: a step along it would lose the parameters.
        finite = [jnp.all(jnp.isfinite(g)) for g in jtu.tree_leaves(gradient)]
        loss = jnp.where(jnp.all(jnp.stack(finite)), loss, jnp.nan) if finite else loss
    rows = None if count is None else jnp.full((), count, jnp.float32)
    computed = None if wants.compute is None else wants.compute(population.shared, drawn, batch, key)
    cases = value if wants.cases else None
    return Evaluation(loss, penalty, cases, gradient, rows=rows, aux=aux, computed=computed)


def about(problem: AbstractProblem, query: Query, batch: Batch) -> tuple[Batch, int | None]:
    """The part of the batch that a query is about, and its number of rows if it is not all of it."""
    return (batch, None) if query.rows is None else type(problem).rows(problem, batch, *query.rows)


def sweep(
    problem: AbstractProblem, query: Query, batch: Batch, *, chunk: int | None = None, held: bool | None = None
) -> Evaluation:
    """Every member, `chunk` at a time, under `jit`. `chunk` is part of the experiment: another width, other bits; and
    so is whether all draws are held, or made again chunk by chunk.
    """
    query = dataclasses.replace(query, population=query.population.hoisted(held))
    chunk = chunk_of(problem, query, batch) if chunk is None else chunk
    population, n = query.population, len(query)

    def many(each: PyTree, keys: Key[Array, " chunk"]) -> tuple[PyTree, Evaluation]:
        drawn = population.sampler.draws(population.shared, each)
        if keys.shape[0] == 1:  # the gradient of one model is not made into a batch of one
            answer = measure(problem, query, batch, *jtu.tree_map(lambda x: x[0], (drawn, keys)))
            answer = jtu.tree_map(lambda x: x[None], answer)
        else:
            answer = jax.vmap(lambda d, k: measure(problem, query, batch, d, k))(drawn, keys)
        if not query.wants.mean_gradient:
            return None, answer
        return _sum_over_finite(answer), dataclasses.replace(answer, gradient=None)

    xs = (population.each, query.keys)
    total, answer = many(*xs) if chunk >= n else _in_chunks(many, xs, n, chunk, query.wants.mean_gradient)
    if query.wants.mean_gradient:
        count = jnp.maximum(jnp.sum(jnp.isfinite(answer.loss)), 1)
        answer = dataclasses.replace(answer, gradient=jtu.tree_map(lambda g: g / count.astype(g.dtype), total))
    return weigh(query, answer, chunk=chunk)


def chunks_of(
    problem: AbstractProblem, evaluator: AbstractEvaluator, query: PyTree[Query], batch: Batch
) -> tuple[int, ...]:
    """`evaluator.chunks` of arrays or of shapes alone; what it traces is dropped."""
    return tuple(shapes_of(type(evaluator).chunks, evaluator, problem, query, batch))


def chunk_of(problem: AbstractProblem, query: Query, batch: Batch) -> int:
    """The chunk of `sweep` where none is given: a function of shapes and platform."""
    arrays, key = apart((problem, query, batch), (*ARRAYS, jax.ShapeDtypeStruct))
    kinds = [jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=getattr(x, "weak_type", False)) for x in arrays]
    return _chunk(tuple(kinds), *key)


@functools.lru_cache(maxsize=STEPS)
def _chunk(arrays: tuple[jax.ShapeDtypeStruct, ...], treedef: Any, static: tuple[Any, ...], kinds: Any) -> int:
    """Remembered: whoever asks before a run asks again in the step, and to know it a member's work is traced."""
    del kinds  # for the cache: 1, 1.0 and True are equal

    def chunk(problem: AbstractProblem, query: Query, batch: Batch) -> int:
        population = query.population.hoisted()

        def one(each: PyTree, key: Key[Array, ""]) -> Any:
            return measure(problem, query, batch, population.sampler.draw(population.shared, each), key)

        first = jtu.tree_map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), (population.each, query.keys))
        return fitting(len(query), one, *first)

    return shapes_of(chunk, *whole(list(arrays), Rest(treedef, static)))


def _in_chunks(many: Any, xs: tuple[PyTree, Array], n: int, chunk: int, summed: bool) -> tuple[PyTree, Evaluation]:
    """`jax.lax.map(batch_size=)` for a function of whole chunks, with a running total beside the answers if they are
    `summed`.
    """
    whole = n - n % chunk
    head = jtu.tree_map(lambda x: x[:whole].reshape(whole // chunk, chunk, *x.shape[1:]), xs)
    zero = None
    if summed:
        shapes, _ = eqx.filter_eval_shape(many, *jtu.tree_map(lambda x: x[0], head))
        zero = jtu.tree_map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def body(total: PyTree, part: tuple[PyTree, Array]) -> tuple[PyTree, Evaluation]:
        more, answer = many(*part)
        return jtu.tree_map(jnp.add, total, more), answer

    total, out = jax.lax.scan(body, zero, head)
    out = jtu.tree_map(lambda x: x.reshape(whole, *x.shape[2:]), out)
    if whole == n:
        return total, out
    more, rest = many(*jtu.tree_map(lambda x: x[whole:], xs))
    joined = jtu.tree_map(lambda a, b: jnp.concatenate([a, b]), out, rest)
    return jtu.tree_map(jnp.add, total, more), joined


def _sum_over_finite(answer: Evaluation) -> PyTree:
    ok = jnp.isfinite(answer.loss)

    def add(g: Array) -> Array:
        return jnp.sum(jnp.where(ok.reshape(-1, *[1] * (g.ndim - 1)), g, 0), 0)

    return jtu.tree_map(add, answer.gradient)


def part(problem: AbstractProblem, query: Query, batch: Batch, start: Any, size: int) -> Evaluation:
    """One chunk of `sweep`, alone; without sums."""
    population = query.population
    held = population.sampler.hoist(population.shared, population.each)  # of all of them, as where they are together
    keys = jax.lax.dynamic_slice_in_dim(query.keys, start, size)
    query = dataclasses.replace(query, population=population.span(start, size), keys=keys, weigh=None)
    return sweep(problem, query, batch, chunk=size, held=held)


def weigh(query: Query, answer: Evaluation, *, chunk: int) -> Evaluation:
    """The answer with the weighted sums that the query asks for."""
    if query.weigh is None:
        return answer
    return dataclasses.replace(answer, sums=query.population.sums(_weights(query, answer), chunk=chunk))


def _weights(query: Query, answer: Evaluation) -> Array:
    assert query.weigh is not None
    return query.weigh(jnp.asarray(answer.total))


_weigh_apart, _weights_apart = exactly(weigh), exactly(_weights)


def _mean_of(parts: list[Evaluation]) -> PyTree:
    """The mean gradient of all chunks, from each chunk's; failed members are in none."""
    counts = np.array([np.isfinite(part.loss).sum() for part in parts])
    shares = counts / max(counts.sum(), 1)

    def mean(*xs: np.ndarray) -> np.ndarray:
        return sum((x * x.dtype.type(s) for x, s in zip(xs, shares, strict=True)), np.zeros_like(xs[0]))

    return jtu.tree_map(mean, *[part.gradient for part in parts])


def together(
    query: Query, parts: list[Evaluation], *, chunk: int, sums: Callable[[Array], PyTree] | None = None
) -> Evaluation:
    """The answer to a query from those to its chunks, which are NumPy's arrays; `sums` of the weights, if not here."""
    gradient = _mean_of(parts) if query.wants.mean_gradient else None
    if query.wants.mean_gradient:
        parts = [dataclasses.replace(part, gradient=None) for part in parts]
    answer = jtu.tree_map(lambda *xs: np.concatenate(xs), *parts)
    answer = answer if gradient is None else dataclasses.replace(answer, gradient=gradient)
    aux = jtu.tree_map(jnp.asarray, answer.aux)
    if not is_exact(answer.loss):
        answer = jtu.tree_map(jnp.asarray, answer)
    answer = dataclasses.replace(answer, aux=aux)
    if query.weigh is None:
        return answer
    if sums is None:
        return _weigh_apart(query, answer, chunk=chunk)
    return dataclasses.replace(answer, sums=sums(_weights_apart(query, answer)))
