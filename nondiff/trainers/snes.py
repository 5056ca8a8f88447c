"""Separable natural evolution strategies (Schaul, Glasmachers & Schmidhuber, 2011, "High dimensions and heavy tails for
natural evolution strategies", https://doi.org/10.1145/2001576.2001692; Wierstra, Schaul, Glasmachers, Sun, Peters &
Schmidhuber, 2014, "Natural Evolution Strategies", JMLR 15).

A Gaussian with a sigma for every coordinate; centre and sigmas follow the natural gradient of the expected utility.
"""

import math
from typing import Any, ClassVar

import equinox as eqx
import jax.tree_util as jtu
import optax
from jaxtyping import Array, Key, PyTree

from nondiff.core.problem import Params
from nondiff.core.query import AbstractWeighting, Evaluation, Query
from nondiff.core.trainer import AbstractTrainer, Metrics, check_optimizer
from nondiff.trainers.cloud import (
    Adaptive,
    adapted,
    check_cloud,
    check_first_sigma,
    question,
    start_adaptive,
    times_width,
    typical_width,
)
from nondiff.trainers.gaussian import Gaussian
from nondiff.trainers.weighting import LogRanks


class SNES(AbstractTrainer[Adaptive]):
    """Moves a Gaussian cloud and its width along the natural gradient.

    **Arguments:**

    - `optimizer`: an `optax.GradientTransformation` that moves the centre, in units of the noise's standard deviation
      (default `optax.sgd(1.0)`, the paper's step; on networks longer ones were better, up to 4).
    - `sigma`: the first standard deviation of every coordinate, above 0, in units of the leaves.
    - `population`: evaluations a step; even if antithetic.
    - `sigma_rate`: the learning rate of the logarithm of sigma; default `None`: (3 + ln d) / (5 sqrt(d)) for d
      coordinates, the paper's.
    - `rank`: `None` (default): a sigma for every coordinate. `rank=1` or more: noise of low rank, as in `OpenES`, and
      a sigma for every row and every column of a matrix, which are multiplied.
    - `weighting`: `LogRanks()` (default), the paper's utilities.
    - `antithetic`: evaluate pairs on both sides of the centre (default; as good as without, and half the noise).
    - `compute_dtype`: as in `OpenES`.

    **Raises** `ValueError` for an odd antithetic population, one below 2, a `sigma` that is not above 0 or a schedule,
    a negative `sigma_rate`; and, when training starts, what `OpenES` raises.

    >>> import jax, jax.numpy as jnp, nondiff
    >>> scale = jnp.array([1.0, 10.0, 100.0])
    >>> problem = nondiff.BlackBox(lambda x: jnp.sum((scale * (x - 3.0)) ** 2), jnp.zeros(3))
    >>> result = nondiff.fit(problem, SNES(sigma=1.0, population=16), steps=300, key=jax.random.key(0))
    >>> bool(jnp.allclose(result.params, 3.0, atol=1e-4))
    True
    """

    optimizer: optax.GradientTransformation = optax.sgd(1.0)
    sigma: int | float = eqx.field(kw_only=True, static=True)
    population: int = eqx.field(kw_only=True, static=True)
    sigma_rate: int | float | None = eqx.field(kw_only=True, static=True, default=None)
    rank: int | None = eqx.field(kw_only=True, static=True, default=None)
    weighting: AbstractWeighting = eqx.field(kw_only=True, default=LogRanks())
    antithetic: bool = eqx.field(kw_only=True, static=True, default=True)
    compute_dtype: Any = eqx.field(kw_only=True, static=True, default=None)
    traceable: ClassVar[bool] = True

    def __check_init__(self) -> None:
        check_cloud("SNES", self.population, antithetic=self.antithetic, rank=self.rank, dtype=self.compute_dtype)
        check_first_sigma("SNES", self.sigma, 0.0 if self.sigma_rate is None else self.sigma_rate)
        check_optimizer("SNES", self.optimizer)

    def init(self, params: Params, domain: PyTree, *, key: Key[Array, ""]) -> Adaptive:
        del key
        return start_adaptive(self, params, domain)

    def ask(self, state: Adaptive, *, key: Key[Array, ""]) -> Query:
        sampler = Gaussian(self.antithetic, self.rank, self.compute_dtype, spread=True)
        return question(self, state.mean, state.sigma, sampler, self.weighting, key)

    def tell(
        self, state: Adaptive, query: Query, answer: Evaluation, *, key: Key[Array, ""]
    ) -> tuple[Adaptive, Metrics]:
        del query, key
        # mu <- mu + eta_mu sigma sum_i u_i s_i;  sigma <- sigma exp(eta_sigma / 2 sum_i u_i (s_i^2 - 1))  (algorithm 6)
        gradient = jtu.tree_map(times_width, answer.sums.first, state.sigma)
        d = max(optax.tree.size(state.mean.point), 1)
        rate = (3 + math.log(d)) / (5 * math.sqrt(d)) if self.sigma_rate is None else self.sigma_rate
        sigma = adapted(state.sigma, answer.sums.second, rate / 2)
        metrics = {"gradient_norm": optax.tree.norm(gradient), "sigma": typical_width(sigma)}
        return Adaptive(state.mean.move(self.optimizer, gradient), sigma), metrics

    def params(self, state: Adaptive) -> Params:
        return state.mean.params()
