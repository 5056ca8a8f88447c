"""Evolution strategies beside second implementations in NumPy that are given the noise alone, and what they promise."""

import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax
import pytest
from jax.extend.core import jaxprs_in_params

import nondiff as nd
from nondiff import BlackBox, Real
from nondiff.core import chunk as chunking
from nondiff.core.evaluator import chunk_of
from nondiff.core.step import keys
from nondiff.launch.main import main
from nondiff.trainers import gaussian
from nondiff.trainers.gaussian import Factors

SGD = optax.sgd(1.0)
SHAPES = {"k": (4, 3, 5), "m": (6, 5), "s": (), "v": (7,)}
"""At rank 1 the kernel and the matrix have noise of low rank; at rank 3 the matrix would save nothing and has not."""


def numbers(seed: int, low: float = -1.0, high: float = 1.0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {name: random.uniform(low, high, shape).astype(np.float32) for name, shape in SHAPES.items()}


START, GOAL, SCALE = numbers(0), numbers(1), numbers(2, 0.2, 2.0)
FAILS_ABOVE = float(START["v"][0]) + 0.3


def rough(p: Any, xp: Any = jnp) -> Any:
    """A parabola, no two coordinates alike, that fails on one side."""
    total = sum((SCALE[name] * (p[name] - GOAL[name]) ** 2).sum() for name in SHAPES)
    return xp.where(p["v"][0] > FAILS_ABOVE, xp.nan, total)


ROUGH = BlackBox(rough, START)
QUADRATIC = BlackBox(lambda x: jnp.sum(SCALE["m"] * x**2), START["m"])


class Raw(nd.AbstractWeighting):
    """The losses as they are: the estimates are then those of textbooks."""

    def __call__(self, losses: jax.Array) -> jax.Array:
        return losses


def first(problem: nd.AbstractProblem, trainer: nd.AbstractTrainer) -> nd.TrainState:
    return nd.init(problem, trainer, key=jr.key(3))


# One step, by hand


class Noise(NamedTuple):
    """Of every member, in NumPy: an array, or the two factors, for each leaf; and the member's sign."""

    parts: dict[str, Any]
    sign: np.ndarray

    def signed(self) -> dict[str, np.ndarray]:
        """Multiplied out."""
        return {name: np.einsum("p,p...->p...", self.sign, self._dense(name)) for name in self.parts}

    def _dense(self, name: str) -> np.ndarray:
        part = self.parts[name]
        if not isinstance(part, tuple):
            return part
        n, rank = len(self.sign), part[0].shape[-1]
        a, b = (x.reshape(n, -1, rank) for x in part)
        return (a @ b.transpose(0, 2, 1)).reshape(n, *SHAPES[name]) / np.sqrt(rank)

    def spread(self) -> dict[str, Any]:
        """`e^2 - 1`, of factors the mean over the rank."""

        def one(part: Any) -> Any:
            return tuple((x**2 - 1).mean(-1) for x in part) if isinstance(part, tuple) else part**2 - 1

        return {name: one(part) for name, part in self.parts.items()}


def plain(tree: dict[str, Any]) -> dict[str, Any]:
    """In float64, `Factors` as tuples."""
    return {
        name: tuple(np.asarray(y, float) for y in x) if isinstance(x, Factors) else np.asarray(x, float)
        for name, x in tree.items()
    }


def widths(sigma: dict[str, Any]) -> dict[str, Any]:
    """A sigma for every coordinate."""
    return {
        name: np.multiply.outer(*x).reshape(SHAPES[name]) if isinstance(x, tuple) else x for name, x in sigma.items()
    }


def centred_ranks(losses: np.ndarray) -> np.ndarray:
    losses = np.where(np.isfinite(losses), losses, np.inf)
    ranks = np.array([(losses < x).sum() + ((losses == x).sum() - 1) / 2 for x in losses])
    return ranks / (len(losses) - 1) - 0.5


def log_ranks(losses: np.ndarray) -> np.ndarray:
    """Negative utilities, so that they descend; ties have the mean of theirs."""
    n = len(losses)
    losses = np.where(np.isfinite(losses), losses, np.inf)
    utilities = np.maximum(0, np.log(n / 2 + 1) - np.log(np.arange(1, n + 1)))
    utilities = np.sort(utilities / utilities.sum())[::-1] - 1 / n
    ranked = np.sort(losses)
    return -np.array([utilities[ranked == x].mean() for x in losses])


def weighted(weights: np.ndarray, tree: dict[str, Any]) -> dict[str, Any]:
    def one(x: np.ndarray) -> np.ndarray:
        return np.tensordot(weights, x, 1)

    return {name: tuple(map(one, x)) if isinstance(x, tuple) else one(x) for name, x in tree.items()}


def grown(sigma: dict[str, Any], by: dict[str, Any]) -> dict[str, Any]:
    """After a step of the logarithms."""
    return {
        name: tuple(s * np.exp(b) for s, b in zip(x, by[name], strict=True))
        if isinstance(x, tuple)
        else x * np.exp(by[name])
        for name, x in sigma.items()
    }


def mapped(fn: Callable[[np.ndarray], Any], tree: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(map(fn, x)) if isinstance(x, tuple) else fn(x) for name, x in tree.items()}


Step = tuple[dict[str, Any], dict[str, Any]]


def open_es(t: Any, losses: np.ndarray, noise: Noise, sigma: dict[str, Any]) -> Step:
    total = weighted(centred_ranks(losses), noise.signed())
    return {name: total[name] / (t.population * t.sigma) for name in total}, sigma


def ars(t: Any, losses: np.ndarray, noise: Noise, sigma: dict[str, Any]) -> Step:
    """Algorithm 1 with b directions, rewards being negative losses; half a pair says nothing."""
    two = losses.reshape(-1, 2)
    b = max(1, round(t.elites * len(two)))
    best = sorted((i for i in range(len(two)) if np.isfinite(two[i]).all()), key=lambda i: two[i].min())[:b]
    weights = np.zeros_like(two)
    weights[best, 0] = (two[best, 0] - two[best, 1]) / (len(best) * two[best].std())
    return weighted(weights.ravel(), noise.signed()), sigma


def pgpe(t: Any, losses: np.ndarray, noise: Noise, sigma: dict[str, Any]) -> Step:
    ranks, wide = centred_ranks(losses), widths(sigma)
    total = weighted(ranks, noise.signed())
    pairs = ranks.reshape(-1, 2).sum(1)
    counts = np.repeat(pairs / pairs.std(), 2) / 2  # of a member; e^2 - 1 itself deviates by sqrt(2)
    change = weighted(-t.sigma_rate * counts / (t.population / 2) / np.sqrt(2), noise.spread())
    change = mapped(lambda x: np.clip(x, -0.2, 0.2), change)
    return {name: wide[name] * total[name] / t.population for name in total}, grown(sigma, change)


def snes(t: Any, losses: np.ndarray, noise: Noise, sigma: dict[str, Any]) -> Step:
    utilities, wide = -log_ranks(losses), widths(sigma)
    d = sum(int(np.prod(shape)) for shape in SHAPES.values())
    rate = (3 + np.log(d)) / (5 * np.sqrt(d)) if t.sigma_rate is None else t.sigma_rate
    total = weighted(utilities, noise.signed())
    growth = mapped(lambda x: rate / 2 * x, weighted(utilities, noise.spread()))
    return {name: -wide[name] * total[name] for name in total}, grown(sigma, growth)


CASES: dict[str, tuple[Callable[..., Step], float, nd.AbstractTrainer]] = {
    "open_es_rank_1": (open_es, 1.0, nd.OpenES(SGD, sigma=0.3, population=12, rank=1)),
    "open_es_rank_3": (open_es, 1.0, nd.OpenES(SGD, sigma=0.3, population=11, rank=3, antithetic=False)),
    "ars": (ars, 0.1, nd.ARS(optax.sgd(0.1), sigma=0.3, population=12)),
    "pgpe": (pgpe, 1.0, nd.PGPE(SGD, sigma=0.3, population=12)),
    "pgpe_rank_1": (pgpe, 1.0, nd.PGPE(SGD, sigma=0.3, population=12, rank=1, sigma_rate=0.4)),
    "snes": (snes, 1.0, nd.SNES(sigma=0.3, population=12)),
    "snes_rank_1": (
        snes,
        1.5,
        nd.SNES(optax.sgd(1.5), sigma=0.3, population=11, rank=1, antithetic=False, sigma_rate=0.5),
    ),
}
"""The rule, the rate of its optimizer, and the trainer."""


@pytest.mark.parametrize("name", CASES)
def test_steps_by_hand(name: str) -> None:
    by_hand, rate, trainer = CASES[name]

    @jax.jit
    def step(state: nd.TrainState) -> Any:
        population = trainer.ask(state.trainer, key=keys(state)[1]).population
        drawn = population.sampler.draws(population.shared, population.each)
        return population.shared, drawn, nd.step(ROUGH, trainer, nd.Vmap(4), state)

    state, failed = first(ROUGH, trainer), 0
    for _ in range(3):  # after the first, the sigmas differ
        shared, (parts, sign), (state, metrics) = step(state)
        x, noise, sigma = plain(shared.centre), Noise(plain(parts), np.asarray(sign, float)), plain(shared.sigma)
        wide, signed = widths(sigma), noise.signed()
        points = {leaf: x[leaf] + wide[leaf] * signed[leaf] for leaf in x}
        losses = np.array([rough({leaf: p[i] for leaf, p in points.items()}, np) for i in range(len(sign))])
        failed += np.isnan(losses).sum()
        np.testing.assert_allclose(metrics["loss"], np.nanmean(losses), rtol=1e-4)
        np.testing.assert_allclose(metrics["best"], np.nanmin(losses), rtol=1e-4)
        gradient, sigma = by_hand(trainer, losses, noise, sigma)
        got = trainer.params(state.trainer)
        for leaf in SHAPES:
            np.testing.assert_allclose(got[leaf], x[leaf] - rate * gradient[leaf], rtol=1e-4, atol=1e-5, err_msg=leaf)
        norm = np.sqrt(sum((g**2).sum() for g in gradient.values()))
        np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-4)
        typical = np.exp(np.mean([np.log(w).mean() for w in widths(sigma).values()]))
        np.testing.assert_allclose(metrics["sigma"], typical, rtol=1e-4)
        if hasattr(state.trainer, "sigma"):
            for got, want in zip(jtu.tree_leaves(state.trainer.sigma), jtu.tree_leaves(sigma), strict=True):
                np.testing.assert_allclose(got, want, rtol=1e-4)
    assert 0 < failed < 30


# Weights


def ars_weights(losses: list[float], elites: float) -> np.ndarray:
    """Of an ARS step that met these losses."""
    trainer = nd.ARS(SGD, sigma=0.1, population=len(losses), elites=elites)
    state = eqx.filter_eval_shape(lambda: first(QUADRATIC, trainer).trainer)
    query = eqx.filter_eval_shape(lambda state: trainer.ask(state, key=jr.key(1)), state)
    return np.asarray(jax.jit(query.weigh)(jnp.asarray(losses, jnp.float32)))


def test_ars_uses_the_best_pairs_by_their_better_half() -> None:
    losses = [5.0, 5.0, 9.0, 1.0, 2.0, 4.0, 3.0, 3.5]  # the second pair has both the best and the worst
    one, three = ars_weights(losses, 0.01), ars_weights(losses, 0.75)
    np.testing.assert_allclose(one, np.array([0, 0, 4, -4, 0, 0, 0, 0]) / np.std([9, 1]), rtol=1e-5)
    spread = 3 * np.std([9, 1, 2, 4, 3, 3.5])
    np.testing.assert_allclose(three, np.array([0, 0, 4, -4, -1, 1, -0.25, 0.25]) / spread, rtol=1e-5)


def test_half_a_pair_says_nothing_to_ars() -> None:
    weights = ars_weights([np.nan, 0.0, 5.0, -np.inf, 4.0, 1.0, np.inf, np.nan], 1.0)
    np.testing.assert_allclose(weights, [0, 0, 0, 0, 1, -1, 0, 0], rtol=1e-6)  # (4 - 1) / 2 / std(4, 1)
    for flat in (np.nan, 0.1):
        np.testing.assert_array_equal(ars_weights([flat] * 6, 1.0), np.zeros(6))


def test_log_ranks_with_ties_and_failures() -> None:
    random = np.random.default_rng(0)
    for n in (2, 9):
        losses = random.integers(0, n, (20, n)).astype(np.float32)
        losses[random.random((20, n)) < 0.2] = np.nan
        got = jax.jit(jax.vmap(nd.LogRanks()))(losses)
        np.testing.assert_allclose(got, [log_ranks(x) for x in losses], atol=1e-6)
        np.testing.assert_allclose(got.sum(1), 0.0, atol=1e-6)


@pytest.mark.parametrize("weighting", [nd.CentredRanks(), nd.LogRanks(), nd.ZScore()], ids=repr)
@pytest.mark.parametrize("n", [11, 14])
def test_equal_losses_weigh_nothing_at_all(weighting: nd.AbstractWeighting, n: int) -> None:
    """What is left by rounding would be a direction to an optimizer that divides by the gradient's size."""
    for flat in (7.0, 0.1, np.nan):
        np.testing.assert_array_equal(jax.jit(weighting)(jnp.full(n, flat, jnp.float32)), np.zeros(n))


# Sums


@pytest.mark.parametrize(
    ("rank", "population", "held", "chunks"),
    [(1, 14, True, (4,)), (1, 14, False, (1, 3, 4, 32)), (3, 13, False, (3, 4))],
)
def test_sums_of_a_population_are_those_of_its_dense_noise(
    rank: int, population: int, held: bool, chunks: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held draws are summed at once, whatever the chunk; the losses are close, and differ by rounding alone."""
    monkeypatch.setattr(gaussian, "HELD", 2**27 if held else 0)
    trainer = nd.SNES(sigma=0.3, population=population, rank=rank, antithetic=population % 2 == 0)
    weights = np.random.default_rng(0).normal(size=population).astype(np.float32)

    @jax.jit
    def answers(state: nd.TrainState, weights: jax.Array) -> Any:
        query = eqx.tree_at(lambda q: q.weigh, trainer.ask(state.trainer, key=jr.key(1)), None)
        population = query.population
        assert population.sampler.hoist(population.shared, population.each) == held
        losses = nd.Vmap(chunks[-1]).evaluate(ROUGH, query, ()).loss
        sums = [population.sums(weights, chunk=chunk) for chunk in chunks]
        parts, _ = population.sampler.draws(population.shared, population.each)
        return losses, sums, parts, population.take(jnp.arange(len(population)))

    losses, sums, parts, members = answers(first(ROUGH, trainer), jnp.asarray(weights))
    by_hand = [rough({leaf: members[leaf][i] for leaf in SHAPES}, np) for i in range(population)]
    np.testing.assert_allclose(losses, by_hand, rtol=1e-5)
    off = {leaf: (np.asarray(members[leaf], float) - START[leaf]) / 0.3 for leaf in SHAPES}
    want = weighted(weights, off), weighted(weights, Noise(plain(parts), np.ones(population)).spread())
    for got in sums:
        for x, y in zip(jtu.tree_leaves((got.first, got.second)), jtu.tree_leaves(want), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4)


# Members


def test_a_member_is_the_same_by_its_factors_and_multiplied_out() -> None:
    """Free, bounded and on a log scale; beside integers of another trainer."""
    start = {
        "free": jnp.asarray(START["m"]),
        "bounded": jnp.asarray(START["k"]) / 2,
        "log": jnp.exp(jnp.asarray(START["m"]) / 2),
        "n": jnp.array([2, 5]),
    }
    domain = {"free": Real(), "bounded": Real(-0.6, 0.6), "log": Real(0.5, 3.0, log=True), "n": nd.Integer(0, 9)}

    def loss(p: Any) -> jax.Array:
        hidden = jnp.tanh(jnp.arange(6.0) @ p["free"] / 9 + jnp.ones(6) @ jnp.log(p["log"]))
        return jnp.einsum("ijk,k,j->", p["bounded"], hidden, jnp.arange(3.0)) + jnp.sum(p["n"] * hidden[:2])

    problem = BlackBox(loss, start, domain=domain)
    search = nd.OpenES(SGD, sigma=0.5, population=10, rank=1)
    labels = {"free": "es", "bounded": "es", "log": "es", "n": "ga"}
    trainer = nd.Split({"es": search, "ga": nd.Genetic(population=4)}, labels)

    @jax.jit
    def answers(state: nd.TrainState) -> Any:
        query = eqx.tree_at(lambda q: q.weigh, trainer.ask(state.trainer, key=jr.key(1))["es"], None)
        return query, nd.Vmap(4).evaluate(problem, query, ()).loss, query.population.take(jnp.arange(10))

    query, losses, members = answers(first(problem, trainer))
    np.testing.assert_allclose(nd.Host(10).evaluate(problem, query, ()).loss, losses, rtol=1e-5, atol=1e-5)
    assert len(np.unique(losses)) == 10 and members["n"] is None
    for leaf, lo, hi in (("bounded", -0.6, 0.6), ("log", 0.5, 3.0)):
        assert members[leaf].min() == np.float32(lo) and members[leaf].max() == np.float32(hi)
        noise = np.log(members[leaf]) - np.log(start[leaf]) if leaf == "log" else members[leaf] - start[leaf]
        inside = (members[leaf] > lo) & (members[leaf] < hi)
        assert inside.mean() > 0.2
        both = inside[::2] & inside[1::2]
        np.testing.assert_allclose((noise[::2] + noise[1::2])[both], 0.0, atol=1e-5)


def test_the_host_compiles_no_chunk_anew() -> None:
    problem = BlackBox(lambda x: float(np.sum(x**2)), np.ones(3))
    query = nd.Query(nd.Population(None, jnp.ones((64, 3)), nd.Points()), None, jr.split(jr.key(0), 64))
    with nd.testing.count_compilations() as compiled:
        nd.Host(4).evaluate(problem, query, ())
    assert len(compiled) < 8  # for 16 chunks


# Right on average


def estimates(trainer: Any, problem: nd.AbstractProblem, times: int = 64) -> Any:
    """The sums of that many first steps, in float64."""
    state = first(problem, trainer).trainer

    def one(key: jax.Array) -> Any:
        query = trainer.ask(state, key=key)
        return nd.Vmap(trainer.population).evaluate(problem, query, ()).sums

    sums = jax.jit(jax.vmap(one))(jr.split(jr.key(4), times))
    return jtu.tree_map(lambda x: np.asarray(x, float), sums)


def assert_mean(samples: np.ndarray, want: Any, most: float) -> None:
    """Within four standard errors, which are small enough to tell."""
    error = samples.std(0, ddof=1) / np.sqrt(len(samples))
    assert error.max() < most
    assert (np.abs(samples.mean(0) - want) < 4 * error).all()


def test_at_rank_1_the_estimate_of_a_slope_is_the_slope() -> None:
    slope = {"k": jnp.asarray(GOAL["k"]), "v": jnp.asarray(GOAL["v"])}
    start = jtu.tree_map(jnp.ones_like, slope)
    problem = BlackBox(lambda p: jnp.vdot(slope["k"], p["k"]) + jnp.vdot(slope["v"], p["v"]), start)
    sums = estimates(nd.OpenES(SGD, sigma=0.1, population=2000, rank=1, weighting=Raw()), problem)
    for name in slope:
        assert_mean(sums.first[name] / (2000 * 0.1), slope[name], 0.05)


@pytest.mark.parametrize("rank", [None, 1, 2])
def test_second_sums_estimate_the_slope_along_the_logarithm_of_sigma(rank: int | None) -> None:
    """For `f = 1/2 sum A x^2` the expected loss is `f(x) + 1/2 sum A sigma^2`, and a coordinate's slope A sigma^2; a
    row's or column's is the sum over it, and the mean over r products is one r-th of it.
    """
    a, sigma = SCALE["m"], 0.8
    problem = BlackBox(lambda x: 0.5 * jnp.sum(a * x**2), jnp.asarray(START["m"]) / 4)
    second = estimates(nd.SNES(sigma=sigma, population=2000, rank=rank, weighting=Raw()), problem).second
    slopes = a * sigma**2
    if rank is None:
        assert_mean(second / 2000, slopes, 0.1)
    else:
        assert_mean(second.rows / 2000, slopes.sum(1) / rank, 0.2)
        assert_mean(second.columns / 2000, slopes.sum(0) / rank, 0.2)


# Memory


def network(*sizes: int) -> tuple[nd.AbstractProblem, Any]:
    """A regression and its network's parameters, arrays `[out, in]` and biases."""
    random = np.random.default_rng(0)
    shapes = list(zip(sizes[1:], sizes, strict=False))
    params = [(jnp.asarray(random.normal(0, 0.2, s), jnp.float32), jnp.zeros(s[0])) for s in shapes]

    def loss(params: Any, batch: Any, key: Any) -> jax.Array:
        x, y = batch
        for w, b in params:
            x = jnp.tanh(x @ w.T + b)
        return jnp.mean((x - y) ** 2, 1)

    rows = jnp.zeros((7, sizes[0])), jnp.zeros((7, sizes[-1]))
    return nd.Supervised(loss, rows, params=params), params


def largest(jaxpr: Any) -> tuple[int, set[tuple[int, ...]]]:
    """The entries of the largest intermediate array, and all shapes."""
    most, shapes = 0, set()
    for equation in jaxpr.eqns:
        for v in equation.outvars:
            shapes.add(v.aval.shape)
            most = max(most, int(np.prod(v.aval.shape)))
        for inner in jaxprs_in_params(equation.params):
            n, more = largest(getattr(inner, "jaxpr", inner))
            most, shapes = max(most, n), shapes | more
    return most, shapes


@pytest.mark.parametrize("rank", [1, None])
def test_at_rank_1_no_members_matrix_exists(rank: int | None) -> None:
    def model(key: jax.Array) -> Any:
        return eqx.nn.MLP(5, 3, 64, 2, key=key)

    static = eqx.filter(eqx.filter_eval_shape(model, jr.key(0)), lambda x: not isinstance(x, jax.ShapeDtypeStruct))

    def loss(p: Any, batch: Any, key: Any) -> jax.Array:
        return jnp.mean((jax.vmap(eqx.combine(p, static))(batch) - 1.0) ** 2)

    def start(key: jax.Array) -> Any:
        return eqx.filter(model(key), eqx.is_inexact_array)

    problem = nd.Supervised(loss, jnp.ones((7, 5)), params=start)
    trainer = nd.OpenES(optax.adam(0.1), sigma=0.1, population=8, rank=rank)
    state = eqx.filter_eval_shape(lambda: first(problem, trainer))
    jaxpr, _, _ = eqx.filter_make_jaxpr(nd.step)(problem, trainer, nd.Vmap(4), state)
    entries, shapes = largest(jaxpr.jaxpr)
    assert any(shape[-2:] == (64, 64) and len(shape) > 2 for shape in shapes) == (rank is None)
    assert (entries >= 4 * 64 * 64) == (rank is None)
    assert (64, 64) in shapes


# Members of another type


def test_members_in_bfloat16_learn_nearly_as_well() -> None:
    x = np.random.default_rng(0).normal(size=(32, 6)).astype(np.float32)
    y = jnp.asarray(np.tanh(x @ START["m"]).sum(1))
    start = {"m": jnp.asarray(GOAL["m"]), "v": jnp.zeros(5), "s": jnp.zeros(())}

    def loss(p: Any, dtype: Any = jnp.float32) -> jax.Array:
        assert {leaf.dtype for leaf in jtu.tree_leaves(p)} == {jnp.dtype(dtype)}
        guess = jnp.tanh(jnp.asarray(x, dtype) @ p["m"]) @ p["v"] + p["s"]
        return jnp.mean((guess.astype(jnp.float32) - y) ** 2)

    def parts(rank: int | None, dtype: Any) -> tuple[Any, Any]:
        optimizer = optax.adam(optax.cosine_decay_schedule(0.1, 150))
        trainer = nd.OpenES(optimizer, sigma=0.1, population=32, rank=rank, compute_dtype=dtype)
        return BlackBox(lambda p: loss(p, dtype or jnp.float32), start, traceable=True), trainer

    last = {}
    for dtype in (None, jnp.bfloat16):
        result = nd.fit(*parts(1, dtype), steps=150, key=jr.key(0))
        floats = [leaf for leaf in jtu.tree_leaves((result.params, result.state.trainer)) if leaf.dtype != jnp.int32]
        assert {leaf.dtype for leaf in floats} == {jnp.dtype(jnp.float32)}
        last[dtype] = float(loss(result.params))
    begin = float(loss(start))
    assert last[None] < 0.05 * begin
    assert last[jnp.bfloat16] < 1.5 * last[None] + 0.01 * begin
    problem, trainer = parts(None, jnp.bfloat16)  # in full, it is enough that the loss sees the type
    eqx.filter_eval_shape(lambda: nd.step(problem, trainer, nd.Vmap(4), first(problem, trainer)))


# Sigmas that add nothing

SMALL = {
    "OpenES": lambda sigma, dtype=None: nd.OpenES(SGD, sigma=sigma, population=4, compute_dtype=dtype),
    "ARS": lambda sigma, dtype=None: nd.ARS(SGD, sigma=sigma, population=4, compute_dtype=dtype),
    "PGPE": lambda sigma, dtype=None: nd.PGPE(SGD, sigma=sigma, population=4, compute_dtype=dtype),
    "SNES": lambda sigma, dtype=None: nd.SNES(SGD, sigma=sigma, population=4, compute_dtype=dtype),
}
ONES = {"far": jnp.zeros(2), "net": [jnp.zeros(3), jnp.ones((2, 2))]}


def summed(p: Any) -> jax.Array:
    return sum((jnp.sum(x) for x in jtu.tree_leaves(p)), jnp.zeros(()))


@pytest.mark.parametrize("name", SMALL)
def test_a_sigma_below_what_floats_resolve_is_refused(name: str) -> None:
    problem = BlackBox(summed, ONES)
    message = rf"`{name}\(sigma\)` is below what float32 can add to `params\['net'\]\[1\]`"
    with pytest.raises(RuntimeError, match=message):
        nd.init(problem, SMALL[name](1e-9), key=jr.key(0))
    message = rf"`{name}\(sigma\)` is below what bfloat16 can add to `params\['net'\]\[1\]`"
    with pytest.raises(RuntimeError, match=message):
        nd.fit(problem, SMALL[name](1e-3, jnp.bfloat16), steps=1, key=jr.key(0))


def test_a_sigma_that_floats_resolve_is_accepted() -> None:
    zeros = jtu.tree_map(jnp.zeros_like, ONES)
    for start, sigma, dtype in ((ONES, 1e-2, jnp.bfloat16), (ONES, 1e-3, None), (zeros, 1e-30, jnp.bfloat16)):
        state = nd.init(BlackBox(summed, start), SMALL["PGPE"](sigma, dtype), key=jr.key(0)).trainer
        assert all(bool(jnp.all(s == jnp.float32(sigma))) for s in jtu.tree_leaves(state.sigma))


@pytest.mark.parametrize("name", ["OpenES", "ARS"])
def test_a_sigma_that_decays_too_far_is_noticed_on_the_way(name: str) -> None:
    trainer = SMALL[name](optax.linear_schedule(0.1, 1e-4, 5), jnp.bfloat16)
    with pytest.raises(RuntimeError, match=rf"`{name}\(sigma\)` is below what bfloat16 can add to `params`") as caught:
        nd.fit(BlackBox(summed, jnp.ones(3)), trainer, steps=20, key=jr.key(0))
    assert 0 < int(caught.value.state.step) <= 5  # pyright: ignore[reportAttributeAccessIssue]
    nd.fit(BlackBox(summed, jnp.ones(3)), trainer, steps=4, key=jr.key(0))


@pytest.mark.parametrize("rank", [None, 1])
def test_a_sigma_that_shrinks_too_far_is_noticed_on_the_way(rank: int | None) -> None:
    trainer = nd.SNES(sigma=0.1, population=16, sigma_rate=2.0, rank=rank, compute_dtype=jnp.bfloat16)
    problem = BlackBox(lambda x: jnp.sum((x - 1.0) ** 2), jnp.full((5, 6), 2.0))
    with pytest.raises(RuntimeError, match=r"`SNES\(sigma\)` is below what bfloat16 can add to `params`") as caught:
        nd.fit(problem, trainer, steps=300, key=jr.key(0))
    assert int(caught.value.state.step) > 5  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(("start", "sigma", "visible"), [(1.0, 1e-3, False), (1e4, 1e-2, True), (1e4, 1e-3, False)])
def test_on_a_log_scale_sigma_is_a_factor(start: float, sigma: float, visible: bool) -> None:
    """Members are rounded as they are, not as their logarithms."""
    problem = BlackBox(summed, jnp.full(3, start), domain=Real(1e-6, 1e6, log=True))
    trainer = SMALL["OpenES"](sigma, jnp.bfloat16)
    if visible:
        state = nd.init(problem, trainer, key=jr.key(0)).trainer
        members = jax.jit(lambda s: trainer.ask(s, key=jr.key(1)).population.take(jnp.arange(4)))(state)
        assert len(np.unique(np.asarray(members, np.float32))) > 4
    else:
        with pytest.raises(RuntimeError, match="below what bfloat16 can add"):
            nd.init(problem, trainer, key=jr.key(0))


# What cannot be built


def build(name: str, **options: Any) -> nd.AbstractTrainer:
    options = {"sigma": 0.1, "population": 4, "optimizer": SGD, **options}
    return getattr(nd, name)(options.pop("optimizer"), **options)


ALL, ADAPTIVE, FIXED = ("OpenES", "ARS", "PGPE", "SNES"), ("PGPE", "SNES"), ("OpenES", "ARS")
COUNT, POSITIVE = "expected a whole number of at least {}", "it must be finite and above 0"
WRONG: list[tuple[tuple[str, ...], dict[str, Any], str]] = [
    (ALL, {"population": 7}, r"\(population=7\)`: antithetic sampling needs an even population; use 6 or 8"),
    *[(ALL, {"population": n}, COUNT.format(2)) for n in (1, 0, -2, 4.0, True)],
    (("OpenES", "SNES"), {"population": 1, "antithetic": False}, COUNT.format(2)),
    *[(ALL, {"rank": r}, rf"\(rank={r!r}\)`: " + COUNT.format(1)) for r in (0, -1, 1.5, True)],
    *[(ALL, {"sigma": s}, rf"\(sigma={s!r}\)`: " + POSITIVE) for s in (0, 0.0, -0.1, float("nan"), float("inf"))],
    *[(ALL, {"sigma": s}, r"\(sigma=.*\)`: expected a number above 0") for s in (True, "0.1", None)],
    (FIXED, {"sigma": lambda step: 0.0 * step}, r"a schedule whose first value is 0.0\)`: " + POSITIVE),
    (ADAPTIVE, {"sigma": optax.constant_schedule(0.1)}, r"\(sigma\)` adapts by itself; give its first value"),
    *[(ADAPTIVE, {"sigma_rate": r}, r"\(sigma_rate=.*\)`: expected a finite number of at least 0")
      for r in (-0.1, float("nan"), float("inf"), True, "0.1")],
    (("PGPE",), {"sigma_rate": None}, r"\(sigma_rate=None\)`: expected a finite number of at least 0"),
    *[(("ARS",), {"elites": e}, r"\(elites=.*\)`: expected a share of the directions, above 0 up to 1")
      for e in (0, 0.0, 1.5, -0.5, True, float("nan"), "half", None)],
    *[(ALL, {"compute_dtype": d}, r"\(compute_dtype=.*\)`: expected a float type, for example `jnp.bfloat16`")
      for d in (jnp.int32, "nonsense", bool, 16, jnp.complex64)],
    (ALL, {"optimizer": optax.sgd(-0.1)}, r"its first step on a gradient of 1 is 0.1, not finite and downhill"),
    (ALL, {"optimizer": 0.1}, r"\(optimizer=0.1\)`: expected an `optax.GradientTransformation`"),
]  # fmt: skip


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("names", "options", "message"), WRONG)
def test_what_cannot_be_built(names: tuple[str, ...], options: dict[str, Any], message: str) -> None:
    for name in names:
        with pytest.raises(ValueError, match=f"`{name}.*{message}") as caught:
            build(name, **options)
        offered = "antithetic=False" in str(caught.value)
        assert not offered or hasattr(getattr(nd, name), "antithetic"), "a way out that is none"


@pytest.mark.parametrize("name", ["ARS", "PGPE", "SNES"])
def test_integer_leaves_are_refused(name: str) -> None:
    problem = BlackBox(summed, {"x": jnp.ones(2), "n": 3}, domain={"x": Real(), "n": nd.Integer(0, 9)})
    with pytest.raises(ValueError, match=rf"`{name}` cannot move `params\['n'\]` \(int32, Integer\(lo=0, hi=9\)\)"):
        nd.init(problem, build(name), key=jr.key(0))


@pytest.mark.usefixtures("unchecked")
def test_least_settings_are_accepted() -> None:
    for name in ALL:
        least: Any = build(name, population=2, rank=1, compute_dtype="bfloat16", sigma=1)
        assert (least.population, least.rank, least.sigma) == (2, 1, 1)
    all_pairs, fixed, single = (
        build("ARS", elites=1),
        build("PGPE", sigma_rate=0),
        build("SNES", population=3, antithetic=False),
    )
    assert (all_pairs.elites, fixed.sigma_rate, single.antithetic) == (1, 0, False)  # pyright: ignore


# Chunks


def chunks(problem: nd.AbstractProblem, trainer: Any, rows: int) -> list[int]:
    """As for a batch of so many rows, from shapes alone."""
    found: list[int] = []

    def shapes(key: jax.Array) -> None:
        query = trainer.ask(nd.init(problem, trainer, key=key).trainer, key=key)
        batch = jtu.tree_map(lambda x: jnp.zeros((rows, *x.shape[1:]), x.dtype), problem.data)  # pyright: ignore
        found.append(chunk_of(problem, query, batch))

    jax.eval_shape(shapes, jr.key(0))
    return found


def es(population: int, rank: int | None = 1, **options: Any) -> nd.AbstractTrainer:
    return nd.OpenES(SGD, sigma=0.1, population=population, rank=rank, **options)


@pytest.fixture
def as_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(chunking.LARGEST, jax.default_backend(), chunking.LARGEST["cpu"])


@pytest.mark.usefixtures("as_on_cpu")
def test_default_chunks_of_networks() -> None:
    small, large = network(64, 128, 10)[0], network(64, 960, 960, 10)[0]
    assert chunks(small, es(256), 128) == [32]
    assert chunks(small, es(256, None), 128) == [32]
    assert chunks(large, es(256), 128) == [8]
    assert chunks(large, es(256, None), 128) == [2]  # one member's noise has 4 MB


@pytest.mark.usefixtures("as_on_cpu")
def test_chunks_shrink_with_the_batch_and_are_even_and_at_most_half() -> None:
    problem = network(16, 64, 4)[0]
    for population in (16, 18, 100):
        by_rows = [chunks(problem, es(population), rows)[0] for rows in (1, 100, 2_000, 40_000)]
        assert by_rows == sorted(by_rows, reverse=True) and by_rows[-1] == 2 < by_rows[0]
        assert all(n % 2 == 0 and 2 <= n <= population / 2 for n in by_rows)


def test_fitting_for_any_population_and_size() -> None:
    limit = chunking.LARGEST[jax.default_backend()]
    for entries in (1, 1_000, 30_000, 100_000, 700_000, 10**7):
        own = jax.ShapeDtypeStruct((), jnp.float32)
        found = {
            n: chunking.fitting(n, lambda x, entries=entries: jnp.sum(jnp.broadcast_to(x, (entries,))), own)
            for n in (*range(1, 40), 250, 256, 1000, 4096)
        }
        for n, c in found.items():
            assert 1 <= c <= n and (n % 2 or c % 2 == 0)
            assert n < 16 or 2 <= c <= n / 2
            assert c <= 2 or c * 4 * entries <= limit
            count = -(-n // c)
            assert n % 2 or n - (count - 1) * c > c - 2 * count, "the chunks could be more equal"


def test_what_loops_carry_counts_once_it_depends_on_the_member() -> None:
    """Shared work is none of a chunk's, however large; a member's is, in whatever turn of a loop it appears."""
    entries, n = chunking.LARGEST[jax.default_backend()] // (4 * 4), 256
    shared, own = jnp.ones(entries), jax.ShapeDtypeStruct((), jnp.float32)

    def scanned(w: Any) -> Any:  # the second of the two depends on `w` from the first turn on, the first from the third
        def turn(carry: Any, _: Any) -> Any:
            x, y = carry
            return (x + y, jnp.broadcast_to(w, y.shape)), None

        return jnp.sum(jax.lax.scan(turn, (jnp.zeros(entries), jnp.zeros(1)), None, length=3)[0][0])

    def ends(w: Any) -> Any:  # who has ended keeps its values
        return jnp.sum(jax.lax.while_loop(lambda x: x[0] < w, lambda x: x + shared, jnp.zeros(entries)))

    def apart(w: Any) -> Any:
        total = jax.lax.while_loop(lambda x: x[0] < 9, lambda x: x + shared, jnp.zeros(entries))
        return w * jax.lax.scan(lambda c, x: (c + x, None), jnp.zeros(()), jnp.cumsum(total))[0]

    def chosen(w: Any) -> Any:
        return jnp.sum(jax.lax.cond(w > 0, lambda: shared, lambda: -shared))

    found = {one.__name__: chunking.fitting(n, one, own) for one in (scanned, ends, apart, chosen)}
    assert found == {"scanned": 4, "ends": 4, "apart": n // 2, "chosen": 4}


def test_chunks_of_a_fit_are_a_function_of_shapes() -> None:
    def fitted(seed: int, value: float, evaluator: Any = None, trainer: Any = None) -> tuple[int, ...]:
        problem, params = network(16, 64, 4)
        data = jnp.full((300, 16), value), jnp.full((300, 4), value)
        problem = nd.Supervised(problem.fn, data, params=params, batch_size=200)  # pyright: ignore
        trainer = es(200) if trainer is None else trainer
        return nd.fit(problem, trainer, steps=0, key=jr.key(seed), evaluator=evaluator).chunks

    (usual,) = fitted(0, 0.0)
    assert fitted(1, 0.0) == fitted(0, 5.0) == (usual,) and 2 <= usual <= 100
    assert fitted(0, 0.0, nd.Vmap(chunk=5)) == (5,)
    split = nd.Split({"one": es(200), "two": es(40)}, [("one", "one"), "two"])
    one, two = fitted(0, 0.0, trainer=split)
    assert one == usual and 2 <= two <= 20


def test_the_chunk_is_what_is_used() -> None:
    seen: set[int] = set()

    def note(x: Any) -> Any:
        seen.add(len(x))
        return np.zeros(len(x), np.float32)

    def loss(x: jax.Array) -> jax.Array:
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        return jax.pure_callback(
            lambda x: note(x) if x.ndim > 1 else np.float32(0), shape, x, vmap_method="expand_dims"
        )

    problem = BlackBox(loss, jnp.ones(3), traceable=True)
    for n, evaluator, want in ((12, nd.Vmap(chunk=5), {5, 2}), (24, nd.Vmap(), {12})):
        seen.clear()
        query = nd.Query(nd.Population(None, jnp.ones((n, 3)), nd.Points()), None, jr.split(jr.key(0), n))
        jax.block_until_ready(jax.jit(evaluator.evaluate)(problem, query, ()).loss)
        assert seen == want and [max(want)] == evaluator.chunks(problem, query, ())


EXPERIMENT = '''
"""A parabola."""

import dataclasses

import jax.numpy as jnp
import optax

import nondiff


@dataclasses.dataclass(frozen=True)
class Config:
    steps: int = 2


def make(config: Config) -> nondiff.Experiment:
    problem = nondiff.BlackBox(lambda x: jnp.sum((x - 1.0) ** 2), jnp.zeros((40, 30)))
    return nondiff.Experiment(problem, nondiff.OpenES(optax.sgd(0.1), sigma=0.1, population=40), config.steps)
'''


@pytest.mark.filterwarnings("always")  # as for users, who see them
def test_a_run_keeps_its_chunks_and_says_if_they_change(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.py").write_text(EXPERIMENT)

    def launch(*arguments: str) -> str:
        assert main(arguments) == 0
        out, err = capsys.readouterr()
        return out + err

    def kept() -> list[int]:
        return json.loads((tmp_path / "kept" / "config.json").read_text())["chunks"]

    launch("run", "toy.py", "--run-dir", "kept")
    assert kept() == [20]
    assert re.search(r"(?m)^chunks +20$", launch("show", "kept"))
    monkeypatch.setitem(chunking.LARGEST, jax.default_backend(), 4 * 40 * 30 * 4)  # as on another kind of device
    said = launch("resume", "kept", "--steps", "3")
    assert "the run began with chunks of [20] members and goes on with [4]: the last bits may differ" in said
    assert kept() == [20]


# Sigmas that adapt


@pytest.mark.parametrize(
    "trainer",
    [nd.PGPE(optax.adam(0.2), sigma=0.3, population=24), nd.SNES(sigma=0.3, population=24)],
    ids=["pgpe", "snes"],
)
def test_an_optimum_that_moves_is_followed(trainer: nd.AbstractTrainer) -> None:
    problem = nd.Supervised(
        lambda x, b, k: jnp.sum((x - b) ** 2), lambda step: jnp.where(step < 30, 0.0, 2.0), params=jnp.full(2, -1.0)
    )
    near = nd.fit(problem, trainer, steps=30, key=jr.key(0))
    np.testing.assert_allclose(near.params, [0.0, 0.0], atol=0.3)
    result = nd.fit(problem, trainer, steps=150, state=near.state)
    np.testing.assert_allclose(result.params, [2.0, 2.0], atol=0.1)


def test_snes_narrows_along_the_steep_coordinate() -> None:
    scale = jnp.array([1.0, 30.0])
    problem = BlackBox(lambda x: jnp.sum((scale * x) ** 2), jnp.ones(2))
    for seed in range(2):
        result = nd.fit(problem, nd.SNES(sigma=1.0, population=16), steps=60, key=jr.key(seed))
        wide, narrow = result.state.trainer.sigma
        assert wide > 5 * narrow


def test_pgpe_without_a_rate_keeps_its_sigma() -> None:
    trainer = nd.PGPE(SGD, sigma=0.3, population=12, rank=1, sigma_rate=0.0)
    sigma = nd.fit(QUADRATIC, trainer, steps=5, key=jr.key(0)).state.trainer.sigma
    np.testing.assert_array_equal(sigma.rows, np.float32(0.3))
    np.testing.assert_array_equal(sigma.columns, 1.0)


def test_pgpe_learns_nothing_about_sigma_from_a_slope() -> None:
    """The two of every pair are on average as good as those of any other; what differs is rounding."""
    problem = BlackBox(lambda x: jnp.vdot(SCALE["v"], x), jnp.zeros(7))
    trainer = nd.PGPE(optax.sgd(1e-3), sigma=0.3, population=12)
    sigma = nd.fit(problem, trainer, steps=20, key=jr.key(0)).state.trainer.sigma
    np.testing.assert_allclose(sigma, 0.3, rtol=1e-3)


# Bits


def test_the_same_seed_gives_the_same_bits_whole_or_in_two() -> None:
    trainer = nd.PGPE(optax.adam(0.1), sigma=0.1, population=16, rank=1)
    whole, again = (nd.fit(QUADRATIC, trainer, steps=6, key=jr.key(0)).params for _ in range(2))
    half = nd.fit(QUADRATIC, trainer, steps=2, key=jr.key(0))
    rest = nd.fit(QUADRATIC, trainer, steps=6, state=half.state).params
    np.testing.assert_array_equal(whole, again)
    np.testing.assert_array_equal(whole, rest)
    assert not np.array_equal(whole, half.params)


def test_steps_map_over_seeds() -> None:
    trainer = nd.OpenES(optax.adam(0.1), sigma=0.3, population=12, rank=1)
    states = [nd.init(QUADRATIC, trainer, key=key) for key in jr.split(jr.key(0), 3)]

    def moved(state: nd.TrainState) -> Any:
        return trainer.params(nd.step(QUADRATIC, trainer, nd.Vmap(4), state)[0].trainer)

    together = jax.jit(jax.vmap(moved))(jtu.tree_map(lambda *xs: jnp.stack(xs), *states))
    alone = jax.jit(moved)
    np.testing.assert_allclose(together, [alone(state) for state in states], rtol=1e-4, atol=1e-5)
    assert len(np.unique(np.asarray(together), axis=0)) == 3


def test_members_in_fewer_bits_keep_their_bounds() -> None:
    """The nearest bfloat16 to 0.3 lies beyond it."""
    problem = BlackBox(
        lambda x: jnp.sum(jnp.sqrt(0.3 - x.astype(jnp.float32))), jnp.full(5, 0.29), domain=Real(-0.3, 0.3)
    )
    trainer = nd.OpenES(SGD, sigma=0.2, population=16, compute_dtype=jnp.bfloat16)
    query = trainer.ask(nd.init(problem, trainer, key=jr.key(0)).trainer, key=jr.key(1))
    members = np.asarray(query.population.take(jnp.arange(16)), np.float32)
    assert members.max() == np.float32(jnp.nextafter(jnp.bfloat16(0.3), jnp.bfloat16(0))) and members.min() >= -0.3
    assert nd.fit(problem, trainer, steps=1, key=jr.key(0)).history[-1]["failed"] == 0


def test_an_empty_leaf_does_not_count_in_the_width() -> None:
    problem = BlackBox(lambda p: jnp.sum(p["v"] ** 2), {"v": jnp.ones(3), "none": jnp.zeros((0, 2))})
    row = nd.fit(problem, nd.PGPE(SGD, sigma=0.25, population=4, sigma_rate=0), steps=1, key=jr.key(0)).history[-1]
    np.testing.assert_allclose(row["sigma"], 0.25, rtol=1e-6)


@pytest.mark.parametrize("rank", [None, 1])
def test_the_chunk_that_is_said_gives_the_bits_of_the_default(rank: int | None) -> None:
    problem, start = network(16, 96, 96, 10)[0], es(64, rank)
    usual = nd.fit(problem, start, steps=2, key=jr.key(0))
    (said,) = usual.chunks
    again = nd.fit(problem, start, steps=2, key=jr.key(0), evaluator=nd.Vmap(chunk=said))
    for a, b in zip(jtu.tree_leaves(usual.params), jtu.tree_leaves(again.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_sigmas_of_parameters_in_bfloat16_are_not_rounded_away() -> None:
    problem = BlackBox(lambda x: jnp.sum(x.astype(jnp.float32)), jnp.zeros(50, jnp.bfloat16))
    for trainer in (nd.SNES(SGD, sigma=0.1, population=8), nd.PGPE(SGD, sigma=0.1, population=8)):
        state = nd.fit(problem, trainer, steps=2, key=jr.key(0)).state.trainer
        assert state.sigma.dtype == jnp.float32 and trainer.params(state).dtype == jnp.bfloat16


@pytest.mark.parametrize("rank", [None, 1])
def test_sums_of_parameters_in_bfloat16_have_32_bits(rank: int | None) -> None:
    """Weights near 1 that nearly cancel: in 8 bits, an eighth of the sum would be rounding."""
    problem = BlackBox(lambda p: jnp.sum(p["m"] ** 2), {"m": jnp.ones(SHAPES["m"], jnp.bfloat16)})
    trainer = nd.SNES(sigma=0.3, population=64, rank=rank)
    weights = 1 + np.linspace(-0.01, 0.01, 64).astype(np.float32)

    def answers(state: Any) -> Any:
        population = trainer.ask(state, key=jr.key(1)).population
        sums = population.sums(jnp.asarray(weights), chunk=8)
        return sums, population.sampler.draws(population.shared, population.each)

    state = first(problem, trainer)
    sums, (noise, sign) = jax.jit(answers)(state.trainer)
    assert all(x.dtype == jnp.bfloat16 for x in jtu.tree_leaves(noise))
    want = weighted(weights, Noise(plain(noise), np.asarray(sign)).signed())["m"]
    assert sums.first["m"].dtype == jnp.float32
    np.testing.assert_allclose(sums.first["m"], want, atol=1e-5)
    moved, _ = nd.step(problem, trainer, nd.Vmap(), state)
    point = trainer.params(moved.trainer)["m"]
    assert point.dtype == jnp.bfloat16 and not np.array_equal(point, problem.x0["m"])  # pyright: ignore


def test_best_keeps_the_type_of_the_parameters() -> None:
    problem = BlackBox(lambda x: jnp.sum(x**2), jnp.ones(3, jnp.bfloat16), traceable=True)
    inner = nd.OpenES(SGD, sigma=0.1, population=4, compute_dtype=jnp.float32)
    assert nd.fit(problem, nd.Best(inner), steps=1, key=jr.key(0)).params.dtype == jnp.bfloat16
    with pytest.raises(RuntimeError, match="below what bfloat16 can add"):  # the centre's type is the coarser one
        nd.init(problem, nd.OpenES(SGD, sigma=1e-3, population=4, compute_dtype=jnp.float32), key=jr.key(0))
