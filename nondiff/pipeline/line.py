"""Messages to one module from one side: which of them it hears of at which step."""

from collections.abc import Callable, Iterable
from typing import Any


class Line:
    """References to messages, by the step at which they were sent.

    **Arguments:**

    - `way`: steps that each is under way, 0 or more.
    - `every`: of so many steps one sends a message.
    - `is_there`: has a message come? `None`: the module waits for it.
    - `sent`: those that are under way already.
    """

    def __init__(
        self, way: int, every: int, is_there: Callable[[Any], bool] | None, sent: Iterable[tuple[int, Any]] = ()
    ):
        self.way, self._every, self._is_there, self._sent = way, every, is_there, dict(sent)
        self._heard: dict[int, int | None] = {}
        """At each step, of which step it has heard."""
        self._newest = -1
        """The last of them."""

    def send(self, n: int, ref: Any) -> None:
        """The message of step `n`."""
        if n % self._every == 0:
            self._sent[n] = ref

    def heard(self, n: int) -> Any:
        """What comes at step `n`, the same when asked again; `None`: nothing."""
        if n not in self._heard:
            self._heard[n] = self._hears(n)
        found = self._heard[n]
        return None if found is None else self._sent[found]

    def _hears(self, n: int) -> int | None:
        """Of which step: of one so many steps before, or of the newest that is there."""
        if self._is_there is None:
            return n - self.way if n - self.way in self._sent else None
        there = [m for m, ref in self._sent.items() if self._newest < m < n and self._is_there(ref)]
        self._newest = max(there, default=self._newest)
        return max(there, default=None)

    def under_way(self, n: int) -> list[Any]:
        """The messages that come at steps `n`, ..., `n + way - 1`; `None` where none was sent."""
        return [self._sent.get(m) for m in range(n - self.way, n)]

    def forget(self, oldest: int) -> None:
        """What is not needed for steps from `oldest` on."""
        for held, bound in ((self._heard, oldest), (self._sent, oldest - self.way)):
            for n in [n for n in held if n < bound]:
                del held[n]
