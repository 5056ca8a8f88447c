"""Genetic programming (Koza, 1992, "Genetic Programming") of linear programs (Brameier & Banzhaf, 2007, "Linear Genetic
Programming"): lines that are kept, changed, added, left out and exchanged.

Selection may look at every case by itself, which is what finds programs: one that does some of the cases right, and
others not at all, is a step on the way.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Int, Key, PyTree

from nondiff.core import words
from nondiff.core.checks import check_count, check_positive, check_share
from nondiff.core.code import Code
from nondiff.core.domain import AbstractDomain, Real, is_domain
from nondiff.core.population import Points, Population
from nondiff.core.problem import Params
from nondiff.core.query import Evaluation, Query, Wants
from nondiff.core.trainer import AbstractTrainer, Metrics
from nondiff.core.tree import none_like, shape_of
from nondiff.trainers.selection import AbstractSelection, Lexicase, scores
from nondiff.trainers.variation import add_and_delete, change, splice


class _State(eqx.Module):
    members: Params  # [population, ...]; each island's best first
    best: Int[Array, ""]  # which of them is `params`
    domain: PyTree
    step: Int[Array, ""]


class GeneticProgramming(AbstractTrainer[_State]):
    """Selection among programs, and variation of their lines.

    **Arguments:**

    - `population`: programs, and evaluations a step; at least 2.
    - `selection`: `Lexicase()` (default), `DALex()` for many cases, `Tournament()`; of half of the population.
    - `crossover`: share of children with a stretch of lines from a second parent, in [0, 1] (default 0.5).
    - `change`: expected changed lines of a child, above 0 (default 1).
    - `add`: expected added lines of a child, and nearly as many are left out, above 0 (default 0.5).
    - `scale`: size of a step of constants: absolute, or a share of the range where that is bounded (default 0.1).
    - `seeds`: programs to start from, parameters with an axis of programs first, such as
      `jax.vmap(program.init)(keys)`; the population holds them besides the starting point and random ones.
    - `mutate`: a change of your own, `mutate(params, key) -> params`, applied to every child last, compiled with it.
    - `islands`: parts of the population that only know themselves (default 1), of equal size; `migrate_every` steps
      (default 10) the best of each also goes to the next one.

    The best program lives on: the one with the least loss, and of these the shortest. Leaves of other domains than
    `Code`, such as constants, vary by what is near; `Memetic` gives them their gradient.

    **Raises** `ValueError` for counts and rates out of range, and, when training starts, if no leaf's domain is `Code`,
    and for seeds that are none of the problem's programs or a `mutate` that changes shapes.

    >>> import jax, jax.numpy as jnp, nondiff
    >>> lines = ["v[a] = v[a] * v[b]", "v[a] = v[a] + v[b]"]
    >>> grow = nondiff.Instructions(lines, {"v": nondiff.Cells(["x", "1"])}, "v[0]")
    >>> program = nondiff.Program(grow, length=6)
    >>> x = jnp.arange(-4, 5)
    >>> loss = lambda p, batch, key: (program(p, batch) != batch**2 + batch + 1).astype(jnp.float32)
    >>> problem = nondiff.Supervised(loss, x, params=program.init, domain=program.domain)
    >>> result = nondiff.fit(problem, GeneticProgramming(population=128), steps=40, key=jax.random.key(0), log_every=40)
    >>> bool((program(result.params, jnp.array([7])) == 57).all())
    True
    """

    population: int = eqx.field(static=True, kw_only=True)
    selection: AbstractSelection = eqx.field(kw_only=True, default=Lexicase())
    crossover: float = eqx.field(static=True, kw_only=True, default=0.5)
    change: float = eqx.field(static=True, kw_only=True, default=1.0)
    add: float = eqx.field(static=True, kw_only=True, default=0.5)
    scale: float = eqx.field(static=True, kw_only=True, default=0.1)
    seeds: Params = eqx.field(kw_only=True, default=None)
    mutate: Callable[[Any, Any], Any] | None = eqx.field(static=True, kw_only=True, default=None)
    islands: int = eqx.field(static=True, kw_only=True, default=1)
    migrate_every: int = eqx.field(static=True, kw_only=True, default=10)
    traceable: ClassVar[bool] = True

    def __check_init__(self) -> None:
        check_count("GeneticProgramming", "population", self.population, least=2)
        check_count("GeneticProgramming", "islands", self.islands)
        check_count("GeneticProgramming", "migrate_every", self.migrate_every)
        if self.population % self.islands or self.population // self.islands < 2:
            raise ValueError(
                f"`GeneticProgramming(population={self.population}, islands={self.islands})`: expected islands of "
                "equally many programs, 2 or more each."
            )
        if not isinstance(self.selection, AbstractSelection):
            raise ValueError(f"`GeneticProgramming(selection={self.selection!r})`: expected one, such as `Lexicase()`.")
        if self.mutate is not None and not callable(self.mutate):
            raise ValueError(f"`GeneticProgramming(mutate={self.mutate!r})`: expected a function of (params, key).")
        check_share("GeneticProgramming", "crossover", self.crossover)
        for name in ("change", "add", "scale"):
            check_positive("GeneticProgramming", name, getattr(self, name))

    def init(self, params: Params, domain: PyTree, *, key: Key[Array, ""]) -> _State:
        domains = jtu.tree_leaves(domain, is_leaf=is_domain)
        if not any(isinstance(d, Code) for d in domains):
            raise ValueError(
                f"`GeneticProgramming`: no leaf is a program; the domains are {domains}. Give it one with the domain "
                "`Code(sizes)`, such as a `Program`'s, and other leaves to `Genetic` (`Split`)."
            )
        given = jtu.tree_map(lambda x: x[None], params)
        if self.seeds is not None:
            _check_seeds(self.seeds, params)
            given = jtu.tree_map(lambda x, s: jnp.concatenate([x, jnp.asarray(s, x.dtype)]), given, self.seeds)
        rest = self.population - jtu.tree_leaves(given)[0].shape[0]
        if rest < 0:
            raise ValueError(
                f"`GeneticProgramming(population={self.population})`: there are {self.population - rest - 1} seeds and "
                "the starting point; use a larger population."
            )

        def some(x: Array, some: Array, d: AbstractDomain, drawn: Array) -> Array:
            scale = jnp.asarray(self.scale)
            return jnp.concatenate([some, jax.vmap(lambda words: d.sample(x, scale, words=words))(drawn)])

        drawn = jax.vmap(lambda k: words.like(k, params))(words.split(key, rest))
        members = jtu.tree_map(some, params, given, domain, drawn)
        zero = jnp.zeros((), jnp.int32)
        return _State(members, zero, domain, zero)

    def ask(self, state: _State, *, key: Key[Array, ""]) -> Query:
        keys = jnp.broadcast_to(key, (self.population,))  # common random numbers: members are compared
        population = Population(None, state.members, Points())
        return Query(population, none_like(state.members), keys, wants=Wants(cases=self.selection.by_case))

    def tell(self, state: _State, query: Query, answer: Evaluation, *, key: Key[Array, ""]) -> tuple[_State, Metrics]:
        n = self.population // self.islands
        members = query.population.take(jnp.arange(self.population))
        lines = _lines(members, state.domain)
        best = jnp.lexsort((lines, jnp.asarray(answer.ranked)))[0]

        def on_islands(x: Array) -> Array:
            return x.reshape(self.islands, n, *x.shape[1:])

        parts = jtu.tree_map(on_islands, (members, scores(self.selection, answer), jnp.asarray(answer.ranked), lines))
        keys = words.split(key, self.islands)
        following = jax.vmap(lambda part, key: self._bred(part, state.domain, key=key))(parts, keys)
        if self.islands > 1:
            following = self._migrated(following, (state.step + 1) % self.migrate_every == 0)
        following = jtu.tree_map(lambda x: x.reshape(self.population, *x.shape[2:]), following)
        first = (best // n * n).astype(jnp.int32)  # the best of all is its island's best
        return _State(following, first, state.domain, state.step + 1), {"lines": lines[best]}

    def _bred(self, part: Any, domain: PyTree, *, key: Key[Array, ""]) -> Params:
        """The next programs of an island: its best, and children of those that were selected."""
        members, seen, losses, lines = part
        n = losses.shape[0]
        k_select, k_parents, k_vary = words.split(key, 3)
        parents = self.selection(seen, max(n // 2, 1), key=k_select)
        first, second = parents[words.below(words.shaped(k_parents, (2, n)), len(parents))]
        best = jnp.lexsort((lines, losses))[0]

        def child(i: Array, j: Array, key: Key[Array, ""]) -> Params:
            one, other = (jtu.tree_map(lambda x: x[at], members) for at in (i, j))
            return self._child(one, other, domain, key=key)

        children = jax.vmap(child)(first, second, words.split(k_vary, n))
        return jtu.tree_map(lambda x, m: x.at[0].set(m[best]), children, members)

    def _child(self, one: Params, other: Params, domain: PyTree, *, key: Key[Array, ""]) -> Params:
        k_leaves, k_mutate = (key, None) if self.mutate is None else words.split(key)

        # A child's whole need is one draw: four pieces for each leaf, in the order of the leaves.
        shapes: list[tuple[int, ...]] = []
        jtu.tree_map(lambda x, d: shapes.extend(_needed(x, d)), one, domain)
        drawn = iter(words.pieces(k_leaves, shapes))

        def vary(x: Array, y: Array, d: AbstractDomain) -> Array:
            w_whether, w_cross, w_change, w_add = (next(drawn) for _ in range(4))
            crossed = words.chance(w_whether, self.crossover)
            if isinstance(d, Code):
                x = jnp.where(crossed, splice(x, y, words=w_cross), x)
                length = jnp.maximum(jnp.sum(x[:, 0] != 0), 1)
                x = change(x, d, jnp.minimum(self.change / length, 1.0), words=w_change)
                return add_and_delete(x, d, jnp.minimum(self.add / length, 1.0), words=w_add)
            x = jnp.where(crossed & words.chance(w_cross, 0.5), y, x)
            moved = d.neighbour(x, jnp.asarray(self.scale), words=w_change)
            rate = 1.0 if isinstance(d, Real) else 1.0 / max(x.size, 1)
            return jnp.where(words.chance(w_add, rate), moved, x)

        child = jtu.tree_map(vary, one, other, domain)
        if self.mutate is None:
            return child
        changed = self.mutate(child, k_mutate)
        if not eqx.tree_equal(*(jtu.tree_map(shape_of, tree) for tree in (changed, child))):
            raise ValueError(
                f"`GeneticProgramming(mutate=...)`: it makes {_shown(changed)} of {_shown(child)}; expected the same "
                "structure, shapes and types."
            )
        return changed

    def _migrated(self, members: Params, now: Array) -> Params:
        """The best of each island, its first, takes the last place of the next one."""
        return jtu.tree_map(lambda x: jnp.where(now, x.at[:, -1].set(jnp.roll(x[:, 0], 1, axis=0)), x), members)

    def params(self, state: _State) -> Params:
        return jtu.tree_map(lambda x: x[state.best], state.members)


def _needed(x: Array, d: AbstractDomain) -> list[tuple[int, ...]]:
    """Words for the variation of a leaf: whether it is crossed, crossover, change, and what is added or moved."""
    if isinstance(d, Code):
        length, columns = x.shape
        return [(), (2,), (length, columns + 3), (length, columns + 4)]
    return [(), x.shape, x.shape, x.shape]


def _shown(tree: Params) -> str:
    return str(jtu.tree_map(lambda x: f"{x.dtype}{list(x.shape)}" if hasattr(x, "dtype") else type(x).__name__, tree))


def _check_seeds(seeds: Params, params: Params) -> None:
    if jtu.tree_structure(seeds) != jtu.tree_structure(params) or any(
        jnp.ndim(s) == 0 or jnp.shape(s)[1:] != x.shape or jnp.result_type(s).kind != x.dtype.kind
        for s, x in zip(jtu.tree_leaves(seeds), jtu.tree_leaves(params), strict=True)
    ):
        raise ValueError(
            f"`GeneticProgramming(seeds=...)`: they are {_shown(seeds)}; expected the problem's parameters, "
            f"{_shown(params)}, with an axis of programs first."
        )


def _lines(members: Params, domain: PyTree) -> Int[Array, " pop"]:
    """How many lines of each member are not empty."""
    counts = jtu.tree_map(lambda x, d: jnp.sum(x[..., 0] != 0, -1) if isinstance(d, Code) else 0, members, domain)
    return sum(jtu.tree_leaves(counts), jnp.zeros((), jnp.int32))
