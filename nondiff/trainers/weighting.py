"""Losses to weights, for trainers that average their members: what shape the loss has in the eyes of the search.

Every weighting ranks a failed member with the worst, and gives a constant loss no direction at all.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from nondiff.core.domain import Leaf
from nondiff.core.exact import namespace
from nondiff.core.query import AbstractWeighting


class CentredRanks(AbstractWeighting):
    """Ranks, scaled to -0.5 (best) .. 0.5 (worst); equal losses share their mean rank, failures the last ones.

    Blind to the loss's scale and to outliers (Salimans et al., 2017, section 2.1). A flat loss gives zero weights: a
    sort alone would rank ties by their place in the population, and walk.

    >>> CentredRanks()(jnp.array([3.0, 1.0, jnp.nan, 1.0, 9.0]))
    Array([ 0.   , -0.375,  0.5  , -0.375,  0.25 ], dtype=float32)
    """

    def __call__(self, losses: Float[Array, " pop"]) -> Float[Array, " pop"]:
        below, through = _places(losses)
        # Twice the mean rank less its middle: whole numbers, so that a flat loss gives 0 and not what rounding leaves,
        # which would be a direction to an optimizer that divides by the gradient's size.
        return jnp.asarray((below + through - losses.size) / (2 * max(losses.size - 1, 1)), losses.dtype)


class ZScore(AbstractWeighting):
    """The loss less its mean, over its standard deviation; failures weigh as much as the worst member.

    Keeps proportions, so it is for losses without outliers.

    >>> ZScore()(jnp.array([1.0, 3.0, jnp.inf]))
    Array([-1.,  1.,  1.], dtype=float32)
    """

    def __call__(self, losses: Float[Array, " pop"]) -> Float[Array, " pop"]:
        ok = jnp.isfinite(losses)
        mean, std = jnp.mean(losses, where=ok), jnp.std(losses, where=ok)
        z = jnp.where(ok, (losses - mean) / jnp.where(std > 0, std, 1.0), -jnp.inf)
        worst = jnp.max(z)
        flat = jnp.max(losses, where=ok, initial=-jnp.inf) <= jnp.min(losses, where=ok, initial=jnp.inf)
        return jnp.where(flat, 0.0, jnp.where(ok, z, worst))


class LogRanks(AbstractWeighting):
    """The utilities of natural evolution strategies: the better half counts, the best most; equal losses share.

    `u = max(0, ln(n/2 + 1) - ln(rank))`, scaled to a sum of 1, less 1/n (Wierstra et al., 2014, section 3.1); here with
    the sign that descends. Failures rank last, and a flat loss gives zero weights.

    >>> LogRanks()(jnp.array([3.0, 1.0, jnp.nan, 2.0])).round(2)
    Array([ 0.25, -0.48,  0.25, -0.02], dtype=float32)
    """

    def __call__(self, losses: Float[Array, " pop"]) -> Float[Array, " pop"]:
        n = losses.size
        raw = np.maximum(0.0, np.log(n / 2 + 1) - np.log(np.arange(1, n + 1)))
        sums = np.append(0.0, np.cumsum(raw / np.sum(raw)))
        below, through = _places(losses)
        return jnp.where(through - below == n, 0.0, 1 / n - by_rank(sums, losses)).astype(losses.dtype)


def by_rank(sums: Float[Leaf, " places"], losses: Float[Leaf, " pop"]) -> Float[Leaf, " pop"]:
    """The weight of each loss; `sums[k]` is that of the k best together, and equal losses share theirs."""
    below, through = _places(losses)
    sums = namespace(losses).asarray(sums, losses.dtype)
    return (sums[through] - sums[below]) / (through - below)


def _places(losses: Float[Leaf, " pop"]) -> tuple[Int[Leaf, " pop"], Int[Leaf, " pop"]]:
    """For each loss how many are lower, and how many are not higher; failures are the highest."""
    here = namespace(losses)
    losses = here.where(here.isfinite(losses), losses, here.inf)
    order = here.sort(losses)
    # Of JAX's ways, the one that compares all compiles fastest.
    how = {} if here is np else {"method": "compare_all" if losses.size <= 1_000 else "scan"}
    return here.searchsorted(order, losses, side="left", **how), here.searchsorted(order, losses, side="right", **how)
