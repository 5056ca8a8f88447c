"""The folder of a run: what was asked for, how it stands, and who works in it. Without JAX, so that listing is quick.

runs/<experiment>/<id>/
    config.json     settings, seed, command line, versions, git commit; chunks, once training begins
    experiment.py   the experiment's file as it was
    summary.json    how the run stands, replaced in one go
    metrics.jsonl   the rows of its log
    log             what happened, with times
    checkpoints/    by step
"""

import os
import platform
import re
import secrets
import shutil
import time
from pathlib import Path
from typing import Any

from nondiff.run.files import DamagedFile, clean, read_json, write_json
from nondiff.run.lock import Lock, now

RUNS = "runs"
FORMAT = 1
CONFIG, SUMMARY, METRICS, LOG, CHECKPOINTS = "config.json", "summary.json", "metrics.jsonl", "log", "checkpoints"
SOURCE = "experiment.py"
KINDS: dict[str, type | tuple[type, ...]] = {
    "experiment": str,
    "file": str,
    "arguments": list,
    "config": dict,
    "seed": int,
    "steps": int,
    "log_every": int,
    "checkpoints": dict,
    "command": list,
    "folder": str,
    "versions": dict,
}
"""What `config.json` must say to resume from it."""


class RunDirectory:
    """A run's folder, held by this process until `release`."""

    def __init__(self, path: Path, config: dict[str, Any], summary: dict[str, Any]):
        """Take the folder, which exists. **Raises** `FolderInUse` if another process has it, `OSError`."""
        self.name = str(path)  # as it was called; the path does not depend on where the process goes
        self.path, self.config, self.summary = path.absolute(), config, summary
        self.lock = Lock(self.path)
        clean(self.path)

    @property
    def left_by(self) -> dict[str, Any] | None:
        """Who had it and is gone without giving it back."""
        return self.lock.left_by

    def update(self, **fields: Any) -> None:
        """Change what `summary.json` says."""
        self.summary |= fields
        self.summary["updated"] = now()
        write_json(self.path / SUMMARY, self.summary)

    def settle(self, **fields: Any) -> None:
        """Add to `config.json` what is only known when training begins."""
        self.config |= fields
        write_json(self.path / CONFIG, self.config)

    def release(self) -> None:
        self.lock.release()

    def discard(self) -> None:
        """Delete it: nothing was done."""
        self.release()
        shutil.rmtree(self.path, ignore_errors=True)


def create(path: Path, config: dict[str, Any], source: Path) -> RunDirectory:
    """A new run's folder. **Raises** `FileExistsError` for one that is there and not empty, or a file."""
    path.mkdir(parents=True, exist_ok=True)
    if any(path.iterdir()):
        raise FileExistsError(f"{path} is not empty.")
    directory = RunDirectory(path, {"format": FORMAT, **config, "created": now()}, _begun(config, path))
    try:
        shutil.copyfile(source, path / SOURCE)
        directory.settle()
        directory.update(status="running")
    except BaseException:
        directory.discard()
        raise
    return directory


def reopen(path: Path) -> RunDirectory:
    """A run's folder, to go on in it. **Raises** `DamagedFile` for a `config.json` that is no help."""
    config = read_config(path)
    try:
        summary = read_json(path / SUMMARY)
    except (FileNotFoundError, DamagedFile):
        summary = {}
    if not (type(summary.get("step")) is int and type(summary.get("steps")) is int and summary.get("status")):
        summary = {}  # it only says how far a run is; the checkpoints know
    return RunDirectory(path, config, {**_begun(config, path), **summary, "pid": os.getpid(), "host": platform.node()})


def read_config(path: Path) -> dict[str, Any]:
    """**Raises** `DamagedFile` for one that is missing, is not JSON, or lacks something."""
    file = path / CONFIG
    try:
        config = read_json(file)
    except FileNotFoundError:
        raise DamagedFile(f"{file} is missing.") from None
    if config.get("format") != FORMAT:
        raise DamagedFile(f"{file} has format {config.get('format')!r}; this version of nondiff reads format {FORMAT}.")
    for name, kind in KINDS.items():
        if not isinstance(config.get(name), kind) or isinstance(config[name], bool):
            raise DamagedFile(f"{file} is damaged: `{name}` is {config.get(name)!r}"[:200] + ".")
    return config


def new_path(experiment: str) -> Path:
    """`runs/<experiment>/<time>-<four random digits>`, so that names sort by time."""
    name = re.sub(r"[^\w.-]", "_", experiment)
    return Path(RUNS) / name / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def _begun(config: dict[str, Any], path: Path) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "experiment": config["experiment"],
        "id": path.absolute().name,
        "status": "running",
        "step": 0,
        "steps": config["steps"],
        "loss": None,
        "seconds": 0.0,
        "reason": None,
        "metrics": {},
        "started": now(),
        "updated": now(),
        "pid": os.getpid(),
        "host": platform.node(),
    }
