"""One of decoupled modules: the stages up to a boundary, what they learn at a step, and what they hand on.

What comes from above is about an earlier batch. A module that learns from it alone goes through its own inputs of then
once more, with its parameters of now (Huo, Gu & Huang, 2018, "Training Neural Networks Using Features Replay",
https://arxiv.org/abs/1807.04511); so what it sends down in turn is older still. One whose signal is only fitted to it
remembers its activations of then.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
from jaxtyping import Array, Int, Key

from nondiff.core.estimator import with_gradient_of
from nondiff.core.signal import AbstractSignal, Losses, Place, Seen, Source, along
from nondiff.core.walk import Compare, Part, Walk, outputs


class Message(NamedTuple):
    """From above."""

    content: Any
    """A gradient at the boundary, or the error at the outputs."""
    about: Int[Array, ""]
    """The number of the batch it is about; -1: nothing has come."""


class Now(NamedTuple):
    """A batch, where a module sees it."""

    step: Int[Array, ""]
    """Its number."""
    inputs: Any
    answers: Any
    key: Key[Array, ""]


class Then(NamedTuple):
    """What a module remembers of a batch."""

    at: Any
    """Its inputs, or the activations that it made of them."""
    answers: Any
    key: Key[Array, "..."]


class Handed(NamedTuple):
    """What a module hands on at a step; `()` where nobody wants it."""

    up: Any
    down: Message
    """The gradient in its inputs."""
    error: Message
    """Of the last module: the derivative of each case's loss in the outputs."""


@dataclasses.dataclass(frozen=True, eq=False)
class Module:
    """A part of a model that learns by itself."""

    parts: tuple[Part, ...]
    number: int
    """From below."""
    place: Place | None
    """The boundary behind it; `None` for the last."""
    late: int
    """Steps that a message is on its way to it."""
    age: int
    """Steps since the batch that the message is about: how many it remembers."""
    sends: frozenset[Source]
    """What others want of it."""

    @property
    def name(self) -> str:
        return self.parts[-1].name

    @property
    def signal(self) -> AbstractSignal | None:
        return self.parts[-1].signal

    @property
    def source(self) -> Source:
        """What it has to be sent."""
        if self.signal is None:
            return "nothing"
        return self.signal.waits if self.signal.waits != "nothing" else self.signal.fits

    @property
    def way(self) -> int:
        """How many messages are on their way to it."""
        return self.late if self.source != "nothing" else 0

    @property
    def replays(self) -> bool:
        """Does it go through its inputs of then once more?"""
        return self.signal is not None and self.signal.waits != "nothing"

    def up(self, params: Any, inputs: Any) -> Any:
        """Its activations."""
        return outputs(self.parts, params["stages"], inputs)

    def share(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Of the parameters of all modules, those that it trains."""
        stages: dict[str, Any] = {}
        for part in self.parts:
            here = stages
            for name in part.path[:-1]:
                here = here.setdefault(name, {})
            here[part.path[-1]] = part.params(params["stages"])
        own = {} if self.signal is None else {self.name: params["signals"][self.name]}
        return {"stages": stages, "signals": own}

    def activations(self, cases: int) -> jax.ShapeDtypeStruct:
        """The shape at the boundary, for so many cases."""
        assert self.place is not None
        return _cases(self.place.activations, cases)

    def silence(self, cases: int) -> Message:
        """The message before anything has come."""
        content: Any = ()
        if self.place is not None:
            like = {"gradient": self.place.activations, "error": self.place.outputs}.get(self.source, ())
            content = jtu.tree_map(lambda s: jnp.zeros(_cases(s, cases).shape, s.dtype), like)
        return Message(content, jnp.int32(-1))

    def memory(self, inputs: Any, answers: Any) -> Then | tuple[()]:
        """Of as many batches as it has to remember, like this one (shapes will do); of none at first."""
        if not self.age:
            return ()
        here = inputs if self.replays else self.activations(cases_of(answers))
        return ring(Then(here, answers, jax.eval_shape(lambda: jr.key(0))), self.age)

    def learn(
        self, params: Any, now: Now, remembered: Then | tuple[()], message: Message, compare: Compare
    ) -> tuple[Losses, Handed, Then | tuple[()]]:
        """A number per case, whose derivatives are what the module learns: the true losses for the last one, what the
        signal's own leaves minimise for the others. What it hands on, and what it remembers now.
        """
        if self.signal is None or self.place is None:
            return *self._last(params, now, compare), ()
        signal, place, own = self.signal, self.place, params["signals"][self.name]
        fixed = jax.lax.stop_gradient(params)
        here = self.up(fixed, now.inputs)
        new = Then(now.inputs if self.replays else here, now.answers, now.key)
        then, remembered = turned(remembered, new, now.step, message.about)
        arrived = (message.about >= 0) & (message.about >= now.step - self.age) | (self.source == "nothing")

        def seen(batch: Now | Then) -> Seen:
            return Seen(place, batch.answers, compare, batch.key)

        inputs, used = (then.at, then) if self.replays else (now.inputs, now)
        h = self.up(fixed, inputs)
        gradient = jax.lax.stop_gradient(signal.gradient(own, h, seen(used), message.content))
        if self.replays:
            gradient = jnp.where(arrived, gradient, 0.0)
        fit = signal.fit(own, h if self.replays else then.at, seen(then), message.content)
        fit = jnp.where(arrived, fit, 0.0)
        losses = with_gradient_of(jax.lax.stop_gradient(fit), fit + along(gradient, self.up(params, inputs)))
        down = ()
        if "gradient" in self.sends:
            (down,) = jax.vjp(lambda x: self.up(fixed, x), inputs)[1](gradient)
        down = Message(down, message.about if self.replays else now.step)
        return losses, Handed(here, down, Message((), now.step)), remembered

    def _last(self, params: Any, now: Now, compare: Compare) -> tuple[Losses, Handed]:
        losses = Walk(self.parts, params["stages"], now.answers, compare).losses(now.inputs, now.key)
        walk = Walk(self.parts, jax.lax.stop_gradient(params["stages"]), now.answers, compare)
        down, error = (), ()
        if "gradient" in self.sends:
            down = jax.grad(lambda h: jnp.sum(walk.losses(h, now.key)))(now.inputs)
        if "error" in self.sends:
            error = walk.error(now.inputs, 0)
        return losses, Handed((), Message(down, now.step), Message(error, now.step))


def modules(parts: Sequence[Part], places: Mapping[str, Place], late: int) -> tuple[Module, ...]:
    """All, from below. Every message is `late` more steps late.

    **Raises** `ValueError` for a signal that asks for the present losses, and for a decision that messages would cross.
    """
    ends = [i for i, part in enumerate(parts) if part.signal is not None]
    starts = [0, *(i + 1 for i in ends)]
    cut = [tuple(parts[a : b + 1]) for a, b in zip(starts[:-1], ends, strict=True)]
    found: list[Module] = []
    above = 0  # the age of what the module above sends
    for number, own in reversed(list(enumerate(cut))):
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
        module = Module(own, number, places[own[-1].name], late + signal.late, 0, frozenset())
        age = {"gradient": module.late + above, "error": module.late}.get(module.source, 0)
        found.append(dataclasses.replace(module, age=age))
        above = age if signal.waits != "nothing" else 0
    found = [*found[::-1], Module(tuple(parts[starts[-1] :]), len(cut), None, 0, 0, frozenset())]
    return tuple(_with_receivers(found))


def _with_receivers(found: Sequence[Module]) -> list[Module]:
    """What each is wanted to send: the gradient to the module below, the error to whoever learns by it."""
    sources = [module.source for module in found]
    receivers = []
    for i, module in enumerate(found):
        gradient = {"gradient"} & {sources[i - 1]} if i else set()
        error = {"error"} & set(sources) if module.signal is None else set()
        receivers.append(dataclasses.replace(module, sends=frozenset(gradient | error)))
    return receivers


def cases_of(answers: Any) -> int:
    return jtu.tree_leaves(answers)[0].shape[0]


def _cases(like: jax.ShapeDtypeStruct, cases: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((cases, *like.shape[1:]), like.dtype)


def ring(like: Any, length: int) -> Any:
    """Room for so many of them; zeros at first."""

    def one(s: Any) -> Array:
        if jnp.issubdtype(s.dtype, jax.dtypes.prng_key):
            return jr.split(jr.key(0), length)
        return jnp.zeros((length, *s.shape), s.dtype)

    return jtu.tree_map(one, like)


def turned(held: Any, new: Any, step: Int[Array, ""], about: Int[Array, ""]) -> tuple[Any, Any]:
    """What a ring holds about a step, and the ring with what is new in the place of the oldest; without a ring, what is
    new itself.
    """
    leaves = jtu.tree_leaves(held)
    if not leaves:
        return new, held
    length = leaves[0].shape[0]
    found = jtu.tree_map(lambda ring: ring[about % length], held)
    return found, jtu.tree_map(lambda ring, x: ring.at[step % length].set(x), held, new)
