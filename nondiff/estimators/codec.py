"""Symbols as numbers and as text: between a network, which has the former, and programs that take the latter.

Programs in processes of their own have it without the rest of nondiff, so it stands on NumPy alone.
"""

from typing import Any

import numpy as np


class Vocabulary:
    """The symbols that numbers stand for, one character each, in their order.

    **Arguments:**

    - `symbols`: for example `"0123456789+-*/"`; a network's logits have one entry for each, `len(vocabulary)`.
    - `pad`: one of them that stands for nothing, so that shorter text fits into an array of one length (default: none).

    **Raises** `ValueError` for a symbol that is there twice, or a `pad` that is none of them; in `decode` for a number
    that no symbol has, and in `encode` for a character that is no symbol, or text that does not fit.

    >>> words = Vocabulary("0123456789+*_", pad="_")
    >>> words.decode([3, 10, 4, 12])
    '3+4'
    >>> words.encode("3+4", 4)
    array([ 3, 10,  4, 12], dtype=int32)
    >>> words.encode("3-4", 4)
    Traceback (most recent call last):
    ...
    ValueError: `Vocabulary.encode('3-4')`: '-' is none of its symbols, '0123456789+*_'.
    """

    def __init__(self, symbols: str, *, pad: str | None = None):
        if not symbols or len(set(symbols)) < len(symbols):
            raise ValueError(f"`Vocabulary({symbols!r})`: expected characters, each of them once.")
        if pad is not None and (len(pad) != 1 or pad not in symbols):
            raise ValueError(f"`Vocabulary(pad={pad!r})`: expected one of its symbols, {symbols!r}; add it to them.")
        self.symbols, self.pad = symbols, pad
        self._numbers = {symbol: i for i, symbol in enumerate(symbols)}

    def __len__(self) -> int:
        return len(self.symbols)

    def __repr__(self) -> str:
        return (
            f"Vocabulary({self.symbols!r})" if self.pad is None else f"Vocabulary({self.symbols!r}, pad={self.pad!r})"
        )

    def decode(self, numbers: Any) -> str:
        """Numbers `[n]`, from 0, to text of `n` characters, less those that are `pad`."""
        found = [int(i) for i in np.reshape(numbers, -1)]
        if found and not 0 <= min(found) <= max(found) < len(self.symbols):
            raise ValueError(f"`Vocabulary.decode({found})`: expected numbers from 0 to {len(self.symbols) - 1}.")
        return "".join(self.symbols[i] for i in found if self.symbols[i] != self.pad)

    def encode(self, text: str, length: int | None = None) -> np.ndarray:
        """Text to numbers, `int32[length]` with `pad` at the end (default: as long as the text)."""
        unknown = [symbol for symbol in text if symbol not in self._numbers]
        if unknown:
            raise ValueError(f"`Vocabulary.encode({text!r})`: {unknown[0]!r} is none of its symbols, {self.symbols!r}.")
        numbers = [self._numbers[symbol] for symbol in text]
        missing = 0 if length is None else length - len(numbers)
        if missing < 0 or (missing and self.pad is None):
            way_out = "it is longer" if missing < 0 else "it is shorter, and there is no `pad`"
            raise ValueError(f"`Vocabulary.encode({text!r}, {length})`: {way_out}.")
        return np.array(numbers + [self._numbers[self.pad]] * missing if self.pad else numbers, np.int32)
