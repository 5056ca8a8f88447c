"""The log as a file that any program reads: one row a line."""

import contextlib
import json
import math
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from nondiff.run.callback import AbstractCallback, Json, Moment, Row
from nondiff.run.elapsed import Elapsed
from nondiff.run.files import SaveError, write_text
from nondiff.run.plain import strict

_HEAD = b'{"step": '


class JSONLines(AbstractCallback):
    """Writes every row of the log as a line of strict JSON, `{"step": 10, "seconds": 1.5, "loss": 0.25, ...}`.

    A number that is not finite is `null`. `seconds` is the time in training, that of earlier parts of a resumed run
    included. Each line is handed to the operating system before training goes on: a process that is killed leaves all
    its rows, at worst with a torn last one.

    A run that goes on at step n keeps the rows up to n and writes those after it again, so the file of a killed and
    resumed run is that of an undisturbed one but for `seconds`.

    **Arguments:**

    - `path`: of the file; its folders are made. One process writes it at a time.
    - `strict`: does a row that cannot be written end the run (default)? If not, it is warned about, and written with
      one of the next.

    **Raises**, when a run begins, `ValueError` for a file that holds something else than such rows, and for one that
    holds any when the run begins at step 0 and is not resumed; `OSError` that names the file, where it cannot be
    written.

    >>> import tempfile, jax, jax.numpy as jnp, nondiff, optax
    >>> problem = nondiff.BlackBox(jnp.square, 1.0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result = nondiff.fit(problem, nondiff.Backprop(optax.sgd(0.25)), steps=3, key=jax.random.key(0),
    ...                          callbacks=[JSONLines(f"{folder}/rows.jsonl")], log_every=1)
    ...     rows = read_rows(f"{folder}/rows.jsonl")
    >>> [(row["step"], row["loss"]) for row in rows]
    [(1, 1.0), (2, 0.25), (3, 0.0625)]
    """

    def __init__(self, path: str | os.PathLike[str], *, strict: bool = True):
        self.path, self.strict = Path(path).absolute(), strict
        self._elapsed = Elapsed()
        self._last = -1  # step of the newest row in the file when the run began
        self._file: BinaryIO | None = None
        self._unwritten = b""
        self._warned = False

    def begin(self, moment: Moment) -> None:
        self._elapsed.begin(moment)
        self._unwritten, self._warned = b"", False
        with _named(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            before = self.path.read_bytes() if self.path.is_file() else b""
            if before and moment.start == 0 and not moment.resumed:
                raise ValueError(
                    f"{self.path} holds the rows of another run, and this one begins at step 0. Give another path, or "
                    "resume that run."
                )
            rows = _parsed(before, self.path)
            if before and moment.start == 0:  # of a run that was killed before its first checkpoint
                aside = self.path.with_name(f"{self.path.name}.before-{time.time_ns()}")
                self.path.rename(aside)
                rows, before = [], b""
            self._last = max((row["step"] for _, row in rows if row["step"] <= moment.start), default=-1)
            kept = "".join(f"{line}\n" for line, row in rows if row["step"] <= moment.start)
            if kept.encode() != before:
                write_text(self.path.resolve(), kept)
            self._file = self.path.open("ab", buffering=0)

    def __call__(self, moment: Moment) -> None:
        others = {name: value for name, value in moment.row.items() if name != "step"}
        if "seconds" in others:
            raise ValueError(f"{self.path}: a metric is called `seconds`, as the column for the time; rename it.")
        if moment.step <= self._last:
            return  # written before another callback failed at this row, which a resumed run shows again
        row = {"step": moment.step, "seconds": self._elapsed.at(moment), **others}
        self._unwritten += json.dumps(strict(row), allow_nan=False).encode() + b"\n"
        self._write()

    def end(self, moment: Moment, error: BaseException | None) -> None:
        self._elapsed.end(moment)
        if self._file is None:
            return
        try:
            if error is None or not self.strict:
                self._write()
        finally:
            self._file.close()
            self._file = None

    def _write(self) -> None:
        """What is not in the file yet. Where only a part goes in, the rest follows later, and no line is broken."""
        assert self._file is not None, "`begin` opens the file"
        try:
            with _named(self.path):
                while self._unwritten:
                    self._unwritten = self._unwritten[self._file.write(self._unwritten) :]
            self._warned = False
        except OSError as error:
            if self.strict:
                raise
            if not self._warned:
                warnings.warn(f"{error}. They are kept in memory and written as soon as they can be.", stacklevel=2)
            self._warned = True

    def get_state(self) -> Json:
        return {"seconds": self._elapsed.get_state()}

    def set_state(self, state: Any) -> None:
        self._elapsed.set_state(state["seconds"])


def read_rows(path: str | os.PathLike[str]) -> list[Row]:
    """The rows of a file that `JSONLines` wrote, or is writing. `null` is NaN; a torn last line is left out.

    **Raises** `ValueError` for a file that holds something else, `OSError` for none.
    """
    return [row for _, row in _parsed(Path(path).read_bytes(), Path(path))]


def _parsed(content: bytes, path: Path) -> list[tuple[str, Row]]:
    """Each line with its row."""
    *lines, rest = content.split(b"\n")
    rows = [_line(line, number, path) for number, line in enumerate(lines, 1)]
    if rest and not _torn(rest):
        rows.append(_line(rest, len(lines) + 1, path))  # whole, but for the end of the line
    return rows


def _torn(rest: bytes) -> bool:
    """Is this the beginning of a row? A crash of the whole machine may leave zeros behind it."""
    rest = rest.rstrip(b"\0")
    return rest[: len(_HEAD)] == _HEAD[: len(rest)] and not rest.endswith(b"}")


def _line(line: bytes, number: int, path: Path) -> tuple[str, Row]:
    try:
        return line.decode(), _row(line)
    except ValueError as error:
        shown = line[:40].decode(errors="replace") + ("..." if len(line) > 40 else "")
        raise ValueError(
            f"{path}, line {number}, is {shown!r} and no row of a log ({error}). Give the path of a file that "
            "`JSONLines` wrote or of a new one, or move this one away."
        ) from None


def _row(line: bytes) -> Row:
    row = json.loads(line, parse_constant=_refuse)
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        raise ValueError("expected an object with a whole number `step`")
    for name, value in row.items():
        if value is not None and type(value) not in (int, float):
            raise ValueError(f"`{name}` is no number")
    return {name: math.nan if value is None else value for name, value in row.items()}


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Whatever the operating system refuses, the message names the file."""
    try:
        yield
    except OSError as error:
        raise SaveError(error.errno, f"{error.strerror}; the rows of the log cannot be written", str(path)) from error
