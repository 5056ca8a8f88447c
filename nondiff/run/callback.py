"""What happens beside training: the moments between two steps, and the callbacks that are called there.

`fit` takes three lists, called in this order at every row of the log:

- `metrics`: each returns numbers that join the row (an evaluation on held-out data);
- `stop`: each ends the run by returning why, or returns `None`;
- `callbacks`: each sees the row (progress, files, checkpoints).

An entry is a function of the `Moment`, or an `AbstractCallback` where it has a beginning, an end, a memory or times of
its own.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from nondiff.core.problem import AbstractProblem, Params
from nondiff.core.step import TrainState
from nondiff.core.trainer import AbstractTrainer

Row = dict[str, int | float]
Json = None | bool | int | float | str | list[Any] | dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Moment:
    """A run between two steps."""

    step: int
    """Steps done, resumed ones included."""
    start: int
    """Steps that were done when this call of `fit` began."""
    resumed: bool
    """Does this call go on from a `Checkpoint`?"""
    steps: int
    """The `steps` given to `fit`."""
    log_every: int
    """The `log_every` given to `fit`."""
    seconds: float
    """Since this call of `fit` began."""
    row: Row
    """The newest row of the log: numbers on the host, `step` among them. Empty before the first."""
    logged: bool
    """Is the row of this moment?"""
    read: Callable[[], TrainState]
    """Gets the state, from wherever it is."""
    problem: AbstractProblem
    trainer: AbstractTrainer
    memory: Callable[[], dict[str, Any]]
    """What batches and callbacks would need to go on from here (`get_state` of each that has one)."""
    chunks: tuple[int, ...] = ()
    """How many members of each query exist at once; another number may change the last bits."""

    @functools.cached_property
    def state(self) -> TrainState:
        """On the device, or, of a pipeline, fetched from its modules when it is asked for. The next step may overwrite
        it: copy what you keep.
        """
        return self.read()

    @property
    def params(self) -> Params:
        """What to deploy if training stopped now."""
        return self.trainer.params(self.state.trainer)


def check_row(owner: str, every: int, moment: Moment) -> None:
    """**Raises** `ValueError` for a measurement that would join rows of the log between which it falls."""
    if every % moment.log_every:
        fits = -(-every // moment.log_every) * moment.log_every
        raise ValueError(
            f"`{owner}(every={every})`: what it measures joins a row of the log, and those come every "
            f"{moment.log_every} steps (`log_every`). Use a multiple of that, {fits} for example."
        )


def at_row(every: int, moment: Moment) -> bool:
    """Is a measurement due that joins a row of the log, every so many steps and at the end?"""
    return moment.logged and (moment.step % every == 0 or moment.step == moment.steps)


class AbstractCallback(abc.ABC):
    """Something that happens beside training. Only `__call__` must be written; it returns what its list says.

    >>> class Worst(AbstractCallback):
    ...     '''The largest loss so far, also after a resume.'''
    ...     loss = -float("inf")
    ...     def __call__(self, moment):
    ...         self.loss = max(self.loss, moment.row["loss"])
    ...     def get_state(self):
    ...         return self.loss
    ...     def set_state(self, state):
    ...         self.loss = state
    """

    every: int | None = None
    """Call it at the multiples of so many steps. Default: at the rows of the log. A metric is asked at rows only."""

    saves_others: bool = False
    """Called after all others, since it keeps what they remember."""

    def begin(self, moment: Moment) -> None:
        """Called before the first step."""
        del moment

    def due(self, moment: Moment) -> bool:
        """Is it to be called now? Asked at every pause: at rows, at multiples of `every`, and after each compiled call,
        which is kept under half a second or one step."""
        return moment.logged if self.every is None else moment.step % self.every == 0

    @abc.abstractmethod
    def __call__(self, moment: Moment) -> Mapping[str, Any] | str | None:
        """Called when due."""

    def end(self, moment: Moment, error: BaseException | None) -> None:
        """Called once, however the run ended, if `begin` was. `error` is what ended it."""
        del moment, error

    def get_state(self) -> Any:
        """What a resumed run must know, as JSON and bytes; kept in checkpoints. Default: nothing."""
        return None

    def set_state(self, state: Any) -> None:
        """Called before `begin` of a resumed run with what `get_state` returned."""
        del state


Measure = Callable[[Moment], Mapping[str, Any]] | AbstractCallback
Callback = Callable[[Moment], None] | AbstractCallback
Stop = Callable[[Moment], str | None] | AbstractCallback
