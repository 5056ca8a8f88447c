"""`minimise` finds known minima within its budget, and counts what it spends."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import nondiff
from nondiff import Categorical, Integer, Real, minimise


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
    assert result.loss == np.float32(min(calls[1:]))  # the best value ever seen
    assert float(np.sum((np.asarray(result.params) - 1.0) ** 2)) == pytest.approx(result.loss, rel=1e-6)
    assert budget < 500 or result.loss < 0.01


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
        ({"workers": 2}, r"`minimise\(workers=2\)`"),
        ({"domain": Integer(0, 3)}, r"`params` is float32, and its domain is `Integer`"),
    ],
)
def test_what_it_refuses(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        minimise(sphere, jnp.ones(2), **options)
