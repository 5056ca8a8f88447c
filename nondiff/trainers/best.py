"""Keeps the best point that was ever evaluated, around any trainer.

What one wants of a black box whose loss is the same whenever it is asked; where batches or noise change it, a lucky
draw would stay for ever.
"""

import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from nondiff.core.exact import exactly
from nondiff.core.population import Population
from nondiff.core.problem import Params
from nondiff.core.query import Evaluation, Query, answered
from nondiff.core.record import record
from nondiff.core.trainer import AbstractTrainer, Metrics, check_trainers
from nondiff.core.tree import is_none, select


@record
class _State:
    inner: Any
    params: Params
    loss: Float[Array | np.ndarray, ""]


class Best(AbstractTrainer[_State]):
    """`inner`, with `params` the best member so far and its loss in the metrics as `best_ever`.

    Costs one rebuilt member a step. Before the first evaluation, `params` is the starting point.

    >>> import jax, jax.numpy as jnp, nondiff, optax
    >>> problem = nondiff.BlackBox(lambda x: jnp.sum(x**2), jnp.ones(3))
    >>> trainer = Best(nondiff.OpenES(optax.sgd(1e-9), sigma=0.5, population=64))
    >>> result = nondiff.fit(problem, trainer, steps=5, key=jax.random.key(0))
    >>> bool(jnp.sum(result.params**2) < 1.0)  # the centre hardly moved
    True
    """

    inner: AbstractTrainer

    def __check_init__(self) -> None:
        check_trainers("Best", self.inner)

    @property
    def traceable(self) -> bool:
        return self.inner.traceable

    def init(self, params: Params, domain: PyTree, *, key: Key[Array, ""]) -> _State:
        worst = np.array(math.inf)  # 64 bits, where they are kept
        return _State(self.inner.init(params, domain, key=key), params, jnp.asarray(worst) if self.traceable else worst)

    def ask(self, state: _State, *, key: Key[Array, ""]) -> PyTree[Query]:
        inner = self.inner
        return type(inner).ask(inner, state.inner, key=key)

    def tell(
        self, state: _State, query: PyTree[Query], answer: PyTree[Evaluation], *, key: Key[Array, ""]
    ) -> tuple[_State, Metrics]:
        best, loss = state.params, state.loss
        for q, a in answered(query, answer):
            best, loss = (_better if self.traceable else _better_on_host)(best, loss, q, a)
        trainer = self.inner
        inner, metrics = type(trainer).tell(trainer, state.inner, query, answer, key=key)
        return _State(inner, best, loss), {**metrics, "best_ever": loss}

    def params(self, state: _State) -> Params:
        return state.params

    def asks(self, state: _State, *, key: Key[Array, ""]) -> int:
        inner = self.inner
        return type(inner).asks(inner, state.inner, key=key)

    @property
    def endings(self) -> tuple[str, ...]:
        return self.inner.endings

    def ended(self, state: _State) -> Any:
        inner = self.inner
        return type(inner).ended(inner, state.inner)


def _better(best: Params, loss: Any, query: Query, answer: Evaluation) -> tuple[Params, Any]:
    i = jnp.argmin(answer.ranked)
    found = answer.ranked[i].astype(loss.dtype)
    member = _alone(query.population.span(i, 1), query.others, best)
    return select(found < loss, member, best), jnp.minimum(found, loss)


def _better_on_host(best: Params, loss: Any, query: Query, answer: Evaluation) -> tuple[Params, Any]:
    """Builds a member only if it is better."""
    losses = np.asarray(answer.ranked)
    i = np.argmin(losses, keepdims=True)
    if losses[i] >= loss:
        return best, loss
    population = query.population.rows(i)
    members = population.on_host()
    if members is None:
        return _alone(population, query.others, best), losses[i].astype(loss.dtype).reshape(())
    one = eqx.combine(jtu.tree_map(lambda x: x[0], members), query.others)
    kept = jtu.tree_map(lambda x, new: None if x is None else np.asarray(new, x.dtype), best, one, is_leaf=is_none)
    return kept, losses[i].astype(loss.dtype).reshape(())


@exactly
def _alone(population: Population, others: Params, like: Params) -> Params:
    """The member of a population of one."""
    member = jtu.tree_map(lambda x: x[0], population.take(jnp.zeros(1, int)))
    # Leaves of trainers outside of me are not mine to keep.
    return jtu.tree_map(
        lambda x, new: None if x is None else new.astype(x.dtype), like, eqx.combine(member, others), is_leaf=is_none
    )
