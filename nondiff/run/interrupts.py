"""Ctrl-C in the middle of a compiled call: no state is lost to it."""

import signal
import threading
from collections.abc import Callable
from typing import Any


class delayed_interrupts:
    """Ctrl-C waits until the running call has returned; the second one does not."""

    def __enter__(self) -> Callable[[], bool]:
        self.seen, self.old = False, None
        if threading.current_thread() is threading.main_thread():
            self.old = signal.signal(signal.SIGINT, self._note)
        return lambda: self.seen

    def _note(self, number: int, frame: Any) -> None:
        del frame
        if self.seen:
            signal.signal(number, self.old)
            raise KeyboardInterrupt
        self.seen = True

    def __exit__(self, *error: Any) -> None:
        if self.old is not None:
            signal.signal(signal.SIGINT, self.old)
