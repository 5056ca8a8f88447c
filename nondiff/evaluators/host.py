"""Candidates as NumPy arrays, `chunk` at a time, in this process: for problems that JAX cannot trace."""

import dataclasses
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, PyTree

from nondiff.core.checks import check_count
from nondiff.core.compiled import compiled
from nondiff.core.evaluator import AbstractEvaluator, about, together
from nondiff.core.exact import exactly
from nondiff.core.population import Population
from nondiff.core.problem import AbstractProblem, Batch, Params
from nondiff.core.query import Evaluation, Quadratic, Query, map_queries, penalty, queries
from nondiff.core.tree import host_rows, on_host


class Host(AbstractEvaluator):
    """Calls `problem.losses` on whole chunks of materialised members; the rest of the step stays compiled.

    **Arguments:**

    - `chunk`: members that exist at once (default 32).

    **Raises** `ValueError` for a chunk below 1, a gradient that is asked for, and losses of another shape than one for
    each member, or one for each member and case.

    >>> import jax, nondiff, numpy as np, optax
    >>> problem = nondiff.BlackBox(lambda x: float(np.abs(x).sum()), np.ones(3))
    >>> trainer = nondiff.OpenES(optax.sgd(0.1), sigma=0.1, population=8)
    >>> nondiff.fit(problem, trainer, steps=2, key=jax.random.key(0), evaluator=Host()).evaluations
    16
    """

    chunk: int = eqx.field(static=True, default=32)
    traceable: ClassVar[bool] = False

    def __check_init__(self) -> None:
        check_count("Host", "chunk", self.chunk)

    def evaluate(self, problem: AbstractProblem, query: PyTree[Query], batch: Batch) -> PyTree[Evaluation]:
        batch = on_host(batch)
        return map_queries(lambda q: _answer(self.chunk, problem, q, batch), query)

    def part(self, problem: AbstractProblem, query: Query, batch: Batch, start: Any, size: int) -> Evaluation:
        return _part(problem, query, about(problem, query, on_host(batch))[0], int(start), size)

    def chunks(self, problem: AbstractProblem, query: PyTree[Query], batch: Batch) -> list[int]:
        del problem, batch
        return [self.chunk for _ in queries(query)]


def _answer(chunk: int, problem: AbstractProblem, query: Query, batch: Batch) -> Evaluation:
    if query.wants.gradient or query.wants.mean_gradient:
        raise ValueError(
            f"`Host` was asked for a gradient of `{type(problem).__name__}`; it only knows losses. Use `Vmap()` if "
            "JAX can trace the problem, or a trainer that needs no gradient: `OpenES`, `Genetic`."
        )
    n = len(query)
    batch, count = about(problem, query, batch)
    parts = [_part(problem, query, batch, i, min(chunk, n - i)) for i in range(0, n, chunk)]
    answer = together(query, parts, chunk=chunk)
    return answer if count is None else dataclasses.replace(answer, rows=jnp.full(n, count, jnp.float32))


def _part(problem: AbstractProblem, query: Query, batch: Batch, start: int, n: int) -> Evaluation:
    rows = start + np.arange(n)
    members, added = _built(query, rows)
    keys = query.keys if n == len(query) else host_rows(query.keys, rows)
    value, aux = type(problem).losses(problem, eqx.combine(members, _repeat(query.others, n)), batch, keys=keys)
    value = np.asarray(value)
    if value.ndim not in (1, 2) or value.shape[0] != n or value.dtype.kind not in "fiub":
        raise ValueError(
            f"`{type(problem).__name__}` answered {n} candidates with {value.dtype}{list(value.shape)}; "
            f"expected {n} numbers, `[{n}]`, or one for each case, `[{n}, cases]`."
        )
    value = value.astype(added.dtype)
    if query.wants.cases and value.ndim == 1:
        raise ValueError(f"the trainer asks for a loss per case; `{type(problem).__name__}` gives one per member.")
    loss = value if value.ndim == 1 else value.mean(1)
    computed = None if query.wants.compute is None else _computed(query, batch, keys, start, n)
    return Evaluation(loss, added, value if query.wants.cases else None, aux=aux, computed=computed)


def _built(query: Query, rows: np.ndarray) -> tuple[Params, np.ndarray]:
    """The members of these rows, and their quadratics."""
    n, members = len(rows), None
    if not query.quadratic:
        members = query.population.rows(rows).on_host()
    if members is not None:
        return members, np.zeros(n)
    # A power of two of them is built, whatever the population: other sizes would compile anew.
    padded = rows[np.minimum(np.arange(1 << (n - 1).bit_length()), n - 1)]
    built = _members(query.population.rows(padded), query.quadratic)
    return jtu.tree_map(lambda x: x[:n], on_host(built))


def _computed(query: Query, batch: Batch, keys: Any, start: int, n: int) -> PyTree:
    """The sub-steps of these members, one by one."""
    population = query.population.rows(start + np.arange(n))
    drawn = on_host(population.sampler.draws(population.shared, population.each))
    own = [jtu.tree_map(lambda x: x[i], drawn) for i in range(n)]
    parts = [_sub_step(query.wants.compute, population.shared, x, batch, k) for x, k in zip(own, keys, strict=True)]
    return jtu.tree_map(lambda *xs: np.stack([np.asarray(x) for x in xs]), *parts)


@compiled
def _sub_step(compute: Any, shared: PyTree, own: PyTree, batch: Batch, key: Any) -> PyTree:
    return compute(shared, own, batch, key)


@exactly
def _members(population: Population, quadratic: tuple[Quadratic, ...]) -> tuple[PyTree, Array]:
    members = population.take(jnp.arange(len(population)))
    return members, jax.vmap(lambda member: penalty(quadratic, member))(members)


def _repeat(others: PyTree, n: int) -> PyTree:
    return jtu.tree_map(lambda x: np.broadcast_to(np.asarray(x), (n, *x.shape)), others)
