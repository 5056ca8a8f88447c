"""Estimators: the value is the hard decision's, the derivative that of the objective, by a second computation."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import nondiff
from nondiff import (
    Auto,
    Blackbox,
    Clipped,
    ExpectedLoss,
    GumbelSoftmax,
    IndeCateR,
    LeaveOneOut,
    LossModel,
    MarginalLikelihood,
    NoBaseline,
    Perturbed,
    ScoreFunction,
    Smoothing,
    Softmax,
    Splitting,
    StraightThrough,
    SuccessLikelihood,
    Surrogate,
    Tabulate,
    TopK,
    one_hot,
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
    Auto(),
    Splitting(2),
    Surrogate(LossModel(PARTS, N, width=4, key=jr.key(0)), samples=2),
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
        (Splitting(4), 1 + 4 + 2 * PARTS * N),
    ],
    ids=["tabulate", "indecater", "marginal_likelihood", "score_function", "smoothing", "splitting"],
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


def test_a_surrogate_asks_only_to_fit_its_net() -> None:
    program = nondiff.Opaque(lambda s: float(s.sum() != 2))
    net = LossModel(PARTS, N, width=4, key=jr.key(0))

    @eqx.filter_jit
    def slopes(of, other, credit: bool):
        def loss(of):
            net, logits = (of, other) if credit else (other, of)
            via = Surrogate(net, samples=3)
            return nondiff.through(program, logits, via=via, key=jr.key(0)).sum()

        return eqx.filter_value_and_grad(loss)(of)

    jax.block_until_ready(slopes(LOGITS, net, False))
    assert program.requests == B
    program.requests = 0
    jax.block_until_ready(slopes(net, LOGITS, True))
    assert program.requests == B * (1 + 2 * 3)


def test_a_table_is_asked_once_where_answers_are_compared_by_broadcasting() -> None:
    program = nondiff.Opaque(lambda s: int(s.sum()), jax.ShapeDtypeStruct((), jnp.int32))

    def slope(rest) -> jax.Array:
        program.requests = 0
        loss = lambda z: nondiff.through(rest, z, via=Tabulate(), key=jr.key(0)).sum()  # noqa: E731
        return jax.block_until_ready(jax.jit(jax.grad(loss))(LOGITS))

    once = slope(lambda s: jnp.abs(program(s) - TARGET))
    assert program.requests in (N**PARTS, N**PARTS + B)  # XLA may leave the value out, since nobody reads it
    each = slope(lambda s: jax.vmap(lambda x, y: jnp.abs(x - y))(program(s), TARGET))
    assert program.requests in (B * N**PARTS, B * N**PARTS + B)
    np.testing.assert_array_equal(once, each)


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
        return float(jax.jit(jax.vmap(one, (None, 0)))(LOGITS, jr.split(jr.key(1), 1_000)).var(0).sum())

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


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_straight_through_is_the_derivative_at_the_decision(scale: float) -> None:
    """Of a loss `sum(w * y^2)`, by hand, for each stand-in."""
    z, w, key = scale * LOGITS[:, 0], jnp.arange(1.0, 4.0), jr.key(2)

    def slope(relaxation, decide) -> np.ndarray:
        rest = lambda y: (w * y**2).sum(-1)  # noqa: E731
        via = StraightThrough(relaxation)
        return np.asarray(jax.grad(lambda z: nondiff.through(rest, z, via=via, key=key, decide=decide).sum())(z))

    at = np.asarray(z)
    np.testing.assert_allclose(slope(nondiff.Identity(), jnp.round), 2 * w * np.round(at), rtol=1e-6)
    inside = (at >= -1) & (at <= 1)
    np.testing.assert_allclose(slope(Clipped(), jnp.sign), inside * 2 * w * np.sign(at), rtol=1e-6)

    def of_softmax(at: np.ndarray, y: np.ndarray, temperature: float) -> np.ndarray:
        p = np.exp(at / temperature) / np.exp(at / temperature).sum(-1, keepdims=True)
        jacobian = (p[:, :, None] * np.eye(3) - p[:, :, None] * p[:, None, :]) / temperature
        return np.einsum("ci,cij->cj", 2 * w * y, jacobian)

    chosen = np.eye(3)[at.argmax(-1)]
    np.testing.assert_allclose(slope(Softmax(0.5), one_hot), of_softmax(at, chosen, 0.5), rtol=1e-4, atol=1e-6)
    two = 1.0 - np.eye(3)[at.argmin(-1)]
    np.testing.assert_allclose(slope(Softmax(2.0), TopK(2)), of_softmax(at, two, 2.0), rtol=1e-4, atol=1e-6)
    noisy = at + np.asarray(jr.gumbel(key, at.shape))
    drawn = np.eye(3)[noisy.argmax(-1)]
    np.testing.assert_allclose(slope(GumbelSoftmax(0.7), one_hot), of_softmax(noisy, drawn, 0.7), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("maximize", [False, True])
def test_blackbox_is_algorithm_1_of_the_paper(maximize: bool) -> None:
    """One case after the other, with a solver in NumPy: the best of all subsets of two out of three."""
    strength, goal = 1.5, np.array([1.0, 1.0, 0.0])
    subsets = np.array([s for s in itertools.product([0.0, 1.0], repeat=3) if sum(s) == 2])

    def solve(costs: np.ndarray) -> np.ndarray:
        worth = subsets @ costs
        return subsets[worth.argmax() if maximize else worth.argmin()].astype(np.float32)

    solver = nondiff.Opaque(solve, jax.ShapeDtypeStruct((3,), jnp.float32))
    rest = lambda y: ((y - goal) ** 2).sum(-1)  # noqa: E731
    via = Blackbox(strength, maximize=maximize)
    value, slope = jax.value_and_grad(lambda z: nondiff.through(rest, z, via=via, key=jr.key(0), decide=solver).sum())(
        LOGITS[:, 0]
    )
    total, expected = 0.0, []
    for costs in np.asarray(LOGITS[:, 0]):
        y = solve(costs)
        total += ((y - goal) ** 2).sum()
        toward = strength * 2 * (y - goal)
        moved = solve(costs - toward if maximize else costs + toward)
        expected.append((y - moved if maximize else moved - y) / strength)
    assert value == total
    np.testing.assert_allclose(slope, expected, rtol=1e-6)
    assert np.abs(expected).max() > 0
    assert solver.requests == 2 * B


def test_perturbed_is_the_papers_formula_on_its_own_noise() -> None:
    """`J = mean(y(z + sigma e) (1 - exp(-e))^T) / sigma`, equation 6, with the unperturbed decision as a baseline."""
    samples, sigma, key, z = 6, 0.8, jr.key(4), LOGITS[:, 0]
    goal = jnp.array([0.0, 0.0, 1.0])
    rest = lambda y: ((y - goal) ** 2).sum(-1)  # noqa: E731
    via = Perturbed(samples, sigma=sigma)
    slope = jax.grad(lambda z: nondiff.through(rest, z, via=via, key=key, decide=one_hot).sum())(z)
    for case, k_case in enumerate(jr.split(key, B)):
        here = np.asarray(z[case])
        noise = np.stack([jr.gumbel(jr.split(k, 1)[0], here.shape) for k in jr.split(k_case, samples)])
        decided = np.eye(3)[(here + sigma * noise).argmax(-1)]
        base = np.eye(3)[here.argmax()]
        jacobian = np.mean([np.outer(y - base, 1 - np.exp(-e)) for y, e in zip(decided, noise, strict=True)], 0) / sigma
        expected = 2 * (decided.mean(0) - np.asarray(goal)) @ jacobian
        np.testing.assert_allclose(slope[case], expected, rtol=1e-3, atol=1e-5)


def test_splitting_fits_the_likeliest_success_it_found() -> None:
    """Among the likeliest symbols, the samples, and single edits of the first two, listed in Python."""
    samples, key = 2, jr.key(3)
    drawn = np.asarray(jr.categorical(key, LOGITS, shape=(samples, B, PARTS)))
    p = np.asarray(jax.nn.softmax(LOGITS))
    expected, found = np.zeros_like(p), 0
    for case in range(B):
        likeliest = p[case].argmax(-1)
        proposals = [tuple(likeliest), *map(tuple, drawn[:, case])]
        for base in (likeliest, drawn[0, case]):
            for part, symbol in itertools.product(range(PARTS), range(N)):
                proposals.append((*base[:part], symbol, *base[part + 1 :]))
        right = [s for s in proposals if sum(s) == TARGET[case]]
        if right:
            best = max(right, key=lambda s: p[case, 0, s[0]] * p[case, 1, s[1]])
            expected[case] = p[case] - np.eye(N)[list(best)]
            found += 1
    np.testing.assert_allclose(gradient(Splitting(samples), key=key), expected, rtol=1e-4, atol=1e-6)
    assert found


@pytest.mark.slow
def test_a_fitted_surrogate_points_where_the_exact_gradient_does() -> None:
    """And its net gets the gradient of the fit alone, the boundary that of the net alone."""
    context = jax.nn.one_hot(TARGET.astype(int), 5)
    program = nondiff.Opaque(lambda s: int(s.sum()), jax.ShapeDtypeStruct((), jnp.int32))

    def loss(net, logits, key) -> jax.Array:
        wrong = lambda s: (program(s) != TARGET).astype(float)  # noqa: E731
        via = Surrogate(net, samples=100).given(context)
        return nondiff.through(wrong, logits, via=via, key=key).sum()

    optimizer, net = (
        optax.adam(optax.cosine_decay_schedule(1e-2, 3_000)),
        LossModel(PARTS, N, context=5, width=64, key=jr.key(0)),
    )
    state = optimizer.init(eqx.filter(net, eqx.is_array))

    @eqx.filter_jit
    def fit(net, state, key):
        updates, state = optimizer.update(eqx.filter_grad(loss)(net, LOGITS, key), state)
        return eqx.apply_updates(net, updates), state

    before = jax.grad(loss, argnums=1)(net, LOGITS, jr.key(0))
    for k in jr.split(jr.key(1), 3_000):
        net, state = fit(net, state, k)
    after, exact = jax.grad(loss, argnums=1)(net, LOGITS, jr.key(0)), gradient(Tabulate())

    def cosine(a: jax.Array, b: jax.Array) -> float:
        return float(jnp.vdot(a, b) / jnp.linalg.norm(a.ravel()) / jnp.linalg.norm(b.ravel()))

    assert cosine(before, exact) < 0.5
    assert cosine(after, exact) > 0.9
    odds = jax.vmap(net)(jax.nn.softmax(LOGITS), context)
    np.testing.assert_allclose(
        after,
        jax.grad(lambda z: -jnp.log(jax.nn.sigmoid(jax.vmap(net)(jax.nn.softmax(z), context))).sum())(LOGITS),
        rtol=1e-3,
        atol=1e-5,
    )
    assert np.isfinite(odds).all()


@pytest.mark.parametrize(
    ("shape", "decide", "kind"),
    [
        ((4, 5, 10), nondiff.core.estimator.argmax, Tabulate),  # exactly 100,000 assignments
        ((4, 6, 10), nondiff.core.estimator.argmax, MarginalLikelihood),
        ((4, 5), jnp.round, Smoothing),
        ((4, 5, 10), one_hot, Smoothing),
    ],
)
def test_auto_chooses_by_the_boundary_and_says_so(shape, decide, kind, caplog) -> None:
    via = Auto().choose(shape, decide)
    assert type(via) is kind
    if kind is not Smoothing:
        return
    z = jr.normal(jr.key(0), shape)
    rest = lambda y: (y**2).reshape(shape[0], -1).sum(-1)  # noqa: E731
    with caplog.at_level("INFO", "nondiff"):
        slope = jax.grad(lambda z: nondiff.through(rest, z, via=Auto(), key=jr.key(1), decide=decide).sum())(z)
    same = jax.grad(lambda z: nondiff.through(rest, z, via=via, key=jr.key(1), decide=decide).sum())(z)
    np.testing.assert_array_equal(slope, same)
    assert f"Auto: {via!r}" in caplog.text


def test_several_estimators_in_one_compiled_model() -> None:
    """Symbols, then numbers made of them and rounded, then a square: the gradients of both boundaries."""

    @jax.jit
    def loss(logits, scale, key):
        k_symbols, k_steps = jr.split(key)

        def steps(symbols):
            heights = scale * symbols.astype(float)
            last = lambda whole: (whole.sum(-1) - TARGET) ** 2  # noqa: E731
            return nondiff.through(last, heights, via=StraightThrough(), key=k_steps, decide=jnp.round)

        return nondiff.through(steps, logits, via=Tabulate(objective=ExpectedLoss()), key=k_symbols).sum()

    value, (to_logits, to_scale) = jax.value_and_grad(loss, argnums=(0, 1))(LOGITS, 1.3, jr.key(0))
    symbols = np.asarray(LOGITS.argmax(-1))
    whole = np.round(1.3 * symbols).sum(-1)
    assert value == ((whole - np.asarray(TARGET)) ** 2).sum()
    expected = (2 * (whole - np.asarray(TARGET)) * symbols.sum(-1)).sum()
    np.testing.assert_allclose(to_scale, expected, rtol=1e-5)
    table = (np.round(1.3 * TABLE).sum(1)[:, None] - np.asarray(TARGET)) ** 2

    def enumerated_steps(logits):
        p = jax.nn.softmax(logits)
        joint = jnp.stack([p[:, 0, a] * p[:, 1, b] for a, b in TABLE])
        return (joint * table).sum()

    np.testing.assert_allclose(to_logits, jax.grad(enumerated_steps)(LOGITS), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("via", [Tabulate(), IndeCateR(3), MarginalLikelihood(20), Splitting(3)], ids=repr)
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
        (lambda: Auto(samples=0), r"`Auto\(samples=0\)`"),
        (lambda: Blackbox(0.0), r"`Blackbox\(strength=0.0\)`"),
        (lambda: Perturbed(0), r"`Perturbed\(samples=0\)`"),
        (lambda: Perturbed(sigma=-1.0), r"`Perturbed\(sigma=-1.0\)`"),
        (lambda: Perturbed(noise="normal"), r"`Perturbed\(noise='normal'\)`: expected `sample` and `log_prob`"),
        (lambda: Splitting(0), r"`Splitting\(samples=0\)`"),
        (lambda: Splitting(tolerance=float("nan")), r"`Splitting\(tolerance=nan\)`"),
        (lambda: StraightThrough("softmax"), r"`StraightThrough\('softmax'\)`: expected a relaxation"),  # pyright: ignore[reportArgumentType]
        (lambda: Clipped(1.0, -1.0), r"`Clipped\(1.0, -1.0\)`: expected finite bounds"),
        (lambda: Softmax(0.0), r"`Softmax\(temperature=0.0\)`"),
        (lambda: TopK(0), r"`TopK\(k=0\)`"),
        (lambda: Surrogate("net"), r"`Surrogate\('net'\)`: expected a network"),  # pyright: ignore[reportArgumentType]
        (lambda: LossModel(2, 3, width=0, key=jr.key(0)), r"`LossModel\(width=0\)`"),
    ],
)
def test_what_cannot_be_built(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("via", "decide", "message"),
    [
        (StraightThrough(), lambda z: jnp.argmax(z, -1), r"gives int32, and this estimator needs the derivative"),
        (Blackbox(), lambda z: jnp.argmax(z, -1), r"gives int32, and this estimator needs the derivative"),
        (Perturbed(), lambda z: jnp.argmax(z, -1), r"gives int32, and this estimator needs the derivative"),
        (StraightThrough(), lambda z: z.max(-1), r"the decision has shape \[4, 2\] and what stands for it \[4, 2, 3\]"),
        (Blackbox(), lambda z: z.max(-1), r"the decision has shape \[4, 2\] and the costs \[4, 2, 3\]"),
        (StraightThrough(), TopK(5), r"`TopK\(5\)`: there are only 3 symbols"),
    ],
)
def test_what_decisions_are_refused(via, decide, message: str) -> None:
    rest = lambda y: y.reshape(B, -1).sum(-1) * 1.0  # noqa: E731
    with pytest.raises(ValueError, match=message):
        nondiff.through(rest, LOGITS, via=via, key=jr.key(0), decide=decide)


@pytest.mark.usefixtures("unchecked")
def test_a_surrogate_is_told_one_answer_per_case() -> None:
    via = Surrogate(LossModel(PARTS, N, context=1, key=jr.key(0))).given(jnp.zeros((B + 1, 1)))
    with pytest.raises(ValueError, match=r"has shape \[5, 1\]; expected one row for each of 4 cases"):
        nondiff.through(rest, LOGITS, via=via, key=jr.key(0))


def test_a_program_has_no_derivative_to_send_straight_through() -> None:
    program = nondiff.Opaque(lambda y: float(y.sum()), ndim=2)
    with pytest.raises(TypeError, match=r"a gradient was asked through `Opaque"):
        nondiff.through(program, LOGITS, via=StraightThrough(Softmax()), key=jr.key(0), decide=one_hot)


def test_no_baseline_needs_one_sample_only() -> None:
    assert np.isfinite(gradient(ScoreFunction(1, baseline=NoBaseline()))).all()
