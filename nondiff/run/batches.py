"""Batches from outside the compiled step: from a function of the step number, or from any iterable.

A run that goes on needs the batches from where it stopped. A function of the step number needs no position. An iterator
with grain's protocol, `get_state` and `set_state`, is put back. Any other is read up to the position, with a warning.
"""

import copy
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

from nondiff.core.problem import Batch

Batches = Callable[[int], Batch] | Iterable[Batch]


@runtime_checkable
class Positioned(Protocol):
    """An iterator that knows where it is."""

    def get_state(self) -> Any: ...

    def set_state(self, state: Any) -> None: ...


class Source:
    """Batches from outside. One is taken ahead only to know whether there is one."""

    def __init__(self, batches: Batches, start: int, memory: Any = None):
        self.batches, self.step = batches, start
        self.iterator: Iterator[Batch] = iter(()) if callable(batches) else iter(batches)
        self.again = not callable(batches) and self.iterator is not batches  # can be started again
        self.ahead: list[Batch] = []
        self.before: Any = None  # the iterator's own state before `ahead` was taken
        if start == 0 or callable(batches):
            return
        if memory is not None and "state" in memory and isinstance(self.iterator, Positioned):
            self.iterator.set_state(memory["state"])
        elif self.again or memory is not None:
            self._replay(start)

    def _replay(self, count: int) -> None:
        positioned = isinstance(self.iterator, Positioned)
        why = "the state brings no position, as a `Checkpoint` does" if positioned else "they have no `get_state`"
        warnings.warn(
            f"the batches are read again from the first to number {count}, where the run goes on: {why}. A function of "
            "the step number needs no position.",
            stacklevel=4,
        )
        for i in range(count):
            if not self.ready():
                raise ValueError(
                    f"the batches ended after {i}; the run goes on from number {count}. Are they the same?"
                )
            self.ahead = []

    def ready(self) -> bool:
        """Is there a further batch? An iterable that can be started again, is."""
        if self.ahead:
            return True
        if callable(self.batches):
            self.ahead = [self.batches(self.step)]
            return True
        if isinstance(self.iterator, Positioned):
            self.before = copy.deepcopy(self.iterator.get_state())  # some return what they go on to change
        self.ahead = list(itertools.islice(self.iterator, 1))
        if not self.ahead and self.again:
            self.iterator = iter(self.batches)
            self.ahead = list(itertools.islice(self.iterator, 1))
        return bool(self.ahead)

    def peek(self) -> Batch:
        """The next batch, which stays."""
        if not self.ready():
            raise ValueError("`batches` is empty: there is no data to train on.")
        return self.ahead[0]

    def taken(self) -> None:
        """The step with the next batch is done."""
        self.ahead, self.step = [], self.step + 1

    def memory(self, step: int) -> dict[str, Any]:
        """What a run needs to read on from this step: the next one, or the one that is about to be `taken`."""
        if callable(self.batches) or not isinstance(self.iterator, Positioned):
            return {}
        return {"state": self.before if self.ahead and step == self.step else self.iterator.get_state()}


def source_of(batches: Any, *, start: int, memory: Any) -> Source | None:
    """`memory` is what a checkpoint remembers of the batches; `None` to read an iterator on from where it stands."""
    if batches is None:
        return None
    if not (callable(batches) or hasattr(batches, "__iter__")):
        raise ValueError(f"`fit(batches={batches!r})`: expected a function of the step number, or an iterable.")
    return Source(batches, start, memory)
