"""Estimators: the value is the hard decision's, the derivative that of the objective, by a second computation."""

import itertools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import nondiff
from nondiff import (
    ExpectedLoss,
    IndeCateR,
    LeaveOneOut,
    MarginalLikelihood,
    NoBaseline,
    ScoreFunction,
    Smoothing,
    SuccessLikelihood,
    Tabulate,
)
from nondiff.estimators.marginal_likelihood import first_of_each

B, PARTS, N = 4, 2, 3
LOGITS = jr.normal(jr.key(7), (B, PARTS, N))
TARGET = jnp.array([0.0, 1.0, 3.0, 4.0])
TABLE = np.array(list(itertools.product(range(N), repeat=PARTS)))

ESTIMATORS = [
    Tabulate(),
    Tabulate(objective=ExpectedLoss()),
    IndeCateR(2),
    IndeCateR(2, objective=ExpectedLoss()),
    MarginalLikelihood(5),
    ScoreFunction(5),
    ScoreFunction(5, baseline=NoBaseline(), entropy=0.1),
    Smoothing(3),
    Smoothing(3, normalize=False, entropy=0.0),
]


def rest(symbols: jax.Array) -> jax.Array:
    """0 where the sum is right, else how wrong it is."""
    return jnp.abs(symbols.sum(-1) - TARGET)


def gradient(via: nondiff.AbstractEstimator, logits: jax.Array = LOGITS, key: jax.Array = jr.key(0)) -> jax.Array:
    return jax.jit(jax.grad(lambda z, k: nondiff.through(rest, z, via=via, key=k).sum()))(logits, key)


def enumerated(logits: jax.Array, objective: str) -> jax.Array:
    """The objective summed over the cases, in plain probabilities over all assignments."""
    p = jax.nn.softmax(logits)
    joint = jnp.stack([p[:, 0, a] * p[:, 1, b] for a, b in TABLE])
    losses = np.abs(TABLE.sum(1)[:, None] - np.asarray(TARGET))
    if objective == "expected":
        return (joint * losses).sum()
    return -jnp.log((joint * (losses == 0)).sum(0)).sum()


@pytest.mark.parametrize("via", ESTIMATORS, ids=repr)
def test_the_value_is_the_hard_decisions_bit_for_bit(via: nondiff.AbstractEstimator) -> None:
    expected = np.asarray(rest(jnp.argmax(LOGITS, -1)))

    def loss(z: jax.Array) -> jax.Array:
        return nondiff.through(rest, z, via=via, key=jr.key(0))

    np.testing.assert_array_equal(loss(LOGITS), expected)
    np.testing.assert_array_equal(jax.jit(loss)(LOGITS), expected)
    np.testing.assert_array_equal(jax.jit(jax.vmap(loss))(LOGITS[None])[0], expected)
    value, slope = jax.jit(jax.value_and_grad(lambda z: loss(z)[1]))(LOGITS)
    assert value == expected[1] and np.isfinite(slope).all()


@pytest.mark.parametrize(
    ("via", "asked"),
    [
        (Tabulate(), N**PARTS),
        (IndeCateR(2), 2 * PARTS * N),
        (MarginalLikelihood(5), 5),
        (ScoreFunction(6), 6),
        (Smoothing(3), 6),
    ],
    ids=["tabulate", "indecater", "marginal_likelihood", "score_function", "smoothing"],
)
def test_the_program_is_asked_no_more_than_needed(via: nondiff.AbstractEstimator, asked: int) -> None:
    program = nondiff.Opaque(lambda s: float(s.sum() != 2))
    loss = jax.jit(lambda z, k: nondiff.through(program, z, via=via, key=k).sum())
    loss(LOGITS, jr.key(0)).block_until_ready()
    assert program.requests == B
    program.requests = 0
    jax.block_until_ready(jax.jit(jax.value_and_grad(loss))(LOGITS, jr.key(0)))
    assert program.requests == B * (1 + asked)


@pytest.mark.parametrize(
    ("objective", "name"), [(ExpectedLoss(), "expected"), (SuccessLikelihood(), "success")], ids=["expected", "success"]
)
def test_tabulate_is_the_gradient_of_the_enumerated_objective(objective: nondiff.AbstractObjective, name: str) -> None:
    reference = jax.grad(enumerated)(LOGITS, name)
    np.testing.assert_allclose(gradient(Tabulate(objective=objective)), reference, rtol=1e-4, atol=1e-6)


def test_tolerance_counts_near_answers_as_successes() -> None:
    def near(logits: jax.Array) -> jax.Array:
        p = jax.nn.softmax(logits)
        joint = jnp.stack([p[:, 0, a] * p[:, 1, b] for a, b in TABLE])
        return -jnp.log((joint * (np.abs(TABLE.sum(1)[:, None] - np.asarray(TARGET)) <= 1)).sum(0)).sum()

    via = Tabulate(objective=SuccessLikelihood(tolerance=1.0))
    np.testing.assert_allclose(gradient(via), jax.grad(near)(LOGITS), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("baseline", [LeaveOneOut(), NoBaseline()], ids=repr)
def test_score_function_is_unbiased(baseline) -> None:
    via, repeats = ScoreFunction(4, baseline=baseline), 4000
    one = jax.grad(lambda z, k: nondiff.through(rest, z, via=via, key=k).sum())
    draws = np.asarray(jax.jit(jax.vmap(one, (None, 0)))(LOGITS, jr.split(jr.key(1), repeats)))
    error = draws.std(0) / np.sqrt(repeats)
    reference = np.asarray(jax.grad(enumerated)(LOGITS, "expected"))
    assert (np.abs(draws.mean(0) - reference) <= 4 * error + 1e-6).all()
    assert np.abs(reference).max() > 10 * error.max()  # the test can tell


def test_leave_one_out_baseline_lowers_the_variance() -> None:
    def spread(baseline) -> float:
        via = ScoreFunction(4, baseline=baseline)
        shifted = lambda s: rest(s) + 10.0  # noqa: E731
        one = jax.grad(lambda z, k: nondiff.through(shifted, z, via=via, key=k).sum())
        return float(jax.jit(jax.vmap(one, (None, 0)))(LOGITS, jr.split(jr.key(1), 500)).var(0).sum())

    assert spread(LeaveOneOut()) < 0.1 * spread(NoBaseline())


def test_entropy_bonus_is_exactly_its_formula() -> None:
    def negative_entropy(z: jax.Array) -> jax.Array:
        p = jax.nn.softmax(z)
        return 0.3 * (p * jnp.log(p)).sum()

    difference = gradient(ScoreFunction(5, entropy=0.3)) - gradient(ScoreFunction(5))
    np.testing.assert_allclose(difference, jax.grad(negative_entropy)(LOGITS), rtol=1e-4, atol=1e-6)


def test_marginal_likelihood_is_exact_once_its_samples_cover_the_domain() -> None:
    near_uniform = 0.3 * LOGITS
    exact = gradient(Tabulate(), near_uniform)
    np.testing.assert_allclose(gradient(MarginalLikelihood(400), near_uniform), exact, rtol=1e-4, atol=1e-6)
    assert np.abs(gradient(MarginalLikelihood(3), near_uniform) - exact).max() > 1e-2  # three samples do not


def test_marginal_likelihood_is_the_formula_on_its_own_samples() -> None:
    """`log p(distinct) - log p(distinct successes)`, written with sets."""
    samples, key = 4, jr.key(3)
    symbols = np.asarray(jr.categorical(key, LOGITS, shape=(samples, B, PARTS)))

    def reference(logits: jax.Array) -> jax.Array:
        p, total = jax.nn.softmax(logits), jnp.zeros(())
        for case in range(B):
            seen = sorted({tuple(map(int, s)) for s in symbols[:, case]})
            hits = [s for s in seen if sum(s) == TARGET[case]]
            if hits:
                mass = [sum(p[case, 0, a] * p[case, 1, b] for a, b in group) for group in (seen, hits)]
                total += jnp.log(mass[0]) - jnp.log(mass[1])
        return total

    expected = jax.grad(reference)(LOGITS)
    np.testing.assert_allclose(gradient(MarginalLikelihood(samples), key=key), expected, rtol=1e-4, atol=1e-6)
    assert np.abs(expected).max() > 0


@pytest.mark.parametrize("objective", [ExpectedLoss(), SuccessLikelihood()], ids=["expected", "success"])
def test_indecater_is_the_formula_on_its_own_samples(objective: ExpectedLoss | SuccessLikelihood) -> None:
    """Every symbol of a part beside the others as they were drawn, one at a time."""
    samples, key = 3, jr.key(5)
    drawn = np.asarray(jr.categorical(key, LOGITS, shape=(samples, B, PARTS)))

    def reference(logits: jax.Array) -> jax.Array:
        p, total = jax.nn.softmax(logits), jnp.zeros(())
        for case, part in itertools.product(range(B), range(PARTS)):
            wrong = [[abs(k + int(s[case, 1 - part]) - float(TARGET[case])) for s in drawn] for k in range(N)]
            if isinstance(objective, ExpectedLoss):
                total += sum(p[case, part, k] * np.mean(wrong[k]) for k in range(N))
            elif any(0.0 in row for row in wrong):
                total -= jnp.log(sum(p[case, part, k] * np.mean(np.array(wrong[k]) == 0) for k in range(N)))
        return total

    expected = jax.grad(reference)(LOGITS)
    via = IndeCateR(samples, objective=objective)
    np.testing.assert_allclose(gradient(via, key=key), expected, rtol=1e-4, atol=1e-6)
    assert np.abs(expected).max() > 0


@pytest.mark.parametrize("normalize", [False, True])
def test_smoothing_is_the_formula_on_its_own_noise(normalize: bool) -> None:
    """Of pairs, one after the other, in NumPy; for numbers that are rounded."""
    pairs, sigma, key, here = 3, 0.7, jr.key(5), np.asarray(LOGITS[:, 0])
    noise = np.asarray(jr.normal(key, (pairs, *here.shape)))

    def far(decided: np.ndarray) -> np.ndarray:
        return np.abs(decided.sum(-1) - np.asarray(TARGET))

    change = np.stack([far(np.round(here + sigma * e)) - far(np.round(here - sigma * e)) for e in noise])
    expected = np.mean([c[:, None] * e for c, e in zip(change, noise, strict=True)], 0) / (2 * sigma)
    if normalize:
        expected /= np.abs(change).mean(0)[:, None] + 0.05
    via = Smoothing(pairs, sigma=sigma, normalize=normalize)  # no entropy: there are no symbols
    loss = lambda z: nondiff.through(rest, z, via=via, key=key, decide=jnp.round).sum()  # noqa: E731
    np.testing.assert_allclose(jax.grad(loss)(LOGITS[:, 0]), expected, rtol=1e-4, atol=1e-6)
    assert np.abs(expected).max() > 0


def test_smoothing_knows_how_noise_decides() -> None:
    """Its probabilities of all assignments add up, and are the shares of what noise decides."""
    via, table = Smoothing(sigma=0.7), jnp.broadcast_to(TABLE[:, None], (len(TABLE), B, PARTS))
    p = np.exp(via.log_prob(LOGITS, table))
    np.testing.assert_allclose(p.sum(0), 1.0, rtol=1e-4)
    decided = jnp.argmax(LOGITS + 0.7 * jr.normal(jr.key(1), (40_000, *LOGITS.shape)), -1)
    shares = np.mean(np.all(decided[:, None] == table, -1), 0)
    np.testing.assert_allclose(shares, p, atol=4 * np.sqrt(p * (1 - p) / 40_000).max())


@pytest.mark.parametrize("via", [Tabulate(), IndeCateR(3), MarginalLikelihood(20)], ids=repr)
def test_no_success_teaches_nothing_and_stays_finite(via: nondiff.AbstractEstimator) -> None:
    never = jax.grad(lambda z: nondiff.through(lambda s: 1.0 + s.sum(-1), z, via=via, key=jr.key(0)).sum())
    for scale in (1.0, 200.0):
        np.testing.assert_array_equal(jax.jit(never)(scale * LOGITS), np.zeros_like(LOGITS))


@pytest.mark.parametrize("via", ESTIMATORS, ids=repr)
def test_certain_networks_give_finite_gradients(via: nondiff.AbstractEstimator) -> None:
    assert np.isfinite(gradient(via, 1e3 * LOGITS)).all()


@pytest.mark.parametrize(("parts", "n"), [((2,), 3), ((20,), 10), ((3, 4), 2), ((5,), 1), ((2,), 50_000), ((), 4)])
def test_first_of_each_marks_every_distinct_assignment_once(parts: tuple[int, ...], n: int) -> None:
    samples, cases = 40, 3
    pool = jr.randint(jr.key(0), (12, cases, *parts), 0, n)  # few enough for many duplicates
    rows = jr.randint(jr.key(1), (samples,), 0, 12)
    symbols = pool[rows]
    mask = np.asarray(jax.jit(first_of_each, static_argnums=1)(symbols, n))
    flat = np.asarray(symbols).reshape(samples, cases, -1)
    for case in range(cases):
        distinct = np.unique(flat[:, case], axis=0)
        marked = flat[mask[:, case], case]
        assert len(marked) == len(distinct)
        np.testing.assert_array_equal(np.unique(marked, axis=0), distinct)


def test_first_of_each_tells_rows_apart_that_differ_in_one_place() -> None:
    rows = np.zeros((21, 1, 20), np.int32)
    rows[np.arange(20), 0, np.arange(20)] = 9
    assert np.asarray(first_of_each(jnp.asarray(rows), 10)).all()


def test_gradients_flow_as_usual_through_the_rests_own_leaves() -> None:
    def loss(scale: jax.Array) -> jax.Array:
        return nondiff.through(lambda s: scale * s.sum(-1), LOGITS, via=Tabulate(), key=jr.key(0)).sum()

    assert jax.grad(loss)(2.0) == jnp.argmax(LOGITS, -1).sum()


def test_the_decision_may_be_another() -> None:
    def last(z: jax.Array) -> jax.Array:
        return jnp.full(z.shape[:-1], N - 1)

    value = nondiff.through(rest, LOGITS, via=Tabulate(), key=jr.key(0), decide=last)
    np.testing.assert_array_equal(value, np.abs(2 * (N - 1) - np.asarray(TARGET)))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("rest", "logits", "via", "message"),
    [
        (rest, LOGITS, "tabulate", r"`through\(via='tabulate'\)`: expected an estimator, for example"),
        (rest, LOGITS[0, 0], Tabulate(), r"`through\(logits\)` is float32\[3\]; expected floats"),
        (rest, LOGITS.astype(int), Tabulate(), r"`through\(logits\)` is int32\[4, 2, 3\]; expected floats"),
        (
            lambda s: rest(s).mean(),
            LOGITS,
            Tabulate(),
            r"returned float32\[\]; expected one float loss per case, `\[4\]`",
        ),
        (lambda s: s.sum(-1), LOGITS, Tabulate(), r"returned int32\[4\]; expected one float loss per case"),
        (lambda s: s * 1.0, LOGITS, Tabulate(), r"returned float32\[4, 2\]; expected one float loss per case"),
        (rest, LOGITS, Tabulate(limit=8), r"`Tabulate\(limit=8\)`: 2 parts of 3 symbols make 9 assignments"),
    ],
)
def test_what_through_refuses(rest, logits, via, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nondiff.through(rest, logits, via=via, key=jr.key(0))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: IndeCateR(0), r"`IndeCateR\(samples=0\)`"),
        (lambda: IndeCateR(2, objective="success"), r"expected `SuccessLikelihood\(\)` or `ExpectedLoss\(\)`"),  # pyright: ignore[reportArgumentType]
        (lambda: MarginalLikelihood(0), r"`MarginalLikelihood\(samples=0\)`"),
        (lambda: ScoreFunction(1), r"`ScoreFunction\(samples=1\)`: expected a whole number of at least 2"),
        (lambda: ScoreFunction(4, entropy=-0.1), r"`ScoreFunction\(entropy=-0.1\)`: expected 0 or more"),
        (lambda: ScoreFunction(4, entropy=float("nan")), r"`ScoreFunction\(entropy=nan\)`"),
        (lambda: Smoothing(0), r"`Smoothing\(pairs=0\)`"),
        (lambda: Smoothing(sigma=0.0), r"`Smoothing\(sigma=0.0\)`"),
        (lambda: Smoothing(entropy=-1), r"`Smoothing\(entropy=-1\)`"),
        (lambda: Tabulate(limit=0), r"`Tabulate\(limit=0\)`"),
    ],
)
def test_what_cannot_be_built(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_no_baseline_needs_one_sample_only() -> None:
    assert np.isfinite(gradient(ScoreFunction(1, baseline=NoBaseline()))).all()
