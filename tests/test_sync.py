"""Predicted inputs, and how often modules hear of one another: against a second computation, step by step."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax
import pytest
from test_decoupled import (
    ANSWERS,
    CASES,
    RATE,
    X,
    assert_close,
    chain,
    compare,
    gradient,
    model_of,
    started,
    trajectory,
)

import nondiff as nd

NAMES = "h0", "h1", "read"
INPUTS = nd.SyntheticInput(net=nd.Linear())


def with_inputs(signal: Any, **kwargs: Any) -> tuple[nd.Decoupled, Any]:
    """Predictions that are not 0."""
    model = model_of(signal, inputs=INPUTS, **kwargs)
    params = started(model)
    own = jtu.tree_map(lambda p: p + 0.3 * jr.normal(jr.key(p.size + 1), p.shape), params["inputs"])
    return model, {**params, "inputs": own}


@pytest.mark.parametrize("late", [0, 2])
def test_inputs_are_predicted_and_fitted_to_what_comes_from_below(late: int) -> None:
    """Three modules, each started from a prediction; gradients and activations arrive some steps later."""
    model, params = with_inputs(nd.SyntheticGradient(mix=0.0), late=late)
    found = trajectory(model, params, 6)
    stages = [part.stage for part in model.parts]
    ups: list[list[Any]] = []  # of each step
    downs: list[list[Any]] = []
    for n, (batch, after) in enumerate(found):
        x, answers = batch
        now, own, guess = params["stages"], params["signals"], params["inputs"]
        inputs = [x, *(x @ guess[name]["w"] + guess[name]["b"] for name in NAMES[1:])]
        ups.append([stages[i](now[NAMES[i]], inputs[i]) for i in range(2)])

        def predicted(own: Any, h: Any, answers: Any) -> Any:
            return jnp.concatenate([h, jax.nn.one_hot(answers, 3)], 1) @ own["w"] + own["b"]

        y, back = jax.vjp(stages[2], now["read"], inputs[2])
        slopes, down = back(jax.grad(lambda y, a=answers: jnp.sum(compare(y, a)))(y))
        moves, sent = {"read": slopes}, {"h1": down}
        h, back = jax.vjp(stages[1], now["h1"], inputs[1])
        moves["h1"], sent["h0"] = back(predicted(own["h1"], h, answers))
        h, back = jax.vjp(stages[0], now["h0"], inputs[0])
        moves["h0"], _ = back(predicted(own["h0"], h, answers))
        downs.append([sent["h0"], sent["h1"]])

        fits, guesses = jtu.tree_map(jnp.zeros_like, own), jtu.tree_map(jnp.zeros_like, guess)
        if n >= late:
            (before, labels), then = found[n - late][0], n - late
            for i, name in enumerate(NAMES[:2]):
                h, came = ups[then][i], downs[then][i]
                fits[name] = jax.grad(lambda o, h=h, c=came, a=labels: jnp.sum((predicted(o, h, a) - c) ** 2))(
                    own[name]
                )
                later = NAMES[i + 1]

                def missed(o: Any, h: Any = h, x: Any = before) -> Any:
                    return jnp.sum(jnp.mean((x @ o["w"] + o["b"] - h) ** 2, 1))

                guesses[later] = jax.grad(missed)(guess[later])
        slopes = {"stages": moves, "signals": fits, "inputs": guesses}
        params = jtu.tree_map(lambda p, g: p - RATE * g / CASES, params, slopes)
        assert_close(after, params, err_msg=f"step {n}")


def test_the_loss_is_the_true_one() -> None:
    model, params = with_inputs(nd.LocalLoss())
    problem = nd.Supervised(model.loss(compare), (X, ANSWERS), params=params)
    state = nd.init(problem, nd.Backprop(optax.sgd(0.1)), key=jr.key(0))
    losses, _ = problem.loss(params, problem.batch(state.problem, key=jr.key(0)), key=jr.key(1))
    np.testing.assert_array_equal(losses, compare(model(params, X), ANSWERS))


def test_predicted_inputs_unlock_forward() -> None:
    assert model_of(nd.SyntheticGradient(), inputs=INPUTS).unlocks == "forward"
    assert model_of(nd.SyntheticGradient()).unlocks == "update"
    assert model_of({"h0": nd.LocalLoss(), "h1": nd.FeedbackAlignment()}, inputs=INPUTS).unlocks == "backward"
    assert model_of(nd.Locked()).unlocks == "nothing"


def test_their_leaves_learn_at_a_rate_of_their_own() -> None:
    model = model_of(nd.LocalLoss(), inputs=nd.SyntheticInput(net=nd.Linear(), lr_ratio=3))
    params = model.init(jr.key(0))
    optimizer = model.optimizer(optax.sgd(1.0))
    updates, _ = optimizer.update(jtu.tree_map(jnp.ones_like, params), optimizer.init(params), params)
    assert all(float(x.ravel()[0]) == -3 for x in jtu.tree_leaves(updates["inputs"]))
    assert all(float(x.ravel()[0]) == -1 for x in jtu.tree_leaves(updates["stages"]))


def test_a_network_learns_from_predicted_inputs() -> None:
    """Ten times better than chance, by modules that never wait."""
    x = jr.normal(jr.key(0), (400, 5))
    answers = jnp.argmax(jnp.tanh(x @ jr.normal(jr.key(1), (5, 3))), 1)
    model = model_of(nd.SyntheticGradient(), inputs=nd.SyntheticInput(net=nd.Hidden(64)), late=2)
    problem = nd.Supervised(model.loss(compare), (x, answers), params=model.init, batch_size=40)
    result = nd.fit(problem, nd.Backprop(model.optimizer(optax.adam(0.003))), steps=1500, key=jr.key(2))
    assert float((model(result.params, x).argmax(-1) == answers).mean()) > 0.9


def moved(one: Any, other: Any) -> bool:
    return any(bool(jnp.any(a != b)) for a, b in zip(*map(jtu.tree_leaves, (one, other)), strict=True))


def test_predictions_are_fitted_every_so_many_steps() -> None:
    model = model_of(nd.SyntheticGradient(), sync=nd.Sync(every=3))
    params = started(model)
    after = [params, *(p for _, p in trajectory(model, params, 6))]
    fitted = [moved(after[n]["signals"], after[n + 1]["signals"]) for n in range(6)]
    learned = [moved(after[n]["stages"]["h0"], after[n + 1]["stages"]["h0"]) for n in range(6)]
    assert fitted == [True, False, False] * 2 and all(learned)


def test_modules_that_wait_learn_every_so_many_steps() -> None:
    model = model_of(nd.Delayed(), sync=nd.Sync(every=2))
    after = [started(model), *(p for _, p in trajectory(model, started(model), 6))]
    learned = [moved(after[n]["stages"]["h1"], after[n + 1]["stages"]["h1"]) for n in range(6)]
    assert learned == [False, True, False, True, False, True]  # of steps 0, 2, 4, one step late


def test_some_steps_are_those_of_backpropagation() -> None:
    """The modules' are; the predictions are fitted to true gradients there."""
    plain, locked = model_of(nd.SyntheticGradient()), model_of(nd.Locked())
    model = model_of(nd.SyntheticGradient(), sync=nd.Sync(true=3, warmup=2))
    params, found = started(model), trajectory(model, started(model), 6)
    for n, (batch, after) in enumerate(found):

        def slope(of: nd.Decoupled, params: Any, batch: Any = batch) -> Any:
            return jax.grad(lambda p: jnp.mean(of.loss(compare)(p, batch, jr.key(0))))(params)

        bare = {**params, "signals": {"h0": (), "h1": ()}}
        expected = slope(locked, bare) if n in (0, 1, 3) else slope(plain, params)
        moves = jtu.tree_map(lambda p, g: p - RATE * g, params["stages"], expected["stages"])
        assert_close(after["stages"], moves, err_msg=f"step {n}")
        params = after


@pytest.mark.parametrize("signal", [nd.SyntheticGradient(), nd.SyntheticGradient(mix=0.5), nd.Locked()])
def test_at_such_a_step_all_send(signal: nd.AbstractSignal) -> None:
    """Also when their turn would be another one."""
    model = model_of(signal, sync=nd.Sync(every=2, true=3))
    params = started(model)
    (_, before), *_, (batch, after) = [(None, params), *trajectory(model, params, 4)][-2:]
    bare = {**before, "signals": {"h0": (), "h1": ()}}
    slopes = jax.grad(lambda p: jnp.mean(model_of(nd.Locked()).loss(compare)(p, batch, jr.key(0))))(bare)["stages"]
    assert_close(after["stages"], jtu.tree_map(lambda p, g: p - RATE * g, before["stages"], slopes))


@pytest.mark.parametrize("kwargs", [{}, {"late": 2}, {"inputs": INPUTS}, {"sync": nd.Sync(every=2)}])
def test_activations_may_be_of_half_precision(kwargs: Any) -> None:
    """Predictions are made in single precision."""
    stages = {
        "h0": nd.Layer(lambda p, x: (x @ p).astype(jnp.bfloat16), jnp.ones((5, 4)) / 5),
        "h1": nd.Layer(lambda p, x: (x @ p).astype(jnp.bfloat16), jnp.ones((4, 4)) / 4),
        "read": nd.Layer(lambda p, x: (x @ p).astype(jnp.float32), jnp.ones((4, 3))),
    }
    model = model_of(nd.SyntheticGradient(), modules=nd.Chain(stages), **kwargs)
    params = started(model)
    (_, after), *_ = trajectory(model, params, 1)
    assert moved(params["stages"]["h0"], after["stages"]["h0"])
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in jtu.tree_leaves(after))


def test_a_step_module_by_module_is_that_through_the_walk() -> None:
    """One gradient by two ways."""
    model = model_of(nd.SyntheticGradient())
    often = model_of(nd.SyntheticGradient(), sync=nd.Sync(every=1_000))
    params = started(model)
    problem = nd.Supervised(often.loss(compare), (X, ANSWERS), params=params)
    state = nd.init(problem, nd.Backprop(optax.sgd(0.1)), key=jr.key(0))
    told = problem.batch(state.problem, key=jr.key(0))
    found = jax.grad(lambda p: jnp.mean(problem.loss(p, told, key=jr.key(3))[0]))(params)
    assert_close(found, gradient(model, params))


ERRORS = {
    "inputs": (lambda: model_of(nd.LocalLoss(), inputs="all"), r"inputs='all'.*for example `SyntheticInput\(\)`"),
    "sync": (lambda: model_of(nd.LocalLoss(), sync=3), r"sync=3.*for example `Sync\(every=2\)`"),
    "every": (lambda: nd.Sync(every=0), "every=0.*at least 1"),
    "true": (lambda: nd.Sync(true=0), "true=0.*at least 1"),
    "warmup": (lambda: nd.Sync(warmup=-1), "warmup=-1.*at least 0"),
    "ratio": (lambda: nd.SyntheticInput(lr_ratio=0), "lr_ratio=0.*above 0"),
    "net": (lambda: nd.SyntheticInput(net=3), r"net=3.*for example `Linear\(\)`"),
    "true_but_late": (
        lambda: model_of(nd.SyntheticGradient(), sync=nd.Sync(true=5), late=1),
        "none comes in time to boundary `h1`",
    ),
    "true_but_local": (lambda: model_of(nd.LocalLoss(), sync=nd.Sync(warmup=5)), "have `SyntheticGradient"),
    "true_but_predicted": (
        lambda: model_of(nd.SyntheticGradient(), sync=nd.Sync(true=5), inputs=INPUTS),
        "Leave out `late` and `inputs`",
    ),
    "whole_numbers": (
        lambda: nd.Decoupled(
            nd.Chain({"in": nd.Layer(lambda p, x: x * 1.0), "read": nd.Dense(5, 3)}),
            signal=nd.LocalLoss(), inputs=INPUTS, like=(jnp.zeros((10, 5), int), ANSWERS),
        ),
        "`SyntheticInput` of `read`: it predicts from the model's inputs, and these are not floats",
    ),
    "no_answers": (
        lambda: nd.Decoupled(chain(), signal=nd.Delayed(), like=(X, None)),
        "there are no answers, by which modules would know their batch",
    ),
    "inside": (
        lambda: model_of(
            nd.Locked(), modules={"a": nd.Decoupled(chain(), signal=nd.Locked(), inputs=INPUTS), "b": chain()}
        ),
        "belong to the outermost, not to `a`",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.usefixtures("unchecked")
def test_errors(name: str) -> None:
    make, expected = ERRORS[name]
    with pytest.raises(ValueError, match=expected):
        make()
