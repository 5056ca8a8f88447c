"""How often decoupled modules hear of one another, and when they learn together."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from nondiff.core.checks import check_count


@dataclasses.dataclass(frozen=True)
class Sync:
    """What the modules of a `Decoupled` exchange.

    **Arguments:**

    - `every`: they send what others learn from every so many steps, 1 or more (default 1). Between two messages a
      prediction gets no gradient, nor does a module that waits for a message. (An optimiser with momentum moves on.)
    - `true`: every so many steps all modules learn by the true gradient, as backpropagation has it, 1 or more. Default
      `None`: they never do.
    - `warmup`: so they do at the first steps, 0 or more (default 0), while predictions are fitted that nobody uses yet.

    `true` and `warmup` wait for all modules, so nothing may be late; and they are for boundaries to which gradients
    come, `SyntheticGradient` and `Locked`.

    **Raises** `ValueError` for numbers out of range.

    >>> Sync(true=5, warmup=2).is_true(jnp.arange(8)).astype(int).tolist()
    [1, 1, 0, 0, 0, 1, 0, 0]
    """

    every: int = 1
    true: int | None = None
    warmup: int = 0

    def __post_init__(self) -> None:
        check_count("Sync", "every", self.every)
        check_count("Sync", "warmup", self.warmup, least=0)
        if self.true is not None:
            check_count("Sync", "true", self.true)

    @property
    def waits(self) -> bool:
        """Are there steps at which modules wait for one another?"""
        return self.true is not None or self.warmup > 0

    def is_true(self, step: Int[Array, "*steps"]) -> Bool[Array, "*steps"]:
        """Do all learn by the true gradient at this step, counted from 0?"""
        now = step < self.warmup
        return now if self.true is None else now | (step % self.true == 0)

    def sent(self, step: Int[Array, ""], about: Int[Array, ""]) -> Int[Array, ""]:
        """What a message of this step is about; -1 where none is sent."""
        return jnp.where(step % self.every == 0, about, -1) if self.every > 1 else about
