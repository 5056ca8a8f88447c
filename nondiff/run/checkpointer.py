"""When checkpoints are written, how many are kept, and which one a run goes on from."""

import json
import logging
import os
import threading
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from nondiff.core.checks import check_count, check_positive
from nondiff.run import checkpoint as stored
from nondiff.run.callback import AbstractCallback, Json, Moment
from nondiff.run.checkpoint import Checkpoint, CheckpointError
from nondiff.run.files import DamagedFile, SaveError, clean, remove
from nondiff.run.lock import Lock, describe
from nondiff.run.memory import decode, encode

log = logging.getLogger("nondiff")


class Checkpointer(AbstractCallback):
    """A callback that writes what a run needs to go on, bit for bit, while its steps go on.

    **Arguments:**

    - `folder`: each checkpoint is a folder in it, named by its step. One process at a time writes there.
    - `every`: steps between two (default: none by steps).
    - `minutes`: time between two (default 5; `None`: none by time). One more is written when the run ends, also by an
      error or a signal.
    - `keep`: how many are kept (default 3: a damaged one has two before it).
    - `config`: settings of the run as JSON; a checkpoint of others is refused.
    - `strict`: does a failed save end the run (default)? If not, it is warned about and training goes on. Earlier
      checkpoints stay in any case.

    **Raises** `ValueError` for arguments out of range; `FolderInUse` if another process writes there; `OSError` with
    the path if a save fails; `CheckpointError` for checkpoints that are there and cannot be used.

    A script that goes on where it was interrupted:

    >>> import tempfile, jax, jax.numpy as jnp, nondiff, optax
    >>> problem = nondiff.BlackBox(lambda x: jnp.sum((x - 1.0) ** 2), jnp.zeros(2))
    >>> trainer, folder = nondiff.Backprop(optax.sgd(0.1)), tempfile.mkdtemp()
    >>> def run(steps):
    ...     checkpoints = Checkpointer(folder, every=10)
    ...     start = checkpoints.restore(nondiff.init(problem, trainer, key=jax.random.key(0)))
    ...     return start.step, nondiff.fit(problem, trainer, steps=steps, state=start, callbacks=[checkpoints])
    >>> run(25)[0], run(50)[0]
    (0, 25)

    In a loop of your own, for any tree of arrays:

    >>> with Checkpointer(tempfile.mkdtemp(), every=2, minutes=None) as checkpoints:
    ...     state = checkpoints.restore({"x": jnp.zeros(3)}).state
    ...     for step in range(1, 6):
    ...         state = {"x": state["x"] + 1}
    ...         checkpoints.save(step, state, only_if_due=True)
    >>> checkpoints.steps()
    [2, 4]
    """

    saves_others = True

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        every: int | None = None,
        minutes: float | None = 5.0,
        keep: int = 3,
        config: Json = None,
        strict: bool = True,
    ):
        if every is not None:
            check_count("Checkpointer", "every", every)
        if minutes is not None:
            check_positive("Checkpointer", "minutes", minutes)
        check_count("Checkpointer", "keep", keep)
        try:
            json.dumps(config, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"`Checkpointer(config)`: expected what JSON can hold ({error}).") from None
        self.folder = Path(folder).absolute()  # wherever the process goes
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"`Checkpointer({str(folder)!r})`: this is a file; expected a folder, or a name for one.")
        self.every, self.minutes, self.keep, self.config, self.strict = every, minutes, keep, config, strict
        self.last: int | None = None  # the newest step that was restored, saved or is being saved
        self._damaged: set[int] = set()
        self._lock: Lock | None = None
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._arrays: Mapping[str, np.ndarray] = {}  # of the last save
        self._time = time.monotonic()

    def steps(self) -> list[int]:
        """The steps of the checkpoints that are there, oldest first; whether they verify is seen on reading."""
        if not self.folder.is_dir():
            return []
        names = [path.name for path in self.folder.iterdir() if path.is_dir()]
        return sorted(int(name) for name in names if name.isdecimal() and name == str(int(name)))

    def restore(self, like: PyTree, *, exact: bool = True) -> Checkpoint:
        """The newest checkpoint that verifies; `like` itself, at step 0, where nothing was saved yet.

        `like` is a state of the same structure, as `nondiff.init` gives. A damaged checkpoint is skipped, with a
        warning that names it. `exact=False` takes one of other settings, versions or another kind of device, with a
        warning: the run goes on, but not with the bits that it would have had.

        **Raises** `CheckpointError` with every difference for a checkpoint of another state, settings or versions, and
        if there are some and all are damaged.
        """
        damaged = []
        for step in reversed(self.steps()):
            path = self.folder / str(step)
            try:
                manifest = stored.verify(path)
            except (DamagedFile, OSError) as error:
                self._damaged.add(step)
                damaged.append(str(error))
                continue
            self._compare(path, manifest, exact)
            state = stored.read(path, manifest, like)
            for line in damaged:
                warnings.warn(f"a damaged checkpoint is skipped, going on from step {step}: {line}", stacklevel=2)
            self.last = step
            return Checkpoint(step, state, decode(manifest["memory"]), path)
        if damaged:
            raise CheckpointError(
                "\n  ".join([f"no checkpoint in {self.folder} can be used:", *damaged])
                + "\nStart anew in another folder, or put a copy of one of them back."
            )
        return Checkpoint(0, like, {}, None)

    def _compare(self, path: Path, manifest: Mapping[str, Any], exact: bool) -> None:
        lines = stored.differences(manifest["versions"], stored.surroundings())
        if self.config is not None:
            config = json.loads(json.dumps(self.config))  # tuples become lists
            lines = [*stored.differences(stored.flat(manifest["config"]), stored.flat(config)), *lines]
        if exact:
            hint = "It would go on with other bits. To accept that: `restore(like, exact=False)`, `resume --inexact`."
            stored.refuse(path, "a run with other settings or versions", lines, hint)
        elif lines:
            warnings.warn("\n".join([f"{path} was written under other conditions:", *lines]), stacklevel=3)

    def save(
        self, step: int, state: PyTree, memory: Mapping[str, Any] | None = None, *, only_if_due: bool = False
    ) -> None:
        """Copy the state and write it in the background; waits for the save before it, if that is not done.

        **Raises** `OSError` if the save before it failed, `TypeError` for a `memory` that is not JSON and bytes, and
        `FolderInUse`, `CheckpointError` before the first one.
        """
        check_count("Checkpointer.save", "step", step, least=0)
        if only_if_due and not self._due(step):
            return
        self._open(step)
        self.wait()
        encoded = _encoded(memory)
        leaves, self._arrays = stored.describe(state), stored.on_host(state, into=self._arrays)
        self.last, self._time = step, time.monotonic()
        # Not a daemon: a script that ends without `wait` still gets its last checkpoint.
        self._thread = threading.Thread(target=self._write, args=(step, self._arrays, leaves, encoded))
        self._thread.start()

    def wait(self) -> None:
        """Until the last save is on the disk. **Raises** `OSError` if it failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None and (self.strict or not isinstance(error, OSError)):
            raise error
        if error is not None:
            warnings.warn(str(error), stacklevel=2)

    def close(self) -> None:
        """Wait, and let others write in the folder."""
        try:
            self.wait()
        finally:
            self._arrays = {}
            if self._lock is not None:
                self._lock.release()
                self._lock = None

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def begin(self, moment: Moment) -> None:
        self._open(moment.start)
        _encoded(moment.memory())  # refused now, while nothing can be lost
        self.last = moment.start if moment.start in self.steps() else None
        self._time = time.monotonic()

    def due(self, moment: Moment) -> bool:
        failed = self._error is not None and self.strict  # to be raised soon
        return failed or self._due(moment.step)

    def __call__(self, moment: Moment) -> None:
        self.save(moment.step, moment.state, moment.memory())

    def end(self, moment: Moment, error: BaseException | None) -> None:
        try:
            whole = not any(isinstance(x, jax.Array) and x.is_deleted() for x in jtu.tree_leaves(moment.state))
            if whole and moment.step != self.last and moment.step > moment.start:
                self.save(moment.step, moment.state, moment.memory())
        finally:
            self.close()

    def _due(self, step: int) -> bool:
        if step == self.last:
            return False
        late = self.minutes is not None and time.monotonic() - self._time >= 60 * self.minutes
        return late or (self.every is not None and step % self.every == 0)

    def _open(self, start: int) -> None:
        """Take the folder, and see that no checkpoint there is newer than this run."""
        if self._lock is not None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = Lock(self.folder)
        if self._lock.left_by is not None:
            log.warning("%s is taken over: %s is gone", self.folder, describe(self._lock.left_by))
        clean(self.folder)
        newer = [step for step in self.steps() if step > start and step not in self._damaged]
        if newer:
            self.close()
            raise CheckpointError(
                f"{self.folder} holds checkpoints up to step {newer[-1]}, and this run begins at step {start}. Go on "
                "from them, `fit(..., state=checkpointer.restore(nondiff.init(...)))`, or use another folder."
            )

    def _write(self, step: int, arrays: Any, leaves: Any, memory: Json) -> None:
        path = self.folder / str(step)
        try:
            stored.write(path, step, arrays, leaves, self.config, memory)
            self._damaged.discard(step)
            log.info("checkpoint of step %s saved", step)
            self._remove_old(step)
        except OSError as error:
            good = [s for s in self.steps() if s not in self._damaged]
            kept = f"the last good checkpoint is {self.folder / str(good[-1])}" if good else "there is none before it"
            why = error.strerror or str(error)
            self._error = SaveError(
                error.errno or 5, f"the checkpoint of step {step} was not saved ({why}); {kept}", str(path)
            )
        except Exception as error:  # raised where the run can hear it
            self._error = error

    def _remove_old(self, step: int) -> None:
        """What is older than the last `keep` good ones."""
        good = [s for s in self.steps() if s <= step and s not in self._damaged]
        for old in self.steps():
            if old < good[-self.keep :][0]:
                try:
                    remove(self.folder / str(old))
                except OSError as error:
                    log.warning("the old checkpoint %s was not deleted: %s", self.folder / str(old), error.strerror)


def _encoded(memory: Mapping[str, Any] | None) -> dict[str, Json]:
    return {name: encode(value, f"`{name}`") for name, value in (memory or {}).items()}
