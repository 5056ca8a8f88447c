"""Direct feedback alignment (Nøkland, 2016, "Direct Feedback Alignment Provides Learning in Deep Neural Networks",
https://arxiv.org/abs/1609.01596): the error at the outputs, sent to every module by a fixed random matrix.
"""

import math
from typing import Any, ClassVar

import equinox as eqx
import jax.random as jr
from jaxtyping import Array

from nondiff.core import words
from nondiff.core.checks import check_count
from nondiff.core.problem import Params
from nondiff.core.signal import AbstractSignal, Seen, Source
from nondiff.signals.nets import flat


class FeedbackAlignment(AbstractSignal):
    """The output's error, by way of a matrix that never changes: nothing goes down through later modules.

    **Arguments:**

    - `seed`: of the matrices, a whole number of at least 0 (default 0). They are drawn, not kept: normal, with variance
      `1 / outputs`, another for each boundary.

    The chain's outputs are floats in which the losses have a derivative. It has nothing to learn.

    **Raises** `ValueError` for another seed.

    >>> FeedbackAlignment().unlocks
    'backward'
    """

    seed: int = eqx.field(static=True, default=0, kw_only=True)
    waits: ClassVar[Source] = "error"  # pyright: ignore[reportIncompatibleMethodOverride]

    def __check_init__(self) -> None:
        check_count("FeedbackAlignment", "seed", self.seed, least=0)

    def gradient(self, own: Params, h: Array, seen: Seen, came: Any) -> Array:
        del own
        error = flat(came)
        width = math.prod(h.shape[1:])
        key = words.fold_in(jr.key(self.seed), seen.place.number)
        back = words.normal(words.shaped(key, (error.shape[1], width))).astype(h.dtype) / math.sqrt(error.shape[1])
        return (error @ back).reshape(h.shape)
