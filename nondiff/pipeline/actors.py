"""Modules in processes of their own, on this machine or others: actors of Ray (https://docs.ray.io).

A step's call names what it needs by reference, so activations go from one actor to the next, and each begins as soon
as it has them. What an actor was given since its last state that was kept stays there to be given again: one that dies
is started from that state and takes the same steps once more, with the same bits, while the others go on.
"""

import contextlib
import logging
import os
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from nondiff.core.checks import check_count, check_number
from nondiff.core.module import Message
from nondiff.core.tree import on_host
from nondiff.distributed.cluster import connect, is_own
from nondiff.distributed.pool import environment, options_of, settings
from nondiff.distributed.shipping import attach
from nondiff.distributed.worker import CACHE, packed
from nondiff.pipeline.places import AbstractPlace, AbstractSession, Died, Given, Out
from nondiff.pipeline.stage import Stage, at_home, numbers
from nondiff.run.callback import Row

log = logging.getLogger("nondiff")


class Actors(AbstractPlace):
    """One module a process.

    **Arguments:**

    - `checkpoint_every`: steps between two states of all modules that are kept, 1 or more (default 25). A module that
      is lost takes at most twice so many steps, and those under way, once more; what they need is kept as long. States
      are kept in Ray's store: they outlive their process, and its machine as soon as this one has a copy.
    - `tries`: how often one module may be lost in a run (default 3).
    - `pin`: give each process a core of its own, on this machine (default False).
    - `delay`: seconds added to the way of every message, at least 0 (default 0): what a slow network would do. By
      the machines' clocks, which should agree.
    - `num_cpus`, `num_gpus`: what a process takes of the cluster (default 1 and 0).
    - `address`: `"auto"` or that of a running cluster. Default `None`: the one that this process is connected to, else
      an own one on this machine, which nobody else can use, and which ends with the run.
    - `env`: environment variables of the processes.

    **Raises** `ValueError` for numbers out of range, and where it is used with `pin` for fewer cores than modules.

    >>> Actors(checkpoint_every=100).checkpoint_every
    100
    """

    def __init__(
        self,
        *,
        checkpoint_every: int = 25,
        tries: int = 3,
        pin: bool = False,
        delay: int | float = 0,
        num_cpus: int | float = 1,
        num_gpus: int | float = 0,
        address: str | None = None,
        env: Mapping[str, str] | None = None,
    ):
        check_count("Actors", "checkpoint_every", checkpoint_every)
        check_count("Actors", "tries", tries)
        for name, value in (("delay", delay), ("num_cpus", num_cpus), ("num_gpus", num_gpus)):
            check_number("Actors", name, value)
        self.checkpoint_every, self.tries, self.pin, self.delay = checkpoint_every, tries, pin, delay  # pyright: ignore
        self.num_cpus, self.num_gpus, self.address, self.env = num_cpus, num_gpus, address, dict(env or {})

    def check(self, modules: int) -> None:
        cores = len(os.sched_getaffinity(0))
        if self.pin and cores < modules:
            raise ValueError(f"`Actors(pin=True)`: {modules} modules, and {cores} cores, of which each has one.")

    def open(self, given: Sequence[Given]) -> AbstractSession:
        return _Session(self, given)


class _Session(AbstractSession):
    def __init__(self, place: Actors, given: Sequence[Given]):
        self._place, self._lost = place, [0] * len(given)
        self._cluster = connect(place.address)
        try:
            import ray

            self._check_room(len(given))
            self._parts = [ray.put((packed(one.parts), one.how)) for one in given]
            self._kept = [ray.put(_packed(one.state)) for one in given]
            self._actors = [self._started(i) for i in range(len(given))]
            self._rows: list[Any] = [None] * len(given)
            """Of each module's last step."""
        except BaseException:
            self._cluster.close()
            raise

    def _check_room(self, modules: int) -> None:
        """**Raises** `ValueError` if the cluster has not as much as they ask for."""
        import ray

        there, place = ray.cluster_resources(), self._place
        cpus, gpus = 0 if is_own() else modules * place.num_cpus, modules * place.num_gpus
        if there.get("CPU", 0) < cpus or there.get("GPU", 0) < gpus:
            raise ValueError(
                f"`Actors`: {modules} modules ask for {cpus:g} CPUs and {gpus:g} GPUs, and the cluster has "
                f"{there.get('CPU', 0):g} and {there.get('GPU', 0):g}. Give a smaller `num_cpus` or `num_gpus`."
            )

    def _started(self, i: int) -> Any:
        import ray

        kind: Any = ray.remote(ModuleActor)
        place = self._place
        cpus = 0 if is_own() else place.num_cpus
        options = options_of(cpus, place.num_gpus, environment(place.num_cpus, place.num_gpus, place.env))
        core = sorted(os.sched_getaffinity(0))[i] if place.pin else None
        return kind.options(**options).remote(settings(), core, place.delay, self._parts[i], self._kept[i])

    def submit(self, i: int, inputs: Any, message: Any) -> Out:
        step = self._actors[i].step.options(num_returns=4)
        out = Out(*step.remote(inputs, message, self._rows[i]))
        self._rows[i] = out.row  # a step after one that failed fails, too, even if it hears of nobody
        return out

    def rows(self, outs: Sequence[Out]) -> list[Row]:
        return self._got([out.row for out in outs])

    def is_there(self, ref: Any) -> bool:
        import ray
        from ray.exceptions import RayError

        if not isinstance(ref, ray.ObjectRef):
            return True
        try:
            sent = ray.get(ref) if ray.wait([ref], timeout=0)[0] else None
            return sent is not None and (not isinstance(sent, _Sent) or time.time() >= sent.due)
        except RayError:  # lost, and will be there once more
            return False

    def state(self, i: int) -> Any:
        return self._actors[i].state.remote()

    def fetch(self, ref: Any) -> Any:
        import ray

        found = self._got(ref) if isinstance(ref, ray.ObjectRef) else ref
        found = found.message if isinstance(found, _Sent) else found
        return at_home(attach(*found) if isinstance(found, _Packed) else found)

    def _got(self, ref: Any) -> Any:
        import ray
        from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

        lost = RayActorError, ObjectLostError
        try:
            return ray.get(ref)
        except lost as error:
            raise Died(str(error)) from None
        except RayTaskError as error:
            if isinstance(error.cause, lost):
                raise Died(str(error)) from None
            raise RuntimeError(f"`Pipeline`: a module failed: {error.cause}") from None

    def arrived(self, states: Sequence[Any], *, wait: bool) -> bool:
        import ray

        refs = list(states)
        if len(ray.wait(refs, num_returns=len(refs), timeout=None if wait else 0)[0]) < len(refs):
            return False
        self._got(refs)  # was it lost? It is in this machine's store now, and nothing is copied
        return True

    def keep(self, states: Sequence[Any]) -> None:
        self._kept = list(states)

    def revive(self) -> list[int]:
        import ray
        from ray.exceptions import RayError

        dead = []
        for i, actor in enumerate(self._actors):
            try:
                ray.get(actor.ready.remote())
            except RayError as error:
                dead.append(i)
                self._lost[i] += 1
                if self._lost[i] > self._place.tries:
                    raise RuntimeError(f"`Pipeline`: module {i} was lost {self._lost[i]} times: {error}") from None
                log.warning("module %d was lost and starts from its last checkpoint", i)
                with contextlib.suppress(Exception):
                    ray.kill(actor)
                self._actors[i] = self._started(i)
        self._rows = [None] * len(self._actors)
        return dead

    def close(self) -> None:
        import ray

        if ray.is_initialized():
            for actor in self._actors:
                with contextlib.suppress(Exception):
                    ray.kill(actor)
        self._cluster.close()


class ModuleActor:
    """A module, in its process."""

    def __init__(self, settings: dict[str, Any], core: int | None, delay: int | float, given: Any, state: Any):
        if core is not None:
            for thread in os.listdir("/proc/self/task"):
                os.sched_setaffinity(int(thread), {core})
        for name, value in (CACHE | settings).items():
            jax.config.update(name, value)
        parts, how = given
        self._stage, self._delay = Stage(attach(*parts), attach(*state), how), delay

    def ready(self) -> int:
        return os.getpid()

    def step(self, inputs: Any, message: "Message | _Sent | None", before: Row | None) -> Any:
        del before  # it was waited for
        try:
            handed, metrics = self._stage.step(_come(inputs), _come(message))
            return *[self._sent(x) for x in on_host(tuple(handed))], numbers(metrics)
        except Exception as error:  # not every one can be pickled
            raise RuntimeError(f"{type(error).__name__}: {error}\n{traceback.format_exc()}") from None

    def state(self) -> Any:
        return _packed(self._stage.state)

    def _sent(self, message: Any) -> Any:
        return _Sent(time.time() + self._delay, message) if self._delay and message is not None else message


class _Sent(NamedTuple):
    """A message on a slow way."""

    due: float
    """When it has come."""
    message: Any


def _come(sent: Any) -> Any:
    """The message, once it has come."""
    if not isinstance(sent, _Sent):
        return sent
    time.sleep(max(sent.due - time.time(), 0.0))  # the rest of the way, as was asked for; no poll
    return sent.message


class _Packed(NamedTuple):
    """A tree as it is sent."""

    pickled: bytes
    held: tuple[Any, ...]
    arrays: tuple[Any, ...]


def _packed(tree: Any) -> _Packed:
    return _Packed(*packed(tree))
