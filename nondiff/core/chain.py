"""A hybrid model as a sequence of named stages: layers, which have a derivative, and decisions, which have none.

What follows a decision is what its estimator has to try out: the chain hands it over by itself, wherever the program
stands. It is the one structure of a model that a trainer may look into.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax.random as jr
import jax.tree_util as jtu
from jaxtyping import Array, Float, Key, PyTree

from nondiff.core.estimator import AbstractEstimator, Decide, argmax
from nondiff.core.problem import Params, starting_point
from nondiff.core.through import through


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


@dataclasses.dataclass(frozen=True, eq=False)  # no pytree: `chain.init` is to be a function, not a tree of arrays
class Chain:
    """Named stages, one after the other.

    **Arguments:**

    - `stages`: name to `Layer`, `Decision`, `Dense` or `Activation`, in their order. The names are those of the
      parameters, for `Split`.

    `chain(params, x)` is what the model answers, `chain.loss(compare)` a loss for `Supervised`, in which every decision
    has its estimator, and `chain.init` makes the parameters, `{name: ...}`.

    **Raises** `ValueError` for no stages, and for what is no stage.

    >>> import jax, jax.numpy as jnp, jax.random as jr, nondiff, numpy as np, optax
    >>> order = nondiff.Opaque(np.sort, jax.ShapeDtypeStruct((2,), jnp.int32))
    >>> chain = Chain({
    ...     "read": Layer(lambda w, x: x @ w, jnp.zeros((3, 3))),
    ...     "sort": Decision(order, via=nondiff.Auto()),
    ... })
    >>> digits = jr.randint(jr.key(0), (64, 2), 0, 3)
    >>> data = jax.nn.one_hot(digits, 3), jnp.sort(digits)
    >>> loss = chain.loss(lambda output, answers: jnp.any(output != answers, -1).astype(float))
    >>> problem = nondiff.Supervised(loss, data, params=chain.init)
    >>> result = nondiff.fit(problem, nondiff.Backprop(optax.adam(0.1)), steps=100, key=jr.key(1))
    >>> bool((chain(result.params, data[0]) == data[1]).all())
    True
    """

    stages: Mapping[str, AbstractStage]

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("`Chain({})`: expected at least one stage.")
        for name, stage in self.stages.items():
            if not isinstance(name, str) or not isinstance(stage, AbstractStage):
                raise ValueError(f"`Chain({{{name!r}: {stage!r}}})`: expected a name and a `Layer` or a `Decision`.")

    def init(self, key: Key[Array, ""]) -> dict[str, Params]:
        """Where every stage's parameters start; of its own stage under its name."""
        keys = jr.split(key, len(self.stages))
        return {name: stage.init(key=k) for (name, stage), k in zip(self.stages.items(), keys, strict=True)}

    def __call__(self, params: Mapping[str, Params], x: Any) -> Any:
        """The answers, `[cases, ...]`."""
        for name, stage in self.stages.items():
            x = stage(params[name], x)
        return x

    def loss(
        self, compare: Callable[[Any, Any], Float[Array, " cases"]]
    ) -> Callable[[Mapping[str, Params], PyTree, Key[Array, ""]], Float[Array, " cases"]]:
        """`loss(params, batch, key)` of batches `(inputs, answers)`.

        `compare(output, answers)` gives one float per case; for most estimators 0 where the answer is right.
        """
        return _Loss(self, compare)

    def _rest(
        self, names: list[str], params: Mapping[str, Params], x: Any, answers: Any, key: Key[Array, ""], compare: Any
    ) -> Float[Array, " cases"]:
        """The losses, from the activations before the first of these stages."""
        for i, name in enumerate(names):
            stage = self.stages[name]
            here = stage.decision
            if here is not None:
                k_here, k_rest = jr.split(key)
                via = here.estimator(params[name], answers)

                def rest(decisions: Any, stage: Decision = here, later: list[str] = names[i + 1 :], k: Any = k_rest):
                    return self._rest(later, params, stage.program(decisions), answers, k, compare)

                return through(rest, x, via=via, key=k_here, decide=here.decide)
            x = stage(params[name], x)
        return compare(x, answers)


@dataclasses.dataclass(frozen=True, eq=False)
class _Loss:
    """No closure, so that workers find it by its name."""

    chain: Chain
    compare: Callable[[Any, Any], Float[Array, " cases"]]

    def __call__(self, params: Mapping[str, Params], batch: PyTree, key: Key[Array, ""]) -> Float[Array, " cases"]:
        x, answers = batch
        return self.chain._rest(list(self.chain.stages), params, x, answers, key, self.compare)
