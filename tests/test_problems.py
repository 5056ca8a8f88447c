"""Problems: exact counts of calls and rows, and messages for what a user may hand over by mistake."""

import functools
import operator
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import nondiff
from nondiff import BlackBox, Host, Integer, Real, Supervised

ES = nondiff.OpenES(optax.sgd(0.1), sigma=0.1, population=6)
DESCENT = nondiff.Backprop(optax.sgd(0.1))


def test_the_probe_tells_jax_from_python() -> None:
    assert BlackBox(lambda x: jnp.sum(x), np.ones(2)).traceable
    assert not BlackBox(lambda x: np.sum(x), np.ones(2)).traceable
    assert not BlackBox(lambda x: float(x.sum()), jnp.ones(2)).traceable
    assert not BlackBox(lambda x: 3, 1.0).traceable


def test_every_call_is_accounted_for() -> None:
    points = []

    def cost(x: np.ndarray) -> float:
        assert isinstance(x, np.ndarray) and x.dtype in (np.float32, np.float64) and x.shape == (2,)
        points.append(x.copy())
        return float(np.sum(x**2))

    problem = BlackBox(cost, np.array([1.0, 2.0]))
    assert len(points) == 1
    np.testing.assert_array_equal(points[0], [1.0, 2.0])
    result = nondiff.fit(problem, ES, steps=5, key=jr.key(0), evaluator=Host(chunk=4))
    assert len(points) == 1 + 6 * 5 and result.evaluations == 30
    for plus, minus in zip(points[1::2], points[2::2], strict=True):  # antithetic pairs around a common centre
        assert np.abs(plus - minus).max() > 0
    np.testing.assert_allclose(points[1] + points[2], [2.0, 4.0], rtol=1e-6)


def test_traceable_may_be_given_and_saves_the_probe() -> None:
    calls = []
    problem = BlackBox(lambda x: calls.append(0) or float(x), 1.0, traceable=False)
    assert not calls and not problem.traceable


def test_a_traceable_function_runs_in_python_only_while_it_is_compiled() -> None:
    calls = []
    problem = BlackBox(lambda x: calls.append(0) or jnp.sum(x**2), jnp.ones(2))
    nondiff.fit(problem, ES, steps=1, key=jr.key(0))
    traced = len(calls)
    nondiff.fit(problem, ES, steps=9, key=jr.key(0))
    assert len(calls) - traced <= traced  # the checks before compiling, and no call for each of 54 evaluations


@pytest.mark.parametrize("xp", [np, jnp], ids=["numpy", "jax"])
def test_vectorized_gives_the_same_as_one_by_one(xp) -> None:
    x0 = {"a": np.array([1.0, 2.0]), "b": 0.5}
    one = BlackBox(lambda x: xp.sum(x["a"] ** 2) + x["b"] ** 2, x0)
    many = BlackBox(lambda x: xp.sum(x["a"] ** 2, -1) + x["b"] ** 2, x0, vectorized=True)
    assert one.traceable == many.traceable == (xp is jnp)
    runs = [nondiff.fit(p, ES, steps=5, key=jr.key(0), evaluator=Host(chunk=4)) for p in (one, many)]
    for name in x0:
        np.testing.assert_allclose(runs[0].params[name], runs[1].params[name], rtol=1e-6)
    assert runs[0].loss == pytest.approx(runs[1].loss, rel=1e-6)
    if xp is jnp:
        traced = nondiff.fit(many, ES, steps=5, key=jr.key(0))
        np.testing.assert_allclose(traced.params["a"], runs[0].params["a"], rtol=1e-5)


@pytest.mark.parametrize("xp", [np, jnp], ids=["numpy", "jax"])
def test_whole_numbers_are_losses_too(xp) -> None:
    problem = BlackBox(lambda n: xp.abs(n - 13), 0, domain=Integer(0, 31))
    result = nondiff.fit(problem, nondiff.Genetic(population=16), steps=15, key=jr.key(0))
    assert int(result.params) == 13


def test_python_ints_as_losses() -> None:
    problem = BlackBox(lambda x: int(abs(float(x)) * 1000), 1.0)
    assert np.isfinite(nondiff.fit(problem, ES, steps=2, key=jr.key(0)).loss)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (np.zeros(3, np.float32), r"float32\[3\]"),
        ([1.0, 2.0], r"float64\[2\]"),
        ("bad", "'bad'|<U3"),
        (None, "None"),
        ([1.0, [2.0]], r"\[1.0, \[2.0\]\]"),
    ],
)
def test_a_bad_answer_is_found_at_once(answer, said: str) -> None:
    with pytest.raises(ValueError, match=rf"`BlackBox\(fn\)`: `fn\(x0\)` returned ({said}).*; expected one number"):
        BlackBox(lambda x: answer, 1.0)


def test_a_bad_vectorized_answer_is_found_at_once() -> None:
    with pytest.raises(ValueError, match=r"returned float64\[\]; expected `\[n\]` losses for `\[n\]` points"):
        BlackBox(lambda x: float(np.sum(x)), np.ones(2), vectorized=True)


def test_an_answer_that_goes_bad_later_is_named() -> None:
    calls = []

    def cost(x: np.ndarray) -> object:
        calls.append(0)
        return np.zeros(2) if len(calls) > 3 else 0.0

    with pytest.raises(ValueError):
        nondiff.fit(BlackBox(cost, np.ones(2)), ES, steps=1, key=jr.key(0))
    short = BlackBox(lambda x: np.zeros(1, np.float32), np.ones(2), vectorized=True)
    with pytest.raises(
        ValueError, match=r"`BlackBox` answered 6 candidates with float32\[1\]; expected 6 numbers, `\[6\]`"
    ):
        nondiff.fit(short, ES, steps=1, key=jr.key(0))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("x0", "domain", "message"),
    [
        (2.0, Real(0.0, 1.0), r"`params` = 2.0 lies outside of its domain, Real\(lo=0.0, hi=1.0\). Start inside"),
        ({"n": 9}, Integer(0, 5), r"`params\['n'\]` = 9 lies outside of its domain, Integer\(lo=0, hi=5\)"),
        (float("nan"), None, r"`params` = nan lies outside of its domain"),
        (-1.0, Real(log=True), r"`params` = -1.0 lies outside of its domain"),
        ({}, None, r"`BlackBox\(x0=\{\}\)`: there is nothing to move; give at least one number"),
        (None, None, r"`BlackBox\(x0=None\)`: there is nothing to move"),
        (np.zeros((0, 2)), None, r"`BlackBox\(x0=array.*`: there is nothing to move"),
        ("here", None, r"`BlackBox\(x0\)`: `params` is <U4; expected numbers"),
        ({"a": np.array([None, 1.0])}, None, r"`params\['a'\]` is object; expected numbers"),
        (3, None, r"`params` is int32 and has no domain.*`domain=` of `BlackBox`"),
        ({"x": 1.0}, {"y": Real()}, r"domain must be a prefix of the parameters"),
    ],
)
def test_where_it_may_not_start(x0, domain, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BlackBox(lambda x: 0.0, x0, domain=domain)


def test_x0_is_not_changed() -> None:
    x0 = np.ones(2)
    nondiff.fit(BlackBox(lambda x: float(np.sum(x**2)), x0), ES, steps=2, key=jr.key(0))
    np.testing.assert_array_equal(x0, [1.0, 1.0])


def rows_of(problem: Supervised, steps: int) -> list[list[int]]:
    """The rows that each step draws, by walking the problem's state."""
    state, drawn = problem.init_state(key=jr.key(3)), []
    absorb = jax.jit(lambda state: problem.absorb(state, None, None))
    for i in range(steps):
        drawn.append([int(x) for x in problem.batch(state, key=jr.key(i))])
        state = absorb(state)
    return drawn


def no_loss(params, batch, key) -> jax.Array:
    return jnp.sum(params) + 0.0 * jnp.sum(batch)


@pytest.mark.parametrize(("n", "size"), [(8, 2), (7, 3), (5, 5), (4, 1), (9, 5)])
def test_every_row_once_an_epoch_without_replacement(n: int, size: int) -> None:
    drawn = rows_of(Supervised(no_loss, jnp.arange(n), params=jnp.zeros(1), batch_size=size), 3 * (n // size))
    per_epoch = n // size
    orders = []
    for epoch in range(3):
        seen = functools.reduce(operator.iadd, drawn[epoch * per_epoch : (epoch + 1) * per_epoch], [])
        assert len(seen) == len(set(seen)) == per_epoch * size  # the remainder waits for the next shuffle
        assert set(seen) <= set(range(n))
        orders.append(seen)
    if n > 4:
        assert orders[0] != orders[1] != orders[2]


def test_remainder_rows_are_not_lost_for_ever() -> None:
    drawn = rows_of(Supervised(no_loss, jnp.arange(7), params=jnp.zeros(1), batch_size=3), 40)
    counts = np.bincount(functools.reduce(operator.iadd, drawn, []), minlength=7)
    assert counts.sum() == 120 and counts.min() > 5


def counted(data, **options) -> nondiff.Result:
    """Fits one number to the running sum of batch means, so that the result says which batches were seen."""

    def loss(w, batch, key):
        return -jnp.mean(batch) * w, jnp.mean(batch)

    problem = Supervised(loss, data, params=jnp.zeros(()), **options)
    return nondiff.fit(problem, nondiff.Backprop(optax.sgd(1.0)), steps=6, key=jr.key(0), log_every=2)


def test_an_epoch_in_training_sees_all_rows() -> None:
    assert counted(jnp.arange(12.0), batch_size=2).params == np.arange(12.0).reshape(6, 2).mean(1).sum()


def test_no_batch_size_is_the_full_batch() -> None:
    assert counted(jnp.arange(5.0)).params == 6 * 2.0


class Loader:
    """Batches that can be started again, as a `DataLoader`."""

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter([np.full(2, x, np.float32) for x in (1.0, 10.0)])


def generator(n: int) -> Iterator[np.ndarray]:
    for i in range(n):
        yield np.full(2, float(i + 1), np.float32)


def test_batches_from_outside() -> None:
    assert counted(lambda step: np.full(2, float(step), np.float32)).params == 0 + 1 + 2 + 3 + 4 + 5
    assert counted(Loader()).params == 3 * 11
    many = counted(generator(100))
    assert many.params == 21 and many.reason == "all 6 steps done"
    assert many.history[-1]["step"] == 6


@pytest.mark.parametrize("n", [1, 4, 5])
def test_a_generator_that_ends_ends_the_training(n: int) -> None:
    result = counted(generator(n))
    assert result.reason == f"the batches ended after {n} steps"
    assert result.steps == n and result.evaluations == n and result.params == n * (n + 1) / 2
    assert result.history[-1]["step"] == n
    assert result.loss == result.history[-1]["loss"] and np.isfinite(result.loss)


def test_a_generator_is_read_no_further_than_needed() -> None:
    source = generator(100)
    counted(source)
    assert next(source)[0] == 7.0


def test_fits_own_batches_replace_the_problems() -> None:
    problem = Supervised(lambda w, b, k: -jnp.mean(b) * w, jnp.zeros(4), params=jnp.zeros(()), batch_size=2)
    trainer = nondiff.Backprop(optax.sgd(1.0))
    result = nondiff.fit(problem, trainer, steps=2, key=jr.key(0), batches=lambda step: np.full(2, 5.0, np.float32))
    assert result.params == 10.0


def test_params_may_be_a_function_of_the_key() -> None:
    problem = Supervised(no_loss, jnp.zeros(2), params=lambda key: jr.normal(key, (2,)))
    same, other = (nondiff.init(problem, DESCENT, key=jr.key(k)).trainer.params for k in (0, 1))
    assert (same != other).all()
    np.testing.assert_array_equal(same, nondiff.init(problem, DESCENT, key=jr.key(0)).trainer.params)


@pytest.mark.usefixtures("unchecked")
def test_aux_reaches_absorb_for_every_evaluation() -> None:
    class Remembers(Supervised):
        def init_state(self, *, key):
            return jnp.zeros(())

        def absorb(self, state, aux, batch):
            assert aux["twice"].shape == (6,)
            return state + aux["twice"].sum()

    problem = Remembers(lambda w, b, k: (w**2, {"twice": 2.0 * jnp.ones(())}), jnp.zeros(3), params=jnp.zeros(()))
    assert nondiff.fit(problem, ES, steps=3, key=jr.key(0)).state.problem == 3 * 6 * 2.0


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("data", "size", "message"),
    [
        (
            jnp.zeros((0, 3)),
            None,
            r"`Supervised\(data\)` has shapes \[\[0, 3\]\]; expected one first axis for all, of 1 or",
        ),
        ((jnp.zeros(3), jnp.zeros(4)), None, r"has shapes \[\[3\], \[4\]\]"),
        ((jnp.zeros(3), jnp.zeros(())), None, r"has shapes \[\[3\], \[\]\]"),
        (jnp.zeros(3), 0, r"`Supervised\(batch_size=0\)`: expected a whole number of at least 1"),
        (jnp.zeros(3), 4, r"`Supervised\(batch_size=4\)`: there are only 3 rows"),
        (Loader(), 2, r"`Supervised\(batch_size=2\)`: these batches come from outside"),
        (object(), None, r"expected arrays, an iterable, or a function of the step"),
    ],
)
def test_data_that_cannot_serve(data, size: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Supervised(no_loss, data, params=jnp.zeros(1), batch_size=size)


def test_no_batches_at_all() -> None:
    with pytest.raises(ValueError, match="`batches` is empty: there is no data to train on"):
        counted(generator(0))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            lambda w, b, k: jnp.outer(b, w),
            r"`Supervised.loss` returned float32\[4, 2\]; expected one float, `\[\]`, or one",
        ),
        (lambda w, b, k: jnp.argmax(w), r"`Supervised.loss` returned int32\[\]; expected one float"),
        (lambda w, b, k: jnp.zeros(0), r"`Supervised.loss` returned float32\[0\]"),
        (lambda w, b, k: {"loss": jnp.sum(w)}, r"expected `\(loss, aux\)`|expected one float"),
        (lambda w, b, k: (jnp.sum(w), 1, 2), r"expected `\(loss, aux\)`"),
    ],
)
@pytest.mark.parametrize("trainer", [DESCENT, ES], ids=["backprop", "open_es"])
@pytest.mark.usefixtures("unchecked")
def test_a_loss_of_another_shape_is_refused_before_compiling(loss, message: str, trainer) -> None:
    problem = Supervised(loss, jnp.ones(4), params=jnp.ones(2))
    with pytest.raises(ValueError, match=message):
        nondiff.fit(problem, trainer, steps=1, key=jr.key(0))


def test_parameters_that_are_no_arrays() -> None:
    problem = Supervised(no_loss, jnp.ones(4), params={"w": jnp.ones(2), "f": jnp.tanh})
    with pytest.raises(ValueError, match=r"`params\['f'\]` is .*, not an array.*equinox.filter"):
        nondiff.fit(problem, DESCENT, steps=1, key=jr.key(0))
