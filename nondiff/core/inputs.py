"""The contract of predicted inputs: a module that has them does not wait for those before it."""

import abc
from typing import Any

import equinox as eqx
import jax
import optax
from jaxtyping import Array, Key

from nondiff.core.problem import Params
from nondiff.core.signal import Losses


class AbstractInputs(eqx.Module):
    """What stands for the activations that would come from below."""

    def optimizer(self, modules: optax.GradientTransformation) -> optax.GradientTransformation:
        """What moves its leaves (`Decoupled.optimizer`). Default: what moves the modules."""
        return modules

    @abc.abstractmethod
    def init(self, name: str, x: Any, h: jax.ShapeDtypeStruct, *, key: Key[Array, ""]) -> Params:
        """Its leaves for a module, by the shapes of the whole model's inputs and of the module's own. **Raises**
        `ValueError` if they cannot be predicted there.
        """

    @abc.abstractmethod
    def predict(self, own: Params, x: Any, h: jax.ShapeDtypeStruct) -> Array:
        """The module's inputs, `[cases, ...]`, of the shape of `h` but for the number of cases."""

    @abc.abstractmethod
    def fit(self, own: Params, x: Any, h: Array) -> Losses:
        """What its leaves minimise, a number per case; `h` is what has come from below."""
