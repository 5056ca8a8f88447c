"""The stages of a `Chain`: layers, which have a derivative, and decisions, which have none."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.tree_util as jtu
from jaxtyping import Array, Key

from nondiff.core.estimator import AbstractEstimator, Decide, argmax
from nondiff.core.problem import Params, starting_point


class AbstractStage(eqx.Module):
    """One part of a `Chain`: `Layer`, `Decision`, or the `Dense` and `Activation` that can be solved for."""

    @abc.abstractmethod
    def init(self, *, key: Key[Array, ""]) -> Params:
        """Its trained leaves."""

    @abc.abstractmethod
    def __call__(self, params: Params, x: Any) -> Any:
        """`[cases, ...]` to `[cases, ...]`, as it is used after training."""

    @property
    def decision(self) -> "Decision | None":
        """What an estimator has to cross here; `None` where JAX differentiates."""
        return None


class Layer(AbstractStage):
    """A stage with a derivative: `apply(params, x)`, for all cases of a batch at once.

    **Arguments:**

    - `apply`: takes the stage's own parameters and what the stage before it gave.
    - `params`: where they start, arrays only, or a function of a key that makes them. Default `()`: there are none.

    >>> import jax, jax.numpy as jnp
    >>> Layer(lambda weights, x: x @ weights, jnp.ones((3, 2)))(jnp.ones((3, 2)), jnp.ones((1, 3)))
    Array([[3., 3.]], dtype=float32)
    """

    apply: Callable[[Any, Any], Any] = eqx.field(static=True)
    params: Any = ()

    def __check_init__(self) -> None:
        if not callable(self.apply):
            raise ValueError(f"`Layer(apply={self.apply!r})`: expected a function of parameters and activations.")

    def init(self, *, key: Key[Array, ""]) -> Params:
        return starting_point(self.params, key)

    def __call__(self, params: Params, x: Any) -> Any:
        return self.apply(params, x)


class Decision(AbstractStage):
    """A stage without: a hard decision, and a program that takes it.

    **Arguments:**

    - `program`: takes decisions, `[cases, *parts]`, and returns what the next stage takes, `[cases, ...]`: an `Opaque`,
      or a function of JAX.
    - `via`: the estimator. One with leaves of its own (`Surrogate`) has them in `params`, under the stage's name.
    - `decide`: activations to decisions (default: the largest of the last axis).
    """

    program: Callable[[Any], Any] = eqx.field(static=True)
    via: AbstractEstimator = eqx.field(kw_only=True)
    decide: Decide = eqx.field(kw_only=True, static=True, default=argmax)

    def __check_init__(self) -> None:
        if not callable(self.program):
            raise ValueError(f"`Decision(program={self.program!r})`: expected a function, for example `Opaque(fn)`.")
        if not isinstance(self.via, AbstractEstimator):
            raise ValueError(f"`Decision(via={self.via!r})`: expected an estimator, for example `Auto()`.")

    def init(self, *, key: Key[Array, ""]) -> Params:
        del key
        own = eqx.filter(self.via, eqx.is_inexact_array)
        return own if jtu.tree_leaves(own) else ()

    def __call__(self, params: Params, x: Any) -> Any:
        del params
        return self.program(self.decide(x))

    @property
    def decision(self) -> "Decision":
        return self

    def estimator(self, params: Params, answers: Any) -> AbstractEstimator:
        """`via` with its leaves as they are trained, told the answers of the batch."""
        via = eqx.combine(params, self.via) if jtu.tree_leaves(params) else self.via
        return via.given(answers)
