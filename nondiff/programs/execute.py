"""Programs as one operation of JAX: mapped over genomes it is still one, and constants have derivatives."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array

from nondiff.programs import machine
from nondiff.programs.instructions import Instructions
from nondiff.programs.lanes import Banks
from nondiff.programs.machine import Outcome
from nondiff.programs.strategies import AbstractStrategy


@functools.lru_cache(maxsize=256)
def executor(instructions: Instructions, steps: int, strategy: AbstractStrategy) -> Any:
    """Runs `[programs, ...]`, and under `jax.vmap` takes the mapped axis for one of programs."""

    @jax.custom_batching.custom_vmap
    def execute(code: Array, constants: Array | None, inputs: dict[str, Array]) -> Outcome:
        return strategy(instructions, steps, code, constants, inputs)

    @execute.def_vmap
    def _(size: int, mapped: Sequence[Any], code: Array, constants: Array | None, inputs: dict[str, Array]) -> Any:
        programs = code.shape[1] if mapped[0] else code.shape[0]

        def fold(x: Array, is_mapped: bool, rows: int) -> Array:
            x = x if is_mapped else jnp.broadcast_to(x[None], (size, *x.shape))
            x = jnp.broadcast_to(x, (size, rows, *x.shape[2:]))
            return x.reshape(size * rows, *x.shape[2:])

        code = fold(code, mapped[0], programs)
        constants = None if constants is None else fold(constants, mapped[1], programs)
        inputs = {
            name: x if not mapped[2][name] and x.shape[0] == 1 else fold(x, mapped[2][name], programs)
            for name, x in inputs.items()
        }
        out = execute(code, constants, inputs)
        return jtu.tree_map(lambda x: x.reshape(size, programs, *x.shape[1:]), out), jtu.tree_map(lambda _: True, out)

    def plain(code: Array, constants: Array | None, inputs: dict[str, Array]) -> Outcome:
        """By operations that all have derivatives."""
        ran = machine.begin(instructions, code.shape[0], jtu.tree_leaves(inputs)[0].shape[1], constants, inputs)
        lines, taken = machine.pack(instructions, code), min(steps, code.shape[1])
        if instructions.straight:
            lines, _ = machine.dense(instructions, lines, steps)

            def pass_on(banks: Banks, place: Array) -> tuple[Banks, None]:
                return machine.advance_straight(instructions, lines, banks, place), None

            banks, _ = jax.lax.scan(pass_on, ran.banks, jnp.arange(taken))
            return machine.outcome(instructions, machine.at_the_end(ran, banks, taken), code.shape[1])

        def go(ran: machine.Ran, _: None) -> tuple[machine.Ran, None]:
            return machine.advance(instructions, lines, ran), None

        ran, _ = jax.lax.scan(go, ran, None, length=steps)
        return machine.outcome(instructions, ran, code.shape[1])

    run = jax.custom_jvp(execute)
    run.defjvp(lambda primals, tangents: jax.jvp(plain, primals, tangents))
    return jax.jit(run)  # so that a call outside of any other compiles once
