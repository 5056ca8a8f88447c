"""When a try of `Restart` is given up: a rule on the losses of its steps alone.

`NoBetter` is for losses that hardly vary, `Stall` for noisy ones: of two windows of steps, one after the other, it
compares the means (a one-sided test that the improvement is smaller than one that would matter; Schuirmann, 1987, "A
Comparison of the Two One-Sided Tests Procedure and the Power Approach", https://doi.org/10.1007/BF01068419).
"""

import abc
import math
from typing import Any, Generic, NamedTuple, TypeVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from nondiff.core.checks import check_count

State = TypeVar("State")


class AbstractCriterion(eqx.Module, Generic[State]):
    """When a try has no more to give.

    Its state is a pytree of arrays whose shapes stay, so that a run can be saved in the middle of a try. It is written
    with `jax.numpy`, without a look at values: it is compiled, in 64 bits where the trainer computes on the host.
    """

    @abc.abstractmethod
    def init(self) -> State:
        """Before the first step of a try: NumPy's arrays."""

    @abc.abstractmethod
    def update(self, state: State, mean: Float[Array, ""], best: Float[Array, ""]) -> State:
        """After a step: the mean of its evaluations' losses, and the best of them; failed ones left out."""

    @abc.abstractmethod
    def over(self, state: State) -> Bool[Array, ""]:
        """Is the try to be given up?"""

    @abc.abstractmethod
    def level(self, state: State) -> Float[Array, ""]:
        """How good the try is now, to compare tries by: lower is better, infinity while nobody knows."""


class _Waiting(NamedTuple):
    best: Any
    since: Any
    """Steps without a better loss."""


class NoBetter(AbstractCriterion[_Waiting]):
    """`steps` without a loss below the best of the try: for losses without noise.

    **Arguments:**

    - `steps`: how many.

    **Raises** `ValueError` for fewer than 1.

    >>> import jax, jax.numpy as jnp, nondiff, optax
    >>> problem = nondiff.BlackBox(lambda x: jnp.cos(3 * x) + x**2 / 10, 4.0, domain=nondiff.Real(-9.0, 9.0))
    >>> trainer = nondiff.Restart(nondiff.Backprop(optax.sgd(0.1)), on=NoBetter(10), schedule=nondiff.Same())
    >>> result = nondiff.fit(problem, trainer, steps=1_000, key=jax.random.key(0))
    >>> round(abs(float(result.params)), 1), result.reason  # the lowest of its valleys
    (1.0, 'all 10 tries have come to their ends')
    """

    steps: int = eqx.field(static=True)

    def __check_init__(self) -> None:
        check_count("NoBetter", "steps", self.steps)

    def init(self) -> _Waiting:
        return _Waiting(np.array(math.inf), np.array(0))

    def update(self, state: _Waiting, mean: Array, best: Array) -> _Waiting:
        del mean
        return _Waiting(jnp.minimum(best, state.best), jnp.where(best < state.best, 0, state.since + 1))

    def over(self, state: _Waiting) -> Array:
        return state.since >= self.steps

    def level(self, state: _Waiting) -> Array:
        return state.best


class Never(AbstractCriterion[Any]):
    """No try is given up: what `on=None` means. Tries are compared by their best losses."""

    def init(self) -> Any:
        return np.array(math.inf)

    def update(self, state: Any, mean: Array, best: Array) -> Array:
        del mean
        return jnp.minimum(best, state)

    def over(self, state: Any) -> Array:
        del state
        return jnp.zeros((), bool)

    def level(self, state: Any) -> Array:
        return state


class _Windows(NamedTuple):
    """The window that is being filled, and the last full one."""

    steps: Any
    mean: Any
    squares: Any
    """Summed squared distances from the mean (Welford's sums, which do not cancel)."""
    level: Any
    """Mean of the last full window."""
    error: Any
    """Its squared standard error."""
    stalled: Any


class Stall(AbstractCriterion[_Windows]):
    """A plateau at a level that is not good, seen through the noise of the losses.

    At the end of every `window` steps: the mean loss is above `good`, and by how much it fell since the window before
    is, with its standard error counted `errors` times, less than `least`. The first decision falls after two windows.
    Tries are compared by the means of their last full windows.

    **Arguments:**

    - `good`: no try is given up whose mean loss is at or below it (default 0.2, for losses of 0 or 1 per case: 80 %
      right answers). Choose it between the level that a healthy run ends at and that of the traps.
    - `window`: steps, at least 2 (default 100).
    - `least`: an improvement from one window to the next that is worth going on (default 0.03).
    - `errors`: standard errors of the improvement that it must be away from `least` (default 1.5); more of them wait
      longer before giving up a try whose loss is noisy.
    - `best`: look at the best loss of each step instead of the mean of its evaluations (default False), for searches,
      most of whose members are much worse than what they have found.

    The defaults are for losses of 0 or 1 per case in batches of about 64, whose means have a standard error of up to
    0.006 over a window; smaller batches need longer windows. They stop 20 of 20 runs that are trapped on sums of two
    digits, after 400 steps (median), and 0 of 20 that learn, sums of four digits with their slow start included; so do
    windows of 200. Windows of 50 stop 4 that learn (`experiments/benchmarks/restarts.py`).

    **Raises** `ValueError` for a window below 2 steps, numbers that are not finite, and a `least` or `errors` below 0.

    >>> stall = Stall(window=50)
    >>> state = stall.init()
    >>> for i in range(200):  # 0.49, 0.51, 0.49, ...
    ...     mean = 0.49 + 0.02 * jnp.float32(i % 2)
    ...     state = stall.update(state, mean, mean)
    ...     if stall.over(state):  # 0.50 - 0.50 + 1.5 * 0.002 is less than 0.03
    ...         break
    >>> i + 1, round(float(stall.level(state)), 2)
    (100, 0.5)
    """

    good: int | float = eqx.field(static=True, default=0.2)
    window: int = eqx.field(static=True, default=100, kw_only=True)
    least: int | float = eqx.field(static=True, default=0.03, kw_only=True)
    errors: int | float = eqx.field(static=True, default=1.5, kw_only=True)
    best: bool = eqx.field(static=True, default=False, kw_only=True)

    def __check_init__(self) -> None:
        check_count("Stall", "window", self.window, least=2)
        for name, lowest in (("good", -math.inf), ("least", 0), ("errors", 0)):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (number and math.isfinite(value) and value >= lowest):
                least = "" if lowest else " of at least 0"
                raise ValueError(f"`Stall({name}={value!r})`: expected a finite number{least}.")

    def init(self) -> _Windows:
        zero = np.array(0.0)
        return _Windows(np.array(0), zero, zero, np.array(math.inf), zero, np.array(False))

    def update(self, state: _Windows, mean: Array, best: Array) -> _Windows:
        mean = best if self.best else mean
        n = state.steps + 1
        centre = state.mean + (mean - state.mean) / n
        squares = state.squares + (mean - state.mean) * (mean - centre)
        error = squares / (self.window * (self.window - 1))
        most = state.level - centre + self.errors * jnp.sqrt(error + state.error)  # the improvement is no larger
        ended = _Windows(0 * n, 0 * centre, 0 * squares, centre, error, (centre > self.good) & (most < self.least))
        going = _Windows(n, centre, squares, state.level, state.error, state.stalled)
        return _Windows(*(jnp.where(n == self.window, a, b) for a, b in zip(ended, going, strict=True)))

    def over(self, state: _Windows) -> Array:
        return state.stalled

    def level(self, state: _Windows) -> Array:
        return state.level
