"""Smoothing: an evolution strategy on activations, antithetic (Salimans, Ho, Chen, Sidor & Sutskever, 2017, "Evolution
Strategies as a Scalable Alternative to Reinforcement Learning", https://arxiv.org/abs/1703.03864, section 2; the
gradient of a Gaussian average is Nesterov & Spokoiny's, 2017, "Random Gradient-Free Minimization of Convex Functions").

Where all members of a population would share one program's answers on one example, it is enough to disturb what the
program is given, and to leave the network before it to its own gradient.
"""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from nondiff.core import words
from nondiff.core.checks import check_count, check_positive
from nondiff.core.estimator import (
    AbstractEstimator,
    Decide,
    ExpectedLoss,
    Rest,
    argmax,
    check_entropy,
    joint,
    losses_of,
    negative_entropy,
)

FLOOR = 0.05
"""Of the mean change of the loss by which a case's gradient is divided: below, there is nothing to be learned from."""


class Smoothing(AbstractEstimator):
    """The gradient of the loss averaged over Gaussian noise on the activations, from `pairs` of opposite draws.

    **Arguments:**

    - `pairs`: per case (default 32, two requests each).
    - `sigma`: of the noise (default 1, for logits; for real values, the distance over which the loss changes).
    - `normalize`: divide each case's gradient by the mean change of its loss between the two of a pair, plus 0.05
      (default). A case that hardly ever succeeds then teaches as much as one that often does; the direction stays.
    - `entropy`: weight of an entropy bonus, where symbols are decided by the largest logit (default 0.05).

    It needs no probabilities, so it serves any decision: `through(rest, z, via=Smoothing(), decide=jnp.round)`.
    Unbiased without `normalize` and `entropy`.

    **Raises** `ValueError` for fewer than 1 pair, and for a sigma or an entropy out of range.

    >>> import jax, nondiff
    >>> rest = lambda steps: jnp.abs(steps.sum(-1) - 5.0)  # a program of whole numbers
    >>> via = Smoothing(100, entropy=0.0)
    >>> loss = lambda z: nondiff.through(rest, z, via=via, key=jax.random.key(0), decide=jnp.round)[0]
    >>> bool((jax.grad(loss)(jnp.zeros((1, 2))) < 0).all())  # up with both
    True
    """

    pairs: int = eqx.field(static=True, default=32)
    sigma: float | int = eqx.field(static=True, default=1.0, kw_only=True)
    normalize: bool = eqx.field(static=True, default=True, kw_only=True)
    entropy: float | int = eqx.field(static=True, default=0.05, kw_only=True)
    objective: ClassVar[ExpectedLoss] = ExpectedLoss()  # pyright: ignore[reportIncompatibleVariableOverride]

    @property
    def unbiased(self) -> bool:
        return not (self.normalize or self.entropy)

    def __check_init__(self) -> None:
        check_count("Smoothing", "pairs", self.pairs)
        check_positive("Smoothing", "sigma", self.sigma)
        check_entropy("Smoothing", self.entropy, like=0.05)

    def surrogate(
        self, rest: Rest, logits: Array, decision: Array, *, decide: Decide, key: Key[Array, ""]
    ) -> Float[Array, " cases"]:
        del decision
        here = jax.lax.stop_gradient(logits)
        noise = words.normal(words.shaped(key, (self.pairs, *logits.shape))).astype(logits.dtype)
        moved = jnp.concatenate([here + self.sigma * noise, here - self.sigma * noise])
        losses = losses_of(rest, jax.vmap(decide)(moved))
        change = losses[: self.pairs] - losses[self.pairs :]
        axes = tuple(range(1, logits.ndim))
        slope = jnp.mean(change.reshape(*change.shape, *[1] * len(axes)) * noise, 0) / (2 * self.sigma)
        if self.normalize:
            slope = slope / (jnp.mean(jnp.abs(change), 0) + FLOOR).reshape(-1, *[1] * len(axes))
        told = jnp.sum(slope * logits, axes)
        return told + self.entropy * negative_entropy(logits) if self.entropy and decide is argmax else told

    def log_prob(self, logits: Array, symbols: Int[Array, "set cases *parts"]) -> Float[Array, "set cases"]:
        """That noise makes these the largest: `prod_parts E_e prod_others Phi((z_k - z_j) / sigma + e)`."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(64)
        apart = (logits[..., :, None] - logits[..., None, :]) / self.sigma  # [cases, *parts, k, j]
        log_phi = jax.scipy.stats.norm.logcdf(apart[..., None] + nodes.astype(np.float32))
        others = ~jnp.eye(logits.shape[-1], dtype=bool)[..., None]
        each = jnp.sum(jnp.where(others, log_phi, 0.0), -2)
        return joint(jax.nn.logsumexp(each, axis=-1, b=(weights / weights.sum()).astype(np.float32)), symbols)
