"""Decoupled modules: each signal against its definition, by a second computation of a small network."""

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
from helpers import SIGNALS

import nondiff as nd
from nondiff.signals.synthetic_gradient import _least_squares  # pyright: ignore[reportPrivateUsage]
from nondiff.testing import check_signal

CASES = 10
X = jr.normal(jr.key(0), (CASES, 5))
ANSWERS = jr.randint(jr.key(1), (CASES,), 0, 3)
compare = optax.softmax_cross_entropy_with_integer_labels


def layer(inputs: int, width: int) -> nd.Layer:
    dense = nd.Dense(inputs, width)
    return nd.Layer(lambda p, x: jnp.tanh(dense(p, x)), lambda key: dense.init(key=key))


def chain(depth: int = 2) -> nd.Chain:
    sizes = [5, 4, 6, 7][: depth + 1]
    hidden = {f"h{i}": layer(*sizes[i : i + 2]) for i in range(depth)}
    return nd.Chain({**hidden, "read": nd.Dense(sizes[-1], 3)})


def model_of(signal: Any, **kwargs: Any) -> nd.Decoupled:
    return nd.Decoupled(kwargs.pop("modules", None) or chain(), signal=signal, like=(X, ANSWERS), **kwargs)


def started(model: nd.Decoupled, seed: int = 2) -> Any:
    """With leaves of signals that are not 0."""
    params = model.init(jr.key(seed))
    own = jtu.tree_map(lambda p: p + 0.3 * jr.normal(jr.key(p.size), p.shape), params["signals"])
    return {**params, "signals": own}


def gradient(model: nd.Decoupled, params: Any, key: int = 3) -> Any:
    return jax.jit(jax.grad(lambda p: jnp.mean(model.loss(compare)(p, (X, ANSWERS), jr.key(key)))))(params)


class ByHand:
    """The pieces of the small network: activations, and derivatives through one stage at a time."""

    def __init__(self, model: nd.Decoupled, params: Any):
        self.stages = [(part.stage, part.params(params["stages"])) for part in model.parts]
        self.h = [X]
        for stage, p in self.stages:
            self.h.append(stage(p, self.h[-1]))
        self.error = jax.grad(lambda y: jnp.sum(compare(y, ANSWERS)))(self.h[-1])

    def back(self, i: int, cotangent: Any) -> tuple[Any, Any]:
        """Through stage `i`: derivatives in its leaves and in its inputs."""
        stage, p = self.stages[i]
        return jax.vjp(stage, p, self.h[i])[1](cotangent)

    @property
    def one_hot(self) -> Any:
        return jax.nn.one_hot(ANSWERS, 3)


def assert_close(found: Any, expected: Any, **kwargs: Any) -> None:
    for one, other in zip(jtu.tree_leaves(found), jtu.tree_leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, **{"rtol": 1e-4, "atol": 1e-6, **kwargs})


@pytest.mark.parametrize("name", SIGNALS)
def test_signals(name: str) -> None:
    check_signal(SIGNALS[name])


@pytest.mark.parametrize("mix", [0.0, 0.3])
@pytest.mark.parametrize("conditioned", [True, False])
def test_synthetic_gradients_are_bootstrapped(mix: float, conditioned: bool) -> None:
    model = model_of(nd.SyntheticGradient(conditioned=conditioned, mix=mix))
    params = started(model)
    hand, found = ByHand(model, params), gradient(model, params)

    def predicted(own: Any, i: int) -> Any:
        x = jnp.concatenate([hand.h[i + 1], hand.one_hot], 1) if conditioned else hand.h[i + 1]
        return x @ own["w"] + own["b"]

    from_above = hand.error
    for i in (2, 1, 0):
        leaves, below = hand.back(i, from_above / CASES)
        assert_close(found["stages"][["h0", "h1", "read"][i]], leaves)
        if i:
            name, target = f"h{i - 1}", below * CASES
            own = params["signals"][name]
            fitting = jax.grad(lambda o, i=i, t=target: jnp.sum((predicted(o, i - 1) - t) ** 2) / CASES)(own)
            assert_close(found["signals"][name], fitting)
            from_above = mix * target + (1 - mix) * predicted(own, i - 1)


def test_damped_least_squares_fit_a_batch() -> None:
    """One step is that of the normal equations, and moves other leaves no further than their own optimiser does."""
    for damping in (0.5, 0.05):
        model = model_of({"h1": nd.SyntheticGradient(damping=damping)})
        params = started(model)
        hand, slopes = ByHand(model, params), gradient(model, params)
        update = model.optimizer(optax.sgd(0.5))
        moved, _ = update.update(slopes, update.init(params), params)
        own, step = params["signals"]["h1"], moved["signals"]["h1"]
        x = np.concatenate([hand.h[2], hand.one_hot, np.ones((CASES, 1))], 1).astype(float)
        target = np.asarray(hand.back(2, hand.error)[1], float)
        whole = np.concatenate([own["w"], own["b"][None]]).astype(float)
        moments = x.T @ x / CASES
        damped = moments + damping * np.trace(moments) / len(moments) * np.eye(len(moments))
        expected = np.linalg.solve(damped, x.T @ (target - x @ whole) / CASES)
        np.testing.assert_allclose(step["w"], expected[:-1], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(step["b"], expected[-1], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(moved["stages"]["read"]["w"], -0.5 * slopes["stages"]["read"]["w"], rtol=1e-5)


@pytest.mark.parametrize(("cases", "n"), [(5, 9), (9, 9), (20, 9)])
def test_damped_least_squares_of_few_and_of_many_cases(cases: int, n: int) -> None:
    x, wrong = jr.normal(jr.key(0), (cases, n)), jr.normal(jr.key(1), (cases, 3))
    rows = np.sqrt(0.2 * cases * np.mean(np.asarray(x) ** 2)) * np.eye(n)  # one more equation for every input
    expected = np.linalg.lstsq(np.concatenate([x, rows]), np.concatenate([wrong, np.zeros((n, 3))]))[0]
    np.testing.assert_allclose(_least_squares(x, wrong, 0.2), expected, rtol=1e-3, atol=1e-5)


def test_mixed_fully_it_is_backpropagation() -> None:
    model, locked = model_of(nd.SyntheticGradient(mix=1.0)), model_of(nd.Locked())
    params = started(model)
    truth = gradient(locked, {**params, "signals": {"h0": (), "h1": ()}})
    assert_close(gradient(model, params)["stages"], truth["stages"])


def test_local_losses_are_those_of_small_classifiers() -> None:
    model = model_of(nd.LocalLoss())
    params = started(model)
    hand, found = ByHand(model, params), gradient(model, params)
    for i, name in enumerate(("h0", "h1")):

        def local(p: Any, own: Any, i: int = i) -> Any:
            h = hand.stages[i][0](p, hand.h[i])
            return jnp.mean(compare(h @ own["w"] + own["b"], ANSWERS))

        own = params["signals"][name]["read"]
        leaves, fitting = jax.grad(local, (0, 1))(params["stages"][name], own)
        assert_close(found["stages"][name], leaves)
        assert_close(found["signals"][name]["read"], fitting)


@pytest.mark.slow
def test_similarity_is_that_of_pairs_of_cases() -> None:
    model = model_of(nd.LocalLoss(similarity=1.0))
    params = started(model)
    hand, found = ByHand(model, params), gradient(model, params)

    def cosine(a: Any, b: Any) -> Any:
        a, b = a - a.mean(), b - b.mean()
        return (a @ b) / jnp.sqrt((a @ a) * (b @ b))

    def local(p: Any) -> Any:
        own = params["signals"]["h0"]["turn"]
        turned = hand.stages[0][0](p, X) @ own["w"] + own["b"]
        total = 0.0
        for i in range(CASES):
            for j in range(CASES):
                total += (cosine(turned[i], turned[j]) - cosine(hand.one_hot[i], hand.one_hot[j])) ** 2
        return total / CASES**2

    assert_close(found["stages"]["h0"], jax.jit(jax.grad(local))(params["stages"]["h0"]), rtol=1e-3, atol=1e-5)


def test_feedback_is_a_fixed_random_projection_of_the_error() -> None:
    model = model_of(nd.FeedbackAlignment(seed=7))
    params = started(model)
    hand, found = ByHand(model, params), gradient(model, params)
    for i, (name, width) in enumerate((("h0", 4), ("h1", 6))):
        matrix = jr.normal(jr.fold_in(jr.key(7), i), (3, width)) / np.sqrt(3)
        assert_close(found["stages"][name], hand.back(i, hand.error @ matrix / CASES)[0])
    other = gradient(model_of(nd.FeedbackAlignment(seed=8)), params)
    assert not np.allclose(other["stages"]["h0"]["w"], found["stages"]["h0"]["w"])


def test_the_mean_of_forward_gradients_is_the_gradient() -> None:
    model, locked = model_of(nd.ForwardGradient(samples=64)), model_of(nd.Locked())
    params = started(model)
    loss = model.loss(compare)
    every = jax.jit(jax.vmap(jax.grad(lambda p, k: jnp.mean(loss(p, (X, ANSWERS), k))), (None, 0)))
    found, truth = every(params, jr.split(jr.key(0), 100))["stages"], gradient(locked, params)["stages"]
    for name in ("h0", "h1"):
        for f, t in zip(*(jtu.tree_leaves(g[name]) for g in (found, truth)), strict=True):
            error = jnp.std(f, 0) / 10
            assert float(jnp.max(jnp.abs(jnp.mean(f, 0) - t) / (error + 1e-6))) < 4


def test_no_gradient_comes_from_above_a_local_signal() -> None:
    """So a module without a derivative may stand there, and another trainer may find it."""

    def program(which: Any, x: Any) -> Any:  # which two units are read; Python, so without a derivative
        shape = jax.ShapeDtypeStruct((CASES, 2), x.dtype)
        return jax.pure_callback(lambda x, i: x[:, i], shape, x, which, vmap_method="sequential")

    def first(key: Any) -> Any:
        del key
        return jnp.array([3, 0])

    modules = nd.Chain({"h0": layer(5, 4), "choose": nd.Layer(program, first), "read": nd.Dense(2, 3)})
    model = nd.Decoupled(modules, signal={"h0": nd.LocalLoss(), "choose": nd.LocalLoss()}, like=(X, ANSWERS))
    domain = {"stages": {"h0": nd.Real(), "choose": nd.Categorical(4), "read": nd.Real()}, "signals": nd.Real()}
    problem = nd.Supervised(model.loss(compare), (X, ANSWERS), params=model.init, domain=domain)
    labels = {"stages": {"h0": "adam", "choose": "search", "read": "adam"}, "signals": "adam"}
    trainer = nd.Split({"adam": nd.Backprop(optax.adam(0.05)), "search": nd.Genetic(population=6)}, labels)
    result = nd.fit(problem, trainer, steps=60, key=jr.key(0), log_every=60)
    true = jnp.mean(compare(model(result.params, X), ANSWERS))
    assert float(true) < 0.35  # from 1.1: as if nothing were known
    assert sorted(result.params["stages"]["choose"].tolist())[0] >= 0

    locked = nd.Decoupled(modules, signal=nd.Locked(), like=(X, ANSWERS))
    with pytest.raises(Exception, match="do not support JVP"):
        jax.grad(lambda p: jnp.mean(locked.loss(compare)(p, (X, ANSWERS), jr.key(0))), allow_int=True)(
            locked.init(jr.key(0))
        )


def test_a_module_may_be_decoupled_itself() -> None:
    """The same gradients as with all boundaries in one list, and the names of where they are."""
    sizes = (5, 4), (4, 6), (6, 7)
    first, second, third = (layer(*size) for size in sizes)
    inner = nd.Decoupled(nd.Chain({"a": first, "b": second}), signal=nd.LocalLoss())
    tail = nd.Chain({"c": third, "read": nd.Dense(7, 3)})
    nested = nd.Decoupled({"low": inner, "high": tail}, signal=nd.SyntheticGradient(), like=(X, ANSWERS))
    plain = nd.Chain({"a": first, "b": second, "c": third, "read": nd.Dense(7, 3)})
    flat = nd.Decoupled(plain, signal={"a": nd.LocalLoss(), "b": nd.SyntheticGradient()}, like=(X, ANSWERS))
    params = started(nested)
    assert sorted(params["signals"]) == ["low/a", "low/b"]
    low, high = params["stages"]["low"], params["stages"]["high"]
    own = {"a": params["signals"]["low/a"], "b": params["signals"]["low/b"]}
    expected = gradient(flat, {"stages": {**low, **high}, "signals": own})
    found = gradient(nested, params)
    assert_close({**found["stages"]["low"], **found["stages"]["high"]}, expected["stages"])
    assert_close(found["signals"]["low/b"], expected["signals"]["b"])
    np.testing.assert_array_equal(nested(params, X), plain({**low, **high}, X))


def test_a_decision_behind_a_boundary_has_its_estimator() -> None:
    program = nd.Opaque(lambda s: (s[..., 0] + s[..., 1]) % 2, jax.ShapeDtypeStruct((), jnp.int32))
    modules = nd.Chain(
        {
            "h": layer(5, 4),
            "logits": nd.Layer(lambda w, x: (x @ w).reshape(-1, 2, 3), jr.normal(jr.key(5), (4, 6))),
            "program": nd.Decision(program, via=nd.Tabulate()),
        }
    )
    parity = jnp.arange(CASES) % 2

    def wrong(output: Any, answers: Any) -> Any:
        return (output != answers).astype(jnp.float32)

    model = nd.Decoupled(modules, signal={"h": nd.SyntheticGradient(mix=1.0, conditioned=False)}, like=(X, parity))
    params = started(model)

    def slope(loss: Any, params: Any) -> Any:
        return jax.jit(jax.grad(lambda p: jnp.mean(loss(p, (X, parity), jr.key(0)))))(params)

    found, expected = slope(model.loss(wrong), params), slope(modules.loss(wrong), params["stages"])
    assert float(jnp.abs(expected["h"]["w"]).max()) > 1e-3
    assert_close(found["stages"], expected)


def test_the_leaves_of_signals_learn_faster() -> None:
    model = model_of({"h0": nd.SyntheticGradient(lr_ratio=10), "h1": nd.LocalLoss()})
    params = started(model)
    update = model.optimizer(optax.sgd(0.5))
    ones = jtu.tree_map(jnp.ones_like, params)
    moved, _ = update.update(ones, update.init(params), params)
    assert {float(x) for leaf in jtu.tree_leaves(moved["signals"]["h0"]) for x in leaf.ravel()} == {-5.0}
    rest = jtu.tree_leaves((moved["stages"], moved["signals"]["h1"]))
    assert {float(x) for leaf in rest for x in leaf.ravel()} == {-0.5}


def test_cosines_are_those_with_the_true_gradient() -> None:
    model = model_of(nd.LocalLoss())
    params = started(model)
    hand = ByHand(model, params)
    true = hand.back(2, hand.error)[1]  # at h1
    own = params["signals"]["h1"]["read"]
    mine = jax.grad(lambda h: jnp.sum(compare(h @ own["w"] + own["b"], ANSWERS)))(hand.h[2])
    expected = jnp.sum(true * mine) / (jnp.linalg.norm(true) * jnp.linalg.norm(mine))
    result = nd.Supervised(model.loss(compare), (X, ANSWERS), params=params)
    metric = model.cosines(compare, (X, ANSWERS))
    rows = nd.fit(result, nd.Backprop(optax.sgd(1e-9)), steps=1, key=jr.key(0), metrics=[metric], log_every=1).history
    assert rows[-1]["cosine/h1"] == pytest.approx(float(expected), abs=1e-4)
    locked = model_of(nd.Locked())
    bare = {**params, "signals": {"h0": (), "h1": ()}}
    moment = type("Moment", (), {"params": bare})
    assert locked.cosines(compare, (X, ANSWERS))(moment) == pytest.approx({"cosine/h0": 1.0, "cosine/h1": 1.0})


RATE = 0.1


def trajectory(model: nd.Decoupled, params: Any, steps: int) -> list[Any]:
    """Of gradient descent, each step with a batch of its own."""
    data = jr.normal(jr.key(8), (steps * CASES, 5)), jr.randint(jr.key(9), (steps * CASES,), 0, 3)
    problem, trainer = nd.Supervised(model.loss(compare), data, params=params, batch_size=CASES), descent()
    state, found = nd.init(problem, trainer, key=jr.key(0)), []
    step = jax.jit(lambda state: nd.step(problem, trainer, nd.Vmap(), state)[0])
    for _ in range(steps):
        batch = problem.batch(state.problem, key=jr.key(0))
        state = step(state)
        found.append((getattr(batch, "rows", batch), state.trainer.params))
    return found


def descent() -> nd.Backprop:
    return nd.Backprop(optax.sgd(RATE))


LATE = {
    "delayed": (nd.Delayed(2), 0),
    "synthetic": (nd.SyntheticGradient(), 2),
    "feedback": (nd.FeedbackAlignment(), 2),
    "mixed": (nd.SyntheticGradient(mix=0.4), 2),
}


@pytest.mark.parametrize("name", LATE)
def test_late_messages_are_about_earlier_batches(name: str) -> None:
    """Three modules, messages two steps late. Those that wait hear of older batches, the lower the older."""
    signal, late = LATE[name]
    model = model_of(signal, late=late)
    params = started(model)
    found = trajectory(model, params, 6)
    names, stages = ("h0", "h1", "read"), [part.stage for part in model.parts]
    batches = [batch for batch, _ in found]
    inputs: list[list[Any]] = []  # of each step and module, with the parameters of then
    sent: dict[str, list[Any]] = {"h0": [], "h1": [], "error": []}  # one for each step
    for n in range(6):
        now, own = params["stages"], params["signals"]

        def predicted(own: Any, h: Any, answers: Any) -> Any:
            return jnp.concatenate([h, jax.nn.one_hot(answers, 3)], 1) @ own["w"] + own["b"]

        x, answers = batches[n]
        inputs.append([x])
        for here, stage in zip(names[:2], stages[:2], strict=True):
            inputs[n].append(stage(now[here], inputs[n][-1]))
        y, back = jax.vjp(stages[2], now["read"], inputs[n][2])
        error = jax.grad(lambda y, a=answers: jnp.sum(compare(y, a)))(y)
        slopes, down = back(error)
        moves, fits = {"read": slopes}, jtu.tree_map(jnp.zeros_like, own)
        sent["error"].append(error)
        for i, here in ((1, "h1"), (0, "h0")):
            sent[here].append(down)
            age = 4 if here == "h0" and name in ("delayed", "mixed") else 2
            came = sent["error" if name == "feedback" else here][n - 2] if n >= age else None
            then = max(n - age, 0)
            used = n if name == "synthetic" else then
            h, back = jax.vjp(stages[i], now[here], inputs[used][i])
            gradient = jnp.zeros_like(h)
            if name == "synthetic":
                gradient = predicted(own[here], h, batches[used][1])
            elif came is not None and name == "feedback":
                gradient = came @ jr.normal(jr.fold_in(jr.key(0), i), (3, h.shape[1])) / np.sqrt(3)
            elif came is not None:
                gradient = came if name == "delayed" else 0.4 * came + 0.6 * predicted(own[here], h, batches[used][1])
            moves[here], down = back(gradient)
            if came is not None and name in ("synthetic", "mixed"):
                replayed, y = stages[i](now[here], inputs[then][i]), batches[then][1]
                seen = inputs[then][i + 1] if name == "synthetic" else replayed
                fits[here] = jax.grad(lambda o, h=seen, y=y, c=came: jnp.sum((predicted(o, h, y) - c) ** 2))(own[here])
        slopes = {"stages": moves, "signals": fits}
        params = jtu.tree_map(lambda p, g: p - RATE * g / CASES, params, slopes)
        assert_close(found[n][1], params, err_msg=f"step {n}")


def test_local_losses_are_never_late() -> None:
    model, late = model_of(nd.LocalLoss()), model_of(nd.LocalLoss(), late=3)
    params = started(model)
    for (_, one), (_, other) in zip(trajectory(model, params, 4), trajectory(late, params, 4), strict=True):
        assert_close(one, other)


def test_what_is_on_its_way_is_kept_in_the_state() -> None:
    model = model_of(nd.Delayed(2))
    data = jr.normal(jr.key(8), (40, 5)), jr.randint(jr.key(9), (40,), 0, 3)
    problem = nd.Supervised(model.loss(compare), data, params=model.init, batch_size=CASES)
    whole = nd.fit(problem, descent(), steps=7, key=jr.key(0))
    part = nd.fit(problem, descent(), steps=3, key=jr.key(0))
    rest = nd.fit(problem, descent(), steps=7, state=part.state)
    for one, other in zip(*(jtu.tree_leaves(r.params) for r in (whole, rest)), strict=True):
        np.testing.assert_array_equal(one, other)
    value = model.loss(compare)(whole.params, data, jr.key(0))[0]  # without memory: the true loss
    np.testing.assert_allclose(value, compare(model(whole.params, data[0]), data[1]), rtol=1e-5)


def test_far_workers_can_take_the_loss() -> None:
    model = model_of(nd.SyntheticGradient())
    params = started(model)
    large = nd.Decoupled(chain(), signal=nd.SyntheticGradient(), like=(jnp.zeros((10_000, 5)), jnp.zeros(10_000, int)))
    assert len(cloudpickle.dumps(large.loss(compare))) < 20_000  # the data stay at home
    there = pickle.loads(cloudpickle.dumps(model.loss(compare)))
    batch = (X, ANSWERS)
    np.testing.assert_array_equal(there(params, batch, jr.key(0)), model.loss(compare)(params, batch, jr.key(0)))


@pytest.mark.slow
def test_digits_are_learned_as_by_backpropagation() -> None:
    """Three hidden layers, conditioned synthetic gradients, 12 epochs of scikit-learn-sized data."""
    images = jr.normal(jr.key(4), (600, 20))
    goal = jnp.argmax(jnp.tanh(images @ jr.normal(jr.key(5), (20, 12))) @ jr.normal(jr.key(6), (12, 4)), -1)
    modules = nd.Chain({"a": layer(20, 32), "b": layer(32, 32), "c": layer(32, 32), "read": nd.Dense(32, 4)})
    found = {}
    for name, signal in {"locked": nd.Locked(), "synthetic": nd.SyntheticGradient(), "none": None}.items():
        model = nd.Decoupled(modules, signal={} if signal is None else signal, like=(images, goal))
        problem = nd.Supervised(model.loss(compare), (images, goal), params=model.init, batch_size=60)
        trainer = nd.Backprop(model.optimizer(optax.adam(2e-3)))
        params = nd.fit(problem, trainer, steps=400, key=jr.key(0), log_every=400).params
        found[name] = float(jnp.mean(jnp.argmax(model(params, images), -1) == goal))
    assert found["none"] == found["locked"] > 0.95
    assert found["synthetic"] > 0.9


def bad_shapes() -> Any:
    modules = nd.Chain({"one": nd.Dense(5, 4), "two": nd.Dense(3, 3), "read": nd.Dense(3, 3)})
    return nd.Decoupled(modules, signal=nd.LocalLoss(), like=(X, ANSWERS))


ERRORS = {
    "shapes": (bad_shapes, r"stage `two` cannot take what `one` gives, float32\[10, 4\]"),
    "empty": (lambda: nd.Decoupled({}, signal=nd.Locked(), like=(X, ANSWERS)), "at least one module"),
    "no_module": (lambda: nd.Decoupled({"a": 3}, signal=nd.Locked(), like=(X, ANSWERS)), "a stage, a `Chain`"),
    "slash": (lambda: nd.Decoupled({"a/b": chain()}, signal=nd.Locked(), like=(X, ANSWERS)), "a name without `/`"),
    "unknown": (lambda: model_of({"h7": nd.Locked()}), r"signal=\{'h7': ...\}.*some of h0, h1"),
    "behind_the_last": (lambda: model_of({"read": nd.Locked()}), "some of h0, h1"),
    "no_signal": (lambda: model_of("local"), r"signal='local'.*for example `LocalLoss\(\)`"),
    "no_batch": (lambda: nd.Decoupled(chain(), signal=nd.Locked(), like=X), r"expected a batch, `\(inputs, answers\)`"),
    "no_answers": (
        lambda: nd.Decoupled(chain(), signal=nd.SyntheticGradient(), like=(X, None)),
        r"`SyntheticGradient` behind `h0`: there are no answers to look at",
    ),
    "symbols_unknown": (
        lambda: nd.Decoupled(
            nd.Chain({"h": layer(5, 4), "sum": nd.Layer(lambda p, x: x.sum(-1))}),
            signal=nd.SyntheticGradient(),
            like=(X, ANSWERS),
        ),
        "these outputs are no logits",
    ),
    "whole_numbers": (
        lambda: nd.Decoupled(
            nd.Chain({"h": nd.Layer(lambda p, x: x.astype(int)), "read": nd.Dense(5, 3)}),
            signal=nd.LocalLoss(),
            like=(X, ANSWERS),
        ),
        r"`h` gives int32\[10, 5\], and a signal comes back to one array of floats",
    ),
    "mix": (lambda: nd.SyntheticGradient(mix=1.5), r"mix=1.5.*in \[0, 1\]"),
    "ratio": (lambda: nd.SyntheticGradient(lr_ratio=0), "lr_ratio=0.*above 0"),
    "damping": (lambda: nd.SyntheticGradient(damping=0), "damping=0.*above 0"),
    "damped_net": (lambda: nd.SyntheticGradient(damping=0.1, net=nd.Hidden(3)), r"least squares fit a `Linear\(\)`"),
    "net": (lambda: nd.LocalLoss(net="linear"), r"net='linear'.*`Linear\(\)`"),
    "similarity": (lambda: nd.LocalLoss(similarity=float("nan")), r"similarity=nan.*in \[0, 1\]"),
    "late": (lambda: model_of(nd.Locked(), late=-1), "late=-1.*at least 0"),
    "late_inside": (
        lambda: model_of(nd.Locked(), modules={"a": nd.Decoupled(chain(), signal=nd.Locked(), late=1), "b": chain()}),
        "belong to the outermost, not to `a`",
    ),
    "steps": (lambda: nd.Delayed(0), "steps=0.*at least 1"),
    "losses_late": (lambda: model_of(nd.ForwardGradient(), late=1), "asks for the losses of the present batch"),
    "outside": (
        lambda: nd.Supervised(model_of(nd.Delayed()).loss(compare), lambda step: (X, ANSWERS), params=jnp.zeros(1)),
        "remembers earlier batches; give the data as arrays",
    ),
    "samples": (lambda: nd.ForwardGradient(samples=0), "samples=0.*at least 1"),
    "seed": (lambda: nd.FeedbackAlignment(seed=-1), "seed=-1.*at least 0"),
    "hidden": (lambda: nd.Hidden(0), "width=0.*at least 1"),
}


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.usefixtures("unchecked")
def test_errors(name: str) -> None:
    make, expected = ERRORS[name]
    with pytest.raises(ValueError, match=expected):
        make()
