"""What the tests of Ray share: a problem, what one process finds, and workers that they all use."""

import hashlib
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax
import pytest

import nondiff as nd
from nondiff.distributed.cluster import connect, home
from nondiff.evaluators import ray as module

STEPS = 20
DATA = jr.normal(jr.key(3), (200, 4))
TRAINERS = {
    "open_es_rank_1": nd.OpenES(optax.adam(0.05), sigma=0.1, population=32, rank=1),
    "open_es": nd.OpenES(optax.adam(0.05), sigma=0.1, population=32),
    "cma_es": nd.CMAES(0.3, population=20),
    "genetic": nd.Genetic(population=20),
    "consensus": nd.Consensus(nd.OpenES(optax.adam(0.05), sigma=0.1, population=8), shards=4, every=2, rho=1.0),
}
SHARDS = nd.Consensus(nd.Backprop(optax.adam(0.05), samples=6), shards=4, every=2, rho=1.0)
"""Each asks for a gradient of its rows, of 6 members in chunks of 4."""


class Fit(nd.AbstractProblem):
    """A small network, batches from the problem's own data."""

    data: Any
    traceable = True  # pyright: ignore[reportAssignmentType]

    def init(self, *, key: Any) -> Any:
        return {"w": jnp.zeros((4, 8)), "b": jnp.zeros(8), "v": jnp.full((8, 1), 0.1)}

    def batch(self, state: Any, *, key: Any) -> Any:
        return jr.choice(key, self.data, (16,))

    def loss(self, params: Any, batch: Any, *, key: Any) -> tuple[Any, Any]:
        hidden = jnp.tanh(batch @ params["w"] + params["b"])
        return ((hidden @ params["v"])[:, 0] - jnp.sin(batch.sum(1))) ** 2, None


class FitInPython(Fit):
    """The same, chunk by chunk; `before` each of them something may happen."""

    before: Callable[[], None]
    traceable = False  # pyright: ignore[reportAssignmentType]

    def losses(self, members: Any, batch: Any, *, keys: Any) -> tuple[Any, Any]:
        self.before()
        return _losses(members, batch), None


@jax.jit
def _losses(members: Any, batch: Any) -> Any:
    return jax.vmap(lambda member: Fit(DATA).loss(member, batch, key=None)[0])(members)


def sha(result: nd.Result) -> str:
    return hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in jtu.tree_leaves(result.params))).hexdigest()


def run(evaluator: nd.AbstractEvaluator, trainer: str = "open_es_rank_1", steps: int = STEPS) -> nd.Result:
    return nd.fit(Fit(DATA), TRAINERS[trainer], steps=steps, key=jr.key(0), evaluator=evaluator)


def run_in_python(
    evaluator: nd.AbstractEvaluator, before: Callable[[], None] = lambda: None, steps: int = STEPS
) -> nd.Result:
    problem, trainer = FitInPython(DATA, before), TRAINERS["open_es_rank_1"]
    return nd.fit(problem, trainer, steps=steps, key=jr.key(0), evaluator=evaluator)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One for all the tests of a file, and then nothing of it is left."""
    opened = connect(None)
    yield
    for evaluator in list(module._sessions):
        evaluator.close()
    opened.close()
    until(lambda: not processes(home()))


@pytest.fixture(scope="module")
def crew(cluster: None) -> Callable[[int], nd.Ray]:
    """So many workers, which the tests share: those with equal arguments are the same ones."""
    return lambda workers: nd.Ray(workers=workers, chunk=4, tries=4)  # `killing` may hit one chunk three times


def processes(folder: str) -> list[int]:
    """Others that have a file open there: those of a cluster."""
    found = []
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            files = [str(path.readlink()) for path in (process / "fd").iterdir()]
        except OSError:
            continue
        if int(process.name) != os.getpid() and any(name.startswith(folder) for name in files):
            found.append(int(process.name))
    return found


def until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.05)


def pids(evaluator: nd.Ray) -> list[int]:
    """Of the workers that have started."""
    return [m.pid for m in list(module._sessions[evaluator].pool.members) if m.ready is None]
