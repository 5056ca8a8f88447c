"""What happens beside training: when runs stop, held-out data, files of rows, progress."""

import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax
import pytest

import nondiff as nd
from nondiff.run.callback import AbstractCallback, Moment
from nondiff.run.checkpointer import Checkpointer
from nondiff.run.fit import fit
from nondiff.run.held_out import HeldOut
from nondiff.run.progress import Progress
from nondiff.run.rows import JSONLines, read_rows
from nondiff.run.stopping import Patience, Target, WallClock
from nondiff.run.tensorboard import TensorBoard
from nondiff.testing.common import count_compilations

PROBLEM = nd.BlackBox(jnp.square, 1.0)
HALVING = nd.Backprop(optax.sgd(0.25))  # x halves at each step, so the losses are 4 ** -(step - 1)
STATE = nd.init(PROBLEM, HALVING, key=jr.key(0))
KEY = jr.key(0)


def moment(step: int, row: dict[str, Any] | None = None, **others: Any) -> Moment:
    """A moment of a run that another test need not make."""
    got = {} if row is None else {"step": step, **row}
    values = {"start": 0, "resumed": False, "steps": 1000, "log_every": 1, "seconds": float(step)}
    values |= {"logged": row is not None, **others}
    return Moment(step=step, row=got, read=lambda: STATE, problem=PROBLEM, trainer=HALVING, memory=dict, **values)


def told(callback: AbstractCallback, rows: dict[int, dict[str, float]], start: int = 0) -> tuple[int, str] | None:
    """The step at which it stops, and why, for rows that are given."""
    callback.begin(moment(start, start=start))
    for step, row in rows.items():
        why = callback(moment(step, row, start=start))
        if why is not None:
            return step, str(why)
    return None


def losses(*values: float, every: int = 10) -> dict[int, dict[str, float]]:
    return {every * (i + 1): {"loss": value} for i, value in enumerate(values)}


def hand_over(old: AbstractCallback, new: AbstractCallback) -> None:
    """What a checkpoint does: the memory of one, as JSON, is given to another."""
    new.set_state(json.loads(json.dumps(old.get_state(), allow_nan=False)))


# Target


@pytest.mark.parametrize(("value", "step"), [(0.25, 2), (0.01, 5), (1, 1), (1.5, 1)])
def test_target_stops_at_the_step_that_reaches_it(value: float, step: int) -> None:
    result = fit(PROBLEM, HALVING, steps=50, key=KEY, stop=[Target(value)], log_every=1)
    assert (result.steps, result.reason) == (step, f"the target {value} was reached")
    assert result.loss == 4.0 ** -(step - 1)


def test_target_is_seen_at_rows_only() -> None:
    result = fit(PROBLEM, HALVING, steps=50, key=KEY, stop=[Target(0.01)], log_every=8)
    assert (result.steps, result.reason) == (8, "the target 0.01 was reached")


def test_target_passes_over_rows_without_its_metric_and_nan() -> None:
    rows = {10: {"loss": 0.0}, 20: {"loss": 0.0, "a": math.nan}, 30: {"loss": 0.0}, 40: {"loss": 0.0, "a": 0.5}}
    assert told(Target(0.5, "a"), rows) == (40, "the target 0.5 was reached")


def test_target_of_a_metric_that_never_comes_is_told() -> None:
    with pytest.warns(UserWarning, match=r"`Target\(metric='los'\)`: no row of this run.*There is `best`, `eval"):
        result = fit(PROBLEM, HALVING, steps=3, key=KEY, stop=[Target(0.1, "los")])
    assert result.steps == 3


# Patience


@pytest.mark.parametrize(
    ("options", "values", "expected"),
    [
        # The best is that of step 20; 30 steps later it is over.
        ((30,), (3.0, 2.0, 2.5, 2.0, 2.1, 1.0), (50, "`loss` has not fallen below 2 for 30 steps, since step 20")),
        ((30,), (3.0, 2.0, 2.5, 2.0, 1.9, 1.0), None),
        # Each row is lower by 0.1 than the one before: lower by more than 0.25 than the best only at every third.
        ((30, "loss", 0.25), (2.0, 1.9, 1.8, 1.7, 1.6, 1.5, 1.4, 1.3), None),
        (
            (20, "loss", 0.25),
            (2.0, 1.9, 1.8, 1.7, 1.6, 1.5, 1.4, 1.3),
            (30, "`loss` has not fallen by more than 0.25 below 2 for 20 steps, since step 10"),
        ),
        # Exactly `least` is not more than it.
        (
            (10, "loss", 0.5),
            (2.0, 1.5),
            (20, "`loss` has not fallen by more than 0.5 below 2 for 10 steps, since step 10"),
        ),
        # What is not finite is no improvement, also at the beginning.
        ((20,), (1.0, math.nan, -math.inf, 0.5), (30, "`loss` has not fallen below 1 for 20 steps, since step 10")),
        ((25,), (math.nan, math.inf, math.nan), (30, "`loss` has not been finite for 30 steps, since step 0")),
        ((25,), (math.nan, math.nan, 7.0, 8.0, 9.0), None),
    ],
)
def test_patience_on_given_losses(options: tuple, values: tuple, expected: tuple[int, str] | None) -> None:
    assert told(Patience(*options), losses(*values)) == expected


def test_patience_judges_at_rows_that_have_the_metric() -> None:
    rows = {step: {"loss": 1.0} for step in range(10, 400, 10)}
    for step, value in {50: 2.0, 150: 1.0, 250: 1.5, 350: 1.2}.items():
        rows[step] = {"loss": 1.0, "held_out/loss": value}
    assert told(Patience(120, "held_out/loss"), rows) == (
        350,
        "`held_out/loss` has not fallen below 1 for 200 steps, since step 150",
    )


def test_patience_refuses_a_metric_that_never_comes() -> None:
    rows = {step: {"loss": 1.0, "best": 1.0} for step in range(10, 100, 10)}
    with pytest.raises(
        ValueError,
        match=r"`Patience\(steps=45, metric='los'\)`: no row had it in 50 steps. There is `loss`, `best`. If it is",
    ):
        told(Patience(45, "los"), rows)
    with pytest.raises(ValueError, match=r"no row had it in 10 steps") as caught:
        fit(PROBLEM, HALVING, steps=50, key=KEY, stop=[Patience(10, "los")])
    assert int(caught.value.state.step) == 10  # pyright: ignore[reportAttributeAccessIssue]


class Valley(nd.AbstractProblem):
    """Its loss is lowest on the way: gradient descent with steps of 1 passes it."""

    traceable = True

    def init(self, *, key: Any) -> Any:
        del key
        return jnp.zeros(())

    def batch(self, state: Any, *, key: Any) -> Any:
        del state, key

    def loss(self, params: Any, batch: Any, *, key: Any) -> tuple[Any, None]:
        del batch, key
        return -params + jax.lax.stop_gradient(params + jnp.abs(params - 23.0)), None  # always downhill by 1


def test_patience_of_a_resumed_run_is_that_of_an_undisturbed_one() -> None:
    trainer = nd.Backprop(optax.sgd(1.0))  # before step s, x = s - 1: the loss of step 24 is the lowest
    whole = fit(Valley(), trainer, steps=200, key=KEY, stop=[Patience(30)], log_every=4)
    expected = (54 + 2, "`loss` has not fallen below 0 for 32 steps, since step 24")
    assert (whole.steps, whole.reason) == expected
    for cut in (4, 20, 24, 40, 52):
        first, second = Patience(30), Patience(30)
        half = fit(Valley(), trainer, steps=cut, key=KEY, stop=[first], log_every=4)
        assert half.reason == f"all {cut} steps done"
        hand_over(first, second)
        rest = fit(Valley(), trainer, steps=200, state=half.state, stop=[second], log_every=4)
        assert (rest.steps, rest.reason) == expected, cut


def test_patience_begins_anew_with_every_run() -> None:
    patience = Patience(20)
    values = losses(1.0, 2.0, 3.0)
    for _ in range(2):
        assert told(patience, values) == (30, "`loss` has not fallen below 1 for 20 steps, since step 10")
    later = {step + 500: row for step, row in losses(math.nan, math.nan).items()}
    assert told(patience, later, start=500) == (520, "`loss` has not been finite for 20 steps, since step 500")


# WallClock


def test_wall_clock_counts_seconds_between_rows_too() -> None:
    clock = WallClock(minutes=2)
    clock.begin(moment(0, seconds=0.0))
    between = moment(7, seconds=119.9)
    assert not between.logged and clock.due(between)
    assert clock(between) is None
    assert clock(moment(8, seconds=120.0)) == "the time of 2 minutes was up"


def test_wall_clock_counts_the_earlier_parts_of_a_run() -> None:
    first, second = WallClock(1), WallClock(1)
    first.begin(moment(0, seconds=0.0))
    assert first(moment(10, seconds=40.0)) is None
    state = json.loads(json.dumps(first.get_state()))  # later than the moment by what the test took
    assert 40.0 <= state < 45.0
    first.end(moment(10, seconds=41.5), None)
    assert first.get_state() == 41.5
    second.set_state(41.5)
    second.begin(moment(10, start=10, seconds=0.0))
    assert second(moment(20, start=10, seconds=18.0)) is None
    assert second(moment(21, start=10, seconds=18.5)) == "the time of 1 minutes was up"
    second.begin(moment(0, seconds=0.0))  # another run, from its beginning
    assert second(moment(1, seconds=59.0)) is None


def test_wall_clock_ends_a_run() -> None:
    result = fit(PROBLEM, HALVING, steps=10**9, key=KEY, stop=[WallClock(1e-9)], log_every=10**6)
    assert result.reason == "the time of 1e-09 minutes was up"
    assert 1 <= result.steps < 10**6


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Target(math.nan), r"`Target\(value=nan\)`: expected a number"),
        (lambda: Target("low"), r"`Target\(value='low'\)`: expected a number"),
        (lambda: Target(True), r"`Target\(value=True\)`"),
        (lambda: Target(1.0, ""), r"`Target\(metric=''\)`: expected a name in the rows of the log"),
        (lambda: Patience(0), r"`Patience\(steps=0\)`: expected a whole number of at least 1"),
        (lambda: Patience(1.5), r"`Patience\(steps=1.5\)`"),
        (lambda: Patience(5, 3), r"`Patience\(metric=3\)`: expected a name"),
        (lambda: Patience(5, least=-0.1), r"`Patience\(least=-0.1\)`: expected a finite number of at least 0"),
        (lambda: Patience(5, least=math.inf), r"`Patience\(least=inf\)`"),
        (lambda: Patience(5, least=math.nan), r"`Patience\(least=nan\)`: expected a finite number"),
        (lambda: WallClock(0), r"`WallClock\(minutes=0\)`: expected a finite number above 0"),
        (lambda: WallClock(math.inf), r"`WallClock\(minutes=inf\)`"),
        (lambda: WallClock(None), r"`WallClock\(minutes=None\)`: expected a finite number"),
    ],
)
def test_stops_refuse_what_they_cannot_use(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# HeldOut

X = jnp.linspace(-1.0, 1.0, 12)
ASIDE = jnp.linspace(-2.0, 2.0, 7)


def line(w: jax.Array, batch: Any, key: jax.Array) -> jax.Array:
    x, y = batch
    return (w[0] * x + w[1] - y + 0.01 * jr.normal(key, x.shape)) ** 2


TRAIN = nd.Supervised(line, (X, 3.0 * X - 1.0), params=jnp.zeros(2), batch_size=5)
HELD_OUT = nd.Supervised(line, (ASIDE, ASIDE**2), params=jnp.zeros(2))
ADAM = nd.Backprop(optax.adam(0.1))


class Params(AbstractCallback):
    """Keeps what was deployed at every row."""

    def begin(self, moment: Moment) -> None:
        self.kept: dict[int, Any] = {}

    def __call__(self, moment: Moment) -> None:
        self.kept[moment.step] = jtu.tree_map(np.array, moment.params)


@pytest.mark.parametrize("evaluator", [None, nd.Vmap(chunk=4), nd.Host()])
def test_held_out_is_the_loss_of_the_parameters_then(evaluator: nd.AbstractEvaluator | None) -> None:
    params, key = Params(), jr.key(7)
    held_out = HeldOut(HELD_OUT, every=20, name="aside", key=key, evaluator=evaluator)
    result = fit(TRAIN, ADAM, steps=47, key=KEY, metrics=[held_out], callbacks=[params], log_every=10)
    got = {row["step"]: row["aside/loss"] for row in result.history if "aside/loss" in row}
    assert list(got) == [20, 40, 47]
    k_loss = jr.split(key, 3)[2]
    for step, value in got.items():
        direct = line(params.kept[step], (ASIDE, ASIDE**2), k_loss).mean()
        np.testing.assert_allclose(value, direct, rtol=1e-6)
    assert [row["step"] for row in result.history] == [10, 20, 30, 40, 47]
    assert all(type(value) is float for value in got.values())


def test_held_out_does_not_change_the_run() -> None:
    with_it = fit(TRAIN, ADAM, steps=30, key=KEY, metrics=[HeldOut(HELD_OUT, every=10)])
    without = fit(TRAIN, ADAM, steps=30, key=KEY)
    assert np.array_equal(with_it.params, without.params)
    own = [{k: v for k, v in row.items() if k != "held_out/loss"} for row in with_it.history]
    assert own == without.history


def test_the_second_measurement_compiles_nothing() -> None:
    problem, same_shapes = (nd.Supervised(line, (x, x), params=jnp.zeros(2)) for x in (ASIDE[:5], ASIDE[2:]))
    held_out, other = HeldOut(problem, every=1), HeldOut(same_shapes, every=1)
    states = [fit(TRAIN, ADAM, steps=i, key=KEY, log_every=1).state for i in (1, 2)]
    moments = [
        dataclasses.replace(moment(i, {}), read=lambda i=i: states[i - 1], problem=TRAIN, trainer=ADAM) for i in (1, 2)
    ]
    first = held_out(moments[0])["held_out/loss"]
    with count_compilations() as compiled:
        second = held_out(moments[1])["held_out/loss"]
        third = other(moments[1])["held_out/loss"]  # its data are no constants of what was compiled
    assert compiled == []
    for value, x, state in (
        (first, ASIDE[:5], states[0]),
        (second, ASIDE[:5], states[1]),
        (third, ASIDE[2:], states[1]),
    ):
        direct = line(ADAM.params(state.trainer), (x, x), jr.split(jr.key(0), 3)[2]).mean()
        np.testing.assert_allclose(value, direct, rtol=1e-6)


def test_equal_parameters_have_equal_held_out_losses() -> None:
    still = nd.Backprop(optax.sgd(1e-30))
    result = fit(TRAIN, still, steps=30, key=KEY, metrics=[HeldOut(HELD_OUT, every=10)])
    assert len({row["held_out/loss"] for row in result.history}) == 1  # the noise of the loss is the same
    other = fit(TRAIN, still, steps=10, key=KEY, metrics=[HeldOut(HELD_OUT, every=10, key=jr.key(1))])
    assert other.history[0]["held_out/loss"] != result.history[0]["held_out/loss"]


def test_held_out_for_a_program_on_the_host() -> None:
    calls = []

    def cost(x: np.ndarray) -> float:
        calls.append(x)
        return float(np.abs(x).sum())

    params = Params()
    trainer = nd.OpenES(optax.sgd(0.1), sigma=0.1, population=4)
    result = fit(
        nd.BlackBox(lambda x: float(np.sum(x**2)), np.ones(3)),
        trainer,
        steps=4,
        key=KEY,
        metrics=[HeldOut(nd.BlackBox(cost, np.ones(3)), every=2)],
        callbacks=[params],
        log_every=2,
    )
    for row in result.history:
        assert row["held_out/loss"] == pytest.approx(np.abs(params.kept[row["step"]]).sum(), rel=1e-6)
    assert len(calls) <= 3  # one for each measurement, and at most one to look at the function


def test_patience_on_held_out_data() -> None:
    opposite = nd.Supervised(line, (X, -3.0 * X - 1.0), params=jnp.zeros(2))  # learning makes it worse
    held_out = HeldOut(opposite, every=20)
    stop = Patience(40, "held_out/loss", least=2.0)
    result = fit(TRAIN, ADAM, steps=500, key=KEY, metrics=[held_out], stop=[stop], log_every=10)
    measured = {row["step"]: row["held_out/loss"] for row in result.history if "held_out/loss" in row}
    assert result.steps == 60 and min(measured.values()) > measured[20] - 2.0
    assert result.reason.startswith("`held_out/loss` has not fallen by more than 2 below ")
    assert result.reason.endswith(" for 40 steps, since step 20")


def test_a_failure_of_a_program_on_held_out_data_is_its_own() -> None:
    def broken(symbols: np.ndarray) -> int:
        raise KeyError("no such word")

    program = nd.Opaque(broken, jax.ShapeDtypeStruct((), jnp.int32))

    def loss(w: Any, batch: Any, key: Any) -> Any:
        def rest(symbols: Any) -> Any:
            return (program(symbols) != 0).astype(jnp.float32)

        return nd.through(rest, w * jnp.ones((2, 2, 3)), via=nd.MarginalLikelihood(5), key=key)

    problem = nd.Supervised(loss, jnp.zeros((2, 1)), params=jnp.ones(()))
    training = nd.Supervised(lambda w, batch, key: (w - batch[:, 0]) ** 2, jnp.zeros((2, 1)), params=jnp.ones(()))
    with pytest.raises(nd.OpaqueError, match=r"raised on the input \[0 0\]:\n(.*\n)*.*no such word"):
        fit(training, nd.Backprop(optax.sgd(0.1)), steps=1, key=KEY, metrics=[HeldOut(problem, every=1)], log_every=1)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HeldOut(3, every=1), r"`HeldOut\(3\)`: expected a problem"),
        (lambda: HeldOut(HELD_OUT, every=0), r"`HeldOut\(every=0\)`: expected a whole number of at least 1"),
        (lambda: HeldOut(HELD_OUT, every=1, name=""), r"`HeldOut\(name=''\)`: expected a name"),
        (lambda: HeldOut(HELD_OUT, every=1, key=0), r"`HeldOut\(key=0\)`: expected a key, `jax.random.key\(seed\)`"),
        (lambda: HeldOut(HELD_OUT, every=1, evaluator="v"), r"`HeldOut\(evaluator='v'\)`: expected an evaluator"),
        (
            lambda: HeldOut(nd.BlackBox(lambda x: float(np.sum(x)), np.ones(2)), every=1, evaluator=nd.Vmap()),
            r"`HeldOut\(evaluator=Vmap\(\)\)` runs the problem under `jax.jit`, and `BlackBox` is plain Python",
        ),
        (
            lambda: HeldOut(nd.Supervised(line, iter([(X, X)]), params=jnp.zeros(2)), every=1),
            r"`HeldOut\(Supervised\)`: its batches come from outside",
        ),
    ],
)
def test_held_out_refuses_what_does_not_fit(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_held_out_must_meet_rows() -> None:
    message = r"`HeldOut\(every=25\)`.* of the log, and those come every 10 steps \(`log_every`\).*, 30 for example"
    with pytest.raises(ValueError, match=message):
        fit(TRAIN, ADAM, steps=50, key=KEY, metrics=[HeldOut(HELD_OUT, every=25)], log_every=10)


def test_held_out_wants_the_parameters_that_are_trained() -> None:
    other = nd.Supervised(line, (X, X), params={"w": jnp.zeros(3)})
    with pytest.raises(ValueError, match=r"the parameters are others than those of the problem in training") as caught:
        fit(TRAIN, ADAM, steps=1, key=KEY, metrics=[HeldOut(other, every=10)])
    assert "  params: float32[2] in training, none here" in str(caught.value)
    assert "  params['w']: none in training, float32[3] here" in str(caught.value)


def test_a_start_that_cannot_be_traced_is_not_compared() -> None:
    problem = nd.Supervised(line, (ASIDE, ASIDE), params=lambda key: jnp.zeros(int(jr.randint(key, (), 2, 3))))
    result = fit(TRAIN, ADAM, steps=1, key=KEY, metrics=[HeldOut(problem, every=10)])
    assert result.history[-1]["held_out/loss"] > 0


# JSONLines


def lines(path: Path) -> list[Any]:
    def refuse(name: str) -> None:
        pytest.fail(f"{name} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def without_seconds(path: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in lines(path)]


def test_rows_are_those_of_the_history(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "rows.jsonl"
    result = fit(TRAIN, ADAM, steps=35, key=KEY, metrics=[HeldOut(HELD_OUT, every=20)], callbacks=[JSONLines(path)])
    got = lines(path)
    assert [list(row)[:2] for row in got] == [["step", "seconds"]] * 4
    assert without_seconds(path) == result.history
    seconds = [row["seconds"] for row in got]
    assert seconds == sorted(seconds) and seconds[0] > 0 and seconds[-1] <= result.seconds
    assert read_rows(path) == got


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    writer = JSONLines(path)
    writer.begin(moment(0))
    writer(moment(10, {"loss": math.nan, "best": math.inf, "n": 3, "x": 1e-7}))
    assert path.read_text() == '{"step": 10, "seconds": 10.0, "loss": null, "best": null, "n": 3, "x": 1e-07}\n'
    (row,) = read_rows(path)  # already: a row is not kept back
    writer.end(moment(10), None)
    assert math.isnan(row.pop("loss")) and math.isnan(row.pop("best"))
    assert row == {"step": 10, "seconds": 10.0, "n": 3, "x": 1e-7}
    assert type(row["step"]) is int and type(row["n"]) is int


def test_a_metric_called_seconds_is_refused(tmp_path: Path) -> None:
    writer = JSONLines(tmp_path / "rows.jsonl")
    writer.begin(moment(0))
    with pytest.raises(ValueError, match="a metric is called `seconds`"):
        writer(moment(10, {"seconds": 1.0}))
    writer.end(moment(10), None)


@pytest.mark.parametrize("torn", ["", "{", '{"step": 40, "seco', '{"step": 40, "seconds": 1.0}', '{"step": 40\0\0\0'])
def test_a_resumed_run_leaves_the_file_of_an_undisturbed_one(tmp_path: Path, torn: str) -> None:
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    fit(TRAIN, ADAM, steps=60, key=KEY, callbacks=[JSONLines(whole)])
    first, second = JSONLines(cut), JSONLines(cut)
    half = fit(TRAIN, ADAM, steps=20, key=KEY, callbacks=[first])
    hand_over(first, second)
    fit(TRAIN, ADAM, steps=30, state=half.state, callbacks=[JSONLines(cut)])  # a row that is to be dropped
    with open(cut, "a") as file:
        file.write(torn)
    fit(TRAIN, ADAM, steps=60, state=half.state, callbacks=[second])
    assert without_seconds(cut) == without_seconds(whole)
    seconds = [row["seconds"] for row in lines(cut)]
    assert seconds == sorted(seconds) and seconds[2] > half.seconds * 0.99
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.jsonl", "whole.jsonl"]


def test_rows_up_to_the_start_are_kept_byte_by_byte(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    kept = '{"step": 10,   "seconds": 1, "loss": 0.30000000000000004}\n{"step": 20, "loss": null}'
    path.write_text(kept + '\n{"step": 30, "loss": 1}\n')
    writer = JSONLines(path)
    writer.begin(moment(20, start=20))
    assert path.read_text() == kept + "\n"
    writer.end(moment(20, start=20), None)
    path.write_text(kept)  # whole, but for the end of its last line
    writer.begin(moment(20, start=20))
    writer(moment(30, {"loss": 2.0}, start=20, seconds=0.5))
    writer.end(moment(30, start=20), None)
    assert path.read_text() == kept + '\n{"step": 30, "seconds": 0.5, "loss": 2.0}\n'


def test_another_runs_rows_are_not_dropped(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    fit(TRAIN, ADAM, steps=20, key=KEY, callbacks=[JSONLines(path)])
    before, rows = path.read_bytes(), without_seconds(path)
    with pytest.raises(ValueError, match=r"rows.jsonl holds the rows of another run.*Give another path, or"):
        fit(TRAIN, ADAM, steps=20, key=KEY, callbacks=[JSONLines(path)])
    assert path.read_bytes() == before
    path.write_text("")
    fit(TRAIN, ADAM, steps=20, key=KEY, callbacks=[JSONLines(path)])
    assert without_seconds(path) == rows


def test_a_run_resumed_at_its_beginning_writes_the_file_anew(tmp_path: Path) -> None:
    """Killed before its first checkpoint was written: there is nothing to go on from, and it is the same run."""
    path, checkpoints = tmp_path / "rows.jsonl", Checkpointer(tmp_path / "checkpoints")
    start = checkpoints.restore(nd.init(TRAIN, ADAM, key=KEY))
    fit(TRAIN, ADAM, steps=20, key=KEY, callbacks=[JSONLines(path)])
    before = without_seconds(path)
    path.write_text(path.read_text() + '{"step": 3')
    assert start.step == 0
    fit(TRAIN, ADAM, steps=20, state=start, callbacks=[JSONLines(path)])
    assert without_seconds(path) == before
    checkpoints.close()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("# my notes", r"line 1, is '# my notes' and no row of a log"),
        ('{"step": 10}\nand text\n', r"line 2, is 'and text'"),
        ('{"loss": 1.0}\n', r"expected an object with a whole number `step`"),
        ('{"step": 1.5}\n', r"expected an object with a whole number `step`"),
        ("[1, 2]\n", r"expected an object"),
        ('{"step": 10, "loss": "low"}\n', r"`loss` is no number"),
        ('{"step": 10, "loss": NaN}\n', r"NaN is not JSON"),
        ('{"step": 10}\n\n{"step": 20}\n', r"line 2, is ''"),
        (b"\x89PNG\xff\xfe\n", r"line 1, is"),
    ],
)
def test_other_files_are_refused_and_left_alone(tmp_path: Path, content: str | bytes, said: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = path.read_bytes()
    with pytest.raises(ValueError, match=said):
        JSONLines(path).begin(moment(10, start=10))
    with pytest.raises(ValueError, match=said):
        read_rows(path)
    assert path.read_bytes() == before


def test_a_torn_line_in_the_middle_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"step": 10}\n{"step": 2\n{"step": 30}\n')
    with pytest.raises(ValueError, match=r"rows.jsonl, line 2, is '{\"step\": 2'"):
        read_rows(path)


def test_what_cannot_be_written_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"rows of the log cannot be written: '.*tmp.*folder'|Is a directory.*folder"):
        (tmp_path / "folder").mkdir()
        JSONLines(tmp_path / "folder").begin(moment(0))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot be written: '.*file/rows.jsonl'"):
        JSONLines(tmp_path / "file" / "rows.jsonl").begin(moment(0))
    with pytest.raises(FileNotFoundError, match=r"missing\.jsonl"):
        read_rows(tmp_path / "missing.jsonl")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_a_full_disk_ends_the_run_and_keeps_the_state() -> None:
    with pytest.raises(OSError, match=r"No space left on device.*cannot be written: '/dev/full'") as caught:
        fit(TRAIN, ADAM, steps=50, key=KEY, callbacks=[JSONLines("/dev/full")])
    assert int(caught.value.state.step) == 10  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.warns(UserWarning, match=r"No space left on device.*'/dev/full'. They are kept in memory") as warned:
        result = fit(TRAIN, ADAM, steps=50, key=KEY, callbacks=[JSONLines("/dev/full", strict=False)])
    assert result.steps == 50 and len(warned) == 1


FULL_FOR_A_WHILE = """
import resource, signal, warnings, jax, jax.numpy as jnp, optax, nondiff
from nondiff.run.rows import JSONLines
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)

def room(moment):
    resource.setrlimit(resource.RLIMIT_FSIZE, (200 if 20 <= moment.step < 60 else most, most))

problem = nondiff.BlackBox(jnp.square, 1.0)
callbacks = [room, JSONLines("rows.jsonl", strict=False)]
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    result = nondiff.fit(problem, nondiff.Backprop(optax.sgd(0.25)), steps=100, key=jax.random.key(0),
                         callbacks=callbacks)
print(result.reason, *[str(warning.message) for warning in caught], sep="\\n")
"""


def test_rows_wait_until_there_is_room_again(tmp_path: Path) -> None:
    process = subprocess.run([sys.executable, "-c", FULL_FOR_A_WHILE], cwd=tmp_path, capture_output=True, text=True)
    assert process.stdout.splitlines() == [
        "all 100 steps done",
        f"[Errno 27] File too large; the rows of the log cannot be written: '{tmp_path}/rows.jsonl'. They are kept in "
        "memory and written as soon as they can be.",
    ], process.stderr
    assert [row["step"] for row in read_rows(tmp_path / "rows.jsonl")] == list(range(10, 101, 10))


KILLED = """
import os, signal, sys, time, warnings
import jax, jax.numpy as jnp, optax
import nondiff
from nondiff.run.checkpointer import Checkpointer
from nondiff.run.rows import JSONLines
from nondiff.run.stopping import Patience, WallClock
from nondiff.run.tensorboard import TensorBoard

checkpoints = Checkpointer("checkpoints", every=7)

def die(moment):
    if sys.argv[1] == "die" and moment.step == 30:
        while not checkpoints.steps():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

problem = nondiff.BlackBox(lambda x: jnp.abs(x - 0.6), 5.0)
trainer = nondiff.Backprop(optax.sgd(0.2))  # after 22 steps it goes to and fro
start = checkpoints.restore(nondiff.init(problem, trainer, key=jax.random.key(0)))
callbacks = [JSONLines("rows.jsonl"), TensorBoard("board"), die, checkpoints]
stop = [Patience(45), WallClock(60)]
result = nondiff.fit(problem, trainer, steps=500, state=start, callbacks=callbacks, stop=stop)
print(start.step, "|", result.reason)
"""


def killed(folder: Path, word: str) -> tuple[int, str]:
    folder.mkdir(exist_ok=True)
    process = subprocess.run([sys.executable, "-c", KILLED, word], cwd=folder, capture_output=True, text=True)
    assert "Traceback" not in process.stderr and "Warning" not in process.stderr, process.stderr
    return process.returncode, process.stdout


def test_a_killed_process_leaves_all_its_rows_and_the_next_one_goes_on(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    code, undisturbed = killed(whole, "live")
    assert code == 0 and undisturbed.startswith("0 | `loss` has not fallen below ")
    assert killed(cut, "die") == (-signal.SIGKILL, "")
    assert [row["step"] for row in read_rows(cut / "rows.jsonl")] == [10, 20, 30]
    assert [step for step, _ in scalars(cut / "board")["loss"]] == [10, 20, 30]
    code, said = killed(cut, "live")
    start, _, reason = said.partition(" | ")
    assert code == 0 and start in ("7", "14", "21", "28") and reason == undisturbed.partition(" | ")[2]
    assert without_seconds(cut / "rows.jsonl") == without_seconds(whole / "rows.jsonl")
    assert scalars(cut / "board") == scalars(whole / "board")


# TensorBoard


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """As TensorBoard would show them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tensorboard's own imports
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_tensorboard_shows_the_history(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "board"
    metrics = [HeldOut(HELD_OUT, every=20)]
    result = fit(TRAIN, ADAM, steps=45, key=KEY, metrics=metrics, callbacks=[TensorBoard(folder)])
    got = scalars(folder)
    names = {name for row in result.history for name in row} - {"step"}
    assert set(got) == names and "held_out/loss" in names
    for name in names:
        expected = [(row["step"], row[name]) for row in result.history if name in row]
        assert [step for step, _ in got[name]] == [step for step, _ in expected]
        np.testing.assert_allclose([x for _, x in got[name]], [x for _, x in expected], rtol=1e-6)
    assert [step for step, _ in got["held_out/loss"]] == [20, 40, 45]


def test_tensorboard_hides_what_a_resumed_run_does_again(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    fit(TRAIN, ADAM, steps=60, key=KEY, callbacks=[TensorBoard(whole)])
    board = TensorBoard(cut)
    half = fit(TRAIN, ADAM, steps=20, key=KEY, callbacks=[board])
    other = nd.Backprop(optax.adam(1.0))  # these rows must not be seen
    fit(TRAIN, other, steps=50, state=half.state, callbacks=[board])
    fit(TRAIN, ADAM, steps=60, state=half.state, callbacks=[board])
    assert len(list(cut.iterdir())) == 3
    assert scalars(cut) == scalars(whole)


def test_tensorboard_takes_what_is_not_finite(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path)
    board.begin(moment(0))
    board(moment(10, {"loss": math.nan, "best": math.inf, "n": 3}))
    board.end(moment(10), None)
    got = scalars(tmp_path)
    assert math.isnan(got["loss"][0][1]) and got["best"] == [(10, math.inf)] and got["n"] == [(10, 3.0)]


FULL = """
import resource, signal, jax, jax.numpy as jnp, optax, nondiff
from nondiff.run.tensorboard import TensorBoard
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
board = TensorBoard("board")
problem = nondiff.BlackBox(jnp.square, 1.0)
small = lambda moment: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    nondiff.fit(problem, nondiff.Backprop(optax.sgd(0.25)), steps=10**5, key=jax.random.key(0),
                callbacks=[board, small])
except OSError as error:
    print(error)
"""


def test_tensorboard_on_a_full_disk(tmp_path: Path) -> None:
    process = subprocess.run([sys.executable, "-c", FULL], cwd=tmp_path, capture_output=True, text=True)
    assert re.fullmatch(
        r".*File too large; the log cannot be written: '.*/board/events.out.tfevents.*'\n", process.stdout
    )
    steps = [step for step, _ in scalars(tmp_path / "board")["loss"]]
    assert steps == [10 * (i + 1) for i in range(len(steps))] and steps


NO_PACKAGE = """
import sys
sys.modules["tensorboardX"] = None
from nondiff.run.tensorboard import TensorBoard
try:
    TensorBoard("board")
except ImportError as error:
    print(error)
"""


def test_tensorboard_without_its_package(tmp_path: Path) -> None:
    process = subprocess.run([sys.executable, "-c", NO_PACKAGE], cwd=tmp_path, capture_output=True, text=True)
    expected = '`TensorBoard` needs the package tensorboardX: pip install "nondiff[tensorboard]"\n'
    assert process.stdout == expected, process.stderr
    assert list(tmp_path.iterdir()) == []


# Progress


def test_plain_lines_come_once_a_second_and_at_the_end(capsys: Any) -> None:
    row = {"loss": 0.42131, "evaluations": 64.0, "failed": 0.0, "a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0, "e": 5.0}
    progress = Progress()
    progress.begin(moment(0, steps=1200))
    for step in range(10, 311, 10):
        progress(moment(step, row, steps=1200, seconds=(step - 10) / 80))
    progress.end(moment(310, row, steps=1200, seconds=3.75), None)
    shown = "  loss 0.4213  a 1  b 2  c 3  d 4"
    assert capsys.readouterr().err.splitlines() == [
        f"step 10/1200{shown}",  # no rate yet: the time so far was spent compiling
        f"step 90/1200{shown}  80 steps/s  ETA 0:14",
        f"step 170/1200{shown}  80 steps/s  ETA 0:13",
        f"step 250/1200{shown}  80 steps/s  ETA 0:12",
        f"step 310/1200{shown}  80 steps/s  ETA 0:11",
    ]


def test_the_last_line_comes_once(capsys: Any) -> None:
    progress = Progress()
    fit(PROBLEM, HALVING, steps=20, key=KEY, callbacks=[progress])
    fit(PROBLEM, HALVING, steps=5, key=KEY, callbacks=[progress])  # and it can be used again
    got = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in got] == ["step 10/20", "step 20/20", "step 5/5"]


def test_failures_are_shown_where_there_are_any(capsys: Any) -> None:
    progress = Progress()
    progress.begin(moment(0, steps=1))
    progress(moment(1, {"loss": math.nan, "failed": 3.0}, steps=1))
    progress.end(moment(1, steps=1), None)
    assert capsys.readouterr().err == "step 1/1  loss nan  failed 3\n"


@pytest.mark.parametrize(("width", "shown"), [("80", "loss 0.25  best 0.125"), ("56", "loss 0.25")])
def test_a_bar_on_a_terminal(capsys: Any, monkeypatch: Any, width: str, shown: str) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", width)
    progress = Progress()
    progress.begin(moment(0, steps=8))
    progress(moment(4, {"loss": 0.5, "best": 0.5}, steps=8, seconds=0.0))
    long = {"spread_of_the_population": 1.5e-8, "norm_of_the_gradient": 2.5e-8}
    progress(moment(8, {"loss": 0.25, "best": 0.125, **long}, steps=8, seconds=0.5))
    progress.end(moment(8, steps=8), None)
    err = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", capsys.readouterr().err)
    assert re.search(rf"━{{16}} 8/8 {re.escape(shown)}  8 steps/s  ETA 0:00", err)
