"""Messages that come down from later modules some steps late, so that no module waits for them.

What comes late is about an earlier batch. A module that learns from it alone goes through its own inputs of then once
more, with its parameters of now (Huo, Gu & Huang, 2018, "Training Neural Networks Using Features Replay",
https://arxiv.org/abs/1807.04511); so what it sends down in turn is later still.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
from jaxtyping import Array, Key, PyTree

from nondiff.core.estimator import with_gradient_of
from nondiff.core.signal import AbstractSignal, Losses, Place, Seen, Source, along
from nondiff.core.walk import Compare, Part, Walk, outputs


class Module(NamedTuple):
    """The stages up to a boundary, and how late it hears from above."""

    parts: tuple[Part, ...]
    signal: AbstractSignal
    late: int
    """Steps that a message is on its way to it."""
    age: int
    """Steps since the batch that the message is about."""

    @property
    def name(self) -> str:
        return self.parts[-1].name

    @property
    def source(self) -> Source:
        """What it has to be sent."""
        return self.signal.waits if self.signal.waits != "nothing" else self.signal.fits


class Then(NamedTuple):
    """What a module has seen at some step."""

    inputs: Any
    answers: Any
    key: Any


def modules(parts: Sequence[Part], late: int) -> tuple[list[Module], tuple[Part, ...]]:
    """Those with a boundary behind them, and the stages of the last one. Every message is `late` more steps late.

    **Raises** `ValueError` for a signal that asks for the present losses, and for a decision that messages would cross.
    """
    ends = [i for i, part in enumerate(parts) if part.signal is not None]
    starts = [0, *(i + 1 for i in ends)]
    cut = [tuple(parts[a : b + 1]) for a, b in zip(starts[:-1], ends, strict=True)]
    found: list[Module] = []
    above = 0  # the age of what the module above learns from
    for own in reversed(cut):
        signal = own[-1].signal
        assert signal is not None
        if "losses" in (signal.waits, signal.fits):
            raise ValueError(f"`Decoupled`: `{signal!r}` asks for the losses of the present batch and cannot be late.")
        for part in own:
            if part.stage.decision is not None:
                raise ValueError(
                    f"`Decoupled`: `{part.name}` is a decision, and late messages cannot cross one. Let it stand in "
                    "the last module."
                )
        module = Module(own, signal, late + signal.late, 0)
        age = {"gradient": module.late + above, "error": module.late}.get(module.source, 0)
        found.append(module._replace(age=age))
        above = age if signal.waits != "nothing" else 0
    return found[::-1], tuple(parts[starts[-1] :])


@dataclasses.dataclass(frozen=True, eq=False)
class LateLoss:
    """`loss(params, batch, key, memory)`: the losses, and what is to be remembered until the next step."""

    parts: tuple[Part, ...]
    places: Mapping[str, Place]
    compare: Compare
    late: int

    def memory(self, batch: PyTree) -> dict[str, Any]:
        """Before the first step, for batches like this one (shapes will do): zeros in place of what has not come."""
        x, answers = batch
        cases = jtu.tree_leaves(x)[0].shape[0]
        remembered: dict[str, Any] = {}
        inputs = x
        for module in modules(self.parts, self.late)[0]:
            place = self.places[module.name]
            here = jax.ShapeDtypeStruct((cases, *place.activations.shape[1:]), place.activations.dtype)
            out = jtu.tree_map(lambda s: jax.ShapeDtypeStruct((cases, *s.shape[1:]), s.dtype), place.outputs)
            came = {"gradient": here, "error": out, "nothing": ()}[module.source]
            key = jax.eval_shape(lambda: jr.key(0))
            remembered[module.name] = {
                "then": _zeros(module.age, Then(inputs, answers, key)),
                "came": _zeros(module.late, came),
            }
            inputs = here
        return {"step": jnp.zeros((), jnp.int32), "modules": remembered}

    def __call__(
        self, params: Any, batch: PyTree, key: Key[Array, ""], memory: dict[str, Any] | None = None
    ) -> tuple[Losses, dict[str, Any] | None]:
        x, answers = batch
        if memory is None:  # for whoever wants the value alone
            bare = [part._replace(signal=None) for part in self.parts]
            return Walk(bare, params["stages"], answers, self.compare).losses(x, key), None
        below, top = modules(self.parts, self.late)
        stages = params["stages"]
        fixed = jax.lax.stop_gradient(stages)
        k_top, *keys = jr.split(key, len(below) + 1)
        inputs = [x]
        for module in below:
            inputs.append(outputs(module.parts, fixed, inputs[-1]))
        h = inputs.pop()
        losses = Walk(top, stages, answers, self.compare).losses(h, k_top)
        walk = Walk(top, fixed, answers, self.compare)
        down = jax.grad(lambda h: jnp.sum(walk.losses(h, k_top)))(h)
        error = walk.error(h, 0) if any(module.source == "error" for module in below) else None
        surrogate, remembered = jnp.zeros_like(losses), {}
        for i, module in reversed(list(enumerate(below))):
            now = Then(inputs[i], answers, keys[i])
            sent = {"gradient": down, "error": error, "nothing": ()}[module.source]
            old = memory["modules"][module.name]
            then, later_then = _shifted(old["then"], now, module.age)
            came, later_came = _shifted(old["came"], sent, module.late)
            remembered[module.name] = {"then": later_then, "came": later_came}
            arrived = memory["step"] >= module.age
            more, down = self._learned(module, params, now, then, came, arrived)
            surrogate = surrogate + more
        return with_gradient_of(losses, surrogate), {"step": memory["step"] + 1, "modules": remembered}

    def _learned(
        self, module: Module, params: Any, now: Then, then: Then, came: Any, arrived: Array
    ) -> tuple[Losses, Array]:
        """What a module learns at a step, as a number per case, and the gradient that it sends down."""
        signal, own = module.signal, params["signals"][module.name]

        def through(stages: Any, x: Any) -> Array:
            return outputs(module.parts, stages, x)

        def seen(at: Then) -> Seen:
            return Seen(self.places[module.name], at.answers, self.compare, at.key)

        fixed = jax.lax.stop_gradient(params["stages"])
        used = now if signal.waits == "nothing" else then
        here, back = jax.vjp(lambda x: through(fixed, x), used.inputs)
        gradient = signal.gradient(own, here, seen(used), came)
        if signal.fits == "nothing":
            fit = signal.fit(own, here, seen(used), came)
        else:
            fit = jnp.where(arrived, signal.fit(own, through(fixed, then.inputs), seen(then), came), 0.0)
        gradient = jax.lax.stop_gradient(gradient)
        if signal.waits != "nothing":
            gradient = jnp.where(arrived, gradient, 0.0)
        return along(gradient, through(params["stages"], used.inputs)) + fit, back(gradient)[0]


def _zeros(n: int, like: Any) -> Any:
    """`n` of them, one after the other."""

    def one(s: Any) -> Array:
        if jnp.issubdtype(s.dtype, jax.dtypes.prng_key):
            return jr.split(jr.key(0), n)
        return jnp.zeros((n, *s.shape), s.dtype)

    return jtu.tree_map(one, like)


def _shifted(queue: Any, new: Any, length: int) -> tuple[Any, Any]:
    """The oldest, and the queue with the newest behind the others; without a queue, what is new."""
    if not length:
        return new, queue
    oldest = jtu.tree_map(lambda q: q[0], queue)
    return oldest, jtu.tree_map(lambda q, x: jnp.concatenate([q[1:], jnp.asarray(x)[None]]), queue, new)
