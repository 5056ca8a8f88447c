"""What once went wrong in runs without a word: each with the call that showed it."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import nondiff as nd
from nondiff.launch.main import main
from nondiff.run.files import OLD, clean, new_folder
from nondiff.run.rows import read_rows

PROBLEM = nd.BlackBox(lambda x: jnp.sum((x - 1.0) ** 2), jnp.zeros(2))
TRAINER = nd.Backprop(optax.sgd(0.1))


def start() -> nd.TrainState:
    return nd.init(PROBLEM, TRAINER, key=jr.key(0))


def run(folder: pathlib.Path, steps: int = 60, *, callbacks: Any = (), saver: Any = None, **options: Any) -> nd.Result:
    """A script that is started again."""
    saver = nd.Checkpointer(folder) if saver is None else saver
    state = saver.restore(start())
    return nd.fit(PROBLEM, TRAINER, steps=steps, state=state, callbacks=[*callbacks, saver], **options)


class Loader:
    """Numbers in order, with a position; the connection breaks once."""

    def __init__(self, broken: int | None = None):
        self.state, self.broken = {"next": 0}, broken

    def __iter__(self) -> Iterator[float]:
        return self

    def __next__(self) -> np.ndarray:
        if self.state["next"] == self.broken:
            self.broken = None
            raise ConnectionError("reset")
        self.state["next"] += 1
        return np.float32(self.state["next"] % 5)

    def get_state(self) -> dict[str, int]:
        return self.state  # not a copy

    def set_state(self, state: dict[str, int]) -> None:
        self.state = dict(state)


def test_a_loader_that_breaks_between_two_checkpoints(tmp_path: pathlib.Path) -> None:
    def fit(folder: pathlib.Path, loader: Loader) -> nd.Result:
        problem = nd.Supervised(lambda w, x, key: (w - x) ** 2, np.zeros(1), params=jnp.zeros(()))
        saver = nd.Checkpointer(folder, minutes=None)
        state = saver.restore(nd.init(problem, TRAINER, key=jr.key(0)))
        return nd.fit(problem, TRAINER, steps=40, state=state, batches=loader, callbacks=[saver], log_every=10)

    whole = fit(tmp_path / "whole", Loader())
    with pytest.raises(ConnectionError) as caught:
        fit(tmp_path / "cut", Loader(broken=17))
    assert int(caught.value.state.step) == 17 and nd.Checkpointer(tmp_path / "cut").steps() == [17]
    np.testing.assert_array_equal(fit(tmp_path / "cut", Loader()).params, whole.params)


def test_a_run_that_was_stopped_stays_stopped(tmp_path: pathlib.Path) -> None:
    stop = [nd.Target(1e-3)]
    first = run(tmp_path, stop=stop)
    assert first.steps == 20 and first.reason == "the target 0.001 was reached"
    for _ in range(2):
        again = run(tmp_path, stop=stop)
        assert (again.steps, again.reason, again.evaluations) == (20, first.reason, 0)
    assert run(tmp_path, steps=70, stop=stop).steps == 30  # more were asked for
    assert run(tmp_path, steps=70).steps == 70  # and now nothing stops it


def test_a_stop_says_why(tmp_path: pathlib.Path) -> None:
    for answer in (True, False, 1.0):
        with pytest.raises(ValueError, match=r"`fit\(stop=...\)`: one returned .*; expected why to end"):
            nd.fit(
                PROBLEM, TRAINER, steps=5, key=jr.key(0), stop=[lambda moment, answer=answer: answer, nd.Target(1.0)]
            )


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("hooks", [{"callbacks": [nd.Progress]}, {"stop": [3]}, {"metrics": nd.Target}])
def test_what_is_no_hook(hooks: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"was given .*; expected a tuple of functions of a `Moment`"):
        nd.fit(PROBLEM, TRAINER, steps=5, key=jr.key(0), **hooks)


def test_a_checkpointer_is_a_callback(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=r"`fit\(callbacks=...\)` is where a `Checkpointer` belongs"):
        nd.fit(PROBLEM, TRAINER, steps=5, key=jr.key(0), stop=[nd.Checkpointer(tmp_path)])


def test_large_integers_and_bytes_in_another_order(tmp_path: pathlib.Path) -> None:
    generator = np.random.default_rng(0)
    state = {"random": generator.bit_generator.state["state"], "big": np.array([1.0, 2.0], ">f4"), "less": -(2**70)}
    with nd.Checkpointer(tmp_path) as saver:
        saver.save(1, state)
    blank = {"random": {"state": 0, "inc": 0}, "big": np.zeros(2, ">f4"), "less": 0}
    got = nd.Checkpointer(tmp_path).restore(blank).state
    assert got["random"] == state["random"] and got["less"] == -(2**70)
    np.testing.assert_array_equal(got["big"], [1.0, 2.0])
    with nd.Checkpointer(tmp_path) as saver, pytest.raises(nd.CheckpointError, match="array of Python objects"):
        saver.save(2, {"x": np.array([object()])})
    with pytest.raises(ValueError, match="`like` holds shapes; give a state of arrays"):
        nd.Checkpointer(tmp_path).restore(
            jax.eval_shape(lambda: {"big": jnp.zeros(2)}) | {"random": blank["random"], "less": 0}
        )


class Odd(nd.AbstractCallback):
    def __call__(self, moment: nd.Moment) -> None:
        raise AssertionError("training began")

    def get_state(self) -> Any:
        return np.zeros(3)


def test_a_memory_that_cannot_be_kept_is_refused_before_training(tmp_path: pathlib.Path) -> None:
    with pytest.raises(TypeError, match=r"`get_state` of `Odd` returned array"):
        run(tmp_path, callbacks=[Odd()], log_every=1)


def test_rows_of_a_killed_run_are_not_deleted(tmp_path: pathlib.Path) -> None:
    rows = tmp_path / "rows.jsonl"
    run(tmp_path / "a", callbacks=[nd.JSONLines(rows)])
    run(tmp_path / "b", steps=10, callbacks=[nd.JSONLines(rows)])
    (aside,) = tmp_path.glob("rows.jsonl.before-*")
    assert (len(read_rows(rows)), len(read_rows(aside))) == (1, 6)


def test_the_process_may_change_its_folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)

    def leave(moment: nd.Moment) -> None:
        os.chdir(tmp_path / "other")

    saver = nd.Checkpointer("ck", every=10)
    run(tmp_path, steps=30, callbacks=[leave, nd.JSONLines("rows.jsonl")], saver=saver)
    assert saver.steps() == [10, 20, 30] and list((tmp_path / "other").iterdir()) == []
    assert len(read_rows(tmp_path / "rows.jsonl")) == 3


def test_a_folder_that_was_to_be_replaced_comes_back(tmp_path: pathlib.Path) -> None:
    with new_folder(tmp_path / "5") as aside:
        (aside / "file").write_text("old")
    (tmp_path / "5").rename(tmp_path / f"{OLD}5")  # killed between the two renames
    clean(tmp_path)
    assert (tmp_path / "5" / "file").read_text() == "old"
    with new_folder(tmp_path / "5") as aside:
        (aside / "file").write_text("new")
    assert [p.name for p in tmp_path.iterdir()] == ["5"] and (tmp_path / "5" / "file").read_text() == "new"


def test_a_saver_whose_folder_was_deleted_saves_again(tmp_path: pathlib.Path) -> None:
    saver = nd.Checkpointer(tmp_path / "ck")
    for seed in (0, 1):
        nd.fit(PROBLEM, TRAINER, steps=20, key=jr.key(seed), callbacks=[saver])
        assert saver.steps() == [20]
        shutil.rmtree(tmp_path / "ck")


def test_a_patience_used_twice_begins_anew() -> None:
    patience = nd.Patience(20)
    patience.set_state({"metric": "loss", "best": -1.0, "since": 0, "found": True})
    with pytest.raises(ValueError, match="watched 'loss' when the checkpoint was written"):
        nd.Patience(20, "best").set_state(patience.get_state())


def test_a_failed_save_is_heard_at_the_next_pause(tmp_path: pathlib.Path) -> None:
    saver = nd.Checkpointer(tmp_path / "ck", every=1000, minutes=None)

    def rest(moment: nd.Moment) -> None:
        if moment.step == 1000:
            (tmp_path / "ck").rename(tmp_path / "gone")
        if moment.step == 1001 and saver._thread is not None:
            saver._thread.join()

    with pytest.raises(OSError, match="the checkpoint of step 1000 was not saved") as caught:
        run(tmp_path, steps=5000, callbacks=[rest], saver=saver, log_every=1)
    assert int(caught.value.state.step) in (1001, 1002)


def test_the_same_process_is_named_so(tmp_path: pathlib.Path) -> None:
    with nd.Checkpointer(tmp_path) as first:
        first.save(1, start())
        with pytest.raises(nd.FolderInUse, match=rf"by process {os.getpid()} .* That is this process: close what"):
            nd.Checkpointer(tmp_path).save(2, start())


def test_a_lock_is_given_back_when_a_save_at_the_end_fails(tmp_path: pathlib.Path) -> None:
    class Interrupted(nd.AbstractCallback):
        def __call__(self, moment: nd.Moment) -> None:
            pass

        def end(self, moment: nd.Moment, error: BaseException | None) -> None:
            raise KeyboardInterrupt

    for callbacks in ([Interrupted()], [nd.Progress(), Interrupted()]):
        with pytest.raises(KeyboardInterrupt) as caught:
            run(tmp_path, callbacks=callbacks)
        assert int(caught.value.state.step) == 60
    assert run(tmp_path).steps == 60


def test_a_callback_of_no_steps_is_refused() -> None:
    class Never(nd.AbstractCallback):
        every = 0

        def __call__(self, moment: nd.Moment) -> None:
            pass

    with pytest.raises(ValueError, match=r"`Never\(every=0\)`: expected a whole number of at least 1"):
        nd.fit(PROBLEM, TRAINER, steps=5, key=jr.key(0), callbacks=[Never()])


def test_more_steps_were_done_than_are_asked_for(tmp_path: pathlib.Path) -> None:
    state = nd.fit(PROBLEM, TRAINER, steps=20, key=jr.key(0)).state
    result = nd.fit(PROBLEM, TRAINER, steps=10, state=state)
    assert (result.steps, result.reason) == (20, "all 10 steps done before: the state is at step 20")


WAITING = """
import jax, numpy as np, nondiff, optax, sys, time
problem = nondiff.BlackBox(lambda x: (time.sleep(0.01), float(np.sum(x ** 2)))[1], np.ones(2))
trainer = nondiff.OpenES(optax.sgd(0.1), sigma=0.1, population=4)
callbacks = [lambda moment: print(moment.step, flush=True), nondiff.Checkpointer(sys.argv[1])]
nondiff.fit(problem, trainer, steps=60, key=jax.random.key(0), log_every=1, callbacks=callbacks)
print("done", flush=True)
"""


def test_a_terminal_that_closes_and_a_signal_that_is_ignored(tmp_path: pathlib.Path) -> None:
    for number, ignore, code, last in ((signal.SIGHUP, False, 129, None), (signal.SIGINT, True, 0, "done")):
        shell = ["sh", "-c", 'trap "" INT; exec "$@"', "sh"] if ignore else []  # as `nohup` does for SIGHUP
        command = [*shell, sys.executable, "-c", WAITING, str(tmp_path / str(int(number)))]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None and process.stdout.readline() == "1\n"
            process.send_signal(number)
            lines = ["1", *process.stdout.read().splitlines()]  # the signal may stop the run before its second step
            assert process.wait(60) == code
        (step,) = nd.Checkpointer(tmp_path / str(int(number))).steps()
        assert str(step) == (lines[-1] if last is None else lines[-2]) and (last is None or lines[-1] == last)


EXPERIMENT = """
import dataclasses, jax.numpy as jnp, nondiff, optax

@dataclasses.dataclass(frozen=True)
class Config:
    broken: str = ""

def make(config: Config) -> nondiff.Experiment:
    problem = nondiff.BlackBox(lambda x: jnp.sum((x - 1.0) ** 2), jnp.zeros(2))
    held_out = nondiff.HeldOut(problem, every=25)

    def data(moment):
        if config.broken == "data" and moment.step >= 100:
            raise TimeoutError("the data server hung up")

    def report(result):
        assert not (config.broken == "report" and result.steps == 20)
        return {"x": result.params[0]}

    stop = [nondiff.Target(1e-3)] if config.broken == "report" else []
    return nondiff.Experiment(problem, nondiff.Backprop(optax.sgd(0.1)), 250, metrics=[held_out], callbacks=[data],
                              stop=stop, report=report, log_every=10 if stop else None)
"""


@pytest.fixture
def launch(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Any:
    (tmp_path / "toy.py").write_text(EXPERIMENT)
    monkeypatch.chdir(tmp_path)

    def launch(*arguments: str) -> tuple[int, str, str]:
        return main(arguments), *capsys.readouterr()

    return launch


def test_rows_come_where_a_metric_needs_them(launch: Any, tmp_path: pathlib.Path) -> None:
    code, _, err = launch("run", "toy.py", "--run-dir", "a b")
    assert code == 0, err
    rows = read_rows(tmp_path / "a b" / "metrics.jsonl")
    assert [row["step"] for row in rows if "held_out/loss" in row] == [*range(25, 251, 25)]


def test_an_error_of_the_user_is_shown_whole_with_the_way_on(launch: Any) -> None:
    code, _, err = launch("run", "toy.py", "--run-dir", "a b", "--broken", "data")
    assert code == 1 and "TimeoutError: the data server hung up" in err and "Traceback" in err
    assert err.splitlines()[-1] == "To go on: nondiff resume 'a b'"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--checkpoint-minutes", "nan"], "`Checkpointer(minutes=nan)`"),
        (["--checkpoint-every", "0"], "`Checkpointer(every=0)`"),
        (["--run-dir", "toy.py"], "`--run-dir toy.py` is a file"),
    ],
)
def test_flags_that_do_not_fit_leave_no_folder(
    launch: Any, tmp_path: pathlib.Path, flags: list[str], said: str
) -> None:
    code, out, err = launch("run", "toy.py", *flags)
    assert code in (1, 2) and out == "" and said in err and "Traceback" not in err
    assert not list(tmp_path.glob("runs/*/*"))
