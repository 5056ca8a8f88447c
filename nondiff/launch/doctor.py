"""`nondiff doctor [--json]`: what is installed, what would be slow, and which promise about bits holds here."""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from nondiff.launch import checks, machine
from nondiff.launch.checks import Finding
from nondiff.launch.words import aligned, emit, printable
from nondiff.run.directory import RUNS
from nondiff.run.versions import ABSENT, version, versions


def doctor(arguments: Sequence[str]) -> int:
    """Print what was found and return the exit code: 1 if there is a problem."""
    parser = argparse.ArgumentParser(
        prog="nondiff doctor", description="What is installed, what would be slow, which promise about bits holds here."
    )
    parser.add_argument("--json", action="store_true", help="print one JSON array")
    options = parser.parse_args(arguments)
    found = findings()
    if options.json:
        emit(json.dumps([dataclasses.asdict(finding) for finding in found], indent=1))
    else:
        emit("\n".join(lines(found)))
    return int(any(finding.level == "problem" for finding in found))


def findings() -> list[Finding]:
    """Of all checks, on this machine and in this folder."""
    jax = machine.jax_here()
    extras = checks.extras_of(_requirements())
    cores, usable, limits = os.cpu_count() or 1, machine.usable_cores(), machine.limits()
    place = machine.nearest(Path(RUNS))
    disk = shutil.disk_usage(place)
    return [
        checks.check_versions(versions()),
        checks.check_devices(jax.platform, jax.kinds, jax.error),
        checks.check_gpu(jax.platform, machine.gpus(), os.environ.get("JAX_PLATFORMS", "")),
        *_with_jax(jax, usable),
        checks.check_cores(cores, usable, limits.cores),
        checks.check_niceness(machine.niceness()),
        checks.check_memory(machine.available_memory(), limits.memory),
        checks.check_disk(str(place), disk.free, disk.total),
        checks.check_writes(str(place), *machine.write_times(place)),
        *(checks.check_extra(extra, packages, _installed) for extra, packages in extras.items()),
    ]


def _with_jax(jax: machine.Jax, usable: int) -> list[Finding]:
    """What can be said only where JAX starts."""
    if jax.platform is None:
        return []
    threads = machine.threads(os.environ, usable)
    return [
        checks.check_bits(jax.platform, os.environ.get("XLA_FLAGS", ""), threads, jax.x64),
        checks.check_cache(jax.cache),
    ]


def lines(found: Sequence[Finding]) -> list[str]:
    """One for each finding, and below it the way out, where there is one."""
    shown = []
    for finding, line in zip(found, aligned([(f.level, f.name, printable(f.found)) for f in found]), strict=True):
        shown.append(line)
        if finding.way_out:
            shown.append(f"{'':<{line.index(finding.name)}}-> {finding.way_out}")
    return shown


def _requirements() -> list[str]:
    try:
        return importlib.metadata.requires("nondiff") or []
    except importlib.metadata.PackageNotFoundError:
        return []


def _installed(package: str) -> bool:
    return version(package) != ABSENT
