"""A program as Python that a person may read, and call."""

import ast
import math
from collections.abc import Iterator, Sequence

import numpy as np

from nondiff.programs.banks import Bank, Cells, Constants, Lists, Memory
from nondiff.programs.instructions import Instructions
from nondiff.programs.line import FLAGS, LIMIT, Line, bank_of, expression, walk
from nondiff.programs.printed import Python, one, show, stored

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


def _assignment(instructions: Instructions, line: Line, operands: dict[str, int]) -> str:
    """A line with its operands, empty if it does nothing; what would go to a fixed cell goes nowhere."""
    if line.value is None:
        return ""
    means = Python(instructions.banks, operands)
    targets: list[str] = []
    held: list[Bank | None] = []
    for target in line.targets:
        if isinstance(target, ast.Name):
            targets.append(target.id)
            held.append(None)
            continue
        assert isinstance(target, ast.Subscript)
        name = bank_of(target)
        bank, index = instructions.banks[name], means.place(name, one(walk(target.slice, means, instructions.banks)))
        targets.append("_" if _stays(bank, index) else show(ast.Subscript(ast.Name(name), index)))
        held.append(bank)
    if set(targets) == {"_"}:
        return ""

    def shown(node: ast.expr) -> str:
        value = walk(node, means, instructions.banks)
        values = value if isinstance(value, tuple) else (value,)
        nodes = [
            v.node if t in (*FLAGS, "_") else stored(v, bank) for v, t, bank in zip(values, targets, held, strict=True)
        ]
        return ", ".join(map(show, nodes))

    left = ", ".join(targets)
    match line.value:
        case ast.IfExp(test=test, body=ast.Tuple() as yes, orelse=ast.Tuple() as no):
            condition = show(one(walk(test, means, instructions.banks)).node)
            return f"{left} = ({shown(yes)}) if {condition} else ({shown(no)})"
    return f"{left} = {shown(line.value)}"


def _stays(bank: Bank, index: ast.expr) -> bool:
    """Is it a fixed cell?"""
    match index:
        case ast.Constant(value=int() as value):
            return isinstance(bank, Cells) and value >= bank.free
    return False


def to_python(instructions: Instructions, code: np.ndarray, constants: Sequence[float], name: str) -> str:
    """The source of a function of the inputs."""
    means = Python(instructions.banks, {})
    value = walk(instructions.returned, means, instructions.banks)
    shown = ", ".join(show(v.node) for v in (value if isinstance(value, tuple) else (value,)))
    end = f"return {shown}"
    body = [*_start(instructions, constants), *_body(instructions, code, end), end]
    source = "\n".join([f"def {name}({', '.join(instructions.inputs)}):", *("    " + text for text in body)])
    head: list[str] = []
    if "accumulate(" in source:
        head += ["from itertools import accumulate", ""]
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
        means = Python(instructions.banks, {}, real_inputs=bank.real)
        if isinstance(bank, Cells):
            cells = [one(walk(expression(x), means, instructions.banks)) for x in bank.texts]
            yield f"{name} = [{', '.join(show(stored(c, bank)) for c in cells)}]"
        elif isinstance(bank, Lists):
            yield f"{name} = [{', '.join(text if text == '[]' else f'list({text})' for text in bank.texts)}]"
        elif isinstance(bank, Constants):
            shown = [repr(x if math.isfinite(x) else str(x)) for x in constants]
            yield f"{name} = [{', '.join(f'np.float32({x})' for x in shown)}]"
        else:
            yield f"{name} = Memory(np.float32(v) for v in {name})" if bank.real else f"{name} = Memory({name})"
            if bank.real:
                yield f"{name}.nothing = np.float32(0)"


def _body(instructions: Instructions, code: np.ndarray, end: str) -> Iterator[str]:
    """Statements for each line, of which `end` would be the last. Loops end at lines that set `again`, and are nested
    as their ends say."""
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
        statements = [said] if said else []
        if line is not None and line.flag("leave"):
            alone = len(line.targets) == 1
            test = said.removeprefix("leave = ") if alone else "leave"
            leaves = [f"if {test}:", "    break" if depth else f"    {end}"]
            statements = leaves if alone else [*statements, *leaves]
        if may_skip and skips:
            yield from (f"{indent}if skip:", f"{indent}    skip = False", f"{indent}else:", f"{indent}    {said}")
        elif may_skip and statements:
            yield f"{indent}if not skip:"
            yield from (f"{indent}    {statement}" for statement in statements)
        else:
            yield from (indent + statement for statement in statements)
        if place in loops:
            yield from (f"{indent}if not again:", f"{indent}    break")
            depth -= 1
        may_skip = skips
