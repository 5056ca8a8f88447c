"""How parameters move: `init`, `ask`, `tell`, `params`, and nothing else.

A trainer is a frozen record of hyperparameters. Everything that changes lives in its state, a pytree of arrays, so a
run can be saved, resumed, donated and mapped over seeds. `ask` says which candidates it wants to know about and `tell`
moves on the answer. A combinator is a trainer made of trainers: it passes these four calls on.
"""

import abc
import functools
import math
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from nondiff.core.domain import Real
from nondiff.core.problem import Params
from nondiff.core.query import Evaluation, Query, evaluations
from nondiff.core.tree import map_named

State = TypeVar("State")
Metrics = dict[str, Any]
Scheduled = int | float | Callable[[Any], Any]
"""A number, or an `optax.Schedule`: a function of the step number."""


class AbstractTrainer(eqx.Module, Generic[State]):
    """How the parameters, or the leaves of them that are mine, are moved.

    Parameter trees may hold `None` where a leaf belongs to another trainer; a trainer never touches those.
    """

    @property
    @abc.abstractmethod
    def traceable(self) -> bool:
        """May `ask` and `tell` run under `jax.jit`? False for one that keeps NumPy state."""

    @abc.abstractmethod
    def init(self, params: Params, domain: PyTree, *, key: Key[Array, ""]) -> State:
        """The first state. `domain` holds one `AbstractDomain` for every leaf of `params`."""

    @abc.abstractmethod
    def ask(self, state: State, *, key: Key[Array, ""]) -> PyTree[Query]:
        """What I want to know. The population's size, and the tree of queries, are the same at every step."""

    @abc.abstractmethod
    def tell(
        self, state: State, query: PyTree[Query], answer: PyTree[Evaluation], *, key: Key[Array, ""]
    ) -> tuple[State, Metrics]:
        """Move. The metrics are a `dict` of scalars (dicts may nest); the driver adds losses and counts itself."""

    def asks(self, state: State, *, key: Key[Array, ""]) -> int:
        """How many evaluations `ask` would ask for; override it where that takes less than to ask."""
        return evaluations(type(self).ask(self, state, key=key))

    @abc.abstractmethod
    def params(self, state: State) -> Params:
        """What to deploy if training stopped now."""

    @property
    def endings(self) -> tuple[str, ...]:
        """Why I may come to an end by myself; none by default."""
        return ()

    def ended(self, state: State) -> Int[Array | np.ndarray, ""] | int:
        """0 while there may be something to gain, else the number of my reason among `endings`, from 1."""
        del state
        return 0


def at(value: Scheduled, step: Int[Array, ""]) -> Float[Array, ""]:
    """A rate or a sigma at this step."""
    return jnp.asarray(value(step) if callable(value) else value, dtype=float)


def check_optimizer(owner: str, optimizer: optax.GradientTransformation) -> None:
    """**Raises** `ValueError` for an optimizer whose first step, on a gradient of 1, is not finite or not downhill."""
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise ValueError(
            f"`{owner}(optimizer={optimizer!r})`: expected an `optax.GradientTransformation`, "
            "for example `optax.adam(1e-3)`."
        )
    try:
        step = _first_step(optimizer)
    except (TypeError, ValueError, KeyError, AttributeError):
        return  # one that is made for a certain tree, as by `optax.partition`
    if not (math.isfinite(step) and step < 0):
        raise ValueError(
            f"`{owner}(optimizer)`: its first step on a gradient of 1 is {step + 0.0:g}, not finite and downhill. "
            "Is the learning rate NaN, zero or negative?"
        )


@functools.lru_cache(maxsize=8)
def _first_step(optimizer: optax.GradientTransformation) -> float:
    """The first that is not 0, on gradients of 1. Asked again for an equal optimizer, nothing is compiled."""

    def update(state: Any) -> tuple[Array, Any]:
        found, state = optimizer.update(jnp.ones(()), state, jnp.zeros(()))
        return jnp.asarray(found, float), state

    # One program for the first step, and one for all others: optax's operations one by one are a dozen.
    found, state = jax.jit(lambda: update(optimizer.init(jnp.zeros(()))))()
    again, step, tries = jax.jit(update), float(found), 1
    while step == 0.0 and tries < 1_000:  # a warm-up, or gradients that are gathered first, may begin with none
        found, state = again(state)
        step, tries = float(found), tries + 1
    return step


def check_trainers(owner: str, *parts: Any) -> None:
    """**Raises** `ValueError` for a part of a combinator that is no trainer."""
    for part in parts:
        if not isinstance(part, AbstractTrainer):
            raise ValueError(f"`{owner}` was given {part!r} where a trainer belongs, for example `OpenES(...)`.")


def check_real(owner: str, params: Params, domain: PyTree) -> None:
    """**Raises** `ValueError` if a leaf is not a real number, so that `owner` cannot move it by small steps."""

    def one(name: str, leaf: Any, domain: Any) -> None:
        if not isinstance(domain, Real):
            raise ValueError(
                f"`{owner}` cannot move `{name}` ({leaf.dtype}, {domain}): it takes small steps along real numbers. "
                f"Give that leaf to a trainer that searches, `Split({{'rest': {owner}(...), 'search': Genetic(...)}}, "
                "labels)`, or all leaves to `Genetic`, or to `CMAES` if none is `Categorical`."
            )

    map_named(one, params, domain)
