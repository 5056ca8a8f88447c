"""What a program has answered: to single inputs, and to whole batches that come again."""

import itertools
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

WHOLE = 1_000
"""Rows from which on a batch is remembered as one; fewer are looked up about as quickly one by one."""
BATCHES, BYTES = 4, 2**28
"""Most batches that are remembered as one, and the memory that they may take."""


class Batch(NamedTuple):
    """Answers to all rows of a batch, and where each distinct row of it stands first."""

    answers: list[np.ndarray]
    first: np.ndarray


class Memo:
    """Up to `size` answers by their inputs, the oldest forgotten first, one array for each leaf of an answer."""

    def __init__(self, size: int, leaves: Sequence[Any]):
        self.size = size
        self._columns = [np.zeros((0, *s.shape), s.dtype) for s in leaves]
        self._places: OrderedDict[Any, int] = OrderedDict()
        self._kinds: dict[Any, int] = {}
        self._wholes: OrderedDict[Any, Batch] = OrderedDict()

    def kind(self, rows: Sequence[np.ndarray]) -> int:
        """The same bytes in another shape or dtype are another input."""
        return self._kinds.setdefault(tuple((x.dtype.str, x.shape[1:]) for x in rows), len(self._kinds))

    def keys(self, rows: Sequence[np.ndarray]) -> list[Any]:
        """One for each of `[n, ...]` rows."""
        data = _as_bytes([x.reshape(x.shape[0], -1) for x in rows])
        each = _as_void(data).tolist() if data.shape[1] else [b""] * len(data)
        return list(zip(itertools.repeat(self.kind(rows)), each, strict=False))

    def places(self, keys: Sequence[Any]) -> np.ndarray:
        """Where the answers are, -1 for those that are not."""
        return np.fromiter((self._places.get(key, -1) for key in keys), np.int64, len(keys))

    def read(self, places: np.ndarray) -> list[np.ndarray]:
        return [column[places] for column in self._columns]

    def keep(self, key: Any, answer: Sequence[np.ndarray]) -> None:
        if not self.size:
            return
        place = self._places.popitem(last=False)[1] if len(self._places) == self.size else len(self._places)
        if self._columns and place == len(self._columns[0]):
            more = min(max(place, 64), self.size - place)
            self._columns = [np.concatenate([x, np.zeros((more, *x.shape[1:]), x.dtype)]) for x in self._columns]
        for column, leaf in zip(self._columns, answer, strict=True):
            column[place] = leaf
        self._places[key] = place

    def whole_key(self, rows: Sequence[np.ndarray]) -> Any:
        """What a batch is remembered by as one, `None` if it is not."""
        if len(rows[0]) < WHOLE or sum(x.nbytes for x in rows) > BYTES // 2:
            return None
        return self.kind(rows), *(x.tobytes() for x in rows)

    def whole(self, key: Any) -> Batch | None:
        found = self._wholes.get(key)
        if found is not None:
            self._wholes.move_to_end(key)
        return found

    def keep_whole(self, key: Any, batch: Batch) -> None:
        if key is None or len(batch.first) > self.size:
            return
        self._wholes[key] = batch
        while len(self._wholes) > BATCHES or sum(map(_nbytes, self._wholes.items())) > BYTES:
            self._wholes.popitem(last=False)


def distinct(rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Where each distinct row stands first, and which of them every row is."""
    columns = [x.reshape(x.shape[0], -1) for x in rows]
    data = _as_bytes([c.astype(np.int8) if np.issubdtype(c.dtype, np.integer) and _small(c) else c for c in columns])
    if data.shape[1] <= 8:  # one machine word for each row: sorting those is many times faster
        words = np.ascontiguousarray(np.pad(data, ((0, 0), (0, 8 - data.shape[1])))).view(np.uint64).reshape(-1)
    else:
        words = _as_void(data)
    _, first, inverse = np.unique(words, return_index=True, return_inverse=True)
    return first, inverse.reshape(-1)


def _as_bytes(rows: Sequence[np.ndarray]) -> np.ndarray:
    """`uint8[n, bytes]`, all of a row side by side."""
    return np.concatenate([np.ascontiguousarray(x).view(np.uint8).reshape(x.shape[0], -1) for x in rows], 1)


def _as_void(data: np.ndarray) -> np.ndarray:
    """Bytes `[n, width]` as `n` values."""
    return np.ascontiguousarray(data).view(np.dtype((np.void, data.shape[1]))).reshape(-1)


def _small(x: np.ndarray) -> bool:
    return x.size > 0 and bool(x.min() >= -128 and x.max() <= 127)


def _nbytes(item: tuple[Any, Batch]) -> int:
    key, batch = item
    return sum(map(len, key[1:])) + sum(x.nbytes for x in batch.answers)
