"""How a module of a chain learns without waiting for those after it: a learning signal at their boundary.

The law is that of estimators: *the value is the true loss, computed once and the same for every signal; only the
derivative is another.* Below the boundary it is what the signal says; the signal's own leaves get the gradient that
fits them; above the boundary nothing changes.
"""

import abc
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from nondiff.core.estimator import with_gradient_of
from nondiff.core.problem import Params

Unlocks = Literal["nothing", "backward", "update"]
"""What a module does not wait for (Jaderberg et al., 2017, section 1). `"backward"`: until a gradient has come down
through all later modules; `"update"`: nor until activations have gone up through them.
"""
Losses = Float[Array, " cases"]
Rest = Callable[[Array], Losses]
"""Activations at a boundary to the losses, with the true derivative in the leaves of later modules."""


class Place(NamedTuple):
    """What a boundary is like: shapes and types, cases first."""

    name: str
    number: int
    """Of the boundary, from 0."""
    activations: jax.ShapeDtypeStruct
    outputs: Any
    """Of the whole chain."""
    answers: Any


class Seen(NamedTuple):
    """What a signal knows beside the activations."""

    place: Place
    answers: Any
    """Of the batch, `[cases, ...]`."""


class Above(NamedTuple):
    """What a signal may ask about the rest of the model. No gradient flows back through any of it."""

    seen: Seen
    key: Key[Array, ""]
    losses: Rest
    """Activations here to the true losses, without other signals."""
    slope: Callable[[Array], Array]
    """Activations here to the derivative of each case's loss in the chain's outputs, `[cases, ...]`."""
    compare: Callable[[Any, Any], Losses]


class AbstractSignal(eqx.Module):
    """What comes back over a boundary in place of the true gradient."""

    @property
    @abc.abstractmethod
    def unlocks(self) -> Unlocks:
        """What a module that learns by it does not wait for."""

    @property
    def lr_ratio(self) -> float | int:
        """How much faster its own leaves should learn than the modules (`Decoupled.optimizer`)."""
        return 1.0

    def init(self, place: Place, *, key: Key[Array, ""]) -> Params:
        """Its own trained leaves. **Raises** `ValueError` if it cannot be used there."""
        del place, key
        return ()

    @abc.abstractmethod
    def cross(self, own: Params, h: Array, above: Above, rest: Rest) -> Losses:
        """`rest(h)`, bit for bit, with the signal as the derivative in `h`, and the fitting gradient as that in
        `own`.
        """


class AbstractLocalSignal(AbstractSignal):
    """A signal made where it is used: nothing comes back from above."""

    @abc.abstractmethod
    def surrogate(self, own: Params, h: Array, above: Above) -> Losses:
        """One number per case, whose derivatives in `h` and `own` are those that are wanted. Never read."""

    def cross(self, own: Params, h: Array, above: Above, rest: Rest) -> Losses:
        return with_gradient_of(rest(jax.lax.stop_gradient(h)), self.surrogate(own, h, above))


class AbstractLearnedSignal(AbstractSignal):
    """A signal that is fitted to what comes back from above: for the activations of one batch after the other."""

    @abc.abstractmethod
    def gradient(self, own: Params, h: Array, seen: Seen, target: Array) -> Array:
        """What takes the place of `target`: the derivative of each case's loss from above, `[cases, ...]`."""

    @abc.abstractmethod
    def fit(self, own: Params, h: Array, seen: Seen, target: Array) -> Losses:
        """How badly `own` predicts the target; minimised."""

    def cross(self, own: Params, h: Array, above: Above, rest: Rest) -> Losses:
        h, tap = self._replaced(own, h, above.seen)
        return with_gradient_of(rest(h), tap)

    def _replaced(self, own: Params, h: Array, seen: Seen) -> tuple[Array, Losses]:
        """`h`, and zeros for the losses: what comes back to them is each case's weight in the total loss, so that a
        target is of the case's own loss, whether losses are summed or averaged.
        """

        @jax.custom_vjp
        def replaced(own: Params, h: Array, answers: Any) -> tuple[Array, Losses]:
            del own, answers
            return h, jnp.zeros(h.shape[0], h.dtype)

        def forward(own: Params, h: Array, answers: Any) -> Any:
            return replaced(own, h, answers), (own, h, answers)

        def backward(kept: Any, back: tuple[Array, Losses]) -> Any:
            own, h, answers = kept
            gradient, weight = back
            known = seen._replace(answers=answers)
            weights = weight.reshape(-1, *[1] * (h.ndim - 1))
            target = jnp.where(weights == 0, 0.0, gradient / jnp.where(weights == 0, 1.0, weights))
            fitted = jax.grad(lambda own: jnp.sum(weight * self.fit(own, h, known, target)))(own)
            return fitted, weights * self.gradient(own, h, known, target), None

        replaced.defvjp(forward, backward)
        return replaced(own, h, seen.answers)


class Locked(AbstractSignal):
    """The true gradient, as backpropagation has it: the reference.

    >>> Locked().unlocks
    'nothing'
    """

    @property
    def unlocks(self) -> Unlocks:
        return "nothing"

    def cross(self, own: Params, h: Array, above: Above, rest: Rest) -> Losses:
        del own, above
        return rest(h)
