"""Covariance matrix adaptation (Hansen, 2016, "The CMA Evolution Strategy: A Tutorial",
https://arxiv.org/abs/1604.00772), with its active update (Jastrebski & Arnold, 2006, "Improving Evolution Strategies
through Active Covariance Matrix Adaptation").

Learns which directions are long and which are short, so that the shape of a valley no longer matters.
"""

from typing import Any, ClassVar

import equinox as eqx

from nondiff.trainers.adaptation import AbstractCMA
from nondiff.trainers.covariance import AbstractSpread, Full


class CMAES(AbstractCMA):
    """Learns the covariance of its steps.

    The trainer for up to some hundred coordinates of a loss that need not be smooth, convex or separable. All of its
    settings follow from the number of coordinates. State and steps have 64 bits, on the host if need be: Python
    functions get members of 64 bits, JAX's functions the bits of their parameters.

    **Arguments:**

    - `sigma`: the first standard deviation, in units of the leaves (of their logarithms under `Real(log=True)`): a
      number, or a tree of them, a prefix of the parameters. The optimum should lie within some 3 sigma of the start.
      Default `None`: for each leaf 0.3 of its range if it has two bounds, 1 on a log scale, else 0.3 times its largest
      entry, at least 0.3.
    - `population`: evaluations a step, at least 4; default `None`: 4 + floor(3 ln n) for n coordinates. Larger ones
      find better optima of rugged losses, later.
    - `tolfun`, `tolx`: the search has ended when the losses of some 20 steps and of all members differ by less than
      `tolfun` (default 1e-11), or when no coordinate moves by more than `tolx` first sigmas (default 1e-11). Also when
      the covariance's condition number is above 1e14, when the losses stagnate, and when the steps have grown
      10,000-fold. `Result.reason` says which.

    Leaves may be `Real` or `Integer`; bounds are kept by a smooth fold, whole numbers by the margin of Hamano et al.,
    and the mean follows members to their numbers (Marty et al., 2024). Memory and the time of a step grow with the
    square of n, and sometimes its cube: see `SepCMAES` for more.

    **Raises** `ValueError` for a `sigma` that is not above 0 or a schedule, a population below 4, negative tolerances;
    and, when training starts, for a leaf that is `Categorical`.

    >>> import jax, nondiff, numpy as np
    >>> scale = 10.0 ** np.arange(5)
    >>> problem = nondiff.BlackBox(lambda x: float(np.sum(scale * (x - 3.0) ** 2)), np.zeros(5))
    >>> result = nondiff.fit(problem, CMAES(sigma=1.0), steps=1_000, key=jax.random.key(0))
    >>> bool(np.allclose(result.params, 3.0, atol=1e-5)), result.reason[:34]
    (True, 'the losses of all members, and the')
    """

    sigma: Any = None
    population: int | None = eqx.field(kw_only=True, static=True, default=None)
    tolfun: int | float = eqx.field(kw_only=True, static=True, default=1e-11)
    tolx: int | float = eqx.field(kw_only=True, static=True, default=1e-11)
    kind: ClassVar[type[AbstractSpread]] = Full
