"""A memetic algorithm (Moscato, 1989, "On Evolution, Search, Optimization, Genetic Algorithms and Martial Arts"):
search among individuals that also learn, each along its own gradient.

Lamarckian: what an individual learned is what its children inherit. A genome and its constants evolve together this
way; with the constants under a trainer of their own (`Split`), every change of the genome meets constants that were
fitted to another one.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import optax
from jaxtyping import Array, Int, Key, PyTree

from nondiff.core.checks import check_positive
from nondiff.core.population import Points, Population
from nondiff.core.problem import Params
from nondiff.core.query import Evaluation, Query, check_always_due, is_query, map_queries
from nondiff.core.trainer import AbstractTrainer, Metrics, Scheduled, at, check_trainers
from nondiff.core.tree import is_none


class _State(eqx.Module):
    inner: Any
    domain: PyTree
    step: Int[Array, ""]


class Memetic(AbstractTrainer[_State]):
    """`inner` searches; before it selects, every member takes one gradient step.

    **Arguments:**

    - `inner`: a trainer that selects members, such as `Genetic`. One that averages them, such as `OpenES`, never sees
      a member again, and is refused.
    - `rate`: step length along the negative gradient, above 0, a float or an `optax.Schedule`.
    - `max_norm`: a member's gradient longer than this is shortened to it (default 1; one wild individual must not leave
      the float range).

    Integer leaves have no gradient and stay as they are; a gradient that is not finite moves nothing. The gradients of
    all members exist at once: P x D numbers. Losses, and with them `best`, are those before the step; `params` has
    taken one step more.

    **Raises** `ValueError` for a rate or norm that is not above 0, and, when training starts, for an inner trainer that
    averages.

    >>> import jax, jax.numpy as jnp, nondiff
    >>> problem = nondiff.BlackBox(lambda p: (p["x"] - 1.0) ** 2 + jnp.abs(p["n"] - 5), {"x": 0.0, "n": 0},
    ...                            domain={"x": nondiff.Real(), "n": nondiff.Integer(0, 9)})
    >>> trainer = Memetic(nondiff.Genetic(population=8), rate=0.1)
    >>> result = nondiff.fit(problem, trainer, steps=100, key=jax.random.key(0))
    >>> float(result.params["x"].round(1)), int(result.params["n"])
    (1.0, 5)
    """

    inner: AbstractTrainer
    rate: Scheduled = eqx.field(kw_only=True, static=True)
    max_norm: float = eqx.field(kw_only=True, static=True, default=1.0)

    def __check_init__(self) -> None:
        check_trainers("Memetic", self.inner)
        check_positive("Memetic", "rate", self.rate)
        check_positive("Memetic", "max_norm", self.max_norm)

    @property
    def traceable(self) -> bool:
        return self.inner.traceable

    def init(self, params: Params, domain: PyTree, *, key: Key[Array, ""]) -> _State:
        return _State(self.inner.init(params, domain, key=key), domain, jnp.zeros((), jnp.int32))

    def ask(self, state: _State, *, key: Key[Array, ""]) -> PyTree[Query]:
        def with_gradient(query: Query) -> Query:
            check_always_due("Memetic", query)
            if query.weigh is not None or query.population.sampler.averages:
                raise ValueError(
                    f"`Memetic({type(self.inner).__name__}(...))`: this trainer averages its members and keeps none, "
                    "so what they learn would be lost. Use one that selects, such as `Genetic`."
                )
            if query.wants.mean_gradient:
                raise ValueError(
                    f"`Memetic({type(self.inner).__name__}(...))`: this trainer follows a gradient already. Use one "
                    "that selects, such as `Genetic`."
                )
            return dataclasses.replace(query, wants=query.wants._replace(gradient=True))

        return map_queries(with_gradient, self.inner.ask(state.inner, key=key))

    def tell(
        self, state: _State, query: PyTree[Query], answer: PyTree[Evaluation], *, key: Key[Array, ""]
    ) -> tuple[_State, Metrics]:
        rate = at(self.rate, state.step)

        def learned(query: Query, answer: Evaluation) -> Query:
            members = query.population.take(jnp.arange(len(query)))
            members = jax.vmap(lambda m, g: self._descend(m, g, rate, state.domain))(members, answer.gradient)
            return dataclasses.replace(query, population=Population(query.population.shared, members, Points()))

        query = jtu.tree_map(learned, query, answer, is_leaf=is_query)
        inner, metrics = self.inner.tell(state.inner, query, answer, key=key)
        return _State(inner, state.domain, state.step + 1), metrics

    def _descend(self, member: Params, gradient: Params, rate: Array, domain: PyTree) -> Params:
        norm = optax.tree.norm(gradient)
        length = jnp.where(jnp.isfinite(norm), rate * jnp.minimum(1.0, self.max_norm / jnp.maximum(norm, 1e-30)), 0.0)

        def move(x: Any, g: Any) -> Any:
            return x if x is None or g is None else x - (length * jnp.where(jnp.isfinite(g), g, 0)).astype(x.dtype)

        def clip(x: Any, d: Any) -> Any:
            return None if x is None else d.clip(x)

        moved = jtu.tree_map(move, member, gradient, is_leaf=is_none)
        return jtu.tree_map(clip, moved, domain, is_leaf=is_none)

    def params(self, state: _State) -> Params:
        return self.inner.params(state.inner)

    @property
    def endings(self) -> tuple[str, ...]:
        return self.inner.endings

    def ended(self, state: _State) -> Any:
        return self.inner.ended(state.inner)
