"""`minimise` finds known minima within its budget, and counts what it spends."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import nondiff
from nondiff import Categorical, Integer, Real, minimise
from nondiff.testing import count_compilations


def sphere(x: jax.Array) -> jax.Array:
    return jnp.sum(x**2)


def test_sphere_within_the_default_budget() -> None:
    result = minimise(sphere, jnp.ones(5))
    assert result.loss < 1e-4 and result.evaluations <= 10_000
    assert result.reason == "the budget of 10000 evaluations was spent"
    assert abs(float(jnp.sum(result.params**2)) - result.loss) <= 1e-6 * result.loss


def test_rosenbrock() -> None:
    def rosenbrock(x: jax.Array) -> jax.Array:
        return 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2

    result = minimise(rosenbrock, jnp.array([-1.0, 1.0]))
    assert result.loss < 1e-2
    np.testing.assert_allclose(result.params, [1.0, 1.0], atol=0.2)


X0 = {"depth": 1, "kind": 0, "rate": 0.001}
DOMAIN = {"depth": Integer(1, 20), "kind": Categorical(4), "rate": Real(1e-4, 1.0, log=True)}


def mixed(p: dict) -> jax.Array:
    return jnp.abs(p["depth"] - 7) + (p["kind"] != 2) + 0.1 * jnp.log10(p["rate"] / 0.03) ** 2


def test_mixed_domain_finds_the_optimum_exactly() -> None:
    result = minimise(mixed, X0, domain=DOMAIN, evaluations=4_000)
    assert int(result.params["depth"]) == 7 and int(result.params["kind"]) == 2
    assert result.loss < 1e-4 and abs(np.log10(float(result.params["rate"]) / 0.03)) < 0.05
    np.testing.assert_allclose(float(mixed(result.params)), result.loss, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("budget", [20, 101, 500])
def test_the_budget_is_never_exceeded_and_every_call_is_counted(budget: int) -> None:
    calls = []

    def cost(x: np.ndarray) -> float:
        calls.append(float(np.sum((x - 1.0) ** 2)))
        return calls[-1]

    result = minimise(cost, np.zeros(2), evaluations=budget)
    assert result.evaluations <= budget < result.evaluations + 2 * 18
    assert len(calls) == 1 + result.evaluations  # the probe of `BlackBox`
    assert result.loss == min(calls[1:])  # the best value ever seen, in 64 bits
    assert float(np.sum((np.asarray(result.params) - 1.0) ** 2)) == pytest.approx(result.loss, rel=1e-6)
    assert budget < 500 or result.loss < 0.01


def test_steps_that_fail_altogether_are_paid_for() -> None:
    calls = []

    def cost(x: np.ndarray) -> float:
        calls.append(float(x))
        return float("nan") if x < 0.5 else float(x)  # at first all four of a step are failures

    result = minimise(cost, 0.0, evaluations=2_000)
    assert len(calls) == 1 + result.evaluations and result.evaluations <= 2_000 < result.evaluations + 4 * 64
    assert result.reason == "the budget of 2000 evaluations was spent"
    assert sum(row["failed"] == row["evaluations"] for row in result.history) > 5
    assert result.loss == pytest.approx(0.5)


def test_target_stops_early_and_says_so() -> None:
    calls = []
    result = minimise(lambda x: calls.append(0) or float(np.sum(x**2)), np.ones(2), target=0.5, evaluations=5_000)
    assert result.reason == "the target 0.5 was reached"
    assert result.loss <= 0.5 and result.evaluations < 1_000 and len(calls) == 1 + result.evaluations
    assert result.history[-2]["best_ever"] > 0.5 >= result.history[-1]["best_ever"]


def test_failed_evaluations_do_not_win() -> None:
    def cost(x: jax.Array) -> jax.Array:
        return jnp.where(x[0] < 0, jnp.nan, jnp.sum((x - 0.5) ** 2))

    result = minimise(cost, jnp.ones(2), evaluations=2_000)
    assert 0 <= result.loss < 1e-2 and result.params[0] >= 0


def test_the_same_key_gives_the_same_bits_and_another_key_others() -> None:
    trainer = nondiff.OpenES(optax.sgd(0.1), sigma=0.1, population=8)

    def run(key: jax.Array | None) -> nondiff.Result:
        return minimise(sphere, jnp.ones(2), trainer=trainer, evaluations=80, key=key)

    default, zero, one = run(None), run(jr.key(0)), run(jr.key(1))
    np.testing.assert_array_equal(default.params, zero.params)
    assert default.loss == zero.loss != one.loss and (zero.params != one.params).all()


ORDERED = {"n": np.array([3, 4]), "x": np.ones(3)}


@pytest.mark.parametrize(
    ("x0", "domain", "starts"),
    [
        (np.ones(5), None, "CMAES with restarts: 5 coordinates, a full covariance can be learned"),
        (ORDERED, {"n": Integer(0, 9), "x": Real(-1, 2)}, "CMAES with restarts: 5 coordinates"),
        (np.ones(300), None, "SepCMAES with restarts: 300 coordinates, too many for a full covariance"),
        (np.ones(10_001), None, "OpenES of rank 1: 10001 coordinates"),
        (np.ones(10_001), Real(0, 2), "Genetic: 10001 coordinates, with bounds"),
        (X0, DOMAIN, "Genetic: some leaves are categories, which have no order"),
    ],
)
def test_it_says_which_trainer_it_chose_and_why(x0: object, domain: object, starts: str) -> None:
    result = minimise(lambda x: float(sum(np.sum(v) for v in jax.tree.leaves(x))), x0, domain=domain, evaluations=64)
    assert result.choice.startswith(starts) and result.evaluations <= 64
    given = nondiff.Genetic(population=4)
    assert minimise(lambda x: 0.0, 1.0, trainer=given, evaluations=8).choice == "given"


def test_python_with_exceptions_and_a_vectorised_function() -> None:
    def raises(x: np.ndarray) -> float:
        if x[0] + x[1] > 4.5:
            raise ZeroDivisionError("no such point")
        return float(np.sum((x - 2.0) ** 2))

    with pytest.warns(
        UserWarning, match=r"`fn` raised ZeroDivisionError\('no such point'\); that evaluation has failed"
    ):
        result = minimise(raises, np.zeros(2), evaluations=1_000)
    np.testing.assert_allclose(result.params, 2.0, atol=1e-3)
    with pytest.raises(ZeroDivisionError):
        minimise(raises, np.full(2, 3.0))

    def many(x: np.ndarray) -> np.ndarray:  # half of the points are failures
        assert x.ndim == 2 and x.dtype == np.float64
        return np.where(x[:, 0] < 2.0, np.nan, ((x - 2.5) ** 2).sum(1))

    result = minimise(many, np.full(2, 3.0), vectorized=True, target=1e-8)
    assert result.reason == "the target 1e-08 was reached"
    np.testing.assert_allclose(result.params, 2.5, atol=1e-3)
    assert many(np.asarray(result.params)[None])[0] == result.loss


def test_a_picture_of_a_search() -> None:
    result = minimise(lambda x: float(np.sum(x**2)), np.ones(3), target=1e-3)
    figure = result.plot()
    loss, sigma, ratio = figure.axes
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "sigma", "axis ratio"]
    shown = {line.get_label(): line for line in loss.lines}
    assert set(shown) == {"loss", "best", "best_ever"}
    np.testing.assert_array_equal(shown["best_ever"].get_ydata(), [row["best_ever"] for row in result.history])
    assert sigma.get_yscale() == ratio.get_yscale() == "log" and len(ratio.lines[0].get_xdata()) == result.steps
    with pytest.raises(ValueError, match="has no rows"):
        nondiff.fit(nondiff.BlackBox(sphere, jnp.ones(2)), nondiff.CMAES(), steps=0, key=jr.key(0)).plot()


def test_any_trainer_serves() -> None:
    result = minimise(sphere, jnp.ones(2), trainer=nondiff.Backprop(optax.sgd(0.4)), evaluations=30)
    assert result.loss < 1e-8 and result.evaluations == 30


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"evaluations": 3, "trainer": nondiff.Genetic(population=8)},
            r"\(evaluations=3\)`: one step of `Genetic` makes 8",
        ),
        ({"evaluations": 0}, r"`minimise\(evaluations=0\)`: expected a whole number of at least 1"),
        ({"workers": -1}, r"`minimise\(workers=-1\)`"),
        ({"domain": Integer(0, 3)}, r"`params` is float32, and its domain is `Integer`"),
    ],
)
def test_what_it_refuses(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        minimise(sphere, jnp.ones(2), **options)


COLD = """
import numpy as np, nondiff
from nondiff.testing import count_compilations
with count_compilations() as compiled:
    result = nondiff.minimise(lambda x: float(((x - 1) ** 2).sum()), np.zeros(10), evaluations=2_000)
assert result.loss < 1e-9, result.loss
print(len(compiled))
"""


def test_a_search_of_a_python_function_compiles_nothing() -> None:
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(nondiff.__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", COLD], capture_output=True, text=True, env=environment)
    assert done.stdout == "0\n", done.stderr


def _sphere_on_host(x: np.ndarray) -> float:
    return float(np.sum(x**2))


def _of_category(p: dict) -> float:
    return (p["n"] - 3) ** 2 + (p["kind"] != 2)


@pytest.mark.parametrize("case", ["python", "category", "jax", "many coordinates"])
def test_a_second_search_like_the_first_compiles_nothing(case: str) -> None:
    def search() -> None:
        if case == "category":
            domain = {"n": Integer(1, 8), "kind": Categorical(3)}
            minimise(_of_category, {"n": 1, "kind": 0}, domain=domain, evaluations=200)
        elif case == "many coordinates":
            minimise(sphere, np.ones(10_001, np.float32), evaluations=150)
        else:
            minimise(sphere if case == "jax" else _sphere_on_host, np.ones(3), evaluations=200)

    search()
    with count_compilations() as compiled:
        search()
    assert not compiled
