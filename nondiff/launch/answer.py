"""What a command says when something does not work, and its exit code."""

import contextlib
import dataclasses
import shlex
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from nondiff.launch.load import is_missing, missing_package, place
from nondiff.launch.refusal import Refusal
from nondiff.launch.signals import second_signal_exits
from nondiff.run.checkpoint import CheckpointError
from nondiff.run.directory import RunDirectory
from nondiff.run.files import DamagedFile, SaveError
from nondiff.run.lock import FolderInUse
from nondiff.run.record import said


@dataclasses.dataclass
class Answer:
    """What a command says in the end, and for whom."""

    code: int = 0
    path: Path | None = None
    directory: RunDirectory | None = None
    new: bool = False


@contextlib.contextmanager
def answered(name: str) -> Iterator[Answer]:
    """Errors as sentences and exit codes. One from within the training is shown whole: it is a failure, no setting."""
    answer = Answer()
    try:
        with second_signal_exits():
            yield answer
    except Refusal as refusal:
        answer.code = _say(f"{name}: {refusal}" if not str(refusal).startswith(name) else str(refusal), refusal.code)
    except ModuleNotFoundError as error:
        if not is_missing(error):
            raise
        answer.code = _say(f"{name} needs {missing_package(error)}", 1)
    except (FolderInUse, CheckpointError, DamagedFile) as error:
        answer.code = _say(str(error), 1)
    except SaveError as error:
        answer.code = _say(f"{name}: {error.strerror}: {error.filename}. {_resume(answer)}", 1)
    except Exception as error:
        if hasattr(error, "state"):  # from within the training
            traceback.print_exc()
            answer.code = _say(_resume(answer), 1)
        elif isinstance(error, ValueError):
            _discard(answer)
            answer.code = _say(f"{name}: {error}{place(error, answer.path) if answer.path else ''}", 1)
        else:
            raise
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit) and not hasattr(stop, "__notes__"):
            raise
        text = said(stop) if hasattr(stop, "state") else "interrupted"
        code = stop.code if isinstance(stop, SystemExit) and isinstance(stop.code, int) else 130
        answer.code = _say(f"{name}: {text}. {_resume(answer)}".rstrip(), code)


def _discard(answer: Answer) -> None:
    """A setting did not fit and nothing was done: leave no trace of a new run."""
    if answer.new and answer.directory is not None and answer.directory.summary["step"] == 0:
        answer.directory.discard()


def _resume(answer: Answer) -> str:
    return "" if answer.directory is None else f"To go on: nondiff resume {shlex.quote(answer.directory.name)}"


def _say(text: str, code: int) -> int:
    if text:
        print(text, file=sys.stderr)
    return code
