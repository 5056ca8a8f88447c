"""Trainers by name, each with leaves of its own: what `Split` and `Alternate` share."""

import dataclasses
import math
from typing import Any

import equinox as eqx
import jax.tree_util as jtu
from jaxtyping import Array, Key, PyTree

from nondiff.core import calls, words
from nondiff.core.problem import Params
from nondiff.core.query import Query, map_queries
from nondiff.core.trainer import AbstractTrainer, check_trainers
from nondiff.core.tree import check_labels, label_leaves

Trainers = dict[str, AbstractTrainer]
States = dict[str, Any]
METRICS = {"loss", "best", "failed", "evaluations", "lost"}
"""Of every step."""
ENDINGS = ("the trainer of every part has come to its end",)


def check_parts(owner: str, trainers: Trainers, labels: PyTree, taken: set[str] = METRICS) -> None:
    """**Raises** `ValueError` for what is no trainer, names that are `taken`, and labels that do not match them."""
    check_trainers(owner, *trainers.values())
    if taken & set(trainers):
        raise ValueError(
            f"`{owner}`: {sorted(taken & set(trainers))} are metrics of every step; call that part something else."
        )
    check_labels(owner, labels, trainers, what="trainers")


def traceable(trainers: Trainers) -> bool:
    return all(trainer.traceable for trainer in trainers.values())


def keys_of(trainers: Trainers, key: Key[Array, ""]) -> dict[str, Key[Array, ""]]:
    """One for each part."""
    return dict(zip(sorted(trainers), words.split(key, len(trainers)), strict=True))


def begin(trainers: Trainers, labels: PyTree, params: Params, domain: PyTree, key: Key[Array, ""]) -> States:
    """Each part's state, of its own leaves."""
    found, state = label_leaves(labels, params), {}
    for name, k in keys_of(trainers, key).items():

        def mine(label: str, x: Any, name: str = name) -> Any:
            return x if label == name else None

        own_domain = jtu.tree_map(mine, found, domain)
        state[name] = calls.init(trainers[name], jtu.tree_map(mine, found, params), own_domain, k)
    return state


def ask(trainers: Trainers, state: States, key: Key[Array, ""]) -> dict[str, PyTree[Query]]:
    """What each part asks, beside the other parts' leaves as they are now."""
    now = {name: trainers[name].params(state[name]) for name in state}
    query = {}
    for name, k in keys_of(trainers, key).items():
        siblings = [now[other] for other in now if other != name]

        def with_siblings(q: Query, siblings: list[Params] = siblings) -> Query:
            return dataclasses.replace(q, others=eqx.combine(q.others, *siblings))

        query[name] = map_queries(with_siblings, calls.ask(trainers[name], state[name], k))
    return query


def joined(trainers: Trainers, state: States) -> Params:
    """The leaves of all parts."""
    return eqx.combine(*[trainers[name].params(state[name]) for name in sorted(state)])


def ended(trainers: Trainers, state: States) -> Any:
    """1 where every part has come to its end, else 0."""
    return math.prod((trainers[name].ended(state[name]) != 0) * 1 for name in sorted(state))
