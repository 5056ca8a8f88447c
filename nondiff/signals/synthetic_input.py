"""Synthetic inputs (Jaderberg, Czarnecki, Osindero, Vinyals, Graves, Silver & Kavukcuoglu, 2017, "Decoupled Neural
Interfaces using Synthetic Gradients", section 2.2, https://arxiv.org/abs/1608.05343): a small network predicts a
module's inputs from those of the whole model, and is fitted to the activations that come from below afterwards.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import optax
from jaxtyping import Array, Float, Key

from nondiff.core.checks import check_number
from nondiff.core.inputs import AbstractInputs
from nondiff.core.problem import Params
from nondiff.signals.nets import AbstractNet, Hidden, check_net, flat


class SyntheticInput(AbstractInputs):
    """Predicted activations: a module learns as soon as the data are there.

    **Arguments:**

    - `net`: `Hidden(width)` (default, width 128) or `Linear()`; it starts by predicting 0.
    - `lr_ratio`: how much faster it learns than the modules, above 0 (default 1), by `Decoupled.optimizer`.

    It minimises the squared distance, a mean over units. The model's inputs have to be floats.

    **Raises** `ValueError` for numbers out of range, another `net`, and, where it is used, for inputs that are no
    floats.

    >>> import nondiff
    >>> x, answers = jnp.ones((5, 4)), jnp.zeros(5, int)
    >>> chain = nondiff.Chain({"low": nondiff.Dense(4, 3), "high": nondiff.Dense(3, 2)})
    >>> signal = nondiff.SyntheticGradient()
    >>> nondiff.Decoupled(chain, signal=signal, inputs=SyntheticInput(), like=(x, answers)).unlocks
    'forward'
    """

    net: AbstractNet = eqx.field(default=Hidden(), kw_only=True)
    lr_ratio: float | int = eqx.field(static=True, default=1.0, kw_only=True)

    def __check_init__(self) -> None:
        check_net("SyntheticInput", self.net)
        check_number("SyntheticInput", "lr_ratio", self.lr_ratio, positive=True, example=1.0)

    def optimizer(self, modules: optax.GradientTransformation) -> optax.GradientTransformation:
        return optax.chain(modules, optax.scale(self.lr_ratio))

    def init(self, name: str, x: Any, h: jax.ShapeDtypeStruct, *, key: Key[Array, ""]) -> Params:
        leaves = jtu.tree_leaves(x)
        if not leaves or not all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves):
            raise ValueError(
                f"`SyntheticInput` of `{name}`: it predicts from the model's inputs, and these are not floats. Give "
                "them as floats, such as one-hot, or cut the model behind the stage that takes them."
            )
        return self.net.init(sum(math.prod(leaf.shape[1:]) for leaf in leaves), math.prod(h.shape[1:]), key=key)

    def predict(self, own: Params, x: Any, h: jax.ShapeDtypeStruct) -> Array:
        return self.net(own, _rows(x)).reshape(-1, *h.shape[1:]).astype(h.dtype)

    def fit(self, own: Params, x: Any, h: Array) -> Float[Array, " cases"]:
        return jnp.mean((self.net(own, _rows(x)) - flat(h)) ** 2, -1)


def _rows(x: Any) -> Float[Array, "cases width"]:
    return jnp.concatenate([flat(leaf) for leaf in jtu.tree_leaves(x)], -1)
