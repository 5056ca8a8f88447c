"""The experiment with formulas: what its program answers, and that a part that is not there is no part."""

import itertools
import json
import math
import pathlib
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import nondiff as nd
from nondiff.launch.load import load
from nondiff.launch.main import main

FILE = pathlib.Path(__file__).parents[1] / "experiments" / "formula.py"


@pytest.fixture(scope="module")
def formula() -> Any:
    return load(FILE, FILE.name)


def value(symbols: list[int]) -> Fraction | None:
    """A second implementation: terms of factors, in fractions."""
    if len(symbols) % 2 == 0 or any((symbol < 10) != (i % 2 == 0) for i, symbol in enumerate(symbols)):
        return None
    terms = [Fraction(symbols[0])]
    for operator, digit in zip(symbols[1::2], symbols[2::2], strict=True):
        if operator == 13 and digit == 0:
            return None
        if operator < 12:
            terms.append(Fraction(digit if operator == 10 else -digit))
        else:
            terms[-1] = terms[-1] * digit if operator == 12 else terms[-1] / digit
    return sum(terms, Fraction(0))


def test_what_formulas_come_to(formula: Any) -> None:
    """All of up to three symbols, drawn longer ones, and nothing where there is none."""
    for length in (1, 2, 3):
        for symbols in itertools.product(range(14), repeat=length):
            right = value(list(symbols))
            found = formula.calculate(np.array([*symbols, *[formula.PAD] * (7 - length)]))
            assert math.isnan(found) if right is None else found == pytest.approx(float(right))
    drawn = formula.draw_formulas(np.random.default_rng(0), 2_000)
    lengths = (drawn != formula.PAD).sum(1)
    assert all(400 < (lengths == length).sum() < 600 for length in (1, 3, 5, 7))
    for symbols in drawn.tolist():
        right = value([symbol for symbol in symbols if symbol != formula.PAD])
        assert right is not None and formula.calculate(np.array(symbols)) == pytest.approx(float(right))
    for symbols in ([formula.PAD] * 3, [1, formula.PAD, 2], [formula.PAD, 1], [1, 10, formula.PAD]):
        assert math.isnan(formula.calculate(np.array(symbols)))


def test_a_part_that_is_not_there_changes_nothing(formula: Any) -> None:
    """The gradient of a digit among six parts that are none is the exact one of the digit alone."""
    params = formula.network(14, 8)(jr.key(0))
    images = jr.randint(jr.key(1), (2, 7, 784), 0, 256).astype(jnp.uint8)
    there = jnp.arange(7) < jnp.array([[1], [1]])
    answers = jnp.array([3.0, 8.0])
    program = nd.Opaque(formula.calculate, failure=nd.Raise(allow_nan=True))

    def gradient(via: Any, images: Any, there: Any) -> Any:
        loss = formula.on_answers(program, via)
        return jax.jit(jax.grad(lambda p: loss(p, (images, there, answers), jr.key(2)).sum()))(params)

    exact = gradient(nd.Tabulate(), images[:, :1], None)
    found = gradient(nd.MarginalLikelihood(500), images, there)
    for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(a).max()))
    labels = jnp.full((2, 7), formula.PAD).at[:, 0].set(jnp.array([3, 8]))
    alone = formula.on_symbols(params, (images[:, :1], None, labels[:, :1]), jr.key(0))
    np.testing.assert_allclose(formula.on_symbols(params, (images, there, labels), jr.key(0)), alone, rtol=1e-6)


def test_answers_are_right_up_to_rounding(formula: Any) -> None:
    """No two formulas come as close to one another."""
    found = jnp.array([1 / 3, 1 / 3, 6561.0, jnp.nan, 2.0])
    answers = jnp.array([1 - 2 / 3, 1 / 3 + 2e-6, 6561.001, 1.0, 2.0])
    assert formula.differ(found, answers).tolist() == [False, True, False, True, False]
    assert formula.differ(jnp.array([[1, 2], [1, 2]]), jnp.array([[1, 2], [2, 2]])).tolist() == [False, True]


def test_the_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--via", "smoothing", "--steps", "2", "--formulas", "32", "--batch-size", "4", "--samples", "3"]
    assert main(["run", str(FILE), *words, "--no-save", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["metrics"]
    assert all(0 <= found[name] <= 1 for name in ("answer_accuracy", "symbol_accuracy", "ceiling"))
    assert found["program_calls"] == 2 * 4 * (2 * 3 + 1) >= found["distinct_calls"] > 0


def test_the_experiment_has_every_estimator_that_samples(formula: Any) -> None:
    for via, estimator in {
        "marginal_likelihood": nd.MarginalLikelihood(7),
        "smoothing": nd.Smoothing(7),
        "indecater": nd.IndeCateR(7),
        "score_function": nd.ScoreFunction(7, entropy=0.02),
    }.items():
        assert repr(formula.choose_estimator(formula.Config(via=via, samples=7))) == repr(estimator)
    assert formula.choose_estimator(formula.Config()).samples == nd.MarginalLikelihood().samples
