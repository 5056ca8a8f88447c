"""Through the stages of a sequence to the losses: every decision has its estimator, every boundary its signal."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from nondiff.core import words
from nondiff.core.problem import Params
from nondiff.core.signal import Above, AbstractSignal, Losses, Place, Seen
from nondiff.core.stage import AbstractStage
from nondiff.core.through import through

Compare = Callable[[Any, Any], Float[Array, " cases"]]
"""Outputs and answers to one loss per case."""


class Part(NamedTuple):
    """A stage of a sequence, and what comes back over the boundary behind it."""

    path: tuple[str, ...]
    """Where its parameters are."""
    stage: AbstractStage
    signal: AbstractSignal | None = None
    """`None`: the derivative, as it is."""

    @property
    def name(self) -> str:
        return "/".join(self.path)

    def params(self, params: Any) -> Params:
        for name in self.path:
            params = params[name]
        return params


def outputs(parts: Sequence[Part], params: Any, x: Any) -> Any:
    """What the last of these stages answers, as it is used after training."""
    for part in parts:
        x = part.stage(part.params(params), x)
    return x


@dataclasses.dataclass(frozen=True, eq=False)
class Walk:
    """The losses of one batch."""

    parts: Sequence[Part]
    params: Any
    answers: Any
    compare: Compare
    own: Mapping[str, Params] = dataclasses.field(default_factory=dict)
    """Leaves of signals, by boundary."""
    places: Mapping[str, Place] = dataclasses.field(default_factory=dict)
    """Of the boundaries."""
    probes: Mapping[str, Array] = dataclasses.field(default_factory=dict)
    """Zeros, added to the activations at these boundaries to see what comes back to them."""

    def losses(self, x: Any, key: Key[Array, ""], start: int = 0) -> Losses:
        """From the activations before stage number `start`."""
        for i, part in enumerate(self.parts[start:], start):
            here, params = part.stage.decision, part.params(self.params)
            if here is not None:
                k_here, k_rest = words.split(key)

                def rest(decisions: Any, i: int = i, program: Any = here.program, k: Any = k_rest) -> Losses:
                    return self._after(i, program(decisions), k)

                via = here.estimator(params, self.answers)
                return through(rest, x, via=via, key=k_here, decide=here.decide)
            x = part.stage(params, x)
            if part.signal is not None:
                return self._after(i, x, key)
        return self.compare(x, self.answers)

    def _after(self, i: int, x: Any, key: Key[Array, ""]) -> Losses:
        """From the activations behind stage `i`."""
        part = self.parts[i]
        if part.signal is None:
            return self.losses(x, key, i + 1)
        k_here, k_rest = words.split(key)
        x = x + self.probes[part.name] if part.name in self.probes else x
        seen = Seen(self.places[part.name], self.answers, self.compare, k_here)
        above = Above(lambda h: self._true.losses(h, k_rest, i + 1), lambda h: self.error(h, i + 1))
        return part.signal.cross(self.own[part.name], x, seen, above, lambda h: self.losses(h, k_rest, i + 1))

    @property
    def _true(self) -> "Walk":
        """Without signals, and with nothing that a gradient could flow back into."""
        bare = [part._replace(signal=None) for part in self.parts]
        return dataclasses.replace(self, parts=bare, params=jax.lax.stop_gradient(self.params), probes={})

    def error(self, h: Array, start: int) -> Array:
        """The derivative of each case's loss in the outputs, from the activations before stage number `start`."""
        y = outputs(self.parts[start:], jax.lax.stop_gradient(self.params), jax.lax.stop_gradient(h))
        return jax.lax.stop_gradient(jax.grad(lambda y: jnp.sum(self.compare(y, self.answers)))(y))


@runtime_checkable
class AbstractModel(Protocol):
    """What can be walked through: a `Chain`, a `Decoupled`."""

    def walk(self, params: Any, answers: Any, compare: Compare) -> Walk: ...


@dataclasses.dataclass(frozen=True, eq=False)
class BatchLoss:
    """`loss(params, batch, key)`; no closure, so that workers find it by its name."""

    model: AbstractModel
    compare: Compare

    def __call__(self, params: Any, batch: PyTree, key: Key[Array, ""]) -> Losses:
        x, answers = batch
        return self.model.walk(params, answers, self.compare).losses(x, key)
