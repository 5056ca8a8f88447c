"""`nondiff list [FOLDER] [--json]`: the runs in a folder, the newest last."""

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from typing import Any

from nondiff.launch.refusal import Refusal
from nondiff.launch.runs import runs_below, started, summary_of
from nondiff.launch.words import ago, aligned, emit, number, printable, span
from nondiff.run.directory import RUNS

HEAD = ("run", "status", "step", "loss", "time", "started", "reason")
RIGHT = (2, 3, 4, 5)
CUT = "..."


def list_runs(arguments: Sequence[str]) -> int:
    """Print the runs and return the exit code."""
    parser = argparse.ArgumentParser(prog="nondiff list", description="The runs in a folder, the newest last.")
    parser.add_argument("folder", metavar="FOLDER", nargs="?", default=RUNS, help="runs, or one of its folders")
    parser.add_argument("--json", action="store_true", help="print one JSON array")
    options = parser.parse_args(arguments)
    runs = read_runs(options.folder)
    if options.json:
        emit(json.dumps(runs, indent=1))
    elif runs:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        emit("\n".join(table(runs, now=time.time(), width=width)))
    if not runs:
        print(f"There are no runs in {options.folder}. `nondiff run FILE` makes one.", file=sys.stderr)
    return 0


def read_runs(folder: str) -> list[dict[str, Any]]:
    """How each run in a folder stands, in the order in which they started."""
    if not os.path.isdir(folder):
        what = "is not a folder" if os.path.exists(folder) else "there is no such folder"
        raise Refusal(f"{folder}: {what}. `nondiff list FOLDER` lists the runs in one; default: {RUNS}.", code=2)
    try:
        runs = [summary_of(run) for run in runs_below(folder)]
    except OSError as error:
        raise Refusal(f"{folder} cannot be read: {error.strerror}.") from None
    return sorted(runs, key=lambda run: (started(run), run["path"]))


def table(runs: Sequence[dict[str, Any]], *, now: float, width: int | None) -> list[str]:
    """One line for each run below a line of heads, none longer than `width` where only the reason is at fault."""
    lines = aligned([HEAD, *([*_cells(run, now)] for run in runs)], right=RIGHT)
    if width is None:
        return lines
    room = max(width, lines[0].rindex(HEAD[-1]) + len(CUT))
    return [line if len(line) <= room else line[: room - len(CUT)] + CUT for line in lines]


def _cells(run: dict[str, Any], now: float) -> tuple[str, ...]:
    progress = "-" if run["step"] is None else f"{run['step']}/{number(run['steps'])}"
    return (
        printable(run["path"]),
        printable(run["status"]),
        progress,
        number(run["loss"] if run["loss"] is None else float(run["loss"])),
        "-" if run["seconds"] is None else span(run["seconds"]),
        ago(now - started(run)),
        printable(run["reason"] or ""),
    )
