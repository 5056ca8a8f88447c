"""Candidates side by side on this process's device, `chunk` at a time, inside the compiled step."""

from typing import Any, ClassVar

import equinox as eqx
from jaxtyping import PyTree

from nondiff.core.checks import check_count
from nondiff.core.evaluator import AbstractEvaluator, chunk_of, part, sweep
from nondiff.core.problem import AbstractProblem, Batch
from nondiff.core.query import Evaluation, Query, map_queries, queries


class Vmap(AbstractEvaluator):
    """`jax.vmap` over `chunk` members, and a loop over the chunks.

    **Arguments:**

    - `chunk`: members that exist at once. Default `None`: as many as keep every intermediate result of theirs near the
      processor, a function of the shapes of model and batch and of the kind of device; `fit` says it in
      `Result.chunks`, and a run in its `config.json`. It is part of the experiment: another chunk may change the last
      bits. Give a number to have the same one on every kind of device.

    **Raises** `ValueError` for a chunk below 1.

    >>> import jax, jax.numpy as jnp, nondiff, optax
    >>> problem = nondiff.BlackBox(lambda x: jnp.sum(x**2), jnp.ones(3))
    >>> trainer = nondiff.OpenES(optax.sgd(0.1), sigma=0.1, population=256)
    >>> nondiff.fit(problem, trainer, steps=2, key=jax.random.key(0), evaluator=Vmap(chunk=64)).evaluations
    512
    """

    chunk: int | None = eqx.field(static=True, default=None)
    traceable: ClassVar[bool] = True

    def __check_init__(self) -> None:
        if self.chunk is not None:
            check_count("Vmap", "chunk", self.chunk)

    def evaluate(self, problem: AbstractProblem, query: PyTree[Query], batch: Batch) -> PyTree[Evaluation]:
        return map_queries(lambda q: sweep(problem, q, batch, chunk=self.chunk), query)

    def part(self, problem: AbstractProblem, query: Query, batch: Batch, start: Any, size: int) -> Evaluation:
        return part(problem, query, batch, start, size)

    def chunks(self, problem: AbstractProblem, query: PyTree[Query], batch: Batch) -> list[int]:
        return [self.chunk or chunk_of(problem, q, batch) for q in queries(query)]
