"""How long is too long: for a chunk, for a worker, for a start."""

import dataclasses
from typing import Any

from nondiff.distributed.pool import Member, Pool, now

LATE, LEAST_LATE = 3.0, 0.25
"""A chunk is begun a second time after so many times the usual, and not before so many seconds."""
HUNG, LEAST_HUNG = 30.0, 10.0
"""A worker hangs after so many times the usual, and not before so many seconds."""
FIRST, COMPILING = 10.0, 600.0
"""A worker's first chunk of a kind imports and compiles: it has so many times the deadline, if the user gave one, or so
many seconds.
"""
STARTING = 300.0
"""Seconds without any worker, or with `verify` without two, after which a run ends."""
STILLBORN = 5
"""Workers that die as they start, for each one that is wanted, after which a run ends."""
SHORT = 0.01
"""Seconds of work that a worker is given at once, where chunks are shorter."""
LOOK = 0.2
"""Seconds between two looks at who hangs."""


@dataclasses.dataclass(frozen=True)
class Rules:
    """What a user may say of faults."""

    deadline: int | float | None
    """Seconds for a chunk; `None`: from the usual."""
    tries: int
    verify: bool
    failures: str
    """The folder where a chunk that fails on every try is saved."""
    drop: int | float
    """The share of chunks that a step may go without."""


def late(pool: Pool, member: Member) -> bool:
    """May another worker begin its chunks, too?"""
    call = member.call
    if call is None or call.warm or call.kind not in pool.usual:
        return False
    return now() - call.since > max(LATE * pool.usual[call.kind] * len(call.places), LEAST_LATE)


def deadline(pool: Pool, member: Member, given: int | float | None) -> int | float:
    """Seconds that its call may take."""
    call = member.call
    assert call is not None
    first = call.kind not in member.answered
    if call.warm or (first and given is None):
        return COMPILING
    if given is not None:
        return given * len(call.places) * (FIRST if first else 1)
    return max(HUNG * pool.usual[call.kind] * len(call.places), LEAST_HUNG)


def at_once(pool: Pool, kind: Any, chunks: int) -> int:
    """How many chunks a worker gets: several if they are short, since a call takes a millisecond or two by itself."""
    if kind not in pool.usual:
        return 1
    share = -(-chunks // max(len(pool.members), 1))
    return max(1, min(share, int(SHORT / max(pool.usual[kind], 1e-6))))
