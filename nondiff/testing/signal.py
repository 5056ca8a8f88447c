"""The law of signals, as a test."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax

from nondiff.core.chain import Chain
from nondiff.core.decoupled import Decoupled
from nondiff.core.layers import Dense
from nondiff.core.signal import AbstractSignal, Locked
from nondiff.core.stage import Layer


def check_signal(signal: AbstractSignal) -> None:
    """Does a signal keep the law, behind both hidden layers of a small network?

    - the value is the true loss, to the last bit, with and without a gradient;
    - the gradient in the last module is the true one;
    - every gradient is finite, and that of a sum of losses is that of their mean, times the cases: a signal is of a
      case's own loss;
    - what it says it unlocks: with `"update"`, the first module's gradient does not change with later modules, even if
      these give no numbers;
    - its own leaves get a gradient, if it has any.

    >>> import nondiff
    >>> check_signal(nondiff.SyntheticGradient())
    """
    x = jr.normal(jr.key(0), (12, 5))
    answers = jr.randint(jr.key(1), (12,), 0, 3)
    first, second = (Dense(5, 4), Dense(4, 6))
    chain = Chain(
        {
            "first": Layer(lambda p, x: jnp.tanh(first(p, x)), lambda key: first.init(key=key)),
            "second": Layer(lambda p, x: jnp.tanh(second(p, x)), lambda key: second.init(key=key)),
            "last": Dense(6, 3),
        }
    )
    model = Decoupled(chain, signal=signal, like=(x, answers))
    params = jtu.tree_map(lambda p: p + 0.1, model.init(jr.key(2)))  # predictions that start at 0 say nothing
    compare = optax.softmax_cross_entropy_with_integer_labels

    def losses(model: Decoupled, params: Any) -> Any:
        found = model.loss(compare)(params, (x, answers), jr.key(3))
        return found[0] if isinstance(found, tuple) else found  # beside what a late signal would remember

    def gradient(model: Decoupled, params: Any, total: Any = jnp.mean) -> tuple[Any, Any]:
        return jax.jit(jax.value_and_grad(lambda p: total(losses(model, p))))(params)

    locked = Decoupled(chain, signal=Locked(), like=(x, answers))
    true_value, truth = gradient(locked, {"stages": params["stages"], "signals": {"first": (), "second": ()}})
    value, found = gradient(model, params)
    np.testing.assert_array_equal(value, true_value, "asking for a gradient changed the value")
    alone = jax.jit(lambda p: jnp.mean(losses(model, p)))(params)
    np.testing.assert_array_equal(alone, true_value, "the value is not the true loss")
    _close(found["stages"]["last"], truth["stages"]["last"], "the last module's gradient is not the true one")
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in jtu.tree_leaves(found)), "a gradient is not finite"
    of_sum = gradient(model, params, jnp.sum)[1]
    _close(of_sum, jtu.tree_map(lambda g: 12 * g, found), "the gradient of a sum is not that of the mean, 12 times")
    assert signal.unlocks in ("nothing", "backward", "update"), f"{signal}: unlocks {signal.unlocks!r}"
    if signal.unlocks == "update":
        broken = jtu.tree_map(lambda p: jnp.full_like(p, jnp.nan), params["stages"]["last"])
        other = gradient(model, {**params, "stages": {**params["stages"], "last": broken}})[1]
        for here, there in zip(*(jtu.tree_leaves(g["stages"]["first"]) for g in (found, other)), strict=True):
            np.testing.assert_array_equal(here, there, "the first module waits for the last one")
    for name, own in found["signals"].items():
        leaves = jtu.tree_leaves(own)
        assert not leaves or any(bool(jnp.any(g != 0)) for g in leaves), f"its leaves behind `{name}` learn nothing"


def _close(found: Any, expected: Any, message: str) -> None:
    for one, other in zip(jtu.tree_leaves(found), jtu.tree_leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6, err_msg=message)
