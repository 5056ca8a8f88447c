"""A model in modules that learn from signals at their boundaries, instead of one gradient through all of them.

"One universal recipe: modularity and hierarchy": a module may be a stage, a chain, or decoupled itself.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, get_args

import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import optax
from jaxtyping import Array, Float, Key, PyTree

from nondiff.core import words
from nondiff.core.chain import Chain
from nondiff.core.checks import check_count
from nondiff.core.inputs import AbstractInputs
from nondiff.core.late import LateLoss
from nondiff.core.module import Module, modules
from nondiff.core.problem import Params
from nondiff.core.signal import AbstractSignal, Locked, Place, Unlocks
from nondiff.core.stage import AbstractStage
from nondiff.core.sync import Sync
from nondiff.core.tree import shape_of
from nondiff.core.walk import BatchLoss, Compare, Part, Walk, outputs


@dataclasses.dataclass(frozen=True, eq=False)
class Decoupled:
    """A `Chain` whose modules do not wait for one another.

    **Arguments:**

    - `modules`: a `Chain`, of which each stage is a module, or name to module: a stage, a `Chain`, or a `Decoupled`
      with boundaries of its own.
    - `signal`: what comes back over the boundaries between modules: `SyntheticGradient()`, `LocalLoss()`,
      `FeedbackAlignment()`, `ForwardGradient()`, `Delayed()`, `Locked()`; or module to signal, of the boundary behind
      it. Then there is none behind the others.
    - `like`: a batch `(inputs, answers)`, or shapes and types of one, by which signals know what they are about. Only a
      module of another `Decoupled` needs none.
    - `late`: how many steps late everything arrives that comes from above, 0 or more (default 0): what modules in
      separate processes learn from, in one process. A `SyntheticGradient` is fitted later, `FeedbackAlignment` learns
      from an earlier batch. Under `Supervised`, which remembers what is on its way.
    - `inputs`: what modules start from that do not wait for those before them: `SyntheticInput()`, a prediction from
      the inputs of the whole model, fitted to the activations, which then may be late, too. Its leaves need a trainer
      that asks for gradients; no search finds them. Default `None`: they wait.
    - `sync`: how often modules hear of one another, and when they learn together. Default `Sync()`: at every step, and
      never.

    Used like a `Chain`: `decoupled(params, x)`, `decoupled.loss(compare)` and `decoupled.init`, which makes
    `{"stages": {module: ...}, "signals": {boundary: ...}}`, and `"inputs": {module: ...}` where they are predicted. The
    loss is the true one, bit for bit. Its derivative in a module is what the signal at the module's end says, and in a
    signal's own leaves what fits them; so any trainer takes it, and another trainer may own a module (`Split`). No
    gradient is asked of a module without derivative that stands between local signals.

    **Raises** `ValueError` for shapes that do not fit, with the names of both stages; a signal for a module that is
    none or the last one; a signal that needs answers where there are none.

    >>> import jax, jax.numpy as jnp, nondiff, optax
    >>> x = jax.random.normal(jax.random.key(0), (256, 2))
    >>> answers = (x[:, 0] * x[:, 1] > 0).astype(int)
    >>> chain = nondiff.Chain({
    ...     "in": nondiff.Dense(2, 32), "bend": nondiff.Activation(nondiff.Relu()), "out": nondiff.Dense(32, 2)
    ... })
    >>> model = Decoupled(chain, signal={"bend": nondiff.LocalLoss()}, like=(x, answers))
    >>> loss = model.loss(optax.softmax_cross_entropy_with_integer_labels)
    >>> problem = nondiff.Supervised(loss, (x, answers), params=model.init)
    >>> result = nondiff.fit(problem, nondiff.Backprop(optax.adam(0.03)), steps=200, key=jax.random.key(1))
    >>> bool((model(result.params, x).argmax(-1) == answers).mean() > 0.95)
    True
    """

    modules: "Chain | Mapping[str, AbstractStage | Chain | Decoupled]"
    signal: AbstractSignal | Mapping[str, AbstractSignal]
    like: PyTree = dataclasses.field(default=None, kw_only=True)
    late: int = dataclasses.field(default=0, kw_only=True)
    inputs: AbstractInputs | None = dataclasses.field(default=None, kw_only=True)
    sync: Sync = dataclasses.field(default=Sync(), kw_only=True)

    def __post_init__(self) -> None:
        if not self._modules:
            raise ValueError("`Decoupled({})`: expected at least one module.")
        for name, module in self._modules.items():
            if not isinstance(name, str) or "/" in name or not isinstance(module, AbstractStage | Chain | Decoupled):
                raise ValueError(
                    f"`Decoupled({{{name!r}: {module!r}}})`: expected a name without `/`, and a stage, a `Chain` or a "
                    "`Decoupled`."
                )
        names = list(self._modules)[:-1]
        if isinstance(self.signal, Mapping) and (unknown := [name for name in self.signal if name not in names]):
            raise ValueError(
                f"`Decoupled(signal={{{unknown[0]!r}: ...}})`: expected modules with another one behind them, some of "
                f"{', '.join(names) or 'none'}."
            )
        for signal in self.signal.values() if isinstance(self.signal, Mapping) else [self.signal]:
            if not isinstance(signal, AbstractSignal):
                raise ValueError(f"`Decoupled(signal={signal!r})`: expected a signal, for example `LocalLoss()`.")
        check_count("Decoupled", "late", self.late, least=0)
        for name, kind, example in (("inputs", AbstractInputs, "SyntheticInput()"), ("sync", Sync, "Sync(every=2)")):
            value = getattr(self, name)
            if not isinstance(value, kind) and (name, value) != ("inputs", None):
                raise ValueError(f"`Decoupled({name}={value!r})`: expected for example `{example}`.")
        for name, module in self._modules.items():
            if isinstance(module, Decoupled) and (module.late or module.inputs is not None or module.sync != Sync()):
                raise ValueError(f"`Decoupled`: `late`, `inputs` and `sync` belong to the outermost, not to `{name}`.")
        if self.like is not None:
            object.__setattr__(self, "like", jtu.tree_map(shape_of, self.like))  # data would travel with the loss
            jax.eval_shape(self.init, jr.key(0))
            if self.remembers:
                if not jtu.tree_leaves(self.like[1]):
                    raise ValueError("`Decoupled`: there are no answers, by which modules would know their batch.")
                self.learners  # noqa: B018 - its errors

    @property
    def _modules(self) -> "Mapping[str, AbstractStage | Chain | Decoupled]":
        return self.modules.stages if isinstance(self.modules, Chain) else self.modules

    def _signal(self, module: str) -> AbstractSignal | None:
        if module == list(self._modules)[-1]:
            return None
        return self.signal.get(module) if isinstance(self.signal, Mapping) else self.signal

    @property
    def parts(self) -> tuple[Part, ...]:
        """All stages, in their order."""
        parts = []
        for name, module in self._modules.items():
            inner = [Part((), module)] if isinstance(module, AbstractStage) else module.parts
            inner = [part._replace(path=(name, *part.path)) for part in inner]
            parts += [*inner[:-1], inner[-1]._replace(signal=self._signal(name))]
        return tuple(parts)

    @property
    def remembers(self) -> bool:
        """Does a step depend on earlier ones? Something is late then, or depends on the number of the step."""
        late = self.late or any(part.signal is not None and part.signal.late for part in self.parts)
        return bool(late) or self.inputs is not None or self.sync != Sync()

    @property
    def learners(self) -> tuple[Module, ...]:
        """All modules between the boundaries, inner ones too, from below."""
        return modules(self.parts, self.places, self.late, self.inputs, self.sync)

    @property
    def unlocks(self) -> Unlocks:
        """What no module waits for: the least that its signals say, or `"forward"` with predicted inputs, too."""
        signals: list[Unlocks] = [part.signal.unlocks for part in self.parts if part.signal is not None]
        least = min(signals, key=get_args(Unlocks).index) if signals else "nothing"
        return "forward" if least == "update" and self.inputs is not None else least

    def init(self, key: Key[Array, ""]) -> dict[str, Any]:
        """Where modules, signals and predictions of inputs start."""
        k_stages, k_signals = words.split(key)
        signals = {part.name: part.signal for part in self.parts if part.signal is not None}
        keys = iter(words.split(k_signals, max(2 * len(signals), 1)))
        params = {"stages": self._start(k_stages)}
        params["signals"] = {name: signal.init(self.places[name], key=next(keys)) for name, signal in signals.items()}
        if self.inputs is not None:
            later = {m.name: m.below.activations for m in self.learners if m.below is not None}
            params["inputs"] = {n: self.inputs.init(n, self.like[0], h, key=next(keys)) for n, h in later.items()}
        return params

    def _start(self, key: Key[Array, ""]) -> dict[str, Params]:
        """Of all modules."""
        keys = words.split(key, len(self._modules))
        return {
            name: module._start(k) if isinstance(module, Decoupled) else module.init(key=k)
            for (name, module), k in zip(self._modules.items(), keys, strict=True)
        }

    @functools.cached_property
    def places(self) -> dict[str, Place]:
        """What every boundary is like, by name."""
        if not isinstance(self.like, tuple) or len(self.like) != 2:
            raise ValueError(f"`Decoupled(like={self.like!r})`: expected a batch, `(inputs, answers)`, or its shapes.")
        x, answers = self.like
        stages = jax.eval_shape(self._start, jr.key(0))
        at, before = {}, "the inputs"
        for part in self.parts:
            try:
                y = jax.eval_shape(part.stage, part.params(stages), x)
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"`Decoupled`: stage `{part.name}` cannot take what {before} gives, {_shown(x)}: {error}"
                ) from error
            x, before = y, f"`{part.name}`"
            if part.signal is not None:
                _check_crossable(part.name, x)
                at[part.name] = x
        return {name: Place(name, i, h, x, answers) for i, (name, h) in enumerate(at.items())}

    def __call__(self, params: Mapping[str, Any], x: Any) -> Any:
        """The answers, `[cases, ...]`."""
        return outputs(self.parts, params["stages"], x)

    def loss(self, compare: Compare) -> BatchLoss | LateLoss:
        """`loss(params, batch, key)` of batches `(inputs, answers)`; `compare` as for `Chain.loss`."""
        if self.remembers:
            return LateLoss(self.parts, self.places, compare, self.late, self.inputs, self.sync)
        return BatchLoss(self, compare)

    def walk(self, params: Mapping[str, Any], answers: Any, compare: Compare) -> Walk:
        """From inputs to losses with these parameters."""
        return Walk(self.parts, params["stages"], answers, compare, params["signals"], self.places)

    def optimizer(self, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
        """One that moves the leaves of each signal by an optimiser of its own, as the signal says: predictions have to
        keep up with what they are about.
        """
        signals = {part.name: part.signal for part in self.parts if part.signal is not None}
        own = {f"signals/{name}": signal.optimizer(optimizer) for name, signal in signals.items()}
        if self.inputs is not None:
            own["inputs"] = self.inputs.optimizer(optimizer)
        return optax.partition({"stages": optimizer, **own}, _Labels())

    def cosines(self, compare: Compare, batch: PyTree) -> Callable[[Any], dict[str, float]]:
        """A metric for `fit(metrics=[...])`: `cosine/<boundary>`, between what comes back there and the true gradient,
        on this batch; 1 is backpropagation.
        """
        x, answers = jtu.tree_map(jnp.asarray, batch)
        true = tuple(part._replace(signal=Locked()) if part.signal is not None else part for part in self.parts)

        @jax.jit
        def compared(params: Any, x: Any, answers: Any) -> dict[str, Array]:
            key = jr.key(0)
            cases = jtu.tree_leaves(x)[0].shape[0]
            shapes = {name: place.activations for name, place in self.places.items()}
            zeros = {n: jnp.zeros((cases, *h.shape[1:]), h.dtype) for n, h in shapes.items()}

            def back(parts: tuple[Part, ...], own: Any) -> dict[str, Array]:
                def total(probes: dict[str, Array]) -> Array:
                    return jnp.sum(
                        Walk(parts, params["stages"], answers, compare, own, self.places, probes).losses(x, key)
                    )

                return jax.grad(total)(zeros)

            signals, truth = back(self.parts, params["signals"]), back(true, {n: () for n in zeros})
            return {f"cosine/{name}": _cosine(signals[name], truth[name]) for name in zeros}

        return lambda moment: {n: float(c) for n, c in compared(moment.params, x, answers).items()}


class _Labels:
    """Whose each leaf is; no closure, so that workers find it by its name."""

    def __call__(self, params: Any) -> Any:
        labels = {name: jtu.tree_map(lambda _, name=name: name, leaves) for name, leaves in params.items()}
        own = params["signals"]
        return labels | {"signals": {n: jtu.tree_map(lambda _, n=n: f"signals/{n}", own[n]) for n in own}}


def _shown(x: Any) -> str:
    return ", ".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in jtu.tree_leaves(x)) or "nothing"


def _check_crossable(name: str, x: Any) -> None:
    """**Raises** `ValueError` for activations that have no derivative, or are more than one array."""
    if not isinstance(x, jax.ShapeDtypeStruct) or not jnp.issubdtype(x.dtype, jnp.floating) or not x.shape:
        raise ValueError(
            f"`Decoupled`: `{name}` gives {_shown(x)}, and a signal comes back to one array of floats, `[cases, ...]`. "
            "Leave that boundary out: `signal={module: ...}` has one only behind the modules it names."
        )


def _cosine(a: Array, b: Array) -> Float[Array, ""]:
    """0 where one of them is 0."""
    size = jnp.linalg.norm(a.ravel()) * jnp.linalg.norm(b.ravel())
    return jnp.where(size > 0, jnp.sum(a * b) / jnp.where(size > 0, size, 1.0), 0.0)
