"""The evaluations of a run: what is sent once, what is sent with every step, and how the answers come together."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from nondiff.core.evaluator import AbstractEvaluator, together
from nondiff.core.problem import AbstractProblem, Batch
from nondiff.core.query import Evaluation, Query, is_query
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
        """Queries without gradients on the workers, in chunks of these sizes; the others here, beside them."""
        asked, treedef = jtu.tree_flatten(query, is_leaf=is_query)
        far = [not (q.wants.gradient or q.wants.mean_gradient) for q in asked]
        if not any(far):
            return treedef.unflatten([_near(local, problem, q, batch) for q in asked])
        self.pool.refresh()
        sent = local, problem, [q if f else None for q, f in zip(asked, far, strict=True)], batch
        plan, there = self._ship(sent, sizes)
        chunks = [
            Chunk(i, start, min(size, len(q) - start))
            for i, (q, size) in enumerate(zip(asked, plan.sizes, strict=True))
            if far[i]
            for start in range(0, len(q), size)
        ]
        without = None if self.dropped is None else self.dropped.of(asked)
        dispatch = Dispatch(self.pool, self.rules, next(self.steps), there, chunks, without=without)
        near = [None if f else _near(local, problem, q, batch) for q, f in zip(asked, far, strict=True)]
        found = list(zip(chunks, dispatch.run(), strict=True))
        if self.dropped is not None:
            self.dropped.note(asked, [i for i, (_, answer) in enumerate(found) if answer is None])

        def answer(i: int) -> Evaluation | None:
            mine = [(chunk, part) for chunk, part in found if chunk.query == i]
            sums = functools.partial(self._sums, there, [chunk for chunk, _ in mine]) if plan.spread[i] else None
            return together(asked[i], _evaluations(mine), chunk=plan.sizes[i], sums=sums)

        return treedef.unflatten([answer(i) if far[i] else near[i] for i in range(len(asked))])

    def _ship(self, tree: tuple[Any, ...], sizes: Callable[[], tuple[int, ...]]) -> tuple[Plan, Sent]:
        import ray

        leaves, treedef = jtu.tree_flatten(tree)
        kinds = tuple((x.shape, x.dtype) if is_shipped(x) else x for x in leaves)
        if (treedef, kinds) not in self.plans:
            code, spread = ray.put(Code(*detach(tree))), [q is not None and _spread(q) for q in tree[2]]
            self.plans[treedef, kinds] = Plan(len(self.plans), code, sizes(), spread)
        plan = self.plans[treedef, kinds]
        arrays = [as_numpy(x) for x in leaves if is_shipped(x)]
        shared = arrays if sum(x.nbytes for x in arrays) < SMALL else ray.put(arrays)
        return plan, Sent(plan.number, plan.code, shared, type(tree[1]).__name__)

    def _sums(self, sent: Sent, chunks: list[Chunk], weights: Any) -> PyTree:
        """Those of each chunk, added in the order of the chunks, as where one process does it."""
        import ray

        there = ray.put(np.asarray(weights))
        answers = Dispatch(self.pool, self.rules, next(self.steps), sent, chunks, weights=there).run()
        parts = [_opened(answer) for answer in answers if answer]
        return jtu.tree_map(lambda *xs: functools.reduce(np.add, xs, np.zeros_like(xs[0])), *parts)


@eqx.filter_jit
def _near(local: AbstractEvaluator, problem: AbstractProblem, query: Query, batch: Batch) -> Evaluation:
    return local.evaluate(problem, query, batch)


def _opened(answer: Answer) -> Any:
    return attach(answer.pickled, answer.held, answer.arrays)


def _evaluations(answers: list[tuple[Chunk, Answer | None]]) -> list[Evaluation]:
    """The members of a chunk that was dropped have no loss, and nothing to report."""
    there = [None if answer is None else _opened(answer) for _, answer in answers]
    some = next(evaluation for evaluation in there if evaluation is not None)

    def nothing(size: int) -> Evaluation:
        empty = jtu.tree_map(lambda x: np.zeros((size, *x.shape[1:]), x.dtype), some)
        return dataclasses.replace(empty, loss=np.full_like(empty.loss, np.nan))

    return [nothing(chunk.size) if e is None else e for (chunk, _), e in zip(answers, there, strict=True)]


def _spread(query: Query) -> bool:
    population = query.population
    first = jtu.tree_map(lambda x: x[0], population.each)
    with jax.enable_x64(True):  # a matter of shapes alone, and some populations are NumPy's of 64 bits
        drawn = jax.eval_shape(population.sampler.draw, population.shared, first)
    many = len(query) * sum(x.size for x in jtu.tree_leaves(drawn)) > MANY
    return query.weigh is not None and many and not population.sampler.hoist(population.shared, population.each)
