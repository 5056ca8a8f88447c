"""A genetic algorithm over mixed leaves (Holland, 1975, "Adaptation in Natural and Artificial Systems"; Eiben & Smith,
2015, "Introduction to Evolutionary Computing").

Floats, integers and categories vary by what their domain says is near. The archive of parents is shared, a child is
two indices and a key, and parents are evaluated again at every step: a loss of an older batch, or of other values of
the leaves that a sibling trainer owns, says nothing about this one.
"""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Int, Key, PyTree, UInt

from nondiff.core import words
from nondiff.core.checks import check_count, check_positive
from nondiff.core.domain import AbstractDomain, Real, is_domain
from nondiff.core.population import AbstractSampler, Population
from nondiff.core.problem import Params
from nondiff.core.query import Evaluation, Query, Wants
from nondiff.core.trainer import AbstractTrainer, Metrics, at
from nondiff.core.tree import none_like
from nondiff.core.words import below, chance
from nondiff.trainers.selection import AbstractSelection, Tournament, scores


class AbstractCrossover(eqx.Module):
    """Which coordinates of a leaf come from the second parent."""

    @abc.abstractmethod
    def mask(self, words: UInt[Array, "*leaf"]) -> Bool[Array, "*leaf"]:
        """True where the second parent is taken.

        `words` are random bits, one word of 32 for each coordinate; `nondiff.core.words` makes numbers of them.
        """


class UniformCrossover(AbstractCrossover):
    """Every coordinate on its own, with `probability` (default 0.5)."""

    probability: float = eqx.field(static=True, default=0.5)

    def __check_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"`UniformCrossover(probability={self.probability})`: expected a number from 0 to 1.")

    def mask(self, words: UInt[Array, "*leaf"]) -> Bool[Array, "*leaf"]:
        return chance(words, self.probability)


class OnePointCrossover(AbstractCrossover):
    """Everything after a random place along the first axis: what stands together stays together."""

    def mask(self, words: UInt[Array, "*leaf"]) -> Bool[Array, "*leaf"]:
        shape = words.shape
        if words.size == 0:
            return jnp.zeros(shape, bool)
        n = shape[0] if shape else 1
        after = jnp.arange(n) >= below(words.ravel()[0], n + 1)
        return jnp.broadcast_to(after.reshape(-1, *[1] * (len(shape) - 1)) if shape else after[0], shape)


class _Shared(eqx.Module):
    parents: Params  # [parents, ...]
    domain: PyTree
    rate: PyTree  # None: every coordinate mutates
    scale: PyTree


class _Each(eqx.Module):
    first: Int[Array, "*pop"]
    second: Int[Array, "*pop"]
    copy: Array  # an elite: the first parent as it is
    key: Key[Array, "*pop"]


class _Children(AbstractSampler):
    crossover: AbstractCrossover | None

    def draw(self, shared: _Shared, each: _Each) -> _Each:
        del shared
        return each

    def build(self, shared: _Shared, drawn: _Each) -> Params:

        def vary(archive: Array, domain: AbstractDomain, rate: Any, scale: Array, words: Array) -> Array:
            w_cross, w_where, w_step = words
            parent = child = archive[drawn.first]
            if self.crossover is not None:
                child = jnp.where(self.crossover.mask(w_cross), archive[drawn.second], child)
            moved = domain.neighbour(child, scale, words=w_step)
            if rate is not None:
                moved = jnp.where(chance(w_where, rate), moved, child)
            return jnp.where(drawn.copy, parent, moved)

        one = jtu.tree_map(lambda archive: archive[0], shared.parents)
        drawn_words = words.like(drawn.key, one, 3)
        return jtu.tree_map(vary, shared.parents, shared.domain, shared.rate, shared.scale, drawn_words)


class _State(eqx.Module):
    parents: Params  # the best first
    domain: PyTree
    step: Int[Array, ""]


class Genetic(AbstractTrainer[_State]):
    """Selection, crossover and mutation.

    **Arguments:**

    - `population`: evaluations a step: the elite and its children; at least 2.
    - `parents`: how many parents are kept (default: half of the population).
    - `elite`: how many of the best live on unchanged, evaluated again each step (default 1; fewer than `population`,
      at most `parents`).
    - `selection`: `Tournament(3)` (default), `Truncation()`, or one that looks at every case, `Lexicase()`.
    - `crossover`: `UniformCrossover()` (default), `OnePointCrossover()`, or `None` for mutation alone.
    - `rate`: probability that a coordinate mutates, a float or an `optax.Schedule`. Default `None`: every coordinate
      of a `Real` leaf, one expected coordinate of an `Integer` or `Categorical` leaf.
    - `scale`: size of a mutation: a share of the range for bounded leaves, an absolute number for unbounded ones
      (default 0.1). `Categorical` leaves ignore it.

    `rate` and `scale` may be dictionaries by the top-level name of the parameters: `scale={"gain": 0.01, "bias": 1.0}`.

    The first parents are the starting point itself and samples of the domain around it.

    **Raises** `ValueError` for counts that do not fit, rates or scales not above 0.

    >>> import jax, jax.numpy as jnp, nondiff
    >>> x0 = {"n": jnp.array(0), "kind": jnp.array(0)}
    >>> domain = {"n": nondiff.Integer(0, 100), "kind": nondiff.Categorical(5)}
    >>> loss = lambda p: jnp.abs(p["n"] - 37) + (p["kind"] != 3)
    >>> problem = nondiff.BlackBox(loss, x0, domain=domain)
    >>> result = nondiff.fit(problem, Genetic(population=32), steps=30, key=jax.random.key(0))
    >>> {name: int(value) for name, value in result.params.items()}
    {'kind': 3, 'n': 37}
    """

    population: int = eqx.field(static=True, kw_only=True)
    parents: int | None = eqx.field(static=True, kw_only=True, default=None)
    elite: int = eqx.field(static=True, kw_only=True, default=1)
    selection: AbstractSelection = eqx.field(kw_only=True, default=Tournament(3))
    crossover: AbstractCrossover | None = eqx.field(kw_only=True, default=UniformCrossover())
    rate: Any = eqx.field(kw_only=True, default=None)
    scale: Any = eqx.field(kw_only=True, default=0.1)
    traceable: ClassVar[bool] = True

    def __check_init__(self) -> None:
        check_count("Genetic", "population", self.population, least=2)
        if self.parents is not None:
            check_count("Genetic", "parents", self.parents)
            if self.parents > self.population:
                raise ValueError(
                    f"`Genetic(population={self.population}, parents={self.parents})`: "
                    "parents are chosen among the population; use at most as many."
                )
        check_count("Genetic", "elite", self.elite, least=0)
        if self.elite >= self.population or self.elite > self._parents:
            raise ValueError(
                f"`Genetic(population={self.population}, parents={self._parents}, elite={self.elite})`: "
                "the elite must be smaller than the population and at most the number of parents."
            )
        for name, value in (("rate", self.rate), ("scale", self.scale)):
            for part in value.values() if isinstance(value, dict) else [value]:
                if part is not None:
                    check_positive("Genetic", name, part)
                if name == "rate" and isinstance(part, int | float) and part > 1:
                    raise ValueError(f"`Genetic(rate={part})`: a probability is at most 1.")

    @property
    def _parents(self) -> int:
        return self.population // 2 if self.parents is None else self.parents

    def _scales(self, state: _State) -> PyTree:
        def one(path: Any, domain: AbstractDomain) -> Array:
            del domain
            return at(_by_name(self.scale, path, "scale"), state.step)

        return jtu.tree_map_with_path(one, state.domain, is_leaf=is_domain)

    def _rates(self, state: _State) -> PyTree:
        def one(path: Any, domain: AbstractDomain, archive: Array) -> Array | None:
            rate = _by_name(self.rate, path, "rate")
            if rate is not None:
                return at(rate, state.step)
            return None if isinstance(domain, Real) else at(1.0 / max(archive[0].size, 1), state.step)

        return jtu.tree_map_with_path(one, state.domain, state.parents, is_leaf=is_domain)

    def init(self, params: Params, domain: PyTree, *, key: Key[Array, ""]) -> _State:
        alone = _State(jtu.tree_map(lambda x: x[None], params), domain, jnp.zeros((), jnp.int32))

        def some(x: Array, d: AbstractDomain, scale: Array, drawn: Array) -> Array:
            more = jax.vmap(lambda words: d.sample(x, scale, words=words))(drawn)
            return jnp.concatenate([x[None], more])

        drawn = jax.vmap(lambda k: words.like(k, params))(words.split(key, self._parents - 1))
        parents = jtu.tree_map(some, params, domain, self._scales(alone), drawn)
        return _State(parents, domain, alone.step)

    def ask(self, state: _State, *, key: Key[Array, ""]) -> Query:
        k_parents, k_vary, k_evaluation = words.split(key, 3)
        n, mu = self.population, self._parents
        i = jnp.arange(n)
        elite = i < self.elite
        first, second = below(words.shaped(k_parents, (2, n)), mu)
        each = _Each(jnp.where(elite, i, first), second, elite, words.split(k_vary, n))
        shared = _Shared(state.parents, state.domain, self._rates(state), self._scales(state))
        keys = jnp.broadcast_to(k_evaluation, (n,))  # common random numbers: members are compared
        population = Population(shared, each, _Children(self.crossover))
        return Query(population, none_like(state.parents), keys, wants=Wants(cases=self.selection.by_case))

    def tell(self, state: _State, query: Query, answer: Evaluation, *, key: Key[Array, ""]) -> tuple[_State, Metrics]:
        losses = jnp.asarray(answer.ranked)
        best = jnp.argsort(losses, stable=True)[: max(self.elite, 1)]
        chosen = self.selection(scores(self.selection, answer), self._parents, key=key)
        # The best stand first: they are the elite, and `params`.
        chosen = jnp.concatenate([best, chosen])[: self._parents]
        return _State(query.population.take(chosen), state.domain, state.step + 1), {}

    def params(self, state: _State) -> Params:
        return jtu.tree_map(lambda x: x[0], state.parents)


def _by_name(value: Any, path: tuple[Any, ...], what: str) -> Any:
    if not isinstance(value, dict):
        return value
    top = getattr(path[0], "key", getattr(path[0], "name", None)) if path else None
    if top not in value:
        raise ValueError(f"`Genetic({what}={value})` has no entry for `{top}`; give one for each top-level name.")
    return value[top]
