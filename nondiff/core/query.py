"""What a trainer asks, and what it is told."""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Bool, Float, Key, PyTree

from nondiff.core.exact import namespace
from nondiff.core.population import Population
from nondiff.core.problem import Params
from nondiff.core.record import record
from nondiff.core.tree import is_none


class Wants(NamedTuple):
    """What an answer holds beside the losses; a trainer may want several at once, of the two gradients one."""

    cases: bool = False
    """The loss of every case, `[pop, cases]`."""
    gradient: bool = False
    """Every member's own gradient, on the float leaves of its population; a P x D array."""
    mean_gradient: bool = False
    """The gradient averaged over the members that did not fail; one D-vector whatever the population."""
    compute: Callable[[PyTree, PyTree, PyTree, Key[Array, ""]], PyTree] | None = None
    """A sub-step where the data are: `compute(shared, own, batch, key)`, arrays out, the same shapes for every member.
    `shared` is the population's, `own` what its sampler drew for the member. It is traced, and equal functions compile
    once, so it is a frozen record, not a `lambda` made anew."""


class Rows(NamedTuple):
    """Piece `number` of `of` of the batch, from 0, as `AbstractProblem.rows` cuts it."""

    number: int
    of: int


class Quadratic(eqx.Module):
    """`rho/2 |x - target|^2` on the leaves where `target` is not `None`; added where the loss is computed."""

    target: Params
    rho: Float[Array | np.ndarray, ""]

    def __call__(self, params: Params) -> Float[Array, ""]:
        def distance(t: Any, x: Any) -> Any:
            return None if t is None or x is None else jnp.sum((x - t) ** 2)

        terms = jtu.tree_leaves(jtu.tree_map(distance, self.target, params, is_leaf=is_none))
        return jnp.asarray(0.5 * self.rho) * sum(terms, jnp.zeros(()))


class AbstractWeighting(eqx.Module):
    """Losses to weights: how much each member counts in the weighted sums. A failed member has loss NaN or infinity."""

    @abc.abstractmethod
    def __call__(self, losses: Float[Array, " pop"]) -> Float[Array, " pop"]: ...


@record
class Query:
    """A question: the losses (and more) of these candidates."""

    population: Population
    others: Params
    """The leaves that other trainers own, at their present values; `None` where they are mine."""
    keys: Key[Array, " pop"]
    """Evaluation noise, part of the question: equal keys are common random numbers."""
    quadratic: tuple[Quadratic, ...] = ()
    weigh: AbstractWeighting | None = None
    """Asks for `Evaluation.sums`."""
    rows: Rows | None = eqx.field(static=True, default=None)
    """The part of the batch that the losses are of; all of it by default."""
    due: Bool[Array, ""] | None = None
    """Is it asked now? Default `None`: at every step. Where it is not, nothing is evaluated; its answer is `None`, or
    within a compiled step NaN for every member. An evaluator never sees it."""
    turns: tuple[tuple[int, int], ...] = eqx.field(static=True, default=())
    """Where `due` says whose turn it is: for each trainer whose parts take turns, the outermost first, how many levels
    of the tree of queries it stands above this query, and the number of the turn. Of one trainer's turns exactly one is
    due. Default: none, `due` depends on nothing else (`nondiff.core.turns`)."""
    wants: Wants = eqx.field(static=True, default=Wants())

    def __post_init__(self) -> None:
        if self.wants.gradient and self.wants.mean_gradient:
            raise ValueError("`Query(wants)`: ask for `gradient` or for `mean_gradient`, not for both.")
        if self.wants.compute is not None and self.quadratic:
            raise ValueError(
                "`Query(wants)`: sub-steps (`Wants.compute`) do not see the query's `quadratic`: "
                "a trainer that computes its own steps, such as `LayerwiseADMM`, cannot be pulled from outside."
            )

    def __len__(self) -> int:
        return self.keys.shape[0]

    def penalty(self, member: Params) -> Float[Array, ""]:
        """The sum of the quadratics at one member."""
        return penalty(self.quadratic, member)


def penalty(quadratic: tuple[Quadratic, ...], member: Params) -> Float[Array, ""]:
    return sum((q(member) for q in quadratic), jnp.zeros(()))


@record
class Evaluation:
    """The answer, in the same order."""

    loss: Float[Array | np.ndarray, "*pop"]
    """The problem's alone; NaN or infinity marks a failed evaluation. NumPy's, of 64 bits, if the members were."""
    penalty: Float[Array | np.ndarray, "*pop"]
    """Of the quadratics; zero without."""
    cases: Float[Array | np.ndarray, "*pop cases"] | None = None
    gradient: Params | None = None
    """Of `total`: `[pop, ...]` leaves for `Wants.gradient`, `[...]` for `Wants.mean_gradient`; `None` on integers."""
    sums: Any = None
    """The sampler's `sums`, if `Query.weigh` asks for them; the weights are `query.weigh(total)`."""
    rows: Float[Array | np.ndarray, "*pop"] | None = None
    """How many rows `loss` is a mean of, where `Query.rows` says which."""
    aux: PyTree = None
    computed: PyTree = None
    """What `Wants.compute` gave, `[pop, ...]` leaves."""

    @property
    def total(self) -> Float[Array | np.ndarray, "*pop"]:
        """What ranks and selections see."""
        return self.loss + self.penalty

    @property
    def ranked(self) -> Float[Array | np.ndarray, "*pop"]:
        """`total` with every failure at infinity, so that sorting puts it last."""
        here = namespace(self.total)
        return here.where(here.isfinite(self.total), self.total, here.inf)


def is_query(x: Any) -> bool:
    return isinstance(x, Query)


def is_answer(x: Any) -> bool:
    return isinstance(x, Evaluation)


def queries(tree: PyTree) -> list[Query]:
    """The queries of a step: one for a plain trainer, several for a combinator."""
    return jtu.tree_leaves(tree, is_leaf=is_query)


def evaluations(tree: PyTree) -> int:
    """How many its queries ask for together."""
    return sum(map(len, queries(tree)))


def answers(tree: PyTree) -> list[Evaluation]:
    """Their answers, in the same order."""
    return jtu.tree_leaves(tree, is_leaf=is_answer)


def answered(query: PyTree, answer: PyTree) -> list[tuple[Query, Evaluation]]:
    """Each query with its answer, but for those that have none since they were not due."""
    asked, treedef = jtu.tree_flatten(query, is_leaf=is_query)
    pairs = zip(asked, treedef.flatten_up_to(answer), strict=True)
    return [(q, a) for q, a in pairs if a is not None]


def check_always_due(owner: str, query: Query) -> None:
    """**Raises** `ValueError` for a query that is not asked at every step, inside a combinator that needs answers."""
    if query.due is not None:
        raise ValueError(
            f"`{owner}(Alternate(...))`: it needs every answer at every step, and parts that take turns do not give "
            f"them. Put it inside: `Alternate({{'one': {owner}(...), 'two': ...}}, ...)`."
        )


def map_queries(fn: Any, tree: PyTree) -> PyTree:
    return jtu.tree_map(fn, tree, is_leaf=is_query)


def member_shape(query: Query) -> Params:
    """One member of the query's population, as shapes and dtypes."""
    return jax.eval_shape(lambda q: jtu.tree_map(lambda x: x[0], q.population.take(jnp.arange(1))), query)
