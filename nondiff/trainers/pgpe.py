"""Policy gradients with parameter-based exploration (Sehnke, Osendorfer, Rückstieß, Graves, Peters & Schmidhuber, 2010,
"Parameter-exploring policy gradients", https://doi.org/10.1016/j.neunet.2009.12.004), with symmetric sampling.

A Gaussian with a sigma for every coordinate; centre and sigmas follow the gradient of the expected loss.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
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
from nondiff.trainers.weighting import CentredRanks

LARGEST_CHANGE = 0.2  # of the logarithm of a sigma in one step, as other implementations bound it


class PGPE(AbstractTrainer[Adaptive]):
    """Moves a Gaussian cloud and its width along the gradient of the expected loss.

    **Arguments:**

    - `optimizer`: an `optax.GradientTransformation` that moves the centre.
    - `sigma`: the first standard deviation of every coordinate, above 0, in units of the leaves.
    - `population`: evaluations a step, even: pairs on both sides of the centre.
    - `sigma_rate`: how far the logarithm of a sigma moves for a pair that counts one standard deviation more than
      others, averaged over the pairs (default 0.05; 0 keeps sigma). Between 0.03 and 0.1 it hardly mattered on a small
      network; 0.3 was worse.
    - `rank`: `None` (default): a sigma for every coordinate. `rank=1` or more: noise of low rank, as in `OpenES`, and
      a sigma for every row and every column of a matrix, which are multiplied; these move slower by the root of r.
    - `weighting`, `compute_dtype`: as in `OpenES`.

    **Raises** `ValueError` for an odd population, one below 2, a `sigma` that is not above 0 or a schedule, a negative
    `sigma_rate`; and, when training starts, what `OpenES` raises.

    >>> import jax, jax.numpy as jnp, nondiff, optax
    >>> problem = nondiff.BlackBox(lambda x: jnp.sum(jnp.abs(x - 3.0)), jnp.zeros(2))
    >>> trainer = PGPE(optax.adam(optax.cosine_decay_schedule(0.2, 300)), sigma=0.1, population=32)
    >>> result = nondiff.fit(problem, trainer, steps=300, key=jax.random.key(0))
    >>> bool(jnp.allclose(result.params, 3.0, atol=0.05))
    True
    """

    optimizer: optax.GradientTransformation
    sigma: int | float = eqx.field(kw_only=True, static=True)
    population: int = eqx.field(kw_only=True, static=True)
    sigma_rate: int | float = eqx.field(kw_only=True, static=True, default=0.05)
    rank: int | None = eqx.field(kw_only=True, static=True, default=None)
    weighting: AbstractWeighting = eqx.field(kw_only=True, default=CentredRanks())
    compute_dtype: Any = eqx.field(kw_only=True, static=True, default=None)
    traceable: ClassVar[bool] = True

    def __check_init__(self) -> None:
        check_cloud("PGPE", self.population, antithetic=None, rank=self.rank, dtype=self.compute_dtype)
        check_first_sigma("PGPE", self.sigma, self.sigma_rate)
        check_optimizer("PGPE", self.optimizer)

    def init(self, params: Params, domain: PyTree, *, key: Key[Array, ""]) -> Adaptive:
        del key
        return start_adaptive(self, params, domain)

    def ask(self, state: Adaptive, *, key: Key[Array, ""]) -> Query:
        sampler = Gaussian(True, self.rank, self.compute_dtype, spread=True)
        return question(self, state.mean, state.sigma, sampler, self.weighting, key)

    def tell(
        self, state: Adaptive, query: Query, answer: Evaluation, *, key: Key[Array, ""]
    ) -> tuple[Adaptive, Metrics]:
        del query, key
        # delta mu = alpha sum_k (r+ - r-) / 2 e_k, e_k in the units of mu  (section 3.2)
        gradient = jtu.tree_map(times_width, answer.sums.first, state.sigma)
        gradient = jtu.tree_map(lambda g: g / self.population, gradient)
        # delta sigma ~ sum_k (mean of the pair's two - baseline) (e_k^2 - sigma^2) / sigma, here along log sigma.
        # Weights sum to zero, which is the baseline; divided by their deviation, their scale does not matter. On a
        # slope all pairs are equal, and what deviates is rounding: not less than a hundredth of the members' own.
        members = self.weighting(jnp.asarray(answer.total))
        weights = jnp.sum(members.reshape(-1, 2), 1)
        deviation = jnp.maximum(jnp.std(weights), 0.01 * jnp.std(members))
        rate = self.sigma_rate / (2**0.5 * jnp.where(deviation > 0, weights.size * deviation, 1.0))
        sigma = adapted(state.sigma, answer.sums.second, rate, LARGEST_CHANGE)
        metrics = {"gradient_norm": optax.tree.norm(gradient), "sigma": typical_width(sigma)}
        return Adaptive(state.mean.move(self.optimizer, gradient), sigma), metrics

    def params(self, state: Adaptive) -> Params:
        return state.mean.params()
