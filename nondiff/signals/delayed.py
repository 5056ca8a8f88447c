"""Delayed gradients and features replay (Huo, Gu & Huang, 2018, "Training Neural Networks Using Features Replay",
https://arxiv.org/abs/1807.04511): the true gradient, some steps late, through the inputs of then.
"""

from typing import Any, ClassVar

import equinox as eqx
from jaxtyping import Array

from nondiff.core.checks import check_count
from nondiff.core.problem import Params
from nondiff.core.signal import AbstractSignal, Seen, Source, Unlocks


class Delayed(AbstractSignal):
    """What later modules send back, `steps` steps late: a module learns from an earlier batch.

    **Arguments:**

    - `steps`: 1 or more (default 1). Boundaries add up: below two of them, the batch is `2 * steps` old.

    The module goes through its inputs of then once more, with its parameters of now; they are remembered in the
    problem's state. Under `Supervised` with data in memory.

    **Raises** `ValueError` for fewer than 1.

    >>> Delayed().unlocks
    'backward'
    """

    steps: int = eqx.field(static=True, default=1)
    waits: ClassVar[Source] = "gradient"  # pyright: ignore[reportIncompatibleMethodOverride]
    unlocks: ClassVar[Unlocks] = "backward"  # pyright: ignore[reportIncompatibleMethodOverride]

    def __check_init__(self) -> None:
        check_count("Delayed", "steps", self.steps)

    @property
    def late(self) -> int:
        return self.steps

    def gradient(self, own: Params, h: Array, seen: Seen, came: Any) -> Array:
        del own, h, seen
        return came
