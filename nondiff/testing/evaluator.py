"""The contract of an evaluator, as a test."""

import dataclasses
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Key, PyTree

from nondiff.core.evaluator import AbstractEvaluator, measure
from nondiff.core.population import AbstractSampler, Population
from nondiff.core.query import AbstractWeighting, Query, Rows, Wants
from nondiff.testing.common import Parabola


def check_evaluator(evaluator: AbstractEvaluator) -> None:
    """Does an evaluator keep the contract?

    Its answers are compared with the members measured one by one: order, keys, penalties, cases, failures, weighted
    sums, the aux of the problem, what sub-steps compute, pieces of the batch, populations of one and of a number that
    no chunk divides, several queries at once; and gradients, if it gives them.

    >>> import nondiff
    >>> check_evaluator(nondiff.Vmap(chunk=4))
    """
    problem = Parabola(noise=0.1)
    for size in (1, 2, 7, 33):
        kinds = (Wants(cases=True, compute=_sub_step), Wants(gradient=True), Wants(mean_gradient=True))
        for wants in kinds:
            if (wants.gradient or wants.mean_gradient) and not evaluator.gradients:
                continue
            _check_answer(evaluator, problem, _query(size, wants))
    for rows in (Rows(0, 2), Rows(1, 2)):
        wants = Wants(mean_gradient=evaluator.gradients)
        _check_answer(evaluator, problem, dataclasses.replace(_query(7, wants), rows=rows))
    both = {"a": _query(5, Wants()), "b": _query(3, Wants())}
    answer = _evaluate(evaluator, problem, both)
    assert set(answer) == {"a", "b"} and [len(answer[k].loss) for k in "ab"] == [5, 3], (
        "several queries are not answered by a tree like theirs"
    )


class _RandomWeights(AbstractWeighting):
    def __call__(self, losses: Array) -> Array:
        return jnp.where(jnp.isfinite(losses), losses - 1.0, 0.5)


class _Cloud(AbstractSampler):
    """Points that can also be summed."""

    held: bool = eqx.field(static=True)

    def hoist(self, shared: PyTree, each: PyTree) -> bool:
        del shared, each
        return self.held

    def draw(self, shared: PyTree, each: PyTree) -> PyTree:
        return jtu.tree_map(lambda c, x: c + x, shared, each)

    def build(self, shared: PyTree, drawn: PyTree) -> PyTree:
        del shared
        return drawn

    def sums(self, shared: PyTree, drawn: PyTree, weights: Array) -> PyTree:
        return jtu.tree_map(lambda c, x: jnp.tensordot(weights, x - c, 1), shared, drawn)


def _sub_step(shared: PyTree, own: PyTree, batch: PyTree, key: Key[Array, ""]) -> PyTree:
    """It tells apart all that it is given."""
    return {"sum": shared["a"] + 2.0 * own["a"], "draw": batch * jr.uniform(key)}


def _query(size: int, wants: Wants) -> Query:
    each = {"a": jr.normal(jr.key(size), (size, 2)), "b": None}
    others = {"a": None, "b": {"w": jnp.ones((2, 3))}}
    keys = jr.split(jr.key(7), size)
    population = Population({"a": jnp.ones(2), "b": None}, each, _Cloud(size % 2 == 0))
    return Query(population, others, keys, weigh=_RandomWeights(), wants=wants)


def _evaluate(evaluator: Any, problem: Any, query: PyTree) -> PyTree:
    batch = problem.batch((), key=jr.key(0))
    run = eqx.filter_jit(evaluator.evaluate) if evaluator.traceable else evaluator.evaluate
    return run(problem, query, batch)


def _check_answer(evaluator: AbstractEvaluator, problem: Parabola, query: Query) -> None:
    size = len(query)
    failing = Parabola(noise=0.1, fail=_above_one) if size > 2 else problem
    answer = _evaluate(evaluator, failing, query)
    drawn = query.population.sampler.draws(query.population.shared, query.population.each)
    one = eqx.filter_jit(lambda d, k: measure(failing, query, failing.target, d, k))
    parts = [one(jtu.tree_map(lambda x: x[i], drawn), query.keys[i]) for i in range(size)]

    def close(got: Any, expected: Any, what: str) -> None:
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5, err_msg=f"population {size}: {what}")

    close(answer.loss, [p.loss for p in parts], "losses, by place and key; NaN where the evaluation failed")
    close(answer.penalty, [p.penalty for p in parts], "penalties")
    assert (answer.rows is None) == (query.rows is None), "`rows` belong to queries about a piece of the batch alone"
    if query.rows is not None:
        close(answer.rows, [p.rows for p in parts], "the numbers of rows")
    close(answer.aux, [p.aux for p in parts], "the problem's aux")
    if query.wants.compute is not None:
        for name, got in answer.computed.items():
            close(got, [p.computed[name] for p in parts], f"what a sub-step computed, {name}")
    if query.wants.cases:
        close(answer.cases, [p.cases for p in parts], "losses per case")
    gradients = np.stack([_own(p.gradient) for p in parts])
    if query.wants.gradient:
        close(answer.gradient["a"], gradients, "gradients of the members")
    if query.wants.mean_gradient:
        ok = np.isfinite([p.loss for p in parts])
        close(answer.gradient["a"], gradients[ok].mean(0) if ok.any() else 0.0, "the mean gradient, failures left out")
    weights = _RandomWeights()(jnp.stack([p.total for p in parts]))
    members = query.population.take(jnp.arange(size))["a"]
    close(answer.sums["a"], jnp.tensordot(weights, members - 1.0, 1), "weighted sums")


def _own(gradient: PyTree) -> Any:
    return 0.0 if gradient is None else gradient["a"]


def _above_one(key: Key[Array, ""], x: Array) -> Array:
    del key
    return x > 1.5
