"""One of decoupled modules: the stages up to a boundary, what they learn at a step, and what they hand on.

What comes from above is about an earlier batch. A module that learns from it alone goes through its own inputs of then
once more, with its parameters of now (Huo, Gu & Huang, 2018, "Training Neural Networks Using Features Replay",
https://arxiv.org/abs/1807.04511); so what it sends down in turn is older still. One whose signal is only fitted to it
remembers its activations of then. What comes from below is about an earlier batch, too, where inputs are predicted.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
from jaxtyping import Array

from nondiff.core.estimator import with_gradient_of
from nondiff.core.inputs import AbstractInputs
from nondiff.core.message import Handed, Mail, Message, Now, Past, Then, cases_of, repeated, ring, turned, with_cases
from nondiff.core.passed import passed
from nondiff.core.signal import AbstractSignal, Losses, Place, Seen, Source
from nondiff.core.sync import Sync
from nondiff.core.walk import Compare, Part, Walk, outputs


@dataclasses.dataclass(frozen=True, eq=False)
class Module:
    """A part of a model that learns by itself."""

    parts: tuple[Part, ...]
    number: int
    """From below."""
    below: Place | None
    """The boundary before it; `None` for the first."""
    place: Place | None
    """The boundary behind it; `None` for the last."""
    sync: Sync = dataclasses.field(default=Sync())
    predicts: AbstractInputs | None = None
    """Its inputs; `None`: it waits for them."""
    climb: int = 0
    """Steps that activations are on their way to it, if it does not wait for them."""
    late: int = 0
    """Steps that a message from above is on its way to it."""
    age: int = 0
    """Steps since the batch that the message is about: how many it remembers."""
    sends: frozenset[Source] = frozenset()
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
    def ways(self) -> tuple[int, int]:
        """How many messages are on their way to it, from below and from above."""
        return self.climb, self.late if self.source != "nothing" else 0

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
        shared = {"stages": stages, "signals": own}
        return shared if self.predicts is None else {**shared, "inputs": {self.name: params["inputs"][self.name]}}

    def silence(self, cases: int) -> Mail:
        """The mail before anything has come."""
        above: Any = ()
        if self.place is not None:
            above = {"gradient": self.place.activations, "error": self.place.outputs}.get(self.source, ())
        below = () if self.below is None else self.below.activations
        below, above = jtu.tree_map(lambda s: jnp.zeros(with_cases(s, cases).shape, s.dtype), (below, above))
        return Mail(Message(below, jnp.int32(-1)), Message(above, jnp.int32(-1)))

    def coming(self, cases: int) -> tuple[Any, Any]:
        """Queues of what is on its way to it from below and from above: at first, of silence; `()` where all comes at
        once.
        """
        (below, above), (climb, late) = self.silence(cases), self.ways
        return repeated(below, climb), repeated(above, late)

    def past(self, x: Any, answers: Any) -> Past:
        """Of as many batches as it has to remember, like this one (shapes will do); of none at first."""
        then: Then | tuple[()] = ()
        if self.age:
            start = x if self.below is None else self.below.activations
            assert self.place is not None
            at = start if self.replays else self.place.activations
            at = jtu.tree_map(lambda s: with_cases(s, cases_of(answers)), at)
            then = ring(Then(at, answers, jax.eval_shape(lambda: jr.key(0))), self.age)
        return Past(then, ring(x, self.climb) if self.climb else ())

    def learn(self, params: Any, now: Now, past: Past, mail: Mail, compare: Compare) -> tuple[Losses, Handed, Past]:
        """A number per case, whose derivatives are what the module learns: the losses for the last one, what the
        signal's own leaves minimise for the others. What it hands on, and what it remembers now.
        """
        entered = jax.lax.stop_gradient(self.inputs(params, now.x, mail.below.content))
        missed, x = self._missed(params, now, past.x, mail.below)
        if self.signal is None or self.place is None:
            losses, handed = self._last(params, now, entered, compare)
            return with_gradient_of(losses, missed), handed, Past((), x)
        signal, place, own, message = self.signal, self.place, params["signals"][self.name], mail.above
        sends = "gradient" in self.sends
        here, back = passed(self.up, params, entered, sends)
        new = Then(entered if self.replays else here, now.answers, now.key)
        then, rings = turned(past.then, new, now.step, message.about)
        arrived = _arrived(message, now, self.age) | (self.source == "nothing")

        def seen(batch: Now | Then) -> Seen:
            return Seen(place, batch.answers, compare, batch.key)

        h, back = passed(self.up, params, then.at, sends) if self.replays else (here, back)
        gradient = signal.gradient(own, h, seen(then if self.replays else now), message.content)
        gradient = jax.lax.stop_gradient(gradient).astype(h.dtype)
        if self.replays:
            gradient = jnp.where(arrived, gradient, 0)
        if self.sync.waits:
            gradient = jnp.where(self.sync.is_true(now.step), message.content, gradient)
        fit = signal.fit(own, h if self.replays else then.at, seen(then), message.content)
        fit = jnp.where(arrived, fit, 0.0)
        learned, down = back(gradient)
        handed = self._handed(now, here, down, (), message.about if self.replays else now.step)
        return with_gradient_of(jax.lax.stop_gradient(fit), learned + fit + missed), handed, Past(rings, x)

    def inputs(self, params: Any, x: Any, below: Any) -> Any:
        """What its stages are given, by what has come from below."""
        if self.below is None:
            return x
        if self.predicts is None:
            return below
        return self.predicts.predict(params["inputs"][self.name], x, self.below.activations)

    def _missed(self, params: Any, now: Now, ring: Any, below: Message) -> tuple[Losses, Any]:
        """What fits a prediction of its inputs, and the inputs of the whole model that it remembers."""
        if self.predicts is None:
            return jnp.zeros(cases_of(now.answers)), ring
        x, ring = turned(ring, now.x, now.step, below.about)
        missed = self.predicts.fit(params["inputs"][self.name], x, below.content)
        return jnp.where(_arrived(below, now, self.climb), missed, 0.0), ring

    def _last(self, params: Any, now: Now, entered: Any, compare: Compare) -> tuple[Losses, Handed]:
        def walked(params: Any, h: Any) -> Losses:
            return Walk(self.parts, params["stages"], now.answers, compare).losses(h, now.key)

        losses, back = passed(walked, params, entered, "gradient" in self.sends)
        learned, down = back(jnp.ones_like(losses))
        walk = Walk(self.parts, params["stages"], now.answers, compare)
        error = walk.error(entered, 0) if "error" in self.sends else ()
        return with_gradient_of(losses, learned), self._handed(now, (), down, error, now.step)

    def _handed(self, now: Now, up: Any, down: Any, error: Any, about: Array) -> Handed:
        sent = self.sync.sent(now.step, now.step)
        return Handed(Message(up, sent), Message(down, self.sync.sent(now.step, about)), Message(error, sent))


def modules(
    parts: Sequence[Part],
    places: Mapping[str, Place],
    late: int,
    predicts: AbstractInputs | None,
    sync: Sync,
) -> tuple[Module, ...]:
    """All, from below. Every message is `late` more steps late.

    **Raises** `ValueError` for a signal that asks for the present losses, for a decision that messages would cross,
    and for steps that wait for true gradients where they do not come.
    """
    ends = [i for i, part in enumerate(parts) if part.signal is not None]
    starts = [0, *(i + 1 for i in ends)]
    cut = [tuple(parts[a : b + 1]) for a, b in zip(starts[:-1], ends, strict=True)]
    entry: dict[str, Any] = {"predicts": predicts, "climb": 0 if predicts is None else late}
    found: list[Module] = []
    above = 0  # the age of what the module above sends
    for number, own in reversed(list(enumerate(cut))):
        signal = own[-1].signal
        assert signal is not None
        if "losses" in (signal.waits, signal.fits):
            raise ValueError(
                f"`Decoupled`: `{signal!r}` asks for the losses of the present batch, and cannot do with `late`, "
                "`inputs` or `sync`."
            )
        if sync.waits and (late or signal.late or predicts is not None or signal.fits != "gradient" != signal.waits):
            raise ValueError(
                f"`Decoupled(sync={sync!r})`: at some steps all modules learn by the true gradient, and none comes in "
                f"time to boundary `{own[-1].name}`. Leave out `late` and `inputs`; have `SyntheticGradient()` there."
            )
        for part in own:
            if part.stage.decision is not None:
                raise ValueError(
                    f"`Decoupled`: `{part.name}` is a decision, and late messages cannot cross one. Let it stand in "
                    "the last module."
                )
        before = places[cut[number - 1][-1].name] if number else None
        module = Module(own, number, before, places[own[-1].name], sync, late=late + signal.late)
        if before is not None:
            module = dataclasses.replace(module, **entry)
        age = {"gradient": module.late + above, "error": module.late}.get(module.source, 0)
        found.append(dataclasses.replace(module, age=age))
        above = age if signal.waits != "nothing" else 0
    last = Module(tuple(parts[starts[-1] :]), len(cut), None, None, sync)
    if cut:
        last = dataclasses.replace(last, below=places[cut[-1][-1].name], **entry)
    return tuple(_with_receivers([*found[::-1], last]))


def _arrived(message: Message, now: Now, age: int) -> Array:
    """Has it come, and is what it is about still remembered?"""
    return (message.about >= 0) & (message.about >= now.step - age)


def _with_receivers(found: Sequence[Module]) -> list[Module]:
    """What each is wanted to send: the gradient to the module below, the error to whoever learns by it."""
    sources = [module.source for module in found]
    receivers = []
    for i, module in enumerate(found):
        gradient = {"gradient"} & {sources[i - 1]} if i else set()
        error = {"error"} & set(sources) if module.signal is None else set()
        receivers.append(dataclasses.replace(module, sends=frozenset(gradient | error)))
    return receivers
