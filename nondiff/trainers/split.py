"""These leaves by one trainer, those by another: hybrid training as a combinator.

All parts ask in the same step and are answered together, each seeing the others' leaves as they were at its start.
Three examples:
- a network by `Backprop` through an estimator, the affine head behind the program by `OpenES`;
- options of an architecture by `Genetic`, the weights by `Backprop`;
- an encoder by one optimizer, a decoder by another.
"""

from typing import Any

from jaxtyping import Array, Key, PyTree

from nondiff.core import calls
from nondiff.core.problem import Params
from nondiff.core.query import Evaluation, Query
from nondiff.core.trainer import AbstractTrainer, Metrics
from nondiff.trainers import parts


class Split(AbstractTrainer[parts.States]):
    """One trainer for each label.

    **Arguments:**

    - `trainers`: a dictionary of trainers; any of them may itself be a combinator.
    - `labels`: a tree of their names, a prefix of the parameters: `{"net": "gradient", "head": "search"}` labels
      every leaf below `net` at once. Inside another `Split`, names that hold none of its leaves may be left out.

    **Raises** `ValueError`, when training starts, if a label has no trainer, a trainer no label, or `labels` is not
    such a prefix; the message shows both sides.

    >>> import jax, jax.numpy as jnp, nondiff, optax
    >>> problem = nondiff.BlackBox(lambda p: (p["x"] - 1.0) ** 2 + jnp.abs(p["n"] - 5), {"x": 0.0, "n": 0},
    ...                            domain={"x": nondiff.Real(), "n": nondiff.Integer(0, 9)})
    >>> trainer = Split({"slope": nondiff.Backprop(optax.adam(0.1)), "search": nondiff.Genetic(population=8)},
    ...                 {"x": "slope", "n": "search"})
    >>> result = nondiff.fit(problem, trainer, steps=150, key=jax.random.key(0))
    >>> float(result.params["x"].round(1)), int(result.params["n"])
    (1.0, 5)
    """

    trainers: dict[str, AbstractTrainer]
    labels: PyTree

    def __check_init__(self) -> None:
        parts.check_parts("Split", self.trainers, self.labels)

    @property
    def traceable(self) -> bool:
        return parts.traceable(self.trainers)

    def init(self, params: Params, domain: PyTree, *, key: Key[Array, ""]) -> parts.States:
        return parts.begin(self.trainers, self.labels, params, domain, key)

    def ask(self, state: parts.States, *, key: Key[Array, ""]) -> dict[str, PyTree[Query]]:
        return parts.ask(self.trainers, state, key)

    def tell(
        self, state: parts.States, query: PyTree[Query], answer: PyTree[Evaluation], *, key: Key[Array, ""]
    ) -> tuple[parts.States, Metrics]:
        new, metrics = {}, {}
        for name, k in parts.keys_of(self.trainers, key).items():
            new[name], metrics[name] = calls.tell(self.trainers[name], state[name], query[name], answer[name], k)
        return new, metrics

    def params(self, state: parts.States) -> Params:
        return parts.joined(self.trainers, state)

    @property
    def endings(self) -> tuple[str, ...]:
        return parts.ENDINGS

    def ended(self, state: parts.States) -> Any:
        return parts.ended(self.trainers, state)
