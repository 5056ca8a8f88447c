"""The calls of one program: which are needed for a batch, what becomes of them, and how many there were."""

import contextlib
import logging
from typing import Any

import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from nondiff.estimators.child import Outcome, Program, call
from nondiff.estimators.failure import AbstractFailure, Broken, OpaqueError, as_promised, stand_in
from nondiff.estimators.isolated import Outcomes, Pool
from nondiff.estimators.memo import Batch, Memo, distinct

log = logging.getLogger("nondiff")


class Calls:
    """`size`: how many answers are remembered; `None` where every request is a call. `pool`: the processes in which
    they run, if not in this one.
    """

    pool: Pool | None = None

    def __init__(
        self,
        name: str,
        program: Program,
        out: PyTree,
        failure: AbstractFailure,
        *,
        size: int | None,
        verify: int | float,
    ):
        self.name, self.program, self.out, self.failure, self.verify = name, program, out, failure, verify
        self.requests = self.distinct_calls = self.failures = self.verified = 0
        self.memo = None if size is None else Memo(size, jtu.tree_leaves(out))
        self._leaves = jtu.tree_leaves(out)
        self._told: set[str] = set()
        self._drawn = np.random.default_rng(0)

    def answers(self, rows: list[np.ndarray]) -> list[np.ndarray]:
        """Answers to `[n, ...]` rows: one look-up, or one call, for each distinct one; or for all of them together."""
        n = rows[0].shape[0]
        self.requests += n
        if n == 0 or self.memo is None:
            return self._run(rows, range(n))
        key = self.memo.whole_key(rows)
        batch = self.memo.whole(key)
        if batch is None:
            first, inverse = distinct(rows)
            answers, known = self._look_up(self.memo, [x[first] for x in rows])
            batch = Batch([x[inverse] for x in answers], first)
            self.memo.keep_whole(key, batch)
        else:
            known = np.ones(len(batch.first), bool)
        if self.verify:
            self._compare(rows, batch, batch.first[known])
        return batch.answers

    def _look_up(self, memo: Memo, rows: list[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
        """Answers to distinct rows, and which of them were known."""
        keys = memo.keys(rows)
        places = memo.places(keys)
        known = places >= 0
        if known.all():
            return memo.read(places), known
        answers = [np.zeros((len(keys), *s.shape), s.dtype) for s in self._leaves]
        for column, found in zip(answers, memo.read(places[known]), strict=True):
            column[known] = found
        missing = np.flatnonzero(~known)
        fresh = self._run(rows, missing, lambda i, answer: memo.keep(keys[missing[i]], answer))
        for column, found in zip(answers, fresh, strict=True):
            column[missing] = found
        return answers, known

    def _compare(self, rows: list[np.ndarray], batch: Batch, first: np.ndarray) -> None:
        again = first[self._drawn.random(len(first)) < self.verify]
        with contextlib.closing(self._outcomes(rows, again)) as outcomes:
            for i, outcome in outcomes:
                self.verified += 1
                case, before = _row(rows, again[i]), _row(batch.answers, again[i])
                now = self._read(outcome, case)
                if any(x.tobytes() != y.tobytes() for x, y in zip(before, now, strict=True)):
                    raise OpaqueError(
                        f"`{self.name}` is not deterministic: to the input {_show(case)} it answered {_show(before)}, "
                        f"and now {_show(now)}. Say so with `deterministic=False`."
                    )

    def _run(self, rows: list[np.ndarray], which: Any, keep: Any = lambda i, answer: None) -> list[np.ndarray]:
        """The answers to some of the rows, by a call for each."""
        answers = [np.zeros((len(which), *s.shape), s.dtype) for s in self._leaves]
        with contextlib.closing(self._outcomes(rows, which)) as outcomes:
            for i, outcome in outcomes:
                self.distinct_calls += 1
                answer = self._read(outcome, _row(rows, which[i]), count=1)
                for column, leaf in zip(answers, answer, strict=True):
                    column[i] = leaf
                keep(i, answer)
        return answers

    def _outcomes(self, rows: list[np.ndarray], which: Any) -> Outcomes:
        """As they come; if it is closed before its end, calls under way are given up."""

        def case(i: int) -> list[np.ndarray]:
            return [np.array(x[which[i]]) for x in rows]  # its own copy: a program may write into its input

        if self.pool is None:
            yield from ((i, call(self.program, case(i))) for i in range(len(which)))
        else:
            yield from self.pool.outcomes(len(which), case)

    def _read(self, outcome: Outcome, case: list[np.ndarray], count: int = 0) -> list[np.ndarray]:
        """The leaves of an answer, or of what stands for it."""
        cause = None
        if outcome[0] == "failure":
            _, kind, before, after, cause = outcome
        else:
            try:
                return as_promised(outcome[1], self.out, allow_nan=self.failure.allow_nan)
            except Broken as broken:
                kind, before, after = broken.kind, broken.before, broken.after
        self.failures += count
        error = OpaqueError(f"`{self.name}` {before} {_show(case)}{after}")
        error.__cause__ = cause
        try:
            answer = stand_in(self.failure.answer(error), self.out)
        except Broken as broken:
            raise OpaqueError(f"`{self.name}`: `failure` {broken.before} {_show(case)}{broken.after}") from error
        if kind not in self._told:
            self._told.add(kind)
            log.warning("%s\n(It is answered by %s; said once for each kind of failure.)", error, _show(answer))
        return answer


def _row(rows: list[np.ndarray], i: Any) -> list[np.ndarray]:
    return [np.asarray(x[i]) for x in rows]


def _show(case: list[np.ndarray]) -> str:
    return ", ".join(np.array2string(x, threshold=20) for x in case)
