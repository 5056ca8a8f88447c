"""`nondiff replay FILE`: members that failed on every worker, one after the other in this process."""

import argparse
import traceback
from collections.abc import Sequence

from nondiff.distributed.failure import losses
from nondiff.launch.refusal import Refusal
from nondiff.launch.words import emit


def replay(arguments: Sequence[str]) -> int:
    """Print each member's loss, or how it fails; the exit code is 1 if one does."""
    parser = argparse.ArgumentParser(
        prog="nondiff replay",
        description="Evaluate members that failed on every worker, one after the other in this process, so that a "
        "debugger can look. The file holds code, which is run: open only your own.",
    )
    parser.add_argument("file", help="where the error said it was saved")
    options = parser.parse_args(arguments)
    failed = 0
    try:
        members = list(losses(options.file))
    except OSError as error:
        raise Refusal(f"`{options.file}`: {error}") from None
    except Exception as error:
        raise Refusal(
            f"`{options.file}` is no file of members that failed ({type(error).__name__}: {error})."
        ) from None
    for number, loss in members:
        emit(f"member {number} ...")  # before it is tried: it may take the process with it
        try:
            emit(f"member {number}: {loss()}")
        except (Exception, SystemExit):
            failed += 1
            emit(f"member {number} failed:\n{traceback.format_exc()}")
    return int(failed > 0)
