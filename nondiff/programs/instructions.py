"""An instruction set is data: banks that hold values, and lines of Python that move them."""

import ast
import functools
import keyword
import math
from collections.abc import Mapping, Sequence

import numpy as np

from nondiff.programs.banks import Bank, Cells, Constants, Lists, Memory, are_texts
from nondiff.programs.line import (
    BEGIN,
    FLAGS,
    LISTS,
    OPERANDS,
    WORDS,
    Line,
    bank_of,
    check_no_whole_bank,
    expression,
    parse,
)

PRINTED = {"_", "clip", "np", "Memory", "list", "super", "int", "self", "accumulate", "zip"}
RESERVED = {*OPERANDS, *FLAGS, *WORDS, *LISTS, BEGIN, *PRINTED}
"""Names that lines, or printed programs, use otherwise."""


class Instructions:
    """The lines that a program may be made of.

    **Arguments:**

    - `lines`: each a line of Python that assigns to places of banks, in which `a` and `b` stand for the line's
      operands: `"r[a] = r[b]"`, `"x[r[a]], x[r[b]] = x[r[b]], x[r[a]]"`. Right sides are read before anything is
      written. Three names are special. If the test holds, `skip = test` leaves out the next line; `again = test`, the
      end of a loop, goes back to the last `begin` above it, a line of its own, or to the program's start; and
      `leave = test` goes on after the loop that it is in, and ends the program where it is in none.
    - `banks`: by name, `Cells`, `Memory`, `Lists` or `Constants`.
    - `result`: an expression of what the program gives: a bank, `"x"`, a place, `"r[0]"`, or several of them.
    - `operands`: how many values `a` and `b` take. Default: as many as the largest bank that each indexes has places.

    Whole numbers end at 2**30 - 1 in both directions: more is cut off there, of inputs as well. `x // 0` and `x % 0`
    are 0. Floats are those of 32 bits, with infinities and NaN.

    **Raises** `ValueError` for no lines, a line that is none, names that clash, or operands of unknown range.

    >>> swaps = Instructions(
    ...     ["r[a] = r[a] + 1", "skip = x[r[a]] <= x[r[b]]", "x[r[a]], x[r[b]] = x[r[b]], x[r[a]]"],
    ...     {"r": Cells(2, fixed=["len(x)"]), "x": Memory()},
    ...     result="x",
    ... )
    >>> swaps.inputs, swaps.sizes, swaps.straight
    (('x',), (4, 3, 3), False)
    """

    def __init__(
        self,
        lines: Sequence[str],
        banks: Mapping[str, Bank],
        result: str,
        *,
        operands: tuple[int, int] | None = None,
    ):
        if not are_texts(lines):
            raise ValueError(f"`Instructions(lines={lines!r})`: expected a list of lines, each of them a text.")
        if not isinstance(banks, Mapping) or not banks or not isinstance(result, str):
            raise ValueError(
                f"`Instructions(banks={banks!r}, result={result!r})`: expected banks by name, one or more, such as "
                "{'r': Cells(2)}, and an expression as text."
            )
        pair = (
            isinstance(operands, tuple) and len(operands) == 2 and all(isinstance(n, int) and n > 0 for n in operands)
        )
        if operands is not None and not pair:
            raise ValueError(
                f"`Instructions(operands={operands!r})`: expected how many values `a` and `b` take, two whole numbers "
                "of 1 or more."
            )
        self.lines, self.banks, self.result = tuple(lines), dict(banks), result
        if not self.lines:
            raise ValueError("`Instructions(lines)`: there are none, and a program is made of them.")
        for name, bank in self.banks.items():
            check_name(name)
            if not isinstance(bank, Bank):
                raise ValueError(f"`Instructions(banks)`: {name!r}: {bank!r}; expected one, such as `Cells(2)`.")
        if sum(isinstance(bank, Constants) for bank in self.banks.values()) > 1:
            raise ValueError("`Instructions(banks)`: there are several `Constants`; expected one bank of them.")
        self.parsed: tuple[Line, ...] = tuple(parse(text, self.banks) for text in self.lines)
        for line in self.parsed:
            for target in line.targets:
                if isinstance(target, ast.Subscript) and isinstance(self.banks[bank_of(target)], Constants):
                    raise ValueError(f"the line {line.text!r} writes to `{bank_of(target)}`, and constants stay.")
            for name in line.elements:
                check_name(name)
            if line.value is not None:
                check_no_whole_bank(line.value, self.banks, f"the line {line.text!r}")
            self._check_targets(line)
        self.sizes = (1 + len(self.lines), *(operands or self._operands()))
        if math.prod(self.sizes) > 2**24:
            raise ValueError(f"`Instructions`: {self.sizes} lines and operands; expected fewer, not millions.")
        self.returned = expression(result)
        for part in self.returned.elts if isinstance(self.returned, ast.Tuple) else [self.returned]:
            if not isinstance(part, ast.Name):
                check_no_whole_bank(part, self.banks, f"the result {result!r}")
        self.inputs = self._inputs()

    def __repr__(self) -> str:
        return f"Instructions({list(self.lines)}, {self.banks}, result={self.result!r}, operands={self.sizes[1:]})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Instructions) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))

    @functools.cached_property
    def lists(self) -> dict[str, Lists]:
        """Inputs that lists start from, and the bank, of several the one of the least capacity."""
        banks = sorted((b for b in self.banks.values() if isinstance(b, Lists)), key=lambda bank: -bank.capacity)
        return {text: bank for bank in banks for text in bank.texts if text != "[]"}

    @functools.cached_property
    def straight(self) -> bool:
        """Does every program go through its lines once, from top to bottom?"""
        return not any(line.flag(name) for line in self.parsed for name in FLAGS)

    @functools.cached_property
    def targets(self) -> tuple[ast.Subscript, ...] | None:
        """One for each bank that is written to, if no line jumps, each writes to one place that an operand names, and
        all that write to a bank name it alike."""
        found = {ast.unparse(t): t for line in self.parsed for t in line.targets}
        places = tuple(t for t in found.values() if isinstance(t, ast.Subscript))
        named = len(places) == len(found) and all(isinstance(t.slice, ast.Name | ast.Constant) for t in places)
        apart = len({bank_of(t) for t in places}) == len(places)
        return places if named and apart and all(len(line.targets) < 2 for line in self.parsed) else None

    def check(self, code: np.ndarray) -> None:
        """**Raises** `ValueError` for a program with a number that is no line's, or an operand that is none."""
        for place, row in enumerate(code.tolist()):
            for entry, size, what in zip(row, self.sizes, ("a line's number", "operand a", "operand b"), strict=True):
                if not 0 <= entry < size:
                    raise ValueError(f"line {place} of the program is {row}: {entry} is not {what}, 0 to {size - 1}.")

    def _check_targets(self, line: Line) -> None:
        """What is written first must not move what is written next, and it must be known which cells stay."""
        written: set[str] = set()
        for target in line.targets:
            if not isinstance(target, ast.Subscript):
                continue
            read = {node.id for node in ast.walk(target.slice) if isinstance(node, ast.Name)}
            if read & written:
                raise ValueError(
                    f"the line {line.text!r}: the place `{ast.unparse(target)}` depends on `{(read & written).pop()}`, "
                    "which it writes first; make it two lines."
                )
            bank = self.banks[bank_of(target)]
            if isinstance(bank, Cells) and bank.fixed and not isinstance(target.slice, ast.Name | ast.Constant):
                raise ValueError(
                    f"the line {line.text!r} writes to a computed place of `{bank_of(target)}`, some cells of which "
                    "are fixed; put those into a bank of their own."
                )
            written.add(bank_of(target))

    def _operands(self) -> tuple[int, int]:
        found = {name: 1 for name in OPERANDS}
        for line in self.parsed:
            for node in (n for part in (*line.targets, line.value) if part is not None for n in ast.walk(part)):
                match node:
                    case ast.Subscript(value=ast.Name(id=bank), slice=ast.Name(id=operand)) if operand in found:
                        if bank not in self.banks:
                            raise ValueError(f"the line {line.text!r}: `{bank}` is none of its banks.")
                        size = self.banks[bank].size
                        if size is None:
                            raise ValueError(
                                f"the line {line.text!r}: how many values `{operand}` takes is unknown, as the length "
                                f"of `{bank}` is; give `operands=(.., ..)`."
                            )
                        found[operand] = max(found[operand], size)
        return found["a"], found["b"]

    def _inputs(self) -> tuple[str, ...]:
        names = [name for name, bank in self.banks.items() if isinstance(bank, Memory)]
        names += [*self.lists]
        for bank in self.banks.values():
            if isinstance(bank, Cells):
                for text in bank.texts:
                    tree = expression(text)
                    check_no_whole_bank(tree, self.banks, f"`Cells` that start from {text!r}")
                    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
                    names += [n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and id(n) not in called]
        for name in names:
            check_name(name)
            if name in self.lists and (name in self.banks or names.count(name) > 1):
                raise ValueError(f"`Lists` start from `{name}`, and so does another bank; use another name.")
            if not isinstance(self.banks.get(name, Memory()), Memory):
                raise ValueError(
                    f"`Cells` start from `{name}`, which is a bank; expected inputs, and `len` of memories."
                )
        if not names:
            raise ValueError("`Instructions`: nothing starts from an input, and there is no `Memory`; expected one.")
        return tuple(dict.fromkeys(names))


def check_name(name: str) -> None:
    """**Raises** `ValueError` for what is no name, or stands for something else in lines or printed programs."""
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name) or name in RESERVED:
        raise ValueError(
            f"{name!r} cannot be a name of a bank, an input, an element or a program; it is none, or is taken."
        )
