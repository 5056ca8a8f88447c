"""Modules trained at the same time: the same bits at every place, whatever happens to them."""

import functools
import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax
import pytest
from test_decoupled import CASES, LATE, chain, compare, layer, model_of
from tiers import slow_but

import nondiff as nd
from nondiff.core.module import Message
from nondiff.distributed.cluster import connect
from nondiff.launch.main import main
from nondiff.pipeline import actors, devices, places
from nondiff.pipeline.flow import Flow
from nondiff.pipeline.stage import advance
from nondiff.pipeline.together import Together
from nondiff.testing import count_compilations

pytestmark = pytest.mark.xdist_group("ray")
DATA = jr.normal(jr.key(8), (40, 5)), jr.randint(jr.key(9), (40,), 0, 3)
STEPS = 11
SIGNALS = {
    **LATE,
    "local": (nd.LocalLoss(), 0),
    "forward": (nd.SyntheticGradient(), 2),
    "seldom": (nd.SyntheticGradient(mix=0.4), 2),
    "third": (nd.SyntheticGradient(), 2),
}
MORE = {
    "forward": {"inputs": nd.SyntheticInput(net=nd.Hidden(8))},
    "third": {"sync": nd.Sync(every=3)},
    "seldom": {"inputs": nd.SyntheticInput(net=nd.Linear()), "sync": nd.Sync(every=3)},
}
"""Of the model."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    opened = connect(None)
    yield
    opened.close()


def parts(name: str) -> tuple[nd.Supervised, nd.Backprop]:
    signal, late = SIGNALS[name]
    model = model_of(signal, late=late, **MORE.get(name, {}))
    problem = nd.Supervised(model.loss(compare), DATA, params=model.init, batch_size=CASES)
    return problem, nd.Backprop(model.optimizer(optax.adam(0.01)))


def piped(name: str, place: Any = None, steps: int = STEPS, callbacks: Any = (), **kwargs: Any) -> nd.Result:
    pipeline = nd.Pipeline(*parts(name), place, **kwargs)
    return pipeline.fit(steps=steps, key=jr.key(3), log_every=4, callbacks=callbacks)


@functools.cache
def alone(name: str) -> nd.Result:
    """In one process, on one device: the reference."""
    return piped(name)


def assert_same(one: nd.Result, other: nd.Result) -> None:
    assert jtu.tree_structure(one.params) == jtu.tree_structure(other.params)
    for a, b in zip(jtu.tree_leaves(one.params), jtu.tree_leaves(other.params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert one.loss == other.loss


@pytest.mark.parametrize("name", slow_but(SIGNALS, "mixed", "seldom"))
def test_it_is_what_fit_does(name: str) -> None:
    """To rounding: there all modules are one program."""
    problem, trainer = parts(name)
    found, expected = piped(name), nd.fit(problem, trainer, steps=STEPS, key=jr.key(3), log_every=4)
    for a, b in zip(jtu.tree_leaves(found.params), jtu.tree_leaves(expected.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    if "inputs" not in MORE.get(name, {}):  # the last module has its loss from predicted inputs
        assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert (found.steps, found.evaluations) == (STEPS, 3 * STEPS)
    assert set(found.history[-1]) >= {"step", "loss", "h0/loss", "h1/gradient_norm"}


@pytest.mark.parametrize("names", slow_but(["mixed", " ".join(SIGNALS)], "mixed"))
def test_devices_have_the_same_bits(names: str, tmp_path: pathlib.Path) -> None:
    """Three virtual ones, each with one module, in a process that has them."""
    code = """
        import sys
        sys.path.insert(0, "tests")
        import jax, numpy as np
        import nondiff as nd
        import test_pipeline as t
        assert len(jax.devices()) == 3
        for name in sys.argv[2].split():
            result = t.piped(name, nd.Devices(jax.devices()))
            np.savez(f"{sys.argv[1]}/{name}.npz", *jax.tree.leaves(result.params))
        session = nd.Devices(jax.devices()).open(t.given("local"))
        outs = [session.submit(0, None, None)]
        assert {d.id for x in jax.tree.leaves(outs[0].up) for d in x.devices()} == {0}
        out = session.submit(1, outs[0].up, None)
        assert {d.id for x in jax.tree.leaves(out.up) for d in x.devices()} == {1}
    """
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=3"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path), names],
        capture_output=True,
        text=True,
        env=environment,
        cwd=pathlib.Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr
    for name in names.split():
        there = np.load(tmp_path / f"{name}.npz")
        leaves = jtu.tree_leaves(alone(name).params)
        assert len(there.files) == len(leaves)
        for found, expected in zip(there.values(), leaves, strict=True):
            np.testing.assert_array_equal(found, expected)


def given(name: str) -> Any:
    return started_by(nd.Pipeline(*parts(name)))


def started_by(pipeline: nd.Pipeline) -> Any:
    return pipeline.given(pipeline.init(key=jr.key(3)))


@pytest.mark.parametrize("name", slow_but(["synthetic", "delayed", "seldom"], "seldom"))
def test_processes_have_the_same_bits(cluster: None, name: str) -> None:
    assert_same(piped(name, nd.Actors(checkpoint_every=4)), alone(name))


class Watched:
    """A session of actors in which somebody dies: `victim`, as soon as module 1 has been given `at` steps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, victim: int):
        self.sessions: list[Any] = []
        self.pids: list[set[int]] = [set(), set(), set()]
        submit, close, given = actors._Session.submit, actors._Session.close, [0]

        def submitted(session: Any, i: int, inputs: Any, message: Any) -> Any:
            import ray

            out = submit(session, i, inputs, message)
            given[0] += i == 1
            if i == 1 and given[0] == at:
                self.note(session)
                os.kill(ray.get(session._actors[victim].ready.remote()), signal.SIGKILL)
            return out

        def closed(session: Any) -> None:
            self.note(session)
            close(session)

        monkeypatch.setattr(actors._Session, "submit", submitted)
        monkeypatch.setattr(actors._Session, "close", closed)

    def note(self, session: Any) -> None:
        import ray

        for pids, actor in zip(self.pids, session._actors, strict=True):
            pids.add(ray.get(actor.ready.remote()))


@pytest.mark.parametrize(
    ("victim", "name"), slow_but([(0, "synthetic"), (1, "delayed"), (2, "feedback"), (0, "forward")], (0, "synthetic"))
)
def test_a_killed_module_starts_from_its_checkpoint_and_nobody_else_does(
    cluster: None, monkeypatch: pytest.MonkeyPatch, victim: int, name: str
) -> None:
    watched = Watched(monkeypatch, at=7, victim=victim)
    assert_same(piped(name, nd.Actors(checkpoint_every=3)), alone(name))
    assert [len(pids) for pids in watched.pids] == [1 + (i == victim) for i in range(3)]


@pytest.mark.slow
def test_a_step_that_hears_of_nobody_does_not_come_before_one_that_failed(
    cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With messages every third step: one fails to which a killed module owes a message, and the next need none."""
    watched = Watched(monkeypatch, at=10, victim=2)
    found = nd.Pipeline(*parts("third"), nd.Actors(checkpoint_every=4)).fit(steps=20, key=jr.key(3), log_every=20)
    assert_same(found, nd.Pipeline(*parts("third")).fit(steps=20, key=jr.key(3), log_every=20))
    assert [len(pids) for pids in watched.pids] == [1, 1, 2]


@pytest.mark.slow
def test_states_are_fetched_when_somebody_looks_at_them(cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched, fetch = [0], actors._Session.fetch

    def counted(session: Any, ref: Any) -> Any:
        fetched[0] += 1
        return fetch(session, ref)

    monkeypatch.setattr(actors._Session, "fetch", counted)
    seen: list[nd.Moment] = []
    piped("local", nd.Actors(checkpoint_every=2), callbacks=[seen.append])
    assert len(seen) == 3 and fetched[0] == 3  # at the end, of each module
    with pytest.raises(RuntimeError, match="gone on from step 4 to 11"):
        print(seen[0].state)
    piped("local", nd.Actors(), callbacks=[lambda moment: seen.append(moment.params)])
    assert fetched[0] == 3 + 3 * 3


@pytest.mark.slow
def test_a_slow_way(cluster: None) -> None:
    """A message is there when it has come, and changes nothing but that."""
    assert_same(piped("synthetic", nd.Actors(delay=0.01)), alone("synthetic"))
    session: Any = nd.Actors(delay=3.0).open(given("feedback"))
    up = session.submit(0, None, None).up
    due, begin = session._got(up).due, time.time()
    assert due - 3.0 <= begin and (not session.is_there(up) or time.time() >= due)
    session.rows([session.submit(1, up, None)])
    assert time.time() >= due and session.is_there(up)
    assert isinstance(session.fetch(up), Message)
    session.close()


def test_what_is_lost_with_a_machine_comes_again(cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray
    from ray.exceptions import ObjectLostError

    def lost(ref: Any) -> Any:
        raise ObjectLostError(ref.hex(), None, "")

    session = nd.Actors().open(given("local"))
    ref = session.state(0)
    session.fetch(ref)
    with monkeypatch.context() as patched, pytest.raises(places.Died):
        patched.setattr(ray, "get", lost)
        session.fetch(ref)
    session.close()


def test_what_dies_again_and_again_ends_the_run(cluster: None) -> None:
    def fatal(p: Any, x: Any) -> Any:
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return x + jax.pure_callback(_die_at, shape, jax.lax.stop_gradient(x))

    model = nd.Decoupled(
        nd.Chain({"h0": layer(5, 4), "fatal": nd.Layer(fatal), "read": nd.Dense(4, 3)}),
        signal={"h0": nd.LocalLoss(), "fatal": nd.LocalLoss()}, like=(DATA[0][:CASES], DATA[1][:CASES]),
    )  # fmt: skip
    problem = nd.Supervised(model.loss(compare), DATA, params=model.init, batch_size=CASES)
    pipeline = nd.Pipeline(problem, nd.Backprop(optax.sgd(0.1)), nd.Actors(tries=1))
    with pytest.raises(RuntimeError, match="module 1 was lost 2 times"):
        pipeline.fit(steps=4, key=jr.key(0))


def _die_at(x: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)
    return x


def test_errors_of_far_modules_are_told_and_nothing_that_was_kept_is_lost(cluster: None) -> None:
    problem, trainer = parts("local")
    pipeline = nd.Pipeline(problem, {"h0": trainer, "h1": trainer, "read": _late_nan()}, nd.Actors(checkpoint_every=2))
    with pytest.raises(nd.NonFiniteError, match="step 6: module `read` has no finite loss") as caught:
        pipeline.fit(steps=STEPS, key=jr.key(3))
    assert int(caught.value.state.step) in (2, 4, 6)


def _late_nan() -> nd.Backprop:
    """Its sixth step is not finite."""
    return nd.Backprop(optax.chain(optax.sgd(0.1), optax.scale_by_schedule(lambda n: jnp.where(n == 5, jnp.nan, 1.0))))


def normal(inputs: int, width: int) -> nd.Layer:
    """With statistics, whose derivative is another program: XLA does not see that two passes are the same."""
    dense = nd.Dense(inputs, width)

    def apply(params: Any, x: Any) -> Any:
        z = dense(params, x)
        return jax.nn.relu((z - z.mean(-1, keepdims=True)) / jnp.sqrt(z.var(-1, keepdims=True) + 1e-5))

    return nd.Layer(apply, lambda key: dense.init(key=key))


@pytest.mark.parametrize(
    ("signal", "expected"), slow_but([("local", [11, 8]), ("synthetic", [11, 9])], ("synthetic", [11, 9]))
)
def test_a_module_goes_forward_and_back_once(signal: str, expected: list[int]) -> None:
    """Products of matrices in a step of three layers: 3 forward, 2 back and 3 for parameters; 3 more of what the signal
    makes, 1 more for the gradient that is sent down.
    """
    sizes = [20, 64, 64, 64, 64, 64]
    stages = {f"h{i}": normal(*sizes[i : i + 2]) for i in range(5)}
    data = jr.normal(jr.key(0), (64, 20)), jr.randint(jr.key(1), (64,), 0, 16)
    of, late = {"local": (nd.LocalLoss(), 0), "synthetic": (nd.SyntheticGradient(), 2)}[signal]
    model = nd.Decoupled(nd.Chain({**stages, "read": nd.Dense(64, 16)}), signal={"h2": of}, like=data, late=late)
    problem = nd.Supervised(model.loss(compare), data, params=model.init)
    found = []
    for parts_, state, _ in started_by(nd.Pipeline(problem, nd.Backprop(optax.sgd(0.1)))):
        arrays, rest = eqx.partition((parts_, parts_.silence), eqx.is_array)
        step = jax.jit(lambda arrays, state, rest=rest: advance(*eqx.combine(arrays, rest), state, searches=False))
        found.append(str(step.lower(arrays, state).compile().as_text()).count(" dot("))
    assert found == expected


def test_shards_of_the_data() -> None:
    model = model_of(nd.LocalLoss())
    problem = nd.Supervised(model.loss(compare), DATA, params=model.init, batch_size=CASES, shards=2)
    trainer = nd.Backprop(optax.sgd(0.1))
    one = nd.fit(problem, trainer, steps=STEPS, key=jr.key(3))
    found = nd.Pipeline(problem, trainer).fit(steps=STEPS, key=jr.key(3))
    for a, b in zip(jtu.tree_leaves(found.params), jtu.tree_leaves(one.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_run_goes_on_with_the_messages_that_were_on_their_way(tmp_path: pathlib.Path) -> None:
    whole, part = alone("mixed"), piped("mixed", steps=5)
    pipeline = nd.Pipeline(*parts("mixed"))
    assert_same(pipeline.fit(steps=STEPS, state=part.state, log_every=4), whole)

    checkpointer = nd.Checkpointer(tmp_path / "kept", every=4)
    pipeline.fit(steps=6, key=jr.key(3), callbacks=[checkpointer], log_every=3)
    again = nd.Checkpointer(tmp_path / "kept", every=4)
    restored = again.restore(like=part.state)
    assert restored.step == 6
    assert_same(pipeline.fit(steps=STEPS, state=restored, callbacks=[again], log_every=4), whole)


@pytest.mark.slow
def test_a_run_goes_on_in_processes(cluster: None) -> None:
    part = piped("mixed", nd.Actors(), steps=5)
    pipeline = nd.Pipeline(*parts("mixed"), nd.Actors())
    assert_same(pipeline.fit(steps=STEPS, state=part.state, log_every=4), alone("mixed"))


def test_a_module_may_have_a_trainer_of_numpy_that_ends_by_itself() -> None:
    problem, trainer = parts("local")
    pipeline = nd.Pipeline(problem, {"h0": trainer, "h1": trainer, "read": nd.CMAES(0.3, tolfun=10.0, tolx=10.0)})
    part = pipeline.fit(steps=30, key=jr.key(3), log_every=10)
    assert part.steps < 30 and part.reason.startswith("module `read`: ")
    begin = pipeline.init(key=jr.key(3)).trainer["read"]
    assert [x.dtype for x in jtu.tree_leaves(part.state.trainer["read"])] == [x.dtype for x in jtu.tree_leaves(begin)]
    again = pipeline.fit(steps=part.steps + 1, state=part.state)
    assert int(again.state.step) == part.steps


def test_no_step_and_no_second_fit_compiles_again() -> None:
    pipeline = nd.Pipeline(*parts("synthetic"))
    with count_compilations() as first:
        pipeline.fit(steps=3, key=jr.key(3), log_every=3)
    with count_compilations() as second:
        pipeline.fit(steps=12, key=jr.key(3), log_every=3)
    assert first and not second


def test_ctrl_c_loses_nothing() -> None:
    def press(moment: nd.Moment) -> None:
        if moment.step == 4:
            os.kill(os.getpid(), signal.SIGINT)

    pipeline = nd.Pipeline(*parts("synthetic"))
    with pytest.raises(KeyboardInterrupt) as caught:
        pipeline.fit(steps=STEPS, key=jr.key(3), callbacks=[press], log_every=4)
    state = caught.value.state  # pyright: ignore
    assert int(state.step) == 4
    assert_same(pipeline.fit(steps=STEPS, state=state, log_every=4), alone("synthetic"))


def moved(session: Any, i: int, before: Any) -> bool:
    """Has module `i` learned anything?"""
    now = session.fetch(session.state(i)).trainer.params["stages"]
    return not all(np.array_equal(a, b) for a, b in zip(*map(jtu.tree_leaves, (now, before)), strict=True))


def test_update_unlocked() -> None:
    """A module has learned from a batch before the next one has begun with it."""
    assert nd.LocalLoss().unlocks == nd.SyntheticGradient().unlocks == "update"
    started = given("local")
    session = nd.Devices().open(started)
    for _ in range(2):  # the small classifier starts from 0, and so no gradient comes at the first step
        session.rows([session.submit(0, None, None)])
    assert moved(session, 0, started[0].state.trainer.params["stages"])
    assert int(session.fetch(session.state(1)).step) == 0


def test_backward_unlocked() -> None:
    """It hears from the outputs: it has learned from a batch before the next one has, and in a later step than that
    one is at.
    """
    assert nd.FeedbackAlignment().unlocks == nd.Delayed().unlocks == "backward"
    model = model_of(nd.FeedbackAlignment(), late=1)
    problem = nd.Supervised(model.loss(compare), DATA, params=model.init, batch_size=CASES)
    started = started_by(nd.Pipeline(problem, nd.Backprop(optax.sgd(0.1))))
    session = nd.Devices().open(started)
    first = session.submit(0, None, None)
    second = session.submit(1, first.up, None)
    last = session.submit(2, second.up, None)
    stages = [one.state.trainer.params["stages"] for one in started]
    assert [moved(session, i, stages[i]) for i in range(3)] == [False, False, True]
    session.rows([session.submit(0, None, last.error)])
    assert [moved(session, i, stages[i]) for i in range(2)] == [True, False]


def test_forward_unlocked() -> None:
    """With predicted inputs the last module has learned from a batch before the others have begun with it."""
    pipeline = nd.Pipeline(*parts("forward"))
    state = piped("forward", steps=3).state  # predictions start from 0
    started = pipeline.given(state)
    session = nd.Devices().open(started)
    for i in (2, 1):
        session.rows([session.submit(i, None, None)])
        assert moved(session, i, started[i].state.trainer.params["stages"])
    assert [int(session.fetch(session.state(i)).step) for i in range(3)] == [3, 4, 4]


def test_no_module_is_further_ahead_than_the_queue_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    given, settled, ahead = [0], [0], []
    submit, rows = devices._Session.submit, devices._Session.rows

    def submitted(session: Any, i: int, inputs: Any, message: Any) -> Any:
        given[0] += i == 0
        ahead.append(given[0] - settled[0])
        return submit(session, i, inputs, message)

    def waited(session: Any, outs: Any) -> Any:
        settled[0] += sum(not jtu.tree_leaves(out.up.content) for out in outs)  # the last module hands nothing up
        return rows(session, outs)

    monkeypatch.setattr(devices._Session, "submit", submitted)
    monkeypatch.setattr(devices._Session, "rows", waited)
    piped("local", queue=3)
    assert max(ahead) == 3


@pytest.mark.slow
def test_a_module_that_has_no_derivative_is_found_by_a_search() -> None:
    def program(which: Any, x: Any) -> Any:
        shape = jax.ShapeDtypeStruct((*x.shape[:-1], 2), x.dtype)
        return jax.pure_callback(lambda x, i: x[..., i], shape, x, which, vmap_method="sequential")

    x = DATA[0]
    answers = (x[:, 3] > 0).astype(int)
    modules = nd.Chain({"choose": nd.Layer(program, lambda key: jnp.array([1, 0])), "read": layer(2, 2)})
    model = nd.Decoupled(modules, signal={"choose": nd.LocalLoss()}, like=(x, answers))
    domain = {"stages": {"choose": nd.Categorical(5), "read": nd.Real()}, "signals": nd.Real()}
    problem = nd.Supervised(model.loss(compare), (x, answers), params=model.init, domain=domain)
    search = nd.Split(
        {"adam": nd.Backprop(optax.adam(0.1)), "search": nd.Genetic(population=6)},
        {"stages": "search", "signals": "adam"},
    )
    trainers = {"choose": search, "read": nd.Backprop(optax.adam(0.1))}
    result = nd.Pipeline(problem, trainers).fit(steps=60, key=jr.key(0))
    assert 3 in result.params["stages"]["choose"].tolist()
    assert float(jnp.mean(model(result.params, x).argmax(-1) == answers)) > 0.95


@pytest.mark.slow
def test_a_decision_in_the_last_module_has_the_same_random_numbers() -> None:
    program = nd.Opaque(lambda s: (s[..., 0] + s[..., 1]) % 2, jax.ShapeDtypeStruct((), jnp.int32))
    modules = nd.Chain(
        {
            "h": layer(5, 4),
            "logits": nd.Layer(lambda w, x: (x @ w).reshape(-1, 2, 3), jr.normal(jr.key(5), (4, 6))),
            "program": nd.Decision(program, via=nd.ScoreFunction(4)),
        }
    )
    data = DATA[0], jnp.arange(40) % 2
    model = nd.Decoupled(modules, signal={"h": nd.SyntheticGradient(conditioned=False)}, like=data, late=2)
    loss = model.loss(lambda output, answers: (output != answers).astype(jnp.float32))
    problem = nd.Supervised(loss, data, params=model.init, batch_size=CASES)
    trainer = nd.Backprop(optax.sgd(0.1))
    one = nd.fit(problem, trainer, steps=5, key=jr.key(0))
    found = nd.Pipeline(problem, trainer).fit(steps=5, key=jr.key(0))
    for a, b in zip(jtu.tree_leaves(found.params), jtu.tree_leaves(one.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_without_waiting_messages_come_when_they_come() -> None:
    """All of them have the newest that is there; with one device that is the one of the step before."""
    free = piped("synthetic", deterministic=False, steps=200)
    assert free.history[-1]["loss"] < 0.9 * free.history[0]["loss"]
    assert_same(piped("delayed", deterministic=False), alone("delayed"))  # what waits, waits
    part = piped("synthetic", deterministic=False, steps=5)
    pipeline = nd.Pipeline(*parts("synthetic"), deterministic=False)
    assert pipeline.fit(steps=9, state=part.state).steps == 9


def test_what_was_heard_of_before_a_stop_is_heard_of_after_it() -> None:
    """Where nothing was sent there is nothing to be heard of, so that it does not hide what was sent before."""
    pipeline = nd.Pipeline(*parts("third"), deterministic=False)
    state = pipeline.fit(steps=5, key=jr.key(3)).state
    session, together = nd.Devices().open(pipeline.given(state)), Together(pipeline.trainers)
    settings = {"queue": 8, "waits": False, "keep_every": None}
    flow = Flow(pipeline.problem, together, pipeline.modules, session, state, **settings)
    assert [int(message.about) for message in state.problem["h1"]["coming"][1]] == [3, -1]
    assert int(flow._lines[1][1].heard(5).about) == 3


def pipeline_of(signal: Any, trainer: Any = None, place: Any = None, **kwargs: Any) -> Any:
    late = kwargs.pop("late", 2)
    model = model_of(signal, late=late, inputs=kwargs.pop("inputs", None))
    problem = nd.Supervised(model.loss(compare), DATA, params=model.init, batch_size=CASES)
    trainer = nd.Backprop(optax.sgd(0.1)) if trainer is None else trainer
    return nd.Pipeline(problem, trainer, place, **kwargs)


def search_by_what_has_no_loss() -> Any:
    genetic = nd.OpenES(optax.sgd(0.1), sigma=0.1, population=4)
    return pipeline_of(nd.SyntheticGradient(), genetic).fit(steps=1, key=jr.key(0))


def search_of_predictions() -> Any:
    genetic = nd.OpenES(optax.sgd(0.1), sigma=0.1, population=4)
    return pipeline_of(nd.LocalLoss(), genetic, inputs=nd.SyntheticInput()).fit(steps=1, key=jr.key(0))


def opaque() -> Any:
    """A program in the place of a stage, under a trainer that asks for its gradient."""

    def program(w: Any, x: Any) -> Any:
        return jax.pure_callback(np.sign, jax.ShapeDtypeStruct(x.shape, x.dtype), w * x)

    modules = nd.Chain({"program": nd.Layer(program, jnp.ones(5)), "read": layer(5, 3)})
    model = nd.Decoupled(modules, signal=nd.LocalLoss(), like=DATA)
    problem = nd.Supervised(model.loss(compare), DATA, params=model.init)
    nd.Pipeline(problem, nd.Backprop(optax.sgd(0.1))).fit(steps=1, key=jr.key(0))


def three_arrays() -> Any:
    model = model_of(nd.LocalLoss())
    return nd.Supervised(model.loss(compare), (*DATA, DATA[0]), params=model.init)


def chain_problem() -> Any:
    modules = chain()
    return nd.Supervised(modules.loss(compare), DATA, params=lambda key: modules.init(key=key))


ERRORS = {
    "at_once": (lambda: pipeline_of(nd.SyntheticGradient(), late=0), r"would have to come within the step.*late=2"),
    "inputs_at_once": (
        lambda: pipeline_of(nd.LocalLoss(), late=0, inputs=nd.SyntheticInput()),
        "activations would have to come to module `h1` within the step.*late=2",
    ),
    "present_losses": (lambda: pipeline_of(nd.ForwardGradient(), late=0), "asks for the losses of the present batch"),
    "no_modules": (lambda: nd.Pipeline(chain_problem(), nd.Backprop(optax.sgd(0.1))), "a `Chain` is one module"),
    "opaque": (opaque, "module `program` has a part without a derivative, and `Backprop` asks for one"),
    "no_problem": (lambda: nd.Pipeline(3, nd.Backprop(optax.sgd(0.1))), "expected a `Supervised` with the loss of a"),
    "no_pair": (lambda: nd.Pipeline(three_arrays(), nd.Backprop(optax.sgd(0.1))), "expected data as a pair"),
    "no_trainer": (lambda: pipeline_of(nd.LocalLoss(), {"h0": 3}), r"has \['h0'\]; expected one for each of"),
    "trainer": (lambda: pipeline_of(nd.LocalLoss(), 3), "was given 3 where a trainer belongs"),
    "place": (lambda: pipeline_of(nd.LocalLoss(), place="ray"), r"place='ray'.*for example `Actors\(\)`"),
    "queue": (lambda: pipeline_of(nd.LocalLoss(), queue=0), "queue=0.*at least 1"),
    "few_devices": (
        lambda: pipeline_of(nd.LocalLoss(), place=nd.Devices(jax.devices()[:1])),
        "3 modules, and 1 device, of which each has one",
    ),
    "devices": (lambda: nd.Devices(["cpu:0"]), "expected devices, for example"),
    "few_cores": (lambda: pipeline_of(nd.LocalLoss(), place=_pinned(100)), "modules, and .* cores"),
    "checkpoints": (lambda: nd.Actors(checkpoint_every=0), "checkpoint_every=0.*at least 1"),
    "delay": (lambda: nd.Actors(delay=-1), "delay=-1.*at least 0"),
    "search": (search_by_what_has_no_loss, "`OpenES` searches for leaves of module `h0`.*`SyntheticGradient` has none"),
    "search_of_predictions": (search_of_predictions, "searches for the leaves that predict inputs of module `h1`"),
    "no_key": (lambda: pipeline_of(nd.LocalLoss()).fit(steps=1), "expected a key"),
    "other_state": (
        lambda: pipeline_of(nd.LocalLoss()).fit(steps=1, state=piped("delayed", steps=1).state),
        "is a state of another pipeline",
    ),
    "no_state": (lambda: pipeline_of(nd.LocalLoss()).fit(steps=1, state=3), "expected a `TrainState`"),
    "two": (lambda: pipeline_of(nd.LocalLoss()).fit(steps=1, state=3, key=jr.key(0)), "give one of the two"),
}


def _pinned(cores: int) -> nd.Actors:
    class Pinned(nd.Actors):
        def check(self, modules: int) -> None:
            super().check(modules * cores)

    return Pinned(pin=True)


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.usefixtures("unchecked")
def test_errors(name: str) -> None:
    make, expected = ERRORS[name]
    with pytest.raises(ValueError, match=expected):
        make()


@pytest.mark.slow
def test_an_experiment_may_be_a_pipeline(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run by the launcher, stopped, and resumed: as if nothing had happened."""
    small = ["--place", "here", "--signal", "synthetic", "--depth", "2", "--width", "16", "--late", "2"]
    path = pathlib.Path(__file__).parents[1] / "experiments" / "pipeline.py"

    def report() -> Any:
        return json.loads(capsys.readouterr().out.splitlines()[-1])["metrics"]

    def run(steps: int) -> Any:
        assert main(["run", str(path), *small, "--steps", str(steps), "--json"]) == 0
        return report()

    monkeypatch.chdir(tmp_path)
    whole = run(12)
    (tmp_path / "part").mkdir()
    monkeypatch.chdir(tmp_path / "part")
    run(6)
    (part,) = (tmp_path / "part" / "runs" / "pipeline").glob("2*")
    assert main(["resume", str(part), "--steps", "12", "--json"]) == 0
    assert report()["accuracy"] == whole["accuracy"]
    with pytest.raises(ValueError, match="neither an `evaluator` nor `batches`"):
        nd.Experiment(parts("local")[0], parts("local")[1], 3, place=nd.Devices(), evaluator=nd.Vmap())
