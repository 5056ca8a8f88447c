"""Synthetic gradients (Jaderberg, Czarnecki, Osindero, Vinyals, Graves, Silver & Kavukcuoglu, 2017, "Decoupled Neural
Interfaces using Synthetic Gradients", https://arxiv.org/abs/1608.05343): a small network predicts the gradient from the
activations, and is fitted to what later modules, which learn by predictions themselves, send back.
"""

import math
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from nondiff.core.checks import check_number, check_share
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
    - `mix`: of the gradient from above, in [0, 1]: BP(lambda) of the paper's supplement. 0 (default) is the prediction
      alone, 1 is backpropagation; anything above 0 waits for later modules.

    Targets are each case's own gradient, whatever the number of cases.

    **Raises** `ValueError` for numbers out of range, another `net`, and, where it is used, for no answers.

    >>> SyntheticGradient().unlocks, SyntheticGradient(mix=0.5).unlocks
    ('update', 'nothing')
    """

    conditioned: bool = eqx.field(static=True, default=True, kw_only=True)
    net: AbstractNet = eqx.field(default=Linear(), kw_only=True)
    lr_ratio: float | int = eqx.field(static=True, default=10.0, kw_only=True)  # pyright: ignore
    mix: float | int = eqx.field(static=True, default=0.0, kw_only=True)
    fits: ClassVar[Source] = "gradient"  # pyright: ignore[reportIncompatibleMethodOverride]

    def __check_init__(self) -> None:
        check_net("SyntheticGradient", self.net)
        check_number("SyntheticGradient", "lr_ratio", self.lr_ratio, positive=True, example=10.0)
        check_share("SyntheticGradient", "mix", self.mix)

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

    def fit(self, own: Params, h: Array, seen: Seen, came: Any) -> Float[Array, " cases"]:
        return jnp.sum(flat(self._predicted(own, h, seen) - came) ** 2, -1)

    def _predicted(self, own: Params, h: Array, seen: Seen) -> Array:
        x = flat(h)
        if self.conditioned:
            x = jnp.concatenate([x, encoded(seen).astype(x.dtype)], -1)
        return self.net(own, x).reshape(h.shape)
