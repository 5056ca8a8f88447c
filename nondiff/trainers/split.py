"""These leaves by one trainer, those by another: hybrid training as a combinator.

All parts ask in the same step and are answered together, each seeing the others' leaves as they were at its start.
Three examples:
- a network by `Backprop` through an estimator, the affine head behind the program by `OpenES`;
- the tokens of a program by `Genetic`, its constants by `Backprop`;
- an encoder by one optimizer, a decoder by another.
"""

import dataclasses
import math
from typing import Any

import equinox as eqx
import jax.random as jr
import jax.tree_util as jtu
from jaxtyping import Array, Key, PyTree

from nondiff.core import calls
from nondiff.core.problem import Params
from nondiff.core.query import Evaluation, Query, map_queries
from nondiff.core.trainer import AbstractTrainer, Metrics, check_trainers
from nondiff.core.tree import check_labels, label_leaves

_State = dict[str, Any]


class Split(AbstractTrainer[_State]):
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
        check_trainers("Split", *self.trainers.values())
        taken = {"loss", "best", "failed", "evaluations", "lost"} & set(self.trainers)
        if taken:
            raise ValueError(f"`Split`: {sorted(taken)} are metrics of every step; call that part something else.")
        check_labels("Split", self.labels, self.trainers, what="trainers")

    @property
    def traceable(self) -> bool:
        return all(trainer.traceable for trainer in self.trainers.values())

    def init(self, params: Params, domain: PyTree, *, key: Key[Array, ""]) -> _State:
        labels = label_leaves(self.labels, params)
        state = {}
        for name, k in self._keys(key).items():

            def mine(label: str, x: Any, name: str = name) -> Any:
                return x if label == name else None

            own_domain = jtu.tree_map(mine, labels, domain)
            state[name] = calls.init(self.trainers[name], jtu.tree_map(mine, labels, params), own_domain, k)
        return state

    def _keys(self, key: Key[Array, ""]) -> dict[str, Key[Array, ""]]:
        return dict(zip(sorted(self.trainers), jr.split(key, len(self.trainers)), strict=True))

    def ask(self, state: _State, *, key: Key[Array, ""]) -> dict[str, PyTree[Query]]:
        now = {name: self.trainers[name].params(state[name]) for name in state}
        query = {}
        for name, k in self._keys(key).items():
            siblings = [now[other] for other in now if other != name]

            def with_siblings(q: Query, siblings: list[Params] = siblings) -> Query:
                return dataclasses.replace(q, others=eqx.combine(q.others, *siblings))

            query[name] = map_queries(with_siblings, calls.ask(self.trainers[name], state[name], k))
        return query

    def tell(
        self, state: _State, query: PyTree[Query], answer: PyTree[Evaluation], *, key: Key[Array, ""]
    ) -> tuple[_State, Metrics]:
        new, metrics = {}, {}
        for name, k in self._keys(key).items():
            new[name], metrics[name] = calls.tell(self.trainers[name], state[name], query[name], answer[name], k)
        return new, metrics

    def params(self, state: _State) -> Params:
        return eqx.combine(*[self.trainers[name].params(state[name]) for name in sorted(state)])

    @property
    def endings(self) -> tuple[str, ...]:
        return ("the trainer of every part has come to its end",)

    def ended(self, state: _State) -> Any:
        return math.prod((self.trainers[name].ended(state[name]) != 0) * 1 for name in sorted(state))
