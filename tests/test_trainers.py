"""Each trainer against a second implementation, a formula or an enumeration."""

import dataclasses
import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax
import pytest

import nondiff as nd
from nondiff import BlackBox, Categorical, Integer, Real
from nondiff.core import words
from nondiff.testing import count_compilations

D = 4
CENTRE = jnp.array([1.0, -2.0, 0.5, 3.0])
A = jnp.array([1.0, 0.3, 2.0, 0.1])


def quadratic(x: jax.Array) -> jax.Array:
    return 0.5 * jnp.sum(A * x**2)


QUADRATIC = BlackBox(quadratic, CENTRE)


def ask(problem: nd.AbstractProblem, trainer: nd.AbstractTrainer, *, chunk: int = 32) -> tuple[Any, Any, Any]:
    """State, query and answer of a first step."""
    state = nd.init(problem, trainer, key=jr.key(0)).trainer
    query = trainer.ask(state, key=jr.key(1))
    return state, query, jax.jit(nd.Vmap(chunk).evaluate)(problem, query, ())


def asked(problem: nd.AbstractProblem, trainer: nd.AbstractTrainer) -> tuple[Any, Any]:
    """State and query of a first step."""
    state = nd.init(problem, trainer, key=jr.key(0)).trainer
    return state, trainer.ask(state, key=jr.key(1))


def members_of(query: nd.Query) -> Any:
    return jtu.tree_map(np.asarray, jax.jit(lambda q: q.population.take(jnp.arange(len(q))))(query))


# Backprop


def test_backprop_is_the_optax_loop() -> None:
    optimizer = optax.adam(optax.cosine_decay_schedule(0.1, 30))
    result = nd.fit(QUADRATIC, nd.Backprop(optimizer), steps=30, key=jr.key(0))
    x, state = CENTRE, optimizer.init(CENTRE)

    @jax.jit
    def update(x: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        updates, state = optimizer.update(jax.grad(quadratic)(x), state, x)
        return optax.apply_updates(x, updates), state

    for _ in range(30):
        x, state = update(x, state)
    np.testing.assert_allclose(result.params, x, rtol=1e-6)


def test_backprop_keeps_bounds_by_projection() -> None:
    problem = BlackBox(quadratic, CENTRE, domain=Real(np.array([0.5, -3.0, -3.0, 0.0]), 4.0))
    result = nd.fit(problem, nd.Backprop(optax.sgd(0.4)), steps=60, key=jr.key(0))
    np.testing.assert_allclose(result.params, [0.5, 0.0, 0.0, 3.0 * 0.96**60], atol=2e-3)
    assert result.params[0] == 0.5


def test_backprop_averages_its_samples() -> None:
    def noisy(x: jax.Array, batch: Any, key: jax.Array) -> jax.Array:
        return jnp.sum(x * jr.normal(key, x.shape))

    problem = nd.Supervised(noisy, jnp.zeros(1), params=jnp.zeros(D))
    for chunk in (1, 3, 4):
        _, query, answer = ask(problem, nd.Backprop(optax.sgd(1.0), samples=4), chunk=chunk)
        draws = np.stack([jr.normal(k, (D,)) for k in query.keys])
        assert len(np.unique(draws[:, 0])) == 4
        np.testing.assert_allclose(answer.gradient, draws.mean(0), rtol=1e-5, atol=1e-6)


# OpenES


def centred_ranks(losses: np.ndarray) -> np.ndarray:
    """Mean ranks by counting: how many are below, and half of those that tie."""
    losses = np.where(np.isfinite(losses), losses, np.inf)
    ranks = np.array([(losses < x).sum() + ((losses == x).sum() - 1) / 2 for x in losses])
    return ranks / (len(losses) - 1) - 0.5


@pytest.mark.parametrize("antithetic", [True, False])
def test_open_es_gradient_is_the_weighted_sum_of_the_members_noise(antithetic: bool) -> None:
    trainer = nd.OpenES(optax.sgd(1.0), sigma=0.3, population=10, antithetic=antithetic)
    state, query, answer = ask(QUADRATIC, trainer)
    members = members_of(query)
    np.testing.assert_allclose(answer.loss, (0.5 * np.asarray(A) * members**2).sum(1), rtol=1e-5)
    noise = (members - np.asarray(CENTRE)) / 0.3
    gradient = centred_ranks(np.asarray(answer.loss)) @ noise / (10 * 0.3)
    new, metrics = trainer.tell(state, query, answer, key=jr.key(2))
    np.testing.assert_allclose(CENTRE - trainer.params(new), gradient, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(metrics["gradient_norm"], np.linalg.norm(gradient), rtol=1e-4)
    if antithetic:
        np.testing.assert_allclose(members[::2] + members[1::2], np.tile(2 * CENTRE, (5, 1)), atol=1e-5)
        assert (jr.key_data(query.keys)[::2] == jr.key_data(query.keys)[1::2]).all()
    else:
        assert len(np.unique(members[:, 0])) == 10


def test_open_es_noise_is_standard_normal() -> None:
    _, query, _ = ask(QUADRATIC, nd.OpenES(optax.sgd(1.0), sigma=0.3, population=2000))
    noise = (members_of(query)[::2] - np.asarray(CENTRE)) / 0.3
    assert np.abs(noise.mean(0)).max() < 4 / np.sqrt(1000)
    np.testing.assert_allclose(np.cov(noise.T), np.eye(D), atol=0.2)


def test_open_es_estimates_the_true_gradient() -> None:
    trainer = nd.OpenES(optax.sgd(1.0), sigma=0.01, population=2000, weighting=nd.ZScore())
    state, query, answer = ask(QUADRATIC, trainer)
    estimate = CENTRE - trainer.params(trainer.tell(state, query, answer, key=jr.key(2))[0])
    slope = np.asarray(A * CENTRE)
    cosine = float(estimate @ slope / np.linalg.norm(estimate) / np.linalg.norm(slope))
    assert cosine > 0.98
    # The z-score divides by the loss's spread, which for small sigma is sigma |slope|.
    np.testing.assert_allclose(np.linalg.norm(estimate), 1 / 0.01, rtol=0.1)


@pytest.mark.parametrize("weighting", [nd.CentredRanks(), nd.ZScore()], ids=repr)
def test_weights_of_plain_losses(weighting: nd.AbstractWeighting) -> None:
    losses = np.array([3.0, -1.0, 10.0, 4.0], np.float32)
    expected = [-1 / 6, -0.5, 0.5, 1 / 6] if isinstance(weighting, nd.CentredRanks) else (losses - 4) / losses.std()
    np.testing.assert_allclose(weighting(jnp.asarray(losses)), expected, rtol=1e-5, atol=1e-6)


def test_weights_with_ties_and_failures() -> None:
    losses = jnp.array([2.0, 2.0, jnp.nan, 1.0, jnp.inf, 5.0, -jnp.inf])
    ranks = nd.CentredRanks()(losses)
    np.testing.assert_allclose(ranks, centred_ranks(np.asarray(losses)), atol=1e-6)
    assert ranks[0] == ranks[1] and ranks[2] == ranks[4] == ranks[6] == ranks.max()
    z = nd.ZScore()(losses)
    finite = np.array([2.0, 2.0, 1.0, 5.0])
    np.testing.assert_allclose(z[jnp.array([0, 1, 3, 5])], (finite - finite.mean()) / finite.std(), rtol=1e-5)
    assert z[2] == z[4] == z[6] == z[5]
    for weighting in (nd.CentredRanks(), nd.ZScore()):
        np.testing.assert_array_equal(weighting(jnp.full(5, 7.0)), np.zeros(5))
        np.testing.assert_array_equal(weighting(jnp.full(5, jnp.nan)), np.zeros(5))


def test_a_constant_loss_does_not_move_the_centre() -> None:
    problem = BlackBox(lambda x: jnp.zeros(()) * x[0] + 3.0, CENTRE)
    for optimizer, weighting in ((optax.sgd(1.0), nd.CentredRanks()), (optax.adam(0.1), nd.ZScore())):
        trainer = nd.OpenES(optimizer, sigma=0.3, population=8, weighting=weighting)
        result = nd.fit(problem, trainer, steps=5, key=jr.key(0))
        np.testing.assert_array_equal(result.params, CENTRE)
        assert all(np.isfinite(x).all() for x in jtu.tree_leaves(result.state.trainer))


def test_schedules_are_followed() -> None:
    schedule = optax.linear_schedule(0.5, 0.1, 4)
    result = nd.fit(
        QUADRATIC, nd.OpenES(optax.sgd(0.1), sigma=schedule, population=4), steps=6, key=jr.key(0), log_every=1
    )
    np.testing.assert_allclose([r["sigma"] for r in result.history], [0.5, 0.4, 0.3, 0.2, 0.1, 0.1], rtol=1e-6)


def test_leaves_on_a_log_scale_stay_positive_and_move_by_factors() -> None:
    problem = BlackBox(lambda x: jnp.sum(jnp.log(x) ** 2), jnp.array([1e-3, 1e3]), domain=Real(1e-6, 1e6, log=True))
    trainer = nd.OpenES(optax.adam(0.3), sigma=0.5, population=16)
    _, query = asked(problem, trainer)
    members = members_of(query)
    np.testing.assert_allclose(members[::2] * members[1::2], np.tile([1e-6, 1e6], (8, 1)), rtol=1e-3)
    result = nd.fit(problem, trainer, steps=60, key=jr.key(0))
    assert (result.params > 0).all() and np.abs(np.log(result.params)).max() < 1.0


def test_members_and_centre_stay_inside_their_bounds() -> None:
    problem = BlackBox(lambda x: jnp.sum(x), CENTRE, domain=Real(-2.5, 3.0))
    trainer = nd.OpenES(optax.sgd(50.0), sigma=2.0, population=16)
    _, query = asked(problem, trainer)
    members = members_of(query)
    assert members.min() == -2.5 and members.max() == 3.0
    np.testing.assert_array_equal(nd.fit(problem, trainer, steps=3, key=jr.key(0)).params, np.full(D, -2.5))


def test_sums_do_not_depend_on_the_chunk() -> None:
    problem = BlackBox(lambda x: jnp.sum(x["a"]), {"a": CENTRE, "b": 1.0})
    _, query = asked(problem, nd.OpenES(optax.sgd(1.0), sigma=0.3, population=14))
    weights = jr.normal(jr.key(5), (14,))
    members = members_of(query)
    by_hand = {"a": np.asarray(weights) @ (members["a"] - np.asarray(CENTRE)) / 0.3}
    by_hand["b"] = np.asarray(weights) @ (members["b"] - 1.0) / 0.3
    for chunk in (1, 3, 4, 32):

        def both(query: nd.Query, chunk: int = chunk) -> tuple[Any, Any]:
            losses = nd.Vmap(chunk).evaluate(problem, dataclasses.replace(query, weigh=None), ())
            return query.population.sums(weights, chunk=chunk), losses.loss

        sums, losses = jax.jit(both)(query)
        for name in by_hand:
            np.testing.assert_allclose(sums.first[name], by_hand[name], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(losses, members["a"].sum(1), rtol=1e-5)


# Genetic

MIXED = {"x": jnp.array([0.5, 0.5]), "n": jnp.array([9, 0]), "k": jnp.array(0)}
DOMAINS = {"x": Real(0.0, 1.0), "n": Integer(0, 9), "k": Categorical(5)}


def mixed(p: dict[str, jax.Array]) -> jax.Array:
    return jnp.sum((p["x"] - 0.2) ** 2) + jnp.sum(jnp.abs(p["n"] - jnp.array([2, 7]))) + (p["k"] != 3)


def test_genetic_finds_a_mixed_optimum_and_never_loses_the_best() -> None:
    problem = BlackBox(mixed, MIXED, domain=DOMAINS)
    result = nd.fit(problem, nd.Genetic(population=32), steps=60, key=jr.key(0), log_every=1)
    best = [row["best"] for row in result.history]
    assert all(later <= earlier for earlier, later in itertools.pairwise(best))
    assert int(result.params["k"]) == 3
    np.testing.assert_array_equal(result.params["n"], [2, 7])
    np.testing.assert_allclose(result.params["x"], [0.2, 0.2], atol=0.03)
    assert float(mixed(result.params)) == pytest.approx(best[-1], rel=1e-4)


@pytest.mark.parametrize("crossover", [nd.UniformCrossover(), nd.OnePointCrossover(), None], ids=repr)
def test_genetic_members_stay_inside_and_elites_are_copies(crossover) -> None:
    trainer = nd.Genetic(population=64, elite=3, scale=3.0, rate=1.0, crossover=crossover)
    state, query = asked(BlackBox(mixed, MIXED, domain=DOMAINS), trainer)
    members = members_of(query)
    for name, domain in DOMAINS.items():
        np.testing.assert_array_equal(domain.clip(jnp.asarray(members[name])), members[name])
        np.testing.assert_array_equal(members[name][:3], np.asarray(state.parents[name])[:3])
    np.testing.assert_array_equal(state.parents["n"][0], MIXED["n"])
    # Steps of three times the range mostly end at a wall: of 30 keys, without crossover, 15 to 27 points are different.
    assert len(np.unique(members["n"], axis=0)) > 12


def test_default_rate_moves_every_real_and_about_one_integer() -> None:
    problem = BlackBox(
        lambda p: 0.0 * jnp.sum(p["x"]),
        {"x": jnp.full(8, 0.5), "n": jnp.full(8, 5)},
        domain={"x": Real(0.0, 1.0), "n": Integer(0, 9)},
    )
    trainer = nd.Genetic(population=400, parents=1, crossover=None)
    state, query = asked(problem, trainer)
    members = members_of(query)
    moved = {name: (members[name] != np.asarray(state.parents[name][0]))[1:] for name in members}
    assert moved["x"].all()
    assert abs(moved["n"].sum(1).mean() - 1.0) < 4 * np.sqrt(1.0 / 400)


def test_rate_and_scale_by_name() -> None:
    x0 = {"fine": jnp.zeros(3), "coarse": jnp.zeros(3), "rare": jnp.zeros(100)}
    problem = BlackBox(lambda p: jnp.sum(p["fine"]), x0)
    scale = {"fine": 1e-4, "coarse": 10.0, "rare": 1.0}
    trainer = nd.Genetic(
        population=200, parents=1, crossover=None, scale=scale, rate={"fine": 1.0, "coarse": 1.0, "rare": 0.1}
    )
    members = members_of(asked(problem, trainer)[1])
    np.testing.assert_allclose([members["fine"][1:].std(), members["coarse"][1:].std()], [1e-4, 10.0], rtol=0.1)
    assert abs((members["rare"][1:] != 0).mean() - 0.1) < 0.01
    with pytest.raises(
        ValueError, match=r"`Genetic\(scale=\{'fine': 0.1\}\)` has no entry for `coarse`; give one for each"
    ):
        nd.fit(problem, nd.Genetic(population=4, scale={"fine": 0.1}), steps=1, key=jr.key(0))


def test_scale_schedules_are_followed() -> None:
    trainer = nd.Genetic(population=200, parents=1, crossover=None, scale=optax.linear_schedule(1.0, 0.01, 1))
    problem = BlackBox(lambda x: jnp.sum(x) * 0.0, jnp.zeros(20))
    state, query, answer = ask(problem, trainer)
    assert abs(members_of(query)[1:].std() - 1.0) < 0.1
    state, _ = trainer.tell(state, query, answer, key=jr.key(0))
    moved = members_of(trainer.ask(state, key=jr.key(1))) - np.asarray(trainer.params(state))
    assert abs(moved[1:].std() - 0.01) < 0.001


@pytest.mark.parametrize("size", [1, 2, 3])
def test_tournament_picks_rank_r_with_its_analytic_probability(size: int) -> None:
    """P(rank r wins) = ((n - r)^k - (n - r - 1)^k) / n^k, the best being rank 0."""
    n, draws = 6, 20_000
    losses = jnp.array([3.0, 0.0, jnp.inf, 1.0, 2.0, 9.0])
    ranks = np.argsort(np.argsort(np.asarray(losses)))
    picked = ranks[np.asarray(nd.Tournament(size)(losses, draws, key=jr.key(0)))]
    r = np.arange(n)
    expected = ((n - r) ** size - (n - r - 1) ** size) / n**size
    seen = np.bincount(picked, minlength=n) / draws
    assert (np.abs(seen - expected) < 5 * np.sqrt(expected * (1 - expected) / draws) + 1e-9).all()


def test_truncation_picks_the_best() -> None:
    losses = jnp.array([3.0, 0.0, jnp.inf, 1.0, 0.0, 9.0])
    np.testing.assert_array_equal(nd.Truncation()(losses, 4, key=jr.key(0)), [1, 4, 3, 0])


def test_crossover_masks() -> None:
    mask = np.asarray(nd.UniformCrossover(0.3).mask(words.words(jr.key(0), 20_000)))
    assert abs(mask.mean() - 0.3) < 0.015
    assert not nd.UniformCrossover(0.0).mask(words.words(jr.key(0), 9)).any()
    cuts = np.zeros(5)
    for k in jr.split(jr.key(0), 200):
        mask = np.asarray(nd.OnePointCrossover().mask(words.shaped(k, (4, 2))))
        assert (mask[:, 0] == mask[:, 1]).all() and (np.diff(mask[:, 0].astype(int)) >= 0).all()
        cuts[4 - mask[:, 0].sum()] += 1
    assert cuts.min() > 20  # of 200 over five places
    scalars = [bool(nd.OnePointCrossover().mask(words.shaped(k, ()))) for k in jr.split(jr.key(0), 60)]
    assert 10 < sum(scalars) < 50


def test_children_are_made_of_two_parents() -> None:
    """With crossover and (almost) no mutation, every coordinate comes from one of the parents."""
    trainer = nd.Genetic(population=64, parents=2, rate=1e-9, crossover=nd.UniformCrossover())
    state, query = asked(BlackBox(lambda x: jnp.sum(x), jnp.zeros(16)), trainer)
    members, parents = members_of(query), np.asarray(state.parents)
    from_first, from_second = members == parents[0], members == parents[1]
    assert (from_first | from_second).all()
    mixed_rows = from_first.any(1) & from_second.any(1)
    assert 15 < mixed_rows.sum() < 50  # half of the pairs are one parent twice


def test_genetic_follows_an_optimum_that_moves() -> None:
    """Parents are evaluated again: what was the best on yesterday's data is not kept for it."""
    problem = nd.Supervised(
        lambda x, b, k: jnp.sum((x - b) ** 2), lambda step: jnp.where(step < 30, 0.0, 2.0), params=jnp.zeros(2)
    )
    result = nd.fit(problem, nd.Genetic(population=24, scale=0.2), steps=80, key=jr.key(0))
    np.testing.assert_allclose(result.params, [2.0, 2.0], atol=0.3)


# Memetic


def test_memetic_is_one_clipped_gradient_step_by_hand() -> None:
    def cost(p: dict[str, jax.Array]) -> jax.Array:
        return quadratic(p["x"]) * (1 + p["n"])

    problem = BlackBox(cost, {"x": CENTRE, "n": 1}, domain={"x": Real(-2.2, 3.1), "n": Integer(0, 5)})
    # Truncation keeps the ranking's order, so that selected members can be told apart.
    inner = nd.Genetic(population=8, parents=8, selection=nd.Truncation(), elite=1, scale=0.5)
    trainer = nd.Memetic(inner, rate=0.2, max_norm=8.0)
    state, query, answer = ask(problem, trainer)
    before = members_of(query)
    gradient = np.asarray(A) * before["x"] * (1 + before["n"][:, None])
    np.testing.assert_allclose(answer.gradient["x"], gradient, rtol=1e-4, atol=1e-5)
    assert answer.gradient["n"] is None
    norm = np.linalg.norm(gradient, axis=1, keepdims=True)
    assert (norm > 8).any() and (norm < 8).any()
    after = np.clip(before["x"] - 0.2 * gradient * np.minimum(1, 8 / norm), -2.2, 3.1)
    new, _ = trainer.tell(state, query, answer, key=jr.key(0))
    order = np.argsort(np.asarray(answer.loss), kind="stable")
    order = np.concatenate([order[:1], order])[:8]  # the elite stands first
    np.testing.assert_allclose(new.inner.parents["x"], after[order], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(new.inner.parents["n"], before["n"][order])


def test_memetic_ignores_a_gradient_that_is_not_finite() -> None:
    problem = BlackBox(lambda x: jnp.sum(jnp.sqrt(jnp.abs(x))), jnp.zeros(2))
    trainer = nd.Memetic(nd.Genetic(population=8), rate=0.1)
    result = nd.fit(problem, trainer, steps=5, key=jr.key(0))
    assert np.isfinite(result.params).all()


def test_memetic_refuses_a_trainer_that_averages() -> None:
    trainer = nd.Memetic(nd.OpenES(optax.sgd(0.1), sigma=0.1, population=4), rate=0.1)
    with pytest.raises(
        ValueError, match=r"`Memetic\(OpenES\(...\)\)`: this trainer averages its members and keeps none"
    ):
        nd.fit(QUADRATIC, trainer, steps=1, key=jr.key(0))


# Split

APART = {"a": jnp.array([1.0, 2.0]), "b": {"c": jnp.array(3.0), "d": jnp.array([4.0])}}


def separable(p: dict[str, Any]) -> jax.Array:
    return jnp.sum(p["a"] ** 2) + jnp.sin(p["b"]["c"]) + jnp.sum(p["b"]["d"] ** 4) / 40


def test_split_parts_are_as_if_trained_alone() -> None:
    fast, slow = nd.Backprop(optax.adam(0.1)), nd.Backprop(optax.sgd(0.01, momentum=0.9))
    split = nd.Split({"fast": fast, "slow": slow}, {"a": "fast", "b": "slow"})
    together = nd.fit(BlackBox(separable, APART), split, steps=20, key=jr.key(0)).params
    alone_a = BlackBox(lambda a: separable({**APART, "a": a}), APART["a"])
    alone_b = BlackBox(lambda b: separable({**APART, "b": b}), APART["b"])
    np.testing.assert_allclose(together["a"], nd.fit(alone_a, fast, steps=20, key=jr.key(1)).params, rtol=1e-5)
    b = nd.fit(alone_b, slow, steps=20, key=jr.key(2)).params
    np.testing.assert_allclose(together["b"]["c"], b["c"], rtol=1e-5)
    np.testing.assert_allclose(together["b"]["d"], b["d"], rtol=1e-5)


def test_split_parts_see_their_siblings_as_they_were_at_the_steps_start() -> None:
    """Two gradient parts on a loss that is not separable are one gradient descent, Jacobi-wise."""

    def bilinear(p: dict[str, jax.Array]) -> jax.Array:
        return p["a"] * p["b"] + 0.1 * jnp.square(p["b"])

    descent = nd.Backprop(optax.sgd(0.1))
    problem = BlackBox(bilinear, {"a": 1.0, "b": 2.0})
    split = nd.Split({"one": descent, "two": descent}, {"a": "one", "b": "two"})
    apart, whole = (nd.fit(problem, t, steps=7, key=jr.key(0)).params for t in (split, descent))
    for name in ("a", "b"):
        np.testing.assert_allclose(apart[name], whole[name], rtol=1e-5)


def test_a_split_of_plain_python_and_64_bits_compiles_its_other_parts() -> None:
    """`CMAES` keeps NumPy's 64 bits and is not traced; `Genetic` beside it gets 32 and is."""
    problem = BlackBox(lambda p: float((p["a"] - 1) ** 2 + np.sum((p["b"] - 2) ** 2)), {"a": 0.0, "b": np.zeros(2)})
    split = nd.Split({"exact": nd.CMAES(0.5), "search": nd.Genetic(population=8)}, {"a": "exact", "b": "search"})
    state = nd.fit(problem, split, steps=2, key=jr.key(0)).state
    with count_compilations() as compiled:
        result = nd.fit(problem, split, steps=5, state=state)
    assert not compiled
    assert result.params["a"].dtype == np.float64 and result.params["b"].dtype == np.float32


def test_nested_split_and_its_metrics() -> None:
    descent = nd.Backprop(optax.adam(0.1))
    inner = nd.Split({"x": descent, "y": descent}, {"a": None, "b": {"c": "x", "d": "y"}})
    outer = nd.Split({"in": inner, "out": nd.Genetic(population=4, crossover=None)}, {"a": "out", "b": "in"})
    problem = BlackBox(separable, APART)
    result = nd.fit(problem, outer, steps=3, key=jr.key(0))
    assert result.evaluations == 3 * (1 + 1 + 4)
    assert {"in/x/gradient_norm", "in/y/gradient_norm"} <= set(result.history[-1])
    flat = nd.fit(problem, descent, steps=3, key=jr.key(0)).params
    np.testing.assert_allclose(result.params["b"]["c"], flat["b"]["c"], rtol=1e-5)
    assert jtu.tree_structure(result.params) == jtu.tree_structure(APART)


def test_split_errors_name_both_sides() -> None:
    descent = nd.Backprop(optax.sgd(0.1))
    with pytest.raises(ValueError, match="the labels and the trainers do not match") as caught:
        nd.Split({"one": descent, "two": descent}, {"a": "one", "b": "three"})
    assert "labels: ['one', 'three']" in str(caught.value) and "trainers: ['one', 'two']" in str(caught.value)
    with pytest.raises(ValueError, match="labels must be a prefix of the parameters") as caught:
        nd.fit(BlackBox(separable, APART), nd.Split({"one": descent}, {"a": "one", "z": "one"}), steps=1, key=jr.key(0))
    assert "'z'" in str(caught.value) and "'b'" in str(caught.value)


# Alternate


def bilinear(p: dict[str, jax.Array]) -> jax.Array:
    return p["a"] * p["b"] + 0.1 * jnp.square(p["b"])


def test_alternate_moves_one_part_at_a_time_in_the_order_of_its_steps() -> None:
    descent = nd.Backprop(optax.sgd(0.1))
    turns = nd.Alternate({"one": descent, "two": descent}, {"a": "one", "b": "two"}, steps={"two": 2, "one": 1})
    result = nd.fit(BlackBox(bilinear, {"a": 1.0, "b": 2.0}), turns, steps=8, key=jr.key(0), log_every=1)
    a, b = 1.0, 2.0
    for step, row in enumerate(result.history):
        assert row["loss"] == pytest.approx(a * b + 0.1 * b**2, rel=1e-5)
        mine, other = ("two", "one") if step % 3 < 2 else ("one", "two")
        assert row[f"{mine}/gradient_norm"] > 0 and np.isnan(row[f"{other}/gradient_norm"])
        a, b = (a, b - 0.1 * (a + 0.2 * b)) if mine == "two" else (a - 0.1 * b, b)
    np.testing.assert_allclose([result.params["a"], result.params["b"]], [a, b], rtol=1e-5)
    assert result.evaluations == 8


SEARCHES: dict[str, nd.AbstractTrainer] = {
    "few": nd.OpenES(optax.sgd(0.1), sigma=0.1, population=4),
    "many": nd.OpenES(optax.sgd(0.1), sigma=0.1, population=10),
}
TURNS = nd.Alternate(SEARCHES, {"x": "few", "y": "many"}, steps={"few": 3, "many": 2})
BESIDE = nd.Split(
    {"turns": TURNS, "always": nd.OpenES(optax.sgd(0.1), sigma=0.1, population=6)},
    {"x": "turns", "y": "turns", "z": "always"},
)


@pytest.mark.usefixtures("compiled_quickly")
@pytest.mark.parametrize("compiled", [True, False])
def test_only_the_part_whose_turn_it_is_is_evaluated(compiled: bool) -> None:
    calls: list[float] = []

    def in_jax(p: dict[str, jax.Array]) -> jax.Array:
        jax.debug.callback(lambda x: calls.append(float(x)), p["x"] + p["y"])
        return (p["x"] - 1) ** 2 + (p["y"] + 1) ** 2

    def in_python(p: dict[str, Any]) -> float:
        calls.append(float(p["x"]))
        return float((p["x"] - 1) ** 2 + (p["y"] + 1) ** 2)

    problem = BlackBox(in_jax if compiled else in_python, {"x": 0.0, "y": 0.0}, traceable=compiled)
    result = nd.fit(problem, TURNS, steps=7, key=jr.key(0), log_every=1)
    jax.effects_barrier()
    assert [row["evaluations"] for row in result.history] == [4, 4, 4, 10, 10, 4, 4]
    assert result.evaluations == len(calls) == 40
    assert [row["failed"] for row in result.history] == [0] * 7


@pytest.mark.usefixtures("unchecked", "compiled_quickly")
@pytest.mark.parametrize("evaluator", [nd.Vmap(), nd.Host()])
def test_a_problem_absorbs_only_what_was_evaluated(evaluator: nd.AbstractEvaluator) -> None:
    class Remembers(nd.Supervised):
        def init_state(self, *, key: Any) -> Any:
            return jnp.zeros(2)

        def absorb(self, state: Any, aux: Any, batch: Any) -> Any:
            return state + jnp.array([1.0, aux.sum()])

    problem = Remembers(
        lambda p, b, k: (p["x"] ** 2 + p["y"] ** 2 + p["z"] ** 2, jnp.ones(())),
        jnp.zeros(3),
        params={"x": jnp.ones(()), "y": jnp.ones(()), "z": jnp.ones(())},
    )
    result = nd.fit(problem, BESIDE, steps=5, key=jr.key(0), evaluator=evaluator)
    np.testing.assert_array_equal(result.state.problem, [5, 5 * 6 + 3 * 4 + 2 * 10])


def test_alternate_gives_the_same_bits_where_answers_come_from_afar() -> None:
    class Far(nd.AbstractEvaluator):
        traceable = False

        def evaluate(self, problem: Any, query: Any, batch: Any) -> Any:
            return eqx.filter_jit(nd.Vmap(2).evaluate)(problem, query, batch)

    problem = BlackBox(lambda p: (p["x"] - 1) ** 2 + (p["y"] + 1) ** 2, {"x": 0.0, "y": 0.0}, traceable=True)
    near, far = (nd.fit(problem, nd.Best(TURNS), steps=9, key=jr.key(0), evaluator=e) for e in (nd.Vmap(2), Far()))
    assert near.params == far.params and near.evaluations == far.evaluations == 6 * 4 + 3 * 10


@pytest.mark.usefixtures("compiled_quickly")
def test_turns_of_a_part_that_lives_on_the_host() -> None:
    problem = BlackBox(lambda p: float((p["x"] - 1) ** 2 + (p["y"] - 2) ** 2), {"x": 0.0, "y": np.zeros(())})
    parts = {"exact": nd.CMAES(0.5), "search": nd.OpenES(optax.adam(0.1), sigma=0.1, population=8)}
    trainer = nd.Alternate(parts, {"x": "exact", "y": "search"}, steps={"exact": 2, "search": 2})
    result = nd.fit(problem, trainer, steps=80, key=jr.key(0))
    assert result.params["x"].dtype == np.float64
    np.testing.assert_allclose([result.params["x"], result.params["y"]], [1, 2], atol=0.2)
    per_step = len(nd.CMAES(0.5).ask(nd.init(problem, trainer, key=jr.key(0)).trainer.parts["exact"], key=jr.key(0)))
    assert result.evaluations == 40 * (per_step + 8)


def test_what_alternate_refuses() -> None:
    labels = {"x": "few", "y": "many"}
    with pytest.raises(ValueError, match=r"`Alternate\(steps=\{'few': 3\}\)`: expected a number of steps for each"):
        nd.Alternate(SEARCHES, labels, steps={"few": 3})
    with pytest.raises(ValueError, match=r"`Alternate\(steps\['many'\]=0\)`: expected a whole number of at least 1"):
        nd.Alternate(SEARCHES, labels, steps={"few": 3, "many": 0})
    with pytest.raises(ValueError, match=r"`Alternate`: the labels and the trainers do not match"):
        nd.Alternate(SEARCHES, {"x": "few", "y": "few"}, steps={"few": 3, "many": 1})
    problem = BlackBox(lambda p: p["x"] ** 2 + p["y"] ** 2, {"x": 1.0, "y": 1.0})
    for around in (nd.Memetic(TURNS, rate=0.1), nd.ADMM(TURNS, nd.prox.Box(-1.0, 1.0), rho=1.0)):
        with pytest.raises(ValueError, match=r"\(Alternate\(...\)\)`: it needs every answer at every step"):
            nd.fit(problem, around, steps=1, key=jr.key(0))


# Best


def test_best_keeps_the_best_ever_among_all_members() -> None:
    seen = []

    def cost(x: np.ndarray) -> float:
        seen.append((float(np.sum((x - 1.0) ** 2)), x.copy()))
        return seen[-1][0]

    problem = BlackBox(cost, np.zeros(2))
    seen.clear()
    trainer = nd.Best(nd.OpenES(optax.sgd(5.0), sigma=0.5, population=8))  # far too fast: the centre runs away
    result = nd.fit(problem, trainer, steps=6, key=jr.key(0), log_every=1)
    running = np.minimum.accumulate([x for x, _ in seen])[7::8]
    np.testing.assert_allclose([row["best_ever"] for row in result.history], running, rtol=1e-6)
    np.testing.assert_allclose(result.params, min(seen, key=lambda s: s[0])[1], rtol=1e-6)


def test_best_of_a_split_combines_members_with_the_values_they_met() -> None:
    split = nd.Split(
        {"es": nd.OpenES(optax.sgd(1e-6), sigma=0.5, population=8), "ga": nd.Genetic(population=8, crossover=None)},
        {"a": "es", "b": "ga"},
    )
    result = nd.fit(BlackBox(separable, APART), nd.Best(split), steps=5, key=jr.key(0))
    np.testing.assert_allclose(separable(result.params), result.history[-1]["best_ever"], rtol=1e-5)
    assert result.history[-1]["best_ever"] < float(separable(APART))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: nd.OpenES(optax.sgd(0.1), sigma=0.1, population=7),
            r"even population; use 6 or 8, or `antithetic=False`",
        ),
        (lambda: nd.OpenES(optax.sgd(0.1), sigma=0.1, population=0), r"`OpenES\(population=0\)`"),
        (
            lambda: nd.OpenES(optax.sgd(0.1), sigma=0.0, population=8),
            r"`OpenES\(sigma=0.0\)`: it must be finite and above 0",
        ),
        (lambda: nd.OpenES(optax.sgd(0.1), sigma=float("nan"), population=8), r"`OpenES\(sigma=nan\)`"),
        (lambda: nd.OpenES(optax.sgd(0.1), sigma=optax.constant_schedule(-1.0), population=8), r"schedule whose first"),
        (lambda: nd.Backprop(optax.sgd(-0.1)), r"`Backprop\(optimizer\)`: its first step on a gradient of 1 is 0.1"),
        (lambda: nd.Backprop(optax.adam(float("nan"))), r"its first step on a gradient of 1 is nan"),
        (lambda: nd.Backprop(optax.sgd(0.1), samples=0), r"`Backprop\(samples=0\)`"),
        (lambda: nd.Genetic(population=0), r"`Genetic\(population=0\)`: expected a whole number of at least 2"),
        (lambda: nd.Genetic(population=4, parents=5), r"`Genetic\(population=4, parents=5\)`"),
        (lambda: nd.Genetic(population=4, elite=3), r"`Genetic\(population=4, parents=2, elite=3\)`"),
        (lambda: nd.Genetic(population=4, rate=0.0), r"`Genetic\(rate=0.0\)`"),
        (lambda: nd.Genetic(population=4, scale={"x": -1.0}), r"`Genetic\(scale=-1.0\)`"),
        (lambda: nd.Tournament(0), r"`Tournament\(size=0\)`"),
        (lambda: nd.UniformCrossover(1.5), r"`UniformCrossover\(probability=1.5\)`"),
        (lambda: nd.Memetic(nd.Genetic(population=4), rate=0.0), r"`Memetic\(rate=0.0\)`"),
    ],
)
def test_what_cannot_be_built(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_learning_rate_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match=r"its first step on a gradient of 1 is 0, not finite and downhill"):
        nd.Backprop(optax.sgd(0.0))


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.sgd(optax.linear_schedule(0.0, 0.1, 10)),
        optax.MultiSteps(optax.sgd(0.1), 4).gradient_transformation(),
    ],
    ids=["warm_up", "gathered"],
)
def test_first_steps_of_zero_are_accepted(optimizer: optax.GradientTransformation) -> None:
    problem = BlackBox(lambda x: jnp.sum(x**2), jnp.ones(2))
    first, later = (nd.fit(problem, nd.Backprop(optimizer), steps=n, key=jr.key(0)).params for n in (1, 8))
    np.testing.assert_array_equal(first, 1.0)  # nothing yet
    assert np.all(np.abs(later) < 0.9)


@pytest.mark.parametrize("name", ["Backprop", "OpenES"])
def test_small_steps_along_integers_are_refused(name: str) -> None:
    trainer = nd.Backprop(optax.sgd(0.1)) if name == "Backprop" else nd.OpenES(optax.sgd(0.1), sigma=0.1, population=4)
    problem = BlackBox(mixed, MIXED, domain=DOMAINS)
    with pytest.raises(ValueError, match=rf"`{name}` cannot move `params\['k'\]` \(int32, Categorical\(n=5\)\)"):
        nd.fit(problem, trainer, steps=1, key=jr.key(0))


def test_trainers_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        nd.Genetic(population=4).population = 5
