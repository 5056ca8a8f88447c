"""Batches from outside the compiled step: from a function of the step number, or from any iterable."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from nondiff.core.problem import Batch

Batches = Callable[[int], Batch] | Iterable[Batch]


class Source:
    """Batches from outside. One is taken ahead only to know whether there is one."""

    def __init__(self, batches: Batches, start: int):
        self.batches, self.step = batches, start
        self.iterator: Iterator[Batch] = iter(()) if callable(batches) else iter(batches)
        self.ahead: list[Batch] = []
        if not callable(batches) and self.iterator is not batches:
            for _ in range(start):  # what an earlier run used
                if self.ready():
                    self.next()

    def ready(self) -> bool:
        """Is there a further batch? An iterable that can be started again, is."""
        if not self.ahead and callable(self.batches):
            self.ahead = [self.batches(self.step)]
        if not self.ahead:
            self.ahead = list(itertools.islice(self.iterator, 1))
        if not self.ahead and not callable(self.batches) and self.iterator is not self.batches:
            self.iterator = iter(self.batches)
            self.ahead = list(itertools.islice(self.iterator, 1))
        return bool(self.ahead)

    def peek(self) -> Batch:
        """The next batch, which stays."""
        if not self.ready():
            raise ValueError("`batches` is empty: there is no data to train on.")
        return self.ahead[0]

    def next(self) -> Batch:
        """The next batch."""
        batch = self.peek()
        self.ahead, self.step = [], self.step + 1
        return batch


def source_of(batches: Any, *, start: int) -> Source | None:
    if batches is None:
        return None
    if not (callable(batches) or hasattr(batches, "__iter__")):
        raise ValueError(f"`fit(batches={batches!r})`: expected a function of the step number, or an iterable.")
    return Source(batches, start)
