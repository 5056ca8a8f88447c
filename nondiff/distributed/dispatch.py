"""One step's chunks on the workers: whoever is free takes the next, and nothing depends on who took which.

An answer is placed by the number of its chunk. A worker that dies or hangs is replaced, and its chunk begun again; a
chunk that is late is begun a second time beside the first, and the first answer counts: both have the same bits.
"""

import logging
import time
import warnings
from collections import deque
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from nondiff.distributed.failure import ChunkError, NotDeterministic, same_bits, save
from nondiff.distributed.patience import LOOK, STARTING, STILLBORN, Rules, at_once, deadline, late
from nondiff.distributed.pool import Call, Member, Pool, now
from nondiff.distributed.worker import Answer, Chunk

log = logging.getLogger("nondiff")
MANY = 8
"""Workers, above which all answers that are there are taken at once."""


class Sent(NamedTuple):
    """What a worker needs for some chunks, or references to it; the number of its code, and the problem's name."""

    number: int
    code: Any
    arrays: Any
    problem: str


class Dispatch:
    """`sent`: for each of the `chunks`, and the same for all about the same rows; `weights`: a reference, if sums are
    wanted instead of losses; `without`: chunks that nobody is to evaluate.
    """

    def __init__(
        self,
        pool: Pool,
        rules: Rules,
        step: int,
        sent: Sequence[Sent],
        chunks: Sequence[Chunk],
        *,
        weights: Any = None,
        without: Collection[int] | None = None,
    ):
        self.pool, self.rules, self.step, self.sent, self.chunks = pool, rules, step, sent, chunks
        self.weights = weights
        self.may_drop = int(rules.drop * len(chunks)) if weights is None and without is None else 0
        self.waiting = deque(i for i in range(len(chunks)) if i not in (without or ()))
        self.wanted, self.needed = tuple(self.waiting), 2 if rules.verify else 1
        self.missing = set(self.wanted)
        self.alone: set[int] = set()
        self.found: dict[int, list[tuple[Member, Answer]]] = {i: [] for i in range(len(chunks))}
        self.causes: dict[int, list[tuple[str, str]]] = {i: [] for i in range(len(chunks))}
        if rules.verify:
            self.waiting.extend(self.wanted)
        self.enough_at = self.looked = now()
        self._hand_out()

    def run(self) -> list[Answer | None]:
        """The answers in the order of the chunks; `None` for those that are dropped."""
        while not self._enough():
            self._hand_out()
            self._wait()
            self._check_anyone()
        if self.rules.verify:
            self._compare()
        return [found[0][1] if (found := self.found[i]) else None for i in range(len(self.chunks))]

    def _enough(self) -> bool:
        if not self.missing or len(self.missing) > self.may_drop:
            return not self.missing
        overdue = {i for call in self._late() for i in call.places}
        answered = {_asked(self.chunks[i]) for i in self.wanted if self.found[i]}
        return overdue >= self.missing and answered == set(map(_asked, self.chunks))

    def _hand_out(self) -> None:
        idle = [m for m in self.pool.members if m.ready is None and m.call is None]
        for member in idle:
            places = self._next(member)
            if places:
                self._begin(member, places)

    def _next(self, member: Member) -> list[int]:
        """Chunks for this worker."""
        places = list[int]()
        for _ in range(len(self.waiting)):
            i = self.waiting.popleft()
            if i in places or any(member is by for by, _ in self.found[i]):
                self.waiting.append(i)  # for another worker
            elif places and (i in self.alone or not self._alike(i, places[0])):
                self.waiting.appendleft(i)
                break
            elif i in self.missing:
                places.append(i)
                if len(places) == at_once(self.pool, self._work(i), len(self.chunks)) or i in self.alone:
                    break
        if places or self.waiting or self.rules.verify:
            return places
        for call in sorted(self._late(), key=lambda c: c.since):
            for i in call.places:
                if i in self.missing and sum(i in c.places for c in self._calls()) == 1:
                    return [i]
        return []

    def _work(self, i: int) -> tuple[int, bool]:
        return self.sent[i].number, self.weights is not None

    def _kind(self, i: int) -> tuple[Any, int, int]:
        return self._work(i), self.chunks[i].query, self.chunks[i].size

    def _alike(self, i: int, j: int) -> bool:
        """May one call be about both?"""
        return self._kind(i) == self._kind(j) and self.chunks[i].rows == self.chunks[j].rows

    def _calls(self) -> list[Call]:
        return [m.call for m in self.pool.members if m.call is not None and m.call.step == self.step]

    def _late(self) -> list[Call]:
        return [m.call for m in self.pool.members if m.call and m.call.step == self.step and late(self.pool, m)]

    def _begin(self, member: Member, places: list[int]) -> None:
        """A worker gets ready for a kind of chunk first: a deadline is for what a user wrote, not for a compiler."""
        sent, actor, kind, rows = self.sent[places[0]], member.actor, self._kind(places[0]), self.chunks[places[0]].rows
        if member.step != self.step:
            member.step, member.rows = self.step, set()
        shared = () if rows in member.rows else (self.step, sent.arrays, self.weights)
        member.rows.add(rows)
        warm = None if kind in member.known else kind
        if warm:
            ref = actor.warm.remote(sent.number, sent.code, self.chunks[places[0]], *shared)
        else:
            ref = actor.answer.remote(sent.number, [self.chunks[i] for i in places], *shared)
        member.call = Call(self.step, places, self._work(places[0]), ref, now(), warm)

    def _wait(self) -> None:
        import ray

        members = {m.ready or m.call.ref: m for m in self.pool.members if m.ready or m.call}  # pyright: ignore
        if not members:  # nobody has anything to do: more workers are wanted than there are
            time.sleep(LOOK)
            return
        done, _ = ray.wait(list(members), num_returns=1, timeout=LOOK)
        if len(members) > MANY:
            done, _ = ray.wait(list(members), num_returns=len(members), timeout=0)
        for ref in done:
            member = members[ref]
            if member.ready is None:
                self._take(member)
            else:
                self._welcome(member)
        if now() - self.looked > LOOK:
            self.looked = now()
            self._replace_who_hangs()

    def _replace_who_hangs(self) -> None:
        for member in [m for m in self.pool.members if m.call is not None]:
            seconds = deadline(self.pool, member, self.rules.deadline)
            if member.call and now() - member.call.since > seconds:
                self._failed(member, f"no answer within {seconds:.3g} s")

    def _check_anyone(self) -> None:
        if sum(m.ready is None for m in self.pool.members) >= self.needed:
            self.enough_at = now()
        elif now() - self.enough_at > STARTING:
            raise RuntimeError(
                f"`Ray`: not {self.needed} of the workers are there for {STARTING:.0f} s now. {self.pool.wanted()} Is "
                "the cluster too small, or busy with something else?"
            )

    def _welcome(self, member: Member) -> None:
        import ray
        from ray.exceptions import RayError

        try:
            member.pid, member.ready = ray.get(member.ready), None
            self.pool.stillborn = 0
        except RayError as error:
            self.pool.replace(member)
            self.pool.stillborn += 1
            if self.pool.stillborn > STILLBORN * len(self.pool.members):
                raise RuntimeError(f"`Ray`: workers die as soon as they start: {error}") from None

    def _take(self, member: Member) -> None:
        import ray
        from ray.exceptions import RayError

        call = member.call
        assert call is not None
        try:
            found: Any = ray.get(call.ref)
        except RayError as error:
            # A machine that is lost, or taken back, says nothing about what ran there.
            lost = getattr(error, "preempted", False) or "actor's node was terminated" in str(error)
            self._failed(member, f"its worker died ({_short(error)})", blame=not lost)
            return
        member.call = None
        answers: list[Answer] = [found] if call.warm else found
        for text in {text: None for answer in answers for text in answer.warned}:
            warnings.warn(text, stacklevel=2)
        if call.warm and not answers[0].error:
            member.known.add(call.warm)
        for answer in answers:
            if not call.warm and not answer.error:
                self.pool.took(call.kind, answer.seconds)
                member.answered.add(call.kind)
        if call.step != self.step:
            return
        if call.warm and not answers[0].error:
            self.waiting.extendleft(reversed(call.places))
            return
        for i, answer in zip(call.places, answers, strict=False):
            if answer.error:
                self._blame(i, answer.error, answer.trace)
            else:
                self._found(member, i, answer)
        self.waiting.extend(call.places[len(answers) :])  # it could not get ready for any of them

    def _found(self, member: Member, i: int, answer: Answer) -> None:
        self.found[i].append((member, answer))
        if len(self.found[i]) >= self.needed:
            self.missing.discard(i)

    def _failed(self, member: Member, cause: str, *, blame: bool = True) -> None:
        """The worker's fault, or that of a chunk: if it was at several, each is tried alone before one is blamed."""
        call = member.call
        here = call is not None and call.step == self.step
        what = ", ".join(str(self.chunks[i]) for i in call.places) if call and here else "an earlier step"
        log.warning("%s, process %d: %s; another one takes its place", what, member.pid, cause)
        self.pool.replace(member)
        if call is None or not here:
            return
        if blame and len(call.places) == 1:
            self._blame(call.places[0], cause, "")
            return
        self.waiting.extendleft(reversed(call.places))
        if blame:
            self.alone.update(call.places)

    def _blame(self, i: int, cause: str, trace: str) -> None:
        if i not in self.missing:
            return
        self.causes[i].append((cause, trace))
        if len(self.causes[i]) >= self.rules.tries:
            raise ChunkError(self.chunks[i], self.causes[i], self._saved(i))
        self.waiting.appendleft(i)

    def _saved(self, i: int) -> str:
        import ray

        sent = self.sent[i]
        code, arrays = (ray.get(x) if isinstance(x, ray.ObjectRef) else x for x in (sent.code, sent.arrays))
        return save(self.rules.failures, code, arrays, self.chunks[i])

    def _compare(self) -> None:
        for i, found in self.found.items():
            (_, a), (_, b) = found[:2]
            if not same_bits(a, b):
                raise NotDeterministic(self.sent[i].problem, self.chunks[i], a, b)


def _asked(chunk: Chunk) -> tuple[Any, int]:
    """The query that a chunk belongs to."""
    return chunk.rows, chunk.query


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[-1][:200]}"
