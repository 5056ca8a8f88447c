"""A program as Python that a person may read, and call."""

import ast
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from nondiff.programs.arithmetic import REAL_ONLY
from nondiff.programs.banks import Bank, Cells, Constants, Memory
from nondiff.programs.instructions import Instructions
from nondiff.programs.line import FLAGS, LIMIT, AbstractMeaning, Line, expression, walk

MEMORY = (
    "class Memory(list):",
    "    nothing = 0",
    "    def __getitem__(self, i):",
    "        return super().__getitem__(i % len(self)) if self else self.nothing",
    "    def __setitem__(self, i, value):",
    "        if self:",
    "            super().__setitem__(i % len(self), value)",
)
"""A list whose places wrap round; an empty one reads 0, and is not written."""


@dataclasses.dataclass(frozen=True)
class Text:
    """An expression of Python, and what it gives: a truth, a whole number, or a float."""

    node: ast.expr
    kind: str


class Python(AbstractMeaning[Text]):
    """Prints expressions. What JAX cuts off is cut off here, and what it defines is defined."""

    def __init__(self, instructions: Instructions, operands: dict[str, int], *, real_inputs: bool = False):
        self.banks, self.operands, self.real_inputs = instructions.banks, operands, real_inputs

    def number(self, value: bool | int | float) -> Text:
        if isinstance(value, float):
            return Text(_call("np.float32", ast.Constant(value)), "real")
        return Text(ast.Constant(value), "truth" if isinstance(value, bool) else "whole")

    def name(self, name: str) -> Text:
        if name in self.operands:
            return Text(ast.Constant(self.operands[name]), "whole")
        if self.real_inputs:
            return Text(_call("np.float32", ast.Name(name)), "real")
        return Text(ast.Name(name), "whole")

    def whole_bank(self, bank: str) -> Text:
        whole = ast.Name(bank)
        return Text(_call("list", whole) if isinstance(self.banks[bank], Memory) else whole, self._kind(bank))

    def _kind(self, bank: str) -> str:
        return "real" if self.banks[bank].real else "whole"

    def read(self, bank: str, index: Text) -> Text:
        return Text(ast.Subscript(ast.Name(bank), self.place(bank, index)), self._kind(bank))

    def place(self, bank: str, index: Text) -> ast.expr:
        """An index, wrapped round; a memory does so by itself."""
        size = self.banks[bank].size
        match index.node:
            case _ if size is None:
                return index.node
            case ast.Constant(value=int() as value):
                return ast.Constant(value % size)
        return ast.BinOp(index.node, ast.Mod(), ast.Constant(size))

    def length(self, bank: str) -> Text:
        return Text(_call("len", ast.Name(bank)), "whole")

    def call(self, function: str, args: list[Text]) -> Text:
        real = function in REAL_ONLY or any(x.kind == "real" for x in args)
        if not real:
            return Text(_call(function, *[x.node for x in args]), "whole")
        numpy = {"min": "minimum", "max": "maximum"}.get(function, function)
        return Text(_call(f"np.{numpy}", *map(_as_real, args)), "real")

    def binary(self, op: ast.operator, left: Text, right: Text) -> Text:
        node = ast.BinOp(left.node, op, right.node)
        if "real" in (left.kind, right.kind):
            return Text(node, "real")
        if isinstance(op, ast.FloorDiv | ast.Mod):
            if isinstance(right.node, ast.Constant) and right.node.value:
                return Text(node, "whole")
            return Text(ast.IfExp(right.node, node, ast.Constant(0)), "whole")
        return Text(_call("clip", node), "whole")

    def negative(self, x: Text) -> Text:
        return Text(ast.UnaryOp(ast.USub(), x.node), "real" if x.kind == "real" else "whole")

    def compare(self, op: ast.cmpop, left: Text, right: Text) -> Text:
        return Text(ast.Compare(left.node, [op], [right.node]), "truth")

    def both(self, left: Text, right: Text) -> Text:
        return Text(ast.BoolOp(ast.And(), [_as_truth(left), _as_truth(right)]), "truth")

    def either(self, left: Text, right: Text) -> Text:
        return Text(ast.BoolOp(ast.Or(), [_as_truth(left), _as_truth(right)]), "truth")

    def no(self, x: Text) -> Text:
        return Text(ast.UnaryOp(ast.Not(), x.node), "truth")

    def choose(self, test: Text, yes: Text, no: Text) -> Text:
        if "real" in (yes.kind, no.kind):
            return Text(ast.IfExp(test.node, _as_real(yes), _as_real(no)), "real")
        return Text(ast.IfExp(test.node, yes.node, no.node), "truth" if yes.kind == no.kind == "truth" else "whole")


def _call(function: str, *args: ast.expr) -> ast.expr:
    return ast.Call(expression(function), list(args), [])


def _show(node: ast.expr) -> str:
    return ast.unparse(ast.fix_missing_locations(node))


def _as_real(x: Text) -> ast.expr:
    return x.node if x.kind == "real" else _call("np.float32", x.node)


def _as_truth(x: Text) -> ast.expr:
    """`and` and `or` of Python give one of their sides, and not its truth."""
    return x.node if x.kind == "truth" else ast.Compare(x.node, [ast.NotEq()], [ast.Constant(0)])


def _stored(x: Text, real: bool) -> ast.expr:
    return _as_real(x) if real else _call("int", x.node) if x.kind == "truth" else x.node


def _assignment(instructions: Instructions, line: Line, operands: dict[str, int]) -> str:
    """A line with its operands, empty if it does nothing; what would go to a fixed cell goes nowhere."""
    if line.value is None:
        return ""
    means = Python(instructions, operands)
    targets, reals = [], []
    for target in line.targets:
        if isinstance(target, ast.Name):
            targets.append(target.id)
            reals.append(False)
            continue
        assert isinstance(target, ast.Subscript) and isinstance(target.value, ast.Name)
        name = target.value.id
        bank, index = instructions.banks[name], means.place(name, _one(walk(target.slice, means, instructions.banks)))
        targets.append("_" if _stays(bank, index) else _show(ast.Subscript(ast.Name(name), index)))
        reals.append(bank.real)
    if set(targets) == {"_"}:
        return ""

    def shown(node: ast.expr) -> str:
        value = walk(node, means, instructions.banks)
        values = value if isinstance(value, tuple) else (value,)
        stored = [
            v.node if t in (*FLAGS, "_") else _stored(v, real)
            for v, t, real in zip(values, targets, reals, strict=True)
        ]
        return ", ".join(map(_show, stored))

    left = ", ".join(targets)
    match line.value:
        case ast.IfExp(test=test, body=ast.Tuple() as yes, orelse=ast.Tuple() as no):
            condition = _show(_one(walk(test, means, instructions.banks)).node)
            return f"{left} = ({shown(yes)}) if {condition} else ({shown(no)})"
    return f"{left} = {shown(line.value)}"


def _stays(bank: Bank, index: ast.expr) -> bool:
    """Is it a fixed cell?"""
    match index:
        case ast.Constant(value=int() as value):
            return isinstance(bank, Cells) and value >= bank.free
    return False


def _one(x: Any) -> Text:
    return x


def to_python(instructions: Instructions, code: np.ndarray, constants: Sequence[float], name: str) -> str:
    """The source of a function of the inputs."""
    means = Python(instructions, {})
    value = walk(instructions.returned, means, instructions.banks)
    shown = ", ".join(_show(v.node) for v in (value if isinstance(value, tuple) else (value,)))
    body = [*_start(instructions, constants), *_body(instructions, code), f"return {shown}"]
    source = "\n".join([f"def {name}({', '.join(instructions.inputs)}):", *("    " + text for text in body)])
    head: list[str] = []
    if "np." in source:
        head += ["import numpy as np", ""]
    if "clip(" in source:
        head += ["def clip(x):", f"    return max(-{LIMIT}, min({LIMIT}, x))", ""]
    if "Memory(" in source:
        head += [*MEMORY, ""]
    return "\n".join([*head, source])


def _start(instructions: Instructions, constants: Sequence[float]) -> Iterator[str]:
    """Statements that set up the banks, memories first, as cells may start from them."""
    for name, bank in sorted(instructions.banks.items(), key=lambda item: not isinstance(item[1], Memory)):
        means = Python(instructions, {}, real_inputs=bank.real)
        if isinstance(bank, Cells):
            cells = [_one(walk(expression(x), means, instructions.banks)) for x in bank.texts]
            yield f"{name} = [{', '.join(_show(_stored(c, bank.real)) for c in cells)}]"
        elif isinstance(bank, Constants):
            shown = [repr(x if math.isfinite(x) else str(x)) for x in constants]
            yield f"{name} = [{', '.join(f'np.float32({x})' for x in shown)}]"
        else:
            yield f"{name} = Memory(np.float32(v) for v in {name})" if bank.real else f"{name} = Memory({name})"
            if bank.real:
                yield f"{name}.nothing = np.float32(0)"


def _body(instructions: Instructions, code: np.ndarray) -> Iterator[str]:
    """A statement or more for each line. Loops end at lines that set `again`, and are nested as their ends say."""
    lines = [instructions.parsed[op - 1] if op else None for op in code[:, 0]]
    loops, start = {}, 0  # from the line that ends one to where it starts
    for place, line in enumerate(lines):
        if line is not None and line.value is None:
            start = place + 1
        if line is not None and line.flag("again"):
            loops[place] = start
    starts = list(loops.values())
    depth, may_skip = 0, False
    for place, (line, row) in enumerate(zip(lines, code, strict=True)):
        for _ in range(starts.count(place)):
            yield "    " * depth + "while True:"
            depth += 1
        indent = "    " * depth
        said = _assignment(instructions, line, {"a": int(row[1]), "b": int(row[2])}) if line is not None else ""
        if may_skip and place in loops:
            yield f"{indent}again = False"
        skips = line is not None and line.flag("skip")
        if may_skip and skips:
            yield from (f"{indent}if skip:", f"{indent}    skip = False", f"{indent}else:", f"{indent}    {said}")
        elif may_skip and said:
            yield from (f"{indent}if not skip:", f"{indent}    {said}")
        elif said:
            yield indent + said
        if place in loops:
            yield from (f"{indent}if not again:", f"{indent}    break")
            depth -= 1
        may_skip = skips
