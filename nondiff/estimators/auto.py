"""The estimator that is taken where none is named: by what crosses the boundary, and how many ways there are."""

import logging
import math
from collections.abc import Sequence
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from nondiff.core.checks import check_count
from nondiff.core.estimator import AbstractEstimator, Decide, Rest, SuccessLikelihood, argmax
from nondiff.estimators.marginal_likelihood import MarginalLikelihood
from nondiff.estimators.smoothing import Smoothing
from nondiff.estimators.tabulate import Tabulate


class Auto(AbstractEstimator):
    """`Tabulate` for symbols with few assignments, `MarginalLikelihood` for symbols with many, else `Smoothing`.

    **Arguments:**

    - `limit`: the most assignments that are listed, `symbols ** parts` (default 100,000).
    - `samples`: of `MarginalLikelihood` (default 100).

    What was chosen is logged by `logging.getLogger("nondiff")` when it is compiled, and `choose` says it, too. The
    first two are for a loss that is 0 where the answer is right. Where the loss is a degree and the decision a symbol,
    name an estimator: `Tabulate(objective=ExpectedLoss())` or `ScoreFunction(samples)`.

    **Raises** `ValueError` for a limit or a number of samples below 1.

    >>> shapes = [(64, 4, 10), (64, 7, 14)]  # cases, parts, symbols
    >>> [type(Auto().choose(shape)).__name__ for shape in shapes]
    ['Tabulate', 'MarginalLikelihood']
    >>> type(Auto().choose((64, 4), jnp.round)).__name__
    'Smoothing'
    """

    limit: int = eqx.field(static=True, default=100_000, kw_only=True)
    samples: int = eqx.field(static=True, default=100, kw_only=True)
    objective: ClassVar[SuccessLikelihood] = SuccessLikelihood()  # pyright: ignore[reportIncompatibleVariableOverride]
    unbiased: ClassVar[bool] = False

    def __check_init__(self) -> None:
        check_count("Auto", "limit", self.limit)
        check_count("Auto", "samples", self.samples)

    def choose(self, shape: Sequence[int], decide: Decide = argmax) -> AbstractEstimator:
        """The estimator for activations of this shape, `[cases, *parts, symbols]`, and this decision."""
        activations = jax.ShapeDtypeStruct(tuple(shape), jnp.float32)
        decision = jax.eval_shape(decide, activations)
        if not jnp.issubdtype(decision.dtype, jnp.integer) or decision.shape != activations.shape[:-1]:
            return Smoothing()
        if shape[-1] ** math.prod(shape[1:-1]) <= self.limit:
            return Tabulate(limit=self.limit)
        return MarginalLikelihood(self.samples)

    def surrogate(
        self, rest: Rest, logits: Array, decision: Array, *, decide: Decide, key: Key[Array, ""]
    ) -> Float[Array, " cases"]:
        via = self.choose(logits.shape, decide)
        logging.getLogger("nondiff").info("Auto: %r for activations %s", via, list(logits.shape))
        return via.surrogate(rest, logits, decision, decide=decide, key=key)
