"""Ctrl-C, SIGTERM and SIGHUP between two steps, so that no state is lost to them."""

import signal
import threading
from collections.abc import Callable
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C, a scheduler, a terminal that closes


class delayed_signals:
    """The first signal is noted and waits until somebody asks, `raise_noted`; a second one does not wait.

    Only the main thread of a process gets signals; elsewhere this does nothing.
    """

    def __enter__(self) -> "delayed_signals":
        self.noted: int | None = None
        self.old: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self.old = {number: signal.signal(number, self._note) for number in SIGNALS if heard(number)}
        return self

    def raise_noted(self, text: str, state: Callable[[], Any]) -> None:
        """**Raises** `KeyboardInterrupt` or `SystemExit`, with the state, if a signal came."""
        if self.noted is not None:
            error = as_exception(self.noted, text)
            error.state = state()  # pyright: ignore[reportAttributeAccessIssue]
            raise error

    def _note(self, number: int, frame: Any) -> None:
        del frame
        if self.noted is not None:
            raise as_exception(number, "stopped at once: a second signal came")
        self.noted = number

    def __exit__(self, *error: Any) -> None:
        for number, handler in self.old.items():
            signal.signal(number, handler)


def heard(number: int) -> bool:
    """Not one that is ignored, as under `nohup`, nor one whose handler is not Python's."""
    return signal.getsignal(number) not in (signal.SIG_IGN, None)


def as_exception(number: int, text: str) -> BaseException:
    """What Python raises for Ctrl-C; `SystemExit` for the others."""
    if number == signal.SIGINT:
        return KeyboardInterrupt(text)
    error = SystemExit(128 + number)  # the exit code that shells give it
    error.add_note(text)
    return error
