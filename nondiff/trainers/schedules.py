"""How one start of a search differs from those before it: of `Restart`.

IPOP: Auger & Hansen, 2005, "A Restart CMA Evolution Strategy With Increasing Population Size",
https://doi.org/10.1109/CEC.2005.1554902. BIPOP: Hansen, 2009, "Benchmarking a BI-population CMA-ES on the BBOB-2009
Function Testbed", https://doi.org/10.1145/1570256.1570333.
"""

import abc
import math
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import numpy as np

from nondiff.core.checks import check_factor


class Try(NamedTuple):
    """One start of the search: how its trainer differs from the first one."""

    population: Any
    """Times the first one."""
    sigma: Any
    """Times the first one."""
    most: Any
    """Evaluations after which it ends in any case."""


class AbstractSchedule(eqx.Module):
    """How a search differs from those before it."""

    alike: ClassVar[bool] = False
    """Is every search like the first one? Then it is not asked, and what JAX can trace stays in one compiled step."""

    @abc.abstractmethod
    def __call__(self, large: int, spent: tuple[int, int], last: int, dice: np.ndarray) -> tuple[Try, bool]:
        """The next try, and whether it is one of the large ones.

        `large`: how many of these there were; `spent`: evaluations in large ones and in small ones; `last`: in the last
        large one; `dice`: two numbers, uniform in [0, 1).
        """


class Same(AbstractSchedule):
    """The same search again."""

    alike: ClassVar[bool] = True

    def __call__(self, large: int, spent: tuple[int, int], last: int, dice: np.ndarray) -> tuple[Try, bool]:
        return Try(1.0, 1.0, math.inf), True


class IPOP(AbstractSchedule):
    """The population grows by `factor` (default 2) with every try."""

    factor: int | float = eqx.field(static=True, default=2)

    def __check_init__(self) -> None:
        check_factor("IPOP", "factor", self.factor)

    def __call__(self, large: int, spent: tuple[int, int], last: int, dice: np.ndarray) -> tuple[Try, bool]:
        return Try(float(self.factor) ** large, 1.0, math.inf), True


class BIPOP(AbstractSchedule):
    """Like `IPOP`, and between those tries small ones, each time with whatever has used fewer evaluations so far.

    A small one has a population between the first one and half of the last large one, a sigma of down to a hundredth
    of the first, and at most half of the evaluations of the last large one.
    """

    factor: int | float = eqx.field(static=True, default=2)

    def __check_init__(self) -> None:
        check_factor("BIPOP", "factor", self.factor)

    def __call__(self, large: int, spent: tuple[int, int], last: int, dice: np.ndarray) -> tuple[Try, bool]:
        if large == 0 or spent[0] <= spent[1]:
            return Try(float(self.factor) ** large, 1.0, math.inf), True
        half = 0.5 * float(self.factor) ** (large - 1)
        size = max(1.0, half ** (dice[0] ** 2))
        size = float(self.factor) ** round(math.log(size, self.factor))  # one that has been compiled already
        return Try(size, 10 ** (-2 * dice[1]), last / 2), False
