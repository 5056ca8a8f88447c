"""One call of a user's program; and, run as a script, a process that does nothing else.

That process imports no more than the program needs, JAX not unless the program does. So this file imports nothing of
nondiff, and is run by its path.
"""

import importlib.util
import os
import pickle
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any

Program = tuple[Callable[..., Any] | None, Callable[..., Any], Callable[..., Any] | None]
"""`decode`, the function itself, `encode`."""
Outcome = tuple[Any, ...]
"""`("answer", value)`, or `("failure", kind, before, after, error)`: the words before and after the input."""


def call(program: Program, case: Sequence[Any]) -> Outcome:
    """What becomes of one case. `KeyboardInterrupt` is none of the program's failures."""
    decode, fn, encode = program
    part = "`decode`"
    try:
        args = tuple(case) if decode is None else decode(*case)
        part = "itself"
        value = fn(*args) if isinstance(args, tuple) else fn(args)
        part = "`encode`"
        return "answer", value if encode is None else encode(value)
    except (Exception, SystemExit) as error:
        frames = error.__traceback__.tb_next if error.__traceback__ is not None else None
        text = "".join(traceback.format_exception(type(error), error, frames))
        name = type(error).__name__
        if part == "itself":
            return "failure", f"it raised {name}", "raised on the input", f":\n{text}", error
        return "failure", f"its {part} raised {name}", f"has a {part} that raised on the input", f":\n{text}", error


def serve(connection: Any) -> None:
    """Calls for whoever is at the other end, one after another."""
    sys.path[:], sys.argv[:], program = pickle.loads(connection.recv_bytes())
    try:
        _load_codec()
        program = pickle.loads(program)
    except BaseException:
        connection.send(("unloadable", traceback.format_exc()))
        return
    connection.send(("ready",))
    while True:
        try:
            case = connection.recv()
        except (EOFError, ConnectionError, KeyboardInterrupt):
            return
        try:
            connection.send_bytes(_packed(call(program, case)))
        except KeyboardInterrupt:
            connection.send(("interrupted",))


def _load_codec() -> None:
    """`Vocabulary` without its package, which would bring all of JAX along."""
    name, path = "nondiff.estimators.codec", os.path.join(os.path.dirname(__file__), "codec.py")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is not None and spec.loader is not None:
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])


def _packed(outcome: Outcome) -> bytes:
    if outcome[0] == "failure":
        outcome = (*outcome[:4], None)  # its error is in the text
    try:
        return pickle.dumps(outcome)
    except Exception as error:
        kind = type(outcome[1]).__name__
        after = f", which cannot be sent back from its process: {error}"
        return pickle.dumps(("failure", "it answered what cannot be sent", f"answered a `{kind}` to", after, None))


def _end_with(life: int) -> None:
    """All of this process' group is killed when the other end of this pipe is closed, by whatever means."""
    try:
        import fcntl

        # By the kernel, where it can: a program in a loop of C that never lets go may keep the thread below waiting.
        fcntl.fcntl(life, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(life, fcntl.F_SETSIG, signal.SIGKILL)  # Linux
        fcntl.fcntl(life, fcntl.F_SETFL, fcntl.fcntl(life, fcntl.F_GETFL) | os.O_ASYNC)
    except (ImportError, AttributeError, OSError):
        pass
    threading.Thread(target=_wait_for_the_end, args=(life, os.getppid()), daemon=True).start()


def _wait_for_the_end(life: int, parent: int) -> None:
    while os.getppid() == parent and not select.select([life], [], [], 1.0)[0]:  # a fork may hold the pipe open
        pass
    os.killpg(0, signal.SIGKILL)


def main(fd: int, life: int) -> None:
    from multiprocessing.connection import Connection

    for descriptor in (fd, life):
        os.set_inheritable(descriptor, False)
    _end_with(life)
    serve(Connection(fd))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
