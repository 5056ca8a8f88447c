"""Exact marginalisation: list every assignment of symbols, run the program on all of them, and differentiate the
objective itself. No variance, no bias; the right choice wherever the list is short.
"""

import itertools
import math
from collections.abc import Sequence
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from nondiff.core.checks import check_count
from nondiff.core.estimator import (
    AbstractEstimator,
    AbstractObjective,
    Decide,
    Rest,
    SuccessLikelihood,
    losses_of,
)


class Tabulate(AbstractEstimator):
    """The exact gradient of `objective`, over all `symbols ** parts` assignments of each case.

    **Arguments:**

    - `objective`: `SuccessLikelihood()` (default; for a loss that is 0 where the answer is right) or `ExpectedLoss()`.
    - `limit`: the longest list that is accepted (default 100,000).

    The list is asked about once a step where `rest` compares by broadcasting (`program(symbols) != answers`), and
    otherwise for every case; an `Opaque` program answers it from memory after the first time.

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
        self, rest: Rest, logits: Array, decision: Array, *, decide: Decide, key: Key[Array, ""]
    ) -> Float[Array, " cases"]:
        del decision, decide, key
        cases, *parts, n = logits.shape
        count = n ** math.prod(parts)
        if count > self.limit:
            raise ValueError(
                f"`Tabulate(limit={self.limit})`: {math.prod(parts)} parts of {n} symbols make {count} assignments; "
                "use `MarginalLikelihood()`, which samples them, or raise the limit."
            )
        table = every_assignment(parts, n)
        rows = 1 if _broadcasts(rest, table[0], cases) else cases
        losses = losses_of(rest, jnp.broadcast_to(table, (count, rows, *parts)))
        return self.objective(losses, every_log_prob(logits), jnp.ones((count, cases), bool))


def every_assignment(parts: Sequence[int], n: int) -> Int[np.ndarray, "count 1 *parts"]:
    """All `n ** prod(parts)` of them, the last part's symbols in a row."""
    table = np.array(list(itertools.product(range(n), repeat=math.prod(parts))), np.int32)
    return table.reshape(len(table), 1, *parts)


def every_log_prob(logits: Float[Array, "cases *parts symbols"]) -> Float[Array, "count cases"]:
    """Of all assignments, in the order of `every_assignment`: an outer sum, part by part."""
    cases, n = logits.shape[0], logits.shape[-1]
    total = jnp.zeros((cases, 1), logits.dtype)
    for part in jnp.moveaxis(jax.nn.log_softmax(logits).reshape(cases, -1, n), 1, 0):
        total = (total[:, :, None] + part[:, None, :]).reshape(cases, -1)
    return total.T


def _broadcasts(rest: Rest, one: np.ndarray, cases: int) -> bool:
    """Does `rest` compare the symbols of one case with every case's own answer? Then a table needs asking once."""
    if cases == 1:
        return True
    try:
        return jax.eval_shape(rest, jnp.asarray(one)).shape == (cases,)
    except Exception:  # whatever a `rest` raises that needs its symbols case by case
        return False
