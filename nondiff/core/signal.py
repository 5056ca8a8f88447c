"""How a module of a chain learns without waiting for those after it: a learning signal at their boundary.

The law is that of estimators: *the value is the true loss, computed once and the same for every signal; only the
derivative is another.* Below the boundary it is what the signal says; the signal's own leaves get the gradient that
fits them; above the boundary nothing changes.
"""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from nondiff.core.estimator import with_gradient_of
from nondiff.core.problem import Params

Source = Literal["nothing", "error", "losses", "gradient"]
"""What a signal is made from, beside activations and answers: the losses' derivative in the chain's outputs, the losses
as a function of the activations, or the gradient that later modules send back.
"""
Unlocks = Literal["nothing", "backward", "update", "forward"]
"""What a module does not wait for (Jaderberg et al., 2017, section 1). `"backward"`: until a gradient has come down
through all later modules; `"update"`: nor until activations have gone up through them; `"forward"`: nor until they have
come up from earlier ones.
"""
UNLOCKS: dict[Source, Unlocks] = {"nothing": "update", "error": "backward", "losses": "backward", "gradient": "nothing"}
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
    compare: Callable[[Any, Any], Losses]
    """Outputs and answers to losses."""
    key: Key[Array, ""]


class Above(NamedTuple):
    """What can be asked about the rest of the model. No gradient flows back through it."""

    losses: Rest
    """Activations here to the true losses, without other signals."""
    error: Callable[[Array], Array]
    """Activations here to the derivative of each case's loss in the chain's outputs, `[cases, ...]`."""

    def source(self, name: Source, h: Array) -> Any:
        """What `gradient` and `fit` are given; the gradient from above comes by another way."""
        return {"nothing": lambda: None, "error": lambda: self.error(h), "losses": lambda: self.losses}[name]()


class AbstractSignal(eqx.Module):
    """What comes back over a boundary in place of the true gradient."""

    @property
    @abc.abstractmethod
    def waits(self) -> Source:
        """What `gradient` is made from."""

    @property
    def fits(self) -> Source:
        """What `fit` is made from."""
        return "nothing"

    @property
    def unlocks(self) -> Unlocks:
        """What a module that learns by it does not wait for."""
        return UNLOCKS[self.waits]

    @property
    def judges(self) -> bool:
        """Is what `fit` gives a loss of the activations, by which a search may go?"""
        return False

    @property
    def late(self) -> int:
        """How many steps late it gets what comes from above."""
        return 0

    def optimizer(self, modules: optax.GradientTransformation) -> optax.GradientTransformation:
        """What moves its own leaves (`Decoupled.optimizer`). Default: what moves the modules."""
        return modules

    def init(self, place: Place, *, key: Key[Array, ""]) -> Params:
        """Its own trained leaves. **Raises** `ValueError` if it cannot be used there."""
        del place, key
        return ()

    @abc.abstractmethod
    def gradient(self, own: Params, h: Array, seen: Seen, came: Any) -> Array:
        """What stands for the derivative of each case's loss in `h`, `[cases, ...]`; `came` is what it waits for."""

    def fit(self, own: Params, h: Array, seen: Seen, came: Any) -> Losses:
        """What its own leaves minimise, a number per case. Default: there are none."""
        del own, seen, came
        return jnp.zeros(h.shape[0], h.dtype)

    def cross(self, own: Params, h: Array, seen: Seen, above: Above, rest: Rest) -> Losses:
        """`rest(h)`, bit for bit, with the signal as the derivative in `h`, and that of `fit` in `own`."""
        if "gradient" in (self.waits, self.fits):
            h, tap = tapped(self, own, h, seen)
            return with_gradient_of(rest(h), tap)
        here = jax.lax.stop_gradient(h)
        return with_gradient_of(rest(here), self.surrogate(own, h, seen, above.source(self.waits, here)))

    def surrogate(self, own: Params, h: Array, seen: Seen, came: Any) -> Losses:
        """One number per case, whose derivatives in `h` and `own` are those that are wanted. Never read."""
        here = jax.lax.stop_gradient(h)
        return along(self.gradient(own, here, seen, came), h) + self.fit(own, here, seen, came)


def along(gradient: Array, h: Array) -> Losses:
    """One number per case, whose derivative in `h` is `gradient`."""
    return jnp.sum((jax.lax.stop_gradient(gradient) * h).reshape(h.shape[0], -1), -1)


def tapped(signal: AbstractSignal, own: Params, h: Array, seen: Seen) -> tuple[Array, Losses]:
    """`h`, and zeros for the losses: what comes back to them is each case's weight in the total loss, so that what
    comes from above is the gradient of the case's own loss, whether losses are summed or averaged.
    """

    @jax.custom_vjp
    def replaced(own: Params, h: Array, known: Any) -> tuple[Array, Losses]:
        del own, known
        return h, jnp.zeros(h.shape[0], h.dtype)

    def forward(own: Params, h: Array, known: Any) -> Any:
        return replaced(own, h, known), (own, h, known)

    def backward(kept: Any, back: tuple[Array, Losses]) -> Any:
        own, h, (answers, key) = kept
        there = seen._replace(answers=answers, key=key)
        weight = back[1].reshape(-1, *[1] * (h.ndim - 1))
        came = jnp.where(weight == 0, 0.0, back[0] / jnp.where(weight == 0, 1.0, weight))
        sources: dict[Source, Any] = {"gradient": came, "nothing": None}
        fitted = jax.grad(lambda own: jnp.sum(back[1] * signal.fit(own, h, there, sources[signal.fits])))(own)
        gradient = signal.gradient(own, h, there, sources[signal.waits])
        return fitted, (weight * gradient).astype(h.dtype), None

    replaced.defvjp(forward, backward)
    return replaced(own, h, (seen.answers, seen.key))


class Locked(AbstractSignal):
    """The true gradient, as backpropagation has it: the reference.

    >>> Locked().unlocks
    'nothing'
    """

    waits: ClassVar[Source] = "gradient"  # pyright: ignore[reportIncompatibleMethodOverride]

    def gradient(self, own: Params, h: Array, seen: Seen, came: Any) -> Array:
        del own, h, seen
        return came

    def cross(self, own: Params, h: Array, seen: Seen, above: Above, rest: Rest) -> Losses:
        del own, seen, above
        return rest(h)
