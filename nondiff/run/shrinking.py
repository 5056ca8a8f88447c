"""Steps that shrink over a budget: schedules that are equal by value, so that a second run like the first one compiles
nothing. (Those of optax are closures: each is another function, and a program is compiled for it.)
"""

import dataclasses
import functools
from typing import Any

import optax


@dataclasses.dataclass(frozen=True)
class Shrinking:
    """From `first` to `first * left` after `steps` steps, by the same factor at each.

    >>> Shrinking(2.0, steps=10, left=0.25)(5)
    1.0
    """

    first: float
    steps: int
    left: float = 1e-3

    def __call__(self, step: Any) -> Any:
        return self.first * self.left ** (step / self.steps)


@functools.lru_cache(maxsize=16)
def adam(rate: Shrinking) -> optax.GradientTransformation:
    """The same optimizer for the same rate."""
    return optax.adam(rate)
