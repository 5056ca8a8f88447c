"""Forward gradients (Baydin, Pearlmutter, Syme, Wood & Torr, 2022, "Gradients without Backpropagation",
https://arxiv.org/abs/2202.08587), of activations instead of weights (Ren, Kornblith, Liao & Hinton, 2023, "Scaling
Forward Gradient With Local Losses", https://arxiv.org/abs/2210.03310, equation 7): how the loss changes along a random
direction, times that direction.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from nondiff.core import words
from nondiff.core.checks import check_count
from nondiff.core.problem import Params
from nondiff.core.signal import AbstractSignal, Seen, Source


class ForwardGradient(AbstractSignal):
    """The derivative of the loss along random directions of the activations, found on the way forward.

    **Arguments:**

    - `samples`: directions, 1 or more (default 1). Each case has its own.

    Its mean is the true gradient; its variance grows with the width of the activations. It has nothing to learn.

    **Raises** `ValueError` for fewer than 1.

    >>> ForwardGradient().unlocks
    'backward'
    """

    samples: int = eqx.field(static=True, default=1, kw_only=True)
    waits: ClassVar[Source] = "losses"  # pyright: ignore[reportIncompatibleMethodOverride]

    def __check_init__(self) -> None:
        check_count("ForwardGradient", "samples", self.samples)

    def gradient(self, own: Params, h: Array, seen: Seen, came: Any) -> Array:
        del own

        def change(key: Key[Array, ""]) -> Array:
            v = words.normal(words.shaped(key, h.shape)).astype(h.dtype)
            slope = jax.jvp(came, (h,), (v,))[1]
            return slope.reshape(-1, *[1] * (h.ndim - 1)) * v

        return jnp.mean(jax.vmap(change)(words.split(seen.key, self.samples)), 0)
