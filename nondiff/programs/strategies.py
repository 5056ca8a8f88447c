"""How a population of programs is run; what comes out is the same.

Under `jax.vmap`, `jax.lax.switch` computes every branch, which costs 17 to 37 times on a CPU. So a population is run by
hand: all lanes together, each choosing among the lines' values; or one program after the other, each line by itself.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Int

from nondiff.core.checks import check_count
from nondiff.programs import machine
from nondiff.programs.banks import Cells, lengths_of
from nondiff.programs.instructions import Instructions
from nondiff.programs.lanes import Banks, Lanes
from nondiff.programs.line import Line, bank_of
from nondiff.programs.machine import Constants, Inputs, Lines, Outcome, Ran
from nondiff.programs.step import stored

LANES = 16_384
"""Programs times cases that are run at once: their values stay near the processor."""
FIRST = 32
"""Most random programs end within so many steps; the others are then run by themselves."""
SOME = 8
"""Cases from which one line of one program is work enough to choose it by itself, on a CPU."""


class AbstractStrategy(eqx.Module):
    """A way to run programs."""

    @abc.abstractmethod
    def __call__(
        self,
        instructions: Instructions,
        steps: int,
        code: Int[Array, "programs length 3"],
        constants: Constants,
        inputs: Inputs,
    ) -> Outcome:
        """All programs on all cases, for `steps` steps at most."""

    def check(self, instructions: Instructions) -> None:
        """Raise `ValueError` for a set whose programs it cannot run; default: there is none."""
        del instructions


class Together(AbstractStrategy):
    """All lanes take a step at once, `chunk` programs at a time, until every one of them has ended.

    **Arguments:**

    - `chunk`: programs at once. Default `None`: as many as make 16,384 lanes on a CPU, all of them elsewhere.

    **Raises** `ValueError` for a chunk below 1.
    """

    chunk: int | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        if self.chunk is not None:
            check_count("Together", "chunk", self.chunk)

    def __call__(
        self, instructions: Instructions, steps: int, code: Array, constants: Constants, inputs: Inputs
    ) -> Outcome:
        run = self._straight if instructions.straight else self._jumping
        return run(instructions, steps, code, constants, inputs)

    def _width(self, programs: int, cases: int) -> int:
        if self.chunk is not None:
            return min(self.chunk, programs)
        return min(max(LANES // cases, 1), programs) if jax.default_backend() == "cpu" else programs

    def _jumping(
        self, instructions: Instructions, steps: int, code: Array, constants: Constants, inputs: Inputs
    ) -> Outcome:
        programs, length, _ = code.shape
        width = self._width(programs, _cases(inputs))

        def until(steps: int, part: tuple[Lines, Ran]) -> Ran:
            lines, ran = part

            def goes_on(ran: Ran) -> Array:
                return jnp.any((ran.place < length) & (ran.steps < steps))

            return jax.lax.while_loop(goes_on, lambda ran: machine.advance(instructions, lines, ran), ran)

        lines = machine.pack(instructions, code)
        ran = machine.begin(instructions, programs, _cases(inputs), constants, inputs)
        ran = _in_chunks(lambda part: until(min(FIRST, steps), part), (lines, ran), programs, width)
        if steps > FIRST:
            order = jnp.argsort(~jnp.any(ran.place < length, axis=1), stable=True)  # what has not ended comes first
            lines, ran = jtu.tree_map(lambda x: x[order], (lines, ran))
            ran = _in_chunks(
                lambda part: until(steps, part), (lines, ran), programs, min(width, max(programs // 16, 1))
            )
            ran = jtu.tree_map(lambda x: x[jnp.argsort(order)], ran)
        return machine.outcome(instructions, ran, length)

    def _straight(
        self, instructions: Instructions, steps: int, code: Array, constants: Constants, inputs: Inputs
    ) -> Outcome:
        programs, length, _ = code.shape
        lines, counts = machine.dense(instructions, machine.pack(instructions, code), steps)
        own, shared = _parted(inputs, programs)
        order = jnp.argsort(counts, stable=True)  # what is equally long is run at once

        def run(part: Any) -> Outcome:
            lines, counts, constants, own = part
            ran = machine.begin(instructions, counts.shape[0], _cases(inputs), constants, own | shared)
            banks = jax.lax.fori_loop(
                0, jnp.max(counts), lambda i, banks: machine.advance_straight(instructions, lines, banks, i), ran.banks
            )
            ran = machine.at_the_end(ran, banks, min(steps, length))
            return machine.outcome(instructions, ran, length)

        parts = jtu.tree_map(lambda x: x[order], (lines, counts, constants, own))
        out = _in_chunks(run, parts, programs, self._width(programs, _cases(inputs)))
        return jtu.tree_map(lambda x: x[jnp.argsort(order)], out)


class Switch(AbstractStrategy):
    """One program after the other, and of each line only what it computes: for programs that do not jump, and whose
    lines all write to the same target, such as `v[a]`, or of every bank to one.

    **Raises** `ValueError`, when a `Program` is made, for a set with other lines, and when it runs, where they write to
    a memory whose cases have lengths of their own: they would not write to one and the same place.
    """

    def check(self, instructions: Instructions) -> None:
        if instructions.targets is None:
            raise ValueError(
                "`Switch()`: lines of this set jump (`skip`, `again`, `leave`), or do not all write to one and the "
                "same target of a bank such as `v[a]`, so the cases of a program would part. Use `Together()`."
            )

    def __call__(
        self, instructions: Instructions, steps: int, code: Array, constants: Constants, inputs: Inputs
    ) -> Outcome:
        if not _writes_one_place(instructions, inputs):
            raise ValueError("`Switch()`: lines write to a memory whose cases have own lengths. Use `Together()`.")
        programs, length, _ = code.shape
        lines, counts = machine.dense(instructions, machine.pack(instructions, code), steps)
        own, shared = _parted(inputs, programs)

        def run(part: Any) -> Outcome:
            (lines, constants, own), count = jtu.tree_map(lambda x: x[None], part[:3]), part[3]
            ran = machine.begin(instructions, 1, _cases(inputs), constants, own | shared)

            def go(place: Any, banks: Banks) -> Banks:
                return _one_line(instructions, banks, lines, place)

            banks = jax.lax.fori_loop(0, count, go, ran.banks)
            ran = machine.at_the_end(ran, banks, min(steps, length))
            return jtu.tree_map(lambda x: x[0], machine.outcome(instructions, ran, length))

        return jax.lax.map(run, (lines, constants, own, counts))


class Automatic(AbstractStrategy):
    """`Switch()` on a CPU for 8 cases or more and a set that it takes, else `Together()`."""

    def __call__(
        self, instructions: Instructions, steps: int, code: Array, constants: Constants, inputs: Inputs
    ) -> Outcome:
        alone = _writes_one_place(instructions, inputs) and jax.default_backend() == "cpu" and _cases(inputs) >= SOME
        return (Switch() if alone else Together())(instructions, steps, code, constants, inputs)


def _writes_one_place(instructions: Instructions, inputs: Inputs) -> bool:
    """Do all cases write to the same place? A memory's places wrap round by its length."""
    return instructions.targets is not None and not any(lengths_of(bank_of(t)) in inputs for t in instructions.targets)


def _one_line(instructions: Instructions, banks: Banks, lines: Lines, place: Any) -> Banks:
    """The line at `place` of one program: a branch for each line of the set, which gives a value.

    It is written outside of it, so that no bank is copied. What a branch needs it computes by itself: whatever passes
    between, such as an operand, costs as much as the values of some hundred cases.
    """
    assert instructions.targets is not None
    targets = {bank_of(target): target for target in instructions.targets}

    def here() -> tuple[Array, Lanes, dict[str, Array]]:
        op, a, b = machine.unpacked(instructions, jax.lax.dynamic_slice_in_dim(lines.packed, place, 1, axis=1))
        lanes = Lanes(banks, {"a": a, "b": b})
        return op[0, 0], lanes, {bank: lanes.place(bank, lanes.value(t.slice)) for bank, t in targets.items()}

    def branch(line: Line) -> Callable[[], dict[str, Any]]:
        def values() -> dict[str, Any]:
            _, lanes, at = here()
            out = {bank: lanes.value(target) for bank, target in targets.items()}
            for target in line.targets:
                assert line.value is not None
                bank, now = bank_of(target), out[bank_of(target)]
                new = stored(lanes.value(line.value), now)
                new = jtu.tree_map(lambda x, y: jnp.broadcast_to(x, y.shape), new, now)
                kind = instructions.banks[bank]
                out[bank] = jnp.where(at[bank] < kind.free, new, now) if isinstance(kind, Cells) and kind.fixed else new
            return out

        return values

    op, _, at = here()
    after = jax.lax.switch(op - 1, [branch(line) for line in instructions.parsed])

    def written(held: Array, value: Array, bank: str) -> Array:
        return jax.lax.dynamic_update_index_in_dim(held, value, at[bank][0, 0], axis=1)

    return banks | {
        bank: jtu.tree_map(lambda held, x, bank=bank: written(held, x, bank), banks[bank], value)
        for bank, value in after.items()
    }


def _cases(inputs: Inputs) -> int:
    return jtu.tree_leaves(inputs)[0].shape[1]


def _parted(inputs: Inputs, programs: int) -> tuple[dict[str, Array], dict[str, Array]]:
    """Inputs that each program has of its own, and those that all share."""
    own = {name: x for name, x in inputs.items() if x.shape[0] == programs and programs > 1}
    return own, {name: x for name, x in inputs.items() if name not in own}


def _in_chunks(run: Callable[[Any], Any], xs: Any, programs: int, width: int) -> Any:
    """`width` programs at a time; the last one is run again where they do not come out even."""
    if width >= programs:
        return run(xs)
    spare = -programs % width
    wide = jtu.tree_map(lambda x: jnp.concatenate([x, x[-1:].repeat(spare, 0)]) if spare else x, xs)
    wide = jtu.tree_map(lambda x: x.reshape(-1, width, *x.shape[1:]), wide)
    return jtu.tree_map(lambda x: x.reshape(-1, *x.shape[2:])[:programs], jax.lax.map(run, wide))
