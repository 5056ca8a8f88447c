"""Decoupled modules in one process, with messages from above that come some steps late."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
from jaxtyping import Array, Key, PyTree

from nondiff.core.estimator import with_gradient_of
from nondiff.core.module import Message, Module, Now, cases_of, modules, turned
from nondiff.core.signal import Losses, Place
from nondiff.core.walk import Compare, Part, Walk


@dataclasses.dataclass(frozen=True, eq=False)
class LateLoss:
    """`loss(params, batch, key, memory)`: the losses, and what is to be remembered until the next step."""

    parts: tuple[Part, ...]
    places: Mapping[str, Place]
    compare: Compare
    late: int

    @property
    def modules(self) -> tuple[Module, ...]:
        return modules(self.parts, self.places, self.late)

    def memory(self, batch: PyTree) -> dict[str, Any]:
        """Before the first step, for batches like this one (shapes will do): of every module but the last what it has
        seen, and what is on its way to it.
        """
        inputs, answers = batch
        cases = cases_of(answers)
        remembered: dict[str, Any] = {}
        for module in self.modules[:-1]:
            came = jtu.tree_map(lambda x, n=module.late: jnp.repeat(x[None], n, 0), module.silence(cases))
            remembered[module.name] = {"then": module.memory(inputs, answers), "came": came if module.late else ()}
            inputs = module.activations(cases)
        return {"step": jnp.zeros((), jnp.int32), "modules": remembered}

    def __call__(
        self, params: Any, batch: PyTree, key: Key[Array, ""], memory: dict[str, Any] | None = None
    ) -> tuple[Losses, dict[str, Any] | None]:
        x, answers = batch
        if memory is None:  # for whoever wants the value alone
            bare = [part._replace(signal=None) for part in self.parts]
            return Walk(bare, params["stages"], answers, self.compare).losses(x, key), None
        *below, last = self.modules
        step = memory["step"]
        inputs = [x]
        for module in below:
            inputs.append(module.up(jax.lax.stop_gradient(params), inputs[-1]))
        now = [Now(step, h, answers, k) for h, k in zip(inputs, keys_of(key, len(inputs)), strict=True)]
        losses, handed, _ = last.learn(params, now[-1], (), last.silence(cases_of(answers)), self.compare)
        error, remembered = handed.error, {}
        surrogate = jnp.zeros_like(losses)
        for module in reversed(below):
            sent = {"gradient": handed.down, "error": error}.get(module.source, Message((), step))
            old = memory["modules"][module.name]
            came, coming = turned(old["came"], sent, step, step)
            learned, handed, then = module.learn(params, now[module.number], old["then"], came, self.compare)
            remembered[module.name] = {"then": then, "came": coming}
            surrogate = surrogate + learned
        return with_gradient_of(losses, surrogate), {"step": step + 1, "modules": remembered}


def keys_of(key: Key[Array, ""], modules: int) -> Key[Array, " modules"]:
    """One for each module."""
    return jr.split(key, modules)
