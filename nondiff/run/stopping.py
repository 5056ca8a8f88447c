"""When a run ends early: entries of `fit(stop=)`. The reason that each gives becomes `Result.reason`."""

import math
import warnings
from typing import Any

from nondiff.core.checks import check_count, check_number
from nondiff.run.callback import AbstractCallback, Json, Moment
from nondiff.run.elapsed import Elapsed


class Target(AbstractCallback):
    """Stop as soon as a metric is at or below a value.

    Rows that lack the metric are passed over: one on held-out data comes every few rows. A run in which no row had it
    ends with a warning that says which there were.

    **Arguments:**

    - `value`: a number; not NaN, which nothing reaches.
    - `metric`: its name in the rows of the log (default `"loss"`, which each row has).

    **Raises** `ValueError` for a value that is no number.

    >>> import jax, jax.numpy as jnp, nondiff, optax
    >>> problem = nondiff.BlackBox(jnp.square, 1.0)
    >>> result = nondiff.fit(problem, nondiff.Backprop(optax.sgd(0.25)), steps=100, key=jax.random.key(0),
    ...                      stop=[Target(0.01)], log_every=1)
    >>> result.steps, result.reason  # the losses: 1, 1/4, 1/16, 1/64, 1/256
    (5, 'the target 0.01 was reached')
    """

    def __init__(self, value: int | float, metric: str = "loss"):
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            raise ValueError(f"`Target(value={value!r})`: expected a number.")
        check_metric("Target", metric)
        self.value, self.metric = value, metric
        self._missed: list[str] = []
        self._found = False

    def begin(self, moment: Moment) -> None:
        del moment
        self._missed, self._found = [], False

    def __call__(self, moment: Moment) -> str | None:
        if self.metric not in moment.row:
            self._missed = list(moment.row)
            return None
        self._found = True
        return f"the target {self.value} was reached" if moment.row[self.metric] <= self.value else None

    def end(self, moment: Moment, error: BaseException | None) -> None:
        del moment
        if self._missed and not self._found and error is None:
            warnings.warn(
                f"`Target(metric={self.metric!r})`: no row of this run has it, so it could not stop the run. There is "
                f"{_listed(self._missed)}.",
                stacklevel=2,
            )


class Patience(AbstractCallback):
    """Stop when a metric has not improved for a while.

    It remembers the best value and its step. A later value is an improvement if it is lower by more than `least`; then
    it is the best. A value that is not finite never is one. Rows that lack the metric are passed over: one on held-out
    data comes every few rows, and only those can end the run.

    **Arguments:**

    - `steps`: how many without an improvement end the run. Count generously: a noisy loss, and one whose trainer is
      still adapting, stand still for long.
    - `metric`: its name in the rows of the log (default `"loss"`, which each row has; on held-out data
      `"held_out/loss"`).
    - `least`: how much lower is lower (default 0.0: any improvement counts).

    **Raises** `ValueError` for `steps` below 1 and a `least` that is negative or not finite; in a run, if none of its
    rows has had the metric for `steps` steps.

    >>> import jax, jax.numpy as jnp, nondiff, optax
    >>> problem = nondiff.BlackBox(jnp.square, 1.0)
    >>> result = nondiff.fit(problem, nondiff.Backprop(optax.sgd(0.25)), steps=100, key=jax.random.key(0),
    ...                      stop=[Patience(3, least=0.1)], log_every=1)
    >>> result.steps, result.reason  # the losses: 1, 1/4, 1/16, 1/64, 1/256; that of step 3 is lower by 0.1875
    (6, '`loss` has not fallen by more than 0.1 below 0.0625 for 3 steps, since step 3')
    """

    def __init__(self, steps: int, metric: str = "loss", least: int | float = 0.0):
        check_count("Patience", "steps", steps)
        check_metric("Patience", metric)
        check_number("Patience", "least", least)
        self.steps, self.metric, self.least = steps, metric, least
        self._best: float | None = None
        self._since, self._found, self._resumed = 0, False, False

    def begin(self, moment: Moment) -> None:
        if not self._resumed:
            self._best, self._since, self._found = None, moment.start, False
        self._resumed = False

    def __call__(self, moment: Moment) -> str | None:
        waited = moment.step - self._since
        if self.metric not in moment.row:
            if not self._found and waited >= self.steps:
                raise ValueError(
                    f"`Patience(steps={self.steps}, metric={self.metric!r})`: no row had it in {waited} steps. There "
                    f"is {_listed(list(moment.row))}. If it is measured less often, give more steps."
                )
            return None
        self._found = True
        value = moment.row[self.metric]
        if math.isfinite(value) and (self._best is None or value < self._best - self.least):
            self._best, self._since = float(value), moment.step
            return None
        if waited < self.steps:
            return None
        if self._best is None:
            return f"`{self.metric}` has not been finite for {waited} steps, since step {self._since}"
        fallen = f"fallen by more than {self.least:g}" if self.least else "fallen"
        return f"`{self.metric}` has not {fallen} below {self._best:.6g} for {waited} steps, since step {self._since}"

    def get_state(self) -> Json:
        return {"metric": self.metric, "best": self._best, "since": self._since, "found": self._found}

    def set_state(self, state: Any) -> None:
        if state["metric"] != self.metric:
            raise ValueError(
                f"`Patience(metric={self.metric!r})`: the one in its place watched {state['metric']!r} when the "
                "checkpoint was written. Give the stops in the same order."
            )
        self._best, self._since, self._found = state["best"], state["since"], state["found"]
        self._resumed = True


class WallClock(AbstractCallback):
    """Stop when the time is up, after the step that is running then; also between two rows of the log.

    The time is that in training, compilation included. A resumed run counts what its earlier parts took.

    **Arguments:**

    - `minutes`: how many.

    **Raises** `ValueError` for what is not a finite number above 0.

    >>> import jax, jax.numpy as jnp, nondiff, optax
    >>> problem = nondiff.BlackBox(jnp.square, 1.0)
    >>> result = nondiff.fit(problem, nondiff.Backprop(optax.sgd(0.1)), steps=10**9, key=jax.random.key(0),
    ...                      stop=[WallClock(minutes=0.001)])
    >>> result.steps < 10**9, result.reason
    (True, 'the time of 0.001 minutes was up')
    """

    def __init__(self, minutes: int | float):
        check_number("WallClock", "minutes", minutes, positive=True)
        self.minutes = minutes
        self._elapsed = Elapsed()

    def begin(self, moment: Moment) -> None:
        self._elapsed.begin(moment)

    def due(self, moment: Moment) -> bool:
        del moment
        return True

    def __call__(self, moment: Moment) -> str | None:
        up = self._elapsed.at(moment) >= 60 * self.minutes
        return f"the time of {self.minutes:g} minutes was up" if up else None

    def end(self, moment: Moment, error: BaseException | None) -> None:
        del error
        self._elapsed.end(moment)

    def get_state(self) -> Json:
        return self._elapsed.get_state()

    def set_state(self, state: Any) -> None:
        self._elapsed.set_state(state)


def check_metric(owner: str, metric: Any) -> None:
    """**Raises** `ValueError` unless `metric` is a name."""
    if not isinstance(metric, str) or not metric:
        raise ValueError(f'`{owner}(metric={metric!r})`: expected a name in the rows of the log, for example "loss".')


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names if name != "step") or "none at all"
