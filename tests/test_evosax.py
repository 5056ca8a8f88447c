"""Every algorithm of evosax as a trainer: what evosax alone does, what it would not survive, and what is refused."""

import re
import sys
from collections.abc import Iterable
from typing import Any

import evosax.algorithms
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax
import pytest
from helpers import adam
from jax.flatten_util import ravel_pytree
from tiers import product_but, slow_but

import nondiff as nd
from nondiff import BlackBox, Integer, Real
from nondiff.core.step import keys
from nondiff.testing import check_trainer, count_compilations
from nondiff.testing.common import Parabola
from nondiff.trainers.evosax import _bearable

ALGORITHMS = evosax.algorithms.algorithms
SELECTING = evosax.algorithms.population_based_algorithms
STD = optax.constant_schedule(0.1)
BOTH = {"optimizer": adam(), "std_schedule": STD}
MORE: dict[str, dict[str, Any]] = {
    **{
        name: {"arguments": BOTH}
        for name in ("ARS", "ASEBO", "ESMC", "GuidedES", "NoiseReuseES", "Open_ES", "PersistentES")
    },
    **{
        name: {"arguments": {"std_schedule": STD}}
        for name in ("HillClimbing", "SimpleGA", "iAMaLGaM_Full", "iAMaLGaM_Univariate")
    },
    "DiffusionEvolution": {
        "population": 128,
        "arguments": {
            "num_generations": 198,
            "fitness_mapping": lambda losses: jnp.exp(-100 * (losses - losses.min())),
        },
    },
    "LM_MA_ES": {"population": 16},  # evosax's takes the root of a negative number where there are more than 2 D
    "PGPE": {"arguments": {"optimizer": adam()}, "settings": {"std_init": 0.1}},
    "RandomSearch": {"arguments": {"sampling_fn": lambda key: 2 * jr.uniform(key, 8) - 1}},
    "SimulatedAnnealing": {
        "arguments": {"std_schedule": STD},
        "settings": {"temperature_init": 1e-3, "temperature_limit": 1e-4},
    },
    "SV_CMA_ES": {"arguments": {"num_populations": 2}, "settings": {"alpha": 0.01}},
    "SV_Open_ES": {"arguments": {"num_populations": 2, **BOTH}, "settings": {"alpha": 0.01}},
}
"""What an algorithm needs, or wants for a parabola of eight coordinates; the others take it as they are."""


def every(names: Iterable[str], *, quick: set[str]) -> Any:
    """A test of every algorithm, of a few of them quickly."""
    return pytest.mark.parametrize("name", slow_but(names, *(x for x in names if x in quick)))


def make(name: str, **more: Any) -> nd.Evosax:
    return nd.Evosax(name, **{"population": 32} | MORE.get(name, {}) | more)


def finite(tree: Any) -> list[np.ndarray]:
    return [np.isfinite(x) for x in jtu.tree_leaves(tree)]


pytestmark = pytest.mark.usefixtures("compiled_quickly")


@pytest.mark.parametrize("name", product_but(ALGORITHMS, "Open_ES"))  # two more are in the list of helpers.py
def test_contract(name: str) -> None:
    check_trainer(make(name), moving=False)


# Beside evosax alone


@every(["CMA_ES", "DifferentialEvolution", "SV_Open_ES"], quick={"CMA_ES", "DifferentialEvolution"})
def test_steps_are_those_of_evosax(name: str) -> None:
    """The same keys, the same bits; not in a compiled step, which may round otherwise."""
    start = {"a": jnp.array([1.0, -2.0]), "b": jnp.ones((2, 3))}
    losses = jax.vmap(lambda p: jnp.sum((p["a"] - 0.5) ** 2) + jnp.sum(jnp.abs(p["b"])))
    ours, domain = make(name, population=8), jtu.tree_map(lambda _: Real(), start)
    k_init, *k_steps = jr.split(jr.key(0), 5)
    state = ours.init(start, domain, key=k_init)

    arguments, settings = (MORE.get(name, {}).get(x, {}) for x in ("arguments", "settings"))
    theirs = ALGORITHMS[name](population_size=8 // arguments.get("num_populations", 1), solution=start, **arguments)
    settings, alone = theirs.default_params.replace(**settings), None
    if name not in SELECTING:
        means = state.inner.mean if name == "SV_Open_ES" else start
        if name == "SV_Open_ES":
            means = jax.vmap(ravel_pytree(start)[1])(means)
        alone = theirs.init(jr.split(k_init)[1], means, settings)
    for k_ask, k_tell in zip(k_steps[::2], k_steps[1::2], strict=True):
        query = ours.ask(state, key=k_ask)
        members = query.population.each
        if alone is not None:
            expected, alone = theirs.ask(jr.split(k_ask, 3)[1], alone, settings)
            jtu.tree_map(np.testing.assert_array_equal, members, expected)
        answer = nd.Evaluation(losses(members), jnp.zeros(8))
        state, _ = ours.tell(state, query, answer, key=k_tell)
        if alone is None:
            alone = theirs.init(k_tell, members, answer.loss, settings)
        elif name == "SV_Open_ES":  # evosax mixes the leaves of its flat list of candidates up
            members = jtu.tree_map(lambda x: x.reshape(2, 4, *x.shape[1:]), members)
            alone, _ = theirs.tell(k_tell, members, answer.loss, alone, settings)
        else:
            alone, _ = theirs.tell(k_tell, members, answer.loss, alone, settings)
        jtu.tree_map(np.testing.assert_array_equal, state.inner, alone)
    found = theirs.get_best_solution(alone) if name in SELECTING else theirs.get_mean(alone)
    if name == "SV_Open_ES":
        better = int(jnp.argmin(answer.loss.reshape(2, 4).mean(1)))
        found = jtu.tree_map(lambda x: x[better], found)
    jtu.tree_map(np.testing.assert_array_equal, ours.params(state), found)


# What evosax would not survive


@every(ALGORITHMS, quick={"CMA_ES", "DifferentialEvolution"})
def test_losses_that_are_no_numbers_or_huge_poison_nothing(name: str) -> None:
    """Nor do a NaN and an infinity in every step keep it from learning."""
    trainer, problem = make(name), Parabola()
    first = nd.init(problem, trainer, key=jr.key(0)).trainer

    def generation(state: Any, key: Any, bad: Any) -> Any:
        k_ask, k_tell, k_who = jr.split(key, 3)
        query = trainer.ask(state, key=k_ask)
        losses = jax.vmap(lambda p: jnp.mean(problem.loss(p, problem.target, key=k_ask)[0]))(query.population.each)
        losses = losses.at[jr.permutation(k_who, len(query))[:2]].set(bad)
        state, _ = trainer.tell(state, query, nd.Evaluation(losses, jnp.zeros_like(losses)), key=k_tell)
        return state, None

    @jax.jit
    def run(bad: Any) -> Any:
        return jax.lax.scan(lambda state, key: generation(state, key, bad), first, jr.split(jr.key(1), 200))[0]

    for bad in ([jnp.nan, jnp.inf], [3e38, -3e38], [-jnp.inf, jnp.inf]):
        last = run(jnp.array(bad))
        assert all(x.all() for x in finite(last.params))
        for before, after in zip(finite(first.inner), finite(last.inner), strict=True):
            assert (after | ~before).all()
        if bad[1] == jnp.inf:
            assert problem.exact(last.params) < 0.1 * problem.exact(first.params)


def test_a_loss_that_is_flat_narrows_nothing() -> None:
    """evosax's width shrinks by a quarter a step then, and at 0 the parameters are lost."""
    problem = BlackBox(lambda x: jnp.maximum(jnp.sum(x**2), 1.0), jnp.full(4, 2.0))
    result = nd.fit(problem, make("CMA_ES"), steps=600, key=jr.key(0))
    assert problem.fn(result.params) == 1.0 and result.history[-1]["sigma"] > 1e-3


@every([*SELECTING, "GradientlessDescent", "HillClimbing", "RandomSearch"], quick={"DifferentialEvolution"})
def test_a_member_that_failed_is_never_deployed(name: str) -> None:
    """Nearly all fail: where one is left, its loss is the worst of the step, too."""

    def loss(x: Any) -> Any:
        return jnp.where(jnp.all(x >= 0), jnp.sum((x - 0.5) ** 2), jnp.nan)

    problem = BlackBox(loss, jnp.full(8, 0.001))
    trainer = make(name)
    step = jax.jit(lambda state: nd.step(problem, trainer, nd.Vmap(), state))
    state, failed = nd.init(problem, trainer, key=jr.key(0)), []
    for _ in range(30):
        state, metrics = step(state)
        failed.append(int(metrics["failed"]))
        assert bool(jnp.all(trainer.params(state.trainer) >= 0))
    assert max(failed) > 0.9 * trainer.population


@pytest.mark.parametrize("kept", [False, True])
def test_told_losses_are_in_the_same_order(kept: bool) -> None:
    tell = jax.jit(lambda losses: _bearable(losses, kept=kept))
    random = np.random.default_rng(0)
    losses = np.sort(random.choice([-1, 1], 200) * 10 ** random.uniform(-30, 38, 200)).astype(np.float32)
    told = np.asarray(tell(losses))
    assert (np.diff(told) > 0).all() and np.abs(told).max() < 1e11
    np.testing.assert_array_equal(told[np.abs(losses) <= 1e9], losses[np.abs(losses) <= 1e9])
    for worst in (0.0, -1.0, 1e-38, 3e38, -3e38):
        told = np.asarray(tell(np.array([-np.float32(3.1e38), worst, np.inf, worst], np.float32)))
        assert np.isfinite(told).all() and told[2] > told[1] == told[3]
        if not kept:
            np.testing.assert_allclose(told[2], told[1], rtol=1e-6, atol=1e-37)


def test_points_that_overflow_are_the_largest_numbers() -> None:
    start, domain = {"log": jnp.ones(2), "half": jnp.ones(2, jnp.float16)}, {"log": Real(log=True), "half": Real()}
    problem = BlackBox(lambda p: jnp.sum(1 / p["log"]) + jnp.max(p["half"]), start, domain=domain)
    trainer = make("CMA_ES", settings={"std_init": 1e5})
    state = nd.init(problem, trainer, key=jr.key(0))
    members = jax.jit(lambda state: trainer.ask(state, key=jr.key(1)).population.each)(state.trainer)
    assert members["log"].max() == jnp.finfo(jnp.float32).max and members["half"].min() == jnp.finfo(jnp.float16).min
    result = nd.fit(problem, trainer, steps=20, state=state, log_every=1)
    assert all(x.all() for x in finite(result.state.trainer.inner)) and result.history[0]["failed"] == 0


# Parameters


@pytest.mark.parametrize("name", ["CMA_ES", "PSO"])
def test_bounds_logarithms_and_types(name: str) -> None:
    start = {"edge": jnp.zeros(2), "rate": jnp.array(0.5), "half": jnp.zeros(2, jnp.bfloat16)}
    domain = {"edge": Real(-1.0, 0.5), "rate": Real(1e-4, 1.0, log=True), "half": Real()}

    def loss(p: Any) -> Any:
        inside = jnp.all((p["edge"] >= -1) & (p["edge"] <= 0.5)) & (p["rate"] >= 1e-4) & (p["rate"] <= 1)
        half = p["half"].astype(jnp.float32)
        total = jnp.sum((p["edge"] - 2) ** 2) + jnp.log(p["rate"] / 1e-2) ** 2 + jnp.sum((half - 1) ** 2)
        return jnp.where(inside, total, jnp.nan)

    result = nd.fit(BlackBox(loss, start, domain=domain), make(name), steps=300, key=jr.key(0), log_every=1)
    assert all(row["failed"] == 0 for row in result.history)
    np.testing.assert_allclose(result.params["edge"], 0.5, atol=1e-2)
    np.testing.assert_allclose(result.params["rate"], 1e-2, rtol=0.1)
    np.testing.assert_allclose(result.params["half"].astype(jnp.float32), 1.0, atol=0.03)
    assert result.params["half"].dtype == jnp.bfloat16
    if name == "CMA_ES":  # members beyond a bound, if told so, would drive it up
        assert result.history[-1]["sigma"] < 0.1


def test_the_first_population() -> None:
    """The start and samples of the domain, drawn anew until one of them has a loss."""
    start, domain = {"in": jnp.full(50, 0.1), "out": jnp.full(50, 7.0)}, {"in": Real(-1.0, 3.0), "out": Real()}
    trainer = make("DifferentialEvolution", scale=0.2)
    state = jax.jit(lambda key: trainer.init(start, domain, key=key))(jr.key(0))
    ask = jax.jit(lambda key: trainer.ask(state, key=key).population.each)
    one, two = map(ask, jr.split(jr.key(1)))
    jtu.tree_map(lambda x, y: np.testing.assert_array_equal(x[0], y), one, start)
    assert not np.any(one["out"][1:] == two["out"][1:])
    for members in (one, two):
        assert members["in"].min() >= -1 and members["in"].max() <= 3
        np.testing.assert_allclose(np.histogram(members["in"][1:], 4, (-1, 3))[0] / 31 / 50, 0.25, atol=0.05)
        np.testing.assert_allclose(members["out"][1:].mean(), 7.0, atol=0.03)
        np.testing.assert_allclose(members["out"][1:].std(), 0.2, rtol=0.1)


def test_beside_integers() -> None:
    def loss(p: Any) -> Any:
        return jnp.sum((p["x"] - 1.0) ** 2) + jnp.sum(jnp.abs(p["n"] - 5))

    start = {"x": jnp.zeros(3), "n": jnp.array([0, 9])}
    problem = BlackBox(loss, start, domain={"x": Real(), "n": Integer(0, 9)})
    search = nd.Evosax(ALGORITHMS["Sep_CMA_ES"], population=8, settings={"std_init": 0.3})
    trainer = nd.Split({"real": search, "whole": nd.Genetic(population=8)}, {"x": "real", "n": "whole"})
    result = nd.fit(problem, trainer, steps=150, key=jr.key(0))
    np.testing.assert_array_equal(result.params["n"], 5)
    np.testing.assert_allclose(result.params["x"], 1.0, atol=1e-3)


@pytest.mark.parametrize("around", slow_but(["nothing", "best", "restart", "split"], "nothing"))
def test_plain_python(around: str) -> None:
    """Whose parameters are NumPy's, of 64 bits: here they have 32, also beside a trainer that has 64."""
    search = nd.Evosax("CMA_ES", population=12, settings={"std_init": 0.5})
    trainer = {
        "nothing": search,
        "best": nd.Best(search),
        "restart": nd.Best(nd.Restart(search, on=nd.NoBetter(10), tries=2)),
        "split": nd.Split({"exact": nd.CMAES(0.5), "evosax": search}, {"x": "exact", "y": "evosax"}),
    }[around]
    problem = BlackBox(lambda p: float((p["x"] - 1) ** 2 + np.sum((p["y"] - 2) ** 2)), {"x": 0.0, "y": np.zeros(2)})
    assert not problem.traceable and problem.x0["y"].dtype == np.float64
    state = nd.fit(problem, trainer, steps=2, key=jr.key(0)).state
    with count_compilations() as compiled:
        result = nd.fit(problem, trainer, steps=120, state=state, log_every=1)
    np.testing.assert_allclose(result.params["x"], 1.0, atol=1e-3)
    np.testing.assert_allclose(result.params["y"], 2.0, atol=1e-3)
    if around == "split":
        assert result.params["x"].dtype == np.float64 and result.params["y"].dtype == np.float32
    if around == "restart":
        assert [max(row["evaluations"] for row in result.history if row["tries"] == x) for x in (1, 2)] == [12, 24]
    else:
        assert not compiled


def test_members_that_learn() -> None:
    """evosax is told of the points to which they have learned."""
    problem = BlackBox(lambda x: jnp.sum(x**2) / 2, jnp.ones(4))
    trainer = nd.Memetic(make("DifferentialEvolution"), rate=0.25, max_norm=1e9)
    state = nd.init(problem, trainer, key=jr.key(0))
    asked = jax.jit(lambda state: trainer.ask(state.trainer, key=keys(state)[1]).population.each)(state)
    told, _ = jax.jit(lambda state: nd.step(problem, trainer, nd.Vmap(), state))(state)
    np.testing.assert_allclose(told.trainer.inner.inner.population, 0.75 * asked, rtol=1e-5)


# Errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nd.Evosax("cma_es", population=8), "`cma_es` is no algorithm of evosax. Did you mean `CMA_ES`? There"),
        (
            lambda: nd.Evosax(ALGORITHMS["SNES"](population_size=8, solution=jnp.zeros(2)), population=8),  # type: ignore
            "expected a class of `evosax.algorithms`, not an object of it, or its name",
        ),
        (lambda: nd.Evosax("PSO", population=0), "`Evosax(population=0)`: expected a whole number of at least 1."),
        (lambda: nd.Evosax("PSO", population=8, scale=-1.0), "`Evosax(scale=-1.0)`: it must be finite and above 0"),
        (
            lambda: nd.Evosax("Open_ES", population=8, arguments={"optimiser": adam()}),
            "`optimiser` is no argument of `Open_ES`. Did you mean `optimizer`? There are: use_antithetic_sampling, ",
        ),
        (
            lambda: nd.Evosax("PSO", population=8, arguments={"population_size": 8}),
            "`population_size` is no argument of `PSO`.",
        ),
        (
            lambda: nd.Evosax("RandomSearch", population=8),
            "`Evosax(RandomSearch, arguments={...})`: missing a required argument: 'sampling_fn'",
        ),
        (
            lambda: nd.Evosax("Open_ES", population=8, arguments={"optimizer": optax.sgd(-1.0)}),
            "`Evosax(optimizer)`: its first step on a gradient of 1 is 1, not finite and downhill.",
        ),
        (
            lambda: nd.Evosax("SV_CMA_ES", population=9, arguments={"num_populations": 2}),
            "`Evosax(population=9)`: they are shared evenly between 2 populations; use a multiple.",
        ),
    ],
)
def test_refused_when_built(call: Any, message: str, unchecked: None) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


@pytest.mark.parametrize(
    ("trainer", "start", "message"),
    [
        (
            nd.Evosax("CMA_ES", population=8, settings={"std": 0.1}),
            jnp.ones(2),
            "`Evosax`: `std` is no setting of `CMA_ES`. Did you mean `d_std`? There are: std_init, std_min, ",
        ),
        (
            nd.Evosax("GuidedES", population=8, settings={"lr": 0.1}),
            jnp.ones(2),
            "`Evosax`: `lr` is no setting of `GuidedES`. There are: alpha, beta.",
        ),
        (
            nd.Evosax("Open_ES", population=7),
            jnp.ones(2),
            "`Evosax(Open_ES, population=7)`: Population size must be even.",
        ),
        (
            nd.Evosax("DifferentialEvolution", population=8),
            {"x": jnp.ones(2), "n": jnp.array([1, 2])},
            "`Evosax` cannot move `params['n']` (int32, Integer(lo=0, hi=9)): it takes small steps along real numbers. "
            "Give that leaf to a trainer that searches, `Split({'rest': Evosax(...), 'search': Genetic(...)}, labels)`,"
            " or all leaves to `Genetic`, or to `CMAES` if none is `Categorical`.",
        ),
    ],
)
def test_refused_when_training_starts(trainer: nd.Evosax, start: Any, message: str) -> None:
    domain = {"x": Real(), "n": Integer(0, 9)} if isinstance(start, dict) else None
    problem = BlackBox(lambda x: sum(jnp.sum(leaf**2.0) for leaf in jtu.tree_leaves(x)), start, domain=domain)
    with pytest.raises(ValueError, match=re.escape(message)):
        nd.fit(problem, trainer, steps=1, key=jr.key(0))


def test_without_evosax(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "evosax.algorithms", None)
    with pytest.raises(ModuleNotFoundError, match="`Evosax` needs evosax: `pip install evosax`"):
        nd.Evosax("CMA_ES", population=8)
