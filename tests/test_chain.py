"""Chains: the same bits as the model written by hand, a program at the end and in the middle, any trainer per stage."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax
import pytest
from helpers import ESTIMATORS
from tiers import slow_but

import nondiff as nd

CASES, PARTS, N = 6, 2, 3
X = jr.normal(jr.key(0), (CASES, PARTS, 4))
ANSWERS = jnp.array([0, 1, 2, 3, 4, 2])
ADD = nd.Opaque(lambda s: int(s.sum()), jax.ShapeDtypeStruct((), jnp.int32))
SORT = nd.Opaque(np.sort, jax.ShapeDtypeStruct((PARTS,), jnp.int32))


def matrix(shape: tuple[int, ...]) -> Any:
    return lambda key: {"w": jr.normal(key, shape)}


def times(params: Any, x: Any) -> Any:
    return x @ params["w"]


def judge(params: Any, x: Any) -> Any:
    """Sorted symbols to a score of each of five answers."""
    return jax.nn.one_hot(x, N).reshape(x.shape[0], -1) @ params["w"]


def wrong(output: Any, answers: Any) -> Any:
    return (output != answers).astype(float)


def surprise(output: Any, answers: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(output, answers)


def at_the_end(via: nd.AbstractEstimator) -> nd.Chain:
    return nd.Chain(
        {
            "open": nd.Layer(times, matrix((4, 4))),
            "bend": nd.Layer(lambda params, x: jnp.tanh(x)),
            "read": nd.Layer(times, matrix((4, N))),
            "add": nd.Decision(ADD, via=via),
        }
    )


def in_the_middle(via: nd.AbstractEstimator) -> nd.Chain:
    return nd.Chain(
        {
            "read": nd.Layer(times, matrix((4, N))),
            "sort": nd.Decision(SORT, via=via),
            "judge": nd.Layer(judge, matrix((PARTS * N, 5))),
        }
    )


@pytest.mark.parametrize("via", [nd.Tabulate(), nd.MarginalLikelihood(5), nd.Smoothing(3)], ids=repr)
def test_a_program_at_the_end_is_through_written_by_hand(via: nd.AbstractEstimator) -> None:
    chain = at_the_end(via)
    params = chain.init(jr.key(1))
    assert list(params) == ["open", "bend", "read", "add"]
    assert params["bend"] == () and jtu.tree_leaves(params["add"]) == []

    def by_hand(params: Any, key: Any) -> Any:
        logits = jnp.tanh(X @ params["open"]["w"]) @ params["read"]["w"]
        k_here, _ = jr.split(key)
        return nd.through(lambda s: wrong(ADD(s), ANSWERS), logits, via=via, key=k_here).sum()

    loss = chain.loss(wrong)
    got = jax.jit(jax.value_and_grad(lambda p, k: loss(p, (X, ANSWERS), k).sum()))(params, jr.key(2))
    expected = jax.jit(jax.value_and_grad(by_hand))(params, jr.key(2))
    for a, b in zip(jtu.tree_leaves(got), jtu.tree_leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)
    logits = jnp.tanh(X @ params["open"]["w"]) @ params["read"]["w"]
    np.testing.assert_array_equal(chain(params, X), logits.argmax(-1).sum(-1))
    assert any(np.abs(g).max() > 0 for g in jtu.tree_leaves(got[1]))


def test_a_program_in_the_middle_gives_the_stage_behind_it_its_own_derivative() -> None:
    chain = in_the_middle(nd.Tabulate(objective=nd.ExpectedLoss()))
    params = chain.init(jr.key(1))
    slope = jax.grad(lambda p: chain.loss(surprise)(p, (X, ANSWERS), jr.key(2)).sum())(params)

    symbols = np.sort(np.asarray(jnp.argmax(X @ params["read"]["w"], -1)), -1)
    behind = jax.grad(lambda p: surprise(judge(p, jnp.asarray(symbols)), ANSWERS).sum())(params["judge"])
    np.testing.assert_allclose(slope["judge"]["w"], behind["w"], rtol=1e-5, atol=1e-6)

    def expected(read: Any) -> Any:  # over all pairs of symbols
        p = jax.nn.softmax(X @ read["w"])
        total = 0.0
        for a in range(N):
            for b in range(N):
                ordered = jnp.broadcast_to(jnp.array(sorted((a, b))), (CASES, PARTS))
                total += (p[:, 0, a] * p[:, 1, b] * surprise(judge(params["judge"], ordered), ANSWERS)).sum()
        return total

    np.testing.assert_allclose(slope["read"]["w"], jax.grad(expected)(params["read"])["w"], rtol=1e-4, atol=1e-5)


def test_two_decisions_one_behind_the_other() -> None:
    """The second estimator works inside what the first one tries."""
    chain = nd.Chain(
        {
            "read": nd.Layer(times, matrix((4, N))),
            "sort": nd.Decision(SORT, via=nd.MarginalLikelihood(4)),
            "judge": nd.Layer(judge, matrix((PARTS * N, 5))),
            "choose": nd.Decision(lambda s: s, via=nd.Tabulate()),
        }
    )
    params, loss = chain.init(jr.key(1)), chain.loss(wrong)
    value, slope = jax.jit(jax.value_and_grad(lambda p: loss(p, (X, ANSWERS), jr.key(2)).sum()))(params)
    assert value == (np.asarray(chain(params, X)) != ANSWERS).sum()
    symbols = jnp.asarray(np.sort(np.asarray(jnp.argmax(X @ params["read"]["w"], -1)), -1))
    alone = jax.grad(lambda p: surprise(judge(p, symbols), ANSWERS).sum())(params["judge"])  # -log P(right), exactly
    np.testing.assert_allclose(slope["judge"]["w"], alone["w"], rtol=1e-4, atol=1e-5)


def test_a_learned_estimator_has_its_leaves_in_the_chains_parameters() -> None:
    net = nd.LossModel(PARTS, N, context=1, width=8, key=jr.key(0))
    chain = at_the_end(nd.Surrogate(net, samples=2))
    params = chain.init(jr.key(1))
    assert sum(x.size for x in jtu.tree_leaves(params["add"])) == 8 * (PARTS * N + 1) + 8 + 8 + 1
    slope = jax.grad(lambda p: chain.loss(wrong)(p, (X, ANSWERS), jr.key(2)).sum())(params)
    assert all(np.abs(g).max() > 0 for g in jtu.tree_leaves(slope))


def split(chain: nd.Chain) -> nd.Split:
    """The first layer by a search of low rank, everything else by the gradient."""
    labels = {name: "search" if name == "open" else "slope" for name in chain.stages}
    trainers = {
        "search": nd.OpenES(optax.sgd(0.1), sigma=0.5, population=8, rank=1),
        "slope": nd.Backprop(optax.sgd(0.1)),
    }
    return nd.Split(trainers, labels)


def after_a_step(chain: nd.Chain, loss: Any) -> Any:
    params = {k: v for k, v in chain.init(jr.key(1)).items() if jtu.tree_leaves(v)}
    problem = nd.Supervised(
        lambda p, batch, key: loss({"bend": (), "add": None, **p}, batch, key), (X, ANSWERS), params=params
    )
    trainer = nd.Split(split(chain).trainers, {k: "search" if k == "open" else "slope" for k in params})
    return nd.fit(problem, trainer, steps=1, key=jr.key(3)).params


@functools.cache
def after_a_hard_step() -> Any:
    hard = at_the_end(nd.Tabulate())
    return after_a_step(hard, lambda p, batch, key: wrong(hard(p, batch[0]), batch[1]))


@pytest.mark.parametrize("name", slow_but(ESTIMATORS, "marginal_likelihood"))
def test_a_search_sees_the_true_loss_beside_every_estimator(name: str) -> None:
    """Its leaves move as they do where nothing but the hard decision is computed."""
    chain = at_the_end(ESTIMATORS[name])
    got, expected = after_a_step(chain, chain.loss(wrong)), after_a_hard_step()
    np.testing.assert_allclose(got["open"]["w"], expected["open"]["w"], rtol=1e-5, atol=1e-6)
    start = chain.init(jr.key(1))
    assert np.abs(np.asarray(got["open"]["w"] - start["open"]["w"])).max() > 0
    assert np.abs(np.asarray(got["read"]["w"] - start["read"]["w"])).max() > 0
    np.testing.assert_array_equal(expected["read"]["w"], start["read"]["w"])  # a hard decision has no slope


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nd.Chain({}), r"`Chain\({}\)`: expected at least one stage"),
        (lambda: nd.Chain({"add": ADD}), r"expected a name and a `Layer` or a `Decision`"),  # pyright: ignore[reportArgumentType]
        (lambda: nd.Layer("relu"), r"`Layer\(apply='relu'\)`: expected a function"),  # pyright: ignore[reportArgumentType]
        (lambda: nd.Decision(3, via=nd.Auto()), r"`Decision\(program=3\)`: expected a function"),  # pyright: ignore[reportArgumentType]
        (lambda: nd.Decision(ADD, via="auto"), r"`Decision\(via='auto'\)`: expected an estimator"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_what_cannot_be_built(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
