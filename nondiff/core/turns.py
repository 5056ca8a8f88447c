"""Queries that are not asked at every step: which sets of them can be due together.

A compiled step has a branch for each such set. Of parts that take turns exactly one is due, so k of them have k sets,
where k flags that know nothing of one another would have 2^k.
"""

import itertools
from typing import Any, NamedTuple

import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Int, PyTree

from nondiff.core.query import Query, is_query

ALONE = (0, 0)
"""In `Query.turns`: the query itself says when it is due."""


class Due(NamedTuple):
    """When a query is asked."""

    now: Bool[Array, ""]
    turns: tuple[tuple[str, int], ...]
    """Whose turns it waits for, by their place in the tree of queries, and the number of its turn there."""
    alone: bool
    """Whether it may also not be due in its turn."""


def dues(query: PyTree[Query]) -> list[Due | None]:
    """One for each query of a step, in order; `None` where it is asked at every step."""

    def one(path: tuple[Any, ...], q: Query) -> Due | None:
        if q.due is None:
            return None
        turns = q.turns or (ALONE,)
        owners = tuple((jtu.keystr(path[: len(path) - above]), number) for above, number in turns)
        return Due(q.due, owners, ALONE in turns)

    return [one(path, q) for path, q in jtu.tree_flatten_with_path(query, is_leaf=is_query)[0]]


def due_sets(dues: list[Due | None]) -> tuple[list[tuple[int, ...]], Int[Array, ""]]:
    """The sets of queries, by their places, that can be due together, and which of the sets is due now."""
    turns: dict[str, dict[int, list[Due]]] = {}  # owner -> number of the turn -> queries
    for due in dues:
        for owner, number in due.turns if due else ():
            turns.setdefault(owner, {}).setdefault(number, []).append(due)  # pyright: ignore[reportArgumentType]
    now = jnp.zeros((), jnp.int32)
    choices: list[list[int | None]] = []
    for of_owner in turns.values():
        nobody: list[int | None] = [None] * any(due.alone for each in of_owner.values() for due in each)
        choices.append([*nobody, *of_owner])
        # Exactly one is due; or, with its owner's own owner at another turn, none: then any number will do.
        here = [jnp.any(jnp.stack([due.now for due in each])) for each in of_owner.values()]
        now = now * len(choices[-1]) + sum(i * x for i, x in enumerate(here, len(nobody)))
    sets: dict[tuple[int, ...], int] = {}
    numbers = []
    for chosen in itertools.product(*choices):
        turn = dict(zip(turns, chosen, strict=True))
        due_now = (i for i, due in enumerate(dues) if due is None or all(turn[o] == n for o, n in due.turns))
        numbers.append(sets.setdefault(tuple(due_now), len(sets)))
    return list(sets), jnp.asarray(numbers, jnp.int32)[now]
