"""Runs on the disk: where they are, which one is meant, and how one stands. Without JAX.

What a run's folder holds is told in `nondiff/run/directory.py`.
"""

import datetime
import difflib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nondiff.launch.refusal import Refusal
from nondiff.run.directory import CHECKPOINTS, CONFIG, FORMAT, METRICS, RUNS, SUMMARY
from nondiff.run.files import DamagedFile, read_json
from nondiff.run.lock import LOCK, is_held

KINDS: dict[str, tuple[type, ...]] = {
    "status": (str,),
    "step": (int,),
    "steps": (int,),
    "loss": (float, int),
    "seconds": (float, int),
    "reason": (str,),
    "metrics": (dict,),
    "started": (str,),
    "updated": (str,),
    "pid": (int,),
    "host": (str,),
}
"""What `summary.json` says, beside `experiment` and `id`. All but `status` may be missing or null."""
NAMED = 5  # runs that a message names


def is_run(folder: str | Path) -> bool:
    """Is it a run, even one without `summary.json`? A `config.json` alone may be another program's."""
    if os.path.isfile(os.path.join(folder, SUMMARY)):
        return True
    return os.path.isfile(os.path.join(folder, CONFIG)) and any(
        os.path.exists(os.path.join(folder, name)) for name in (LOCK, METRICS, CHECKPOINTS)
    )


def runs_below(folder: str, *, depth: int = 2) -> Iterator[str]:
    """The runs in a folder: itself, its children or its grandchildren.

    **Raises** `OSError` for a folder that cannot be read; one further down is named on stderr.
    """
    if is_run(folder):
        yield folder
    elif depth:
        with os.scandir(folder) as entries:
            inside = [entry.path for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
        for path in inside:
            try:
                yield from runs_below(path, depth=depth - 1)
            except OSError as error:
                print(f"{path} cannot be read: {error.strerror}.", file=sys.stderr)


def find_run(name: str) -> Path:
    """The run's folder, from its path, or from its id or `experiment/id` below `runs/` or a unique beginning of these.

    **Raises** `Refusal` that names the nearest ones, or all that are meant.
    """
    if name and is_run(name):
        return Path(name)
    runs = sorted(runs_below(RUNS)) if os.path.isdir(RUNS) else []
    ids = [_id(run, name) for run in runs]
    meant = [run for run, id in zip(runs, ids, strict=True) if id == name] or [
        run for run, id in zip(runs, ids, strict=True) if name and id.startswith(name)
    ]
    if len(meant) == 1:
        return Path(meant[0])
    if meant:
        raise Refusal(f"{name}: which one? {_some(meant)}", code=2)
    for folder in (name, os.path.join(RUNS, name)):
        inside = sorted(runs_below(folder)) if name and os.path.isdir(folder) else []
        if inside:
            raise Refusal(f"{name} is a folder of runs; name one: {_some(inside)}", code=2)
    if not runs:
        raise Refusal(f"{name}: no such run; there are none in {RUNS}/ of {os.getcwd()}.", code=2)
    near = difflib.get_close_matches(name, ids, n=3)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"The newest: {_some(runs)}"
    raise Refusal(f"{name}: no such run. {hint} `nondiff list` shows all.", code=2)


def _id(run: str, name: str) -> str:
    """What `name` is compared to: the id, with the experiment before it where `name` has one."""
    parts = Path(run).parts
    return "/".join(parts[-2:]) if "/" in name else parts[-1]


def _some(runs: list[str]) -> str:
    """The newest few, for ids begin with the time."""
    newest = sorted(runs, key=os.path.basename)[-NAMED:]
    more = len(runs) - len(newest)
    return ", ".join(newest) + (f" and {more} older." if more else ".")


def read_object(path: str | Path) -> dict[str, Any]:
    """A file with one JSON object. **Raises** `DamagedFile`, also where there is none; it does not name the folder."""
    name = os.path.basename(path)
    try:
        return read_json(Path(path))
    except FileNotFoundError:
        raise DamagedFile(f"{name} is missing") from None
    except OSError as error:
        raise DamagedFile(f"{name} cannot be read: {error.strerror}") from None
    except DamagedFile as damage:
        raise DamagedFile(str(damage).replace(str(path), name, 1).rstrip(".")) from None


def summary_of(folder: str | Path) -> dict[str, Any]:
    """How a run stands: the fields of `summary.json` and its path.

    `status` is `killed` for one that says `running` while nobody works in it, and `damaged` where `summary.json` is no
    help; `reason` then says why.
    """
    experiment, id = Path(os.path.abspath(folder)).parts[-2:]
    run = {"path": str(folder), "experiment": experiment, "id": id, **dict.fromkeys(KINDS)}
    try:
        run |= _checked(read_object(os.path.join(folder, SUMMARY)))
    except DamagedFile as damage:
        run |= {"status": "damaged", "reason": str(damage)}
    if run["status"] == "running" and not is_held(Path(folder)):
        run |= {"status": "killed", "reason": run["reason"] or "its process is gone without a word"}
    return run


def started(run: dict[str, Any]) -> float:
    """In seconds since 1970; where the run does not say, when its folder was last written to."""
    try:
        return datetime.datetime.fromisoformat(run["started"]).timestamp()
    except (TypeError, ValueError):
        return os.stat(run["path"]).st_mtime if os.path.exists(run["path"]) else 0.0


def _checked(summary: dict[str, Any]) -> dict[str, Any]:
    if summary.get("format") != FORMAT:
        raise DamagedFile(
            f"{SUMMARY} has format {summary.get('format')!r}, this nondiff reads {FORMAT}; another version wrote it"
        )
    if summary.get("status") is None:
        raise DamagedFile(f"{SUMMARY} is damaged: it has no `status`")
    known = {name: summary.get(name) for name in KINDS}
    for name, value in known.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, KINDS[name])):
            raise DamagedFile(f"{SUMMARY} is damaged: `{name}` is {value!r}"[:120])
    return known
