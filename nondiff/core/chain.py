"""A hybrid model as a sequence of named stages: layers, which have a derivative, and decisions, which have none.

What follows a decision is what its estimator has to try out: the chain hands it over by itself, wherever the program
stands. It is the one structure of a model that a trainer may look into.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Array, Float, Key, PyTree

from nondiff.core import words
from nondiff.core.problem import Params
from nondiff.core.stage import AbstractStage
from nondiff.core.walk import BatchLoss, Compare, Part, Walk, outputs


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
    ...     "read": nondiff.Layer(lambda w, x: x @ w, jnp.zeros((3, 3))),
    ...     "sort": nondiff.Decision(order, via=nondiff.Auto()),
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
        keys = words.split(key, len(self.stages))
        return {name: stage.init(key=k) for (name, stage), k in zip(self.stages.items(), keys, strict=True)}

    def __call__(self, params: Mapping[str, Params], x: Any) -> Any:
        """The answers, `[cases, ...]`."""
        return outputs(self.parts, params, x)

    def loss(
        self, compare: Callable[[Any, Any], Float[Array, " cases"]]
    ) -> Callable[[Mapping[str, Params], PyTree, Key[Array, ""]], Float[Array, " cases"]]:
        """`loss(params, batch, key)` of batches `(inputs, answers)`.

        `compare(output, answers)` gives one float per case; for most estimators 0 where the answer is right.
        """
        return BatchLoss(self, compare)

    def walk(self, params: Mapping[str, Params], answers: Any, compare: Compare) -> Walk:
        """From inputs to losses with these parameters."""
        return Walk(self.parts, params, answers, compare)

    @property
    def parts(self) -> tuple[Part, ...]:
        return tuple(Part((name,), stage) for name, stage in self.stages.items())
