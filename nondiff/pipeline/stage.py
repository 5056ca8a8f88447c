"""One module as a problem of its own, and the compiled step that trains it where it is."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Key, PyTree

from nondiff.core.compiled import compiled
from nondiff.core.late import keys_of
from nondiff.core.message import Handed, Mail, Message, Now
from nondiff.core.module import Module
from nondiff.core.query import queries
from nondiff.core.signal import Losses
from nondiff.core.step import TrainState, keys, own, step
from nondiff.core.trainer import AbstractTrainer, Metrics
from nondiff.core.tree import is_key
from nondiff.core.walk import Compare
from nondiff.evaluators import Vmap
from nondiff.problems.supervised import Remembered, Supervised
from nondiff.run.callback import Row
from nondiff.run.preflight import preflight
from nondiff.run.stepping import row_of

LOST = "lost"
"""In the row of a step that was not taken, 1."""


@dataclasses.dataclass(frozen=True, eq=False)
class ModuleLoss:
    """`loss(params, batch, key, memory)` of one module; no closure, so that workers find it by its name."""

    modules: tuple[Module, ...]
    """All there are."""
    number: int
    """Which of them it is, from below."""
    compare: Compare

    @property
    def module(self) -> Module:
        return self.modules[self.number]

    def memory(self, batch: PyTree) -> dict[str, Any]:
        """Before the first step. Mail joins it at every step, and what is handed on."""
        return {"step": jnp.zeros((), jnp.int32), "past": self.module.past(*batch)}

    def __call__(
        self, params: Any, batch: PyTree, key: Key[Array, ""], memory: dict[str, Any]
    ) -> tuple[Losses, dict[str, Any]]:
        x, answers = batch
        now = Now(memory["step"], x, answers, keys_of(key, len(self.modules))[self.number])
        losses, handed, past = self.module.learn(params, now, memory["past"], memory["mail"], self.compare)
        return losses, {"step": memory["step"] + 1, "past": past, "handed": handed}


class Parts(NamedTuple):
    """What a stage needs to train."""

    problem: Supervised
    """With a `ModuleLoss`."""
    trainer: AbstractTrainer

    @property
    def module(self) -> Module:
        return self.problem.fn.module  # pyright: ignore[reportFunctionMemberAccess]

    @property
    def silence(self) -> Mail:
        """In the place of messages that have not come."""
        return self.module.silence(self.problem.cases)


class How(NamedTuple):
    """How a module's steps are run."""

    compiled: bool
    donate: bool
    searches: bool
    """Does the trainer ask about points that are not its parameters? What is handed on is of the parameters."""


def plan(parts: Parts, state: TrainState) -> How:
    """What `fit` checks of a whole model, for one module.

    **Raises** `ValueError` for what does not fit together, and for a gradient where there is none.
    """
    told, room = opened(parts.problem, parts.trainer.params(state.trainer), state, parts.silence)
    name, trainer = parts.module.name, parts.trainer
    try:
        found = preflight(parts.problem, trainer, Vmap(), room, told)
    except ValueError as error:
        if "do not support JVP" not in str(error):
            raise
        raise ValueError(
            f"`Pipeline`: module `{name}` has a part without a derivative, and `{type(trainer).__name__}` asks for "
            "one. Cross that part with an estimator (`Decision(program, via=Auto())`, in the last module), or give the "
            f"module a trainer that searches, `Pipeline(trainer={{{name!r}: Genetic(...), ...}})`, and local signals "
            "below and behind it."
        ) from error
    ask = eqx.Partial(trainer.ask, state.trainer, key=keys(state)[1])
    asked = queries(eqx.filter_eval_shape(ask) if trainer.traceable else ask())
    searches = not all((q.wants.gradient or q.wants.mean_gradient) and len(q) == 1 for q in asked)
    signal = parts.module.signal
    if parts.module.predicts is not None and not any(q.wants.gradient or q.wants.mean_gradient for q in asked):
        raise ValueError(
            f"`Pipeline`: `{type(trainer).__name__}` searches for the leaves that predict inputs of module `{name}`, "
            "by a loss that does not depend on how well they do. Give them a trainer that asks for gradients, "
            '`Split({..., "inputs": Backprop(...)})`, or leave `inputs` out.'
        )
    if searches and signal is not None and not signal.judges:
        raise ValueError(
            f"`Pipeline`: `{type(trainer).__name__}` searches for leaves of module `{name}`, by a loss that is known "
            f"there, and `{type(signal).__name__}` has none. Give the module a `LocalLoss()`, or let it be the last."
        )
    return How(found.compiled, found.donate and not searches, searches)


def at_home(tree: Any) -> Any:
    """A copy as NumPy's arrays; keys stay keys, on the default device."""

    def one(x: Any) -> Any:
        if not is_key(x):
            return np.array(x)
        return jr.wrap_key_data(jnp.asarray(np.array(jr.key_data(x))), impl=jr.key_impl(x))

    return jtu.tree_map(one, tree)


def numbers(metrics: Metrics) -> Row:
    """On the host; waits for them."""
    found = jax.device_get(metrics)
    return row_of(found) | {LOST: float(found[LOST])}


class Form(NamedTuple):
    """A tree without its arrays: taken apart, compared and hashed once, and not at every step.

    `equinox.internal` has the same, which may change with any release.
    """

    treedef: Any
    rest: tuple[Any, ...]
    """Its leaves; `None` where an array was."""

    def whole(self, arrays: Sequence[Any]) -> Any:
        found = iter(arrays)
        return self.treedef.unflatten([next(found) if x is None else x for x in self.rest])


def apart(tree: Any) -> tuple[list[Any], Form]:
    leaves, treedef = jtu.tree_flatten(tree)
    arrays = [x for x in leaves if eqx.is_array(x)]
    return arrays, Form(treedef, tuple(None if eqx.is_array(x) else x for x in leaves))


class Stage:
    """A module that is trained here."""

    def __init__(self, parts: Parts, state: TrainState, how: How, device: Any = None):
        """`device`: where it is to be; default: where JAX puts things."""
        self._device, self._how = device, how
        fixed, self._fixed_form = apart(parts)
        self._fixed = self.put(fixed)
        self._silence = self.put(parts.silence)
        state = own(parts.problem, parts.trainer, state)
        self._arrays, self._form = apart(self.put(state) if parts.trainer.traceable else state)
        self._compiled = compiled_stage(self._fixed_form, self._form, how) if how.compiled else None

    def put(self, x: Any) -> Any:
        return x if self._device is None else jax.device_put(x, self._device)

    @property
    def state(self) -> TrainState:
        return self._form.whole(self._arrays)

    def step(self, *came: Message | None) -> tuple[Handed, Metrics]:
        """One step with what came from below and from above; `None` for what did not."""
        mail = Mail(*(none if message is None else message for none, message in zip(self._silence, came, strict=True)))
        mail = self.put(mail)
        if self._compiled is not None:
            self._arrays, handed, metrics = self._compiled(self._fixed, mail, self._arrays)
            return handed, metrics
        parts = self._fixed_form.whole(self._fixed)
        new, handed, metrics = advance(parts, mail, self.state, searches=self._how.searches)
        self._arrays, self._form = apart(new)
        return handed, metrics


@functools.lru_cache(maxsize=64)
def compiled_stage(fixed_form: Form, form: Form, how: How) -> Callable[..., tuple[list[Array], Handed, Metrics]]:
    """`advance` of arrays alone; the same for stages that differ in nothing else."""

    def flat(fixed: list[Array], mail: Mail, arrays: list[Array]) -> tuple[list[Array], Handed, Metrics]:
        new, handed, metrics = advance(fixed_form.whole(fixed), mail, form.whole(arrays), searches=how.searches)
        found, same = apart(new)
        assert same == form, "a step changes the structure of its state"
        return found, handed, metrics

    return jax.jit(flat, donate_argnums=2 if how.donate else ())


def advance(parts: Parts, mail: Mail, state: TrainState, *, searches: bool) -> tuple[TrainState, Handed, Metrics]:
    """One step of one module; `searches` as in `How`."""
    problem, trainer = parts
    params = trainer.params(state.trainer)
    told, room = opened(problem, params, state, mail)
    new, metrics = step(problem, trainer, Vmap(), room, told)
    handed = new.problem.memory["handed"]
    if searches:  # what is handed on is of the parameters, not of a point that was tried
        handed = _handed(problem, params, told, keys(state)[1])
    memory = {name: x for name, x in new.problem.memory.items() if name != "handed"}
    return _remembering(new, memory), handed, metrics


def opened(problem: Supervised, params: Any, state: TrainState, mail: Mail) -> tuple[Any, TrainState]:
    """The batch with what came, and the state with room for what is to be handed on."""
    told = problem.batch(state.problem, key=keys(state)[0])
    told = told._replace(memory={**told.memory, "mail": mail})
    shapes = eqx.filter_eval_shape(_handed, problem, params, told, jr.key(0))
    room = {**state.problem.memory, "handed": jtu.tree_map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)}
    return told, _remembering(state, room)


@compiled
def _handed(problem: Supervised, params: Any, told: Any, key: Key[Array, ""]) -> Handed:
    return problem.loss(params, told, key=key)[1]["handed"]


def _remembering(state: TrainState, memory: Any) -> TrainState:
    return dataclasses.replace(state, problem=Remembered(state.problem.order, memory))
