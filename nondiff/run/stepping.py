"""Steps in one compiled call: how `fit` gets from here to there, whatever the parts allow.

A step that JAX can trace is compiled once, and several steps run in one call, a loop with a traced bound: a tiny step
then costs what it computes. The calls are kept under half a second, so that signals and callbacks act between them.
Metrics stay on the device until `fetch`, which reads all of them in one transfer.
"""

import abc
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array

from nondiff.core.compiled import STEPS, compiled
from nondiff.core.failures import last_failure
from nondiff.core.step import TrainState, compiled_step, step
from nondiff.run.batches import Source
from nondiff.run.callback import Row
from nondiff.run.preflight import Plan


class NonFiniteError(FloatingPointError):
    """All evaluations failed, as many steps in a row as `fit(lost=...)` says: `step` is the number of the last of them,
    `state` the last good one.
    """

    def __init__(self, message: str, *, step: int, state: TrainState):
        super().__init__(message)
        self.step, self.state = step, state


class AbstractStepper(abc.ABC):
    """The state of a run, and how it goes on. Bits do not depend on where a run is cut."""

    parts: tuple[Any, Any, Any]
    """Problem, trainer, evaluator."""
    source: Source | None
    evaluations: int
    """Made so far."""
    chunks: tuple[int, ...]
    """Members that exist at once, for each query."""

    @property
    @abc.abstractmethod
    def state(self) -> TrainState:
        """The last good one."""

    def reader(self) -> Callable[[], TrainState]:
        """For whoever may want the state of now before the next step."""
        state = self.state
        return lambda: state

    @property
    @abc.abstractmethod
    def done(self) -> int:
        """Its step."""

    @abc.abstractmethod
    def ended(self) -> str | None:
        """Why the trainer came to an end by itself."""

    @abc.abstractmethod
    def advance(self, count: int, most: int) -> int:
        """Up to `count` steps, fewer if the batches end; how many. `most` bounds every `count` of a run."""

    @abc.abstractmethod
    def fetch(self) -> Row:
        """The metrics of the last step, as numbers; empty before any."""


class Stepper(AbstractStepper):
    """Steps of a whole model, several in one call."""

    def __init__(
        self, plan: Plan, parts: tuple[Any, Any, Any], state: TrainState, source: Source | None, most_lost: int
    ):
        self.plan, self.parts, self.source, self.most_lost = plan, parts, source, most_lost
        self.chunks = plan.chunks
        self.stride, self.evaluations, self.lost = 1, 0, 0
        self._at = state, int(state.step)  # one assignment, which no signal can cut in two
        self._pending: list[Any] = []  # metrics of single steps, on the device
        self._row: Row = {}

    @property
    def state(self) -> TrainState:
        return self._at[0]

    @property
    def done(self) -> int:
        return self._at[1]

    def ended(self) -> str | None:
        trainer = self.parts[1]
        number = int(type(trainer).ended(trainer, self.state.trainer))
        return trainer.endings[number - 1] if number else None

    def advance(self, count: int, most: int) -> int:
        begin, before = time.perf_counter(), self.done
        last_failure()  # forget one that belongs to another run
        advance = self._together if self.plan.compiled and self.source is None else self._one_by_one
        try:
            lost = advance(min(count, self.stride), most)
        except (jax.errors.JaxRuntimeError, ValueError) as error:  # a compiled call's second run raises the latter
            raise (last_failure() or error) from None
        self.lost = lost and lost + self.lost * (self.done == before + 1)  # in a row
        if self.lost >= self.most_lost:
            self._give_up()
        self._pace(time.perf_counter() - begin, most)
        return self.done - before

    def _together(self, count: int, most: int) -> int:
        call = _many_donating if self.plan.donate else _many
        state, log = call((*self.parts, most, self.plan.metrics), self.state, jnp.int32(count))
        done, lost = (int(x) for x in jax.device_get((state.step, jnp.sum(log["lost"]))))  # waits
        self._pending.append((log, done - self.done))
        self._at = state, done
        return lost

    def _one_by_one(self, count: int, most: int) -> int:
        """An error or a signal in the middle keeps the steps before it."""
        del most
        one, lost, end = compiled_step if self.plan.compiled else step, 0, self.done + count
        while self.done < end and not lost and not self.ended() and (self.source is None or self.source.ready()):
            state, row = one(*self.parts, self.state, None if self.source is None else self.source.peek())
            lost = int(row["lost"])
            self._pending.append((row, None))
            self._at = state, self.done + 1
            if self.source is not None:
                self.source.taken()
        return lost

    def fetch(self) -> Row:
        if self._pending:
            got, self._pending = jax.device_get(self._pending), []
            for metrics, count in got:
                made = metrics["evaluations"]
                self.evaluations += int(np.sum(made if count is None else made[:count]))
            self._row = {"step": self.done, **row_of(*got[-1])}
        return dict(self._row)

    def _pace(self, seconds: float, most: int) -> None:
        """Longer calls while they are short."""
        if seconds < 0.1:
            self.stride = min(2 * self.stride, most)
        elif seconds > 0.5:
            self.stride = max(self.stride // 2, 1)

    def _give_up(self) -> None:
        row = self.fetch()
        failed, asked = int(row["failed"]), int(row["evaluations"])
        what = f"all evaluations of a query failed ({failed} of the step's {asked} have no finite loss and gradient)"
        if not failed:
            what = "it leads to parameters that are not finite"
        what += f", and so it was in the {self.lost - 1} steps before" if self.lost > 1 else ""
        raise NonFiniteError(
            f"step {self.done}: {what}. The parameters stay as they were before it, in `error.state`. Is a rate or "
            "sigma too large, or the start outside of what the loss allows?",
            step=self.done,
            state=self.state,
        )


def row_of(metrics: dict[str, Any], count: int | None = None) -> Row:
    """A step's metrics as numbers, or those of the last of `count` steps."""
    named = jtu.tree_flatten_with_path({k: v for k, v in metrics.items() if k != "lost"})[0]
    last = [
        ("/".join(str(getattr(p, "key", p)) for p in path), x if count is None else x[count - 1]) for path, x in named
    ]
    return {name: float(x) for name, x in last}


def _several(fixed: tuple[Any, ...], state: TrainState, count: Array) -> tuple[TrainState, Any]:
    problem, trainer, evaluator, size, shapes = fixed
    log = jtu.tree_map(lambda s: jnp.zeros((size, *s.shape), s.dtype), shapes)

    def body(carry: tuple[Array, Array, TrainState, Any]) -> tuple[Array, Array, TrainState, Any]:
        i, _, state, log = carry
        state, metrics = compiled_step(problem, trainer, evaluator, state, None)
        return i + 1, metrics["lost"], state, jtu.tree_map(lambda log, x: log.at[i].set(x), log, metrics)

    def going(carry: tuple[Array, Array, TrainState, Any]) -> Array:
        return (carry[0] < count) & ~carry[1] & (trainer.ended(carry[2].trainer) == 0)  # a lost step is the last one

    return jax.lax.while_loop(going, body, (jnp.zeros_like(count), jnp.asarray(False), state, log))[2:]


_many = compiled(_several, kept=STEPS)
_many_donating = compiled(_several, donate=True, kept=STEPS)
