"""A recurrent model that learns window by window, and what comes back from the future over the end of a window.

Truncated backpropagation sees no further than a window's end. A signal there stands for the derivative of all later
losses in the state (Jaderberg, Czarnecki, Osindero, Vinyals, Graves, Silver & Kavukcuoglu, 2017, "Decoupled Neural
Interfaces using Synthetic Gradients", section 2.1, https://arxiv.org/abs/1608.05343). It is fitted a window later, to
the derivative in the state from which that window starts.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import optax
from jaxtyping import Array, Float, Int, Key

from nondiff.core import words
from nondiff.core.checks import check_count, check_number
from nondiff.core.estimator import with_gradient_of
from nondiff.core.layers import affine
from nondiff.core.problem import Params, starting_point
from nondiff.core.signal import AbstractSignal, Losses, Place, Seen, along, tapped
from nondiff.core.tree import shape_of
from nondiff.core.walk import Compare
from nondiff.core.window import Coming, Sequences, Window, cut

FEW = 16
"""Steps of a window up to which XLA sees them one after the other: a loop costs more than what is in it."""


@dataclasses.dataclass(frozen=True, eq=False)  # no pytree: `unroll.init` is to be a function, not a tree of arrays
class Unroll:
    """A recurrent model, and the signal at the end of every window.

    **Arguments:**

    - `step`: `step(params, state, inputs)` of all cases at one step, `[cases, ...]`; returns the next state and the
      outputs.
    - `params`: where its parameters start, arrays only, or a function of a key that makes them.
    - `state`: that of one case before the first step, one array of floats, `[...]`; it is not learned. Of a network
      with two states, such as an LSTM: both, one after the other.
    - `signal`: what comes back from the future: `SyntheticGradient(net=Hidden(256), lr_ratio=1)`, `LocalLoss()`.
      Default `None`: nothing does, which is truncated backpropagation.
    - `window`: steps of a window, 1 or more.
    - `ahead`: how many of the next steps' answers the signal is told, 0 or more (default 0). A `LocalLoss` reads them
      from the state.
    - `like`: a batch of `Sequences`, or shapes and types of one, by which a signal knows what it is about.
    - `auxiliary`: how much it counts that all states of a window predict the signal at its end by a linear map, at
      least 0 (default): the paper's additional task. It costs another forward and backward pass.

    `unroll.loss(compare)` is for an `AbstractWindows`; `unroll.init` makes `{"model": ..., "signal": ...}`. The loss of
    a window is the true one, bit for bit, a sum over its steps for each case. Its derivative in the model is that of
    the window and what the signal says of the future.

    **Raises** `ValueError` for numbers out of range; a state that is no array of floats; a signal that waits for what
    comes later, or asks for answers with `ahead=0`; `auxiliary` without a signal, and a signal without `like`.

    A state that remembers the first of four bits until it is asked for, over the ends of two windows:

    >>> import jax, jax.numpy as jnp, nondiff, optax
    >>> class First(nondiff.AbstractWindows):
    ...     loss_of: nondiff.WindowLoss
    ...     def draw(self, progress, *, key):
    ...         bits = jax.random.bernoulli(key, 0.5, (64, 4)).astype(int)
    ...         return nondiff.Sequences(bits, jnp.roll(bits, 3, 1), jnp.zeros(bits.shape).at[:, 3].set(1.0))
    >>> def step(params, h, bit):
    ...     h = jnp.tanh(h @ params["h"] + params["x"][bit])
    ...     return h, h @ params["y"]
    >>> start = {"h": jnp.eye(8), "x": jnp.eye(2, 8), "y": jnp.zeros((8, 2))}
    >>> like = jax.eval_shape(lambda: First(None).draw((), key=jax.random.key(0)))
    >>> unroll = Unroll(step, start, jnp.zeros(8), nondiff.SyntheticGradient(), window=2, ahead=4, like=like)
    >>> problem = First(unroll.loss(optax.softmax_cross_entropy_with_integer_labels))
    >>> trainer = nondiff.Backprop(unroll.optimizer(optax.adam(3e-3)))
    >>> result = nondiff.fit(problem, trainer, steps=600, key=jax.random.key(0), log_every=1)
    >>> result.history[-1]["loss"] < 0.1
    True
    """

    step: Callable[[Any, Any, Any], tuple[Any, Any]]
    params: Any
    state: Array
    signal: AbstractSignal | None = None
    window: int = dataclasses.field(kw_only=True)
    ahead: int = dataclasses.field(default=0, kw_only=True)
    like: Sequences | None = dataclasses.field(default=None, kw_only=True)
    auxiliary: float | int = dataclasses.field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        check_count("Unroll", "window", self.window)
        check_count("Unroll", "ahead", self.ahead, least=0)
        check_number("Unroll", "auxiliary", self.auxiliary)
        if not (hasattr(self.state, "dtype") and jnp.issubdtype(self.state.dtype, jnp.floating)):
            raise ValueError(f"`Unroll(state={self.state!r})`: expected the state of one case, one array of floats.")
        if self.signal is None:
            if self.auxiliary:
                raise ValueError(
                    f"`Unroll(auxiliary={self.auxiliary})`: there is no signal to predict; give one, for example "
                    "`SyntheticGradient()`."
                )
            return
        if not isinstance(self.signal, AbstractSignal):
            raise ValueError(f"`Unroll(signal={self.signal!r})`: expected a signal, for example `SyntheticGradient()`.")
        if self.signal.waits != "nothing" or self.signal.fits not in ("nothing", "gradient") or self.signal.late:
            raise ValueError(
                f"`Unroll(signal={self.signal!r})`: it waits for what comes later, and that has not come when a window "
                "ends. Use `SyntheticGradient()`, or `LocalLoss()`."
            )
        if not isinstance(self.like, Sequences):
            kind = type(self.like).__name__
            raise ValueError(
                f"`Unroll(like=...)`: a signal needs `Sequences(inputs, answers, weights)` or their shapes, not {kind}."
            )
        object.__setattr__(self, "like", jtu.tree_map(shape_of, self.like))  # data would travel with the loss
        place, signal = self.place, self.signal
        try:
            jax.eval_shape(lambda key: signal.init(place, key=key), jr.key(0))
        except ValueError as error:
            if self.ahead:
                raise
            raise ValueError(
                f"`Unroll(ahead=0)`: the signal is told no answers; say of how many steps: {error}"
            ) from error

    @property
    def place(self) -> Place:
        """What the end of a window is like: a signal is told `Coming` as the answers."""
        window = jax.eval_shape(lambda sequences: self.cut(sequences, jnp.int32(0)), self.like)
        cases = window.weights.shape[0]
        state = jax.ShapeDtypeStruct((cases, *self.state.shape), self.state.dtype)
        inputs = jtu.tree_map(lambda x: jax.ShapeDtypeStruct((cases, *x.shape[2:]), x.dtype), window.inputs)
        params = jax.eval_shape(lambda: starting_point(self.params, jr.key(0)))
        try:
            after, outputs = jax.eval_shape(self.step, params, state, inputs)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"`Unroll`: `step` cannot take a state {state.dtype}{list(state.shape)} and inputs of one step: {error}"
            ) from error
        if (after.shape, after.dtype) != (state.shape, state.dtype):
            raise ValueError(
                f"`Unroll`: `step` takes a state {state.dtype}{list(state.shape)} and returns {after.dtype}"
                f"{list(after.shape)}; expected the same."
            )
        read = jtu.tree_map(lambda y: jax.ShapeDtypeStruct((cases, self.ahead, *y.shape[1:]), y.dtype), outputs)
        return Place("window", 0, state, read if self.ahead else None, window.after)

    def cut(self, sequences: Sequences, at: Int[Array, ""]) -> Window:
        """The window of these sequences that starts at this step."""
        return cut(sequences, at, self.window, self.ahead)

    def init(self, key: Key[Array, ""]) -> dict[str, Any]:
        """Where model and signal start."""
        k_model, k_signal = words.split(key)
        params = {"model": starting_point(self.params, k_model)}
        if self.signal is not None:
            params["signal"] = self.signal.init(self.place, key=k_signal)
        if self.auxiliary:
            params["predict"] = {"w": jnp.zeros((self.state.size,) * 2), "b": jnp.zeros(self.state.size)}
        return params

    def loss(self, compare: Compare, score: Compare | None = None) -> "WindowLoss":
        """`loss(params, window, key, state)`; `compare(outputs, answers)` of one step gives a loss for each case.
        `score` gives another number, such as 1 for a right answer, which `AbstractWindows.learned` is told.
        """
        return WindowLoss(self, compare, score)

    def optimizer(
        self, model: optax.GradientTransformation, signal: optax.GradientTransformation | None = None
    ) -> optax.GradientTransformation:
        """One that moves the model's leaves by `model`, and the signal's as the signal says, by `signal` (default: by
        the same). Clip the model's gradients alone: a prediction has to follow large ones, too.
        """
        if self.signal is None:
            return model
        whose: dict[Any, optax.GradientTransformation] = {
            "model": model,
            "signal": self.signal.optimizer(signal or model),
        }
        if self.auxiliary:
            whose["predict"] = model
        return optax.partition(whose, {name: name for name in whose})

    def run(self, params: Params, state: Array, inputs: Any) -> tuple[Array, Any]:
        """Inputs `[cases, steps, ...]` to the states after each step and the outputs, `[steps, cases, ...]`."""

        def one(h: Array, x: Any) -> tuple[Array, tuple[Array, Any]]:
            h, y = self.step(params, h, x)
            return h, (h, y)

        steps = _steps_first(inputs)
        return jax.lax.scan(one, state, steps, unroll=len(jtu.tree_leaves(steps)[0]) <= FEW)[1]


@dataclasses.dataclass(frozen=True, eq=False)
class WindowLoss:
    """`loss(params, window, key, state)`: a loss for each case; and, without derivative, the state for the next window,
    `[cases, ...]`, and the score. Losses and scores are weighted and summed over steps; the score is a mean over cases.
    No closure, so that workers find it by its name.
    """

    unroll: Unroll
    compare: Compare
    score: Compare | None = None

    def first(self, cases: int) -> Array:
        """The state before the first window, `[cases, ...]`."""
        return jnp.broadcast_to(self.unroll.state, (cases, *self.unroll.state.shape))

    def __call__(
        self, params: Any, window: Window, key: Key[Array, ""], state: Array
    ) -> tuple[Losses, tuple[Array, Float[Array, ""]]]:
        unroll, signal = self.unroll, self.unroll.signal
        k_before, k_after = words.split(key)
        begin = start = jnp.where(window.first, self.first(state.shape[0]), state)
        surrogate = jnp.zeros(state.shape[0], state.dtype)
        if signal is not None and signal.fits == "gradient":  # what comes back to the start is what it should have said
            own = _only(~window.first, params["signal"])
            begin, surrogate = tapped(signal, own, start, self._seen(window.before, k_before))
        states, outputs = unroll.run(params["model"], begin, window.inputs)
        losses, end = _summed(self.compare, outputs, window.answers, window.weights), states[-1]
        if signal is not None:
            own, here, seen = params["signal"], jax.lax.stop_gradient(end), self._seen(window.after, k_after)
            future = _unless(window.last, jax.lax.stop_gradient(signal.gradient(own, here, seen, None)))
            surrogate = surrogate + along(future, end)
            if signal.fits == "nothing":
                surrogate = surrogate + _unless(window.last, signal.fit(own, here, seen, None))
            if unroll.auxiliary:  # another pass: what comes back to the start is the derivative of true losses alone
                known = unroll.run(params["model"], start, window.inputs)[0]
                wrong = affine(params["predict"], known.reshape(*known.shape[:2], -1)) - future.reshape(len(future), -1)
                missed = jnp.mean(jnp.sum(wrong**2, -1), 0)
                surrogate = surrogate + unroll.auxiliary * _unless(window.last, missed)
        score = jnp.zeros(())
        if self.score is not None:
            score = jnp.mean(_summed(self.score, outputs, window.answers, window.weights))
        return with_gradient_of(losses, surrogate), jax.lax.stop_gradient((end, score))

    def _seen(self, coming: Any, key: Key[Array, ""]) -> Seen:
        return Seen(self.unroll.place, coming, _Coming(self.compare), key)


@dataclasses.dataclass(frozen=True)
class _Coming:
    """Outputs for all answers that are still to be given, `[cases, ahead, ...]`, to one loss per case."""

    compare: Compare

    def __call__(self, outputs: Any, coming: Coming) -> Losses:
        return _summed(self.compare, _steps_first(outputs), *coming)


def _summed(compare: Compare, outputs: Any, answers: Any, weights: Float[Array, "cases steps"]) -> Losses:
    """Over steps. Outputs are `[steps, cases, ...]`, answers `[cases, steps, ...]`."""
    return jnp.sum(jax.vmap(compare)(outputs, _steps_first(answers)).T * weights, 1)


def _steps_first(tree: Any) -> Any:
    return jtu.tree_map(lambda x: jnp.moveaxis(x, 1, 0), tree)


def _unless(condition: Array, x: Array) -> Array:
    return jnp.where(condition, 0.0, x)


def _only(condition: Array, params: Params) -> Params:
    """Leaves that have a derivative only where the condition holds."""
    return jtu.tree_map(lambda x: jnp.where(condition, x, jax.lax.stop_gradient(x)), params)
