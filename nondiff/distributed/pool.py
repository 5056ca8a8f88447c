"""The workers: as many as are wanted or as the cluster has room for, each with the chunk that it is at."""

import contextlib
import dataclasses
import os
import sys
import time
from collections import deque
from typing import Any

import jax

from nondiff.distributed.cluster import Cluster, connect, is_own
from nondiff.distributed.worker import Worker

INHERITED = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_disable_most_optimizations",
    "jax_default_prng_impl",
)
"""Settings of JAX on which bits depend."""


CACHING = (
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_persistent_cache_min_compile_time_secs",
)
"""Those of what is kept of compilations, if the user has set any."""


@dataclasses.dataclass(eq=False)
class Call:
    """What a worker is at: chunks of a step, by their places there."""

    step: int
    places: list[int]
    kind: Any
    """Of the work, whose usual time is known: the code's number, and whether it is losses or sums."""
    ref: Any
    since: float
    warm: Any
    """What it only gets ready for, if not for an answer: kind of the work, query, size."""


@dataclasses.dataclass(eq=False)
class Member:
    actor: Any
    ready: Any
    """A reference that is there as soon as the worker has started; `None` from then on."""
    call: Call | None = None
    pid: int = 0
    step: int = -1
    rows: set[Any] = dataclasses.field(default_factory=set)
    """Whose arrays it has: those of this step about these rows."""
    known: set[Any] = dataclasses.field(default_factory=set)
    """What it has compiled: kind of the work, query, size."""
    answered: set[Any] = dataclasses.field(default_factory=set)
    """Kinds of work that it has done before."""


class Pool:
    """Starts with the first use. `None` workers: as many as the cluster has room for, looked at anew at every step."""

    def __init__(
        self, workers: int | None, cpus: int | float, gpus: int | float, address: str | None, env: dict[str, str]
    ):
        self.workers, self.cpus, self.gpus, self.address, self.env = workers, cpus, gpus, address, env
        self.members: list[Member] = []
        self.stillborn = 0
        """Workers that died as they started, since the last one that did not."""
        self.seconds: dict[Any, deque[float]] = {}
        """How long chunks of each kind took of late."""
        self.usual: dict[Any, float] = {}
        """The median of them."""
        self._cluster: Cluster | None = None

    def refresh(self) -> None:
        """Connects, with the first use, and brings the workers to the number that there should be by now."""
        if self._cluster is None:
            self._cluster = connect(self.address)
        wanted = self._room() if self.workers is None else self.workers
        while len(self.members) < wanted:
            self.start()
        while len(self.members) > wanted:
            self.drop(self.members[-1])

    def start(self) -> None:
        import ray

        kind: Any = ray.remote(Worker)
        # Of this machine's cores a user may ask for more workers than there are.
        cpus = 0 if is_own() and self.workers is not None else self.cpus
        actor = kind.options(**options_of(cpus, self.gpus, environment(self.cpus, self.gpus, self.env))).remote(
            settings()
        )
        self.members.append(Member(actor, actor.ready.remote()))

    def drop(self, member: Member) -> None:
        """Gone, whatever it is at."""
        import ray

        if ray.is_initialized():  # else it would make a cluster, to kill nothing there
            with contextlib.suppress(Exception):
                ray.kill(member.actor)
        self.members.remove(member)

    def replace(self, member: Member) -> None:
        self.drop(member)
        self.start()

    def took(self, kind: Any, seconds: float) -> None:
        times = self.seconds.setdefault(kind, deque(maxlen=101))
        times.append(seconds)
        self.usual[kind] = sorted(times)[len(times) // 2]

    def lost(self) -> bool:
        """Has somebody else ended the connection?"""
        import ray

        return self._cluster is not None and not ray.is_initialized()

    def close(self) -> None:
        for member in list(self.members):
            self.drop(member)
        if self._cluster is not None:
            self._cluster.close()
            self._cluster = None

    def wanted(self) -> str:
        """What is asked of the cluster, and what it has."""
        import ray

        there = ray.cluster_resources()
        has = f"{there.get('CPU', 0):g} CPUs and {there.get('GPU', 0):g} GPUs"
        return f"{len(self.members)} of them ask for num_cpus={self.cpus} and num_gpus={self.gpus} each; it has {has}."

    def _room(self) -> int:
        import ray

        there = ray.cluster_resources()
        places = there.get("CPU", 0.0) / self.cpus if self.cpus else float("inf")
        if self.gpus:
            places = min(places, there.get("GPU", 0.0) / self.gpus)
        return max(int(places), 1)


def settings() -> dict[str, Any]:
    """Of JAX, for other processes of a run."""
    return {name: jax.config.values[name] for name in INHERITED + CACHING * bool(jax.config.values[CACHING[0]])}


def options_of(cpus: int | float, gpus: int | float, environment: dict[str, str]) -> dict[str, Any]:
    """Of an actor. Who replaces it when it dies is not Ray."""
    given = {"num_gpus": gpus} if gpus else {}
    return {"num_cpus": cpus, "max_restarts": 0, "runtime_env": {"env_vars": environment}, **given}


def environment(cpus: int | float, gpus: int | float, env: dict[str, str]) -> dict[str, str]:
    """Variables of an actor that computes on so much."""
    threads = str(_least(cpus))
    places = os.pathsep.join(os.path.abspath(path) for path in sys.path)  # modules are found as they are here
    found = {"NPROC": threads, "OMP_NUM_THREADS": threads, "PYTHONPATH": places}
    if not gpus:
        found["JAX_PLATFORMS"] = "cpu"  # or each would take most of a GPU that it was not given
    elif gpus < 1:
        found["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    return found | {name: os.environ[name] for name in ("XLA_FLAGS",) if name in os.environ} | env


def _least(cpus: int | float) -> int:
    return max(1, int(cpus + 0.999))


def now() -> float:
    return time.monotonic()
