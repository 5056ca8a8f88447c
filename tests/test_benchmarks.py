"""Every benchmark runs to its end on a small scale, and what it counts is right. No test here reads a clock."""

import json
import pathlib
import subprocess
import sys
from typing import Any

BENCHMARKS = pathlib.Path(__file__).parents[1] / "experiments" / "benchmarks"


def bench(name: str, *arguments: str) -> dict[str, Any]:
    """The last line of a benchmark."""
    command = [sys.executable, str(BENCHMARKS / name), "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_checkpoints() -> None:
    """nondiff finds every damage; files without a checksum restore flipped bits, else the benchmark damages nothing."""
    loops = ("--megabytes=0.1", "--steps=4", "--every=2", "--seconds=0.001", "--repetitions=1")
    found = bench("checkpoints.py", *loops, "--flips=8")
    rows = {row["library"]: row for row in found["rows"]}
    assert {"nondiff", "equinox", "safetensors", "savez", "orbax-sync", "orbax-async"} == {*rows, *found["skipped"]}
    for row in rows.values():
        for damage in ("flips", "cuts"):
            assert sum(row[f"{damage}_{kind}"] for kind in ("detected", "harmless", "silent")) == 8
        assert row["blocked_seconds"] > 0
    assert rows["nondiff"]["flips_detected"] == rows["nondiff"]["cuts_detected"] == 8
    assert rows["equinox"]["flips_silent"] > 0
    assert rows["safetensors"]["flips_silent"] > 0


def test_command() -> None:
    found = bench("command.py", "--runs=20", "--turns=1")
    assert found["statuses"] == {"running": 1, "killed": 1, "failed": 2, "stopped": 2, "finished": 14}
    commands = {row["command"] for row in found["rows"]}
    assert {"nondiff --help", "nondiff list", "nondiff show", "python -c 'import jax'"} <= commands
    assert all(row["cpu_seconds"] > 0 and row["wall_seconds"] > 0 for row in found["rows"])


def test_es_limit() -> None:
    """Two chunks of 8 members and a row for each kind of noise; the processes of the rows are real."""
    small = ("--cells=10k/16/8", "--runs=1", "--seconds=0")
    found = bench("es_limit.py", *small, "--libraries=nondiff", "--trainers=open_es")
    assert [row["rank"] for row in found["rows"]] == [1, None]
    for row in found["rows"]:
        assert (row["params"], row["population"], row["batch"], row["chunk"]) == (9610, 16, 8, 8)
        assert row["ratio_wall"] > 0 and row["ratio_cpu"] > 0 and row["peak_mb"] > 0


def test_es_limit_of_all_chunks() -> None:
    small = ("--cells=10k/16/8", "--runs=1", "--seconds=0", "--chunks")
    rows = bench("es_limit.py", *small, "--trainers=open_es", "--ranks=1")["rows"]
    assert [(row["chunk"], row["default_chunk"]) for row in rows] == [(8, True), *((2**i, False) for i in range(4))]
    assert len({row["limit_seconds"] for row in rows}) == 1, "in one process, beside one limit"


def test_es_quality() -> None:
    small = ("--splits=1", "--generations=2", "--population=4")
    found = bench("es_quality.py", *small, "--libraries=nondiff", "--trainers=open_es")
    assert [row["rank"] for row in found["rows"]] == [None, 1, 4]
    assert all(row["evaluations"] == 8 and len(row["train_losses"]) == 1 for row in found["rows"])
