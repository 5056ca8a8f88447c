"""A program as a part of a model: its lines are integers among the parameters, and any of them is a program."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Int, Key

from nondiff.core import words
from nondiff.core.checks import check_count
from nondiff.core.code import Code
from nondiff.core.domain import Real
from nondiff.core.record import record
from nondiff.programs.banks import Constants
from nondiff.programs.execute import executor
from nondiff.programs.inputs import checked
from nondiff.programs.instructions import Instructions, check_name
from nondiff.programs.machine import Outcome
from nondiff.programs.python import to_python
from nondiff.programs.strategies import AbstractStrategy, Automatic, Together

AT_ONCE = 256
"""Programs that `simplify` runs at once, so that memory does not grow with the square of the length."""


@record
class Genome:
    """A program's parameters."""

    code: Any
    """Whole numbers `[length, 3]`: each row is a line's number in the set, from 1, and its operands `a` and `b`.
    0 is an empty line."""
    constants: Any = None
    """Floats `[constants]`: the values of the set's `Constants`; `None` without."""

    @property
    def lines(self) -> Int[Array, "..."]:
        """How many lines are not empty; of a population of genomes, of each."""
        return jnp.sum(jnp.asarray(self.code)[..., 0] != 0, -1)


class Program(eqx.Module):
    """Lines of an instruction set, run by JAX: `program(params, x)`.

    The parameters are a `Genome`, one row of whole numbers for each line. Every one of them is a program, none is
    compiled anew, and an empty line does nothing. It is run for all cases, and under `jax.vmap` all genomes, at once.
    Constants and float inputs have derivatives, 0 where there is no finite one; tests, places and lines have none.

    **Arguments:**

    - `instructions`: what a line may be.
    - `length`: how many lines, empty ones too; at least 1.
    - `steps`: the budget: so many lines are taken at most. Default: `length`, enough where no line goes back.
    - `strategy`: how a population is run (default `Automatic()`, by the number of cases); results are the same.

    **Raises** `ValueError` for a length or budget below 1; when called, for a genome that is none of this program's,
    and for inputs of other names, types or shapes, or without cases.

    >>> import jax.numpy as jnp
    >>> from nondiff import Cells, Memory
    >>> sum_up = Instructions(
    ...     ["r[a] = r[b]", "r[a] = r[a] + x[r[b]]", "r[a] = r[a] + 1", "again = r[a] < len(x)"],
    ...     {"r": Cells(2), "x": Memory()},
    ...     result="r[0]",
    ... )
    >>> program = Program(sum_up, length=3, steps=100)
    >>> code = jnp.array([[2, 0, 1], [3, 1, 0], [4, 1, 0]])
    >>> program(Genome(code), jnp.array([[1, 2, 3, 4], [0, 0, 5, 0]]))
    Array([10,  5], dtype=int32)
    >>> print(program.to_python(Genome(code), name="sum_up"))
    def clip(x):
        return max(-1073741823, min(1073741823, x))
    <BLANKLINE>
    class Memory(list):
        nothing = 0
        def __getitem__(self, i):
            return super().__getitem__(i % len(self)) if self else self.nothing
        def __setitem__(self, i, value):
            if self:
                super().__setitem__(i % len(self), value)
    <BLANKLINE>
    def sum_up(x):
        x = Memory(x)
        r = [0, 0]
        while True:
            r[0] = clip(r[0] + x[r[1]])
            r[1] = clip(r[1] + 1)
            again = r[1] < len(x)
            if not again:
                break
        return r[0]
    """

    instructions: Instructions = eqx.field(static=True)
    length: int = eqx.field(static=True, kw_only=True)
    steps: int | None = eqx.field(static=True, kw_only=True, default=None)
    strategy: AbstractStrategy = eqx.field(static=True, kw_only=True, default=Automatic())

    def __check_init__(self) -> None:
        if not isinstance(self.instructions, Instructions):
            raise ValueError(f"`Program({self.instructions!r})`: expected `Instructions`.")
        check_count("Program", "length", self.length)
        if self.steps is not None:
            check_count("Program", "steps", self.steps)
        if not isinstance(self.strategy, AbstractStrategy):
            raise ValueError(f"`Program(strategy={self.strategy!r})`: expected one, for example `Together()`.")
        self.strategy.check(self.instructions)
        _check_lines(self.instructions)

    @property
    def _constants(self) -> int:
        return sum(bank.number for bank in self.instructions.banks.values() if isinstance(bank, Constants))

    @property
    def domain(self) -> Genome:
        """That of its parameters, for `domain=` of a problem: a `Genome` of domains."""
        return Genome(Code(self.instructions.sizes), Real() if self._constants else None)

    def init(self, key: Key[Array, ""]) -> Genome:
        """A random program; constants are normal."""
        w_code, w_constants = words.pieces(key, [(self.length, 3), (self._constants,)])
        code = words.below(w_code, jnp.asarray(self.instructions.sizes)).astype(int)
        return Genome(code, words.normal(w_constants).astype(float) if self._constants else None)

    def __call__(self, params: Genome, x: Any) -> Any:
        """What the set's `result` says: `[cases]`, or `[cases, places]`; of a list `([cases, capacity], lengths)`.

        `x` is the input: `[cases]` or, of a `Memory` or a list, `[cases, length]`, or a pair
        `([cases, capacity], lengths [cases])`; a dictionary of them by name if there are several."""
        return self.run(params, x).result

    def run(self, params: Genome, x: Any) -> Outcome:
        """The result, whether it is one, and what it cost."""
        inputs = checked(self.instructions, x)
        self._check(params)
        code = jnp.asarray(params.code).astype(jnp.int32)[None]
        constants = None if params.constants is None else jnp.asarray(params.constants, jnp.float32)[None]
        budget = self.length if self.steps is None else self.steps
        out = executor(self.instructions, budget, self.strategy)(code, constants, inputs)
        return jtu.tree_map(lambda x: x[0], out)

    def _check(self, params: Any) -> None:
        if not isinstance(params, Genome):
            raise ValueError(f"`Program`: expected its parameters, a `Genome`, and got {type(params).__name__}.")
        code = params.code if hasattr(params.code, "dtype") else np.asarray(params.code)
        shape, dtype = code.shape, code.dtype
        if shape != (self.length, 3) or not jnp.issubdtype(dtype, jnp.integer):
            raise ValueError(
                f"`Program(length={self.length})`: its code is {dtype}{list(shape)}; expected integers "
                f"[{self.length}, 3]."
            )
        given = (0,) if params.constants is None else jnp.shape(params.constants)
        if given != (self._constants,):
            raise ValueError(
                f"`Program`: constants {list(given)} are given, and its instructions have {self._constants}."
            )

    def to_python(self, params: Genome, *, name: str = "program") -> str:
        """Readable Python that computes the same for one case, from plain numbers, up to 2**30 - 1, and lists. Floats
        are those of NumPy, of 32 bits. It has no budget: where the program does not halt, neither does it.

        **Raises** `ValueError` for a genome that is none of this program's, one with numbers that are no line's or no
        operand's, and a `name` that is none, or that printed programs use otherwise.
        """
        self._check(params)
        check_name(name)
        code = np.asarray(params.code)
        self.instructions.check(code)
        constants = () if params.constants is None else np.asarray(params.constants).tolist()
        return to_python(self.instructions, code, constants, name)

    def simplify(self, params: Genome, x: Any) -> Genome:
        """The program without lines that change nothing: two or one at a time are left out, from the end, if the
        outcome on `x` stays what it was, until none can be. Give it more cases than it was found with. Not for
        `jax.jit`: what is left out next depends on values."""
        one = np.eye(self.length, dtype=bool)
        two = [one[i] | one[j] for j in range(self.length) for i in range(j)]
        masks = np.array([*one, *two])[:, :, None]

        @jax.jit
        def same(code: Array) -> Array:
            """Of each mask, whether the program without its lines has the same outcome."""
            without = jnp.where(masks, 0, code)
            found = jax.lax.map(lambda c: self.run(Genome(c, params.constants), x), without, batch_size=AT_ONCE)
            return _equal((found.result, found.halted), (wanted.result, wanted.halted))

        wanted = self.run(params, x)
        code = np.asarray(params.code)
        while True:
            there = (code[:, :1] != 0) & masks
            possible = np.asarray(same(code)) & np.any(there, axis=(1, 2))
            if not possible.any():
                return Genome(jnp.asarray(code), params.constants)
            code = np.where(masks[np.flatnonzero(possible)[-1]], 0, code)


@functools.lru_cache(maxsize=256)
def _check_lines(instructions: Instructions) -> None:
    """**Raises** `ValueError` for lines, starts or a result that cannot be computed; nothing is compiled."""

    def run() -> Any:
        inputs = {
            name: jnp.zeros((1, 1, 2) if name in {*instructions.banks, *instructions.lists} else (1, 1), jnp.int32)
            for name in instructions.inputs
        }
        for name, bank in instructions.banks.items():
            if name in inputs and bank.real:
                inputs[name] = inputs[name].astype(jnp.float32)
        numbers = [bank.number for bank in instructions.banks.values() if isinstance(bank, Constants)]
        constants = jnp.zeros((1, numbers[0])) if numbers else None
        return Together(1)(instructions, 2, jnp.ones((1, 1, 3), jnp.int32), constants, inputs)

    try:
        jax.eval_shape(run)
    except (TypeError, AttributeError, IndexError) as e:
        raise ValueError(
            f"`Program`: lines, starts or the result of {instructions} cannot be computed. Are there several values "
            "where one belongs?"
        ) from e


def _equal(found: Any, wanted: Any) -> Array:
    """Of each program, whether all of its results are these."""

    def one(x: Array, y: Array) -> Array:
        return jnp.all((x == y) | ((x != x) & (y != y)), axis=tuple(range(1, x.ndim)))

    return jnp.all(jnp.stack(jtu.tree_leaves(jtu.tree_map(one, found, wanted))), axis=0)
