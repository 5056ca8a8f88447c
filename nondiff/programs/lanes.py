"""What lines mean to JAX: every value is an array `[programs, cases]`, a lane for each program and case.

All lanes take a step at once, whatever line each is at. An expression that several lines share is computed once; what a
place is given is then chosen by the line's number. The cases stand last, so that a processor takes many at a time.
"""

import ast
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from nondiff.programs.arithmetic import COMPARE, FUNCTIONS, REAL, REAL_ONLY, WHOLE, whole
from nondiff.programs.banks import Cells, lengths_of
from nondiff.programs.instructions import Instructions
from nondiff.programs.line import AbstractMeaning, expression, walk

Banks = dict[str, Array]
"""By name: `[programs, places, cases]`; of a memory whose cases differ, also their lengths, `[programs, 1, cases]`."""
SHORT = 16
"""Up to so many places a bank is read by comparing all of them; a longer one by an address."""


def is_real(x: Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)


def as_number(x: Any) -> Array:
    """A truth value counts 0 or 1."""
    x = jnp.asarray(x)
    return x.astype(jnp.int32) if x.dtype == bool else x


class Lanes(AbstractMeaning[Array]):
    """The values of expressions, each computed once."""

    def __init__(self, banks: Mapping[str, Array], names: Mapping[str, Array]):
        self.banks, self.names = banks, names
        self.known: dict[str, Any] = {}

    def value(self, node: ast.expr) -> Any:
        """Of an expression, by its text."""
        text = ast.unparse(node)
        if text not in self.known:
            self.known[text] = walk(node, self, self.banks)
        return self.known[text]

    def number(self, value: bool | int | float) -> Array:
        if isinstance(value, bool):
            return jnp.asarray(value)
        return jnp.float32(value) if isinstance(value, float) else whole(jnp.int32(value))

    def name(self, name: str) -> Array:
        if name not in self.names:
            raise ValueError(f"`{name}` is neither a bank nor an operand nor an input.")
        return self.names[name]

    def whole_bank(self, bank: str) -> Array:
        return self.banks[bank]

    def place(self, bank: str, index: Array) -> Array:
        """An index, wrapped round."""
        own = self.own_length(bank)
        return jnp.atleast_2d(index % (self.banks[bank].shape[1] if own is None else jnp.maximum(own, 1)))

    def read(self, bank: str, index: Array) -> Array:
        found, own = self._held(bank, index), self.own_length(bank)
        return found if own is None else jnp.where(own > 0, found, jnp.zeros_like(found))

    def _held(self, bank: str, index: Array) -> Array:
        held, place = self.banks[bank], self.place(bank, as_number(index))
        if place.shape == (1, 1):
            return jax.lax.dynamic_index_in_dim(held, place[0, 0], axis=1, keepdims=False)
        if held.shape[1] <= SHORT:
            out = held[:, 0]
            for i in range(1, held.shape[1]):
                out = jnp.where(place == i, held[:, i], out)
            return out
        place = jnp.broadcast_to(place, (held.shape[0], held.shape[2]))
        return jnp.take_along_axis(held, place[:, None], axis=1)[:, 0]

    def own_length(self, bank: str) -> Array | None:
        """Each case's own, `[programs, cases]`; `None` where it is the same for all."""
        own = self.banks.get(lengths_of(bank))
        return None if own is None else own[:, 0]

    def length(self, bank: str) -> Array:
        own = self.own_length(bank)
        return jnp.int32(self.banks[bank].shape[1]) if own is None else own

    def call(self, function: str, args: list[Array]) -> Array:
        args = [as_number(x) for x in args]
        if function in REAL_ONLY:
            args = [x.astype(jnp.float32) for x in args]
        return FUNCTIONS[function](*args)

    def binary(self, op: ast.operator, left: Array, right: Array) -> Array:
        left, right = as_number(left), as_number(right)
        if is_real(left) or is_real(right):
            return REAL[type(op)](left.astype(jnp.float32), right.astype(jnp.float32))
        if type(op) not in WHOLE:
            raise ValueError("`/` of whole numbers leaves them; use `//`, or `Cells(..., real=True)`.")
        return WHOLE[type(op)](left, right)

    def negative(self, x: Array) -> Array:
        return -as_number(x)

    def compare(self, op: ast.cmpop, left: Array, right: Array) -> Array:
        return COMPARE[type(op)](as_number(left), as_number(right))

    def both(self, left: Array, right: Array) -> Array:
        return _truth(left) & _truth(right)

    def either(self, left: Array, right: Array) -> Array:
        return _truth(left) | _truth(right)

    def no(self, x: Array) -> Array:
        return ~_truth(x)

    def choose(self, test: Array, yes: Array, no: Array) -> Array:
        return jnp.where(_truth(test), yes, no)


def _truth(x: Array) -> Array:
    return x if x.dtype == bool else x != 0


def write(held: Array, place: Array, value: Array, where: Array) -> Array:
    """A bank with `value` at `place`, in the lanes `where`."""
    if held.shape[1] <= SHORT:
        at = jnp.arange(held.shape[1])[:, None] == place[:, None, :]
        return jnp.where(at & where[:, None, :], value[:, None, :], held)
    shape = held.shape[0], held.shape[2]
    place, value, where = (jnp.broadcast_to(x, shape) for x in (place, value, where))
    row, lane = jnp.arange(shape[0])[:, None], jnp.arange(shape[1])
    return held.at[row, place, lane].set(jnp.where(where, value, held[row, place, lane]))


def step(
    instructions: Instructions, banks: Banks, op: Array, a: Array, b: Array, running: Array
) -> tuple[Banks, dict[str, Array]]:
    """One line in every lane that is `running`: the banks, and the flags `skip` and `again`.

    Line `i` of the set has the number `i + 1`; any other number is no line, and does nothing.
    """
    lanes = Lanes(banks, {"a": a, "b": b})
    chosen = [op == i + 1 for i in range(len(instructions.lines))]
    flags: dict[str, Array] = {}
    after = dict(banks)
    most = max(len(line.targets) for line in instructions.parsed)
    for position in range(most):  # a line's first target is written first, as by Python
        groups: dict[str, list[tuple[ast.expr, Array, Array]]] = {}
        for line, here in zip(instructions.parsed, chosen, strict=True):
            if position < len(line.targets):
                assert line.value is not None
                value = lanes.value(line.value)
                values = [jnp.atleast_2d(x) for x in (value if isinstance(value, tuple) else (value,))]
                if len(values) != len(line.targets):
                    raise ValueError(f"the line {line.text!r} has {len(line.targets)} targets, {len(values)} values.")
                target = line.targets[position]
                groups.setdefault(ast.unparse(target), []).append((target, here, values[position]))
        for text, parts in groups.items():
            where = _any([here for _, here, _ in parts])
            if text in ("skip", "again"):
                flag = _pick([(here, _truth(value)) for _, here, value in parts])
                flags[text] = flags.get(text, jnp.zeros((), bool)) | (flag & where & running)
                continue
            target = parts[0][0]
            assert isinstance(target, ast.Subscript) and isinstance(target.value, ast.Name)
            bank = target.value.id
            value = _pick([(here, stored(value, banks[bank])) for _, here, value in parts])
            place = lanes.place(bank, as_number(lanes.value(target.slice)))
            where = where & running
            kind = instructions.banks[bank]
            if isinstance(kind, Cells) and kind.fixed:
                where = where & (place < kind.free)
            own = lanes.own_length(bank)
            if own is not None:
                where = where & (own > 0)
            after[bank] = write(after[bank], place, value, where)
    return after, flags


def stored(value: Array, held: Array) -> Array:
    """As it stands in a bank. **Raises** `ValueError` for a float among whole numbers."""
    if is_real(value) and not is_real(held):
        raise ValueError("a line puts a float where whole numbers are held; make that bank `real=True`.")
    return value.astype(held.dtype)


def _any(masks: list[Array]) -> Array:
    out = masks[0]
    for mask in masks[1:]:
        out = out | mask
    return out


def _pick(parts: list[tuple[Array, Array]]) -> Array:
    """The value of the line that is chosen; that of any line where none of them is."""
    (_, out), *others = parts
    for here, value in others:
        out = jnp.where(here, value, out)
    return out


def start(
    instructions: Instructions, programs: int, cases: int, constants: Array | None, inputs: Mapping[str, Array]
) -> Banks:
    """The banks before the first line. Inputs are `[1 or programs, cases, ...]`."""
    memories = {name: jnp.moveaxis(inputs[name], 2, 1) for name in instructions.banks if name in inputs}
    lengths = {lengths_of(name): inputs[lengths_of(name)][:, None] for name in memories if lengths_of(name) in inputs}
    lanes = Lanes(memories | lengths, {name: x for name, x in inputs.items() if name not in memories})
    out: Banks = {name: jnp.broadcast_to(x, (programs, 1, cases)) for name, x in lengths.items()}
    for name, bank in instructions.banks.items():
        if name in memories:
            held, places = memories[name], memories[name].shape[1]
        elif isinstance(bank, Cells):
            held = jnp.stack([_lane(x, lanes, bank.real, (programs, cases)) for x in bank.texts], axis=1)
            places = bank.size
        else:
            assert constants is not None
            held, places = constants[:, :, None], constants.shape[1]
        out[name] = jnp.broadcast_to(held, (programs, places, cases))
    return out


def _lane(text: str, lanes: Lanes, real: bool, shape: tuple[int, int]) -> Array:
    value = as_number(lanes.value(expression(text)))
    return jnp.broadcast_to(stored(value, jnp.zeros((), jnp.float32 if real else jnp.int32)), shape)
