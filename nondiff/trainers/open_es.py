"""OpenAI's evolution strategy (Salimans, Ho, Chen, Sidor & Sutskever, 2017, "Evolution Strategies as a Scalable
Alternative to Reinforcement Learning", https://arxiv.org/abs/1703.03864).

The gradient of the smoothed loss `E[f(x + sigma * e)]`, estimated from losses alone, and given to any optax optimizer.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax.tree_util as jtu
import optax
from jaxtyping import Array, Key, PyTree

from nondiff.core.checks import check_positive
from nondiff.core.problem import Params
from nondiff.core.query import AbstractWeighting, Evaluation, Query
from nondiff.core.trainer import AbstractTrainer, Metrics, Scheduled, at, check_optimizer
from nondiff.trainers.cloud import Mean, check_cloud, question, same_width, start
from nondiff.trainers.gaussian import Gaussian
from nondiff.trainers.weighting import CentredRanks


class OpenES(AbstractTrainer[Mean]):
    """Samples a Gaussian cloud around a centre and moves the centre along the weighted sum of the noise.

    **Arguments:**

    - `optimizer`: an `optax.GradientTransformation` that applies the estimate.
    - `sigma`: standard deviation of the noise, above 0, a float or an `optax.Schedule`, in units of the leaves
      (of their logarithms under `Real(log=True)`). No default: it depends on the problem's scale.
    - `population`: evaluations a step; even if antithetic. No default: noise falls with its square root.
    - `rank`: `None` (default): every coordinate has noise of its own. `rank=1` or more: the noise of a matrix is a
      product of two thin ones, and a generation costs hardly more than running the model (EGGROLL, see
      `nondiff/trainers/gaussian.py`). Any JAX model takes it as it is.
    - `weighting`: `CentredRanks()` (default: one setting serves losses of any scale, and rank 1 needs it) or
      `ZScore()`.
    - `antithetic`: evaluate pairs `x + sigma e`, `x - sigma e`, under the same key (default; it removes the even part
      of the noise).
    - `compute_dtype`: of the members, for example `jnp.bfloat16`; their own by default. Centre and optimizer keep
      the parameters' type. Cast the model's inputs as well, or JAX computes in the wider type.

    **Raises** `ValueError` for an odd antithetic population, one below 2, a `sigma` that is not above 0, and, when
    training starts, for a leaf that is not a real number; a `RuntimeError` that names the leaf where `sigma` is too
    small to change a typical coordinate of it in its type.

    Bounds are kept by moving a stray member to the nearest point inside. Memory: one chunk of members at a time,
    whatever the population.

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
    rank: int | None = eqx.field(kw_only=True, static=True, default=None)
    weighting: AbstractWeighting = eqx.field(kw_only=True, default=CentredRanks())
    antithetic: bool = eqx.field(kw_only=True, static=True, default=True)
    compute_dtype: Any = eqx.field(kw_only=True, static=True, default=None)
    traceable: ClassVar[bool] = True

    def __check_init__(self) -> None:
        check_cloud("OpenES", self.population, antithetic=self.antithetic, rank=self.rank, dtype=self.compute_dtype)
        check_positive("OpenES", "sigma", self.sigma)
        check_optimizer("OpenES", self.optimizer)

    def init(self, params: Params, domain: PyTree, *, key: Key[Array, ""]) -> Mean:
        del key
        return start(self, params, domain)

    def ask(self, state: Mean, *, key: Key[Array, ""]) -> Query:
        sampler = Gaussian(self.antithetic, self.rank, self.compute_dtype)
        return question(self, state, same_width(state, self.sigma), sampler, self.weighting, key)

    def tell(self, state: Mean, query: Query, answer: Evaluation, *, key: Key[Array, ""]) -> tuple[Mean, Metrics]:
        del query, key
        sigma = at(self.sigma, state.step)
        # g = 1 / (n sigma) sum_i F_i e_i  (algorithm 1, line 6)
        gradient = jtu.tree_map(lambda e: e / (self.population * sigma).astype(e.dtype), answer.sums.first)
        metrics = {"gradient_norm": optax.tree.norm(gradient), "sigma": sigma}
        return state.move(self.optimizer, gradient), metrics

    def params(self, state: Mean) -> Params:
        return state.params()
