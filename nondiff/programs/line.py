"""A line of a program is a line of Python as text, and this file is what such a line may say.

The text has two meanings, and one walk for both: `lanes.py` computes it for a whole population with JAX, `python.py`
prints it as part of a program. So what is printed is what was computed.
"""

import abc
import ast
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from nondiff.core.record import record

Value = TypeVar("Value")
LIMIT = 2**30 - 1
"""The largest whole number, and the least without its sign."""
OPERANDS = ("a", "b")
FLAGS = ("skip", "again", "leave")
BINARY = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod)
COMPARISONS = (ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq)
WORDS = {"abs": 1, "min": 2, "max": 2, "sin": 1, "cos": 1, "tanh": 1, "exp": 1, "log": 1, "sqrt": 1}
"""Functions that a line may call, and how many arguments they take."""
LISTS = {"len", "sum", "min", "max", "sorted"}
"""Functions of one list."""
BEGIN = "begin"


@record
class Line:
    """One instruction: `targets = value`, as Python's own syntax trees."""

    text: str
    targets: tuple[ast.expr, ...]
    value: ast.expr | None
    """`None` for `begin`."""

    def flag(self, name: str) -> bool:
        """Does it set `skip`, `again`, or `leave`?"""
        return any(isinstance(target, ast.Name) and target.id == name for target in self.targets)

    @property
    def elements(self) -> set[str]:
        """Names of its comprehensions."""
        nodes = [] if self.value is None else ast.walk(self.value)
        targets = [node.target for node in nodes if isinstance(node, ast.comprehension)]
        return {x.id for target in targets for x in ast.walk(target) if isinstance(x, ast.Name)}


class AbstractMeaning(abc.ABC, Generic[Value]):
    """What the parts of an expression stand for."""

    @abc.abstractmethod
    def number(self, value: bool | int | float) -> Value: ...

    @abc.abstractmethod
    def name(self, name: str) -> Value:
        """An operand of a line, or an input where a bank starts."""

    @abc.abstractmethod
    def whole_bank(self, bank: str) -> Value:
        """All of its places, as a result."""

    @abc.abstractmethod
    def read(self, bank: str, index: Value) -> Value: ...

    @abc.abstractmethod
    def length(self, bank: str) -> Value: ...

    @abc.abstractmethod
    def call(self, function: str, args: list[Value]) -> Value: ...

    @abc.abstractmethod
    def binary(self, op: ast.operator, left: Value, right: Value) -> Value: ...

    @abc.abstractmethod
    def negative(self, x: Value) -> Value: ...

    @abc.abstractmethod
    def compare(self, op: ast.cmpop, left: Value, right: Value) -> Value: ...

    @abc.abstractmethod
    def both(self, left: Value, right: Value) -> Value: ...

    @abc.abstractmethod
    def either(self, left: Value, right: Value) -> Value: ...

    @abc.abstractmethod
    def no(self, x: Value) -> Value: ...

    @abc.abstractmethod
    def choose(self, test: Value, yes: Value, no: Value) -> Value: ...

    @abc.abstractmethod
    def empty(self) -> Value:
        """The list without elements."""

    @abc.abstractmethod
    def on_list(self, function: str, args: list[Value]) -> Value:
        """Of a list, and maybe a number: one of `LISTS`, `"take"`, `"drop"`, `"reversed"`, `"item"`, `"accumulate"`."""

    @abc.abstractmethod
    def comprehension(self, names: list[str], lists: list[Value], body: ast.expr, test: ast.expr | None) -> Value:
        """The list of `body` for each element of `lists` side by side, by `names`, for which `test` holds."""


def walk(node: ast.expr, means: AbstractMeaning[Value], banks: Any) -> Value | tuple[Value, ...]:
    """The value of an expression; a tuple for one of several values. `banks` are the names that may be indexed."""

    def one(node: ast.expr) -> Any:
        return walk(node, means, banks)

    match node:
        case ast.Constant(value=bool() | float() as value):
            return means.number(value)
        case ast.Constant(value=int() as value):
            if value > LIMIT:
                raise ValueError(f"the number {value}: whole numbers end at {LIMIT}, 2**30 - 1.")
            return means.number(value)
        case ast.Name(id=name) if name in banks:
            return means.whole_bank(name)
        case ast.Name(id=name):
            return means.name(name)
        case ast.Subscript(value=ast.Name(id=bank), slice=index) if bank in banks:
            return means.read(bank, one(index))
        case ast.Call(func=ast.Name(id="len"), args=[ast.Name(id=bank)], keywords=[]) if bank in banks:
            return means.length(bank)
        case ast.Subscript(value=x, slice=ast.Slice() as part):
            return _part(part, one(x), means, one)
        case ast.Subscript(value=ast.Subscript() as x, slice=index):
            return means.on_list("item", [one(x), one(index)])
        case ast.Call(func=ast.Name(id=name), args=[x], keywords=[]) if name in LISTS:
            return means.on_list(name, [one(x)])
        case ast.Call(
            func=ast.Name(id="list"),
            args=[ast.Call(func=ast.Name(id="accumulate"), args=[x], keywords=[])],
            keywords=[],
        ):
            return means.on_list("accumulate", [one(x)])
        case ast.Call(
            func=ast.Name(id="list"),
            args=[ast.Call(func=ast.Name(id="accumulate"), args=[x, ast.Name(id="min" | "max" as name)], keywords=[])],
            keywords=[],
        ):
            return means.on_list(f"accumulate {name}", [one(x)])
        case ast.List(elts=[]):
            return means.empty()
        case ast.ListComp(elt=body, generators=[ast.comprehension(target=target, iter=source, ifs=tests)]):
            names, sources = _sources(target, source, banks)
            if len(tests) > 1:
                raise ValueError(f"`{ast.unparse(node)}` has several tests; join them by `and`.")
            return means.comprehension(names, [one(x) for x in sources], body, tests[0] if tests else None)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if WORDS.get(name) == len(args):
            return means.call(name, [one(x) for x in args])
        case ast.BinOp(left=left, op=op, right=right) if isinstance(op, BINARY):
            return means.binary(op, one(left), one(right))
        case ast.UnaryOp(op=ast.USub(), operand=x):
            return means.negative(one(x))
        case ast.UnaryOp(op=ast.Not(), operand=x):
            return means.no(one(x))
        case ast.Compare(left=left, ops=[op], comparators=[right]) if isinstance(op, COMPARISONS):
            return means.compare(op, one(left), one(right))
        case ast.BoolOp(op=op, values=values):
            join = means.both if isinstance(op, ast.And) else means.either
            first, *others = map(one, values)
            for other in others:
                first = join(first, other)
            return first
        case ast.IfExp(test=test, body=yes, orelse=no):
            return _choose(means, one(test), one(yes), one(no))
        case ast.Tuple(elts=parts):
            return tuple(map(one, parts))
    raise ValueError(
        f"`{ast.unparse(node)}` is nothing that a line may say. It may use numbers, `bank[place]`, `len(bank)`, "
        f"`+ - * / // %`, comparisons of two values, `and`, `or`, `not`, `x if test else y`, {', '.join(WORDS)}; of "
        f"lists also `x[i]`, `x[i:]`, `x[:i]`, `x[::-1]`, `x + y`, {', '.join(sorted(LISTS))}, `list(accumulate(x))`, "
        "and `[... for x in ... if ...]`, of several lists by `zip`."
    )


def _part(part: ast.Slice, x: Value, means: AbstractMeaning[Value], one: Callable[[ast.expr], Value]) -> Value:
    match part:
        case ast.Slice(lower=None, upper=ast.expr() as stop, step=None):
            return means.on_list("take", [x, one(stop)])
        case ast.Slice(lower=ast.expr() as start, upper=None, step=None):
            return means.on_list("drop", [x, one(start)])
        case ast.Slice(lower=None, upper=None, step=ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=1))):
            return means.on_list("reversed", [x])
    raise ValueError(f"`[{ast.unparse(part)}]`: expected `[:stop]`, `[start:]`, or `[::-1]`.")


def _sources(target: ast.expr, source: ast.expr, banks: Any) -> tuple[list[str], list[ast.expr]]:
    """The names of a comprehension, and the lists that they go through."""
    match target, source:
        case ast.Name() as only, _:
            targets: list[ast.expr] = [only]
            sources = [source]
        case ast.Tuple(elts=targets), ast.Call(func=ast.Name(id="zip"), args=sources, keywords=[]) if len(
            targets
        ) == len(sources):
            pass
        case _:
            raise ValueError(
                f"`for {ast.unparse(target)} in {ast.unparse(source)}`: expected `for x in list`, or "
                "`for x, y in zip(list, list)`."
            )
    names = [x.id for x in targets if isinstance(x, ast.Name)]
    if len(set(names)) != len(sources) or any(x in banks or x in OPERANDS for x in names):
        raise ValueError(
            f"`for {ast.unparse(target)} in {ast.unparse(source)}`: expected different names, and none of operands "
            "or banks."
        )
    return names, sources


def _choose(means: AbstractMeaning[Any], test: Any, yes: Any, no: Any) -> Any:
    if isinstance(yes, tuple) and isinstance(no, tuple) and len(yes) == len(no):
        return tuple(means.choose(test, x, y) for x, y in zip(yes, no, strict=True))
    if isinstance(yes, tuple) or isinstance(no, tuple):
        raise ValueError("both sides of a line's `if` need as many values.")
    return means.choose(test, yes, no)


def parse(text: str, banks: Any) -> Line:
    """A line from its text. **Raises** `ValueError` for one that is no assignment to a place of a bank, `skip`,
    `again` or `leave`."""
    if text.strip() == BEGIN:
        return Line(BEGIN, (), None)
    try:
        (node,) = ast.parse(text.strip()).body
    except (SyntaxError, ValueError) as e:
        raise ValueError(f"the line {text!r} is not one line of Python.") from e
    if not isinstance(node, ast.Assign) or len(node.targets) != 1:
        raise ValueError(f"the line {text!r} assigns nothing; expected one like 'r[a] = r[a] + 1', or 'begin'.")
    (left,) = node.targets
    targets = tuple(left.elts) if isinstance(left, ast.Tuple) else (left,)
    for target in targets:
        match target:
            case ast.Name(id=name) if name in FLAGS:
                pass
            case ast.Subscript(value=ast.Name(id=bank)) if bank in banks:
                pass
            case _:
                raise ValueError(
                    f"the line {text!r} assigns to `{ast.unparse(target)}`; expected a place of one of the banks "
                    f"{', '.join(banks)}, such as `{next(iter(banks))}[a]`, or {', '.join(FLAGS)}."
                )
    line = Line(text.strip(), targets, node.value)
    if sum(map(line.flag, FLAGS)) > 1:
        raise ValueError(f"the line {text!r} sets several of {', '.join(FLAGS)}; make it several lines.")
    return line


def bank_of(target: ast.expr) -> str:
    """The name of the bank that a target is a place of."""
    assert isinstance(target, ast.Subscript) and isinstance(target.value, ast.Name)
    return target.value.id


def check_no_whole_bank(node: ast.expr, banks: Any, where: str) -> None:
    """**Raises** `ValueError` for a bank that stands without a place, but for `len` of it."""
    single = [n.value for n in ast.walk(node) if isinstance(n, ast.Subscript) and not isinstance(n.slice, ast.Slice)]
    calls = [n for n in ast.walk(node) if isinstance(n, ast.Call) and ast.unparse(n.func) == "len"]
    single += [x for call in calls for x in call.args]
    for n in ast.walk(node):
        if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load) and n.id in banks and n not in single:
            raise ValueError(f"{where} takes the whole of `{n.id}`; expected a place, such as `{n.id}[a]`.")


def expression(text: str) -> ast.expr:
    """The tree of an expression. **Raises** `ValueError` if it is none."""
    try:
        return ast.parse(text.strip(), mode="eval").body
    except SyntaxError as e:
        raise ValueError(f"{text!r} is no expression of Python.") from e
