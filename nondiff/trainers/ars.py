"""Augmented random search (Mania, Guy & Recht, 2018, "Simple random search of static linear policies is competitive for
reinforcement learning", https://arxiv.org/abs/1803.07055).

Random directions are tried forward and backward; the best of them are averaged, each by the difference that it makes,
and the step is divided by the standard deviation of the losses it is made of.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree

from nondiff.core.checks import check_positive
from nondiff.core.problem import Params
from nondiff.core.query import AbstractWeighting, Evaluation, Query
from nondiff.core.trainer import AbstractTrainer, Metrics, Scheduled, at, check_optimizer
from nondiff.trainers.cloud import Mean, check_cloud, question, same_width, start
from nondiff.trainers.gaussian import Gaussian


class _Elites(AbstractWeighting):
    """For each of the `b` best pairs the difference that its direction makes, over `b std`, half for each member."""

    b: int = eqx.field(static=True)

    def __call__(self, losses: Float[Array, " pop"]) -> Float[Array, " pop"]:
        two = losses.reshape(-1, 2)
        whole = jnp.all(jnp.isfinite(two), 1)  # half a pair says nothing
        best = jnp.where(whole, jnp.min(two, 1), jnp.inf)  # line 6: sorted by max(r+, r-)
        used = (jnp.argsort(jnp.argsort(best)) < self.b) & whole
        std = jnp.std(two, where=used[:, None])
        scale = jnp.sum(used) * std
        half = jnp.where(used & (scale > 0), (two[:, 0] - two[:, 1]) / (2 * jnp.where(scale > 0, scale, 1.0)), 0.0)
        return jnp.stack([half, -half], 1).ravel()


class ARS(AbstractTrainer[Mean]):
    """Steps along the average of the best directions.

    **Arguments:**

    - `optimizer`: an `optax.GradientTransformation`; `optax.sgd(rate)` is the paper's step. The step's length is in
      units of `rate` whatever the scale of the loss: 0.2 was best on a small network, with `sigma=0.15`.
    - `sigma`: standard deviation of the noise (the paper's nu), above 0, a float or an `optax.Schedule`.
    - `population`: evaluations a step, two for each direction (N = population / 2).
    - `elites`: the share of directions that is used, above 0 up to 1 (default 0.5; b = elites * N, at least 1).
    - `rank`, `compute_dtype`: as in `OpenES`.

    **Raises** `ValueError` for an odd population, one below 2, a share outside (0, 1], a `sigma` that is not above 0;
    and, when training starts, what `OpenES` raises.

    The paper's V2 also whitens a policy's observations: that is the problem's state, not the trainer's.

    >>> import jax, jax.numpy as jnp, nondiff, optax
    >>> problem = nondiff.BlackBox(lambda x: jnp.sum((x - 3.0) ** 2), jnp.zeros(5))
    >>> trainer = ARS(optax.sgd(optax.cosine_decay_schedule(0.2, 200)), sigma=0.1, population=16)
    >>> result = nondiff.fit(problem, trainer, steps=200, key=jax.random.key(0))
    >>> bool(jnp.allclose(result.params, 3.0, atol=0.05))
    True
    """

    optimizer: optax.GradientTransformation
    sigma: Scheduled = eqx.field(kw_only=True, static=True)
    population: int = eqx.field(kw_only=True, static=True)
    elites: int | float = eqx.field(kw_only=True, static=True, default=0.5)
    rank: int | None = eqx.field(kw_only=True, static=True, default=None)
    compute_dtype: Any = eqx.field(kw_only=True, static=True, default=None)
    traceable: ClassVar[bool] = True

    def __check_init__(self) -> None:
        check_cloud("ARS", self.population, antithetic=None, rank=self.rank, dtype=self.compute_dtype)
        check_positive("ARS", "sigma", self.sigma)
        check_optimizer("ARS", self.optimizer)
        if isinstance(self.elites, bool) or not isinstance(self.elites, int | float) or not 0 < self.elites <= 1:
            raise ValueError(f"`ARS(elites={self.elites!r})`: expected a share of the directions, above 0 up to 1.")

    def init(self, params: Params, domain: PyTree, *, key: Key[Array, ""]) -> Mean:
        del key
        return start(self, params, domain)

    def ask(self, state: Mean, *, key: Key[Array, ""]) -> Query:
        sampler = Gaussian(True, self.rank, self.compute_dtype)
        weighting = _Elites(max(1, round(self.elites * self.population / 2)))
        return question(self, state, same_width(state, self.sigma), sampler, weighting, key)

    def tell(self, state: Mean, query: Query, answer: Evaluation, *, key: Key[Array, ""]) -> tuple[Mean, Metrics]:
        del query, key
        gradient = answer.sums.first  # 1 / (b std) sum_k (L+ - L-) e_k  (line 7)
        metrics = {"gradient_norm": optax.tree.norm(gradient), "sigma": at(self.sigma, state.step)}
        return state.move(self.optimizer, gradient), metrics

    def params(self, state: Mean) -> Params:
        return state.params()
