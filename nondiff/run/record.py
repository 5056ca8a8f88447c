"""How a run stands, for those who look at its folder while it goes on."""

import time
import warnings
from collections.abc import Callable
from typing import Any

from nondiff.run.callback import AbstractCallback, Json, Moment
from nondiff.run.directory import RunDirectory
from nondiff.run.elapsed import Elapsed
from nondiff.run.files import SaveError
from nondiff.run.plain import strict

PAUSE = 2.0  # seconds between two updates


class Record(AbstractCallback):
    """Keeps `summary.json`: at the beginning, at rows some seconds apart, at the end, also that by an error."""

    def __init__(self, directory: RunDirectory, *, strict: bool):
        self.directory, self.strict = directory, strict
        self._elapsed = Elapsed()
        self._updated = 0.0

    def begin(self, moment: Moment) -> None:
        self._elapsed.begin(moment)
        self._settle(list(moment.chunks))
        self._update(moment, status="running", steps=moment.steps, reason=None)

    def __call__(self, moment: Moment) -> None:
        if time.monotonic() - self._updated >= PAUSE:
            self._update(moment)

    def end(self, moment: Moment, error: BaseException | None) -> None:
        self._update(moment, **({} if error is None else ended_by(error)))  # not finished before it is reported

    def get_state(self) -> Json:
        return self._elapsed.get_state()

    def set_state(self, state: Any) -> None:
        self._elapsed.set_state(state)

    def _settle(self, chunks: list[int]) -> None:
        """Keep how wide the evaluation is; on another kind of device, or by another version, it may be another one."""
        kept = self.directory.config.get("chunks")
        if kept is None:
            self._write(lambda: self.directory.settle(chunks=chunks), "settings")
        elif kept != chunks:
            warnings.warn(
                f"the run began with chunks of {kept} members and goes on with {chunks}: the last bits may differ. "
                "Give the evaluator `chunk=` to keep them.",
                stacklevel=2,
            )

    def _update(self, moment: Moment, **fields: Any) -> None:
        self._updated = time.monotonic()
        loss = {"loss": strict(moment.row["loss"])} if moment.row else {}
        seconds = self._elapsed.at(moment)
        self._write(lambda: self.directory.update(step=moment.step, seconds=seconds, **loss, **fields), "summary")

    def _write(self, write: Callable[[], None], what: str) -> None:
        try:
            write()
        except OSError as error:
            if self.strict:
                raise SaveError(
                    error.errno, f"{error.strerror}; the run's {what} cannot be written", error.filename
                ) from error
            warnings.warn(f"the run's {what} was not written: {error}", stacklevel=2)


def ended_by(error: BaseException) -> dict[str, str]:
    """What a summary says of a run that an error or a signal ended."""
    if isinstance(error, Exception):
        return {"status": "failed", "reason": f"{type(error).__name__}: {error}".splitlines()[0]}
    return {"status": "stopped", "reason": said(error)}


def said(error: BaseException) -> str:
    """The text of a signal's exception."""
    notes = getattr(error, "__notes__", [])
    return notes[0] if isinstance(error, SystemExit) and notes else str(error) or type(error).__name__
