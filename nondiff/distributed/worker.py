"""What runs on a worker: the compiled functions of a run, and chunks of its populations."""

import contextlib
import os
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.tree_util as jtu
import numpy as np

from nondiff.core.exact import exactly
from nondiff.core.query import Rows
from nondiff.distributed.shipping import as_numpy, attach, detach, is_shipped

CACHE = {
    "jax_compilation_cache_dir": os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "nondiff", "compiled"
    ),
    "jax_compilation_cache_max_size": 2**30,
    "jax_persistent_cache_min_compile_time_secs": 0.05,
}
"""Where the driver does not say otherwise: a worker that takes a dead one's place does not compile again."""


class Code(NamedTuple):
    """Evaluator, problem, queries and what they are about, all of the batch or a piece of it, without their arrays:
    what is compiled once.
    """

    pickled: bytes
    held: list[np.ndarray]


class Chunk(NamedTuple):
    """Members `start .. start + size - 1` of one query."""

    query: int
    start: int
    size: int
    rows: Rows | None = None
    """What the query is about, if not all of the batch."""

    def __str__(self) -> str:
        about = "" if self.rows is None else f" about piece {self.rows.number} of the data"
        return (
            f"members {self.start} to {self.start + self.size - 1}{f' of query {self.query}' * bool(self.query)}{about}"
        )


class Answer(NamedTuple):
    """An `Evaluation` without sums, or those of a chunk; or what went wrong, as text, since not every exception can be
    pickled.
    """

    pickled: bytes = b""
    held: tuple[np.ndarray, ...] = ()
    arrays: tuple[np.ndarray, ...] = ()
    seconds: float = 0.0
    error: str = ""
    trace: str = ""
    warned: tuple[str, ...] = ()
    """What a user's function warns of, to be said where somebody reads it."""


class Worker:
    """Keeps what it has compiled, by the driver's number of the code."""

    def __init__(self, settings: dict[str, Any]):
        """`settings` of JAX, as in the driver's process."""
        for name, value in (CACHE | settings).items():
            jax.config.update(name, value)
        self._codes: dict[int, Program] = {}
        self._step = -1
        self._shared: dict[Rows | None, tuple[list[np.ndarray], np.ndarray | None]] = {}
        """Arrays and weights of this step, by what they are about."""

    def ready(self) -> int:
        return os.getpid()

    def warm(self, number: int, code: Code, chunk: Chunk, *shared: Any) -> Answer:
        """Gets ready for chunks like this one. `shared`: the step, and the arrays and weights of all its chunks about
        the same rows, once, for a reference that came with every call would cost as much as the call.
        """

        def one() -> Answer:
            arrays, weights = self._take(chunk, shared)
            if number not in self._codes:
                self._codes[number] = Program(code, arrays)
            self._codes[number].ready_for(arrays, chunk, weights)
            return Answer()

        return self._tried(one)

    def answer(self, number: int, chunks: list[Chunk], *shared: Any) -> list[Answer]:
        """The losses of each chunk, all about the same rows; or, with weights for all the population, its sums."""
        arrays, weights = self._take(chunks[0], shared)
        return [self._answer(number, chunk, arrays, weights) for chunk in chunks]

    def _take(self, chunk: Chunk, shared: tuple[Any, ...]) -> tuple[list[np.ndarray], np.ndarray | None]:
        if shared:
            step, *rest = shared
            if step != self._step:
                self._step = step
                self._shared.clear()
            self._shared[chunk.rows] = rest[0], rest[1]
        return self._shared[chunk.rows]

    def _answer(self, number: int, chunk: Chunk, arrays: list[np.ndarray], weights: np.ndarray | None) -> Answer:

        def one() -> Answer:
            run, begin = self._codes[number], time.perf_counter()
            with warnings.catch_warnings(record=True) as caught:
                answer = packed(run(arrays, chunk, weights))
            warned = tuple(dict.fromkeys(str(w.message) for w in caught))
            return Answer(*answer, seconds=time.perf_counter() - begin, warned=warned)

        return self._tried(one)

    def _tried(self, fn: Callable[[], Answer]) -> Answer:
        try:
            return fn()
        except (Exception, SystemExit) as error:
            with contextlib.suppress(Exception):
                return Answer(error=f"{type(error).__name__}: {error}", trace=traceback.format_exc())
            return Answer(error=type(error).__name__)  # one that cannot even be printed


def packed(tree: Any) -> tuple[bytes, tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    pickled, held = detach(tree)
    return pickled, tuple(held), tuple(as_numpy(x) for x in jtu.tree_leaves(tree) if is_shipped(x))


class Program:
    """A code, as a function of its arrays and a chunk; compiled if problem and evaluator are traceable."""

    def __init__(self, code: Code, arrays: list[np.ndarray]):
        self._code = code
        local, problem, _, _ = attach(code.pickled, code.held, arrays)
        self._traceable = problem.traceable and local.traceable
        self._compiled: dict[tuple[int, int], Any] = {}
        self._sums: dict[int, Any] = {}

    def ready_for(self, arrays: list[np.ndarray], chunk: Chunk, weights: Any = None) -> None:
        kind = chunk.query, chunk.size
        if weights is not None:
            self(arrays, chunk, weights)
        elif self._traceable and kind not in self._compiled:
            run = jax.jit(lambda arrays, start: self._part(arrays, start, *kind))
            self._compiled[kind] = run.lower(arrays, np.int32(0)).compile()

    def __call__(self, arrays: list[np.ndarray], chunk: Chunk, weights: Any = None) -> Any:
        if weights is not None:
            part = weights[chunk.start : chunk.start + chunk.size]
            found = self._sums_of(chunk.query)(arrays, np.int32(chunk.start), part)
        elif not self._traceable:
            found = self._part(arrays, chunk.start, chunk.query, chunk.size)
        else:
            self.ready_for(arrays, chunk)
            found = self._compiled[chunk.query, chunk.size](arrays, np.int32(chunk.start))
        return jtu.tree_map(lambda x: np.asarray(x) if eqx.is_array(x) else x, found)

    def _part(self, arrays: list[Any], start: Any, query: int, size: int) -> Any:
        local, problem, queries, batch = attach(self._code.pickled, self._code.held, arrays)
        return local.part(problem, queries[query], batch, start, size)

    def _sums_of(self, query: int) -> Any:
        def one(arrays: list[Any], start: Any, weights: Any) -> Any:
            _, _, queries, _ = attach(self._code.pickled, self._code.held, arrays)
            return queries[query].population.part_sums(start, weights)

        return self._sums.setdefault(query, exactly(one))
