"""Backpropagation and any optax optimizer (Rumelhart, Hinton & Williams, 1986, "Learning representations by
back-propagating errors", https://doi.org/10.1038/323533a0).

The reference, and the trainer of every differentiable part. A part without a derivative in the middle of the model
needs an estimator (`through`); a leaf without one needs another trainer beside this one (`Split`).
"""

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import optax
from jaxtyping import Array, Key, PyTree

from nondiff.core import words
from nondiff.core.checks import check_count
from nondiff.core.population import Centre, Population
from nondiff.core.problem import Params
from nondiff.core.query import Evaluation, Query, Wants
from nondiff.core.trainer import AbstractTrainer, Metrics, check_optimizer, check_real
from nondiff.core.tree import none_like


class _State(eqx.Module):
    params: Params
    optimizer: Any
    domain: PyTree


class Backprop(AbstractTrainer[_State]):
    """Follows the gradient of the loss; bounds of the domain are kept by projection.

    **Arguments:**

    - `optimizer`: an `optax.GradientTransformation`; its learning rate may be an `optax.Schedule`.
    - `samples`: evaluations of the same point whose gradients are averaged, each with its own key (default 1). More
      lower the variance of a stochastic loss or of an estimator, at proportional cost.

    **Raises** `ValueError` for an optimizer that is none, goes uphill or is not finite, `samples` below 1, and, when
    training starts, for a leaf that is not a real number.

    >>> import jax, jax.numpy as jnp, nondiff, optax
    >>> problem = nondiff.BlackBox(lambda x: jnp.sum((x - 3.0) ** 2), jnp.zeros(2))
    >>> result = nondiff.fit(problem, Backprop(optax.adam(0.1)), steps=200, key=jax.random.key(0))
    >>> result.params.round(2)
    Array([3., 3.], dtype=float32)
    """

    optimizer: optax.GradientTransformation
    samples: int = eqx.field(static=True, default=1, kw_only=True)
    traceable: ClassVar[bool] = True

    def __check_init__(self) -> None:
        check_count("Backprop", "samples", self.samples)
        check_optimizer("Backprop", self.optimizer)

    def init(self, params: Params, domain: PyTree, *, key: Key[Array, ""]) -> _State:
        del key
        check_real("Backprop", params, domain)
        return _State(params, self.optimizer.init(params), domain)

    def ask(self, state: _State, *, key: Key[Array, ""]) -> Query:
        population = Population(state.params, jnp.zeros(self.samples), Centre())
        keys = words.split(key, self.samples)
        return Query(population, none_like(state.params), keys, wants=Wants(mean_gradient=True))

    def tell(self, state: _State, query: Query, answer: Evaluation, *, key: Key[Array, ""]) -> tuple[_State, Metrics]:
        del query, key
        gradient: Any = answer.gradient
        updates, optimizer = self.optimizer.update(gradient, state.optimizer, state.params)
        params = jtu.tree_map(lambda x, d: d.clip(x), optax.apply_updates(state.params, updates), state.domain)
        return _State(params, optimizer, state.domain), {"gradient_norm": optax.tree.norm(gradient)}

    def params(self, state: _State) -> Params:
        return state.params
