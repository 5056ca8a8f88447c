"""One process in a folder at a time.

The lock is the operating system's, by `filelock`: it goes with its process, however that ended. Who holds it is told in
a file beside it, for `filelock` empties the file that it locks.
"""

import datetime
import os
import platform
from pathlib import Path
from typing import Any

import filelock

from nondiff.run.files import DamagedFile, read_json, write_json

LOCK, OWNER = ".lock", ".owner.json"
PATIENCE = 0.3  # seconds; `is_held` holds a lock for a moment, too


class FolderInUse(RuntimeError):
    """Another process works in this folder."""


class Lock:
    """The right to write in a folder, which exists. `left_by` is who had it and is gone without giving it back.

    **Raises** `FolderInUse` that names the process and its host; `OSError` where the folder cannot be written.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.lock = filelock.FileLock(folder / LOCK, timeout=PATIENCE, thread_local=False)
        try:
            self.lock.acquire()
        except filelock.Timeout:
            other = owner(folder)
            way = "Let it end or stop it, or use another folder."
            if other is not None and (other.get("pid"), other.get("host")) == (os.getpid(), platform.node()):
                way = "That is this process: close what holds it, such as another `Checkpointer`."
            raise FolderInUse(f"{folder} is in use by {describe(other)}. {way}") from None
        try:
            self.left_by = owner(folder)
            write_json(folder / OWNER, {"pid": os.getpid(), "host": platform.node(), "since": now()})
        except BaseException:
            self.lock.release(force=True)
            raise

    def release(self) -> None:
        """Give it back; more than once does no harm."""
        if self.lock.is_locked:
            (self.folder / OWNER).unlink(missing_ok=True)
            self.lock.release(force=True)


def owner(folder: Path) -> dict[str, Any] | None:
    """Who wrote last that the folder is theirs."""
    try:
        return read_json(folder / OWNER)
    except (FileNotFoundError, DamagedFile):
        return None


def describe(owner: dict[str, Any] | None) -> str:
    if owner is None:
        return "another process"
    return f"process {owner.get('pid')} on {owner.get('host')} (since {owner.get('since')})"


def is_held(folder: Path) -> bool:
    """Does a process work in this folder now?"""
    if not (folder / LOCK).exists():
        return False
    lock = filelock.FileLock(folder / LOCK, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except (filelock.Timeout, OSError):
        return True
    lock.release()
    return False


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
