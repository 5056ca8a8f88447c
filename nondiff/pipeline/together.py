"""All modules of a pipeline as one: their trainers, and their states with the messages that are on their way."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from nondiff.core.module import Module
from nondiff.core.step import TrainState
from nondiff.core.trainer import AbstractTrainer
from nondiff.pipeline.stage import at_home


class Together(AbstractTrainer[dict[str, Any]]):
    """The trainers of all modules. Each asks and is told where its module is; together they say what to deploy."""

    trainers: dict[str, AbstractTrainer]

    @property
    def traceable(self) -> bool:
        return all(trainer.traceable for trainer in self.trainers.values())

    def params(self, state: dict[str, Any]) -> dict[str, Any]:
        whole: dict[str, Any] = {}
        for name, trainer in self.trainers.items():
            _join(whole, trainer.params(state[name]))
        return whole

    def init(self, params: Any, domain: Any, *, key: Key[Array, ""]) -> Any:
        raise TypeError("`Pipeline`: each module's trainer starts by itself.")

    def ask(self, state: Any, *, key: Key[Array, ""]) -> Any:
        raise TypeError("`Pipeline`: each module's trainer asks by itself.")

    def tell(self, state: Any, query: Any, answer: Any, *, key: Key[Array, ""]) -> Any:
        raise TypeError("`Pipeline`: each module's trainer is told by itself.")


def whole(states: Sequence[TrainState], modules: Sequence[Module], cases: int) -> TrainState:
    """The state of all modules before the first step, when no message is on its way."""
    silences = [at_home(module.silence(cases)) for module in modules]
    coming = [[[s] * way for s, way in zip(of, m.ways, strict=True)] for of, m in zip(silences, modules, strict=True)]
    return joined(states, modules, coming, 0)


def joined(
    states: Sequence[TrainState], modules: Sequence[Module], coming: Sequence[list[Any]], step: int
) -> TrainState:
    """All modules and the messages that are on their way, as one state."""
    trainer = {module.name: state.trainer for module, state in zip(modules, states, strict=True)}
    problem = {
        module.name: {"state": state.problem, "coming": messages}
        for module, state, messages in zip(modules, states, coming, strict=True)
    }
    return TrainState(jnp.int32(step), states[-1].key, trainer, problem)


def shares(state: TrainState, modules: Sequence[Module]) -> list[TrainState]:
    """Of the state of all, that of each module."""
    return [
        TrainState(
            state.step, key_of(state.key, m, len(modules)), state.trainer[m.name], state.problem[m.name]["state"]
        )
        for m in modules
    ]


def key_of(key: Key[Array, ""], module: Module, of: int) -> Key[Array, ""]:
    """A module's own; that of the last one is the run's, as in one process."""
    return key if module.number == of - 1 else jax.random.fold_in(key, module.number)


def _join(whole: dict[str, Any], share: Mapping[str, Any]) -> None:
    for name, value in share.items():
        if type(value) is dict:
            _join(whole.setdefault(name, {}), value)
        else:
            whole[name] = value
