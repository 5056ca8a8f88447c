"""Synthetic gradients (Jaderberg, Czarnecki, Osindero, Vinyals, Graves, Silver & Kavukcuoglu, 2017, "Decoupled Neural
Interfaces using Synthetic Gradients", https://arxiv.org/abs/1608.05343): a small network predicts the gradient from the
activations, and is fitted to what later modules, which learn by predictions themselves, send back.
"""

import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from nondiff.core.checks import check_number, check_share
from nondiff.core.estimator import with_gradient_of
from nondiff.core.problem import Params
from nondiff.core.signal import AbstractSignal, Place, Seen, Source
from nondiff.signals.context import encoded, width_of
from nondiff.signals.nets import AbstractNet, Linear, check_net, flat


class SyntheticGradient(AbstractSignal):
    """A predicted gradient: a module learns as soon as it has its activations.

    **Arguments:**

    - `conditioned`: does the network see the answers, too (default)? Without them, accuracy falls with depth.
    - `net`: `Linear()` (default) or `Hidden(width)`; it starts by predicting 0.
    - `lr_ratio`: how much faster it learns than the modules, above 0 (default 10), by `Decoupled.optimizer`.
    - `damping`: above 0: a `Linear` net is fitted by least squares instead, at every step to its batch, damped by so
      many times the mean eigenvalue of the inputs' second moments: a large one moves it less. Default `None`: by the
      optimiser. For losses that are averaged, and for parameters that `Decoupled.optimizer` moves.
    - `mix`: of the gradient from above, in [0, 1]: BP(lambda) of the paper's supplement. 0 (default) is the prediction
      alone, 1 is backpropagation; anything above 0 waits for later modules.

    Targets are each case's own gradient, whatever the number of cases.

    **Raises** `ValueError` for numbers out of range, another `net`, `damping` of one that is not linear, and, where it
    is used, for no answers.

    >>> SyntheticGradient().unlocks, SyntheticGradient(mix=0.5).unlocks
    ('update', 'nothing')
    """

    conditioned: bool = eqx.field(static=True, default=True, kw_only=True)
    net: AbstractNet = eqx.field(default=Linear(), kw_only=True)
    lr_ratio: float | int = eqx.field(static=True, default=10.0, kw_only=True)
    damping: float | int | None = eqx.field(static=True, default=None, kw_only=True)
    mix: float | int = eqx.field(static=True, default=0.0, kw_only=True)
    fits: ClassVar[Source] = "gradient"  # pyright: ignore[reportIncompatibleMethodOverride]

    def __check_init__(self) -> None:
        check_net("SyntheticGradient", self.net)
        check_number("SyntheticGradient", "lr_ratio", self.lr_ratio, positive=True, example=10.0)
        check_share("SyntheticGradient", "mix", self.mix)
        if self.damping is not None:
            check_number("SyntheticGradient", "damping", self.damping, positive=True, example=0.3)
            if not isinstance(self.net, Linear):
                raise ValueError(f"`SyntheticGradient(net={self.net!r}, damping=...)`: least squares fit a `Linear()`.")

    def optimizer(self, modules: optax.GradientTransformation) -> optax.GradientTransformation:
        if self.damping is not None:
            return optax.sgd(1.0)  # the step itself is what comes back
        return optax.chain(modules, optax.scale(self.lr_ratio))

    @property
    def waits(self) -> Source:
        return "gradient" if self.mix else "nothing"

    def init(self, place: Place, *, key: Key[Array, ""]) -> Params:
        width = math.prod(place.activations.shape[1:])
        context = width_of("SyntheticGradient", place) if self.conditioned else 0
        return self.net.init(width + context, width, key=key)

    def gradient(self, own: Params, h: Array, seen: Seen, came: Any) -> Array:
        predicted = self._predicted(own, h, seen)
        return self.mix * came + (1 - self.mix) * predicted if self.mix else predicted

    def fit(self, own: Any, h: Array, seen: Seen, came: Any) -> Float[Array, " cases"]:
        wrong = flat(self._predicted(own, h, seen) - came)
        losses = jnp.sum(wrong**2, -1)
        if self.damping is None:
            return losses
        x = jnp.pad(self._inputs(h, seen), ((0, 0), (0, 1)), constant_values=1.0)  # the last one for `b`
        step = jax.lax.stop_gradient(_least_squares(x, wrong, self.damping))
        along = jnp.vdot(step[:-1], own["w"]) + jnp.vdot(step[-1], own["b"])
        return with_gradient_of(jax.lax.stop_gradient(losses), jnp.broadcast_to(along, losses.shape))

    def _predicted(self, own: Any, h: Array, seen: Seen) -> Array:
        return self.net(own, self._inputs(h, seen)).reshape(h.shape)

    def _inputs(self, h: Array, seen: Seen) -> Float[Array, "cases width"]:
        x = flat(h)
        return jnp.concatenate([x, encoded(seen).astype(x.dtype)], -1) if self.conditioned else x


def _least_squares(
    x: Float[Array, "cases n"], wrong: Float[Array, "cases width"], damping: float | int
) -> Float[Array, "n width"]:
    """The `step` that minimises the mean of `|x step - wrong|^2`, plus `damping` times the mean square of `x` times
    `|step|^2`. Of two forms, which are equal, the one with the smaller matrix.
    """
    cases, n = x.shape
    damp = damping * jnp.mean(x**2) * cases
    if n <= cases:
        return jax.scipy.linalg.solve(x.T @ x + damp * jnp.eye(n, dtype=x.dtype), x.T @ wrong, assume_a="pos")
    return x.T @ jax.scipy.linalg.solve(x @ x.T + damp * jnp.eye(cases, dtype=x.dtype), wrong, assume_a="pos")
