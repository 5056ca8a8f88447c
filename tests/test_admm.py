"""ADMM: convex problems against second implementations, every kind of inner trainer, and what it says of bad input."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
import scipy.optimize
from helpers import FOR_STEADY_LOSSES, TRAINERS, adam

import nondiff as nd
from nondiff.testing import check_trainer
from nondiff.testing.common import Mixed

RANDOM = np.random.default_rng(0)
A = RANDOM.normal(size=(40, 10))
Y = A @ (RANDOM.normal(size=10) * (RANDOM.random(10) < 0.4)) + 0.1 * RANDOM.normal(size=40)
L = np.linalg.norm(A, 2) ** 2


def squares(x: Any) -> Any:
    return 0.5 * jnp.sum((A @ x - Y) ** 2)


def lasso(weight: float, columns: int = 10) -> np.ndarray:
    """By coordinate descent, until nothing moves."""
    x, rest = np.zeros(columns), Y.copy()
    sizes = (A[:, :columns] ** 2).sum(0)
    for _ in range(1_000):
        before = x.copy()
        for j in range(columns):
            c = A[:, j] @ rest + sizes[j] * x[j]
            new = np.sign(c) * max(abs(c) - weight, 0) / sizes[j]
            rest, x[j] = rest + A[:, j] * (x[j] - new), new
        if np.array_equal(x, before):
            break
    return x


def run(trainer: nd.AbstractTrainer, loss: Any, start: Any, steps: int, **more: Any) -> nd.Result:
    return nd.fit(nd.BlackBox(loss, start), trainer, steps=steps, key=jr.key(0), **more)


def run_exactly(
    prox: nd.AbstractProx,
    inner: nd.AbstractTrainer,
    loss: Any = squares,
    columns: int = 10,
    steps: int = 20_000,
    **options: Any,
) -> nd.Result:
    """In 64 bits."""
    options = {"rho": 30.0, "absolute": 1e-9, "relative": 1e-9} | options
    with jax.enable_x64(True):
        return run(nd.ADMM(inner, prox, **options), loss, jnp.zeros(columns), steps, log_every=1_000)


SLOPE = nd.Backprop(optax.sgd(1 / (L + 30)))


@pytest.mark.parametrize(("every", "relaxation"), [(1, 1.0), (10, 1.6)])
def test_lasso_is_that_of_coordinate_descent(every: int, relaxation: float) -> None:
    found = run_exactly(nd.prox.L1(10.0), SLOPE, every=every, relaxation=relaxation)
    best = lasso(10.0)
    assert 0 < np.count_nonzero(best) < 10
    np.testing.assert_allclose(found.params, best, atol=1e-8)
    np.testing.assert_array_equal(np.asarray(found.params) == 0, best == 0)  # z is sparse exactly
    assert found.reason.startswith("converged")


def test_a_box_is_that_of_an_active_set() -> None:
    found = run_exactly(nd.prox.Box(-0.1, 0.2), SLOPE, relaxation=1.6)
    best = scipy.optimize.lsq_linear(A, Y, (-0.1, 0.2), method="bvls", tol=1e-14).x
    assert 0 < np.sum((best == -0.1) | (best == 0.2)) < 10
    np.testing.assert_allclose(found.params, best, atol=1e-8)
    assert found.reason.startswith("converged")


@pytest.mark.parametrize("first", [0.1, 500.0])
def test_a_balanced_rho_finds_the_way_from_afar(first: float) -> None:
    inner = nd.Backprop(optax.sgd(1 / (L + 500)))
    policy = nd.BalancedRho(first, most=500.0, least=0.1)
    found = run_exactly(nd.prox.L1(10.0), inner, rho=policy, every=50, steps=50_000)
    np.testing.assert_allclose(found.params, lasso(10.0), atol=1e-7)
    assert 1 < found.history[-1]["admm/rho"] < 400


def small(x: Any) -> Any:
    return 0.5 * jnp.sum((A[:, :4] @ x - Y) ** 2)


SEARCHES: dict[str, tuple[nd.AbstractTrainer, int]] = {
    "cma_es": (nd.CMAES(0.5), 300),
    "open_es": (nd.OpenES(optax.adam(optax.cosine_decay_schedule(0.1, 1_000)), sigma=0.05, population=16), 1_000),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_losses_alone_are_enough(name: str) -> None:
    """The quadratic is part of what is ranked."""
    inner, steps = SEARCHES[name]
    found = run_exactly(nd.prox.L1(10.0), inner, small, 4, steps, absolute=1e-6)
    best = lasso(10.0, 4)

    def objective(x: Any) -> float:
        return float(0.5 * np.sum((A[:, :4] @ np.asarray(x) - Y) ** 2) + 10 * np.sum(np.abs(x)))

    assert objective(found.params) < objective(best) * (1 + 1e-3)
    np.testing.assert_array_equal(np.asarray(found.params) == 0, best == 0)


@pytest.mark.slow
def test_64_bits_on_the_host() -> None:
    """A loss in plain Python, without JAX's switch."""
    trainer = nd.ADMM(nd.CMAES(0.5), nd.prox.Box(-0.1, 0.2), rho=30.0, absolute=1e-7, relative=1e-7)
    found = run(trainer, lambda x: 0.5 * float(np.sum((A[:, :4] @ x - Y) ** 2)), np.zeros(4), 1_000)
    best = scipy.optimize.lsq_linear(A[:, :4], Y, (-0.1, 0.2), method="bvls", tol=1e-14).x
    assert isinstance(found.params, np.ndarray) and found.params.dtype == np.float64
    np.testing.assert_allclose(found.params, best, atol=1e-6)


def test_a_search_that_has_ended_is_said() -> None:
    """Nothing meets a tolerance of 0."""
    trainer = nd.ADMM(nd.CMAES(0.5), nd.prox.Box(-0.1, 0.2), rho=3.0, absolute=0, relative=0)
    found = run(trainer, lambda x: float(np.sum((x - 1.0) ** 2)), np.zeros(2), 2_000)
    assert found.reason.startswith("the inner trainer has come to its end")


def test_one_inside_another() -> None:
    """An l1 penalty and a box: their sum has a closed form for one coordinate at a time."""
    target = np.array([3.0, 0.7, -0.2, -2.0])
    inner = nd.ADMM(nd.Backprop(optax.sgd(0.3)), nd.prox.L1(0.5), rho=1.0, every=1)
    outer = nd.ADMM(inner, nd.prox.Box(-1.0, 2.0), rho=1.0, every=5)
    found = run(outer, lambda x: 0.5 * jnp.sum((x - target) ** 2), jnp.zeros(4), 2_000)
    np.testing.assert_allclose(found.params, [2.0, 0.2, 0.0, -1.0], atol=1e-3)
    assert {"admm/primal", "admm/inner/primal"} <= set(found.history[-1])


def test_only_the_leaves_that_are_meant() -> None:
    """Beside an integer of another trainer, and a real leaf of its own without a constraint."""
    prox = nd.prox.Parts({"small": nd.prox.Box(-0.4, 0.4), "free": None}, {"a": "small", "b": "free"})
    mine = nd.ADMM(nd.Backprop(optax.sgd(0.5)), prox, rho=0.2, every=1)
    both = nd.Split({"mine": mine, "theirs": nd.Genetic(population=16)}, {"a": "mine", "b": "mine", "n": "theirs"})
    result = nd.fit(Mixed(), both, steps=200, key=jr.key(0))
    np.testing.assert_allclose(result.params["a"], [0.4, -0.4], atol=1e-3)
    np.testing.assert_allclose(result.params["b"]["w"], 0.5, atol=1e-3)
    np.testing.assert_array_equal(result.params["n"], [5, 5])
    query = mine.ask(result.state.trainer["mine"], key=jr.key(0))
    assert [x.shape for x in jax.tree.leaves(query.quadratic[0].target)] == [(2,)]


def test_what_is_deployed_keeps_the_constraint_whenever_training_stops() -> None:
    trainer = nd.ADMM(nd.Backprop(optax.sgd(0.01)), nd.prox.Box(-0.1, 0.2), rho=1.0, warmup=7)
    for steps in (0, 1, 7, 15):
        x = run(trainer, lambda x: jnp.sum((x - 3.0) ** 2), jnp.ones(3), steps).params
        assert np.all((x >= -0.1) & (x <= np.float32(0.2)))


def test_a_warmup_is_training_without_it() -> None:
    def loss(x: Any) -> Any:
        return jnp.sum((x - 3.0) ** 2)

    alone = nd.Backprop(optax.sgd(0.1))
    warm = nd.ADMM(alone, nd.prox.Box(-0.1, 0.2), rho=1e3, warmup=20)
    state = run(warm, loss, jnp.ones(3), 20).state.trainer
    np.testing.assert_array_equal(alone.params(state.inner), run(alone, loss, jnp.ones(3), 20).params)
    assert int(state.now.iterations) == 0 and not np.any(state.u)


def policy_after(policy: nd.AbstractRho, residuals: list[tuple[float, float]]) -> list[float]:
    rho, found = jnp.float32(policy.first()), []
    for i, (primal, dual) in enumerate(residuals, 1):
        rho = policy.next(rho, jnp.float32(primal), jnp.float32(dual), jnp.int32(i))
        found.append(float(rho))
    return found


def test_rho() -> None:
    assert policy_after(nd.FixedRho(3.0), [(100.0, 1.0)] * 2) == [3.0, 3.0]
    balanced = nd.BalancedRho(1.0, every=2, until=6, most=4.0)
    assert policy_after(balanced, [(100.0, 1.0)] * 6 + [(1.0, 100.0)] * 2) == [1.0, 2.0, 2.0, 4.0, 4.0, 4.0, 4.0, 4.0]
    assert policy_after(nd.BalancedRho(1.0, every=1, least=0.5), [(1.0, 11.0), (1.0, 11.0), (9.0, 1.0)]) == [0.5] * 3
    np.testing.assert_allclose(policy_after(nd.GrowingRho(1.0, factor=1.5, most=3.0), [(1.0, 1.0)] * 3), [1.5, 2.25, 3])


def test_the_multipliers_stay_when_rho_changes() -> None:
    """rho u is the slope of the loss at the solution, whatever rho has become."""
    trainer = nd.ADMM(nd.Backprop(optax.sgd(0.1)), nd.prox.Box(-1.0, 1.0), rho=nd.GrowingRho(0.5, factor=1.1, most=5.0))
    result = run(trainer, lambda x: 0.5 * jnp.sum((x - 3.0) ** 2), jnp.zeros(2), 5_000)
    state = result.state.trainer
    np.testing.assert_allclose(state.now.rho * state.u, 2.0, rtol=1e-3)
    assert result.reason.startswith("converged")


@pytest.mark.parametrize("bound", [1e6, 20.0])
def test_a_constraint_out_of_reach_is_said(bound: float) -> None:
    trainer = nd.ADMM(nd.Backprop(optax.sgd(0.1)), nd.prox.Box(2.0, 3.0), rho=1.0, bound=bound)
    problem = nd.BlackBox(lambda x: jnp.sum(x**2), jnp.zeros(2), domain=nd.Real(-1.0, 1.0))
    result = nd.fit(problem, trainer, steps=10_000, key=jr.key(0))
    assert result.reason.startswith("diverging: the primal residual does not fall") and result.steps < 2_000
    row = result.history[-1]
    assert row["admm/primal"] == pytest.approx(np.sqrt(2.0)) and row["admm/dual"] == 0
    np.testing.assert_array_equal(result.params, 2.0)
    assert np.all(np.abs(result.state.trainer.u) <= bound)


def test_a_start_is_not_taken_for_a_solution() -> None:
    """At zero the l1 penalty has x = z; the gradient says that there is more to gain."""
    slow = nd.Backprop(optax.sgd(1e-9))
    found = run_exactly(nd.prox.L1(0.1), slow, steps=100, absolute=1e-4, relative=1e-3)
    assert found.reason == "all 100 steps done"


WITHIN = {
    "admm_in_split": nd.Split(
        {"mine": nd.ADMM(nd.Backprop(adam()), nd.prox.L1(1e-3), rho=0.1), "theirs": nd.Backprop(adam())},
        {"a": "mine", "b": "theirs"},
    ),
    "one_leaf": nd.ADMM(
        nd.OpenES(adam(), sigma=0.1, population=16, rank=1),
        nd.prox.Parts({"small": nd.prox.L1(1e-3), "free": None}, {"a": "free", "b": "small"}),
        rho=0.1,
    ),
}


@pytest.mark.product
@pytest.mark.usefixtures("compiled_quickly")
@pytest.mark.parametrize("name", [*TRAINERS, *WITHIN])
def test_around_every_trainer(name: str) -> None:
    """The contract; one that is an ADMM already is one inside another then. `Alternate` gives no answer to some."""
    if name == "alternate":
        with pytest.raises(ValueError, match=r"`ADMM\(Alternate\(...\)\)`"):
            check_trainer(nd.ADMM(TRAINERS[name], nd.prox.L1(1e-3), rho=0.1))
        return
    trainer = WITHIN[name] if name in WITHIN else nd.ADMM(TRAINERS[name], nd.prox.L1(1e-3), rho=0.1)
    check_trainer(trainer, moving=name not in FOR_STEADY_LOSSES)


class Shifted(nd.AbstractProx):
    """Answers with something else than promised."""

    kind: str

    def __call__(self, v: Any, rho: Any) -> Any:
        if self.kind == "shape":
            return v[None]
        if self.kind == "type":
            return v > 0
        return jnp.where(jnp.all(v == 0) & (self.kind == "later"), v, jnp.nan)

    def value(self, z: Any) -> Any:
        return jnp.zeros(())


def test_an_operator_that_breaks_its_promise() -> None:
    def ended(kind: str, inner: nd.AbstractTrainer | None = None) -> nd.Result:
        inner = nd.Backprop(optax.sgd(0.1)) if inner is None else inner
        trainer = nd.ADMM(inner, Shifted(kind), rho=1.0)
        return run(trainer, lambda x: jnp.sum((x - 1.0) ** 2), jnp.zeros(3), 100)

    with pytest.raises(ValueError, match=r"`Shifted` was given `params`, float32\[3\], and returned float32\[1, 3\]"):
        ended("shape")
    with pytest.raises(ValueError, match=r"returned bool\[3\]"):
        ended("type")
    with pytest.raises((ValueError, RuntimeError), match="`Shifted` gave values that are not finite for the starting"):
        ended("nan")
    with pytest.raises(ValueError, match="`Shifted` gave values that are not finite for the starting"):
        ended("nan", nd.CMAES(0.5))
    result = ended("later")
    assert result.reason.startswith("the operator `prox` gave values that are not finite")
    np.testing.assert_array_equal(result.params, 0.0)


@pytest.mark.usefixtures("unchecked")
def test_errors() -> None:
    inner, prox = nd.Backprop(optax.sgd(0.1)), nd.prox.L1(1.0)
    with pytest.raises(ValueError, match=r"`ADMM` was given 3 where a trainer belongs"):
        nd.ADMM(3, prox, rho=1.0)  # pyright: ignore
    with pytest.raises(ValueError, match=r"`ADMM\(prox=0.1\)`: expected an operator, for example `nondiff.prox.Box"):
        nd.ADMM(inner, 0.1, rho=1.0)  # pyright: ignore
    for rho in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=r"`ADMM\(rho=.*\)`: expected a finite number above 0"):
            nd.ADMM(inner, prox, rho=rho)
    with pytest.raises(ValueError, match="both count iterations, so there is no schedule"):
        nd.ADMM(inner, prox, rho=optax.constant_schedule(1.0))  # pyright: ignore
    with pytest.raises(ValueError, match=r"`ADMM\(relaxation=2\)`: expected a number above 0 and below 2"):
        nd.ADMM(inner, prox, rho=1.0, relaxation=2)
    with pytest.raises(ValueError, match=r"`ADMM\(absolute=-1.0\)`: expected a finite number of at least 0"):
        nd.ADMM(inner, prox, rho=1.0, absolute=-1.0)
    with pytest.raises(ValueError, match=r"`ADMM\(every=0\)`: expected a whole number of at least 1"):
        nd.ADMM(inner, prox, rho=1.0, every=0)
    with pytest.raises(ValueError, match=r"`GrowingRho\(factor=1\)`: expected a number above 1"):
        nd.GrowingRho(1.0, factor=1)
    with pytest.raises(ValueError, match=r"`GrowingRho\(rho=2.0, most=1.0\)`: `most` must not be below `rho`"):
        nd.GrowingRho(2.0, most=1.0)
    with pytest.raises(ValueError, match=r"`BalancedRho\(rho=1.0, least=2.0, most=1000.0\)`: `rho` must lie between"):
        nd.BalancedRho(1.0, least=2.0)
    with pytest.raises(ValueError, match=r"`ADMM` cannot move `params\['n'\]` \(int32\)"):
        nd.init(Mixed(), nd.ADMM(nd.Genetic(population=4), prox, rho=1.0), key=jr.key(0))
    nothing = nd.prox.Parts({"free": None}, "free")
    with pytest.raises(ValueError, match="`Parts` is about none of the parameters"):
        run(nd.ADMM(inner, nothing, rho=1.0), jnp.sum, jnp.zeros(3), 1)
