"""Ctrl-C, SIGTERM and SIGHUP for the command: the first asks, the second does not."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

from nondiff.run.signals import SIGNALS, as_exception, heard


@contextlib.contextmanager
def second_signal_exits() -> Iterator[None]:
    """SIGTERM and SIGHUP raise `SystemExit`, as Ctrl-C raises `KeyboardInterrupt`; a second signal ends the process.

    Python's own handlers wait for a compiled call to return, which may take minutes. The interpreter also writes each
    signal into a pipe at once, where a thread reads it. In another thread than the main one this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    others = [number for number in SIGNALS if number != signal.SIGINT and heard(number)]
    old = {number: signal.signal(number, _terminate) for number in others}
    old_pipe = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(old_pipe)
        for number, handler in old.items():
            signal.signal(number, handler)
        os.close(writer)  # ends the thread


def _terminate(number: int, frame: Any) -> None:
    del frame
    raise as_exception(number, "stopped")


def _watch(reader: int) -> None:
    seen = 0
    while data := os.read(reader, 1):
        if data[0] not in SIGNALS:
            continue
        seen += 1
        if seen > 1:
            os._exit(128 + data[0])
        print("\nstopping; a second signal stops at once", file=sys.stderr, flush=True)
    os.close(reader)
