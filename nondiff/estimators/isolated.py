"""A program in processes of its own, where it may hang, crash or exit: what is lost is one call.

`multiprocessing` and `concurrent.futures` are not used: the former runs the user's script again in each process, the
latter gives up all of its processes when one dies, and neither can end a call.
"""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator
from multiprocessing.connection import Pipe, wait
from typing import Any

from nondiff.estimators import child
from nondiff.estimators.failure import OpaqueError

LOOK = 1.0
"""Seconds between two looks at who is still alive."""
Outcomes = Generator[tuple[int, child.Outcome], None, None]
STARTING = 300.0
"""Seconds for a process to start and to import what the program imports."""


def ship(program: child.Program, name: str) -> bytes:
    """**Raises** `ModuleNotFoundError` without cloudpickle, `ValueError` if the program cannot be pickled."""
    try:
        import cloudpickle
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'`{name}` in a process of its own needs cloudpickle: `pip install "nondiff[ray]"`, which has it.'
        ) from error
    try:
        return cloudpickle.dumps(program)
    except Exception as error:
        raise ValueError(
            f"`{name}` cannot be sent to a process of its own ({error}). Make what cannot be pickled inside of it, or "
            "leave out `timeout` and `workers`."
        ) from error


class Pool:
    """Up to `workers` processes, started when there is work for them, and killed with the last reference to this."""

    def __init__(self, program: bytes, *, workers: int, timeout: int | float | None):
        self.program, self.workers, self.timeout = program, workers, timeout
        self._members: list[_Worker] = []
        self._owner = os.getpid()
        weakref.finalize(self, _end, self._members, self._owner)

    def outcomes(self, n: int, case: Callable[[int], Any]) -> Outcomes:
        """What becomes of `n` cases, as they are done. If it is closed before its end, calls under way are killed."""
        if self._owner != os.getpid():  # a fork, whose parent goes on with the processes
            self._members, self._owner = [], os.getpid()
            weakref.finalize(self, _end, self._members, self._owner)
        waiting = deque(range(n))
        try:
            while waiting or any(w.job is not None for w in self._members):
                self._hand_out(waiting, case)
                yield from self._collect()
        finally:
            for worker in [w for w in self._members if w.job is not None]:
                self._drop(worker)

    def _hand_out(self, waiting: deque[int], case: Callable[[int], Any]) -> None:
        idle = [w for w in self._members if w.ready and w.job is None]
        for worker in idle[: len(waiting)]:
            worker.job = job = waiting.popleft()  # before it is sent: an interrupt must not leave an answer behind
            worker.deadline = time.monotonic() + (float("inf") if self.timeout is None else self.timeout)
            try:
                worker.connection.send(case(job))
            except OSError:  # killed while it had nothing to do
                self._drop(worker)
                waiting.appendleft(job)
        starting = sum(not w.ready for w in self._members)
        for _ in range(min(self.workers - len(self._members), len(waiting) - starting)):
            self._members.append(_Worker(self.program))

    def _collect(self) -> Outcomes:
        running = [w for w in self._members if not w.ready or w.job is not None]
        if not running:
            return
        left = min(w.deadline for w in running) - time.monotonic()
        heard = wait([w.connection for w in running], min(max(left, 0.0), LOOK))
        for worker in running:
            if worker.connection in heard or worker.connection.poll():
                yield from self._take(worker)
            elif time.monotonic() > worker.deadline:
                yield from self._lost(worker, late=True)
            elif worker.process.poll() is not None and not worker.connection.poll():
                yield from self._lost(worker)  # something that it started holds its pipe open

    def _take(self, worker: "_Worker") -> Outcomes:
        try:
            data = worker.connection.recv_bytes()
        except (EOFError, OSError):
            yield from self._lost(worker)
            return
        try:
            message = pickle.loads(data)
        except Exception as error:
            after = f", which cannot be read here: {type(error).__name__}: {error}"
            message = "failure", "it answered what cannot be read", "gave an answer to", after, None
        if message[0] == "ready":
            worker.ready, worker.deadline = True, float("inf")
        elif message[0] == "unloadable":
            self._drop(worker)
            raise OpaqueError(
                "a process of its own cannot load the program. Is what it uses importable there, from the same folder?"
                f"\n{message[1]}"
            )
        elif message[0] == "interrupted":
            raise KeyboardInterrupt
        elif worker.job is not None:
            job, worker.job = worker.job, None
            yield job, message

    def _lost(self, worker: "_Worker", *, late: bool = False) -> Outcomes:
        job, ready = worker.job, worker.ready
        if not late:
            with contextlib.suppress(subprocess.TimeoutExpired):  # it may still be about to end
                worker.process.wait(LOOK)
        how = _said(self._drop(worker))
        if not ready:
            why = f"did not start within {STARTING:.0f} s" if late else f"ended as it started ({how})"
            raise OpaqueError(f"a process of its own for the program {why}.")
        if job is None:
            return
        if late:
            before = f"gave no answer within {self.timeout:g} s to"
            after = "; its process was killed. A longer `timeout`, or `failure=Instead(...)`, lets the others go on."
            yield job, ("failure", "it gave no answer in time", before, after, None)
        else:
            after = ". `failure=Instead(...)` lets the others go on."
            yield job, ("failure", f"it ended its process ({how})", f"ended its process ({how}) on", after, None)

    def _drop(self, worker: "_Worker") -> int:
        self._members.remove(worker)
        return worker.kill()


class _Worker:
    """A process, what it is doing, and until when it may: it gets ready first, then does job after job."""

    def __init__(self, program: bytes):
        self.connection, theirs = Pipe()
        ours, self.life = os.pipe()
        # A session of its own: Ctrl-C is for the process that waits, and what the program starts can be killed with it.
        self.process = subprocess.Popen(
            [sys.executable, "-P", child.__file__, str(theirs.fileno()), str(ours)],
            pass_fds=(theirs.fileno(), ours),
            stdin=subprocess.DEVNULL,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            start_new_session=True,
        )
        theirs.close()
        os.close(ours)
        self.job: int | None = None
        self.ready, self.deadline = False, time.monotonic() + STARTING
        with contextlib.suppress(OSError):  # it died: seen by whoever listens to it
            self.connection.send_bytes(pickle.dumps((sys.path, sys.argv, program)))

    def kill(self) -> int:
        """Its exit status."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.connection.close()
        os.close(self.life)
        return self.process.wait()


def _end(members: list[_Worker], owner: int) -> None:
    if owner == os.getpid():  # a fork has a copy of this, and no right to end them
        while members:
            members.pop().kill()


def _said(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-status).name
    return f"signal {-status}"
