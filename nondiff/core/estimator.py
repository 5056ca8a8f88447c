"""How a learning signal crosses a part that has no derivative.

The law: *the value is `rest` at the hard decision, computed once and the same for every estimator; only the derivative
is estimated.* Each estimator names the objective whose gradient it estimates. So `Backprop` trains through the part,
and a search trainer on other leaves still sees the true loss.
"""

import abc
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

Rest = Callable[[Array], Float[Array, " cases"]]
"""Decisions `[cases, ...]`, symbols or numbers, to one loss per case."""
Decide = Callable[[Array], Array]
"""Activations `[cases, ...]` to decisions `[cases, ...]`."""


def argmax(logits: Float[Array, "*parts symbols"]) -> Int[Array, "*parts"]:
    """The likeliest symbol of each part."""
    return jnp.argmax(logits, -1)


@jax.custom_jvp
def with_gradient_of(value: Array, surrogate: Array) -> Array:
    """`value`, bit for bit, with the derivatives of both; `value + s - stop_gradient(s)` would round.

    XLA drops the surrogate, and every program call in it, when nobody differentiates.
    """
    del surrogate
    return value


@with_gradient_of.defjvp
def _(primals, tangents):
    return with_gradient_of(*primals), tangents[0] + tangents[1].astype(tangents[0].dtype)


class AbstractObjective(eqx.Module):
    """What an estimator's gradient is a gradient of, exactly computable where all symbols can be listed."""

    @abc.abstractmethod
    def __call__(
        self, losses: Float[Array, "set cases"], logp: Float[Array, "set cases"], distinct: Bool[Array, "set cases"]
    ) -> Float[Array, " cases"]:
        """The objective over a set of symbol assignments, the probabilities normalised within the set.

        `logp` holds their log-probabilities; entries that are not `distinct` count for nothing.
        """


class ExpectedLoss(AbstractObjective):
    """`E_p[loss]`."""

    def __call__(self, losses: Array, logp: Array, distinct: Array) -> Array:
        p = jax.nn.softmax(jnp.where(distinct, logp, -jnp.inf), axis=0)
        return jnp.sum(p * jnp.where(distinct, losses, 0.0), 0)


class SuccessLikelihood(AbstractObjective):
    """`-log P(loss <= tolerance)`: how surprising success is. Zero where no listed assignment succeeds."""

    tolerance: float = eqx.field(static=True, default=0.0)

    def __call__(self, losses: Array, logp: Array, distinct: Array) -> Array:
        hit = distinct & (losses <= self.tolerance)

        def log_sum(mask: Array) -> Array:
            return jax.nn.logsumexp(jnp.where(mask, logp, -1e30), axis=0)  # finite, or 0 * inf makes the gradient NaN

        return jnp.where(jnp.any(hit, 0), log_sum(distinct) - log_sum(hit), 0.0)


class Heuristic(AbstractObjective):
    """None: a direction that was found useful, and is the gradient of no loss."""

    def __call__(self, losses: Array, logp: Array, distinct: Array) -> Array:
        raise TypeError("a heuristic follows the gradient of no objective, so there is none to compute.")


class AbstractEstimator(eqx.Module):
    """A way to give `rest(decide(logits))` a derivative with respect to `logits`."""

    objective: eqx.AbstractVar[AbstractObjective]
    """What the gradient is a gradient of."""

    @property
    @abc.abstractmethod
    def unbiased(self) -> bool:
        """Is its mean exactly that gradient? Otherwise the bias vanishes as samples cover the domain."""

    @abc.abstractmethod
    def surrogate(
        self,
        rest: Rest,
        logits: Float[Array, "cases *parts symbols"],
        decision: Array,
        *,
        decide: Decide,
        key: Key[Array, ""],
    ) -> Float[Array, " cases"]:
        """One number per case whose gradient in `logits` estimates that of the objective. Never read as a value.

        `decision` is `decide(logits)`, which may be the answer of a dear solver.
        """

    def given(self, answers: Any) -> "AbstractEstimator":
        """This estimator, told what the right answers of the batch are, `[cases, ...]`: only a learned one asks."""
        del answers
        return self

    def log_prob(
        self, logits: Float[Array, "cases *parts symbols"], symbols: Int[Array, "set cases *parts"]
    ) -> Float[Array, "set cases"]:
        """Of each assignment, as the objective sees it: by default each part has the softmax of its logits."""
        return joint_log_prob(logits, symbols)


def joint_log_prob(logits: Array, symbols: Int[Array, "set cases *parts"]) -> Float[Array, "set cases"]:
    """Log-probability of each assignment of a case: the sum over its parts."""
    return joint(jax.nn.log_softmax(logits), symbols)


def joint(logp: Array, symbols: Int[Array, "set cases *parts"]) -> Float[Array, "set cases"]:
    """The same from the log-probabilities of every part's symbols."""
    chosen = jnp.take_along_axis(jnp.broadcast_to(logp, (*symbols.shape, logp.shape[-1])), symbols[..., None], -1)
    return jnp.sum(chosen[..., 0], axis=tuple(range(2, symbols.ndim)))


def negative_entropy(logits: Float[Array, "cases *parts symbols"]) -> Float[Array, " cases"]:
    """Summed over the parts of a case: small where the network is open."""
    logp = jax.nn.log_softmax(logits)
    return jnp.sum(jnp.exp(logp) * logp, axis=tuple(range(1, logits.ndim)))


def check_entropy(owner: str, entropy: int | float, *, like: float) -> None:
    """**Raises** `ValueError` for a weight of an entropy bonus that is negative or not finite."""
    if not 0 <= entropy < math.inf:
        raise ValueError(f"`{owner}(entropy={entropy})`: expected 0 or more, for example {like}.")


def check_floats(decisions: Array) -> None:
    """**Raises** `ValueError` for decisions, such as symbols, in which no `rest` has a derivative."""
    if not jnp.issubdtype(decisions.dtype, jnp.floating):
        raise ValueError(
            f"`through(decide)` gives {decisions.dtype}, and this estimator needs the derivative of `rest` in what it "
            "gives: let it decide for floats, for example `decide=one_hot`, or take an estimator that needs none."
        )


def slope_of(rest: Rest, decisions: Float[Array, "cases *parts"]) -> Float[Array, "cases *parts"]:
    """How each case's loss changes with its decision, for a `rest` that has a derivative there. None flows back."""
    check_floats(decisions)
    return jax.lax.stop_gradient(jax.grad(lambda x: jnp.sum(rest(x)))(jax.lax.stop_gradient(decisions)))


def losses_of(rest: Rest, decisions: Shaped[Array, "set rows *parts"]) -> Float[Array, "set cases"]:
    """`rest` on every assignment in the set: one call of a program for all of them. No gradient flows back.

    There are as many rows as cases, or a single one that `rest` compares with every case's answer.
    """
    return jax.lax.stop_gradient(jax.vmap(rest)(decisions))
