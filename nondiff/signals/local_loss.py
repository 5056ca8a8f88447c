"""Local losses: decoupled greedy learning (Belilovsky, Eickenberg & Oyallon, 2020, "Decoupled Greedy Learning of CNNs",
https://arxiv.org/abs/1901.08164), where each module has a small classifier of its own; and similarity matching (Nøkland
& Eidnes, 2019, "Training Neural Networks with Local Error Signals", https://arxiv.org/abs/1901.06656).
"""

import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from nondiff.core import words
from nondiff.core.checks import check_share
from nondiff.core.layers import affine
from nondiff.core.problem import Params
from nondiff.core.signal import AbstractSignal, Place, Seen, Source
from nondiff.signals.context import encoded, width_of
from nondiff.signals.nets import AbstractNet, Linear, check_net, flat


class LocalLoss(AbstractSignal):
    """The gradient of a loss of the module's own: what a small network reads from its activations is compared with the
    answers, as the chain's outputs are.

    **Arguments:**

    - `net`: activations to outputs, `Linear()` (default) or `Hidden(width)`.
    - `similarity`: how much of the loss is similarity matching instead, in [0, 1] (default 0): cases with the same
      answers should have activations that point the same way (equation 2 there; with 0.99 its "predsim"). It compares
      cases of a batch with one another, so their credit is no longer a case's own.

    **Raises** `ValueError` for a number out of range, another `net`, and, where it is used, for outputs that are more
    than one array of floats, or no answers for the similarity.

    >>> LocalLoss().unlocks
    'update'
    """

    net: AbstractNet = eqx.field(default=Linear(), kw_only=True)
    similarity: float | int = eqx.field(static=True, default=0.0, kw_only=True)
    waits: ClassVar[Source] = "nothing"  # pyright: ignore[reportIncompatibleMethodOverride]
    judges: ClassVar[bool] = True  # pyright: ignore[reportIncompatibleMethodOverride]

    def __check_init__(self) -> None:
        check_net("LocalLoss", self.net)
        check_share("LocalLoss", "similarity", self.similarity)

    def init(self, place: Place, *, key: Key[Array, ""]) -> Params:
        outputs = place.outputs
        if not isinstance(outputs, jax.ShapeDtypeStruct) or not jnp.issubdtype(outputs.dtype, jnp.floating):
            raise ValueError(
                f"`LocalLoss` behind `{place.name}`: its network answers as the chain does, with one array of floats, "
                f"and this chain gives {outputs}."
            )
        width = math.prod(place.activations.shape[1:])
        k_net, k_turn = words.split(key)
        own = {"read": self.net.init(width, math.prod(outputs.shape[1:]), key=k_net)}
        if self.similarity:
            width_of("LocalLoss(similarity=...)", place)
            turn = words.normal(words.shaped(k_turn, (width, width))).astype(float) / math.sqrt(width)
            own["turn"] = {"w": turn, "b": jnp.zeros(width)}
        return own

    def gradient(self, own: Params, h: Array, seen: Seen, came: Any) -> Array:
        return jax.grad(lambda h: jnp.sum(self.fit(own, h, seen, came)))(h)

    def fit(self, own: Params, h: Array, seen: Seen, came: Any) -> Float[Array, " cases"]:
        del came
        read = self.net(own["read"], flat(h)).reshape(h.shape[0], *seen.place.outputs.shape[1:])
        losses = seen.compare(read, seen.answers)
        if not self.similarity:
            return losses
        alike = _similar(affine(own["turn"], flat(h))) - _similar(encoded(seen))
        return (1 - self.similarity) * losses + self.similarity * jnp.mean(alike**2, -1)


def _similar(x: Float[Array, "cases width"]) -> Float[Array, "cases cases"]:
    """The cosine between every two cases, each less its mean."""
    x = x - jnp.mean(x, -1, keepdims=True)
    x = x / jnp.sqrt(jnp.sum(x**2, -1, keepdims=True) + 1e-8)
    return x @ x.T
