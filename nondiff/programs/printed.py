"""Expressions as Python prints them."""

import ast
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from nondiff.programs.arithmetic import REAL_ONLY
from nondiff.programs.banks import Bank, Lists, Memory
from nondiff.programs.line import AbstractMeaning, expression, walk


@dataclasses.dataclass(frozen=True)
class Text:
    """An expression of Python, and what it gives: a truth, a whole number, a float (real), or a list."""

    node: ast.expr
    kind: str
    most: int = 0
    """How many elements a list may have."""


class Python(AbstractMeaning[Text]):
    """Prints expressions. What JAX cuts off is cut off here, and what it defines is defined."""

    def __init__(
        self,
        banks: Mapping[str, Bank],
        operands: Mapping[str, int],
        *,
        real_inputs: bool = False,
        elements: Sequence[str] = (),
    ):
        self.banks, self.operands, self.real_inputs, self.elements = banks, operands, real_inputs, elements

    def number(self, value: bool | int | float) -> Text:
        if isinstance(value, float):
            return Text(_call("np.float32", ast.Constant(value)), "real")
        return Text(ast.Constant(value), "truth" if isinstance(value, bool) else "whole")

    def name(self, name: str) -> Text:
        if name in self.elements:
            return Text(ast.Name(name), "whole")
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
        node, kind = ast.Subscript(ast.Name(bank), self.place(bank, index)), self.banks[bank]
        return Text(node, "list", kind.capacity) if isinstance(kind, Lists) else Text(node, self._kind(bank))

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
            return Text(_call(function, *map(as_number, args)), "whole")
        numpy = {"min": "minimum", "max": "maximum"}.get(function, function)
        return Text(_call(f"np.{numpy}", *map(_as_real, args)), "real")

    def binary(self, op: ast.operator, left: Text, right: Text) -> Text:
        node = ast.BinOp(as_number(left), op, as_number(right))
        if left.kind == "list":
            return Text(node, "list", left.most + right.most)
        if "real" in (left.kind, right.kind):
            return Text(node, "real")
        if isinstance(op, ast.FloorDiv | ast.Mod):
            if isinstance(right.node, ast.Constant) and right.node.value:
                return Text(node, "whole")
            return Text(ast.IfExp(right.node, node, ast.Constant(0)), "whole")
        return Text(_call("clip", node), "whole")

    def negative(self, x: Text) -> Text:
        return Text(ast.UnaryOp(ast.USub(), as_number(x)), "real" if x.kind == "real" else "whole")

    def compare(self, op: ast.cmpop, left: Text, right: Text) -> Text:
        return Text(ast.Compare(left.node, [op], [right.node]), "truth")

    def both(self, left: Text, right: Text) -> Text:
        return Text(ast.BoolOp(ast.And(), [as_truth(left), as_truth(right)]), "truth")

    def either(self, left: Text, right: Text) -> Text:
        return Text(ast.BoolOp(ast.Or(), [as_truth(left), as_truth(right)]), "truth")

    def no(self, x: Text) -> Text:
        return Text(ast.UnaryOp(ast.Not(), x.node), "truth")

    def choose(self, test: Text, yes: Text, no: Text) -> Text:
        if yes.kind == "list":
            return Text(ast.IfExp(test.node, yes.node, no.node), "list", max(yes.most, no.most))
        if "real" in (yes.kind, no.kind):
            return Text(ast.IfExp(test.node, _as_real(yes), _as_real(no)), "real")
        if yes.kind == no.kind == "truth":
            return Text(ast.IfExp(test.node, yes.node, no.node), "truth")
        return Text(ast.IfExp(test.node, as_number(yes), as_number(no)), "whole")

    def empty(self) -> Text:
        return Text(ast.List([]), "list")

    def on_list(self, function: str, args: list[Text]) -> Text:
        x, *others = [x.node for x in args]

        def part(*bounds: ast.expr | None) -> ast.expr:
            return ast.Subscript(x, ast.Slice(*bounds))

        match function.split():
            case ["min" | "max"]:
                empty = ast.keyword("default", ast.Constant(0))
                return Text(ast.Call(ast.Name(function), [x], [empty]), "whole")
            case ["len"]:
                return Text(_call("len", x), "whole")
            case ["sum"]:
                return Text(_call("clip", _call("sum", x)), "whole")
            case ["item"]:
                place = ast.BinOp(others[0], ast.Mod(), _call("len", x))
                return Text(ast.IfExp(x, ast.Subscript(x, place), ast.Constant(0)), "whole")
            case ["take"]:
                node = part(None, *others)
            case ["drop"]:
                node = part(*others)
            case ["reversed"]:
                node = part(None, None, ast.UnaryOp(ast.USub(), ast.Constant(1)))
            case ["accumulate"]:
                generator = ast.comprehension(ast.Name("s"), _call("accumulate", x), [], 0)
                node = ast.ListComp(_call("clip", ast.Name("s")), [generator])
            case ["accumulate", best]:
                node = _call("list", _call("accumulate", x, ast.Name(best)))
            case _:
                node = _call(function, x)
        return Text(node, "list", args[0].most)

    def comprehension(self, names: list[str], lists: list[Text], body: ast.expr, test: ast.expr | None) -> Text:
        inside = Python(self.banks, self.operands, elements=names)
        of_each: ast.expr = ast.Name(names[0])
        source = lists[0].node
        if len(names) > 1:
            of_each = ast.Tuple([ast.Name(x) for x in names])
            source = _call("zip", *[x.node for x in lists])
        tests = [] if test is None else [as_truth(one(walk(test, inside, self.banks)))]
        value = stored(one(walk(body, inside, self.banks)), None)
        return Text(
            ast.ListComp(value, [ast.comprehension(of_each, source, tests, 0)]), "list", min(x.most for x in lists)
        )


def _call(function: str, *args: ast.expr) -> ast.expr:
    return ast.Call(expression(function), list(args), [])


def show(node: ast.expr) -> str:
    return ast.unparse(ast.fix_missing_locations(node))


def _as_real(x: Text) -> ast.expr:
    return x.node if x.kind == "real" else _call("np.float32", x.node)


def as_number(x: Text) -> ast.expr:
    """The sum of two of NumPy's truths is a truth, and there is no negative one."""
    return _call("int", x.node) if x.kind == "truth" else x.node


def as_truth(x: Text) -> ast.expr:
    """`and` and `or` of Python give one of their sides, and not its truth."""
    return x.node if x.kind == "truth" else ast.Compare(x.node, [ast.NotEq()], [ast.Constant(0)])


def stored(x: Text, bank: Bank | None) -> ast.expr:
    """As it stands in a bank, or among the elements of a list."""
    if isinstance(bank, Lists):
        return ast.Subscript(x.node, ast.Slice(None, ast.Constant(bank.capacity))) if x.most > bank.capacity else x.node
    if bank is not None and bank.real:
        return _as_real(x)
    return as_number(x)


def one(x: Any) -> Text:
    """A single value, of what may be several."""
    assert isinstance(x, Text)
    return x
