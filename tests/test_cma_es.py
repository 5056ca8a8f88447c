"""Covariance matrix adaptation beside a second implementation in NumPy that is given the noise alone, its known counts
of evaluations, and what it promises: 64 bits, endings, failures, whole numbers, the same bits after a resume.
"""

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax
import pytest
from tiers import slow_but

import nondiff as nd
from nondiff import BlackBox, Integer, Real
from nondiff.core.step import keys
from nondiff.testing import check_trainer
from nondiff.testing.common import equal_bits
from nondiff.trainers import adaptation

HOST = nd.Host(64)


def state_of(found: nd.Result | nd.TrainState) -> Any:
    """The trainer's own, without `Best`."""
    state = (found.state if isinstance(found, nd.Result) else found).trainer
    return getattr(state, "inner", state)


# A second implementation


class Constants(NamedTuple):
    """Table 1 of the tutorial, with pycma's step size; `speed` is what a separable covariance is learned faster by."""

    weights: np.ndarray
    mass: float
    c_c: float
    c_sigma: float
    d_sigma: float
    c_1: float
    c_mu: float
    every: int


def constants(n: int, size: int, speed: float) -> Constants:
    raw = np.log((size + 1) / 2) - np.log(np.arange(1, size + 1))
    better, worse = raw[: size // 2], raw[size // 2 :]
    mass, other = better.sum() ** 2 / (better**2).sum(), worse.sum() ** 2 / (worse**2).sum()
    c_1 = speed * 2 / ((n + 1.3) ** 2 + mass)
    c_mu = min(1 - c_1, speed * 2 * (1 / 4 + mass + 1 / mass - 2) / ((n + 2) ** 2 + 2 * mass / 2))
    least = min(1 + c_1 / c_mu, 1 + 2 * other / (mass + 2), (1 - c_1 - c_mu) / (n * c_mu))
    weights = np.where(raw >= 0, raw / better.sum(), least * raw / np.abs(worse).sum())
    c_sigma = min(0.5, (mass + 2) / (n + mass + 3))
    d_sigma = 1 + 2 * max(0.0, max(1.0, 3 - 3 * 2 ** (-n / 9)) * np.sqrt((mass - 1) / (n + 1)) - 1) + c_sigma
    c_c = (4 + mass / n) / (n + 4 + 2 * mass / n)
    return Constants(weights, mass, c_c, c_sigma, d_sigma, c_1, c_mu, int(np.ceil(1 / (10 * n * (c_1 + c_mu)))))


class ByHand:
    """The tutorial's algorithm, step by step; a full covariance as a matrix, a separable one as its diagonal."""

    def __init__(self, mean: np.ndarray, steps: np.ndarray, size: int, *, separable: bool):
        n = len(mean)
        self.n, self.separable, self.c = n, separable, constants(n, size, (n + 1.5) / 3 if separable else 1.0)
        self.mean, self.sigma = mean, steps.max()
        self.units = steps / self.sigma
        self.covariance, self.axes, self.scale = np.eye(n), np.eye(n), np.ones(n)
        self.length, self.path, self.step = np.zeros(n), np.zeros(n), 0
        self.unusual = 0
        """Steps at which the path of the covariance was held."""

    def members(self, z: np.ndarray) -> np.ndarray:
        return self.mean + self.sigma * self.units * (z * self.scale @ self.axes.T)

    def tell(self, z: np.ndarray, losses: np.ndarray) -> None:
        n, c = self.n, self.c
        y = z * self.scale @ self.axes.T
        weights = self._shared(losses)
        plus, minus = np.clip(weights, 0, None), np.clip(weights, None, 0)
        plus[~np.isfinite(losses)] = 0
        plus /= plus.sum()
        mass = 1 / (plus**2).sum()
        mean_y = plus @ y
        self.mean = self.mean + self.sigma * self.units * mean_y
        whitened = self.axes @ np.diag(1 / self.scale) @ self.axes.T @ mean_y
        self.length = (1 - c.c_sigma) * self.length + np.sqrt(c.c_sigma * (2 - c.c_sigma) * mass) * whitened
        expected = np.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n**2))
        norm = np.linalg.norm(self.length)
        self.sigma = self.sigma * np.exp(min(1, c.c_sigma / c.d_sigma * (norm / expected - 1)))
        self.step += 1
        usual = norm / np.sqrt(1 - (1 - c.c_sigma) ** (2 * self.step)) < (1.4 + 2 / (n + 1)) * expected
        self.unusual += not usual
        self.path = (1 - c.c_c) * self.path + usual * np.sqrt(c.c_c * (2 - c.c_c) * mass) * mean_y
        new = (1 - c.c_1 - c.c_mu * (plus + minus).sum()) * self.covariance
        if not usual:
            new = new + c.c_1 * c.c_c * (2 - c.c_c) * self.covariance
        new = new + c.c_1 * np.outer(self.path, self.path)
        for p, m, one, one_z in zip(plus, minus, y, z, strict=True):
            new = new + c.c_mu * (p + m * n / (one_z**2).sum()) * np.outer(one, one)
        self.covariance = np.diag(np.diag(new)) if self.separable else new

    def _shared(self, losses: np.ndarray) -> np.ndarray:
        """The weight of each, by its rank; failures share the last ones."""
        losses = np.where(np.isfinite(losses), losses, np.inf)
        ranked = np.sort(losses)
        return np.array([self.c.weights[ranked == x].mean() for x in losses])

    def decompose(self, axes: np.ndarray) -> None:
        """The lengths are ours. Of the axes, the signs, and any turn where lengths are equal, are as they may be."""
        np.testing.assert_allclose(axes @ axes.T, np.eye(self.n), atol=1e-12)
        self.axes, self.scale = axes, np.sqrt(np.diag(axes.T @ self.covariance @ axes))
        np.testing.assert_allclose(self.scale**2, np.linalg.eigvalsh(self.covariance), rtol=1e-9)


def valley(n: int) -> Callable[[Any], Any]:
    """Bent, long and thin; it fails on one side."""
    random = np.random.default_rng(n)
    turn, scale, goal = (
        np.linalg.qr(random.normal(size=(n, n)))[0],
        10 ** random.uniform(-1, 1, n),
        random.normal(size=n),
    )

    def loss(x: np.ndarray) -> np.ndarray:
        z = scale * (((x - goal)[..., None] * turn).sum(-2))
        return np.where(x[..., 0] > 0.25, np.nan, (z**2).sum(-1) + 3 * (z[..., 0] ** 2 - z[..., 1]) ** 2)

    return loss


BY_HAND: dict[str, tuple[nd.AbstractTrainer, int, int, int]] = {
    "full": (nd.CMAES({"a": 0.5, "b": 0.1}), 7, 9, 1),
    "lazy": (nd.CMAES({"a": 0.5, "b": 0.1}, population=4), 61, 4, 3),
    "separable": (nd.SepCMAES({"a": 0.5, "b": 0.1}), 7, 9, 1),
}
"""The trainer, how many coordinates, members, and steps between two decompositions."""


@pytest.mark.parametrize("name", BY_HAND)
def test_steps_by_hand(name: str) -> None:
    trainer, n, size, every = BY_HAND[name]
    loss, random = valley(n), np.random.default_rng(0)
    start = {"a": np.append(0.0, random.normal(size=2)), "b": random.normal(size=(1, n - 3))}
    problem = BlackBox(
        lambda p: loss(np.concatenate([p["a"], p["b"].reshape(len(p["b"]), -1)], 1)), start, vectorized=True
    )
    steps = np.repeat([0.5, 0.1], [3, n - 3])
    hand = ByHand(np.concatenate([x.ravel() for x in start.values()]), steps, size, separable=name == "separable")
    assert hand.c.every == every
    state, failed = nd.init(problem, trainer, key=jr.key(1)), 0
    for step in range(1, 31):
        population = trainer.ask(state.trainer, key=keys(state)[1]).population
        z = np.asarray(population.sampler.draws(population.shared, population.each), float)
        assert z.shape == (size, n)
        losses = loss(hand.members(z))
        failed += np.isnan(losses).sum()
        hand.tell(z, losses)
        old = state.trainer.spread
        state, metrics = nd.step(problem, trainer, HOST, state)
        got = state.trainer
        np.testing.assert_allclose(metrics["best"], np.nanmin(losses), rtol=1e-9)
        np.testing.assert_allclose(got.mean, hand.mean, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(got.sigma, hand.sigma, rtol=1e-9)
        np.testing.assert_allclose(got.length, hand.length, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(got.path, hand.path, rtol=1e-9, atol=1e-9)
        params = trainer.params(got)
        np.testing.assert_array_equal(np.append(params["a"], params["b"]), got.mean)
        if name == "separable":
            hand.scale = np.sqrt(np.diag(hand.covariance))
            np.testing.assert_allclose(got.spread.scale, hand.scale, rtol=1e-9)
        else:
            np.testing.assert_allclose(got.spread.covariance, hand.covariance, rtol=1e-9, atol=1e-9)
            if step % every:
                equal_bits((old.axes, old.scale), (got.spread.axes, got.spread.scale), "a decomposition too early")
            else:
                hand.decompose(got.spread.axes)
                whole = got.spread.axes * got.spread.scale**2 @ got.spread.axes.T
                np.testing.assert_allclose(whole, got.spread.covariance, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(metrics["sigma"], hand.sigma, rtol=1e-9)
        np.testing.assert_allclose(metrics["axis_ratio"], hand.scale.max() / hand.scale.min(), rtol=1e-9)
    assert 0 < failed < 15 * size and (0 < hand.unusual < 30) == (name != "lazy")  # both branches were taken


# What it costs to converge


def turned(n: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(3).normal(size=(n, n)))[0]


def shape(name: str, n: int) -> Callable[[np.ndarray], np.ndarray]:
    """Every row by itself, so that its loss does not depend on the others."""
    goal, scale, turn = np.random.default_rng(7).uniform(-3, 3, n), 10.0 ** (6 * np.arange(n) / (n - 1)), turned(n)
    return {
        "sphere": lambda x: ((x - goal) ** 2).sum(-1),
        "ellipsoid": lambda x: (scale * (x - goal) ** 2).sum(-1),
        "rotated": lambda x: (scale * ((x - goal)[..., None] * turn).sum(-2) ** 2).sum(-1),
    }[name]


CONVERGING = nd.Best(nd.CMAES(2.0, tolfun=0, tolx=0))
KNOWN = {
    (10, "sphere"): 1_550,
    (10, "ellipsoid"): 4_110,
    (10, "rotated"): 4_080,
    (40, "sphere"): 5_250,
    (40, "ellipsoid"): 48_495,
    (40, "rotated"): 48_075,
}
"""Evaluations to 1e-8 from a start in a cube of width 8, sigma 2: medians of pycma's."""


@pytest.mark.parametrize(("n", "name"), slow_but(KNOWN, (10, "sphere")))
def test_evaluations_to_the_optimum(n: int, name: str, unchecked: None) -> None:
    loss, counts, seen = shape(name, n), [], set()

    def noted(x: np.ndarray) -> np.ndarray:
        seen.add((x.dtype, jnp.asarray(0.1).dtype, jnp.zeros(()).dtype))
        return loss(x)

    for seed in range(5 if n == 10 else 3):
        problem = BlackBox(noted, np.random.default_rng(seed).uniform(-4, 4, n), vectorized=True)
        stop = [nd.Target(1e-8, "best_ever")]
        result = nd.fit(problem, CONVERGING, steps=10_000, key=jr.key(seed), stop=stop, log_every=1, evaluator=HOST)
        assert result.reason == "the target 1e-08 was reached"
        counts.append(result.evaluations)
        assert isinstance(result.params, np.ndarray) and result.params.dtype == np.float64
        assert loss(result.params) == result.history[-1]["best_ever"] == result.state.trainer.loss
    assert abs(np.median(counts) / KNOWN[n, name] - 1) < 0.12, counts
    # Not a word of it to anybody else: neither during an evaluation nor afterwards.
    assert seen == {(np.dtype(np.float64), np.dtype(np.float32), np.dtype(np.float32))}
    assert not jax.config.jax_enable_x64 and jnp.asarray(np.zeros(1)).dtype == jnp.float32  # pyright: ignore


def test_digits_that_32_bits_do_not_have(unchecked: None) -> None:
    loss = shape("rotated", 10)
    problem = BlackBox(loss, np.random.default_rng(0).uniform(-4, 4, 10), vectorized=True)
    stop = [nd.Target(1e-18, "best_ever")]
    result = nd.fit(problem, CONVERGING, steps=1_000, key=jr.key(0), stop=stop, log_every=1, evaluator=HOST)
    assert loss(result.params) <= 1e-18
    assert loss(result.params.astype(np.float32).astype(float)) > 1e-10


def test_a_function_in_jax_gets_the_bits_of_its_parameters() -> None:
    seen = set()

    def loss(x: jax.Array) -> jax.Array:
        seen.add(x.dtype)
        return jnp.sum((x - 1) ** 2)

    problem = BlackBox(loss, jnp.zeros(2), traceable=True)
    result = nd.fit(problem, SMALL, steps=30, key=jr.key(0))
    assert seen == {jnp.dtype(jnp.float32)} and result.params.dtype == jnp.float32
    np.testing.assert_allclose(result.params, 1.0, atol=1e-2)
    assert state_of(result).mean.dtype == np.float64


# Endings

SMALL = nd.CMAES(1.0, tolfun=1e-6, tolx=1e-5)
ENDINGS: dict[int, Callable[[np.random.Generator], Callable[[np.ndarray], np.ndarray]]] = {
    1: lambda random: lambda x: 1e-3 * ((x - 1) ** 2).sum(-1),
    2: lambda random: lambda x: 1e6 * np.abs(x - 1).sum(-1),
    3: lambda random: lambda x: 1e16 * (x[:, 0] - 1) ** 2,
    4: lambda random: lambda x: random.random(len(x)),
    5: lambda random: lambda x: x[:, 0],
}
"""Losses of two coordinates that end a search for that reason."""


def history(f: Callable[[np.ndarray], np.ndarray], steps: int) -> Iterator[tuple[np.ndarray, Any]]:
    """The losses and the state of each step, whether it has ended or not."""
    losses: list[np.ndarray] = []

    def noted(x: np.ndarray) -> np.ndarray:
        losses.append(f(x))
        return losses[-1]

    problem = BlackBox(noted, np.zeros(2), vectorized=True, traceable=False)
    state = nd.init(problem, SMALL, key=jr.key(1))
    for _ in range(steps):
        state, _ = nd.step(problem, SMALL, HOST, state)
        yield losses[-1], state.trainer


def holds(number: int, losses: list[np.ndarray], state: Any) -> bool:
    """By hand, for 2 coordinates and 6 members."""
    bests, medians = [x.min() for x in losses], [np.sort(x)[2] for x in losses]
    if number == 1:
        last = np.array(bests[-20:])
        return len(losses) >= 20 and np.ptp(last) < 1e-6 and np.ptp(losses[-1]) < 1e-6
    if number == 2:
        covariance = state.spread.covariance
        return bool((state.sigma * np.maximum(np.abs(state.path), np.sqrt(np.diag(covariance))) < 1e-5).all())
    squares = np.linalg.eigvalsh(state.spread.covariance)
    if number == 3:
        return bool(squares[1] > 1e14 * max(squares[0], 0.0))
    if number == 4:
        many = 120 + int(60 / (4 + 3 * np.log(2)))
        third = many * 3 // 10
        windows = [(x[-third:], x[-many : len(x) - many + third]) for x in (bests, medians)]
        return len(losses) >= many and all(np.median(new) >= np.median(old) for new, old in windows)
    return bool(state.sigma * np.sqrt(np.diag(state.spread.covariance).max()) > 1e4)


@pytest.mark.parametrize("number", ENDINGS)
def test_a_search_ends_for_its_reason(number: int, unchecked: None) -> None:
    loss = ENDINGS[number]
    losses: list[np.ndarray] = []
    for step, (found, state) in enumerate(history(loss(np.random.default_rng(1)), 300), 1):  # noqa: B007
        losses.append(found)
        reasons = [i for i in ENDINGS if holds(i, losses, state)]
        assert int(SMALL.ended(state)) == min(reasons, default=0)
        if reasons:
            break
    assert reasons == [number]  # pyright: ignore[reportPossiblyUnboundVariable]
    text = SMALL.endings[number - 1]
    for trainer in (SMALL, nd.Best(SMALL)):
        problem = BlackBox(loss(np.random.default_rng(1)), np.zeros(2), vectorized=True, traceable=False)
        result = nd.fit(problem, trainer, steps=1_000, key=jr.key(1), evaluator=HOST)
        assert trainer.endings == SMALL.endings and result.reason == text
        assert result.steps == step and result.evaluations == 6 * step  # pyright: ignore
        again = nd.fit(problem, trainer, steps=1_000, state=result.state, evaluator=HOST)
        assert (again.steps, again.evaluations, again.reason) == (result.steps, 0, text)
        equal_bits(result.state, again.state, "a search that has ended went on")


def test_endings_say_their_tolerances() -> None:
    texts = SMALL.endings
    assert len(texts) == 5
    assert texts[0].endswith("differ by less than tolfun = 1e-06") and "tolx = 1e-05 of the first sigma" in texts[1]
    assert "condition number is above 1e14" in texts[2] and "have grown 10,000-fold" in texts[4]
    assert nd.SepCMAES(0.5).endings == nd.CMAES(0.5).endings


def test_a_split_ends_when_all_of_its_parts_have(unchecked: None) -> None:
    trainer = nd.Split({"near": SMALL, "far": SMALL}, {"a": "near", "b": "far"})
    ended = []

    def loss(p: Any) -> np.ndarray:
        return 1e6 * (np.abs(p["a"] - 1).sum(-1) + np.abs(p["b"] - 300).sum(-1))

    def noted(moment: nd.Moment) -> None:
        ended.append([int(SMALL.ended(moment.state.trainer[name])) for name in ("near", "far")])

    problem = BlackBox(loss, {"a": np.zeros(2), "b": np.zeros(2)}, vectorized=True)
    options: dict[str, Any] = {"evaluator": HOST, "callbacks": [noted], "log_every": 1}
    result = nd.fit(problem, trainer, steps=1_000, key=jr.key(0), **options)
    assert result.reason == trainer.endings[0] and result.steps == len(ended)
    assert ended[-1] == [2, 2] and not any(all(each) for each in ended[:-1])
    assert sum(near > 0 for near, _ in ended) > 10  # it waited for the other
    np.testing.assert_allclose(np.append(result.params["a"], result.params["b"]), [1, 1, 300, 300], rtol=1e-4)


# Failures


@pytest.mark.parametrize("failure", [np.nan, np.inf, -np.inf])
def test_half_of_the_evaluations_may_fail(failure: float) -> None:
    random = np.random.default_rng(0)

    def loss(x: np.ndarray) -> np.ndarray:
        return np.where(random.random(len(x)) < 0.5, failure, ((x - 1) ** 2).sum(-1))

    problem = BlackBox(loss, np.zeros(2), vectorized=True, traceable=False)
    result = nd.fit(problem, SMALL, steps=200, key=jr.key(0), evaluator=HOST, log_every=1, lost=5)
    failed = sum(row["failed"] for row in result.history) / result.evaluations
    assert 0.4 < failed < 0.6
    np.testing.assert_allclose(result.params, 1.0, atol=5e-3)


def test_where_all_fail_nothing_moves() -> None:
    at = 5

    def loss(x: np.ndarray) -> np.ndarray:
        calls.append(len(x))
        return np.where(len(calls) > at, np.nan, (x**2).sum(-1))

    calls: list[int] = []
    problem = BlackBox(loss, np.ones(2), vectorized=True, traceable=False)
    with pytest.raises(nd.NonFiniteError, match=f"step {at + 1}: all evaluations of a query failed") as caught:
        nd.fit(problem, SMALL, steps=50, key=jr.key(0), evaluator=HOST)
    calls.clear()
    before = nd.fit(problem, SMALL, steps=at, key=jr.key(0), evaluator=HOST).state
    equal_bits(before.trainer, caught.value.state.trainer, "all evaluations failed, and the state moved")


@pytest.mark.parametrize(
    "trainer",
    [SMALL, nd.SepCMAES(1.0)],
    ids=["full", "separable"],
)
def test_equal_losses_do_not_move_the_mean(trainer: nd.AbstractTrainer) -> None:
    n = 2 if trainer is SMALL else 10
    problem = BlackBox(lambda x: np.full(len(x), 7.0), np.ones(n), vectorized=True)
    state = nd.init(problem, trainer, key=jr.key(0))
    sigmas = []
    for _ in range(3):
        state, metrics = nd.step(problem, trainer, HOST, state)
        sigmas.append(float(metrics["sigma"]))
    np.testing.assert_array_equal(trainer.params(state.trainer), np.ones(n))
    assert sigmas[0] > 1.0 and sigmas[2] > sigmas[1] > sigmas[0]  # it looks further away


# Whole numbers


def bits_and_valley(p: Any) -> np.ndarray:
    return (1 + (p["bits"] == 0).sum(-1)) * (1e-9 + (p["x"] ** 2).sum(-1))


def test_many_bits_times_a_valley_need_the_margin(monkeypatch: pytest.MonkeyPatch, unchecked: None) -> None:
    """All members come to have the same bits while the valley's bottom is still being found."""
    start = {"bits": np.zeros(10, np.int32), "x": np.full(5, 2.0)}
    domain = {"bits": Integer(0, 1), "x": Real()}
    problem = BlackBox(bits_and_valley, start, domain=domain, vectorized=True)

    def hits(trainer: nd.AbstractTrainer) -> int:
        results = [nd.fit(problem, trainer, steps=80, key=jr.key(seed), evaluator=HOST) for seed in range(8)]
        return sum(bool((result.params["bits"] == 1).all()) for result in results)

    assert hits(nd.Best(nd.CMAES(1.0, tolfun=0, tolx=0))) >= 4
    monkeypatch.setattr(adaptation, "with_margin", lambda mean, sigma, units, *rest: (mean, units))
    jax.clear_caches()  # or what was compiled with the margin would be used again
    assert hits(nd.Best(nd.CMAES(1.0, tolfun=0, tolx=0))) == 0
    jax.clear_caches()


# A run in two


def same_and_exact(whole: nd.Result, rest: nd.Result) -> None:
    equal_bits(whole.state, rest.state, "2 + 4 steps are not 6")
    for a, b in zip(jtu.tree_leaves(whole.state), jtu.tree_leaves(rest.state), strict=True):
        assert a.dtype == b.dtype and isinstance(a, np.ndarray) == isinstance(b, np.ndarray)
    own = state_of(rest)
    for x in (own.mean, own.sigma, own.spread.covariance, own.spread.axes, own.path, own.bests):
        assert isinstance(x, np.ndarray) and x.dtype == np.float64


@pytest.mark.parametrize("disk", [False, True], ids=["memory", "disk"])
def test_two_steps_and_four_are_six(disk: bool, tmp_path: pathlib.Path) -> None:
    problem = BlackBox(
        lambda x: np.abs(x - 0.1).sum(-1), np.array([0.3, -0.7]), vectorized=True, domain=Real(-1.0, 0.4)
    )
    trainer = nd.Best(SMALL)
    whole = nd.fit(problem, trainer, steps=6, key=jr.key(0), evaluator=HOST)
    widest = state_of(whole).sigma * np.sqrt(np.diag(state_of(whole).spread.covariance)).max()
    assert widest <= 1.4 / 3 * (1 + 1e-12)  # no step is longer than a third of the range
    if disk:
        with nd.Checkpointer(tmp_path, every=2, minutes=None) as checkpoints:
            nd.fit(problem, trainer, steps=2, key=jr.key(0), evaluator=HOST, callbacks=[checkpoints])
        start: Any = nd.Checkpointer(tmp_path).restore(nd.init(problem, trainer, key=jr.key(1)))
        assert start.step == 2
    else:
        start = nd.fit(problem, trainer, steps=2, key=jr.key(0), evaluator=HOST).state
    rest = nd.fit(problem, trainer, steps=6, state=start, evaluator=HOST)
    same_and_exact(whole, rest)
    assert rest.params.dtype == np.float64 and not np.array_equal(rest.params, problem.x0)
    np.testing.assert_array_equal(whole.params, rest.params)


# Where JAX has 64 bits itself

HEAD = """
import json
import jax, jax.numpy as jnp, jax.random as jr, numpy as np
import nondiff as nd
from nondiff.testing import check_trainer
"""
BOTH = """
trainer, scale = nd.CMAES(0.5), 10.0 ** np.arange(5)
plain = nd.BlackBox(lambda x: float((scale * (x - 0.5) ** 2).sum()), np.zeros(5))
traced = nd.BlackBox(lambda x: (scale * (x - 0.5) ** 2).sum(), np.zeros(5), traceable=True)
results = [nd.fit(problem, trainer, steps=20, key=jr.key(0)) for problem in (plain, traced)]
means = [result.state.trainer.mean for result in results]
assert all(isinstance(x, jax.Array) and x.dtype == jnp.float64 for x in means)
print(json.dumps([[trainer.traceable, plain.traceable, traced.traceable], [x.tolist() for x in means]]))
"""


def alone(code: str) -> str:
    """In a process where JAX has 64 bits."""
    root = pathlib.Path(nd.__file__).parents[1]
    environment = {**os.environ, "JAX_ENABLE_X64": "1", "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", HEAD + code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_where_jax_has_64_bits_the_trainer_is_traceable_and_finds_the_same() -> None:
    traceable, means = json.loads(alone(BOTH))
    assert traceable == [True, False, True]
    trainer, scale = nd.CMAES(0.5), 10.0 ** np.arange(5)
    problem = BlackBox(lambda x: float((scale * (x - 0.5) ** 2).sum()), np.zeros(5))
    want = nd.fit(problem, trainer, steps=20, key=jr.key(0)).state.trainer.mean
    assert not trainer.traceable and isinstance(want, np.ndarray)
    np.testing.assert_allclose(*means, rtol=1e-10, atol=1e-10)
    for mean in means:
        np.testing.assert_allclose(mean, want, rtol=1e-5)  # the noise has 32 bits, of which the last may differ


@pytest.mark.slow
@pytest.mark.parametrize("name", ["CMAES", "SepCMAES"])
def test_the_contract_where_jax_has_64_bits(name: str) -> None:
    alone(f"check_trainer(nd.{name}(0.5))")


# The contract


@pytest.mark.slow
@pytest.mark.parametrize("name", ["CMAES", "SepCMAES"])
def test_the_contract(name: str) -> None:
    """Of a moving optimum, too."""
    check_trainer(getattr(nd, name)(0.5))


def test_an_optimum_that_moves_is_followed() -> None:
    goal = np.zeros(2)
    problem = BlackBox(lambda x: ((x - goal) ** 2).sum(-1), np.ones(2), vectorized=True)
    state, sigmas = nd.init(problem, SMALL, key=jr.key(0)), []
    for aim, steps in ((0.0, 60), (50.0, 100)):
        goal[:] = aim
        for _ in range(steps):
            state, metrics = nd.step(problem, SMALL, HOST, state)
            sigmas.append(float(metrics["sigma"]))
        np.testing.assert_allclose(SMALL.params(state.trainer), aim, atol=1e-2)
    assert sigmas[59] < 1e-2 and max(sigmas[60:]) > 1


@pytest.mark.slow
def test_beside_a_gradient_and_a_search() -> None:
    start = {"a": np.zeros(2), "b": jnp.zeros(3), "n": jnp.zeros(2, int)}
    trainers = {"cma": SMALL, "slope": nd.Backprop(optax.sgd(0.1)), "search": nd.Genetic(population=8)}
    problem = BlackBox(
        lambda p: jnp.sum((p["a"] - p["n"]) ** 2) + jnp.sum((p["b"] - 1) ** 2) + jnp.sum(jnp.abs(p["n"] - 3)),
        start,
        domain={"a": Real(), "b": Real(), "n": Integer(0, 9)},
        traceable=True,
    )
    result = nd.fit(problem, nd.Split(trainers, {"a": "cma", "b": "slope", "n": "search"}), steps=80, key=jr.key(0))
    np.testing.assert_array_equal(result.params["n"], 3)
    np.testing.assert_allclose(result.params["a"], 3.0, atol=0.1)
    np.testing.assert_allclose(result.params["b"], 1.0, atol=1e-3)
    row = result.history[-1]
    assert {"cma/sigma", "cma/axis_ratio"} < set(row) and row["cma/axis_ratio"] >= 1


def test_memetic_refuses_what_averages() -> None:
    trainer = nd.Memetic(SMALL, rate=0.1)
    state = nd.init(BlackBox(lambda x: jnp.sum(x**2), jnp.ones(2)), trainer, key=jr.key(0))
    with pytest.raises(ValueError, match="averages its members and keeps none"):
        trainer.ask(state.trainer, key=jr.key(1))


def test_the_mean_follows_members_to_their_numbers() -> None:
    """By hand; with steps so wide, the margin changes nothing."""
    start = {"n": np.array([3, -7]), "x": np.array([0.25])}
    loss = lambda p: (p["n"] ** 2).sum(1) + p["x"][:, 0]  # noqa: E731
    problem = BlackBox(loss, start, domain={"n": Integer(-50, 50), "x": Real()}, vectorized=True)
    trainer = nd.CMAES(2.0, population=9)
    state = nd.init(problem, trainer, key=jr.key(0))
    z = np.asarray(trainer.ask(state.trainer, key=keys(state)[1]).population.each, float)
    members = np.append(start["n"], start["x"]) + 2 * z
    members[:, :2] = np.where(np.round(members[:, :2]) != start["n"], np.round(members[:, :2]), members[:, :2])
    order = np.argsort((np.round(members[:, :2]) ** 2).sum(1) + members[:, 2], kind="stable")
    weights = constants(3, 9, 1.0).weights.clip(0)
    want = weights[weights > 0] @ members[order][weights > 0]
    np.testing.assert_allclose(nd.step(problem, trainer, HOST, state)[0].trainer.mean, want, rtol=1e-12)


# What is given


def first_steps(trainer: nd.AbstractTrainer, start: Any, domain: Any = None) -> np.ndarray:
    """Of every coordinate."""
    problem = BlackBox(lambda p: 0.0, start, domain=domain)
    state = nd.init(problem, trainer, key=jr.key(0)).trainer
    return np.asarray(state.sigma * state.units)


def test_the_first_steps() -> None:
    start = {"a": np.array([3.0, -20.0]), "b": np.array(0.5), "c": np.array(2), "d": np.array(0.01)}
    domain = {"a": Real(), "b": Real(-1.0, 1.0), "c": Integer(0, 10), "d": Real(1e-4, 1.0, log=True)}
    np.testing.assert_allclose(first_steps(nd.CMAES(0.2), start, domain), 0.2, rtol=1e-15)
    tree = {"a": 5, "b": 0.1, "c": 2.0, "d": 0.7}
    np.testing.assert_allclose(first_steps(nd.CMAES(tree), start, domain), [5, 5, 0.1, 2, 0.7], rtol=1e-15)
    want = [6, 6, 0.6, 3, 0.3 * np.log(1e4)]  # of the largest number, or of the range
    np.testing.assert_allclose(first_steps(nd.CMAES(), start, domain), want, rtol=1e-6)
    np.testing.assert_allclose(first_steps(nd.CMAES(), np.full(3, 0.1)), 0.3, rtol=1e-7)


def test_the_population() -> None:
    for n, size in ((1, 4), (2, 6), (10, 10), (40, 15), (1000, 24)):
        assert nd.CMAES(0.5).size(n) == nd.SepCMAES(0.5).size(n) == size
    assert nd.CMAES(0.5, population=7).size(40) == 7


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "zero": ({"sigma": 0}, r"`CMAES\(sigma=0\)`: it must be finite and above 0"),
    "negative": ({"sigma": -0.1}, r"`CMAES\(sigma=-0.1\)`: it must be finite and above 0"),
    "nan": ({"sigma": float("nan")}, r"`CMAES\(sigma=nan\)`: it must be finite and above 0"),
    "in_a_tree": ({"sigma": {"a": 1.0, "b": 0.0}}, r"`CMAES\(sigma=0.0\)`: it must be finite and above 0"),
    "true": ({"sigma": True}, r"`CMAES\(sigma=True\)`: expected a number above 0"),
    "word": ({"sigma": "wide"}, r"`CMAES\(sigma='wide'\)`: expected a number above 0"),
    "schedule": ({"sigma": optax.constant_schedule(1.0)}, r"`CMAES\(sigma\)` adapts by itself; give its first value"),
    "three": ({"population": 3}, r"`CMAES\(population=3\)`: expected a whole number of at least 4"),
    "half": ({"population": 4.0}, r"`CMAES\(population=4.0\)`: expected a whole number of at least 4"),
    "yes": ({"population": True}, r"`CMAES\(population=True\)`: expected a whole number of at least 4"),
    "below": (
        {"tolfun": -1e-9},
        r"`CMAES\(tolfun=-1e-09\)`: expected a finite number of at least 0, for example 1e-11",
    ),
    "endless": ({"tolx": float("inf")}, r"`CMAES\(tolx=inf\)`: expected a finite number of at least 0"),
    "no_number": ({"tolx": float("nan")}, r"`CMAES\(tolx=nan\)`: expected a finite number of at least 0"),
    "flag": ({"tolfun": False}, r"`CMAES\(tolfun=False\)`: expected a finite number of at least 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_arguments_are_refused(name: str, unchecked: None) -> None:
    arguments, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        nd.CMAES(**arguments)
    with pytest.raises(ValueError, match=message.replace("CMAES", "SepCMAES")):
        nd.SepCMAES(**arguments)


def test_what_does_not_fit_the_parameters_is_refused() -> None:
    def start(trainer: nd.AbstractTrainer, x0: Any, domain: Any = None) -> None:
        nd.init(BlackBox(lambda p: 0.0, x0, domain=domain), trainer, key=jr.key(0))

    with pytest.raises(ValueError, match=r"`CMAES\(sigma\)` must be a prefix of the parameters, and is not"):
        start(nd.CMAES({"a": 1.0, "c": 1.0}), {"a": np.zeros(2), "b": np.zeros(2)})
    with pytest.raises(
        ValueError, match=r"`SepCMAES` cannot move `params\['n'\]` \(int32, Categorical\(n=3\)\).*Split"
    ):
        start(nd.SepCMAES(1.0), {"n": np.zeros(2, np.int32), "x": np.zeros(2)}, {"n": nd.Categorical(3), "x": Real()})


def test_a_sigma_of_a_tree_beside_leaves_of_others() -> None:
    problem = BlackBox(lambda p: 0.0, {"a": np.zeros(2), "b": np.zeros(3), "n": np.zeros((), int)}, domain=DOMAIN)
    split = nd.Split({"cma": nd.CMAES({"a": 1.0, "b": 2.0, "n": None}), "search": nd.Genetic(population=4)}, LABELS)
    state = nd.init(problem, split, key=jr.key(0)).trainer["cma"]
    np.testing.assert_allclose(state.sigma * state.units, [1, 1, 2, 2, 2], rtol=1e-15)
    assert split.params(nd.init(problem, split, key=jr.key(0)).trainer)["n"] == 0


DOMAIN = {"a": Real(), "b": Real(), "n": Integer(0, 3)}
LABELS = {"a": "cma", "b": "cma", "n": "search"}
