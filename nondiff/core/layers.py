"""Two stages of a `Chain` that a trainer may look into: a linear map, and an activation that says how to undo it.

A layer that is only a function can be called and differentiated. `LayerwiseADMM` does neither: it solves for the
weights, and asks the activation for the input that fits an output best, which needs no derivative.
"""

import abc
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from nondiff.core import words
from nondiff.core.checks import check_count
from nondiff.core.estimator import AbstractEstimator
from nondiff.core.problem import Params
from nondiff.core.stage import AbstractStage, Decision


class AbstractActivation(eqx.Module):
    """A function of the last axis, and the exact solution of one small problem about it."""

    @abc.abstractmethod
    def __call__(self, z: Float[Array, "*cases width"]) -> Float[Array, "*cases width"]:
        """Pre-activations to activations, `h(z)`."""

    @abc.abstractmethod
    def solve(
        self,
        a: Float[Array, "*cases width"],
        m: Float[Array, "*cases width"],
        gamma: Float[Array, ""],
        beta: Float[Array, ""],
    ) -> Float[Array, "*cases width"]:
        """`argmin_z gamma/2 |a - h(z)|^2 + beta/2 |z - m|^2`, for weights above 0."""


def affine(params: Any, x: Any) -> Any:
    """`x @ w + b`, in one form everywhere, so that a product that two ask for is computed once."""
    return x @ params["w"] + params["b"]


class Dense(AbstractStage):
    """`x @ w + b`, from `{"w": [inputs, outputs], "b": [outputs]}`.

    **Arguments:**

    - `inputs`, `outputs`: widths, 1 or more.

    Weights start normal with variance `2 / inputs` (He, Zhang, Ren & Sun, 2015, "Delving Deep into Rectifiers",
    https://arxiv.org/abs/1502.01852), biases at 0.

    **Raises** `ValueError` for a width below 1.

    >>> import jax
    >>> layer = Dense(3, 2)
    >>> layer({"w": jnp.ones((3, 2)), "b": jnp.array([0.0, 1.0])}, jnp.ones((1, 3)))
    Array([[3., 4.]], dtype=float32)
    """

    inputs: int = eqx.field(static=True)
    outputs: int = eqx.field(static=True)

    def __check_init__(self) -> None:
        check_count("Dense", "inputs", self.inputs)
        check_count("Dense", "outputs", self.outputs)

    def init(self, *, key: Key[Array, ""]) -> Params:
        w = words.normal(words.shaped(key, (self.inputs, self.outputs))).astype(float) * (2.0 / self.inputs) ** 0.5
        return {"w": w, "b": jnp.zeros(self.outputs)}

    def __call__(self, params: Params, x: Any) -> Any:
        return affine(params, x)


class Activation(AbstractStage):
    """What follows a `Dense`, without parameters.

    **Arguments:**

    - `function`: an `AbstractActivation`: `Relu()`, `Step()`, `Sign()`, `HardThreshold()`, `KWinners(k)`.
    - `via`: the estimator through which `Backprop` learns what comes before it, where the function has no derivative
      or one that is 0: `StraightThrough(Clipped())`. Default `None`: JAX's own derivative. `LayerwiseADMM` needs none.

    **Raises** `ValueError` for another function, and for a `via` that is no estimator.

    >>> import nondiff
    >>> Activation(nondiff.Step())((), jnp.array([[-0.5, 2.0]]))
    Array([[0., 1.]], dtype=float32)
    """

    function: AbstractActivation
    via: AbstractEstimator | None = eqx.field(default=None, kw_only=True)

    def __check_init__(self) -> None:
        if not isinstance(self.function, AbstractActivation):
            raise ValueError(
                f"`Activation({self.function!r})`: expected an `AbstractActivation`, for example `Relu()`."
            )
        if not (self.via is None or isinstance(self.via, AbstractEstimator)):
            raise ValueError(f"`Activation(via={self.via!r})`: expected an estimator, for example `StraightThrough()`.")

    def init(self, *, key: Key[Array, ""]) -> Params:
        return () if self.decision is None else self.decision.init(key=key)

    def __call__(self, params: Params, x: Any) -> Any:
        del params
        return self.function(x)

    @property
    def decision(self) -> Decision | None:
        return None if self.via is None else Decision(_same, via=self.via, decide=self.function)


def _same(x: Any) -> Any:
    return x
