"""Recurrent models: windows against their definition, synthetic gradients against a second computation."""

import pathlib
import pickle
from typing import Any

import cloudpickle
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax
import pytest

import nondiff as nd
from nondiff.testing import count_compilations

pytestmark = pytest.mark.usefixtures("compiled_quickly")

CASES, STEPS, UNITS = 5, 7, 4
compare = optax.softmax_cross_entropy_with_integer_labels


def step(params: Any, h: Any, x: Any) -> tuple[Any, Any]:
    h = jnp.tanh(h @ params["h"] + x @ params["x"])
    return h, h @ params["y"]


def start(key: Any) -> Any:
    keys = jr.split(key, 3)
    return {
        "h": jr.normal(keys[0], (UNITS, UNITS)),
        "x": jr.normal(keys[1], (2, UNITS)),
        "y": jr.normal(keys[2], (UNITS, 3)),
    }


def sequences(length: int = STEPS, seed: int = 0) -> nd.Sequences:
    """A loss counts fully, by a half, or not at all."""
    k_x, k_y, k_w = jr.split(jr.key(seed), 3)
    weights = jr.randint(k_w, (CASES, STEPS), 0, 3) / 2.0 * (jnp.arange(STEPS) < length)
    answers = jr.randint(k_y, (CASES, STEPS), 0, 3)
    return nd.Sequences(jr.normal(k_x, (CASES, STEPS, 2)), answers, weights)


def right(outputs: Any, answers: Any) -> Any:
    return (jnp.argmax(outputs, -1) == answers).astype(jnp.float32)


class Same(nd.AbstractWindows):
    """The same sequences again and again; it counts them."""

    loss_of: nd.WindowLoss

    def start(self) -> Any:
        return jnp.zeros((), jnp.int32), jnp.zeros(())

    def learned(self, progress: Any, score: Any) -> Any:
        return progress[0] + 1, score

    def draw(self, progress: Any, *, key: Any) -> nd.Sequences:
        return sequences()


def unrolled(signal: Any = None, window: int = 3, **kwargs: Any) -> nd.Unroll:
    given = {"ahead": 2 if signal is not None else 0, "like": sequences(), **kwargs}
    return nd.Unroll(step, start, 0.1 * jnp.ones(UNITS), signal, window=window, **given)


def gradient(unroll: nd.Unroll, params: Any, at: int, state: Any) -> Any:
    loss = unroll.loss(compare)
    window = unroll.cut(sequences(), jnp.int32(at))
    return jax.jit(jax.grad(lambda p: jnp.mean(loss(p, window, jr.key(0), state)[0])))(params)


def states(params: Any, until: int) -> Any:
    h = jnp.broadcast_to(0.1 * jnp.ones(UNITS), (CASES, UNITS))
    for t in range(until):
        h, _ = step(params, h, sequences().inputs[:, t])
    return h


def losses(params: Any, h: Any, begin: int, end: int) -> tuple[Any, Any]:
    """Of some steps, for each case; and the state after them."""
    given, total = sequences(), 0.0
    for t in range(begin, min(end, STEPS)):
        h, y = step(params, h, given.inputs[:, t])
        total += compare(y, given.answers[:, t]) * given.weights[:, t]
    for _ in range(max(end - STEPS, 0)):  # past the end nothing comes in
        h, _ = step(params, h, jnp.zeros((CASES, 2)))
    return total, h


def told(at: int) -> Any:
    """The two answers that come next, one-hot, and how much they count."""
    given, answers, weights = sequences(), np.zeros((CASES, 2, 3)), np.zeros((CASES, 2))
    for i in range(at, min(at + 2, STEPS)):
        weights[:, i - at] = given.weights[:, i]
        answers[:, i - at] = np.eye(3)[given.answers[:, i]] * (weights[:, i - at, None] > 0)
    return np.concatenate([answers.reshape(CASES, -1), weights], 1)


def assert_close(found: Any, expected: Any) -> None:
    for one, other in zip(jtu.tree_leaves(found), jtu.tree_leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_a_window_of_all_steps_is_backpropagation() -> None:
    unroll = unrolled(window=STEPS)
    params = unroll.init(jr.key(1))
    expected = jax.grad(lambda p: jnp.mean(losses(p, states(p, 0), 0, STEPS)[0]))(params["model"])
    assert_close(gradient(unroll, params, 0, jnp.zeros((CASES, UNITS)))["model"], expected)


def test_truncated_backpropagation_sees_no_further_than_its_window() -> None:
    unroll = unrolled()
    params = unroll.init(jr.key(1))
    h = states(params["model"], 3)
    expected = jax.grad(lambda p: jnp.mean(losses(p, h, 3, 6)[0]))(params["model"])
    assert_close(gradient(unroll, params, 3, h)["model"], expected)


def started(unroll: nd.Unroll) -> Any:
    params = unroll.init(jr.key(1))
    own = jtu.tree_map(lambda p: p + 0.3 * jr.normal(jr.key(p.size), p.shape), params["signal"])
    return {**params, "signal": own}


@pytest.mark.parametrize("at", [0, 3, 6])
def test_a_synthetic_gradient_stands_for_the_future(at: int) -> None:
    """In the middle; at the first window, where nothing is fitted; and at the last, beyond which nothing comes."""
    unroll = unrolled(nd.SyntheticGradient(), auxiliary=0.5)
    params = {**started(unroll), "predict": {"w": jnp.ones((UNITS, UNITS)), "b": jnp.ones(UNITS)}}
    given, model = sequences(), params["model"]
    h = states(model, at)

    def predicted(own: Any, h: Any, at: int) -> Any:
        return jnp.concatenate([h, told(at)], 1) @ own["w"] + own["b"]

    end = losses(model, h, at, at + 3)[1]
    future = predicted(params["signal"], end, at + 3) * (at < 6)

    def total(model: Any, h: Any) -> Any:
        value, end = losses(model, h, at, at + 3)
        return jnp.sum(value + jnp.sum(future * end, 1))

    def missed(model: Any, predict: Any) -> Any:
        wrong, x = 0.0, h
        for t in range(at, at + 3):
            x, _ = step(model, x, given.inputs[:, t] if t < STEPS else jnp.zeros((CASES, 2)))
            wrong += jnp.sum((x @ predict["w"] + predict["b"] - future) ** 2) / 3
        return wrong * 0.5 * (at < 6)

    slopes, came = jax.grad(total, (0, 1))(model, h)
    more, predict = jax.grad(missed, (0, 1))(model, params["predict"])
    own = jax.grad(lambda o: jnp.sum((predicted(o, h, at) - came) ** 2) * (at > 0))(params["signal"])
    found = gradient(unroll, params, at, h if at else jnp.full((CASES, UNITS), 9.0))
    expected = {"model": jtu.tree_map(jnp.add, slopes, more), "signal": own, "predict": predict}
    assert_close(found, jtu.tree_map(lambda x: x / CASES, expected))


def test_states_and_scores_are_carried_and_sequences_follow_one_another() -> None:
    unroll = unrolled(nd.SyntheticGradient())

    problem = Same(unroll.loss(compare, right))
    result = nd.fit(problem, nd.Backprop(optax.sgd(1e-12)), steps=7, key=jr.key(0))
    state = result.state.problem
    model = result.params["model"]
    assert int(state.drawn) == int(state.progress[0]) == 2 and int(state.at) == 3  # windows from 0, 3, 6, 0, 3, 6, 0
    np.testing.assert_allclose(state.state, states(model, 3), rtol=1e-5)
    told, h = 0.0, states(model, 0)
    for t in range(STEPS):
        h, y = step(model, h, sequences().inputs[:, t])
        told += float(jnp.mean(right(y, sequences().answers[:, t]) * sequences().weights[:, t]))
    assert float(state.progress[1]) == pytest.approx(told, rel=1e-5)


def test_sequences_may_end_early() -> None:
    found = unrolled(nd.SyntheticGradient()).cut(sequences(length=4), jnp.int32(3))
    assert bool(found.last) and float(jnp.sum(found.weights[:, 1:])) == 0
    assert not bool(unrolled().cut(sequences(length=5), jnp.int32(1)).last)
    answers = np.where(sequences().weights[:, 3] > 0, sequences().answers[:, 3], -1)
    np.testing.assert_array_equal(found.before.answers, np.stack([answers, np.full(CASES, -1)], 1))
    assert not np.any(found.after.weights)


def test_a_local_loss_reads_what_is_still_to_be_given() -> None:
    """Its slopes in the model and in the reader, beside those of the window itself."""
    unroll = unrolled(nd.LocalLoss())
    params, at = started(unroll), 3
    h, given = states(params["model"], at), sequences()

    def total(model: Any, own: Any) -> Any:
        value, end = losses(model, h, at, at + 3)
        read = (end @ own["read"]["w"] + own["read"]["b"]).reshape(CASES, 2, 3)
        local = compare(read[:, 0], given.answers[:, 6]) * given.weights[:, 6]  # the other one is beyond the end
        return jnp.mean(value + local)

    model, own = jax.grad(total, (0, 1))(params["model"], params["signal"])
    assert_close(gradient(unroll, params, at, h), {"model": model, "signal": own})


SIGNALS = {
    "none": (None, {}),
    "synthetic": (nd.SyntheticGradient(net=nd.Hidden(5)), {"auxiliary": 0.1}),
    "damped": (nd.SyntheticGradient(damping=0.1), {}),
    "unconditioned": (nd.SyntheticGradient(conditioned=False), {"ahead": 0}),
    "local": (nd.LocalLoss(similarity=0.5), {}),
}


@pytest.mark.parametrize("name", SIGNALS)
def test_the_loss_is_the_true_one(name: str) -> None:
    """To the last bit, whoever asks, and with every gradient finite."""
    unroll = unrolled(SIGNALS[name][0], **SIGNALS[name][1])
    params, plain = unroll.init(jr.key(1)), unrolled()
    params = jtu.tree_map(lambda p: p + 0.1, params)
    window, h = unroll.cut(sequences(), jnp.int32(3)), states(params["model"], 3)

    def total(params: Any, unroll: nd.Unroll) -> Any:
        return jnp.mean(unroll.loss(compare)(params, window, jr.key(0), h)[0])

    value, slopes = jax.jit(jax.value_and_grad(lambda p: total(p, unroll)))(params)
    np.testing.assert_array_equal(value, jax.jit(jax.value_and_grad(lambda p: total(p, plain)))(params)[0])
    np.testing.assert_array_equal(value, jax.jit(lambda p: total(p, unroll))(params))
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in jtu.tree_leaves(slopes))
    assert all(bool(jnp.any(g != 0)) for g in jtu.tree_leaves(slopes.get("signal")))
    sent = pickle.loads(cloudpickle.dumps(unroll.loss(compare)))  # as to a worker
    np.testing.assert_array_equal(value, jax.jit(lambda p: total(p, sent.unroll))(params))


@pytest.mark.parametrize("name", SIGNALS)
def test_a_run_goes_on_in_mid_sequence(name: str, tmp_path: pathlib.Path) -> None:
    """From a checkpoint, with the same bits; and nothing is compiled for another window, or another sequence."""
    unroll = unrolled(SIGNALS[name][0], **SIGNALS[name][1])
    problem, trainer = Same(unroll.loss(compare, right)), nd.Backprop(unroll.optimizer(optax.adam(0.01)))
    whole = nd.fit(problem, trainer, steps=8, key=jr.key(0))
    nd.fit(problem, trainer, steps=5, key=jr.key(0), callbacks=[nd.Checkpointer(tmp_path)])
    restored = nd.Checkpointer(tmp_path).restore(nd.init(problem, trainer, key=jr.key(0)))
    assert restored.step == 5 and int(restored.state.problem.at) == 6  # windows from 0, 3, 6, 0, 3
    with count_compilations() as compiled:
        rest = nd.fit(problem, trainer, steps=8, state=restored.state)
    assert not compiled
    for one, other in zip(*(jtu.tree_leaves(r.params) for r in (whole, rest)), strict=True):
        np.testing.assert_array_equal(one, other)
    assert int(rest.state.problem.drawn) == 2


def test_the_signal_has_an_optimiser_of_its_own() -> None:
    unroll = unrolled(nd.SyntheticGradient(lr_ratio=10), auxiliary=0.1)
    params = unroll.init(jr.key(0))
    update = unroll.optimizer(optax.sgd(0.5))
    moved: Any = update.update(jtu.tree_map(jnp.ones_like, params), update.init(params), params)[0]
    found = {n: {float(x) for leaf in jtu.tree_leaves(own) for x in leaf.ravel()} for n, own in moved.items()}
    assert found == {"model": {-0.5}, "predict": {-0.5}, "signal": {-5.0}}
    clipped = unroll.optimizer(optax.chain(optax.clip(0.1), optax.sgd(0.5)), optax.sgd(0.5))
    moved = clipped.update(jtu.tree_map(jnp.ones_like, params), clipped.init(params), params)[0]
    assert float(moved["model"]["h"][0, 0]) == pytest.approx(-0.05) and float(moved["signal"]["b"][0]) == -5.0


def test_answers_that_do_not_count_may_be_anything() -> None:
    clean = sequences(length=4)
    padded = clean._replace(answers=clean.answers.at[:, 4:].set(-100))
    found = [unrolled(nd.SyntheticGradient()).cut(s, jnp.int32(3)) for s in (clean, padded)]
    for one, other in zip(*map(jtu.tree_leaves, found), strict=True):
        np.testing.assert_array_equal(one, other)
    assert bool(jnp.all(found[1].answers[:, 1:] == 0))


@pytest.mark.parametrize("kind", [jnp.uint8, bool])
def test_answers_of_any_type_have_room_for_none(kind: Any) -> None:
    answers = sequences(length=4).answers.astype(kind)
    found = unrolled(nd.SyntheticGradient()).cut(sequences(length=4)._replace(answers=answers), jnp.int32(3))
    assert bool(jnp.all(found.after.answers == -1))


ERRORS = {
    "waits": (lambda: unrolled(nd.Locked()), "waits for what comes later.*Use `SyntheticGradient"),
    "mixed": (lambda: unrolled(nd.SyntheticGradient(mix=0.5)), "waits for what comes later"),
    "late": (lambda: unrolled(nd.Delayed()), "waits for what comes later"),
    "signal": (lambda: unrolled("synthetic"), "signal='synthetic'.*for example `SyntheticGradient"),
    "window": (lambda: unrolled(window=0), "window=0.*at least 1"),
    "ahead": (lambda: unrolled(ahead=-1), "ahead=-1.*at least 0"),
    "nothing_told": (lambda: unrolled(nd.SyntheticGradient(), ahead=0), r"ahead=0.*told no answers.*conditioned=False"),
    "nothing_to_read": (lambda: unrolled(nd.LocalLoss(), ahead=0), r"ahead=0.*told no answers"),
    "like": (lambda: unrolled(nd.SyntheticGradient(), like=None), "like=.*needs `Sequences.*not NoneType"),
    "auxiliary": (lambda: unrolled(auxiliary=1.0), "auxiliary=1.0.*there is no signal to predict"),
    "state": (lambda: nd.Unroll(step, start, jnp.zeros(3, int), window=2), "one array of floats"),
}


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.usefixtures("unchecked")
def test_errors(name: str) -> None:
    make, expected = ERRORS[name]
    with pytest.raises(ValueError, match=expected):
        make()
