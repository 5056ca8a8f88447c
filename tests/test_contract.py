"""Every trainer, problem, evaluator and estimator keeps the contract: lists x lists."""

import itertools
from typing import Any

import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import pytest
from helpers import (
    DECIDED,
    ESTIMATORS,
    EVALUATORS,
    FOR_STEADY_LOSSES,
    NO_GAIN,
    ON_THEIR_OWN,
    PROBLEMS,
    TRAINERS,
    possible,
)

import nondiff as nd
from nondiff.testing import check_estimator, check_evaluator, check_problem, check_trainer, count_compilations

pytestmark = pytest.mark.usefixtures("compiled_quickly")


@pytest.mark.parametrize("name", TRAINERS)
def test_trainer(name: str) -> None:
    check_trainer(TRAINERS[name], moving=name not in FOR_STEADY_LOSSES)


@pytest.mark.parametrize("name", ON_THEIR_OWN)
def test_trainer_on_its_own(name: str) -> None:
    trainer, problem = ON_THEIR_OWN[name]
    check_trainer(trainer, problem=problem)


@pytest.mark.parametrize("name", PROBLEMS)
def test_problem(name: str) -> None:
    check_problem(PROBLEMS[name])


def together(*names: str) -> Any:
    """One process tests all of Ray: its workers are processes, too."""
    marks = [pytest.mark.xdist_group("ray")] if "ray" in names else []
    return pytest.param(*names, marks=marks)


@pytest.mark.parametrize("name", [together(name) for name in EVALUATORS])
def test_evaluator(name: str) -> None:
    check_evaluator(EVALUATORS[name])


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimator(name: str) -> None:
    check_estimator(ESTIMATORS[name])


@pytest.mark.parametrize("name", DECIDED)
def test_estimator_of_a_decision(name: str) -> None:
    via, decide = DECIDED[name]
    check_estimator(via, decide=decide, repeats=200)


def same_bits(a: nd.Result, b: nd.Result) -> None:
    for x, y in zip(jtu.tree_leaves(a.params), jtu.tree_leaves(b.params), strict=True):
        np.testing.assert_array_equal(x, y)


def check_run(trainer: str, problem: str, evaluator: str) -> None:
    gains = (trainer, problem) not in NO_GAIN
    check_parts(PROBLEMS[problem], TRAINERS[trainer], where=EVALUATORS[evaluator], gains=gains)


def check_parts(*parts: Any, where: nd.AbstractEvaluator, gains: bool = True) -> None:
    """Finite, compiled once, the same bits in one run of 30 steps or two of 2 and 28, and something is learned."""
    whole = nd.fit(*parts, steps=30, key=jr.key(0), evaluator=where, log_every=1)
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in jtu.tree_leaves(whole.params))
    half = nd.fit(*parts, steps=2, key=jr.key(0), evaluator=where, log_every=1)
    with count_compilations() as compiled:
        rest = nd.fit(*parts, steps=30, state=half.state, evaluator=where, log_every=1)
    assert not compiled
    same_bits(whole, rest)
    assert whole.evaluations == half.evaluations + rest.evaluations
    losses = [row["loss"] for row in whole.history]
    assert len(losses) == 30
    assert np.mean(losses[-5:]) < losses[0] or not gains, "nothing is learned"


Run = tuple[str, str, str]


def pairs(run: Run) -> set[frozenset[str]]:
    return {frozenset(pair) for pair in itertools.combinations(run, 2)}


def cover(runs: list[Run]) -> list[Run]:
    """Few runs that hold every pair of two names that any run holds: each time the one with the most new pairs."""
    left = set().union(*map(pairs, runs))
    chosen = []
    while left:
        chosen.append(max(runs, key=lambda run: len(pairs(run) & left)))
        left -= pairs(chosen[-1])
    return chosen


ALL = [(t, p, e) for t in TRAINERS for p in PROBLEMS for e in EVALUATORS if possible(t, p, e)]
EVERY_PAIR = cover(ALL)
FIRST = list({(t, e): (t, p, e) for t, p, e in reversed(EVERY_PAIR)}.values())
"""The first of them for each trainer and evaluator."""


def test_first_runs_have_every_name() -> None:
    assert set().union(*FIRST) == {*TRAINERS, *PROBLEMS, *EVALUATORS}
    assert set().union(*map(pairs, EVERY_PAIR)) == set().union(*map(pairs, ALL))
    assert {(t, e) for t, _, e in FIRST} == {(t, e) for t, _, e in ALL}


@pytest.mark.parametrize(("trainer", "problem", "evaluator"), [together(*x) for x in FIRST])
def test_run(trainer: str, problem: str, evaluator: str) -> None:
    check_run(trainer, problem, evaluator)


@pytest.mark.parametrize(("name", "evaluator"), [together(n, e) for n in ON_THEIR_OWN for e in EVALUATORS])
def test_run_on_its_own(name: str, evaluator: str) -> None:
    trainer, problem = ON_THEIR_OWN[name]
    check_parts(problem, trainer, where=EVALUATORS[evaluator])


@pytest.mark.slow
@pytest.mark.parametrize(("trainer", "problem", "evaluator"), [together(*x) for x in EVERY_PAIR if x not in FIRST])
def test_run_of_every_pair(trainer: str, problem: str, evaluator: str) -> None:
    check_run(trainer, problem, evaluator)


@pytest.mark.product
@pytest.mark.parametrize(("trainer", "problem", "evaluator"), [together(*x) for x in ALL if x not in EVERY_PAIR])
def test_run_product(trainer: str, problem: str, evaluator: str) -> None:
    check_run(trainer, problem, evaluator)
