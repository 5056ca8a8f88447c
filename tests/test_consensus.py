"""Consensus over shards: the minimum of the whole, iteration for iteration that of the paper, and what may go wrong."""

from typing import Any

import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax
import pytest
from tiers import slow_but

import nondiff as nd
from nondiff.core.query import answers, queries
from nondiff.core.tree import on_host

ROWS, SHARDS = 42, 4


def system() -> tuple[np.ndarray, np.ndarray]:
    """Equations whose later rows weigh more and agree less: every quarter has another solution."""
    random = np.random.default_rng(0)
    a = random.normal(size=(ROWS, 5)) * np.linspace(0.5, 2, ROWS)[:, None]
    b = a @ np.arange(5.0) + random.normal(size=ROWS) * np.linspace(0, 3, ROWS)
    return a.astype(np.float32), b.astype(np.float32)


def squares(data: Any, **more: Any) -> nd.Supervised:
    return nd.Supervised(
        lambda w, batch, key: (batch[0] @ w - batch[1]) ** 2, data, params=lambda key: jnp.zeros(5), **more
    )


def solution(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.linalg.lstsq(a, b, rcond=None)[0]


def pieces() -> list[slice]:
    return [nd.core.problem.piece(ROWS, i, SHARDS) for i in range(SHARDS)]


@pytest.mark.parametrize("rho", [1.0, nd.BalancedRho(0.1)])
def test_least_squares(rho: Any) -> None:
    a, b = system()
    trainer = nd.Consensus(nd.Backprop(optax.sgd(0.05)), shards=SHARDS, every=20, rho=rho, absolute=1e-6, relative=1e-6)
    result = nd.fit(squares((a, b)), trainer, steps=4_000, key=jr.key(0))
    assert result.reason.startswith("converged") and result.steps < 4_000
    np.testing.assert_allclose(result.params, solution(a, b), atol=1e-4)
    # Ten or eleven rows in each; the mean of what they find alone is another point.
    assert {p.stop - p.start for p in pieces()} == {10, 11}
    alone = np.mean([solution(a[p], b[p]) for p in pieces()], 0)
    assert np.abs(alone - solution(a, b)).max() > 0.1


SEARCH = nd.OpenES(optax.adam(optax.exponential_decay(0.1, 500, 0.1)), sigma=0.02, population=32)


@pytest.mark.parametrize(
    "inner",
    [SEARCH, nd.Split({"slope": nd.Backprop(optax.sgd(0.03)), "search": SEARCH}, {"w": "slope", "v": "search"})],
    ids=["open_es", "split"],
)
def test_other_trainers(inner: nd.AbstractTrainer) -> None:
    a, b = system()

    def loss(p: Any, batch: Any, key: Any) -> Any:
        return (batch[0] @ jnp.concatenate([p["w"], p["v"]]) - batch[1]) ** 2

    problem = nd.Supervised(loss, (a, b), params={"w": jnp.zeros(3), "v": jnp.zeros(2)})
    result = nd.fit(problem, nd.Consensus(inner, shards=SHARDS, rho=1.0), steps=2_000, key=jr.key(0))
    np.testing.assert_allclose(np.concatenate([result.params["w"], result.params["v"]]), solution(a, b), atol=0.05)


def soft(v: np.ndarray, threshold: float) -> np.ndarray:
    return np.sign(v) * np.maximum(np.abs(v) - threshold, 0)


class L1(nd.AbstractProx):
    weight: float

    def __call__(self, v: Any, rho: Any) -> Any:
        return jnp.sign(v) * jnp.maximum(jnp.abs(v) - self.weight / rho, 0)

    def value(self, z: Any) -> Any:
        return self.weight * jnp.sum(jnp.abs(z))


@pytest.mark.parametrize(
    ("prox", "relaxation"), slow_but([(None, 1.0), (None, 1.6), (L1(0.3), 1.0), (L1(0.3), 1.6)], (L1(0.3), 1.6))
)
def test_equations(prox: Any, relaxation: float) -> None:
    """Of section 7.1, with exact minima: a step along the gradient of `|x - t|^2 / 2` with the rate `1 / (1 + rho)`."""
    rho, data = 0.5, np.random.default_rng(1).normal(size=(11, 3)).astype(np.float32)
    problem = nd.Supervised(lambda x, batch, key: jnp.sum((x - batch) ** 2, 1) / 2, data, params=jnp.ones(3))
    trainer = nd.Consensus(
        nd.Backprop(optax.sgd(1 / (1 + rho))), shards=3, every=1, rho=rho, prox=prox, relaxation=relaxation
    )
    cut = [data[0:3], data[3:7], data[7:11]]
    means, weights = np.stack([c.mean(0) for c in cut]), np.array([3, 4, 4]) / 11
    z, u = np.ones(3), np.zeros((3, 3))
    state = nd.init(problem, trainer, key=jr.key(0))
    for _ in range(6):
        state, metrics = nd.step(problem, trainer, nd.Vmap(), state)
        x = (means + rho * (z - u)) / (1 + rho)
        v = relaxation * x + (1 - relaxation) * z + u
        before, z = z, weights @ v
        z = z if prox is None else soft(z, 0.3 / rho)
        u = v - z
        np.testing.assert_allclose(state.trainer.z, z, atol=1e-6)
        np.testing.assert_allclose(np.stack(state.trainer.u), u, atol=1e-6)
        own = metrics["consensus"]
        np.testing.assert_allclose(own["primal"], np.sqrt(np.sum((x - z) ** 2)), rtol=1e-5)
        np.testing.assert_allclose(own["dual"], rho * np.sqrt(3 * np.sum((z - before) ** 2)), rtol=1e-5, atol=1e-7)
        tolerance = 3 * 1e-4 + 1e-3 * max(np.linalg.norm(x), np.sqrt(3) * np.linalg.norm(z))
        np.testing.assert_allclose(own["primal_tolerance"], tolerance, rtol=1e-5)
        np.testing.assert_allclose(own["dual_tolerance"], 3 * 1e-4 + 1e-3 * rho * np.linalg.norm(u), rtol=1e-5)
    found = nd.fit(problem, trainer, steps=200, key=jr.key(0)).params
    np.testing.assert_allclose(found, data.mean(0) if prox is None else soft(data.mean(0), 0.3), atol=1e-3)


def test_a_shard_that_fails_is_left_out() -> None:
    a, b = system()
    bad = b.copy()
    bad[pieces()[1]] = np.nan
    rest = np.r_[tuple(p for i, p in enumerate(pieces()) if i != 1)]
    trainer = nd.Consensus(nd.Backprop(optax.sgd(0.05)), shards=SHARDS, every=10, rho=1.0)
    result = nd.fit(squares((a, bad)), trainer, steps=1_000, key=jr.key(0), log_every=10)
    np.testing.assert_allclose(result.params, solution(a[rest], b[rest]), atol=5e-3)
    assert {row["consensus/left_out"] for row in result.history if row["step"] >= 10} == {1.0}
    assert result.reason == "all 1000 steps done"
    for leaf in jtu.tree_leaves(result.state.trainer.u[1]):
        assert not np.any(leaf)
    with pytest.raises(nd.NonFiniteError):
        nd.fit(squares((a, b * np.nan)), trainer, steps=3, key=jr.key(0))


def test_one_failed_step_leaves_nobody_out() -> None:
    """Its own trainer does not move, the others do."""
    problem, trainer = squares(system()), nd.Consensus(nd.Backprop(optax.adam(0.1)), shards=2, every=2, rho=1.0)
    before = nd.init(problem, trainer, key=jr.key(0))
    a, b = system()
    state, metrics = nd.step(problem, trainer, nd.Vmap(), before, (a, np.where(np.arange(ROWS) < ROWS // 2, np.nan, b)))
    same = [
        all(bool(jnp.all(x == y)) for x, y in zip(jtu.tree_leaves(new), jtu.tree_leaves(old), strict=True))
        for new, old in zip(state.trainer.inner, before.trainer.inner, strict=True)
    ]
    assert same == [True, False] and not metrics["lost"] and metrics["failed"] == 1
    _, metrics = nd.step(problem, trainer, nd.Vmap(), state, (a, b))
    assert metrics["consensus"]["left_out"] == 0 and metrics["consensus"]["iterations"] == 1


def test_diverging() -> None:
    """One shard's loss has no minimum, and `rho` is too small to give it one."""
    sign = np.array([-1.0, -1.0, 1.0, 1.0], np.float32)
    problem = nd.Supervised(lambda x, batch, key: batch * x**2, sign, params=jnp.ones(()))
    trainer = nd.Consensus(nd.Backprop(optax.sgd(0.01)), shards=2, every=5, rho=0.01, patience=10)
    assert nd.fit(problem, trainer, steps=2_000, key=jr.key(0)).reason.startswith("diverging")


def test_a_bound_holds() -> None:
    problem = nd.Supervised(
        lambda x, batch, key: (x - batch) ** 2, jnp.array([2.0, 4.0]), params=jnp.zeros(()), domain=nd.Real(-1.0, 1.0)
    )
    trainer = nd.Consensus(nd.Backprop(optax.sgd(0.1)), shards=2, rho=1.0)
    assert nd.fit(problem, trainer, steps=200, key=jr.key(0)).params == 1.0


@pytest.mark.parametrize(("rows", "size", "shards"), [(20, 8, 2), (23, 6, 3), (8, 8, 4), (7, 1, None)])
def test_batches_of_shards(rows: int, size: int, shards: int | None) -> None:
    """Each part of a batch is of its shard's own rows, each once in an epoch, in another order every time."""
    problem = nd.Supervised(
        lambda w, batch, key: w * batch, np.arange(rows), params=jnp.zeros(()), batch_size=size, shards=shards
    )
    state, seen = problem.init_state(key=jr.key(0)), []
    of, steps = shards or 1, rows // (shards or 1) // (size // (shards or 1))
    for _ in range(2 * steps):
        batch = problem.batch(state, key=jr.key(1))
        state = problem.absorb(state, None, batch)
        parts = np.asarray(batch).reshape(of, -1)
        seen.append(parts)
        for i in range(of if shards else 0):
            part, count = problem.rows(batch, i, of)
            own = nd.core.problem.piece(rows, i, of)
            assert count == size // of and np.all((part >= own.start) & (part < own.stop))
    for epoch in (seen[:steps], seen[steps:]):
        every = np.concatenate(epoch, 1).ravel()
        assert len(set(every.tolist())) == len(every) == steps * size
    assert steps * size == 1 or np.any(np.stack(seen[:steps]) != np.stack(seen[steps:]))


def test_the_pieces_make_the_batch() -> None:
    problem = squares(system())
    batch = on_host(problem.batch((), key=jr.key(0)))
    for of in (1, 2, 5, 42):
        cut = [problem.rows(batch, i, of) for i in range(of)]
        for name in (0, 1):
            np.testing.assert_array_equal(np.concatenate([part[name] for part, _ in cut]), batch[name])
        sizes = [count for _, count in cut]
        assert sum(sizes) == ROWS and max(sizes) - min(sizes) <= 1 and min(sizes) > 0


def test_an_answer_is_that_of_the_rows_alone() -> None:
    problem, trainer = squares(system()), nd.Consensus(nd.Backprop(optax.sgd(0.1)), shards=3)
    state = nd.init(problem, trainer, key=jr.key(0))
    asked = trainer.ask(state.trainer, key=jr.key(1))
    batch = problem.batch((), key=jr.key(0))
    for q, a in zip(queries(asked), answers(nd.Vmap().evaluate(problem, asked, batch)), strict=True):
        assert q.rows is not None
        (x, y), count = problem.rows(batch, *q.rows)
        np.testing.assert_allclose(a.loss[0], jnp.mean(y**2), rtol=1e-5)
        np.testing.assert_allclose(a.gradient, -2 * x.T @ y / count, rtol=1e-4)
        assert a.rows is not None and a.rows[0] == count


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"shards": 0}, r"`Consensus\(shards=0\)`: expected a whole number of at least 1"),
        ({"every": 0}, r"`Consensus\(every=0\)`"),
        ({"patience": 0}, r"`Consensus\(patience=0\)`"),
        ({"rho": 0.0}, r"`Consensus\(rho=0.0\)`: expected a finite number above 0"),
        ({"rho": -1}, r"`Consensus\(rho=-1\)`"),
        ({"rho": lambda step: 1.0}, "there is no schedule"),
        ({"relaxation": 2.0}, r"`Consensus\(relaxation=2.0\)`: expected a number above 0 and below 2"),
        ({"relaxation": 0.0}, r"`Consensus\(relaxation=0.0\)`"),
        ({"absolute": -1.0}, r"`Consensus\(absolute=-1.0\)`: expected a finite number of at least 0"),
        ({"relative": float("nan")}, r"`Consensus\(relative=nan\)`"),
        ({"prox": "l1"}, r"`Consensus\(prox='l1'\)`: expected an operator"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_arguments_out_of_range(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        nd.Consensus(nd.Backprop(optax.sgd(0.1)), **{"shards": 2, **arguments})


INNER = nd.Backprop(optax.sgd(0.1))


@pytest.mark.parametrize(
    ("problem", "trainer", "said"),
    [
        (
            squares(system()),
            nd.Consensus(INNER, shards=50),
            r"50 pieces are wanted of .*\[42, 5\], \[42\].*fewer",
        ),
        (squares(system(), batch_size=8), nd.Consensus(INNER, shards=2), r"own rows of the data .* Give `shards=2`"),
        (squares(system(), batch_size=9, shards=3), nd.Consensus(INNER, shards=2), r"shards=3\)`: 2 shards are wanted"),
        (nd.BlackBox(lambda x: jnp.sum(x**2), jnp.ones(2)), nd.Consensus(INNER, shards=2), "define `rows"),
        (squares(system()), nd.Consensus(nd.Consensus(INNER, shards=2), shards=2), "shards of shards"),
        (
            nd.Supervised(lambda n, batch, key: batch * n, jnp.ones(4), params=jnp.array([1]), domain=nd.Integer(0, 2)),
            nd.Consensus(nd.Genetic(population=4), shards=2),
            r"`Consensus` cannot move `params` \(int32",
        ),
    ],
)
def test_what_does_not_fit(problem: Any, trainer: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        nd.fit(problem, trainer, steps=1, key=jr.key(0))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"batch_size": 8, "shards": 3}, r"`Supervised\(batch_size=8, shards=3\)`.* multiple of 3 up to 42"),
        ({"batch_size": 42, "shards": 4}, r"multiple of 4 up to 40"),
        ({"shards": 2}, r"Without `batch_size`, a step sees all rows"),
        ({"batch_size": 8, "shards": 0}, r"`Supervised\(shards=0\)`"),
    ],
)
def test_shards_of_batches_out_of_range(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        squares(system(), **arguments)


def test_batches_from_outside() -> None:
    """Their rows are cut in order."""
    a, b = system()
    problem = squares(lambda step: (a[:40], b[:40]))
    trainer = nd.Consensus(nd.Backprop(optax.sgd(0.05)), shards=SHARDS, every=20, rho=1.0)
    result = nd.fit(problem, trainer, steps=1_000, key=jr.key(0))
    np.testing.assert_allclose(result.params, solution(a[:40], b[:40]), atol=1e-2)
    with pytest.raises(ValueError, match=r"`Supervised\(shards=2\)`: these batches come from outside"):
        squares(lambda step: (a, b), shards=2)
