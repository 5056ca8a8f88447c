"""The evaluations of a run: what is sent once, what is sent with every step, and how the answers come together."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from nondiff.core.compiled import compiled
from nondiff.core.evaluator import AbstractEvaluator, about, together
from nondiff.core.problem import AbstractProblem, Batch
from nondiff.core.query import Evaluation, Query, is_query
from nondiff.core.tree import on_host
from nondiff.distributed.dispatch import Dispatch, Sent
from nondiff.distributed.dropped import Dropped
from nondiff.distributed.patience import Rules
from nondiff.distributed.pool import Pool
from nondiff.distributed.shipping import as_numpy, attach, detach, is_shipped
from nondiff.distributed.worker import Answer, Chunk, Code

MANY = 1e8
"""Random numbers of a population, above which each worker sums up its own."""


SMALL = 50_000
"""Bytes that go along with a call, which is sooner there than what is fetched from the store."""


class Plan(NamedTuple):
    """What shapes decide, once for all steps."""

    number: int
    """Of the code on the workers."""
    code: Any
    """A reference to it."""
    sizes: tuple[int, ...]
    """Of each query's chunks."""
    spread: list[bool]
    """Do the workers add up the draws of this query, since there are so many of them?"""


class _Asked(NamedTuple):
    """A query that is answered elsewhere."""

    number: int
    """Among all of the step."""
    place: int
    """Among those about the same rows, which are sent together."""
    plan: Plan
    sent: Sent
    count: int | None
    """Of its rows, if they are not all."""


class Session:
    """The workers, and the codes that they were sent."""

    def __init__(self, pool: Pool, rules: Rules, dropped: Dropped | None):
        self.pool, self.rules, self.dropped = pool, rules, dropped
        self.plans: dict[Any, Plan] = {}
        self.steps = itertools.count()

    def evaluate(
        self,
        local: AbstractEvaluator,
        problem: AbstractProblem,
        query: PyTree[Query],
        batch: Batch,
        sizes: Callable[[], tuple[int, ...]],
    ) -> PyTree[Evaluation]:
        """Queries on the workers, in chunks of these sizes, each with the rows that it is about; but those for a
        gradient of all the data here, beside them: they are one piece of work, and nearer here.
        """
        asked, treedef = jtu.tree_flatten(query, is_leaf=is_query)
        gradient = [q.wants.gradient or q.wants.mean_gradient for q in asked]
        far = [q.rows is not None or not g for q, g in zip(asked, gradient, strict=True)]
        if not any(far):
            return treedef.unflatten([_near(local, problem, q, batch) for q in asked])
        self.pool.refresh()
        groups = dict.fromkeys(q.rows for q, f in zip(asked, far, strict=True) if f)
        whole = on_host(batch) if any(groups) else batch  # so that a piece is no copy
        every: list[_Asked] = []
        for rows in groups:
            mine = [i for i, f in enumerate(far) if f and asked[i].rows == rows]
            piece, count = about(problem, asked[mine[0]], whole if rows else batch)
            sent = local, problem.bare(), [dataclasses.replace(asked[i], rows=None) for i in mine], piece
            plan, there = self._ship(sent, lambda mine=mine: tuple(sizes()[i] for i in mine))
            every += [_Asked(i, place, plan, there, count) for place, i in enumerate(mine)]
        chunks = [
            (a, Chunk(a.place, start, min(size, n - start), asked[a.number].rows))
            for a in sorted(every, key=lambda a: a.number)
            for size, n in [(a.plan.sizes[a.place], len(asked[a.number]))]
            for start in range(0, n, size)
        ]
        without = None if self.dropped is None else self.dropped.of(asked)
        sents, parts = [a.sent for a, _ in chunks], [chunk for _, chunk in chunks]
        dispatch = Dispatch(self.pool, self.rules, next(self.steps), sents, parts, without=without)
        answers = [None if f else _near(local, problem, q, batch) for q, f in zip(asked, far, strict=True)]
        found = list(zip(chunks, dispatch.run(), strict=True))
        if self.dropped is not None:
            self.dropped.note(asked, [i for i, (_, answer) in enumerate(found) if answer is None])
        for a in every:
            answers[a.number] = self._together(asked[a.number], a, [(c, part) for (b, c), part in found if b is a])
        return treedef.unflatten(answers)

    def _together(self, query: Query, asked: "_Asked", mine: list[tuple[Chunk, Answer | None]]) -> Evaluation:
        chunks, size = [chunk for chunk, _ in mine], asked.plan.sizes[asked.place]
        sums = functools.partial(self._sums, asked.sent, chunks) if asked.plan.spread[asked.place] else None
        answer = together(query, _evaluations(query, mine), chunk=size, sums=sums)
        if asked.count is None:
            return answer
        return dataclasses.replace(answer, rows=jnp.full(len(query), asked.count, jnp.float32))

    def _ship(self, tree: tuple[Any, ...], sizes: Callable[[], tuple[int, ...]]) -> tuple[Plan, Sent]:
        import ray

        leaves, treedef = jtu.tree_flatten(tree)
        kinds = tuple((x.shape, x.dtype) if is_shipped(x) else x for x in leaves)
        if (treedef, kinds) not in self.plans:
            code, spread = ray.put(Code(*detach(tree))), [_spread(q) for q in tree[2]]
            self.plans[treedef, kinds] = Plan(len(self.plans), code, sizes(), spread)
        plan = self.plans[treedef, kinds]
        arrays = [as_numpy(x) for x in leaves if is_shipped(x)]
        shared = arrays if sum(x.nbytes for x in arrays) < SMALL else ray.put(arrays)
        return plan, Sent(plan.number, plan.code, shared, type(tree[1]).__name__)

    def _sums(self, sent: Sent, chunks: list[Chunk], weights: Any) -> PyTree:
        """Those of each chunk, added in the order of the chunks, as where one process does it."""
        import ray

        there = ray.put(np.asarray(weights))
        every = [sent] * len(chunks)
        answers = Dispatch(self.pool, self.rules, next(self.steps), every, chunks, weights=there).run()
        parts = [_opened(answer) for answer in answers if answer]
        return jtu.tree_map(lambda *xs: functools.reduce(np.add, xs, np.zeros_like(xs[0])), *parts)


@compiled
def _near(local: AbstractEvaluator, problem: AbstractProblem, query: Query, batch: Batch) -> Evaluation:
    return local.evaluate(problem, query, batch)


def _opened(answer: Answer) -> Any:
    return attach(answer.pickled, answer.held, answer.arrays)


def _evaluations(query: Query, answers: list[tuple[Chunk, Answer | None]]) -> list[Evaluation]:
    """The members of a chunk that was dropped have no loss, and nothing to report."""
    there = [None if answer is None else _opened(answer) for _, answer in answers]
    some = next(evaluation for evaluation in there if evaluation is not None)

    def nothing(size: int) -> Evaluation:
        empty = jtu.tree_map(lambda x: np.zeros((size, *x.shape[1:]), x.dtype), some)
        gradient = jtu.tree_map(np.zeros_like, some.gradient) if query.wants.mean_gradient else empty.gradient
        return dataclasses.replace(empty, loss=np.full_like(empty.loss, np.nan), gradient=gradient)

    return [nothing(chunk.size) if e is None else e for (chunk, _), e in zip(answers, there, strict=True)]


def _spread(query: Query) -> bool:
    population = query.population
    first = jtu.tree_map(lambda x: x[0], population.each)
    with jax.enable_x64(True):  # a matter of shapes alone, and some populations are NumPy's of 64 bits
        drawn = jax.eval_shape(population.sampler.draw, population.shared, first)
    many = len(query) * sum(x.size for x in jtu.tree_leaves(drawn)) > MANY
    return query.weigh is not None and many and not population.sampler.hoist(population.shared, population.each)
