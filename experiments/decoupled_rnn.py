"""How long a sequence a recurrent network learns to copy, when it is trained through a few steps at a time.

    nondiff run experiments/decoupled_rnn.py
    nondiff run experiments/decoupled_rnn.py --signal none
    nondiff run experiments/decoupled_rnn.py --window 2 --repeats 3

Symbols come in, then an end mark, then blanks, at which the symbols are to be written, `repeats` times over. A gated
recurrent unit sees windows of a few steps, and learns after each. `none` is truncated backpropagation, for which
nothing comes back over a window's end. `synthetic` has a predicted gradient there, from the state and the symbols that
are still to be written; `unconditioned`, from the state alone; `local`, that of a linear reader of these symbols.
Sequences grow by a symbol whenever nineteen of twenty are right, by a moving average; the report has how many symbols
were solved at last.

Results by window: docs/decoupled.md.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import jax.random as jr
import optax

import nondiff as nd

SYMBOLS, MOST = 4, 24
"""Kinds of symbols, and symbols of the longest sequence."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What can be chosen."""

    signal: Literal["synthetic", "unconditioned", "local", "none"] = "synthetic"
    """What comes back from the future."""
    window: int = 4
    """Steps through which gradients go."""
    repeats: int = 1
    """How often the symbols are to be written."""
    units: int = 64
    """Of the recurrent network."""
    hidden: int = 256
    """Units of the network that predicts."""
    auxiliary: float = 0.0
    """How much it counts that states predict the next synthetic gradient."""
    learning_rate: float = 1e-3
    """Of Adam."""
    cases: int = 64
    """Sequences at once."""
    updates: int = 40_000
    """A window each."""


class Copy(nd.AbstractWindows):
    """Sequences that grow."""

    loss_of: nd.WindowLoss
    config: Config

    def start(self) -> Any:
        """Symbols, and the moving average of what was right."""
        return jnp.int32(1), jnp.zeros(())

    def learned(self, progress: Any, score: Any) -> Any:
        length, right = progress
        right = 0.9 * right + 0.1 * score / (length * self.config.repeats)
        more = (right > 0.95) & (length < MOST)
        return length + more, jnp.where(more, 0.0, right)

    def draw(self, progress: Any, *, key: Any) -> nd.Sequences:
        return sequences(progress[0], self.config, key)


def sequences(length: Any, config: Config, key: Any) -> nd.Sequences:
    """Symbols, the mark, blanks; the answers stand at the blanks."""
    time = jnp.arange((config.repeats + 1) * MOST + 1)
    symbols = jr.randint(key, (config.cases, MOST), 0, SYMBOLS)
    inputs = jnp.where(time < length, symbols[:, time % MOST], jnp.where(time == length, SYMBOLS, SYMBOLS + 1))
    written = (time > length) & (time <= (config.repeats + 1) * length)
    answers = symbols[:, jnp.where(written, (time - length - 1) % length, 0)]
    return nd.Sequences(inputs, answers, jnp.broadcast_to(written, answers.shape).astype(jnp.float32))


def gru(units: int) -> tuple[Any, Any]:
    """Step and parameters of a gated recurrent unit with a linear read-out (Cho et al., 2014)."""
    inputs = SYMBOLS + 2

    def start(key: Any) -> Any:
        k_x, k_h, k_y = jr.split(key, 3)
        return {
            "x": jr.normal(k_x, (inputs, 3 * units)) / inputs**0.5,
            "h": jr.normal(k_h, (units, 3 * units)) / units**0.5,
            "b": jnp.zeros(3 * units),
            "y": {"w": jr.normal(k_y, (units, SYMBOLS)) / units**0.5, "b": jnp.zeros(SYMBOLS)},
        }

    def step(params: Any, h: Any, x: Any) -> tuple[Any, Any]:
        a = jnp.split(params["x"][x] + params["b"], 3, -1)
        c = jnp.split(h @ params["h"], 3, -1)
        reset, update = jax.nn.sigmoid(a[0] + c[0]), jax.nn.sigmoid(a[1] + c[1])
        h = (1 - update) * jnp.tanh(a[2] + reset * c[2]) + update * h
        return h, h @ params["y"]["w"] + params["y"]["b"]

    return step, start


def right(outputs: Any, answers: Any) -> Any:
    return (jnp.argmax(outputs, -1) == answers).astype(jnp.float32)


def make(config: Config) -> nd.Experiment:
    like = jax.eval_shape(lambda key: sequences(1, config, key), jr.key(0))
    net = nd.Hidden(config.hidden)
    signal = {
        "synthetic": nd.SyntheticGradient(net=net, lr_ratio=1),
        "unconditioned": nd.SyntheticGradient(net=net, lr_ratio=1, conditioned=False),
        "local": nd.LocalLoss(),
        "none": None,
    }[config.signal]
    step, params = gru(config.units)
    unroll = nd.Unroll(
        step, params, jnp.zeros(config.units), signal, window=config.window, like=like, auxiliary=config.auxiliary,
        ahead=like.weights.shape[1] if config.signal in ("synthetic", "local") else 0,
    )  # fmt: skip
    problem = Copy(unroll.loss(optax.softmax_cross_entropy_with_integer_labels, right), config)
    adam = optax.adam(config.learning_rate)
    trainer = nd.Backprop(unroll.optimizer(optax.chain(optax.clip_by_global_norm(1.0), adam), adam))

    def solved(moment: nd.Moment) -> dict[str, float]:
        return {"solved": float(moment.state.problem.progress[0]) - 1}

    def report(result: nd.Result) -> dict[str, float]:
        return {"solved": result.history[-1]["solved"], "train_seconds": result.seconds}

    return nd.Experiment(
        problem, trainer, config.updates, metrics=[solved], report=report, log_every=max(config.updates // 10, 1)
    )
