"""Files that are whole or not there: written aside, forced to the disk, renamed."""

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ASIDE = ".aside-"  # what begins so is unfinished or going away, and may be deleted
OLD = f"{ASIDE}old-"  # what gives way to a new one of its name


class SaveError(OSError):
    """Something of a run could not be written. Says what, why and where."""


class DamagedFile(ValueError):
    """A file that does not hold what it should."""


def sync(path: Path) -> None:
    """Force a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill. It appears under its name at the end of the block, with all its files, or never.

    One that is there already is replaced.
    """
    aside = path.with_name(f"{ASIDE}{path.name}-{uuid.uuid4().hex[:8]}")
    aside.mkdir()
    try:
        yield aside
        for file in aside.iterdir():
            sync(file)
        sync(aside)
        old = path.with_name(f"{OLD}{path.name}")
        if path.exists():
            path.rename(old)
        aside.rename(path)
        sync(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def remove(folder: Path) -> None:
    """Delete a folder: it goes out of sight at once, whole, then file by file."""
    aside = folder.with_name(f"{ASIDE}{folder.name}-{uuid.uuid4().hex[:8]}")
    folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def clean(folder: Path) -> None:
    """Delete what a killed process left unfinished. Only for who holds the folder's lock."""
    for old in folder.glob(f"{OLD}*"):  # it was to be replaced, and the new one did not come
        place = old.with_name(old.name.removeprefix(OLD))
        if not place.exists():
            old.rename(place)
    for left in folder.glob(f"{ASIDE}*"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a file in one go."""
    aside = path.with_name(f"{ASIDE}{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        with open(aside, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        sync(path.parent)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """**Raises** `DamagedFile` for what is not a JSON object, `FileNotFoundError` for no file."""
    try:
        return parse(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"{path} is damaged: {error}.") from None


def parse(text: bytes) -> dict[str, Any]:
    """What is not finite, though JSON has no such thing, is `None`. **Raises** `ValueError` for what is no object."""
    try:
        value = json.loads(text, parse_constant=lambda name: None)
    except ValueError as error:
        raise ValueError(f"it is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"it holds no JSON object but {value!r}"[:80])
    return value
