"""What the lines of a program index, `name[place]`. A place wraps round, so that every one exists."""

import dataclasses
from collections.abc import Sequence

from nondiff.core.checks import check_count


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
            if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
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
