"""Exact marginalisation: list every assignment of symbols, run the program on all of them, and differentiate the
objective itself. No variance, no bias; the right choice wherever the list is short.
"""

import itertools
import math
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from nondiff.core.estimator import (
    AbstractEstimator,
    AbstractObjective,
    Decide,
    Rest,
    SuccessLikelihood,
    joint_log_prob,
    losses_of,
)
from nondiff.core.trainer import check_count


class Tabulate(AbstractEstimator):
    """The exact gradient of `objective`, over all `symbols ** parts` assignments of each case.

    **Arguments:**

    - `objective`: `SuccessLikelihood()` (default; for a loss that is 0 where the answer is right) or `ExpectedLoss()`.
    - `limit`: the longest list that is accepted (default 100,000).

    The list is asked about for every case, and an `Opaque` program answers it from memory after the first time.

    **Raises** `ValueError` if the list is longer than `limit`.

    >>> import jax, nondiff
    >>> rest = lambda symbols: jnp.array([0.0, 1.0, 4.0])[symbols[:, 0]]
    >>> via = Tabulate(objective=nondiff.ExpectedLoss())
    >>> loss = lambda z: nondiff.through(rest, z, via=via, key=jax.random.key(0))[0]
    >>> np.asarray(jax.grad(loss)(jnp.zeros((1, 1, 3)))).astype(float).round(3).tolist()
    [[[-0.556, -0.222, 0.778]]]
    """

    objective: AbstractObjective = eqx.field(default=SuccessLikelihood(), kw_only=True)
    limit: int = eqx.field(static=True, default=100_000, kw_only=True)
    unbiased: ClassVar[bool] = True

    def __check_init__(self) -> None:
        check_count("Tabulate", "limit", self.limit)

    def surrogate(
        self, rest: Rest, logits: Array, value: Array, *, decide: Decide, key: Key[Array, ""]
    ) -> Float[Array, " cases"]:
        del value, decide, key
        cases, *parts, n = logits.shape
        count = n ** math.prod(parts)
        if count > self.limit:
            raise ValueError(
                f"`Tabulate(limit={self.limit})`: {math.prod(parts)} parts of {n} symbols make {count} assignments; "
                "use `MarginalLikelihood()`, which samples them, or raise the limit."
            )
        table = np.array(list(itertools.product(range(n), repeat=math.prod(parts))), np.int32)
        symbols = jnp.broadcast_to(table.reshape(count, 1, *parts), (count, cases, *parts))
        everything = jnp.ones((count, cases), bool)
        return self.objective(losses_of(rest, symbols), joint_log_prob(logits, symbols), everything)
