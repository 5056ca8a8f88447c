"""How a population of programs is run; what comes out is the same.

Under `jax.vmap`, `jax.lax.switch` computes every branch, which costs 17 to 37 times on a CPU. So a population is run by
hand: all lanes together, each choosing among the lines' values; or one program after the other, each line by itself.
"""

import abc
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Int

from nondiff.core.checks import check_count
from nondiff.programs.instructions import Instructions
from nondiff.programs.machine import Constants, Inputs, Lines, Ran, advance, advance_straight, begin, pack

LANES = 16_384
"""Programs times cases that are run at once: their values stay near the processor."""
FIRST = 32
"""Most random programs end within so many steps; the others are then run by themselves."""


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
    ) -> Ran:
        """All programs on all cases, for `steps` steps at most."""


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
    ) -> Ran:
        programs, length, _ = code.shape
        cases = jtu.tree_leaves(inputs)[0].shape[1]
        ran = begin(instructions, programs, cases, constants, inputs)
        lines = pack(instructions, code)
        if instructions.straight:
            return self._straight(instructions, min(steps, length), lines, ran)
        ran = self._until(instructions, min(FIRST, steps), lines, ran, self._width(programs, cases))
        if steps <= FIRST:
            return ran
        order = jnp.argsort(~jnp.any(ran.place < length, axis=1), stable=True)  # those that have not ended come first
        lines, ran = jtu.tree_map(lambda x: x[order], (lines, ran))
        width = min(self._width(programs, cases), max(programs // 16, 1))
        ran = self._until(instructions, steps, lines, ran, width)
        back = jnp.argsort(order)
        return jtu.tree_map(lambda x: x[back], ran)

    def _width(self, programs: int, cases: int) -> int:
        if self.chunk is not None:
            return min(self.chunk, programs)
        return min(max(LANES // cases, 1), programs) if jax.default_backend() == "cpu" else programs

    def _until(self, instructions: Instructions, steps: int, lines: Lines, ran: Ran, width: int) -> Ran:
        def run(part: tuple[Lines, Ran]) -> Ran:
            lines, ran = part

            def goes_on(ran: Ran) -> Array:
                return jnp.any((ran.place < lines.packed.shape[1]) & (ran.steps < steps))

            return jax.lax.while_loop(goes_on, lambda ran: advance(instructions, lines, ran), ran)

        return _in_chunks(run, (lines, ran), ran.place.shape[0], width)

    def _straight(self, instructions: Instructions, steps: int, lines: Lines, ran: Ran) -> Ran:
        def run(part: tuple[Lines, Ran]) -> Ran:
            lines, ran = part
            return jax.lax.fori_loop(0, steps, lambda i, ran: advance_straight(instructions, lines, ran, i), ran)

        programs, cases = ran.place.shape
        return _in_chunks(run, (lines, ran), programs, self._width(programs, cases))


def _in_chunks(run: Callable[[tuple[Lines, Ran]], Ran], xs: tuple[Lines, Ran], programs: int, width: int) -> Ran:
    """`width` programs at a time; the last ones are run again where these do not come out even."""
    if width >= programs:
        return run(xs)
    spare = -programs % width
    wide = jtu.tree_map(lambda x: jnp.concatenate([x, x[-1:].repeat(spare, 0)]) if spare else x, xs)
    wide = jtu.tree_map(lambda x: x.reshape(-1, width, *x.shape[1:]), wide)
    out = jax.lax.map(run, wide)
    return jtu.tree_map(lambda x: x.reshape(-1, *x.shape[2:])[:programs], out)
