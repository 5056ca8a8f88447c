"""One checkpoint on disk: a folder with the arrays as safetensors and a manifest that says what they must be.

    40/state.safetensors   the arrays
    40/manifest.json       their names, shapes and dtypes; SHA-256 of the file; settings, versions, what hooks remember
    40/manifest.sha256     of the manifest; `sha256sum -c` reads it

A flipped bit or a missing end is found before anything is restored. No pickle is ever written or read. Why not the
checkpoints of another library: equinox and Orbax restore a flipped bit in silence, and so does safetensors alone
(`python experiments/benchmarks/checkpoints.py`).
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import PyTree

from nondiff.core.tree import is_key, name
from nondiff.run.files import DamagedFile, new_folder, read_json
from nondiff.run.lock import now
from nondiff.run.versions import versions

FORMAT = 1
STATE, MANIFEST, DIGEST = "state.safetensors", "manifest.json", "manifest.sha256"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: damaged, or of another run."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What `Checkpointer.restore` returns and `fit(state=...)` goes on from."""

    step: int
    state: PyTree
    memory: Mapping[str, Any]
    """What batches and callbacks remember."""
    path: Path | None
    """Where it was read; `None` if nothing was saved yet."""


@dataclasses.dataclass(frozen=True)
class Leaf:
    """An array of a state, as a checkpoint describes it."""

    shape: tuple[int, ...]
    dtype: str
    """NumPy's name, or `key<threefry2x32>` for a random key, or `int`, `float`, `bool`, `complex` for Python's."""

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


def describe(tree: PyTree) -> dict[str, Leaf]:
    """The arrays of a tree by name; shapes (`jax.ShapeDtypeStruct`) serve as well. All else is left to the code."""
    return {key: _leaf(x) for key, x in _named(tree).items()}


def differences(there: Mapping[str, Any], here: Mapping[str, Any], where: str = "in the checkpoint") -> list[str]:
    """What is not the same in two flat descriptions, a line each."""
    lines = []
    for key in {**there, **here}:
        if key not in here:
            lines.append(f"  {key}: {there[key]} {where}, not here")
        elif key not in there:
            lines.append(f"  {key}: {here[key]} here, not {where}")
        elif there[key] != here[key]:
            lines.append(f"  {key}: {there[key]} {where}, {here[key]} here")
    return lines


def flat(settings: Any, root: str = "config") -> dict[str, Any]:
    """Nested settings by name.

    >>> flat({"net": {"width": 8}, "rates": [0.1, 0.2]})
    {'config.net.width': 8, 'config.rates[0]': 0.1, 'config.rates[1]': 0.2}
    """
    if isinstance(settings, Mapping) and settings:
        return {k: v for key, inner in settings.items() for k, v in flat(inner, f"{root}.{key}").items()}
    if isinstance(settings, list | tuple) and settings:
        return {k: v for i, inner in enumerate(settings) for k, v in flat(inner, f"{root}[{i}]").items()}
    return {root: settings}


@functools.cache
def surroundings() -> dict[str, str]:
    """What the bits of a run depend on beside its settings."""
    found = versions()
    minor = ".".join(found["python"].split(".")[:2])
    return {**found, "python": minor, "device": jax.devices()[0].device_kind}


def on_host(tree: PyTree, into: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of a tree by name, copied, so that the next step may overwrite them.

    `into` are those of the save before, which are used again: touching new memory takes longer than the copy.

    **Raises** `CheckpointError` for an array of Python objects.
    """
    named = {key: jax.random.key_data(x) if is_key(x) else x for key, x in _named(tree).items()}
    return {key: _copied(key, x, into.get(key)) for key, x in jax.device_get(named).items()}


def write(
    path: Path, step: int, arrays: Mapping[str, np.ndarray], leaves: Mapping[str, Leaf], config: Any, memory: Any
) -> None:
    """**Raises** `OSError` if the disk does not take it; nothing stands under `path` then."""
    with new_folder(path) as folder:
        try:
            safetensors.numpy.save_file({key: _storable(x) for key, x in arrays.items()}, folder / STATE)
        except safetensors.SafetensorError as error:  # the only way in which it tells that a disk is full
            raise OSError(str(error)) from None
        manifest = {
            "format": FORMAT,
            "step": step,
            "saved": now(),
            "files": {STATE: {"sha256": _sha256(folder / STATE), "bytes": (folder / STATE).stat().st_size}},
            "leaves": {key: {"shape": list(leaf.shape), "dtype": leaf.dtype} for key, leaf in leaves.items()},
            "config": config,
            "versions": surroundings(),
            "memory": memory,
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, allow_nan=False) + "\n")
        (folder / DIGEST).write_text(_digest(folder))


def verify(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose files are what they were when it was written.

    **Raises** `DamagedFile` that names the file and what is wrong with it.
    """
    for file in (DIGEST, MANIFEST):
        if not (path / file).is_file():
            raise DamagedFile(f"{path / file} is missing.")
    if (path / DIGEST).read_bytes() != _digest(path).encode():
        raise DamagedFile(f"{path / MANIFEST} does not have the SHA-256 that {DIGEST} says; one of the two is damaged.")
    manifest = read_json(path / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {manifest.get('format')}, and this version of nondiff reads format {FORMAT}. It was "
            f"written by nondiff {manifest.get('versions', {}).get('nondiff')}; install that version."
        )
    for file, expected in manifest["files"].items():
        if not (path / file).is_file():
            raise DamagedFile(f"{path / file} is missing.")
        size = (path / file).stat().st_size
        if size != expected["bytes"]:
            raise DamagedFile(f"{path / file} has {size} bytes instead of {expected['bytes']}.")
        if _sha256(path / file) != expected["sha256"]:
            raise DamagedFile(f"{path / file} does not have the SHA-256 that {MANIFEST} says.")
    return manifest


def read(path: Path, manifest: Mapping[str, Any], like: PyTree) -> PyTree:
    """The tree `like` with the arrays of a verified checkpoint.

    **Raises** `CheckpointError` with every array that is not the same.
    """
    there = {key: Leaf(tuple(leaf["shape"]), leaf["dtype"]) for key, leaf in manifest["leaves"].items()}
    refuse(path, "another state", differences(there, describe(like)))
    arrays = safetensors.numpy.load_file(path / STATE)
    leaves, treedef = jtu.tree_flatten_with_path(like)
    if any(isinstance(x, jax.ShapeDtypeStruct) for _, x in leaves):
        raise ValueError("`restore(like)`: `like` holds shapes; give a state of arrays, as `nondiff.init` returns.")
    restored = [_restored(arrays[name(p, "state")], x) if eqx.is_array_like(x) else x for p, x in leaves]
    return treedef.unflatten(restored)


def refuse(path: Path, what: str, lines: Iterable[str], hint: str = "") -> None:
    lines = list(lines)
    if lines:
        raise CheckpointError("\n".join([f"{path} is a checkpoint of {what}:", *lines, *([hint] if hint else [])]))


def _named(tree: PyTree) -> dict[str, Any]:
    leaves = jtu.tree_flatten_with_path(tree)[0]
    kinds = (jax.ShapeDtypeStruct,)
    return {name(path, "state"): x for path, x in leaves if eqx.is_array_like(x) or isinstance(x, kinds)}


def _leaf(x: Any) -> Leaf:
    if isinstance(x, bool | int | float | complex):
        return Leaf((), type(x).__name__)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return Leaf(tuple(x.shape), str(x.dtype))
    return Leaf(tuple(x.shape), np.dtype(x.dtype).name)


def _copied(key: str, x: Any, into: np.ndarray | None) -> np.ndarray:
    if isinstance(x, int) and not isinstance(x, bool):
        return np.frombuffer(str(x).encode(), np.uint8)  # Python's have no bounds
    x = np.asarray(x)
    if x.dtype.hasobject:
        raise CheckpointError(f"`{key}` is an array of Python objects ({x.dtype}); a checkpoint holds numbers only.")
    native = x.dtype.newbyteorder("=")
    copy = np.empty(x.shape, native) if into is None or (into.shape, into.dtype) != (x.shape, native) else into
    np.copyto(copy, x)
    return copy


def _storable(x: np.ndarray) -> np.ndarray:
    """safetensors knows most dtypes; the rest, such as complex128 and int4, are stored as bytes."""
    known = (x.dtype.kind in "biuf" and x.dtype.itemsize <= 8) or x.dtype.name in ("bfloat16", "complex64")
    return x if known else np.frombuffer(x.tobytes(), np.uint8)


def _restored(stored: np.ndarray, like: Any) -> Any:
    if isinstance(like, bool | int | float | complex):
        if isinstance(like, int) and not isinstance(like, bool):
            return int(stored.tobytes())
        return stored.view(np.complex128).item() if isinstance(like, complex) else type(like)(stored.item())
    if is_key(like):
        return jax.random.wrap_key_data(jnp.asarray(stored), impl=jax.random.key_impl(like))
    native = np.dtype(like.dtype).newbyteorder("=")
    if stored.dtype != native:
        stored = np.frombuffer(stored.tobytes(), native).reshape(like.shape)
    if isinstance(like, np.generic):
        return stored[()]
    if isinstance(like, np.ndarray):
        return np.array(stored)
    return jax.device_put(stored, like.sharding if len(like.devices()) > 1 else None)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(path: Path) -> str:
    """What `sha256sum manifest.json` prints."""
    return f"{_sha256(path / MANIFEST)}  {MANIFEST}\n"
