"""What `nondiff doctor` looks at: JAX, the machine and its limits."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

MEGABYTE = 10**6
WRITES = 5
PATIENCE = 5.0  # seconds for nvidia-smi


class Jax(NamedTuple):
    """What JAX says of itself; without a platform where it does not start."""

    platform: str | None = None
    kinds: tuple[str, ...] = ()
    x64: bool = False
    cache: str | None = None
    error: str | None = None


def jax_here() -> Jax:
    try:
        import jax

        kinds = tuple(device.device_kind for device in jax.devices())
        config = jax.config.values
        cache = config["jax_compilation_cache_dir"] if config["jax_enable_compilation_cache"] else None
        return Jax(jax.default_backend(), kinds, config["jax_enable_x64"], cache)
    except Exception as error:  # any: this is for saying what is wrong
        return Jax(error=" ".join(f"{type(error).__name__}: {error}".split()))


def gpus() -> int:
    """NVIDIA's, by the system's devices or else by `nvidia-smi`."""
    devices = [path for path in Path("/dev").glob("nvidia*") if path.name.removeprefix("nvidia").isdecimal()]
    if devices or shutil.which("nvidia-smi") is None:
        return len(devices)
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=PATIENCE)
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in done.stdout.splitlines())


def usable_cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # Linux
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def threads(environment: Mapping[str, str], usable: int) -> int:
    """How many an operation on a CPU may use: XLA asks `NPROC`, then the affinity.

    >>> threads({"NPROC": "1"}, 8), threads({}, 8)
    (1, 8)
    """
    asked = environment.get("NPROC", "")
    return int(asked) if asked.isdecimal() and int(asked) > 0 else usable


def niceness() -> int:
    nice = getattr(os, "nice", None)  # not on Windows
    return nice(0) if nice else 0


class Limits(NamedTuple):
    """Of a cgroup: cores and bytes."""

    cores: float | None
    memory: int | None


def limits(membership: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> Limits:
    """The tightest of the process's cgroup and those around it, in either version of cgroups."""
    cores: list[float] = []
    memory: list[int] = []
    for line in _words(membership, by="\n"):
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            inner = Path(path.lstrip("/"))
            for folder in (root / controller / part for part in (inner, *inner.parents)):
                quota = _words(folder / "cpu.max") or [
                    *_words(folder / "cpu.cfs_quota_us"),
                    *_words(folder / "cpu.cfs_period_us"),
                ]
                if len(quota) == 2 and quota[0].isdecimal():  # neither `max` nor -1
                    cores.append(int(quota[0]) / int(quota[1]))
                most = _words(folder / "memory.max") or _words(folder / "memory.limit_in_bytes")
                memory.extend(int(value) for value in most if value.isdecimal())
    return Limits(min(cores, default=None), min(memory, default=None))


def _words(path: Path, by: str | None = None) -> list[str]:
    try:
        return path.read_text().strip().split(by)
    except OSError:
        return []


def available_memory(path: Path = Path("/proc/meminfo")) -> int | None:
    """In bytes, where the system says."""
    for line in _words(path, by="\n"):
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    return None


def nearest(folder: Path) -> Path:
    """The folder, or the first around it that exists."""
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if place.is_dir())


def write_times(folder: Path) -> tuple[list[float], str | None]:
    """Seconds that each of some writes of 1 MB took until it was safe; or why it failed."""
    data, times = os.urandom(MEGABYTE), []
    try:
        for _ in range(WRITES):
            with tempfile.NamedTemporaryFile(dir=folder, prefix=".aside-doctor-") as file:
                begin = time.perf_counter()
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                times.append(time.perf_counter() - begin)
    except OSError as error:
        return times, error.strerror or str(error)
    return times, None
