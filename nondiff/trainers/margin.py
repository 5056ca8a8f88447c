"""Whole numbers under a Gaussian (Hamano, Saito, Nomura & Shirakawa, 2022, "CMA-ES with Margin: Lower-Bounding Marginal
Probability for Mixed-Integer Black-Box Optimization", https://doi.org/10.1145/3512290.3528827).

As sigma shrinks, all members come to round to the same number, and the search ends there. The margin keeps a least
probability of another one, alpha = 1 / (n population), by moving the mean and stretching that coordinate.
"""

from typing import Any

import jax.numpy as jnp
import jax.scipy.stats as stats
import numpy as np
from jaxtyping import Array, Float

from nondiff.trainers.genotype import Genotype


def with_margin(
    mean: Float[Array, " n"],
    sigma: Float[Array, ""],
    units: Float[Array, " n"],
    variances: Float[Array, " n"],
    genotype: Genotype,
    alpha: Any,
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """Mean and units, so that a member rounds to a neighbour of the mean's number with probability `alpha`, or more."""
    least, greatest = genotype.integers()
    whole = least < greatest  # False for NaN
    if not whole.any():
        return mean, units
    lo, hi = np.where(whole, least, 0.0), np.where(whole, greatest, 1.0)
    mean = jnp.where(whole, jnp.clip(mean, lo - 1, hi + 1), mean)
    deviation = sigma * jnp.sqrt(variances)
    below = jnp.clip(jnp.floor(mean - 0.5) + 0.5, lo + 0.5, hi - 0.5)  # where rounding turns to the next number
    above = jnp.clip(below + 1, lo + 0.5, hi - 0.5)
    outer = (mean <= lo + 0.5) | (mean > hi - 0.5)
    # At an end of the range, there is one neighbour: section 3.2, the mean comes near enough.
    nearest = jnp.where(mean <= lo + 0.5, lo + 0.5, hi - 0.5)
    most = deviation * units * stats.norm.ppf(1 - alpha)
    moved = nearest + jnp.sign(mean - nearest) * jnp.minimum(jnp.abs(mean - nearest), most)
    # Between two of them: section 3.3, equations 9 to 14.
    p_low = stats.norm.cdf((below - mean) / (deviation * units))
    p_up = stats.norm.cdf((mean - above) / (deviation * units))
    p_mid = 1 - p_low - p_up
    low, up = jnp.maximum(alpha / 2, p_low), jnp.maximum(alpha / 2, p_up)
    share = (1 - low - up - p_mid) / (low + up + p_mid - 1.5 * alpha)
    low, up = low + share * (low - alpha / 2), up + share * (up - alpha / 2)
    a, b = stats.norm.ppf(1 - low), stats.norm.ppf(1 - up)
    centred, stretched = (below * b + above * a) / (a + b), (above - below) / (deviation * (a + b))
    inner = whole & ~outer & (below < above)
    mean = jnp.where(inner, centred, jnp.where(whole, moved, mean))
    return mean, jnp.where(inner, stretched, units)
