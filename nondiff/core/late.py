"""Decoupled modules in one process, with messages that come some steps late."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from nondiff.core import words
from nondiff.core.estimator import with_gradient_of
from nondiff.core.inputs import AbstractInputs
from nondiff.core.message import Mail, Message, Now, cases_of, delivered
from nondiff.core.module import Module, modules
from nondiff.core.signal import Losses, Place, Source
from nondiff.core.sync import Sync
from nondiff.core.walk import Compare, Part, Walk


@dataclasses.dataclass(frozen=True, eq=False)
class LateLoss:
    """`loss(params, batch, key, memory)`: the losses, and what is to be remembered until the next step."""

    parts: tuple[Part, ...]
    places: Mapping[str, Place]
    compare: Compare
    late: int = 0
    inputs: AbstractInputs | None = None
    sync: Sync = dataclasses.field(default=Sync())

    @property
    def modules(self) -> tuple[Module, ...]:
        return modules(self.parts, self.places, self.late, self.inputs, self.sync)

    def memory(self, batch: PyTree) -> dict[str, Any]:
        """Before the first step, for batches like this one (shapes will do): of every module what it has seen, and what
        is on its way to it.
        """
        x, answers = batch
        remembered = {}
        for module in self.modules:
            remembered[module.name] = {"past": module.past(x, answers), "coming": module.coming(cases_of(answers))}
        return {"step": jnp.zeros((), jnp.int32), "modules": remembered}

    def __call__(
        self, params: Any, batch: PyTree, key: Key[Array, ""], memory: dict[str, Any] | None = None
    ) -> tuple[Losses, dict[str, Any] | None]:
        x, answers = batch
        if memory is None:  # for whoever wants the value alone
            return self._value(params, x, answers, key), None
        found, step, fixed = self.modules, memory["step"], jax.lax.stop_gradient(params)
        keys = keys_of(key, len(found))
        nothing = Message((), step)
        ups = [nothing]
        for module in found[:-1]:
            inputs = module.inputs(fixed, x, ups[-1].content)
            ups.append(Message(module.up(fixed, inputs), self.sync.sent(step, step)))
        sources: dict[Source, Message] = {"nothing": nothing}
        losses = surrogate = jnp.zeros(cases_of(answers))
        remembered = {}
        for module in reversed(found):
            held = memory["modules"][module.name]
            sent = Mail(ups[module.number], sources[module.source])
            mail, coming = delivered(held["coming"], sent, step)
            now = Now(step, x, answers, keys[module.number])
            learned, handed, past = module.learn(params, now, held["past"], mail, self.compare)
            remembered[module.name] = {"past": past, "coming": coming}
            sources["gradient"] = handed.down
            if module.signal is None:
                sources["error"], losses = handed.error, learned
            else:
                surrogate = surrogate + learned
        if self.inputs is not None:  # the last module has learned from predicted ones
            losses = with_gradient_of(jax.lax.stop_gradient(self._value(params, x, answers, keys[-1])), losses)
        return with_gradient_of(losses, surrogate), {"step": step + 1, "modules": remembered}

    def _value(self, params: Any, x: Any, answers: Any, key: Key[Array, ""]) -> Losses:
        bare = [part._replace(signal=None) for part in self.parts]
        return Walk(bare, params["stages"], answers, self.compare).losses(x, key)


def keys_of(key: Key[Array, ""], modules: int) -> Key[Array, " modules"]:
    """One for each module."""
    return words.split(key, modules)
