"""What `nondiff doctor` judges: each check is a function of what was found, and pure.

`problem` is what makes runs fail, lose data or miss a GPU; `note` is what is slow, absent or weaker than it could be.
"""

import dataclasses
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from nondiff.launch.words import size
from nondiff.run.versions import ABSENT

GB = 10**9
SLOW_WRITE = 0.1  # seconds for 1 MB to be safe on the disk


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of `nondiff doctor`."""

    name: str
    level: Literal["ok", "note", "problem"]
    found: str
    way_out: str = ""


def extras_of(requirements: Sequence[str]) -> dict[str, list[str]]:
    """The packages of each extra, from what `importlib.metadata.requires` says; those of none under `""`.

    >>> extras_of(['jax>=0.10', 'ray; extra == "ray"', 'nondiff[ray]; extra == "test"', 'pytest; extra == "test"'])
    {'': ['jax'], 'ray': ['ray'], 'test': ['pytest', 'ray']}
    """
    packages: dict[str, list[str]] = {}
    others: dict[str, list[str]] = {}
    for requirement in requirements:
        match = re.match(r"([\w.-]+)(?:\[([\w.,\s-]+)\])?", requirement)
        marker = re.search(r"extra == ['\"]([\w.-]+)['\"]", requirement)
        extra = marker[1] if marker else ""
        if match and match[1] == "nondiff":
            others.setdefault(extra, []).extend(name.strip() for name in (match[2] or "").split(","))
        elif match:
            packages.setdefault(extra, []).append(match[1])
    for extra, names in others.items():
        for name in names:
            packages[extra] = [*packages.get(extra, []), *packages.get(name, [])]
    return packages


def check_versions(versions: Mapping[str, str]) -> Finding:
    found = ", ".join(f"{name} {version}" for name, version in versions.items())
    absent = [name for name, version in versions.items() if version == ABSENT]
    if absent:
        return Finding("versions", "problem", found, f"pip install {' '.join(absent)}")
    return Finding("versions", "ok", found)


def check_extra(extra: str, packages: Sequence[str], installed: Callable[[str], bool]) -> Finding:
    """An extra, or with `extra=""` what nondiff always needs."""
    name = f"extra {extra}" if extra else "requirements"
    absent = [package for package in packages if not installed(package)]
    if not absent:
        return Finding(name, "ok", "installed" if extra else f"all {len(packages)} installed")
    wanted = f"nondiff[{extra}]" if extra else "nondiff"
    level = "note" if extra else "problem"
    return Finding(name, level, f"not installed: {', '.join(absent)}", f'pip install "{wanted}"')


def check_devices(platform: str | None, kinds: Sequence[str], error: str | None) -> Finding:
    if platform is None:
        return Finding("devices", "problem", f"JAX does not start: {error}", "pip install --upgrade jax jaxlib")
    counts = ", ".join(f"{list(kinds).count(kind)} x {kind}" for kind in dict.fromkeys(kinds))
    return Finding("devices", "ok", f"{platform} ({counts})")


def check_gpu(platform: str | None, gpus: int, wanted: str) -> Finding:
    """Is an NVIDIA GPU left idle? `wanted`: what JAX was told to use, `JAX_PLATFORMS`."""
    if not gpus:
        return Finding("gpu", "ok", "no NVIDIA GPU here")
    if platform != "cpu":
        return Finding("gpu", "ok", f"{gpus} NVIDIA here, JAX uses {platform or 'nothing'}")
    if wanted.strip().lower() == "cpu":
        return Finding("gpu", "note", f"{gpus} NVIDIA here, not used: JAX_PLATFORMS=cpu", "unset JAX_PLATFORMS")
    return Finding("gpu", "problem", f"{gpus} NVIDIA here, but JAX runs on the CPU", 'pip install "jax[cuda12]"')


def check_bits(platform: str, flags: str, threads: int, x64: bool) -> Finding:
    """Which promise about bits holds. `threads`: how many an operation of a CPU may use."""
    floats = f"{64 if x64 else 32}-bit floats on {platform}"
    promise = f"{floats}: the same versions, kind of device and chunk give the same bits"
    if platform == "cpu" and threads == 1:
        return Finding("bits", "ok", f"{promise}, as tested")
    if platform == "cpu":
        said = f"{promise}; tested with one thread for each operation, here it may use {threads}"
        return Finding("bits", "note", said, "export NPROC=1, where bits matter more than time")
    if platform != "gpu":
        return Finding("bits", "note", f"{floats}: no promise, nothing was tested there", "a CPU or an NVIDIA GPU")
    needed = {"--xla_gpu_deterministic_ops": "true", "--xla_gpu_autotune_level": "0"}
    missing = [f"{name}={value}" for name, value in needed.items() if flag(flags, name) != value]
    if not missing:
        return Finding("bits", "ok", f"{promise}; deterministic operations, chosen without timing")
    said = f"{floats}: the same bits only with {' and '.join(f'{k}={v}' for k, v in needed.items())}"
    return Finding("bits", "note", said, f'export XLA_FLAGS="{" ".join([*flags.split(), *missing])}"')


def flag(flags: str, name: str) -> str | None:
    """The value of an XLA flag; the last one counts.

    >>> flag("--a=1 --b --a=2", "--a"), flag("--a=1 --b", "--b"), flag("", "--a")
    ('2', 'true', None)
    """
    given = [word.partition("=") for word in flags.split()]
    values = [(value if equals else "true").lower() for key, equals, value in given if key == name]
    return values[-1] if values else None


def check_cache(folder: str | None) -> Finding:
    if folder:
        return Finding("cache", "ok", f"compiled programs are kept in {folder}")
    return Finding(
        "cache", "note", "every process compiles anew", "export JAX_COMPILATION_CACHE_DIR=~/.cache/jax (yours alone)"
    )


def check_niceness(value: int) -> Finding:
    if value > 0:
        return Finding("niceness", "note", f"{value}: others on this machine go first", "start without `nice`")
    return Finding("niceness", "ok", str(value))


def check_cores(total: int, usable: int, quota: float | None) -> Finding:
    """`usable` by the process's affinity, `quota` by its cgroup."""
    if quota is not None and quota < usable:
        way_out = "give the container or the job more CPU (`docker run --cpus`, `--cpus-per-task`)"
        return Finding("cores", "note", f"the time of {quota:g} out of {total} (limit of the cgroup)", way_out)
    if usable < total:
        way_out = "start without `taskset`, or ask the scheduler for more cores"
        return Finding("cores", "note", f"{usable} out of {total} (affinity of the process)", way_out)
    return Finding("cores", "ok", str(total))


def check_disk(folder: str, free: int, total: int) -> Finding:
    found = f"{size(free)} of {size(total)} free in {folder}"
    if free < GB:
        return Finding("disk", "problem", found, "delete what is old; a checkpoint that does not fit is lost")
    if free < total / 10:
        return Finding("disk", "note", found, "delete what is old, `nondiff list` shows the runs")
    return Finding("disk", "ok", found)


def check_writes(folder: str, seconds: Sequence[float], error: str | None) -> Finding:
    """How long some writes of 1 MB took until they were safe, or why there were none."""
    if error is not None:
        return Finding("writes", "problem", f"{folder} cannot be written: {error}", "start in a folder of yours")
    middle = statistics.median(seconds)
    found = f"1 MB is safe on the disk of {folder} after {1000 * middle:.0f} ms"
    if middle > SLOW_WRITE:
        return Finding("writes", "note", found, "start in a folder on a local disk, or keep checkpoints rare")
    return Finding("writes", "ok", found)


def check_memory(available: int | None, limit: int | None) -> Finding:
    """`limit` of the process's cgroup."""
    known = [value for value in (available, limit) if value is not None]
    if not known:
        return Finding("memory", "ok", "unknown on this system")
    free = min(known)
    found = f"{size(free)} free" if free == available else f"{size(free)} is the limit of the cgroup"
    if free < GB:
        return Finding("memory", "note", found, "end other programs, or give the container or the job more")
    return Finding("memory", "ok", found)
