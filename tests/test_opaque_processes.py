"""`Opaque` with a time limit, or with workers: what a program does to its process harms one call."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import nondiff
from nondiff import Instead, Opaque, OpaqueError
from nondiff.core.failures import last_failure

INT = jax.ShapeDtypeStruct((), jnp.int32)
pytestmark = pytest.mark.usefixtures("compiled_quickly")
needs_proc = pytest.mark.skipif(not pathlib.Path("/proc/self/stat").exists(), reason="looks at processes in /proc")


def asked(program: Opaque, x) -> jax.Array:
    """What the program answers, or the error it makes."""
    try:
        return program(jnp.asarray(x))
    except (jax.errors.JaxRuntimeError, ValueError):  # a compiled call that ran before raises the latter
        raise last_failure() from None


def alive(pid: int) -> bool:
    """A process that has ended and waits for its parent is not."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def gone(pids: list[int]) -> bool:
    """Within ten seconds."""
    return any(not any(map(alive, pids)) or time.sleep(0.05) for _ in range(200))


def reckless():
    """Every digit from 1 on does another harm. Defined in here, so that it is sent by value."""

    def program(digits: np.ndarray):
        what = int(digits[0])
        if what == 1:
            raise KeyError("no such symbol")
        while what == 2:
            pass
        if what == 3:
            time.sleep(1_000)
        if what == 4:
            os._exit(3)
        if what == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        if what == 6:
            sys.exit(4)
        if what == 7:  # for ages, and in C, where no other thread of Python gets a turn
            re.match(r"(a+)+$", "a" * 50 + "b")
        answers = {8: float("nan"), 9: "text", 10: np.zeros(2), 11: threading.Lock(), 12: lambda: 0}
        digits[:] = 0
        return answers.get(what, float(what))

    return program


def test_whatever_a_call_does_the_others_go_on(caplog) -> None:
    program = Opaque(reckless(), timeout=1.5, workers=2, failure=Instead(-1))
    digits = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 1, 14])
    x = jnp.stack([digits, digits], 1)
    for _ in range(2):
        np.testing.assert_array_equal(jax.jit(program)(x), [0, *[-1] * 12, 13, -1, 14])
        assert (program.failures, program.distinct_calls) == (12, 15)
    assert program.requests == 32
    np.testing.assert_array_equal(x[:, 0], digits)  # though the program writes into its input
    said = "\n".join(record.getMessage() for record in caplog.records)
    for text in (
        r"raised on the input \[1 1\]:\nTraceback(.*\n)*KeyError: 'no such symbol'",
        r"gave no answer within 1.5 s to \[[237] [237]\]; its process was killed. A longer `timeout`",
        r"ended its process \(exit status 3\) on \[4 4\]",
        r"ended its process \(SIGKILL\) on \[5 5\]",
        r"SystemExit: 4",
        r"answered nan to \[8 8\]",
        r"answered .* to \[9 9\]; promised was float32\[\]|answered float64\[2\] to \[10 10\]",
        r"answered a `(lock|function)` to \[1[12] 1[12]\], which cannot be sent back from its process",
    ):
        assert re.search(text, said), text
    assert said.count("gave no answer") == 1  # once for each kind


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (1, r"`Opaque\(program\)` raised on the input \[1\]:\n(.*\n)*.*KeyError: 'no such symbol'"),
        (2, r"`Opaque\(program\)` gave no answer within 0.5 s to \[2\]; its process was killed"),
        (4, r"`Opaque\(program\)` ended its process \(exit status 3\) on \[4\]"),
        (9, r"`Opaque\(program\)` answered <U4\[\] to \[9\]; promised was float32\[\]"),
    ],
)
def test_by_default_a_failed_call_is_an_error(what: int, message: str) -> None:
    program = Opaque(reckless(), timeout=0.5)
    with pytest.raises(OpaqueError, match=message):
        asked(program, [what])
    assert program.failures == program.distinct_calls == 1
    assert asked(program, [13]) == 13.0  # in a new process


@needs_proc
def test_a_failure_gives_up_the_calls_under_way(tmp_path: pathlib.Path) -> None:
    folder = str(tmp_path)

    def program(digits: np.ndarray) -> float:
        pathlib.Path(folder, str(os.getpid())).touch()
        if digits[0] == 0:
            time.sleep(1_000)
        while len(os.listdir(folder)) < 2:
            time.sleep(0.01)
        raise ValueError("no")

    both = Opaque(program, workers=2)
    with pytest.raises(OpaqueError, match="ValueError: no"):
        asked(both, [[0], [1]])
    sleeper, other = sorted(map(int, os.listdir(folder)), key=alive)
    assert gone([sleeper]) and alive(other)


def test_calls_run_at_the_same_time(tmp_path: pathlib.Path) -> None:
    """Each of three waits until all of them are there."""
    folder = str(tmp_path)

    def meet(digits: np.ndarray) -> float:
        pathlib.Path(folder, str(digits[0])).touch()
        while len(os.listdir(folder)) < 3:
            time.sleep(0.01)
        return float(os.getpid())

    pids = asked(Opaque(meet, workers=3, timeout=60), [[1], [2], [3]])
    assert len(set(pids.tolist())) == 3 and os.getpid() not in pids.tolist()


@needs_proc
def test_what_a_call_has_started_is_killed_with_it(tmp_path: pathlib.Path) -> None:
    folder = str(tmp_path)

    def solver(digits: np.ndarray) -> float:
        started = subprocess.Popen(["sleep", "1000"])
        pathlib.Path(folder, str(started.pid)).touch()
        return float(started.wait())

    program = Opaque(solver, timeout=1.5, failure=Instead(-1))
    assert asked(program, [1]) == -1
    (pid,) = map(int, os.listdir(folder))
    assert gone([pid])


def test_one_process_answers_call_after_call_until_it_dies() -> None:
    def who(digits: np.ndarray) -> int:
        if digits[0] == 0:
            os._exit(0)
        return os.getpid()

    program = Opaque(who, INT, workers=1, failure=Instead(-1))
    pids = asked(program, [[k] for k in (1, 2, 3)])
    assert len(set(pids.tolist())) == 1
    os.kill(int(pids[0]), signal.SIGKILL)  # while it has nothing to do: no call is lost
    assert gone([int(pids[0])])
    again = asked(program, [[4], [5]])
    assert again[0] == again[1] != pids[0] and program.failures == 0
    assert asked(program, [0]) == -1 and program.failures == 1


def test_every_request_of_what_is_not_deterministic_is_a_call() -> None:
    def draw(x: np.ndarray) -> float:
        return float(np.random.default_rng().random())

    program = Opaque(draw, workers=2, deterministic=False)
    assert len(set(jax.jit(program)(jnp.zeros((20, 1))).tolist())) == 20
    assert program.requests == program.distinct_calls == 20


def test_what_cannot_be_sent_is_named_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    lock = threading.Lock()
    with pytest.raises(ValueError, match=r"`Opaque\(<lambda>\)` cannot be sent to a process of its own \(.*lock"):
        jax.jit(Opaque(lambda x: lock.locked(), timeout=1.0))(jnp.zeros(1))
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"`Opaque\(<lambda>\)`.*needs cloudpickle: `pip install \"nondiff\[ray\]\"`"
    ):
        Opaque(lambda x: 1.0, timeout=1.0)(jnp.zeros(1))


def test_what_cannot_be_loaded_is_an_error_and_no_failure_of_a_call() -> None:
    class Fussy:
        def __reduce__(self):
            return exec, ("raise ImportError('not on this machine')",)

    def program(x: np.ndarray, fussy=Fussy()) -> float:
        return 1.0

    fussy = Opaque(program, workers=1, failure=Instead(-1))
    with pytest.raises(OpaqueError, match=r"cannot load the program(.*\n)*ImportError: not on this machine"):
        asked(fussy, [0])
    assert fussy.failures == fussy.distinct_calls == 0


def test_an_interrupt_of_the_process_is_no_failure() -> None:
    def interrupted(symbols: np.ndarray) -> float:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1_000)
        return 0.0

    program = Opaque(interrupted, workers=1, failure=Instead(0))
    with pytest.raises(KeyboardInterrupt):
        asked(program, [0])
    assert program.failures == 0


def test_a_gradient_past_a_program_that_hangs_on_one_symbol() -> None:
    def judge(symbols: np.ndarray) -> float:
        while symbols[0] == 0:
            pass
        return 0.0

    program = Opaque(judge, timeout=1.0, failure=Instead(1))
    via = nondiff.Tabulate()
    loss = jax.value_and_grad(lambda z: nondiff.through(program, z, via=via, key=jr.key(0))[0])
    value, slope = jax.jit(loss)(jnp.zeros((1, 1, 2)))
    assert value == 1.0
    np.testing.assert_allclose(slope[0, 0], [0.5, -0.5], rtol=1e-6)  # of -log P(symbol 1)
    assert (program.failures, program.distinct_calls) == (1, 2)


SCRIPT = """
import os, pathlib, sys, time
import jax, jax.numpy as jnp
from nondiff import Opaque, Vocabulary
pathlib.Path(sys.argv[1], "begun").touch(exist_ok=True)
words = Vocabulary("ab")

class Helper:
    def length(self, text):
        return len(text)

helper = Helper()

def program(text):  # of a script that has no guard against being run again
    pathlib.Path(sys.argv[1], f"{os.getpid()}-{'jax' in sys.modules}").touch()
    if text == "bb":
        time.sleep(1000)
    return helper.length(text)

ask = Opaque(program, jax.ShapeDtypeStruct((), jnp.int32), decode=words.decode, workers=2)
assert len(os.listdir(sys.argv[1])) == 1  # nothing is started before the first call
print(jax.jit(ask)(jnp.array([[0, 0], [0, 1]])), flush=True)
"""


def begin(tmp_path: pathlib.Path, more: str) -> tuple[subprocess.Popen, list[int]]:
    """A script that has called its program; the processes in which it runs."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT + more)
    folder = tmp_path / "pids"
    folder.mkdir()
    process = subprocess.Popen(
        [sys.executable, script, folder],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(pathlib.Path(nondiff.__file__).parents[1])},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "[2 2]\n", process.communicate()[1]
    while more and not (tmp_path / "pids" / "waiting").exists():
        time.sleep(0.02)
    names = [path.name for path in folder.iterdir() if "-" in path.name]
    assert names and all(name.endswith("-False") for name in names)  # and JAX is not imported there
    return process, [int(name.split("-")[0]) for name in names]


@needs_proc
def test_processes_end_with_the_script(tmp_path: pathlib.Path) -> None:
    process, pids = begin(tmp_path, "")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "", "")
    assert gone(pids)


@needs_proc
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize(
    "more",
    [
        "time.sleep(1000)",
        "ask(jnp.array([1, 1]))",
    ],
    ids=["idle", "in_a_call"],
)
def test_no_process_outlives_a_killed_parent(sent: int, more: str, tmp_path: pathlib.Path) -> None:
    process, pids = begin(tmp_path, f"pathlib.Path(sys.argv[1], 'waiting').touch()\n{more}\n")
    assert any(map(alive, pids))
    process.send_signal(sent)
    process.communicate(timeout=60)
    assert process.returncode == -sent
    assert gone(pids)


@needs_proc
def test_no_process_outlives_a_killed_parent_though_it_never_looks(tmp_path: pathlib.Path) -> None:
    """In a loop of C nothing of Python runs, so the kernel has to do it; and what the call has started ends, too."""
    if sys.platform != "linux":
        pytest.skip("where the kernel can signal the end of a pipe")
    code = """
import os, pathlib, re, subprocess, sys
import jax.numpy as jnp
from nondiff import Opaque
def program(x):
    started = subprocess.Popen(["sleep", "1000"])
    print(os.getpid(), started.pid, flush=True)
    re.match(r"(a+)+$", "a" * 50 + "b")
    return 1.0
Opaque(program, workers=1)(jnp.zeros(1))
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pids = [int(word) for word in process.stdout.readline().split()]
    assert len(pids) == 2 and all(map(alive, pids))
    process.kill()
    process.communicate()
    assert gone(pids)


@needs_proc
def test_ctrl_c_ends_a_run_and_its_processes(tmp_path: pathlib.Path) -> None:
    """A first one waits for the step, which waits for its program; a second one does not."""
    code = """
import os, time, jax, jax.numpy as jnp, nondiff, optax
def program(symbols):
    print(os.getpid(), flush=True)
    time.sleep(1000)
program = nondiff.Opaque(program, workers=1)
def loss(logits, batch, key):
    return nondiff.through(program, logits + 0 * batch[:, None, None], via=nondiff.ScoreFunction(2), key=key)
problem = nondiff.Supervised(loss, jnp.arange(4.0), params=jnp.zeros((1, 1, 2)), batch_size=2)
try:
    nondiff.fit(problem, nondiff.Backprop(optax.sgd(0.5)), steps=9, key=jax.random.key(0))
except KeyboardInterrupt as error:
    print("interrupted at step", int(error.state.step), "with", program.failures, "failures")
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None and alive(pid)
    os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert out == "interrupted at step 0 with 0 failures\n" and process.returncode == 0
    assert gone([pid])
