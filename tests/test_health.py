"""What learning through a program has to learn from: every number, found another way."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import nondiff as nd

ANSWERS = np.array([4, 1, 2, 0])
LOGITS = 2 * jr.normal(jr.key(0), (4, 2, 3))
EVERY = np.array(list(itertools.product(range(3), repeat=2)))


def rest(symbols: Any) -> Any:
    return (symbols.sum(-1) != jnp.asarray(ANSWERS)).astype(jnp.float32)


def probabilities(logits: Any) -> np.ndarray:
    e = np.exp(np.asarray(logits, np.float64))
    return e / e.sum(-1, keepdims=True)


def surprise(logits: Any) -> float:
    """`-log P(success)`, summed over the cases."""
    p = probabilities(logits)
    total = 0.0
    for case, answer in zip(p, ANSWERS, strict=True):
        total -= np.log(sum(case[0, a] * case[1, b] for a, b in EVERY if a + b == answer))
    return total


@pytest.mark.parametrize("logits", [LOGITS, 2 * jr.normal(jr.key(2), (4, 2, 3))])
def test_every_number_by_another_way(logits: Any) -> None:
    via, key, samples = nd.MarginalLikelihood(6), jr.key(5), 7
    found = jax.jit(lambda z: nd.health(rest, z, via=via, key=key, samples=samples))(logits)
    k_samples, k_estimate = jr.split(key)
    symbols = np.asarray(jr.categorical(k_samples, logits, shape=(samples, 4, 2)))
    p = probabilities(logits)
    success = symbols.sum(-1) == ANSWERS
    right = p.argmax(-1).sum(-1) == ANSWERS
    effective = []
    for case in range(4):
        weights = [p[case, 0, a] * p[case, 1, b] for a, b in np.unique(symbols[:, case], axis=0)]
        effective.append(sum(weights) ** 2 / sum(np.square(weights)))
    expected = {
        "right": right.mean(),
        "reached": success.any(0).mean(),
        "unsolved": (~right & ~success.any(0)).mean(),
        "successes": success.mean(),
        "effective": np.mean(effective),
        "entropy": -(p * np.log(p)).sum(-1).mean(0),
        "usage": -(p.mean(0) * np.log(p.mean(0))).sum(-1),
    }
    assert expected["unsolved"] > 0 and 0 < expected["successes"] < expected["reached"] < 1
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)
    # The exact gradient by finite differences.
    z = np.asarray(logits, np.float64)
    slopes = np.zeros(z.size)
    for i, e in enumerate(np.eye(z.size)):
        step = 1e-5 * e.reshape(z.shape)
        slopes[i] = (surprise(z + step) - surprise(z - step)) / 2e-5
    estimate = jax.grad(lambda z: nd.through(rest, z, via=via, key=k_estimate).sum())(logits).ravel()
    cosine = slopes @ estimate / np.linalg.norm(slopes) / np.linalg.norm(estimate)
    assert float(found["cosine"]) == pytest.approx(cosine, rel=1e-4) and 0.1 < cosine < 0.95


@pytest.mark.slow
def test_cosine_of_the_exact_gradient_is_one_and_of_none_is_zero() -> None:
    for via in (nd.Tabulate(), nd.Tabulate(objective=nd.ExpectedLoss())):
        assert float(nd.health(rest, LOGITS, via=via, key=jr.key(0))["cosine"]) == pytest.approx(1.0, rel=1e-5)
    sure = jnp.zeros((4, 2, 3)).at[..., 1].set(50.0)  # all say 1 + 1, and three of four answers are others
    found = nd.health(rest, sure, via=nd.MarginalLikelihood(20), key=jr.key(0))
    assert float(found["cosine"]) == 0.0 and float(found["effective"]) == 1.0
    assert (float(found["right"]), float(found["unsolved"])) == (0.25, 0.75)
    np.testing.assert_allclose(found["usage"], 0.0, atol=1e-6)


def test_open_logits() -> None:
    """Nine equal assignments, all of them in so many samples."""
    found = nd.health(rest, jnp.zeros((4, 2, 3)), via=nd.Tabulate(), key=jr.key(0), samples=200)
    assert float(found["effective"]) == pytest.approx(9.0, rel=1e-5) and float(found["reached"]) == 1.0
    np.testing.assert_allclose(found["entropy"], np.log(3) * np.ones(2), rtol=1e-5)


@pytest.mark.parametrize(("limit", "listed"), [(9, 9), (8, 0)])
def test_requests_are_counted(limit: int, listed: int) -> None:
    program = nd.Opaque(lambda s: int(s[0]) + int(s[1]), jax.ShapeDtypeStruct((), jnp.int32))

    def asks(symbols: Any) -> Any:
        return (program(symbols) != ANSWERS).astype(jnp.float32)

    found = nd.health(asks, LOGITS, via=nd.ScoreFunction(5), key=jr.key(0), samples=11, limit=limit)
    estimated = 5 if listed else 0  # no gradient is asked without the exact one
    assert program.requests == 4 * (1 + 11 + estimated + listed) and ("cosine" in found) == bool(listed)
    assert program.distinct_calls <= 9


def learning(program: Any) -> tuple[nd.AbstractProblem, Any]:
    """Symbols of two one-hot inputs, from their sum; and a probe on the first eight."""
    random = np.random.default_rng(0)
    digits = random.integers(0, 3, (32, 2))
    x, y = np.eye(3, dtype=np.float32)[digits], digits.sum(1)
    via = nd.MarginalLikelihood(8)

    def wrong(y: Any) -> Any:
        return lambda symbols: (program(symbols) != y).astype(jnp.float32)

    def loss(w: Any, batch: Any, key: Any) -> Any:
        return nd.through(wrong(batch[1]), batch[0] @ w, via=via, key=key)

    problem = nd.Supervised(loss, (x, y), params=lambda key: jr.normal(key, (3, 3)), batch_size=8)
    return problem, lambda w: (wrong(y[:8]), x[:8] @ w)


def adder() -> nd.Opaque:
    return nd.Opaque(lambda s: int(s[0]) + int(s[1]), jax.ShapeDtypeStruct((), jnp.int32))


def test_health_joins_rows_and_leaves_training_alone() -> None:
    (problem, probe), via, trainer = learning(adder()), nd.MarginalLikelihood(8), nd.Backprop(optax.adam(0.1))
    plain = nd.fit(problem, trainer, steps=50, key=jr.key(0), log_every=5)
    watch = nd.Health(probe, via=via, every=20, name="why", key=jr.key(7))
    seen: dict[int, Any] = {}

    def keep(moment: nd.Moment) -> None:
        seen[moment.step] = jnp.array(moment.params)

    result = nd.fit(problem, trainer, steps=50, key=jr.key(0), metrics=[watch], callbacks=[keep], log_every=5)
    np.testing.assert_array_equal(result.params, plain.params)
    assert [row["loss"] for row in result.history] == [row["loss"] for row in plain.history]
    rows = {int(row["step"]): row for row in result.history if "why/right" in row}
    assert list(rows) == [20, 40, 50]
    for step, row in rows.items():
        alone = nd.health(*probe(seen[step]), via=via, key=jr.key(7))
        entropies = {name: alone.pop(name) for name in ("entropy", "usage")}
        expected = {f"why/{name}": float(x) for name, x in alone.items()}
        expected |= {f"why/{name}/{i}": float(x[i]) for name, x in entropies.items() for i in (0, 1)}
        found = {name: value for name, value in row.items() if name.startswith("why/")}
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert rows[50]["why/right"] == 1.0 and rows[50]["why/entropy/0"] < rows[20]["why/entropy/0"]


def test_a_program_that_raises_is_named() -> None:
    def fails(symbols: Any) -> int:
        raise RuntimeError("no such digit")

    problem, _ = learning(adder())
    _, probe = learning(nd.Opaque(fails, jax.ShapeDtypeStruct((), jnp.int32)))
    watch = nd.Health(probe, via=nd.MarginalLikelihood(8), every=5)
    with pytest.raises(nd.OpaqueError, match="no such digit"):
        nd.fit(problem, nd.Backprop(optax.adam(0.1)), steps=5, key=jr.key(0), metrics=[watch], log_every=5)


def test_every_is_a_multiple_of_the_rows() -> None:
    problem, probe = learning(adder())
    watch = nd.Health(probe, via=nd.Tabulate(), every=12)
    with pytest.raises(ValueError, match=r"`Health\(every=12\)`.* every 5 steps .* 15 for example"):
        nd.fit(problem, nd.Backprop(optax.adam(0.1)), steps=20, key=jr.key(0), metrics=[watch], log_every=5)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nd.health(rest, LOGITS, via="x", key=jr.key(0)), r"`health\(via='x'\)`: expected an estimator"),  # pyright: ignore
        (lambda: nd.health(rest, jnp.zeros(3), via=nd.Tabulate(), key=jr.key(0)), r"is float32\[3\]; expected floats"),
        (lambda: nd.health(rest, LOGITS, via=nd.Tabulate(), key=jr.key(0), samples=0), r"samples=0"),
        (lambda: nd.Health(3, via=nd.Tabulate(), every=1), r"`Health\(3\)`: expected a function"),  # pyright: ignore
        (lambda: nd.Health(abs, via=3, every=1), r"`Health\(via=3\)`: expected an estimator"),  # pyright: ignore
        (lambda: nd.Health(abs, via=nd.Tabulate(), every=0), r"`Health\(every=0\)`"),
        (lambda: nd.Health(abs, via=nd.Tabulate(), every=1, name=""), r"`Health\(name=''\)`"),
        (lambda: nd.Health(abs, via=nd.Tabulate(), every=1, key=3), r"`Health\(key=3\)`"),  # pyright: ignore
    ],
)
def test_what_cannot_be_built(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
