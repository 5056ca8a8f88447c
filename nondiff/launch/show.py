"""`nondiff show RUN [--json]`: all about one run."""

import argparse
import datetime
import json
import os
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nondiff.launch.runs import (
    find_run,
    read_object,
    started,
    summary_of,
)
from nondiff.launch.words import ago, aligned, emit, number, printable, size, span
from nondiff.run.directory import CHECKPOINTS, CONFIG, METRICS
from nondiff.run.files import DamagedFile, parse

BLOCK = 1 << 16  # bytes of the log that are read at first, from its end
FILES = ("manifest.json", "manifest.sha256", "state.safetensors")  # of a checkpoint


def show_run(arguments: Sequence[str]) -> int:
    """Print all about a run and return the exit code."""
    parser = argparse.ArgumentParser(prog="nondiff show", description="All about one run.")
    parser.add_argument("run", metavar="RUN", help="a path, or an id below runs/ or a unique beginning of one")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    run = read_run(find_run(options.run))
    emit(json.dumps(run, indent=1) if options.json else "\n".join(lines(run, now=time.time())))
    return 0


def read_run(folder: Path) -> dict[str, Any]:
    """How the run stands (as in `nondiff list --json`), its `config.json`, newest row and checkpoints."""
    try:
        config, damage = read_object(folder / CONFIG), None
    except DamagedFile as error:
        config, damage = None, str(error)
    return {
        **summary_of(folder),
        "config": config,
        "damage": damage,
        "row": last_row(folder / METRICS),
        "checkpoints": checkpoints(folder / CHECKPOINTS),
    }


def last_row(path: Path) -> dict[str, Any] | None:
    """The newest whole row: the last line of a killed run may be cut."""
    try:
        with open(path, "rb") as file:
            length, block = file.seek(0, os.SEEK_END), BLOCK
            while True:
                file.seek(max(length - block, 0))
                rows = file.read().splitlines()
                for row in reversed(rows if block >= length else rows[1:]):  # the first may have lost its beginning
                    try:
                        return parse(row)
                    except ValueError:
                        continue
                if block >= length:
                    return None
                block *= 8
    except OSError:
        return None


def checkpoints(folder: Path) -> list[dict[str, Any]]:
    """Each with its step, path, size in bytes, when it was written and the files that it lacks."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if not (path.name.isdecimal() and path.is_dir()):
            continue
        try:
            sizes = {entry.name: entry.stat().st_size for entry in os.scandir(path) if entry.is_file()}
            written = datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC)
        except FileNotFoundError:  # the run deletes its old ones
            continue
        found.append(
            {
                "step": int(path.name),
                "path": str(path),
                "bytes": sum(sizes.values()),
                "written": written.isoformat(timespec="seconds"),
                "lacks": [name for name in FILES if name not in sizes],
            }
        )
    return sorted(found, key=lambda checkpoint: checkpoint["step"])


def lines(run: Mapping[str, Any], *, now: float) -> list[str]:
    """What `show` prints."""
    config = run["config"] or {}
    facts = {
        "run": run["path"],
        "status": _status(run["status"], run["reason"]),
        "progress": _progress(run),
        "started": f"{run['started']} ({ago(now - started(dict(run)))})" if run["started"] else None,
        "process": f"{run['pid']} on {run['host']}" if run["pid"] else None,
        "damage": run["damage"],
        "seed": config.get("seed"),
        "command": _command(config.get("command")),
        "in": config.get("folder"),
        "git": _git(config.get("git")) if "git" in config else None,
        "versions": _pairs(config.get("versions")),
        "chunks": ", ".join(map(str, config.get("chunks") or ())) or None,
    }
    facts = [(name, number(value)) for name, value in facts.items() if value is not None]
    settings = config.get("config")
    row = run["row"] or {}
    return [
        *aligned(facts),
        *_section("settings", settings if isinstance(settings, Mapping) else {}),
        *_section(f"step {number(row.get('step'))}", {k: v for k, v in row.items() if k != "step"}),
        *_section("report", run["metrics"] or {}),
        *_checkpoints(run["checkpoints"], now),
    ]


def _progress(run: Mapping[str, Any]) -> str | None:
    if run["step"] is None:
        return None
    loss = "" if run["loss"] is None else f", loss {float(run['loss']):.4g}"
    seconds = "" if run["seconds"] is None else f", {span(run['seconds'])}"
    return f"{run['step']} of {number(run['steps'])} steps{loss}{seconds}"


def _command(words: Any) -> str | None:
    return shlex.join(map(str, words)) if isinstance(words, list) else None


def _git(git: Any) -> str:
    if not isinstance(git, Mapping):
        return "not in a repository"
    return str(git.get("commit")) + (" and changes that are not in it" if git.get("dirty") else "")


def _pairs(values: Any) -> str | None:
    return ", ".join(f"{k} {v}" for k, v in values.items()) if isinstance(values, Mapping) else None


def _section(title: str, values: Mapping[str, Any]) -> list[str]:
    rows = [(f"  {printable(name)}", number(value)) for name, value in values.items()]
    return ["", printable(title), *aligned(rows)] if rows else []


def _checkpoints(found: Sequence[Mapping[str, Any]], now: float) -> list[str]:
    rows = [
        (
            f"  {checkpoint['step']}",
            size(checkpoint["bytes"]),
            ago(now - datetime.datetime.fromisoformat(checkpoint["written"]).timestamp()),
            f"damaged: {', '.join(checkpoint['lacks'])} missing" if checkpoint["lacks"] else "",
        )
        for checkpoint in found
    ]
    return ["", "checkpoints", *aligned(rows, right=(0, 1, 2))] if rows else []


def _status(status: str, reason: str | None) -> str:
    """`finished: all 30 steps done`, but `stopped after step 7`, which says both."""
    return status if not reason else reason if reason.startswith(status) else f"{status}: {reason}"
