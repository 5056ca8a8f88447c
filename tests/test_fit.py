"""The driver: what it returns, what it refuses, what survives a failure, and that a run can be cut anywhere."""

import signal
import subprocess
import sys
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax
import pytest

import nondiff as nd

X = jnp.linspace(-1.0, 1.0, 12)
DESCENT = nd.Backprop(optax.adam(0.1))
ES = nd.OpenES(optax.adam(0.1), sigma=0.1, population=6)


def line(w: jax.Array, batch: Any, key: jax.Array) -> jax.Array:
    """A noisy line: the loss depends on the batch and on the key."""
    x, y = batch
    return (w[0] * x + w[1] - y + 0.01 * jr.normal(key, x.shape)) ** 2


PROBLEM = nd.Supervised(line, (X, 3.0 * X - 1.0), params=jnp.zeros(2), batch_size=5)


def arrays(tree: Any) -> list[np.ndarray]:
    """Every array of a tree as NumPy, random keys as their data."""
    leaves = [x for x in jtu.tree_leaves(tree) if eqx.is_array(x)]
    return [np.asarray(jr.key_data(x) if nd.core.tree.is_key(x) else x) for x in leaves]


def same(a: Any, b: Any) -> bool:
    return all(np.array_equal(x, y, equal_nan=True) for x, y in zip(arrays(a), arrays(b), strict=True))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"`fit\(key=None\)`: expected a key, `jax.random.key\(seed\)`, or a `state`"),
        ({"key": 0}, r"`fit\(key=0\)`: expected a key"),
        ({"key": jr.split(jr.key(0), 2)}, r"expected a key, `jax.random.key\(seed\)`"),
        ({"key": jr.key(0), "state": "both"}, r"`fit\(key=..., state=...\)`: a state brings its own key along"),
        ({"key": jr.key(0), "steps": -1}, r"`fit\(steps=-1\)`: expected a whole number of at least 0"),
        ({"key": jr.key(0), "steps": 1.5}, r"`fit\(steps=1.5\)`"),
        ({"key": jr.key(0), "log_every": 0}, r"`fit\(log_every=0\)`"),
        (
            {"key": jr.key(0), "batches": 3},
            r"`fit\(batches=3\)`: expected a function of the step number, or an iterable",
        ),
    ],
)
def test_what_it_refuses(options: dict[str, Any], message: str) -> None:
    if options.get("state") == "both":
        options = {**options, "state": nd.init(PROBLEM, DESCENT, key=jr.key(0))}
    with pytest.raises(ValueError, match=message):
        nd.fit(PROBLEM, DESCENT, **{"steps": 1, **options})


def test_rows_and_callbacks_come_at_the_right_steps() -> None:
    called = []
    result = nd.fit(
        PROBLEM,
        ES,
        steps=10,
        key=jr.key(0),
        log_every=4,
        callbacks=[lambda moment: called.append((moment.step, moment.row))],
    )
    assert [row["step"] for row in result.history] == [4, 8, 10] == [step for step, _ in called]
    assert [row for _, row in called] == result.history
    assert result.steps == int(result.state.step) == 10
    assert result.evaluations == 60 and result.reason == "all 10 steps done"
    assert result.loss == result.history[-1]["loss"]
    row = result.history[-1]
    assert row["evaluations"] == 6 and row["failed"] == 0 and row["best"] <= row["loss"]
    assert set(row) == {"step", "loss", "best", "failed", "evaluations", "gradient_norm", "sigma"}


def test_no_steps() -> None:
    result = nd.fit(PROBLEM, ES, steps=0, key=jr.key(0))
    assert np.isnan(result.loss) and result.history == [] and result.steps == result.evaluations == 0
    np.testing.assert_array_equal(result.params, [0.0, 0.0])
    done = nd.fit(PROBLEM, ES, steps=10, key=jr.key(0), log_every=4)
    again = nd.fit(PROBLEM, ES, steps=10, state=done.state, log_every=4)
    assert again.evaluations == 0 and again.steps == 10 and same(again.state, done.state)


def test_stop_ends_the_run_and_says_why() -> None:
    def enough(moment: nd.Moment) -> str | None:
        return f"enough after {moment.step}" if moment.row["step"] >= 8 else None

    result = nd.fit(PROBLEM, ES, steps=100, key=jr.key(0), log_every=4, stop=[enough])
    assert result.reason == "enough after 8" and result.steps == 8 and result.evaluations == 48


def test_metrics_are_means_over_the_evaluations_that_did_not_fail() -> None:
    values = np.array([4.0, np.nan, 1.0, np.inf, 7.0, 2.0], np.float32)
    problem = nd.BlackBox(lambda x: values.copy()[: len(x)], np.zeros(1), vectorized=True)
    row = nd.fit(problem, ES, steps=1, key=jr.key(0)).history[0]
    assert (row["loss"], row["best"], row["failed"], row["evaluations"]) == (3.5, 1.0, 2.0, 6.0)


def test_fit_is_the_python_loop_bit_for_bit() -> None:
    for trainer, evaluator in ((DESCENT, nd.Vmap()), (ES, nd.Vmap(chunk=4))):
        result = nd.fit(PROBLEM, trainer, steps=13, key=jr.key(3), evaluator=evaluator)
        state, one = nd.init(PROBLEM, trainer, key=jr.key(3)), eqx.filter_jit(nd.step)
        for _ in range(13):
            state, metrics = one(PROBLEM, trainer, evaluator, state)
        assert same(state, result.state)
        assert float(metrics["loss"]) == result.loss


def test_fifty_steps_are_twenty_and_thirty_from_a_file(tmp_path) -> None:
    whole = nd.fit(PROBLEM, ES, steps=50, key=jr.key(0))
    part = nd.fit(PROBLEM, ES, steps=20, key=jr.key(0)).state
    np.savez(tmp_path / "state.npz", *arrays(part))
    like = nd.init(PROBLEM, ES, key=jr.key(99))
    leaves, treedef = jtu.tree_flatten(like)
    with np.load(tmp_path / "state.npz") as file:
        saved = [jnp.asarray(file[f"arr_{i}"]) for i in range(len(leaves))]
    restored = [
        jr.wrap_key_data(new) if nd.core.tree.is_key(old) else new for old, new in zip(leaves, saved, strict=True)
    ]
    resumed = nd.fit(PROBLEM, ES, steps=50, state=treedef.unflatten(restored))
    assert same(resumed.state, whole.state) and resumed.loss == whole.loss
    assert (resumed.steps, resumed.evaluations) == (50, 30 * 6)


def test_where_a_run_is_logged_does_not_change_its_bits() -> None:
    runs = [nd.fit(PROBLEM, DESCENT, steps=20, key=jr.key(0), log_every=n).state for n in (1, 7, 100)]
    assert same(runs[0], runs[1]) and same(runs[0], runs[2])


def test_the_given_state_stays_usable() -> None:
    state = nd.init(PROBLEM, ES, key=jr.key(0))
    before = arrays(state)
    first, second = (nd.fit(PROBLEM, ES, steps=10, state=state) for _ in range(2))
    assert same(first.state, second.state) and not any(x.is_deleted() for x in jtu.tree_leaves(state))
    assert all(np.array_equal(a, b) for a, b in zip(before, arrays(state), strict=True))
    more = nd.fit(PROBLEM, ES, steps=20, state=first.state)
    assert np.isfinite(first.params).all() and more.steps == 20


@pytest.mark.slow
def test_seeds_may_be_mapped() -> None:
    for trainer in (DESCENT, ES):
        keys = jr.split(jr.key(0), 8)
        states = jax.vmap(lambda k: nd.init(PROBLEM, trainer, key=k))(keys)
        one = jax.jit(jax.vmap(lambda s: nd.step(PROBLEM, trainer, nd.Vmap(), s)))
        for _ in range(5):
            states, _ = one(states)
        for i in range(8):
            alone = nd.fit(PROBLEM, trainer, steps=5, key=keys[i]).state
            for a, b in zip(arrays(jtu.tree_map(lambda x: x[i], states)), arrays(alone), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


class InOrder(nd.AbstractProblem):
    """The k-th step meets the k-th number; where it is negative, every evaluation fails."""

    numbers: jax.Array
    traceable = True

    def init(self, *, key):
        return jnp.zeros(2)

    def init_state(self, *, key):
        return jnp.zeros((), jnp.int32)

    def batch(self, state, *, key):
        return self.numbers[state]

    def absorb(self, state, aux, batch):
        return state + 1

    def loss(self, params, batch, *, key):
        return jnp.where(batch < 0, jnp.nan, jnp.sum((params - batch) ** 2)), None


@pytest.mark.parametrize("trainer", [DESCENT, ES], ids=["backprop", "open_es"])
@pytest.mark.parametrize("outside", [False, True], ids=["own_batches", "batches_from_outside"])
def test_when_everything_fails_the_last_good_state_is_kept(trainer: nd.AbstractTrainer, outside: bool) -> None:
    numbers = jnp.array([1.0, 2.0, 1.0, 3.0, 2.0, -1.0, 5.0, 5.0, 5.0, 5.0])
    problem = InOrder(numbers)
    batches = (lambda step: numbers[step]) if outside else None
    with pytest.raises(
        nd.NonFiniteError, match=r"step 6: all evaluations of a query failed \(\d of the step's"
    ) as caught:
        nd.fit(problem, trainer, steps=10, key=jr.key(0), batches=batches)
    good = nd.fit(problem, trainer, steps=5, key=jr.key(0), batches=batches).state
    assert caught.value.step == 6
    assert same(caught.value.state.trainer, good.trainer)
    assert same(caught.value.state.problem, good.problem)


def test_when_everything_fails_from_the_start_the_parameters_are_the_given_ones() -> None:
    problem = nd.BlackBox(lambda x: float("nan"), np.ones(2))
    with pytest.raises(nd.NonFiniteError) as caught:
        nd.fit(problem, ES, steps=10, key=jr.key(0))
    assert caught.value.step == 1
    np.testing.assert_array_equal(ES.params(caught.value.state.trainer), [1.0, 1.0])


def test_some_failures_are_counted_and_training_goes_on() -> None:
    def cost(x: jax.Array) -> jax.Array:
        return jnp.where(x[0] > 1.0, jnp.nan, jnp.sum((x - 0.9) ** 2))

    problem = nd.BlackBox(cost, jnp.array([0.95, 3.0]))
    trainer = nd.OpenES(optax.adam(optax.cosine_decay_schedule(0.2, 100)), sigma=0.1, population=16)
    result = nd.fit(problem, trainer, steps=100, key=jr.key(0))
    assert sum(row["failed"] for row in result.history) > 0
    assert float(cost(result.params)) < 0.02


def test_a_gradient_that_is_not_finite_is_a_failure_too() -> None:
    problem = nd.BlackBox(lambda x: jnp.sum(jnp.sqrt(jnp.abs(x))), jnp.array([0.0, 1.0]))
    with pytest.raises(nd.NonFiniteError, match="have no finite loss and gradient") as caught:
        nd.fit(problem, DESCENT, steps=3, key=jr.key(0))
    np.testing.assert_array_equal(DESCENT.params(caught.value.state.trainer), [0.0, 1.0])


def test_whatever_a_callback_raises_carries_the_state() -> None:
    def callback(moment: nd.Moment) -> None:
        if moment.step == 8:
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full") as caught:
        nd.fit(PROBLEM, ES, steps=100, key=jr.key(0), log_every=4, callbacks=[callback])
    assert int(caught.value.state.step) == 8
    assert same(caught.value.state, nd.fit(PROBLEM, ES, steps=8, key=jr.key(0), log_every=4).state)


class Partly(InOrder):
    """Its second leaf has no derivative."""

    def init(self, *, key):
        return {"a": jnp.zeros(2), "b": jnp.zeros(3)}

    def loss(self, params, batch, *, key):
        return jnp.sum(params["a"] ** 2) + jnp.sum(jnp.round(params["b"])), None

    def differentiable(self, params):
        return {"a": True, "b": False}


def test_a_gradient_asked_where_there_is_none() -> None:
    plain = nd.BlackBox(lambda x: float(np.sum(x)), np.ones(2))
    with pytest.raises(ValueError, match=r"`Backprop` asks for the gradient of params, and `BlackBox` has none there"):
        nd.fit(plain, DESCENT, steps=1, key=jr.key(0))
    partly = Partly(jnp.zeros(10))
    with pytest.raises(
        ValueError, match=r"gradient of params\['b'\], and `Partly` has none there. Give these leaves to a"
    ):
        nd.fit(partly, DESCENT, steps=1, key=jr.key(0))
    split = nd.Split({"slope": DESCENT, "search": ES}, {"a": "slope", "b": "search"})
    assert nd.fit(partly, split, steps=2, key=jr.key(0)).evaluations == 14
    whole = nd.BlackBox(lambda n: jnp.abs(n - 3), 0, domain=nd.Integer(0, 9))
    with pytest.raises(ValueError, match=r"`Backprop` cannot move `params` \(int32, Integer\(lo=0, hi=9\)\)"):
        nd.fit(whole, DESCENT, steps=1, key=jr.key(0))


def test_evaluators_that_do_not_fit() -> None:
    plain = nd.BlackBox(lambda x: float(np.sum(x)), np.ones(2))
    message = (
        r"`Vmap` runs the problem under `jax.jit`, and `BlackBox` is plain Python.*Leave `evaluator` out, or use `Host"
    )
    with pytest.raises(ValueError, match=message):
        nd.fit(plain, ES, steps=1, key=jr.key(0), evaluator=nd.Vmap())
    for evaluator in (nd.Vmap, nd.Host):
        with pytest.raises(
            ValueError, match=rf"`{evaluator.__name__}\(chunk=0\)`: expected a whole number of at least 1"
        ):
            evaluator(chunk=0)
    with pytest.raises(ValueError, match=r"gradient of params, and `Supervised` has none there"):
        nd.fit(PROBLEM, DESCENT, steps=1, key=jr.key(0), evaluator=nd.Host())


class Grows(nd.AbstractTrainer):
    """Its state is longer after every step."""

    traceable = True

    def init(self, params, domain, *, key):
        return {"x": params, "log": jnp.zeros(1)}

    def ask(self, state, *, key):
        population = nd.Population(state["x"], jnp.zeros(1), nd.Centre())
        return nd.Query(population, jtu.tree_map(lambda _: None, state["x"]), jr.split(key, 1))

    def tell(self, state, query, answer, *, key):
        return {"x": state["x"], "log": jnp.concatenate([state["log"], answer.loss])}, {}

    def params(self, state):
        return state["x"]


def test_a_trainer_whose_state_grows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`Grows.tell` changes the shape of its state") as caught:
        nd.fit(PROBLEM, Grows(), steps=1, key=jr.key(0))
    assert "state['log']: float32[1] -> float32[2]" in str(caught.value)
    assert "state['x']" not in str(caught.value)


def test_data_are_not_constants_of_the_compiled_step() -> None:
    def loss(w: jax.Array, batch: jax.Array, key: jax.Array) -> jax.Array:
        return (batch @ w) ** 2

    problem = nd.Supervised(loss, jr.normal(jr.key(0), (1024, 256)), params=jnp.ones(256), batch_size=8)
    state = nd.init(problem, DESCENT, key=jr.key(0))
    parts, static = eqx.partition((problem, DESCENT, nd.Vmap(), state), eqx.is_array)
    text = jax.jit(lambda parts: nd.step(*eqx.combine(parts, static))[0].trainer.params).lower(parts).as_text()
    assert 1_000 < len(text) < 200_000  # the data would be a megabyte, and more as text


SCRIPT = """
import jax, numpy as np, nondiff, optax
problem = nondiff.BlackBox(lambda x: float(np.sum(x ** 2)), np.ones(2))
trainer = nondiff.OpenES(optax.sgd(0.1), sigma=0.1, population=4)
def callback(moment):
    if moment.step == 3:
        print("running", flush=True)
try:
    nondiff.fit(problem, trainer, steps=10**7, key=jax.random.key(0), log_every=1, callbacks=[callback])
except KeyboardInterrupt as error:
    x = np.asarray(trainer.params(error.state.trainer))
    print("stopped", int(error.state.step) >= 3, bool(np.isfinite(x).all()), bool((x != 1).all()), flush=True)
"""


@pytest.mark.timeout(120)
def test_ctrl_c_gives_the_state_back() -> None:
    with subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait(timeout=60) == 0
    assert rest == "stopped True True True\n"
