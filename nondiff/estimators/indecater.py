"""IndeCateR (De Smet, Sansone & Zuidberg Dos Martires, 2023, "Differentiable Sampling of Categorical Distributions
Using the CatLog-Derivative Trick", https://arxiv.org/abs/2311.12569): one part after the other takes every symbol,
while the others are sampled.

So no part's own draw is noise in its gradient (a Rao-Blackwell estimator), for `parts * symbols` times the calls.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from nondiff.core import words
from nondiff.core.checks import check_count
from nondiff.core.estimator import AbstractEstimator, Decide, ExpectedLoss, Rest, SuccessLikelihood, losses_of


class IndeCateR(AbstractEstimator):
    """The gradient of the expected loss, or of `-log P(success)`, part by part.

    **Arguments:**

    - `samples`: of the other parts, for each symbol of each part (default 4). A case takes `samples * parts * symbols`
      requests; `Opaque` calls the program on the distinct ones only.
    - `objective`: `SuccessLikelihood()` (default; for a loss that is 0 where the answer is right) or `ExpectedLoss()`.

    Unbiased for the expected loss. The likelihood divides by the share of successes that was found, and so is biased
    while samples are few. A case without any success teaches nothing this time.

    **Raises** `ValueError` for fewer than 1 sample and for another objective.

    >>> import jax, nondiff
    >>> rest = lambda symbols: (symbols.sum(-1) != jnp.array([3])).astype(jnp.float32)
    >>> loss = lambda z: nondiff.through(rest, z, via=IndeCateR(20), key=jax.random.key(0))[0]
    >>> gradient = jax.grad(loss)(jnp.zeros((1, 2, 3)))  # only 1 + 2 and 2 + 1 are right
    >>> bool((gradient[0, :, 0] > 0).all())  # so down with symbol 0
    True
    """

    samples: int = eqx.field(static=True, default=4)
    objective: ExpectedLoss | SuccessLikelihood = eqx.field(default=SuccessLikelihood(), kw_only=True)

    @property
    def unbiased(self) -> bool:
        return isinstance(self.objective, ExpectedLoss)

    def __check_init__(self) -> None:
        check_count("IndeCateR", "samples", self.samples)
        if not isinstance(self.objective, ExpectedLoss | SuccessLikelihood):
            raise ValueError(
                f"`IndeCateR(objective={self.objective!r})`: expected `SuccessLikelihood()` or `ExpectedLoss()`."
            )

    def surrogate(
        self, rest: Rest, logits: Array, decision: Array, *, decide: Decide, key: Key[Array, ""]
    ) -> Float[Array, " cases"]:
        del decision, decide
        cases, *shape, n = logits.shape
        parts = math.prod(shape)
        drawn = words.categories(key, jax.lax.stop_gradient(logits), self.samples)
        drawn = drawn.reshape(self.samples, cases, parts)
        mine = jnp.arange(parts)[:, None, None, None, None] == jnp.arange(parts)
        symbols = jnp.where(mine, jnp.arange(n)[:, None, None, None], drawn)  # [parts, symbols, samples, cases, parts]
        losses = losses_of(rest, symbols.reshape(-1, cases, *shape)).reshape(parts, n, self.samples, cases)
        p = jax.nn.softmax(logits).reshape(cases, parts, n)

        def mean(x: Any) -> Array:
            return jnp.mean(x, 2).transpose(2, 0, 1)  # [cases, parts, symbols]

        if isinstance(self.objective, ExpectedLoss):
            return jnp.sum(p * mean(losses), (1, 2))  # over a part's own symbols the expectation is exact
        success = jnp.sum(p * mean(losses <= self.objective.tolerance), 2)
        return -jnp.sum(jnp.where(success > 0, jnp.log(jnp.where(success > 0, success, 1.0)), 0.0), 1)
