"""The score function, REINFORCE (Williams, 1992, "Simple Statistical Gradient-Following Algorithms for Connectionist
Reinforcement Learning", https://doi.org/10.1007/BF00992696), with the leave-one-out baseline of Kool, van Hoof &
Welling (2019, "Buy 4 REINFORCE Samples, Get a Baseline for Free!").
"""

import abc
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from nondiff.core import words
from nondiff.core.checks import check_count
from nondiff.core.estimator import (
    AbstractEstimator,
    Decide,
    ExpectedLoss,
    Rest,
    check_entropy,
    joint_log_prob,
    losses_of,
    negative_entropy,
)


class AbstractBaseline(eqx.Module):
    """What a loss is compared with; independent of its own sample, so that the gradient stays unbiased."""

    @property
    @abc.abstractmethod
    def least(self) -> int:
        """The fewest samples it needs."""

    @abc.abstractmethod
    def __call__(self, losses: Float[Array, "samples cases"]) -> Float[Array, "samples cases"]: ...


class LeaveOneOut(AbstractBaseline):
    """The mean of the other samples of the same case."""

    least: ClassVar[int] = 2

    def __call__(self, losses: Array) -> Array:
        return (jnp.sum(losses, 0) - losses) / (losses.shape[0] - 1)


class NoBaseline(AbstractBaseline):
    """Nothing: unbiased, and noisy."""

    least: ClassVar[int] = 1

    def __call__(self, losses: Array) -> Array:
        return jnp.zeros_like(losses)


class ScoreFunction(AbstractEstimator):
    """The unbiased gradient of the expected loss, from `samples` joint samples per case.

    **Arguments:**

    - `samples`: per case (default 16).
    - `baseline`: `LeaveOneOut()` (default; needs 2 samples) or `NoBaseline()`.
    - `entropy`: weight of an entropy bonus per case, 0 or more (default 0). A little (0.02) keeps sums of two
      digits from collapsing, on most seeds; the window is narrow and depends on the task.

    It serves any loss. Where success is rare it hardly learns: sums of two digits reach 19 % digit accuracy without
    entropy, and `MarginalLikelihood` learns them on every seed.

    **Raises** `ValueError` for too few samples or a negative entropy.

    >>> import jax, nondiff
    >>> rest = lambda symbols: jnp.abs(symbols.sum(-1) - jnp.array([3.0]))
    >>> loss = lambda z: nondiff.through(rest, z, via=ScoreFunction(500), key=jax.random.key(0))[0]
    >>> gradient = jax.grad(loss)(jnp.zeros((1, 2, 3)))
    >>> bool((gradient[0, :, 0] > gradient[0, :, 2]).all())  # up with symbol 2, down with symbol 0
    True
    """

    samples: int = eqx.field(static=True, default=16)
    baseline: AbstractBaseline = eqx.field(default=LeaveOneOut(), kw_only=True)
    entropy: float = eqx.field(static=True, default=0.0, kw_only=True)
    objective: ExpectedLoss = eqx.field(default=ExpectedLoss(), init=False)

    @property
    def unbiased(self) -> bool:
        return not self.entropy

    def __check_init__(self) -> None:
        check_count("ScoreFunction", "samples", self.samples, least=self.baseline.least)
        check_entropy("ScoreFunction", self.entropy, like=0.02)

    def surrogate(
        self, rest: Rest, logits: Array, decision: Array, *, decide: Decide, key: Key[Array, ""]
    ) -> Float[Array, " cases"]:
        del decision, decide
        symbols = words.categories(key, jax.lax.stop_gradient(logits), self.samples)
        losses = losses_of(rest, symbols)
        advantage = losses - self.baseline(losses)
        score = jnp.mean(advantage * joint_log_prob(logits, symbols), 0)
        if not self.entropy:
            return score
        return score + self.entropy * negative_entropy(logits)
