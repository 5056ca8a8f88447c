"""Losses to weights, for trainers that average their members: what shape the loss has in the eyes of the search.

Every weighting ranks a failed member with the worst, and gives a constant loss no direction at all.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from nondiff.core.query import AbstractWeighting


class CentredRanks(AbstractWeighting):
    """Ranks, scaled to -0.5 (best) .. 0.5 (worst); equal losses share their mean rank, failures the last ones.

    Blind to the loss's scale and to outliers (Salimans et al., 2017, section 2.1). A flat loss gives zero weights: a
    sort alone would rank ties by their place in the population, and walk.

    >>> CentredRanks()(jnp.array([3.0, 1.0, jnp.nan, 1.0, 9.0]))
    Array([ 0.   , -0.375,  0.5  , -0.375,  0.25 ], dtype=float32)
    """

    def __call__(self, losses: Float[Array, " pop"]) -> Float[Array, " pop"]:
        losses = jnp.where(jnp.isfinite(losses), losses, jnp.inf)
        order = jnp.sort(losses)
        below, through = (jnp.searchsorted(order, losses, side=side) for side in ("left", "right"))
        rank = (below + through - 1) / 2
        return (rank / max(losses.size - 1, 1) - 0.5).astype(losses.dtype)


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
        return jnp.where(jnp.isfinite(worst), jnp.where(ok, z, worst), 0.0)
