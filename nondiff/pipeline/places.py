"""Where the modules of a pipeline are trained: the contract, and what all places share."""

import abc
from collections.abc import Sequence
from typing import Any, NamedTuple

from nondiff.core.step import TrainState
from nondiff.pipeline.stage import How, Parts
from nondiff.run.callback import Row


class Given(NamedTuple):
    """A module before its first step at a place."""

    parts: Parts
    state: TrainState
    how: How


class Out(NamedTuple):
    """References to what a module gives at a step: to be handed on, whether it is there yet or not."""

    up: Any
    down: Any
    error: Any
    row: Any


class Died(Exception):
    """What a reference stands for will not come, since the module was lost, or one that it waits for."""


class AbstractSession(abc.ABC):
    """Modules at a place, from the first step to `close`. Each takes its steps in the order of `submit`."""

    @abc.abstractmethod
    def submit(self, i: int, inputs: Any, message: Any) -> Out:
        """Another step of module `i`, as soon as `inputs` and `message`, references or `None`, have come."""

    @abc.abstractmethod
    def rows(self, outs: Sequence[Out]) -> list[Row]:
        """The metrics of steps; waits for all of them. **Raises** `Died`."""

    @abc.abstractmethod
    def is_there(self, ref: Any) -> bool:
        """Has it come?"""

    @abc.abstractmethod
    def state(self, i: int) -> Any:
        """A reference to the state after the last step that was submitted."""

    @abc.abstractmethod
    def fetch(self, ref: Any) -> Any:
        """What it refers to, on the host; waits. **Raises** `Died`."""

    def arrived(self, states: Sequence[Any], *, wait: bool) -> bool:
        """Are references to states safe from the loss of a module? **Raises** `Died`."""
        del states, wait
        return True

    def keep(self, states: Sequence[Any]) -> None:
        """References to what lost modules start from."""
        del states

    def revive(self) -> list[int]:
        """The modules that were lost, after they have been started from what was kept."""
        return []

    @abc.abstractmethod
    def close(self) -> None:
        """Ends what was started."""


class AbstractPlace(abc.ABC):
    """Opens sessions."""

    checkpoint_every: int | None = None
    """Steps between two states that are kept; `None`: nothing can be lost."""

    @abc.abstractmethod
    def check(self, modules: int) -> None:
        """**Raises** `ValueError` if it has no room for so many."""

    @abc.abstractmethod
    def open(self, given: Sequence[Given]) -> AbstractSession:
        """All modules, started."""
