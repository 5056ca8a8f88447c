"""What the lines of a program index, `name[place]`. A place wraps round, so that every one exists."""

import dataclasses
from collections.abc import Sequence
from typing import TypeGuard

from nondiff.core.checks import check_count


def are_texts(x: object) -> TypeGuard[Sequence[str]]:
    """Several texts, and not one, which is a sequence as well?"""
    return isinstance(x, Sequence) and not isinstance(x, str) and all(isinstance(text, str) for text in x)


class Bank:
    """Values in places."""

    real: bool
    """Do they hold floats, or whole numbers?"""

    @property
    def size(self) -> int | None:
        """How many places there are; `None` where the input says."""
        return None


@dataclasses.dataclass(frozen=True)
class Cells(Bank):
    """A few places that start from expressions.

    **Arguments:**

    - `start`: one expression for each cell, of numbers, `len(memory)`, and names, which become inputs of the program;
      or how many cells start at 0.
    - `fixed`: the same for further cells, which no line changes: it may write there, and nothing happens.
    - `real`: do they hold floats? Default: whole numbers.

    **Raises** `ValueError` for no cells.

    >>> Cells(2, fixed=["len(x)"])
    Cells(start=('0', '0'), fixed=('len(x)',), real=False)
    """

    start: int | Sequence[str]
    fixed: Sequence[str] = dataclasses.field(default=(), kw_only=True)
    real: bool = dataclasses.field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        start = self.start
        if isinstance(start, int):
            check_count("Cells", "start", start, least=0)
            start = ["0"] * start
        for name, texts in (("start", start), ("fixed", self.fixed)):
            if not are_texts(texts):
                raise ValueError(f"`Cells({name}={texts!r})`: expected expressions as texts, one for each cell.")
            object.__setattr__(self, name, tuple(texts))
        if not self.size:
            raise ValueError("`Cells`: there are none; give the number of cells, or what they start from.")

    @property
    def texts(self) -> tuple[str, ...]:
        """What all cells start from, those that are fixed last."""
        assert not isinstance(self.start, int)
        return (*self.start, *self.fixed)

    @property
    def free(self) -> int:
        """How many cells may change."""
        return len(self.texts) - len(self.fixed)

    @property
    def size(self) -> int:
        return len(self.texts)


@dataclasses.dataclass(frozen=True)
class Memory(Bank):
    """An input of any length, `[cases, length]`: the program's array, which lines may read and write.

    Where cases have lengths of their own the input is a pair, `([cases, capacity], lengths)`. Then `len(x)` is the
    case's own, places wrap round by it, and what stands beyond it stays. A case of length 0 reads 0 everywhere, and
    nothing is written there.

    **Arguments:**

    - `real`: does it hold floats? Default: whole numbers.
    """

    real: bool = dataclasses.field(default=False, kw_only=True)


def lengths_of(memory: str) -> str:
    """The name under which each case's own length stands beside a memory's values; no bank can have it."""
    return f"len({memory})"


@dataclasses.dataclass(frozen=True)
class Lists(Bank):
    """A few places that hold lists of whole numbers, each of any length up to a capacity.

    A line makes a new list of others: `l[a] = sorted(l[b])`, `l[a] = [x * x for x in l[b] if x > 0]`,
    `l[a] = [x + y for x, y in zip(l[a], l[b])]`, `l[a] = list(accumulate(l[b]))`, `l[a] = l[b][::-1]`,
    `l[a] = l[b][:3]`, `l[a] = l[a] + l[b]`; or a number: `r[a] = sum(l[b])`, `r[a] = l[b][0]`.
    What is longer than the capacity is cut off when it is stored. An empty list has the least and largest element 0,
    and every other one; places of elements wrap round.

    **Arguments:**

    - `start`: what each place starts from, a name, which becomes an input of the program, or `"[]"`; or how many
      places start empty. The input is `[cases, length]`, or a pair of such an array and the cases' lengths.
    - `capacity`: how many elements a list holds at most, 1 to 256. It costs as much as its square.

    A result such as `"l[0]"` is a pair, `([cases, capacity], lengths)`, with zeros beyond the length.

    **Raises** `ValueError` for no places, a start that is none, or a capacity out of range.

    >>> Lists(["x", "[]"], capacity=8)
    Lists(start=('x', '[]'), capacity=8)
    """

    start: int | Sequence[str]
    capacity: int = dataclasses.field(kw_only=True)
    real: bool = dataclasses.field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        start = self.start
        if isinstance(start, int):
            check_count("Lists", "start", start)
            start = ["[]"] * start
        if not are_texts(start) or not start or not all(x == "[]" or x.isidentifier() for x in start):
            raise ValueError(f'`Lists(start={start!r})`: expected, for each place, the name of an input or "[]".')
        object.__setattr__(self, "start", tuple(start))
        check_count("Lists", "capacity", self.capacity)
        if self.capacity > 256:
            raise ValueError(f"`Lists(capacity={self.capacity})`: expected 256 or less; a longer array is a `Memory`.")

    @property
    def texts(self) -> tuple[str, ...]:
        """What all places start from."""
        assert not isinstance(self.start, int)
        return tuple(self.start)

    @property
    def size(self) -> int:
        return len(self.texts)


@dataclasses.dataclass(frozen=True)
class Constants(Bank):
    """Float constants of the program's own, leaves of its parameters: read only.

    **Arguments:**

    - `number`: how many.

    **Raises** `ValueError` for none.
    """

    number: int
    real: bool = dataclasses.field(default=True, init=False)

    def __post_init__(self) -> None:
        check_count("Constants", "number", self.number)

    @property
    def size(self) -> int:
        return self.number
