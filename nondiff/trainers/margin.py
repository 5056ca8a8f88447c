"""Whole numbers under a Gaussian (Hamano, Saito, Nomura & Shirakawa, 2022, "CMA-ES with Margin: Lower-Bounding Marginal
Probability for Mixed-Integer Black-Box Optimization", https://doi.org/10.1145/3512290.3528827), and the mean's share in
it (Marty, Hansen, Auger, Semet & Heron, 2024, "LB+IC-CMA-ES: Two Simple Modifications of CMA-ES to Handle Mixed-Integer
Problems", the second of them).

As sigma shrinks, all members come to round to the same number, and the search ends there. The margin keeps a least
probability of another one, alpha = 1 / (n population), by moving the mean and stretching that coordinate.
"""

from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from nondiff.core.domain import Leaf
from nondiff.core.exact import namespace


def centred(
    steps: Float[Leaf, "pop n"], mean: Float[Leaf, " n"], ends: tuple[np.ndarray, np.ndarray]
) -> Float[Leaf, "pop n"]:
    """Steps from the mean that end at the number itself where that is not the mean's own.

    With a small sigma a member hardly gets across the line between two numbers; so the mean follows it to the other
    side. Not at an end of the range, where the margin keeps the mean near that line, and every member that chance takes
    across would move it. Sigma and the covariance learn from the steps as they were drawn.
    """
    least, greatest = ends
    if not (least < greatest).any():
        return steps
    here, inside = namespace(mean), (mean > least + 0.5) & (mean <= greatest - 0.5)  # False for NaN
    number = here.round(mean + steps)
    return here.where(inside & (number != here.round(mean)), number - mean, steps)


def with_margin(
    mean: Float[Leaf, " n"],
    sigma: Float[Leaf, ""],
    units: Float[Leaf, " n"],
    variances: Float[Leaf, " n"],
    ends: tuple[np.ndarray, np.ndarray],
    alpha: Any,
) -> tuple[Float[Leaf, " n"], Float[Leaf, " n"]]:
    """Mean and units, so that a member rounds to a neighbour of the mean's number with probability `alpha`, or more.

    `ends`: the least and the greatest value of each coordinate that is a whole number; NaN for the others.
    """
    least, greatest = ends
    whole = least < greatest  # False for NaN
    if not whole.any():
        return mean, units
    import scipy.special  # takes a while

    here = namespace(mean)
    special: Any = scipy.special if here is np else jax.scipy.special
    lo, hi = np.where(whole, least, 0.0), np.where(whole, greatest, 1.0)
    mean = here.where(whole, here.clip(mean, lo - 1, hi + 1), mean)
    deviation = sigma * here.sqrt(variances)
    below = here.clip(here.floor(mean - 0.5) + 0.5, lo + 0.5, hi - 0.5)  # where rounding turns to the next number
    above = here.clip(below + 1, lo + 0.5, hi - 0.5)
    outer = (mean <= lo + 0.5) | (mean > hi - 0.5)
    # At an end of the range, there is one neighbour: section 3.2, the mean comes near enough.
    nearest = here.where(mean <= lo + 0.5, lo + 0.5, hi - 0.5)
    most = deviation * units * special.ndtri(1 - alpha)
    moved = nearest + here.sign(mean - nearest) * here.minimum(here.abs(mean - nearest), most)
    # Between two of them: section 3.3, equations 9 to 14.
    p_low = special.ndtr((below - mean) / (deviation * units))
    p_up = special.ndtr((mean - above) / (deviation * units))
    p_mid = 1 - p_low - p_up
    low, up = here.maximum(alpha / 2, p_low), here.maximum(alpha / 2, p_up)
    share = (1 - low - up - p_mid) / (low + up + p_mid - 1.5 * alpha)
    low, up = low + share * (low - alpha / 2), up + share * (up - alpha / 2)
    a, b = special.ndtri(1 - low), special.ndtri(1 - up)
    centred, stretched = (below * b + above * a) / (a + b), (above - below) / (deviation * (a + b))
    inner = whole & ~outer & (below < above)
    mean = here.where(inner, centred, here.where(whole, moved, mean))
    return mean, here.where(inner, stretched, units)
