"""What went wrong once: silent errors, each with the call that showed it."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax
import pytest

import nondiff as nd

SQUARE = nd.BlackBox(lambda x: jnp.sum((x - 3.0) ** 2), jnp.ones(2))


def test_chosen_members_are_those_that_were_evaluated() -> None:
    """Pairs share their noise only where they stand side by side."""
    trainer = nd.OpenES(optax.sgd(0.1), sigma=0.5, population=8)
    query = trainer.ask(nd.init(SQUARE, trainer, key=jr.key(0)).trainer, key=jr.key(1))
    everyone = query.population.take(jnp.arange(8))
    for indices in ([1, 4], [7, 0, 3, 3], [2]):
        np.testing.assert_array_equal(query.population.take(jnp.array(indices)), everyone[np.array(indices)])
    np.testing.assert_array_equal(query.population.span(1, 2).take(jnp.arange(2)), everyone[1:3])


def test_a_step_to_parameters_that_are_not_finite_is_not_taken() -> None:
    rate = optax.join_schedules([optax.constant_schedule(0.1), optax.constant_schedule(jnp.nan)], [2])
    with pytest.raises(nd.NonFiniteError, match="step 3: it leads to parameters that are not finite") as caught:
        nd.fit(SQUARE, nd.Backprop(optax.sgd(rate)), steps=5, key=jr.key(0))
    good = nd.fit(SQUARE, nd.Backprop(optax.sgd(0.1)), steps=2, key=jr.key(0)).params
    np.testing.assert_array_equal(caught.value.state.trainer.params, good)


class Checked(nd.AbstractTrainer):
    """Raises from within compiled code, outside of the loss."""

    traceable = True

    def init(self, params, domain, *, key):
        return params

    def ask(self, state, *, key):
        return nd.Query(nd.Population(state, jnp.zeros(1), nd.Centre()), None, key[None])

    def tell(self, state, query, answer, *, key):
        return eqx.error_if(state + 1.0, state[0] > 4.0, "too far"), {}

    def params(self, state):
        return state


def test_the_state_survives_an_error_outside_of_the_loss() -> None:
    with pytest.raises(Exception, match="too far") as caught:
        nd.fit(SQUARE, Checked(), steps=50, key=jr.key(0))
    state = caught.value.state
    assert not any(x.is_deleted() for x in jtu.tree_leaves(state))
    assert 1.0 <= float(state.trainer[0]) <= 5.0


def towards(params, batch, key):
    return (params - batch) ** 2


def run(problem: nd.Supervised, **options) -> nd.Result:
    return nd.fit(problem, nd.Backprop(optax.sgd(0.1)), **options)


def test_stopping_takes_no_batch_away_from_a_generator() -> None:
    numbers = iter([float(i) for i in range(10)])
    problem = nd.Supervised(towards, (jnp.float32(i) for i in numbers), params=jnp.zeros(()))
    stop = (lambda moment: "enough" if moment.step == 5 else None,)
    result = run(problem, steps=10, key=jr.key(0), stop=stop, log_every=1)
    assert result.steps == 5 and next(numbers) == 5.0


class Loader:
    """Five batches, again and again."""

    def __iter__(self):
        return iter([jnp.float32(i) for i in range(5)])


def test_a_resumed_run_skips_what_a_loader_gave_before() -> None:
    problem = nd.Supervised(towards, Loader(), params=jnp.zeros(()))
    half = run(problem, steps=3, key=jr.key(0))
    with pytest.warns(UserWarning, match="the batches are read again from the first to number 3"):
        resumed = run(problem, steps=7, state=half.state)
    whole = run(problem, steps=7, key=jr.key(0))
    np.testing.assert_array_equal(resumed.params, whole.params)


def test_keys_whose_draws_depend_on_the_batch_are_refused() -> None:
    key = jr.key(0, impl="rbg")
    with pytest.raises(ValueError, match="draws depend on how many are made at once"):
        nd.fit(SQUARE, nd.Genetic(population=4), steps=1, key=key)
    with pytest.raises(ValueError, match="draws depend on how many are made at once"):
        nd.minimise(lambda x: float(x), 1.0, key=key)


def test_infinite_bounds_are_none() -> None:
    assert nd.Real(-np.inf, np.inf).lo is None and nd.Real(0.0, np.inf).hi is None
    result = nd.minimise(lambda x: jnp.sum((x - 3.0) ** 2), jnp.ones(2), domain=nd.Real(0.0, np.inf), evaluations=4_000)
    np.testing.assert_allclose(result.params, 3.0, atol=0.05)
    for bounds in ((np.nan, 1.0), (np.array([0.0, -np.inf]), 1.0)):
        with pytest.raises(ValueError, match="is not finite throughout"):
            nd.Real(*bounds)


@pytest.mark.parametrize("domain", [nd.Integer(0, 1000), nd.Categorical(500), nd.Integer(-1, 3)])
def test_domains_wider_than_the_dtype_are_refused(domain: nd.AbstractDomain) -> None:
    with pytest.raises(ValueError, match="`params` is uint8, for 0 to 255; its domain is"):
        nd.BlackBox(lambda x: x.sum(), np.zeros(4, np.uint8), domain=domain)


@pytest.mark.parametrize(
    ("params", "domain"),
    [(jnp.array(50), nd.Integer(0, 9)), (jnp.array(-5.0), nd.Real(log=True)), (jnp.array(5.0), nd.Real(0.0, 1.0))],
)
def test_every_problem_starts_inside(params: jax.Array, domain: nd.AbstractDomain) -> None:
    problem = nd.Supervised(towards, jnp.ones(3), params=params, domain=domain)
    with pytest.raises(ValueError, match="lies outside of its domain"):
        nd.fit(problem, nd.Genetic(population=4), steps=1, key=jr.key(0))


def test_numbers_of_other_kinds(unchecked: None) -> None:
    bf16 = nd.BlackBox(lambda x: jnp.sum((x - 3) ** 2), jnp.ones(2, jnp.bfloat16))
    assert nd.fit(bf16, nd.Backprop(optax.sgd(0.1)), steps=3, key=jr.key(0)).params.dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="expected one number"):
        nd.BlackBox(lambda x: 1 + 2j, np.ones(2))
    constant = nd.Supervised(lambda params, batch, key: 0.0, jnp.ones(3), params=jnp.ones(2))
    for trainer in (nd.Backprop(optax.adam(0.1)), nd.OpenES(optax.adam(0.1), sigma=0.1, population=4)):
        np.testing.assert_array_equal(nd.fit(constant, trainer, steps=3, key=jr.key(0)).params, jnp.ones(2))


GENETIC, DESCENT = nd.Genetic(population=4), nd.Backprop(optax.sgd(0.1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nd.fit(SQUARE, optax.sgd(0.1), steps=1, key=jr.key(0)), "where a trainer belongs"),
        (lambda: nd.fit(SQUARE, GENETIC, steps=1, key=jr.key(0), evaluator=32), "where an evaluator belongs"),
        (lambda: nd.fit(SQUARE, GENETIC, steps=1, key=jr.key(0), callbacks=print), "a tuple of functions"),
        (lambda: nd.Best(optax.sgd(0.1)), "where a trainer belongs"),
        (lambda: nd.fit(SQUARE, nd.Memetic(DESCENT, rate=0.1), steps=1, key=jr.key(0)), "follows a gradient already"),
        (lambda: nd.minimise(lambda x: float(x), 1.0, target=float("nan")), "target=nan"),
        (lambda: nd.minimise(lambda x: float(x), 1.0, key=0), "expected a key"),
        (lambda: nd.Genetic(population=4, rate=2.0), "a probability is at most 1"),
        (lambda: nd.ScoreFunction(4, entropy=float("inf")), "expected 0 or more"),
        (lambda: nd.Split({"loss": GENETIC}, "loss"), "metrics of every step"),
        (lambda: nd.Query(None, None, jr.key(0)[None], wants=nd.Wants(False, True, True)), "not for both"),
    ],
)
def test_refused_with_a_reason(call, message: str, unchecked: None) -> None:
    with pytest.raises(ValueError, match=message):
        call()
