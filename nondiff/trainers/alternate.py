"""Block coordinate descent (Tseng, 2001, "Convergence of a Block Coordinate Descent Method for Nondifferentiable
Minimization", https://doi.org/10.1023/A:1017501703105): the parts of a model learn in turns.

A part learns best while what it depends on stands still, and its turn costs what it alone costs. Two examples:
- a program is found for a network as it is, then the network is trained for the program that was found;
- an architecture by `Genetic`, then its weights by `Backprop`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Bool, Int, Key, PyTree

from nondiff.core import calls
from nondiff.core.checks import check_count
from nondiff.core.problem import Params
from nondiff.core.query import Evaluation, Query, answers, is_query
from nondiff.core.trainer import AbstractTrainer, Metrics
from nondiff.core.turns import ALONE
from nondiff.trainers import parts


class _State(eqx.Module):
    parts: parts.States
    step: Int[Array | np.ndarray, ""]


class Alternate(AbstractTrainer[_State]):
    """One trainer for each label, as in `Split`, but in turns: the others' leaves stand still, and what they would ask
    is not evaluated.

    **Arguments:**

    - `trainers`: a dictionary of trainers; any of them may itself be a combinator.
    - `labels`: a tree of their names, a prefix of the parameters, as in `Split`.
    - `steps`: how many steps each of them takes in its turn, 1 or more; in the order of this dictionary, round and
      round.

    In each step only the part whose turn it is is evaluated, and only that is counted; the metrics of the others are
    NaN. Where `step` is mapped over seeds by `jax.vmap`, all parts are computed, and one is used.

    **Raises** `ValueError` for names in `steps` other than those of `trainers`, for fewer than 1 step, for labels that
    do not match, and, when training starts, inside `Memetic`, `ADMM` or `Consensus`, which need all answers at every
    step.

    >>> import jax, jax.numpy as jnp, nondiff, optax
    >>> problem = nondiff.BlackBox(lambda p: (p["x"] - p["n"]) ** 2 / 2 + jnp.abs(p["n"] - 5), {"x": 0.0, "n": 0},
    ...                            domain={"x": nondiff.Real(), "n": nondiff.Integer(0, 9)})
    >>> trainer = Alternate({"search": nondiff.Genetic(population=8), "slope": nondiff.Backprop(optax.adam(0.3))},
    ...                     {"n": "search", "x": "slope"}, steps={"search": 2, "slope": 20})
    >>> result = nondiff.fit(problem, trainer, steps=220, key=jax.random.key(0))
    >>> float(result.params["x"].round(1)), int(result.params["n"]), result.evaluations  # 10 * (2 * 8 + 20 * 1)
    (5.0, 5, 360)
    """

    trainers: dict[str, AbstractTrainer]
    labels: PyTree
    steps: tuple[tuple[str, int], ...] = eqx.field(static=True)

    def __init__(self, trainers: dict[str, AbstractTrainer], labels: PyTree, *, steps: Mapping[str, int]):
        self.trainers, self.labels, self.steps = trainers, labels, tuple(steps.items())

    def __check_init__(self) -> None:
        parts.check_parts("Alternate", self.trainers, self.labels)
        if {name for name, _ in self.steps} != set(self.trainers):
            raise ValueError(
                f"`Alternate(steps={dict(self.steps)})`: expected a number of steps for each of the trainers, "
                f"{sorted(self.trainers)}."
            )
        for name, count in self.steps:
            check_count("Alternate", f"steps[{name!r}]", count)

    @property
    def traceable(self) -> bool:
        return parts.traceable(self.trainers)

    def init(self, params: Params, domain: PyTree, *, key: Key[Array, ""]) -> _State:
        return _State(parts.begin(self.trainers, self.labels, params, domain, key), self._counted(0))

    def ask(self, state: _State, *, key: Key[Array, ""]) -> dict[str, PyTree[Query]]:
        query = parts.ask(self.trainers, state.parts, key)

        names = [name for name, _ in self.steps]

        def in_turn(path: tuple[Any, ...], q: Query) -> Query:
            name = path[0].key
            due, turn = self._due(name, state), (len(path), names.index(name))
            if q.due is None:
                return dataclasses.replace(q, due=due, turns=(turn,))
            return dataclasses.replace(q, due=due & q.due, turns=(turn, *(q.turns or (ALONE,))))

        return jtu.tree_map_with_path(in_turn, query, is_leaf=is_query)

    def tell(
        self, state: _State, query: PyTree[Query], answer: PyTree[Evaluation], *, key: Key[Array, ""]
    ) -> tuple[_State, Metrics]:
        new, metrics = dict(state.parts), {}
        for name, k in parts.keys_of(self.trainers, key).items():
            if not answers(answer[name]):  # a far evaluator left it out
                continue

            def told(name: str = name, k: Any = k) -> tuple[Any, Metrics]:
                moved, found = calls.tell(self.trainers[name], state.parts[name], query[name], answer[name], k)
                return moved, jtu.tree_map(lambda x: jnp.asarray(x, float), found)

            def still(name: str = name, told: Any = told) -> tuple[Any, Metrics]:
                if not self.traceable:
                    return state.parts[name], {}
                return state.parts[name], jtu.tree_map(
                    lambda x: jnp.full(x.shape, jnp.nan, x.dtype), eqx.filter_eval_shape(told)[1]
                )

            new[name], metrics[name] = calls.either(self, self._due(name, state), told, still)
        return _State(new, self._counted(state.step + 1)), metrics

    def params(self, state: _State) -> Params:
        return parts.joined(self.trainers, state.parts)

    @property
    def endings(self) -> tuple[str, ...]:
        return parts.ENDINGS

    def ended(self, state: _State) -> Any:
        return parts.ended(self.trainers, state.parts)

    def _due(self, name: str, state: _State) -> Bool[Array, ""]:
        names, counts = zip(*self.steps, strict=True)
        first = sum(counts[: names.index(name)])
        place = jnp.asarray(state.step) % sum(counts)
        return (first <= place) & (place < first + counts[names.index(name)])

    def _counted(self, step: Any) -> Array | np.ndarray:
        return jnp.asarray(step, jnp.int32) if self.traceable else np.asarray(step, np.int32)
