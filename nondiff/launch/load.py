"""An experiment's file: find it, import it, and say what is wrong with it."""

import contextlib
import dataclasses
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import equinox as eqx

from nondiff.launch.refusal import Refusal

DISTRIBUTIONS = {"sklearn": "scikit-learn", "PIL": "pillow", "cv2": "opencv-python", "yaml": "pyyaml"}
"""Packages that are not called what they install."""


def find(name: str) -> Path:
    """The experiment's file."""
    path = Path(name)
    if name.startswith("-"):
        raise Refusal(f"`nondiff run {name}`: the file comes first: nondiff run FILE {name} ...", code=2)
    if path.is_dir():
        inside = ", ".join(sorted(p.name for p in path.glob("*.py"))) or "no Python file"
        raise Refusal(f"{name} is a folder; name one file. It holds {inside}.", code=2)
    if not path.is_file():
        raise Refusal(f"{name}: no such file.", code=2)
    if path.suffix != ".py":
        raise Refusal(f"{name} is not a Python file (.py).", code=2)
    return path.resolve()


def load(path: Path, name: str) -> ModuleType:
    """Import the file, under a name that no other file has and that is the same in every process. It may import its
    neighbours."""
    unique = f"{re.sub(r'[^0-9A-Za-z_]', '_', path.stem)}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(unique, path)
    assert spec is not None and spec.loader is not None  # it ends in .py
    module = sys.modules[unique] = importlib.util.module_from_spec(spec)
    try:
        with on_path(path.parent):
            spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[unique]
        if isinstance(error, ModuleNotFoundError) and is_missing(error):
            raise
        raise Refusal(f"{name} could not be loaded.\n{_short_traceback(error, path)}") from error
    with contextlib.suppress(ImportError):  # it comes with Ray, whose workers cannot import a file by this name
        importlib.import_module("cloudpickle").register_pickle_by_value(module)
    return module


def config_class(module: ModuleType, name: str) -> type:
    """The class of the settings: what `make` says it takes, or else the only dataclass of the file."""
    make = getattr(module, "make", None)
    if not callable(make):
        raise Refusal(
            f"{name} has no `make`. An experiment is a file with a frozen dataclass of settings, every field with a "
            "default, and a function `make(config: Config) -> nondiff.Experiment`."
        )
    taken = next(iter(inspect.signature(make).parameters.values()), None)
    config = None if taken is None else taken.annotation
    if isinstance(config, str):
        config = getattr(module, config, None)
    if not _is_dataclass(config):
        here = [
            value for value in vars(module).values() if _is_dataclass(value) and value.__module__ == module.__name__
        ]
        here = [value for value in here if not issubclass(value, eqx.Module)]
        config = here[0] if len(here) == 1 and taken is not None else None
    if config is None:
        raise Refusal(
            f"{name}: `make` takes no settings. Write a frozen dataclass `Config` and `def make(config: Config)`."
        )
    if not config.__dataclass_params__.frozen:
        raise Refusal(f"{name}: `{config.__name__}` can be changed after the fact; use `@dataclass(frozen=True)`.")
    bare = [
        field.name
        for field in dataclasses.fields(config)
        if field.init and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if bare:
        raise Refusal(
            f"{name}: `{config.__name__}` has no default for {', '.join(f'`{field}`' for field in bare)}; "
            f"`nondiff run {name}` alone must run."
        )
    return config


def _is_dataclass(value: Any) -> bool:
    return isinstance(value, type) and dataclasses.is_dataclass(value)


def missing_package(error: ModuleNotFoundError) -> str:
    """The package, and how to get it: with the extra of nondiff that has it, or by itself."""
    package = (error.name or "").partition(".")[0]
    distribution = DISTRIBUTIONS.get(package, package.replace("_", "-"))
    try:
        extra = extra_with(distribution, importlib.metadata.requires("nondiff") or [])
    except importlib.metadata.PackageNotFoundError:
        extra = None
    return f'{package}: pip install "nondiff[{extra}]"' if extra else f"{package}: pip install {distribution}"


def extra_with(distribution: str, requirements: Sequence[str]) -> str | None:
    """The extra that brings the distribution.

    >>> extra_with("Mlxtend", ['jax>=0.10', 'mlxtend>=0.23; extra == "examples"'])
    'examples'
    """
    for requirement in requirements:
        wanted = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"extra == ['\"]([\w.-]+)['\"]", requirement)
        if wanted and extra and wanted[0].lower() == distribution.lower():
            return extra[1]
    return None


def is_missing(error: ModuleNotFoundError) -> bool:
    """Is the package missing, or only a module that it never had?"""
    top = (error.name or "").partition(".")[0]
    return bool(top) and top not in sys.modules and importlib.util.find_spec(top) is None


def _short_traceback(error: Exception, path: Path) -> str:
    """The part that happened in the file."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    head = ["Traceback (most recent call last):\n", *traceback.format_list(frames)] if frames else []
    return "".join([*head, *traceback.format_exception_only(error)]).rstrip()


def place(error: Exception, path: Path) -> str:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f" ({path.name}, line {lines[-1]})" if lines else ""


@contextlib.contextmanager
def on_path(folder: Path) -> Iterator[None]:
    """The experiment's folder can be imported from, as with `python FILE`."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
