"""The calls of a trainer, compiled if it can be: for combinators that are not, since another of their parts cannot be.

Uncompiled it would be slow, and meet NumPy's 64 bits (`nondiff.core.exact`), which it does not expect.
"""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Key, PyTree

from nondiff.core.compiled import compiled
from nondiff.core.problem import Params
from nondiff.core.query import Evaluation, Query
from nondiff.core.trainer import AbstractTrainer, Metrics
from nondiff.core.tree import is_traced


def init(trainer: AbstractTrainer, params: Params, domain: PyTree, key: Key[Array, ""]) -> Any:
    return (_begun if _alone(trainer, key) else type(trainer).init)(trainer, params, domain, key=key)


def ask(trainer: AbstractTrainer, state: Any, key: Key[Array, ""]) -> PyTree[Query]:
    return (_asked if _alone(trainer, key) else type(trainer).ask)(trainer, state, key=key)


def tell(
    trainer: AbstractTrainer, state: Any, query: PyTree[Query], answer: PyTree[Evaluation], key: Key[Array, ""]
) -> tuple[Any, Metrics]:
    return (_told if _alone(trainer, key) else type(trainer).tell)(trainer, state, query, answer, key=key)


def either(trainer: AbstractTrainer, condition: Any, first: Callable[[], Any], second: Callable[[], Any]) -> Any:
    """`first()` where the condition holds, else `second()`: a branch of the program, if the trainer is compiled."""
    if not trainer.traceable:
        return first() if condition else second()
    return jax.lax.cond(condition, first, second)


def _alone(trainer: AbstractTrainer, key: Key[Array, ""]) -> bool:
    """Is it to be compiled, and not already part of a program that is?"""
    return trainer.traceable and not is_traced(key)


@compiled
def _begun(trainer: AbstractTrainer, params: Params, domain: PyTree, *, key: Key[Array, ""]) -> Any:
    return trainer.init(params, domain, key=key)


@compiled
def _asked(trainer: AbstractTrainer, state: Any, *, key: Key[Array, ""]) -> PyTree[Query]:
    return trainer.ask(state, key=key)


@compiled
def _told(trainer: AbstractTrainer, state: Any, query: Any, answer: Any, *, key: Key[Array, ""]) -> tuple[Any, Metrics]:
    return trainer.tell(state, query, answer, key=key)
