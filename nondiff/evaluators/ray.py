"""Chunks of a population on the workers of a Ray cluster (https://docs.ray.io)."""

import atexit
import contextlib
import functools
import importlib
from typing import Any, ClassVar

import equinox as eqx
from jaxtyping import PyTree

from nondiff.core.checks import check_count
from nondiff.core.evaluator import AbstractEvaluator, chunks_of
from nondiff.core.problem import AbstractProblem, Batch
from nondiff.core.query import Evaluation, Query, queries
from nondiff.distributed.dropped import Dropped
from nondiff.distributed.patience import Rules
from nondiff.distributed.pool import Pool
from nondiff.distributed.session import Session
from nondiff.evaluators.host import Host
from nondiff.evaluators.vmap import Vmap

SHARES = 16
"""Chunks that a population is cut into, where neither a chunk is given nor smaller ones are faster."""


class Ray(AbstractEvaluator):
    """Evaluates on other processes and machines: the same bits for any number of workers, whatever happens to them.

    **Arguments:**

    - `workers`: how many, at least 1. Default `None`: as many as the cluster has room for, looked at anew at every
      step, so that machines may come and go.
    - `local`: what a worker does with a chunk; default `None`: `Vmap()` if JAX can trace the problem, else `Host()`.
    - `chunk`: members that a worker gets at once. Part of the experiment: another chunk may change the last bits, and
      `Vmap(chunk)` in one process gives the same ones. Default `None`: a sixteenth of the population, or less where
      `local` asks for less; never a matter of how many workers there are.
    - `num_cpus`, `num_gpus`: what one worker takes of the cluster (default 1 and 0).
    - `address`: `"auto"` or that of a running cluster. Default `None`: the one that this process is connected to, else
      an own one on this machine, which nobody else can use, and which ends with `close` or the process.
    - `deadline`: seconds after which a chunk counts as hung, and its worker is killed and replaced. Default `None`: 30
      times what chunks usually take, at least 10 s. A worker's first chunk, which may import and compile, has 10 times
      the `deadline`, or 10 minutes.
    - `tries`: how often a chunk may fail (default 3): by a dead worker, a deadline, or an exception.
    - `verify`: evaluate each chunk on two workers and compare the bits (default False).
    - `failures`: the folder where a chunk that fails on every try is saved, for `nondiff replay` (default `"failed"`).
    - `drop`: the share of chunks that a step may go without if they are late, in [0, 1); their members count as failed
      (default 0: a late chunk is begun again on another worker, and none is missed). Which ones is a matter of chance,
      so it is written to `dropped`, and a run that finds itself there drops the same ones: the same bits again.
    - `dropped`: that file (default `"dropped.jsonl"`), used with `drop` alone.
    - `env`: environment variables of the workers.

    Queries that ask for a gradient are answered in this process meanwhile.

    **Raises** `ValueError` for arguments out of range; `ChunkError` for a chunk that fails on every try; with `verify`,
    `NotDeterministic` for a loss that depends on more than parameters, batch and key.

    >>> import jax, nondiff, numpy as np, optax
    >>> problem = nondiff.BlackBox(lambda x: float(np.abs(x).sum()), np.ones(3))
    >>> trainer = nondiff.OpenES(optax.sgd(0.1), sigma=0.1, population=8)
    >>> with Ray(workers=1) as ray:
    ...     nondiff.fit(problem, trainer, steps=2, key=jax.random.key(0), evaluator=ray).evaluations
    16
    """

    workers: int | None = eqx.field(static=True, default=None)
    local: AbstractEvaluator | None = eqx.field(kw_only=True, static=True, default=None)
    chunk: int | None = eqx.field(kw_only=True, static=True, default=None)
    num_cpus: int | float = eqx.field(kw_only=True, static=True, default=1)
    num_gpus: int | float = eqx.field(kw_only=True, static=True, default=0)
    address: str | None = eqx.field(kw_only=True, static=True, default=None)
    deadline: int | float | None = eqx.field(kw_only=True, static=True, default=None)
    tries: int = eqx.field(kw_only=True, static=True, default=3)
    verify: bool = eqx.field(kw_only=True, static=True, default=False)
    failures: str = eqx.field(kw_only=True, static=True, default="failed")
    drop: int | float = eqx.field(kw_only=True, static=True, default=0)
    dropped: str = eqx.field(kw_only=True, static=True, default="dropped.jsonl")
    env: tuple[tuple[str, str], ...] = eqx.field(
        kw_only=True, static=True, default=(), converter=lambda env: tuple(sorted(dict(env).items()))
    )
    traceable: ClassVar[bool] = False

    def __check_init__(self) -> None:
        for name in ("workers", "chunk"):
            if getattr(self, name) is not None:
                check_count("Ray", name, getattr(self, name))
        check_count("Ray", "tries", self.tries)
        for name in ("num_cpus", "num_gpus", "deadline"):
            value = getattr(self, name)
            zero = value is None if name == "deadline" else value == 0 and name == "num_gpus"
            if not (zero or (isinstance(value, int | float) and value > 0)):
                raise ValueError(f"`Ray({name}={value!r})`: expected a number above 0.")
        if not 0 <= self.drop < 1:
            raise ValueError(f"`Ray(drop={self.drop})`: expected a share in [0, 1).")
        if self.verify and self.workers == 1:
            raise ValueError("`Ray(verify=True, workers=1)`: expected at least 2 workers, which are compared.")
        if self.drop and self.verify:
            raise ValueError("`Ray`: either `drop` or `verify`; what is dropped cannot be compared.")

    @property
    def gradients(self) -> bool:
        return self.local is None or self.local.gradients

    def evaluate(self, problem: AbstractProblem, query: PyTree[Query], batch: Batch) -> PyTree[Evaluation]:
        sizes = functools.partial(chunks_of, problem, self, query, batch)
        return _session(self).evaluate(self._local(problem), problem, query, batch, sizes)

    def chunks(self, problem: AbstractProblem, query: PyTree[Query], batch: Batch) -> list[int]:
        local = self._local(problem)
        if self.chunk is not None:
            return [self.chunk for _ in queries(query)]
        sizes = [len(q) for q in queries(query)]
        return [min(most, _share(n)) for most, n in zip(local.chunks(problem, query, batch), sizes, strict=True)]

    def close(self) -> None:
        """Ends the workers, and the cluster if it is an own one."""
        session = _sessions.pop(self, None)
        if session is not None:
            session.pool.close()

    def __enter__(self) -> "Ray":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def _local(self, problem: AbstractProblem) -> AbstractEvaluator:
        return self.local or (Vmap() if problem.traceable else Host())


def _share(n: int) -> int:
    """An even number of members, for two of an antithetic pair belong together."""
    return max(2, 2 * -(-n // (2 * SHARES)))


_sessions: dict[Ray, Session] = {}


def _session(ray: Ray) -> Session:
    """Equal ones share their workers, from the first use to `close`, or to a `ray.shutdown()` of somebody else."""
    if ray not in _sessions or _sessions[ray].pool.lost():
        _close_at_exit()
        pool = Pool(ray.workers, ray.num_cpus, ray.num_gpus, ray.address, dict(ray.env))
        rules = Rules(ray.deadline, ray.tries, ray.verify, ray.failures, ray.drop)
        _sessions[ray] = Session(pool, rules, Dropped(ray.dropped) if ray.drop else None)
    return _sessions[ray]


@functools.cache
def _close_at_exit() -> None:
    with contextlib.suppress(ModuleNotFoundError):  # `connect` says so
        importlib.import_module("ray")  # which then ends after this, not before: what comes first, ends last

    @atexit.register
    def _close_all() -> None:
        for ray in list(_sessions):
            ray.close()
