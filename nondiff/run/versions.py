"""What ran: the versions that decide the bits, and the commit of the code. Without JAX."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import TypedDict

PACKAGES = ("nondiff", "jax", "jaxlib", "numpy", "optax", "equinox")
ABSENT = "not installed"
PATIENCE = 5.0  # seconds for each call of git
ELSEWHERE = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")  # set in a hook, they would answer for another folder


class Git(TypedDict):
    """Where a folder's code stands."""

    commit: str
    dirty: bool
    """Tracked files differ from the commit, or there are Python files that it does not have (nor ignores)."""


def versions() -> dict[str, str]:
    """Those of Python and of each package that results depend on.

    >>> list(versions())
    ['python', 'nondiff', 'jax', 'jaxlib', 'numpy', 'optax', 'equinox']
    """
    return {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}}


def version(package: str) -> str:
    """As its installation says.

    >>> version("no-such-package")
    'not installed'
    """
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ABSENT


def git(folder: str | Path) -> Git | None:
    """The commit of the repository around a folder; `None` where there is none, or no git to ask. Never raises.

    Results in an untracked `runs/` do not make a repository dirty; an untracked Python file does.
    """
    commit = _ask(folder, "rev-parse", "--verify", "HEAD")
    if commit is None:
        return None
    changed = _ask(folder, "status", "--porcelain", "--untracked-files=no")
    new = _ask(folder, "ls-files", "--others", "--exclude-standard", "--", ":/*.py")
    return None if changed is None or new is None else {"commit": commit, "dirty": bool(changed or new)}


def _ask(folder: str | Path, *words: str) -> str | None:
    """What git says; `None` where it fails, is too slow or is not there."""
    command = ["git", "--no-optional-locks", "-C", str(folder), *words]
    environment = {name: value for name, value in os.environ.items() if name not in ELSEWHERE}
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env=environment, timeout=PATIENCE)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return done.stdout.decode("utf-8", "replace").strip() if done.returncode == 0 else None
