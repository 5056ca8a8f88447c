"""The log for TensorBoard."""

import os
import socket
import struct
import time
from pathlib import Path
from typing import Any, BinaryIO

from nondiff.run.callback import AbstractCallback, Moment
from nondiff.run.files import SaveError


class TensorBoard(AbstractCallback):
    """Writes every row of the log for `tensorboard --logdir FOLDER`, each metric as a scalar under its own name.

    A run that goes on at step n says so, and TensorBoard hides what the folder holds of later steps: a killed and
    resumed run looks as if nothing had happened. Each row is handed to the operating system before training goes on.
    (`tensorboardX.SummaryWriter` writes later and in a thread: a killed process loses rows, and one whose disk is full
    waits for ever. So the package is used for its formats only.)

    **Arguments:**

    - `folder`: one for each run; it is made.

    **Raises** `ModuleNotFoundError` without the package, `pip install "nondiff[tensorboard]"`; in a run `OSError` that
    names the file, where it cannot be written.

    >>> import pathlib, tempfile, jax, jax.numpy as jnp, nondiff, optax
    >>> problem = nondiff.BlackBox(jnp.square, 1.0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result = nondiff.fit(problem, nondiff.Backprop(optax.sgd(0.25)), steps=100, key=jax.random.key(0),
    ...                          callbacks=[TensorBoard(folder)])
    ...     len(list(pathlib.Path(folder).glob("events.out.tfevents.*")))
    1
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder).absolute()
        self._formats = _formats()
        self._file: BinaryIO | None = None

    def begin(self, moment: Moment) -> None:
        event, _ = self._formats
        now = time.time_ns()  # TensorBoard reads the files in the order of their names
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{now // 10**9}.{socket.gethostname()}.{now}"
        self._file = (self.folder / name).open("xb", buffering=0)
        start = event.SessionLog(status=event.SessionLog.START)
        self._write(event.Event(wall_time=time.time(), file_version="brain.Event:2"))
        self._write(event.Event(wall_time=time.time(), step=moment.start + 1, session_log=start))

    def __call__(self, moment: Moment) -> None:
        event, summary = self._formats
        numbers = {name: value for name, value in moment.row.items() if name != "step"}
        values = [summary.Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        self._write(event.Event(wall_time=time.time(), step=moment.step, summary=summary.Summary(value=values)))

    def end(self, moment: Moment, error: BaseException | None) -> None:
        del moment, error
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, event: Any) -> None:
        """A record: its length, its bytes, and a checksum of each."""
        from tensorboardX.record_writer import masked_crc32c

        assert self._file is not None, "`begin` opens the file"
        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        parts = length, struct.pack("<I", masked_crc32c(length)), data, struct.pack("<I", masked_crc32c(data))
        record = b"".join(parts)
        try:
            while record:  # a disk that fills up takes a part first
                record = record[self._file.write(record) :]
        except OSError as error:
            raise SaveError(error.errno, f"{error.strerror}; the log cannot be written", self._file.name) from error


def _formats() -> tuple[Any, Any]:
    try:
        from tensorboardX.proto import event_pb2, summary_pb2
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            '`TensorBoard` needs the package tensorboardX: pip install "nondiff[tensorboard]"', name=error.name
        ) from None
    return event_pb2, summary_pb2
