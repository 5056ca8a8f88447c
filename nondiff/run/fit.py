"""`fit`: the loop that joins problem, trainer and evaluator, and the one place where a run meets the outside world.

A step that JAX can trace is compiled once, and several steps run in one call, a loop with a traced bound: a tiny step
then costs what it computes. Metrics stay on the device until they are read, all in one transfer. The calls are kept
under half a second, so signals and callbacks act between them.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Key

from nondiff.core.evaluator import AbstractEvaluator
from nondiff.core.problem import AbstractProblem, Params
from nondiff.core.step import TrainState, init, step
from nondiff.core.trainer import AbstractTrainer, check_count
from nondiff.core.tree import fresh, is_key
from nondiff.estimators.opaque import last_failure
from nondiff.evaluators import Host, Vmap
from nondiff.run.batches import Batches, source_of
from nondiff.run.interrupts import delayed_interrupts
from nondiff.run.preflight import Plan, preflight

Row = dict[str, int | float]
Callback = Callable[[int, Row], None]
Stop = Callable[[int, Row], str | None]


class NonFiniteError(FloatingPointError):
    """Every evaluation of a step failed. `state` is the last good one, `step` the number of that step."""

    def __init__(self, message: str, *, step: int, state: TrainState):
        super().__init__(message)
        self.step, self.state = step, state


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


def fit(
    problem: AbstractProblem,
    trainer: AbstractTrainer,
    *,
    steps: int,
    key: Key[Array, ""] | None = None,
    state: TrainState | None = None,
    evaluator: AbstractEvaluator | None = None,
    batches: Batches | None = None,
    callbacks: Iterable[Callback] = (),
    stop: Iterable[Stop] = (),
    log_every: int = 10,
) -> Result:
    """Train until `steps` steps are done.

    **Arguments:**

    - `steps`: in all, those of a resumed `state` included.
    - `key` or `state`: where a new run starts, `jax.random.key(seed)`, or a state to go on from; one of them. The state
      is copied and stays valid.
    - `evaluator`: default `Vmap()`, or `Host()` for a problem that JAX cannot trace.
    - `batches`: from outside: a function of the step number, which needs no position to resume; an iterable that can be
      started again, of which a resumed run skips what the earlier one used; or an iterator, which is read on from where
      it stands. Default: the problem's own.
    - `callbacks`: each is called as `callback(step, metrics)` every `log_every` steps and after the last.
    - `stop`: each is called like a callback, and ends the run by returning why.
    - `log_every`: steps between two rows of `history` (default 10).

    **Raises** `ValueError` before anything is compiled for what does not fit together; `NonFiniteError` when every
    evaluation of a step failed; `OpaqueError` when a program did; `KeyboardInterrupt` on Ctrl-C, after the step that is
    running. Whatever it raises has the last good state as `error.state`.

    >>> import nondiff, optax
    >>> problem = nondiff.BlackBox(lambda x: jnp.sum((x - 1.0) ** 2), jnp.zeros(2))
    >>> trainer = nondiff.Backprop(optax.sgd(0.4))
    >>> half = fit(problem, trainer, steps=10, key=jax.random.key(0))
    >>> whole = fit(problem, trainer, steps=20, state=half.state)
    >>> whole.steps, whole.evaluations, whole.reason
    (20, 10, 'all 20 steps done')
    """
    check_count("fit", "steps", steps, least=0)
    check_count("fit", "log_every", log_every)
    if evaluator is None:
        evaluator = Vmap() if getattr(problem, "traceable", True) else Host()
    for part, kind, name in ((problem, AbstractProblem, "a problem"), (trainer, AbstractTrainer, "a trainer"),
                             (evaluator, AbstractEvaluator, "an evaluator")):  # fmt: skip
        if not isinstance(part, kind):
            raise ValueError(f"`fit` was given {part!r} where {name} belongs, an instance of a `{kind.__name__}`.")
    if not all(hasattr(hooks, "__iter__") for hooks in (callbacks, stop)):
        raise ValueError("`fit(callbacks=..., stop=...)`: give a tuple of functions, `(callback,)`.")
    state = _first_state(problem, trainer, key, state)
    source = source_of(problem.batches() if batches is None else batches, start=int(state.step))
    first = source.peek() if source is not None and steps > int(state.step) else None
    plan = preflight(problem, trainer, evaluator, state, first)
    run = _Run(plan, problem, trainer, evaluator, state, source, log_every)
    with delayed_interrupts() as interrupted:
        reason = run.until(steps, list(callbacks), list(stop), interrupted)
    last = run.rows[-1]["loss"] if run.rows else float("nan")
    return Result(
        trainer.params(run.state.trainer),
        run.state,
        last,
        int(run.state.step),
        run.evaluations,
        run.seconds,
        reason,
        run.rows,
    )


def _first_state(problem: AbstractProblem, trainer: AbstractTrainer, key: Any, state: TrainState | None) -> TrainState:
    if state is not None and key is not None:
        raise ValueError("`fit(key=..., state=...)`: a state brings its own key along; give one of the two.")
    if state is not None:
        return fresh(state)
    return init(problem, trainer, key=checked_key("fit", key))


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
    """A run in progress: its state, its log, and how it takes several steps in one call."""

    def __init__(self, plan: Plan, problem, trainer, evaluator, state: TrainState, source: Any, log_every: int):
        self.plan, self.parts, self.state, self.source = plan, (problem, trainer, evaluator), state, source
        self.log_every = log_every
        self.rows: list[Row] = []
        self.evaluations, self.seconds, self.stride = 0, 0.0, 1

    def until(self, steps: int, callbacks: list[Callback], stops: list[Stop], interrupted: Callable[[], bool]) -> str:
        begin, done, reason = time.perf_counter(), int(self.state.step), f"all {steps} steps done"
        row: Row = {}
        try:
            while done < steps:
                count = min(self.stride, steps - done, self.log_every - done % self.log_every)
                metrics = self._advance(count)
                count = int(self.state.step) - done
                done += count
                row = {"step": done, **_row(metrics, count - 1)} if count else row
                ended = count == 0
                if (done % self.log_every == 0 and count) or done == steps or (ended and self._unlogged(row)):
                    self.rows.append(row)
                    for callback in callbacks:
                        callback(done, row)
                    reasons = [why for check in stops if (why := check(done, row)) is not None]
                    if reasons:
                        return reasons[0]
                if ended:
                    return f"the batches ended after {done} steps"
                if interrupted():
                    raise KeyboardInterrupt(f"stopped after step {done}")
        except BaseException as error:
            if not hasattr(error, "state"):
                error.state = self.state  # pyright: ignore[reportAttributeAccessIssue]
            if done and isinstance(error, Exception):
                error.add_note(f"nondiff: {done} steps were done; `error.state` is the last good state.")
            raise
        finally:
            self.seconds = time.perf_counter() - begin
        return reason

    def _unlogged(self, row: Row) -> bool:
        return bool(row) and (not self.rows or self.rows[-1] is not row)

    def _advance(self, count: int) -> dict[str, Any]:
        """`count` steps, fewer if the batches end; their metrics, each `[count]`, on the host."""
        start, begin = int(self.state.step), time.perf_counter()
        last_failure()  # forget one that belongs to another run
        try:
            if self.plan.compiled and self.source is None:
                call = _many_donating if self.plan.donate else _many
                size = self.log_every
                state, metrics = call((*self.parts, size, self.plan.metrics), self.state, jnp.int32(count))
                metrics = jax.device_get(metrics)  # waits
            else:
                state, rows = self.state, []
                one = _one if self.plan.compiled else step
                while len(rows) < count and (self.source is None or self.source.ready()):
                    batch = None if self.source is None else self.source.next()
                    state, row = one(*self.parts, state, batch)
                    rows.append(row)
                    if bool(row["lost"]):
                        break
                if not rows:
                    return {}
                metrics = jtu.tree_map(lambda *xs: np.stack(xs), *jax.device_get(rows))
                count = len(rows)
        except (jax.errors.JaxRuntimeError, ValueError) as error:  # a compiled call's second run raises the latter
            raise (last_failure() or error) from None
        self.state = state
        self.evaluations += int(metrics["evaluations"][:count].sum())
        if metrics["lost"][:count].any():
            self._lost(start, count, metrics)
        self._pace(time.perf_counter() - begin)
        return metrics

    def _pace(self, seconds: float) -> None:
        """Longer calls while they are short; the bits do not depend on where a run is cut."""
        if seconds < 0.1:
            self.stride = min(2 * self.stride, self.log_every)
        elif seconds > 0.5:
            self.stride = max(self.stride // 2, 1)

    def _lost(self, start: int, count: int, metrics: dict[str, Any]) -> None:
        i = int(metrics["lost"][:count].argmax())
        failed, asked = int(metrics["failed"][i]), int(metrics["evaluations"][i])
        what = f"all evaluations of a query failed ({failed} of the step's {asked} have no finite loss and gradient)"
        if not failed:
            what = "it leads to parameters that are not finite"
        raise NonFiniteError(
            f"step {start + i + 1}: {what}. The parameters stay as they were before it, in `error.state`. Is a rate or "
            "sigma too large, or the start outside of what the loss allows?",
            step=start + i + 1,
            state=self.state,
        )


def _row(metrics: dict[str, Any], i: int) -> Row:
    named = jtu.tree_flatten_with_path({k: v for k, v in metrics.items() if k != "lost"})[0]
    return {"/".join(str(getattr(p, "key", p)) for p in path): float(x[i]) for path, x in named}


def _several(fixed: tuple[Any, ...], state: TrainState, count: Array) -> tuple[TrainState, Any]:
    problem, trainer, evaluator, size, shapes = fixed
    log = jtu.tree_map(lambda s: jnp.zeros((size, *s.shape), s.dtype), shapes)

    def body(carry: tuple[Array, Array, TrainState, Any]) -> tuple[Array, Array, TrainState, Any]:
        i, _, state, log = carry
        state, metrics = step(problem, trainer, evaluator, state)
        return i + 1, metrics["lost"], state, jtu.tree_map(lambda log, x: log.at[i].set(x), log, metrics)

    def going(carry: tuple[Array, Array, TrainState, Any]) -> Array:
        return (carry[0] < count) & ~carry[1]  # a lost step is the last one

    return jax.lax.while_loop(going, body, (jnp.zeros_like(count), jnp.asarray(False), state, log))[2:]


_many = eqx.filter_jit(_several)
_many_donating = eqx.filter_jit(lambda fixed, state, count: _several(fixed, state, count), donate="all-except-first")
_one = eqx.filter_jit(step)
