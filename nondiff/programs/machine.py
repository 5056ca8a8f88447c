"""The machine: programs `[programs, length, 3]` on cases, line after line, until they end or their budget is spent.

What a lane does depends on its own program and case alone. So a strategy may run lanes in any groups and any order.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from nondiff.core.record import record
from nondiff.programs.instructions import Instructions
from nondiff.programs.lanes import SHORT, Banks, Lanes
from nondiff.programs.lists import Items
from nondiff.programs.step import start, step

Inputs = Mapping[str, Array]
"""By name: `[1 or programs, cases]`, of a `Memory` or a list `[1 or programs, cases, length]`, and where cases differ
also their lengths `[1 or programs, cases]`, as `lengths_of` it."""
Constants = Float[Array, "programs constants"] | None


@record
class Lines:
    """The lines of programs, packed: one number says a line and its operands."""

    packed: Int[Array, "programs length"]
    begins: Int[Array, "programs length"]
    """Where `again` goes from there."""
    ends: Int[Array, "programs length"]
    """Where `leave` goes: after the loop, or after all lines."""


@record
class Ran:
    """Programs that ran, or have come so far."""

    banks: Banks
    place: Int[Array, "programs cases"]
    """Of the next line; the program's length at its end."""
    steps: Int[Array, "programs cases"]
    """Lines that were taken."""


@record
class Outcome:
    """A program's run."""

    result: Any
    """`[cases]`, of a bank `[cases, places]`, of a list `([cases, capacity], lengths)`; a tuple if the set's result is
    one."""
    halted: Bool[Array, "*programs cases"]
    """Did it end within its budget? If not, `result` is what stood there then."""
    steps: Int[Array, "*programs cases"]
    """Lines that were taken."""


def pack(instructions: Instructions, code: Int[Array, "programs length 3"]) -> Lines:
    """Operands are wrapped round; a number that is no line's becomes 0, which does nothing."""
    kinds, *operands = instructions.sizes
    op = jnp.where((code[..., 0] < 0) | (code[..., 0] >= kinds), 0, code[..., 0])
    a, b = (code[..., i + 1] % n for i, n in enumerate(operands))
    length = code.shape[1]
    after = jnp.arange(1, length + 1)
    marks = [i + 1 for i, line in enumerate(instructions.parsed) if line.value is None]
    loops = [i + 1 for i, line in enumerate(instructions.parsed) if line.flag("again")]
    begins = jax.lax.cummax(jnp.where(jnp.isin(op, jnp.array(marks, int)), after, 0), axis=1)
    closes = jnp.where(jnp.isin(op, jnp.array(loops, int)), after, length + 1)
    ends = jax.lax.cummin(closes, axis=1, reverse=True)  # the next line that closes a loop, if that began above
    began = jnp.take_along_axis(begins, jnp.minimum(ends, length) - 1, axis=1) < after
    return Lines((op * operands[0] + a) * operands[1] + b, begins, jnp.where(began, jnp.minimum(ends, length), length))


def begin(instructions: Instructions, programs: int, cases: int, constants: Constants, inputs: Inputs) -> Ran:
    """Before the first line."""
    zero = jnp.zeros((programs, cases), jnp.int32)
    return Ran(start(instructions, programs, cases, constants, inputs), zero, zero)


def advance(instructions: Instructions, lines: Lines, ran: Ran) -> Ran:
    """One line more in every lane that has not ended."""
    length = lines.packed.shape[1]
    running = ran.place < length
    op, a, b = unpacked(instructions, _at(lines.packed, ran.place))
    banks, flags = step(instructions, ran.banks, op, a, b, running)
    following = ran.place + 1
    if "skip" in flags:
        following = following + flags["skip"]
    if "again" in flags:
        back = _at(lines.begins, ran.place) if any(line.value is None for line in instructions.parsed) else 0
        following = jnp.where(flags["again"], back, following)
    if "leave" in flags:
        following = jnp.where(flags["leave"], _at(lines.ends, ran.place), following)
    place = jnp.where(running, jnp.minimum(following, length), ran.place)
    return Ran(banks, place, ran.steps + running)


def dense(instructions: Instructions, lines: Lines, steps: int) -> tuple[Lines, Int[Array, " programs"]]:
    """Programs that do not jump without their empty lines, and how many lines are left of the first `steps`."""
    op, _, _ = unpacked(instructions, lines.packed)
    there = (op != 0) & (jnp.arange(op.shape[1]) < steps)
    order = jnp.argsort(~there, axis=1, stable=True)
    packed = jnp.take_along_axis(jnp.where(there, lines.packed, 0), order, axis=1)
    return dataclasses.replace(lines, packed=packed), jnp.sum(there, 1)


def advance_straight(instructions: Instructions, lines: Lines, banks: Banks, place: Any) -> Banks:
    """The line at `place` of all programs, which do not jump, so that all cases of one are there."""
    op, a, b = unpacked(instructions, jax.lax.dynamic_slice_in_dim(lines.packed, place, 1, axis=1))
    return step(instructions, banks, op, a, b, jnp.ones((1, 1), bool))[0]


def at_the_end(ran: Ran, banks: Banks, steps: int) -> Ran:
    """Programs that did not jump, as they stand with these banks after so many lines."""
    return Ran(banks, jnp.full_like(ran.place, steps), jnp.full_like(ran.steps, steps))


def unpacked(instructions: Instructions, packed: Array) -> tuple[Array, Array, Array]:
    """Numbers and operands of lines."""
    _, most_a, most_b = instructions.sizes
    return packed // (most_a * most_b), packed // most_b % most_a, packed % most_b


def _at(table: Int[Array, "programs length"], place: Int[Array, "programs cases"]) -> Int[Array, "programs cases"]:
    if table.shape[1] > SHORT:
        return jnp.take_along_axis(table, jnp.minimum(place, table.shape[1] - 1), axis=1)
    out = jnp.broadcast_to(table[:, -1:], place.shape)
    for i in range(table.shape[1] - 1):
        out = jnp.where(place == i, table[:, i : i + 1], out)
    return out


def outcome(instructions: Instructions, ran: Ran, length: int) -> Outcome:
    """What has come of programs of so many lines."""
    value = Lanes(ran.banks, {}).value(instructions.returned)

    def one(x: Any) -> Any:
        if isinstance(x, Items):
            shape = jnp.broadcast_shapes(x.values.shape, (*ran.place.shape[:1], 1, ran.place.shape[1]))
            return jnp.moveaxis(jnp.broadcast_to(x.values, shape), 1, 2), jnp.broadcast_to(x.lengths, ran.place.shape)
        x = jnp.moveaxis(x, 1, 2) if x.ndim == 3 else x
        return jnp.broadcast_to(x, (*ran.place.shape, *x.shape[2:]))

    result = tuple(map(one, value)) if isinstance(value, tuple) else one(value)
    return Outcome(result, ran.place >= length, ran.steps)
