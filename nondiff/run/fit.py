"""`fit`: the loop that joins problem, trainer and evaluator, and the one place where a run meets the outside world."""

import dataclasses
import time
from collections.abc import Iterable, Mapping
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Key

from nondiff.core.checks import check_count
from nondiff.core.evaluator import AbstractEvaluator
from nondiff.core.problem import AbstractProblem, Params
from nondiff.core.step import TrainState, init, own
from nondiff.core.trainer import AbstractTrainer
from nondiff.core.tree import is_key
from nondiff.evaluators import Host, Vmap
from nondiff.run.batches import Batches, source_of
from nondiff.run.callback import Callback, Measure, Moment, Row, Stop
from nondiff.run.checkpoint import Checkpoint, describe, differences
from nondiff.run.hooks import Hooks
from nondiff.run.preflight import preflight
from nondiff.run.signals import delayed_signals
from nondiff.run.stepping import AbstractStepper, Stepper


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run gave."""

    params: Params
    """What to deploy."""
    state: TrainState
    """To go on from: `fit(..., state=result.state)`."""
    loss: float
    """The mean loss over the evaluations of the last step; for `minimise`, the loss of `params`. NaN before any."""
    steps: int
    """Done in all, resumed ones included."""
    evaluations: int
    """Made by this call."""
    seconds: float
    reason: str
    """Why it ended."""
    history: list[Row]
    """The metrics of every `log_every`-th step and of the last; `step` counts from 1."""
    chunks: tuple[int, ...] = ()
    """How many members of each query existed at once; another number may change the last bits."""
    choice: str = ""
    """Of `minimise`: which trainer it chose, and why."""

    def plot(self) -> Any:
        """A `matplotlib` figure of the run: losses, and the sigmas and the axis ratio of searches that have them.

        From the rows of `history`; `log_every=1` has all steps. `figure.savefig("run.png")` keeps it.

        **Raises** `ImportError` without matplotlib, and `ValueError` without rows.
        """
        from nondiff.run.plot import plot  # matplotlib takes a while to import

        return plot(self)


def fit(
    problem: AbstractProblem,
    trainer: AbstractTrainer,
    *,
    steps: int,
    key: Key[Array, ""] | None = None,
    state: TrainState | Checkpoint | None = None,
    evaluator: AbstractEvaluator | None = None,
    batches: Batches | None = None,
    metrics: Iterable[Measure] = (),
    callbacks: Iterable[Callback] = (),
    stop: Iterable[Stop] = (),
    log_every: int = 10,
    lost: int = 1,
) -> Result:
    """Train until `steps` steps are done.

    **Arguments:**

    - `steps`: in all, those of a resumed `state` included.
    - `key` or `state`: where a new run starts, `jax.random.key(seed)`, or a state to go on from; one of them. A state
      is copied and stays valid. A `Checkpoint`, from `Checkpointer.restore`, also brings the position in the batches
      and what callbacks remember.
    - `evaluator`: default `Vmap()`, or `Host()` for a problem that JAX cannot trace.
    - `batches`: from outside: a function of the step number, which needs no position to resume; an iterable that can be
      started again, of which a resumed run skips what the earlier one used; or an iterator. With a `TrainState` that is
      read on from where it stands; with a `Checkpoint` it is taken for a new one and brought to its position.
      Default: the problem's own.
    - `metrics`, `stop`, `callbacks`: functions of a `Moment` or `AbstractCallback`s, called in this order every
      `log_every` steps and after the last: what joins the row, why to end, and what else happens.
    - `log_every`: steps between two rows of `history` (default 10).
    - `lost`: how many steps in a row may fail altogether before it raises (default 1: the first does). The state stays
      as it is at such a step, and the next one asks for other points: for losses that fail often, more.

    **Raises** `ValueError` before anything is compiled for what does not fit together; `NonFiniteError` when all
    evaluations failed, `lost` steps in a row; `OpaqueError` when a program did; `KeyboardInterrupt` on Ctrl-C and
    `SystemExit(143)` on SIGTERM, after the step that is running and a last checkpoint (a second signal does not wait).
    Whatever it raises has the last good state as `error.state`.

    >>> import jax.numpy as jnp, nondiff, optax
    >>> problem = nondiff.BlackBox(lambda x: jnp.sum((x - 1.0) ** 2), jnp.zeros(2))
    >>> trainer = nondiff.Backprop(optax.sgd(0.4))
    >>> half = fit(problem, trainer, steps=10, key=jax.random.key(0))
    >>> whole = fit(problem, trainer, steps=20, state=half.state)
    >>> whole.steps, whole.evaluations, whole.reason
    (20, 10, 'all 20 steps done')
    """
    check_count("fit", "steps", steps, least=0)
    check_count("fit", "log_every", log_every)
    check_count("fit", "lost", lost)
    if evaluator is None:
        evaluator = Vmap() if getattr(problem, "traceable", True) else Host()
    for part, kind, name in ((problem, AbstractProblem, "a problem"), (trainer, AbstractTrainer, "a trainer"),
                             (evaluator, AbstractEvaluator, "an evaluator")):  # fmt: skip
        if not isinstance(part, kind):
            raise ValueError(f"`fit` was given {part!r} where {name} belongs, an instance of a `{kind.__name__}`.")
    hooks = Hooks(metrics, callbacks, stop)
    memory = state.memory if isinstance(state, Checkpoint) else None
    state = _first_state(problem, trainer, key, state)
    start = int(state.step)
    given = problem.batches() if batches is None else batches
    source = source_of(given, start=start, memory=None if memory is None else memory.get("batches", {}))
    plan = preflight(problem, trainer, evaluator, state, source.peek() if source and steps > start else None)
    stepper = Stepper(plan, (problem, trainer, evaluator), state, source, lost)
    return drive(stepper, hooks, memory, steps, log_every)


def drive(
    stepper: AbstractStepper, hooks: Hooks, memory: Mapping[str, Any] | None, steps: int, log_every: int
) -> Result:
    """Train until `steps` steps are done, with hooks and signals; `memory` is that of a checkpoint."""
    run = _Run(stepper, hooks, stepper.done, steps, log_every, resumed=memory is not None)
    unseen, stopped = hooks.remember(memory or {}), hooks.stopped(memory or {}, steps)
    with delayed_signals() as signals:
        reason = run.until_done(signals, unseen, stopped)
    last = run.rows[-1]["loss"] if run.rows else float("nan")
    params, chunks = stepper.parts[1].params(stepper.state.trainer), stepper.chunks
    return Result(
        params, stepper.state, last, stepper.done, stepper.evaluations, run.seconds(), reason, run.rows, chunks
    )


def _first_state(problem: AbstractProblem, trainer: AbstractTrainer, key: Any, state: Any) -> TrainState:
    state = given_state("fit", key, state)
    if state is None:
        return init(problem, trainer, key=checked_key("fit", key))
    first = eqx.Partial(init, problem, trainer, key=checked_key("fit(state=...)", state.key))
    shapes = eqx.filter_eval_shape(first) if problem.traceable and trainer.traceable else first()
    check_alike("fit", state, shapes, "problem or trainer")
    return own(problem, trainer, state)


def given_state(owner: str, key: Any, state: Any) -> TrainState | None:
    """The state to go on from, if there is one. **Raises** `ValueError` for a key beside it, and for something else."""
    if state is None:
        return None
    if key is not None:
        raise ValueError(f"`{owner}(key=..., state=...)`: a state brings its own key along; give one of the two.")
    if isinstance(state, Checkpoint):
        state = state.state
    if not isinstance(state, TrainState):
        raise ValueError(f"`{owner}(state={state!r})`: expected a `TrainState` or a `Checkpoint`; or give a `key`.")
    return state


def check_alike(owner: str, state: TrainState, like: TrainState, what: str) -> None:
    """**Raises** `ValueError` with every array that is not the same; of `like` shapes will do."""
    lines = differences(describe(state), describe(like), "in the state")
    if lines:
        raise ValueError("\n".join([f"`{owner}(state=...)` is a state of another {what}:", *lines]))


def checked_key(owner: str, key: Any) -> Key[Array, ""]:
    """**Raises** `ValueError` unless `key` is one typed key whose draws do not depend on how they are batched."""
    if not is_key(key) or key.shape != ():
        raise ValueError(f"`{owner}(key={key!r})`: expected a key, `jax.random.key(seed)`, or a `state` to go on from.")
    if str(jax.random.key_impl(key)) != "threefry2x32":
        raise ValueError(
            f"`{owner}(key)` is an {jax.random.key_impl(key)} key, whose draws depend on how many are made at once: "
            'a member could not be built again. Use `jax.random.key(seed, impl="threefry2x32")`, the default.'
        )
    return key


class _Run:
    """A run in progress: it steps, pauses, logs, and lets its hooks act."""

    def __init__(
        self, stepper: AbstractStepper, hooks: Hooks, start: int, steps: int, log_every: int, *, resumed: bool
    ):
        self.stepper, self.hooks, self.start, self.steps, self.log_every = stepper, hooks, start, steps, log_every
        self.resumed = resumed
        self.rows: list[Row] = []
        self.began = time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self.began

    def until_done(self, signals: delayed_signals, unseen: Row | None, stopped: str | None) -> str:
        """Why it ended. However it ends, every hook that began does."""
        try:
            self.hooks.begin(self._moment())
        except BaseException as error:
            self.hooks.end(self._moment(), error)
            raise
        try:
            reason = stopped if unseen is None else self._log(unseen)
            reason = reason or self._loop(signals)
        except BaseException as error:
            self._give_state(error)
            self.hooks.end(self._moment(), error)
            raise
        try:
            self.hooks.end(self._moment(), None)
        except BaseException as error:
            self._give_state(error)
            raise
        signals.raise_noted(f"stopped after step {self.stepper.done}, the last", lambda: self.stepper.state)
        return reason

    def _give_state(self, error: BaseException) -> None:
        if not hasattr(error, "state"):
            error.state = self.stepper.state  # pyright: ignore[reportAttributeAccessIssue]
        if self.stepper.done and isinstance(error, Exception):
            error.add_note(f"nondiff: {self.stepper.done} steps were done; `error.state` is the last good state.")

    def _loop(self, signals: delayed_signals) -> str:
        pauses = [self.log_every, *self.hooks.pauses]
        while self.stepper.done < self.steps:
            done = self.stepper.done
            count = min([self.steps - done, *(pause - done % pause for pause in pauses)])
            reason = self.stepper.ended()
            ended = reason is not None or self.stepper.advance(count, self.log_every) == 0
            done = self.stepper.done
            row_due = done == self.steps or (done % self.log_every == 0 and not ended)
            if ended and reason is None:
                reason = f"the batches ended after {done} steps"
            reason = self._pause(row_due, reason)
            if reason is not None:
                return reason
            signals.raise_noted(f"stopped after step {done}", lambda: self.stepper.state)
        late = self.start > self.steps
        return f"all {self.steps} steps done" + (f" before: the state is at step {self.start}" if late else "")

    def _pause(self, row_due: bool, reason: str | None) -> str | None:
        """Let the hooks act, log a row if one is due or the run ends here; why it ends."""
        if not row_due:
            reason = self.hooks.at(self._moment()) or reason
        logged = self.rows[-1]["step"] if self.rows else self.start
        if row_due or (reason is not None and logged < self.stepper.done):
            reason = self._log(self.stepper.fetch()) or reason
        return reason

    def _log(self, row: Row) -> str | None:
        self.rows.append(row)
        return self.hooks.at(self._moment(logged=True))

    def _moment(self, logged: bool = False) -> Moment:
        problem, trainer, _ = self.stepper.parts
        row = self.rows[-1] if self.rows else {}
        where = (self.stepper.done, self.start, self.resumed, self.steps, self.log_every, self.seconds())
        memory = self.hooks.memory(self.stepper.source, self.stepper.done, self.steps)
        chunks = self.stepper.chunks
        return Moment(*where, row, logged, self.stepper.reader(), problem, trainer, memory, chunks)
