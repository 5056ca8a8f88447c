"""Penalties: a quadratic in the query is added, ranked and differentiated together with the loss."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax

import nondiff
from nondiff.core.query import map_queries


class Pulled(nondiff.AbstractTrainer):
    """`inner`, with every member pulled towards `target`."""

    inner: nondiff.AbstractTrainer
    target: Any
    rho: float = eqx.field(static=True)

    @property
    def traceable(self) -> bool:
        return self.inner.traceable

    def init(self, params, domain, *, key):
        return self.inner.init(params, domain, key=key)

    def ask(self, state, *, key):
        quadratic = nondiff.Quadratic(self.target, jnp.asarray(self.rho))

        def pull(query):
            return dataclasses.replace(query, quadratic=(*query.quadratic, quadratic))

        return map_queries(pull, self.inner.ask(state, key=key))

    def tell(self, state, query, answer, *, key):
        return self.inner.tell(state, query, answer, key=key)

    def params(self, state):
        return self.inner.params(state)


X0 = {"a": jnp.array([1.0, -2.0]), "b": jnp.array(0.5)}
TARGET = {"a": jnp.array([3.0, 3.0]), "b": None}


def cost(x: dict[str, jax.Array]) -> jax.Array:
    return jnp.sum(jnp.sin(x["a"])) + x["b"] ** 2


PROBLEM = nondiff.BlackBox(cost, X0)


def answer(trainer: nondiff.AbstractTrainer, chunk: int = 32) -> tuple[nondiff.Query, nondiff.Evaluation]:
    state = nondiff.init(PROBLEM, trainer, key=jr.key(0))
    query = trainer.ask(state.trainer, key=jr.key(1))
    return query, jax.jit(nondiff.Vmap(chunk).evaluate)(PROBLEM, query, ())


def test_quadratic_is_the_formula_and_skips_what_is_not_mine() -> None:
    q = nondiff.Quadratic(TARGET, jnp.asarray(4.0))
    assert q(X0) == 0.5 * 4.0 * ((1 - 3) ** 2 + (-2 - 3) ** 2)
    assert q({"a": None, "b": jnp.array(9.0)}) == 0.0
    assert nondiff.Quadratic({"a": None, "b": None}, jnp.asarray(4.0))(X0) == 0.0


def test_penalties_of_a_population_by_hand() -> None:
    trainer = Pulled(Pulled(nondiff.Genetic(population=6), TARGET, 0.5), {"a": None, "b": jnp.array(1.0)}, 3.0)
    query, got = answer(trainer, chunk=4)
    members = query.population.take(jnp.arange(6))
    a, b = np.asarray(members["a"]), np.asarray(members["b"])
    penalty = 0.25 * ((a - 3.0) ** 2).sum(1) + 1.5 * (b - 1.0) ** 2
    loss = np.sin(a).sum(1) + b**2
    np.testing.assert_allclose(got.penalty, penalty, rtol=1e-5)
    np.testing.assert_allclose(got.loss, loss, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got.total, loss + penalty, rtol=1e-5)


def test_the_gradient_is_that_of_the_total() -> None:
    _, got = answer(Pulled(nondiff.Backprop(optax.sgd(0.1)), TARGET, 2.0))
    np.testing.assert_allclose(got.loss, [np.sin([1.0, -2.0]).sum() + 0.25], rtol=1e-5)
    np.testing.assert_allclose(got.penalty, [29.0], rtol=1e-6)
    np.testing.assert_allclose(got.gradient["a"], np.cos([1.0, -2.0]) + 2.0 * (np.array([1.0, -2.0]) - 3.0), rtol=1e-5)
    np.testing.assert_allclose(got.gradient["b"], 1.0, rtol=1e-6)


def test_ranks_and_sums_see_the_total() -> None:
    query, got = answer(Pulled(nondiff.OpenES(optax.sgd(1.0), sigma=0.1, population=8), TARGET, 1e4))
    weights = nondiff.CentredRanks()(got.total)
    assert not np.array_equal(weights, nondiff.CentredRanks()(got.loss))
    for name in ("a", "b"):
        np.testing.assert_allclose(got.sums.first[name], query.population.sums(weights, chunk=8).first[name], rtol=1e-5)


def test_a_huge_quadratic_pulls_the_centre_to_its_target() -> None:
    es = nondiff.OpenES(optax.adam(optax.cosine_decay_schedule(0.3, 150)), sigma=0.1, population=16)
    pulled = nondiff.fit(PROBLEM, Pulled(es, TARGET, 1e4), steps=150, key=jr.key(0))
    np.testing.assert_allclose(pulled.params["a"], [3.0, 3.0], atol=0.1)
    free = nondiff.fit(PROBLEM, es, steps=150, key=jr.key(0))
    assert np.abs(np.asarray(free.params["a"]) - 3.0).max() > 1.0


def test_the_metrics_report_the_loss_without_the_penalty() -> None:
    result = nondiff.fit(PROBLEM, Pulled(nondiff.Backprop(optax.sgd(1e-9)), TARGET, 2.0), steps=1, key=jr.key(0))
    assert abs(result.loss - float(cost(X0))) < 1e-6


def test_failures_are_ranked_last() -> None:
    values = jnp.array([1.0, jnp.nan, -jnp.inf, 0.0])
    got = nondiff.Evaluation(values, jnp.ones(4))
    np.testing.assert_array_equal(got.ranked, [2.0, np.inf, np.inf, 1.0])
