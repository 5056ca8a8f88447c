"""Batches from outside the compiled step: from a function of the step number, or from any iterable."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from nondiff.core.problem import Batch

Batches = Callable[[int], Batch] | Iterable[Batch]


class Source:
    """Batches from outside, one ahead."""

    def __init__(self, batches: Batches, start: int):
        self.batches, self.step = batches, start
        self.iterator: Iterator[Batch] | None = None if callable(batches) else iter(batches)
        self.ahead: list[Batch] = []

    def ready(self) -> bool:
        if self.ahead or callable(self.batches) or self.iterator is None:
            return True
        try:
            self.ahead = [next(self.iterator)]
        except StopIteration:
            if self.iterator is self.batches:
                return False  # a generator ends once
            self.iterator = iter(self.batches)
            self.ahead = list(_first_of(self.iterator))
        return bool(self.ahead)

    def next(self) -> Batch:
        if callable(self.batches):
            self.step += 1
            return self.batches(self.step - 1)
        if not self.ready():
            raise ValueError("`batches` has no further batch.")
        return self.ahead.pop()

    def peek(self) -> Batch:
        if callable(self.batches):
            return self.batches(self.step)
        if not self.ready():
            raise ValueError("`batches` is empty: there is no data to train on.")
        return self.ahead[0]


def _first_of(iterator: Iterator[Batch]) -> Iterator[Batch]:
    for batch in iterator:
        yield batch
        return


def source_of(batches: Any, *, start: int) -> Source | None:
    if batches is None:
        return None
    if not (callable(batches) or hasattr(batches, "__iter__")):
        raise ValueError(f"`fit(batches={batches!r})`: expected a function of the step number, or an iterable.")
    return Source(batches, start)
