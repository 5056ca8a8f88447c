"""OpenAI's evolution strategy (Salimans, Ho, Chen, Sidor & Sutskever, 2017, "Evolution Strategies as a Scalable
Alternative to Reinforcement Learning", https://arxiv.org/abs/1703.03864).

The gradient of the smoothed loss `E[f(x + sigma * e)]`, estimated from losses alone, and given to any optax optimizer.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import optax
from jaxtyping import Array, Int, Key, PyTree

from nondiff.core.population import Population
from nondiff.core.problem import Params
from nondiff.core.query import AbstractWeighting, Evaluation, Query
from nondiff.core.trainer import (
    AbstractTrainer,
    Metrics,
    Scheduled,
    at,
    check_count,
    check_optimizer,
    check_positive,
    check_real,
)
from nondiff.core.tree import none_like
from nondiff.trainers.gaussian import Gaussian, Shared, pairs
from nondiff.trainers.weighting import CentredRanks


class _State(eqx.Module):
    centre: Params  # encoded: on the scale of the domain on which steps are taken
    optimizer: Any
    domain: PyTree
    step: Int[Array, ""]


class OpenES(AbstractTrainer[_State]):
    """Samples a Gaussian cloud around a centre and moves the centre along the weighted sum of the noise.

    **Arguments:**

    - `optimizer`: an `optax.GradientTransformation` that applies the estimate.
    - `sigma`: standard deviation of the noise, above 0, a float or an `optax.Schedule`, in units of the leaves
      (of their logarithms under `Real(log=True)`). No default: it depends on the problem's scale.
    - `population`: evaluations a step; even if antithetic. No default: noise falls with its square root.
    - `weighting`: `CentredRanks()` (default: one setting serves losses of any scale) or `ZScore()`.
    - `antithetic`: evaluate pairs `x + sigma e`, `x - sigma e`, under the same key (default; it removes the even part
      of the noise).

    **Raises** `ValueError` for an odd antithetic population, one below 2, a `sigma` that is not above 0, and, when
    training starts, for a leaf that is not a real number.

    Bounds are kept by moving a stray member to the nearest point inside. Memory: `chunk` members at a time, whatever
    the population.

    >>> import jax, jax.numpy as jnp, nondiff, optax
    >>> problem = nondiff.BlackBox(lambda x: jnp.sum(jnp.abs(x - 3.0)), jnp.zeros(2))
    >>> trainer = OpenES(optax.adam(optax.cosine_decay_schedule(0.2, 300)), sigma=0.1, population=32)
    >>> result = nondiff.fit(problem, trainer, steps=300, key=jax.random.key(0))
    >>> bool(jnp.allclose(result.params, 3.0, atol=0.05))
    True
    """

    optimizer: optax.GradientTransformation
    sigma: Scheduled = eqx.field(kw_only=True, static=True)
    population: int = eqx.field(kw_only=True, static=True)
    weighting: AbstractWeighting = eqx.field(kw_only=True, default=CentredRanks())
    antithetic: bool = eqx.field(kw_only=True, static=True, default=True)
    traceable: ClassVar[bool] = True

    def __check_init__(self) -> None:
        check_count("OpenES", "population", self.population, least=2)
        if self.antithetic and self.population % 2:
            n = self.population
            raise ValueError(
                f"`OpenES(population={n})`: antithetic sampling needs an even population; "
                f"use {n - 1} or {n + 1}, or `antithetic=False`."
            )
        check_positive("OpenES", "sigma", self.sigma)
        check_optimizer("OpenES", self.optimizer)

    def init(self, params: Params, domain: PyTree, *, key: Key[Array, ""]) -> _State:
        del key
        check_real("OpenES", params, domain)
        centre = jtu.tree_map(lambda x, d: d.encode(x), params, domain)
        return _State(centre, self.optimizer.init(centre), domain, jnp.zeros((), jnp.int32))

    def ask(self, state: _State, *, key: Key[Array, ""]) -> Query:
        k_noise, k_evaluation = jr.split(key)
        each = pairs(self.population, antithetic=self.antithetic)
        shared = Shared(state.centre, at(self.sigma, state.step), k_noise, state.domain)
        keys = jr.split(k_evaluation, self.population)[each.pair]  # the two of a pair share their evaluation's noise
        population = Population(shared, each, Gaussian(self.antithetic))
        return Query(population, none_like(state.centre), keys, weigh=self.weighting)

    def tell(self, state: _State, query: Query, answer: Evaluation, *, key: Key[Array, ""]) -> tuple[_State, Metrics]:
        del key
        sigma = query.population.shared.sigma
        # g = 1 / (n sigma) sum_i F_i e_i  (algorithm 1, line 6)
        gradient = jtu.tree_map(lambda s: s / (self.population * sigma).astype(s.dtype), answer.sums)
        updates, optimizer = self.optimizer.update(gradient, state.optimizer, state.centre)
        centre = optax.apply_updates(state.centre, updates)
        centre = jtu.tree_map(lambda u, d: d.encode(d.decode(u)) if d.constrained else u, centre, state.domain)
        metrics = {"gradient_norm": optax.tree.norm(gradient), "sigma": sigma}
        return _State(centre, optimizer, state.domain, state.step + 1), metrics

    def params(self, state: _State) -> Params:
        return jtu.tree_map(lambda u, d: d.decode(u), state.centre, state.domain)
