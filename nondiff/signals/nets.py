"""Small networks that learn beside a module: what they predict starts at 0."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from nondiff.core import words
from nondiff.core.checks import check_count
from nondiff.core.layers import affine
from nondiff.core.problem import Params


class AbstractNet(eqx.Module):
    """`[cases, inputs]` to `[cases, outputs]`."""

    @abc.abstractmethod
    def init(self, inputs: int, outputs: int, *, key: Key[Array, ""]) -> Params:
        """Its leaves, with which it gives 0 everywhere."""

    @abc.abstractmethod
    def __call__(self, params: Any, x: Float[Array, "cases inputs"]) -> Float[Array, "cases outputs"]: ...


class Linear(AbstractNet):
    """`x @ w + b`, from 0.

    >>> net = Linear()
    >>> net(net.init(3, 2, key=jax.random.key(0)), jnp.ones((1, 3)))
    Array([[0., 0.]], dtype=float32)
    """

    def init(self, inputs: int, outputs: int, *, key: Key[Array, ""]) -> Params:
        del key
        return {"w": jnp.zeros((inputs, outputs)), "b": jnp.zeros(outputs)}

    def __call__(self, params: Any, x: Array) -> Array:
        return affine(params, x)


class Hidden(AbstractNet):
    """One hidden layer of rectified units, and a last layer from 0.

    **Arguments:**

    - `width`: of the hidden layer, 1 or more (default 128).
    """

    width: int = eqx.field(static=True, default=128)

    def __check_init__(self) -> None:
        check_count("Hidden", "width", self.width)

    def init(self, inputs: int, outputs: int, *, key: Key[Array, ""]) -> Params:
        w = words.normal(words.shaped(key, (inputs, self.width))).astype(float) * (2.0 / inputs) ** 0.5
        first = {"w": w, "b": jnp.zeros(self.width)}
        return {"first": first, "last": Linear().init(self.width, outputs, key=key)}

    def __call__(self, params: Any, x: Array) -> Array:
        return affine(params["last"], jax.nn.relu(affine(params["first"], x)))


def check_net(owner: str, net: Any) -> None:
    """**Raises** `ValueError` unless it is one."""
    if not isinstance(net, AbstractNet):
        raise ValueError(f"`{owner}(net={net!r})`: expected a network, for example `Linear()`.")


def flat(x: Array) -> Float[Array, "cases width"]:
    """A row a case."""
    return x.reshape(x.shape[0], -1)
