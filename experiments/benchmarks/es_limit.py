"""What a generation of an evolution strategy costs beyond the forward passes that it must make: nondiff and its peers.

    python experiments/benchmarks/es_limit.py
    python experiments/benchmarks/es_limit.py --cells 100k/256 --libraries nondiff --trainers open_es --ranks 1 4 full
    python experiments/benchmarks/es_limit.py --big --libraries nondiff --trainers open_es
    python experiments/benchmarks/es_limit.py --scaling --libraries nondiff --trainers open_es
    python experiments/benchmarks/es_limit.py --chunks --cells 100k/256 --trainers open_es

The model is an ordinary `equinox.nn.MLP`, the loss its cross-entropy on one batch of handwritten digits. The limit is
the plain forward pass and loss of that model with the centre's parameters over population x batch rows: the faster of
one call over all rows and of a compiled loop over chunks of members (1, 4, 16 or 64, whichever is fastest).
`ratio` is the wall time of a whole generation (sample, evaluate, update) over the limit, `single` over the one call,
`cpu` the ratio of CPU time, all threads together. Every row is a process of its own, in which generation and limit take
turns; medians. `peak` is the peak resident memory while only generations ran, above what imports, data and the model
hold; in JAX the compiler takes about 140 MB of it. With `--chunks` all chunks are in one process, whose peak is theirs.

A generation of nondiff is one call of `equinox.filter_jit(nondiff.step, donate=...)`, the step that `fit` runs; one of
evosax is its ask, evaluate and tell in one jit or in three, whichever is faster. evotorch searches the same network in
torch, all members at once; its limit is JAX's, too. Each runs as it does by default: antithetic where it can be.
Adam(0.01) moves the centres, but for SNES, which has steps of its own. `ps` is the generation's time divided by
population x parameters x rows of the batch, in picoseconds: it stays where cost is linear.

Result (2 cores, ratio to the limit): `OpenES` with rank 1 takes 1.05, .94 and 1.01 at 10k, 100k and 1M x 256, .73, .95
and 1.06 at x 2048; in full 4.0, 6.4 and 7.3 at x 256, evosax's 6.6, 10.7 and 18.2. docs/performance.md has the tables.
Cost: about 40 minutes for all, 3 for nondiff with rank 1.
"""

import dataclasses
import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any, Literal

import jax
import tyro
from es_peers import COPIES, WAYS, Call, Job, Library, Trainer, chunk, generation, limits, make

from nondiff.launch.words import aligned, number
from nondiff.run.versions import version, versions

CELLS = tuple(f"{size}/{population}" for population in (256, 2048) for size in ("10k", "100k", "1M"))
BIG = ("100M/64/8",)
SCALING = (*(f"100k/{2**i}" for i in range(6, 13)), "10k/256", "1M/256", "10M/256/32")
COLUMNS = {
    "library": "library", "trainer": "trainer", "rank": "rank", "cell": "cell", "chunk": "chunk",
    "ratio_wall": "ratio", "ratio_single": "single", "ratio_cpu": "cpu", "peak_mb": "peak MB", "seconds": "s",
    "limit_seconds": "limit s", "limit": "limit by", "runs": "runs", "way": "way", "ps": "ps",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Options:
    """What can be chosen."""

    cells: tuple[str, ...] = CELLS
    """Parameters/population, or parameters/population/batch; the batch is 128 where nothing else is said."""
    libraries: tuple[Library, ...] = ("nondiff", "evosax", "evotorch")
    """Only these."""
    trainers: tuple[Trainer, ...] = ("open_es", "pgpe", "snes")
    """Only these."""
    ranks: tuple[int | Literal["full"], ...] = (1, "full")
    """Of nondiff's noise."""
    chunk: int | None = None
    """Members that nondiff holds at once, instead of its default."""
    chunks: bool = False
    """nondiff alone, every power of two as its chunk, in turns: how far from the best is the default?"""
    big: bool = False
    """Instead of the cells: 100 million parameters, population 64, batch 8."""
    scaling: bool = False
    """Instead of the cells: how cost grows with the population and with the parameters."""
    runs: int = 9
    """Of generation and limit, in turns, at least; the median is reported."""
    seconds: float = 45.0
    """After so many, a row has as many runs as it has, if these are 3."""
    json: bool = False
    """The last line is one JSON object with all of it."""
    job: str = ""
    """A row as JSON: measured in this process. For the processes that this one starts."""


def main(options: Options) -> None:
    if options.job:
        job = Job(**json.loads(options.job))
        return print(json.dumps(measure(job, options)))
    rows, skipped = [], []
    for ways in jobs(options):
        for row in best_of(ways, options, skipped):
            rows.append(row)
            print(f"{len(rows)}. {' '.join(cells(row, COLUMNS))}", file=sys.stderr, flush=True)
    shown = {key: name for key, name in COLUMNS.items() if key != "ps" or options.scaling}
    table = aligned([tuple(shown.values()), *(cells(row, shown) for row in rows)], right=range(5, 11))
    print("\n".join(table))
    skipped = list(dict.fromkeys(skipped))
    for line in [*skipped, *(distances(rows) if options.chunks else ())]:
        print(line)
    if options.json:
        found = versions() | {peer: version(peer) for peer in ("evosax", "evotorch", "torch")}
        print(json.dumps({"rows": rows, "skipped": skipped, "versions": found}))


def cells(row: dict[str, Any], columns: dict[str, str]) -> tuple[str, ...]:
    words = {"rank": "full" if row["rank"] is None else str(row["rank"]), "chunk": str(row["chunk"] or "all")}
    words["chunk"] += " default" if row["default_chunk"] else ""
    return tuple(words.get(key) or number(row[key]) for key in columns)


def jobs(options: Options) -> Iterator[list[Job]]:
    """Each the ways of which the fastest becomes a row of the table."""
    chosen = BIG if options.big else SCALING if options.scaling else options.cells
    for cell in chosen:
        for library in ("nondiff",) if options.chunks else options.libraries:
            trainers: list[Trainer] = [name for name in COPIES[library] if name in options.trainers]
            for trainer in trainers:
                if library != "nondiff":
                    yield [Job(library, trainer, None, cell, way=way) for way in WAYS[library]]
                    continue
                for rank in options.ranks:
                    yield [Job(library, trainer, None if rank == "full" else rank, cell, options.chunk)]


def best_of(ways: list[Job], options: Options, skipped: list[str]) -> list[dict[str, Any]]:
    """The fastest of the ways, or every chunk of one. Peers that are not there, or too large, are skipped by name."""
    job, found = ways[0], []
    needed = COPIES[job.library][job.trainer] * job.shape[2] * job.params * 4
    most = 0.8 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # the system and others need some
    what = f"{job.library} {job.trainer} {job.cell}"
    if importlib.util.find_spec(job.library) is None:
        skipped.append(f"{job.library}: not installed, skipped")
    elif needed > most:
        skipped.append(f"{what}: would need {needed / 1e9:.0f} GB, there are {most / 1e9:.0f}, skipped")
    else:
        for way in ways:
            done = start(way, options)
            if done.returncode == 0:
                found.append(json.loads(done.stdout.splitlines()[-1]))
            elif job.library == "nondiff":
                raise RuntimeError(f"{way} failed: {done.stderr}")
            else:
                last = [f"signal {-done.returncode}", *done.stderr.splitlines()][-1]
                skipped.append(f"{what} {way.way}: failed, {last}, skipped")
    if len(found) < 2:
        return found[0] if found else []
    single = [row for (row,) in found]
    others = {"ratio_" + row["way"].replace(" ", "_"): row["ratio_wall"] for row in single}
    return [min(single, key=lambda row: row["ratio_wall"]) | others]


def start(job: Job, options: Options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, __file__, "--job", json.dumps(dataclasses.asdict(job))]
    command += ["--runs", str(options.runs), "--seconds", str(options.seconds), *["--chunks"] * options.chunks]
    # Threads of torch that wait for the limit to end must not count as CPU time.
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def distances(rows: list[dict[str, Any]]) -> Iterator[str]:
    """How far the default chunk is from the best."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(f"{row['trainer']}, rank {row['rank'] or 'full'}, {row['cell']}", []).append(row)
    for name, group in groups.items():
        default, best = group[0], min(group[1:], key=lambda row: row["ratio_wall"])
        percent = 100 * (default["ratio_wall"] / best["ratio_wall"] - 1)
        yield f"{name}: the default takes {percent:+.1f} % of the time with the best chunk, {best['chunk']}"


def measure(job: Job, options: Options) -> list[dict[str, Any]]:
    """A row, in this process; with `--chunks` one for every chunk, which take turns."""
    task = make(job)
    before = memory("VmRSS")
    forget_peak()
    advances = {job: generation(task, job) for job in [job, *(other_chunks(job) if options.chunks else ())]}
    for advance in advances.values():
        for _ in range(2):  # compiled, and all that it keeps from one to the next is there
            advance()
    peak = memory("VmHWM") - before
    single, *loops = ((min(clock(call)[0] for _ in range(3)), name, call) for name, call in limits(task).items())
    bounds = {name: call for _, name, call in (single, *sorted(loops)[:2])}
    times = turns(advances | bounds, runs=options.runs, seconds=options.seconds)
    wall, cpu = ({name: statistics.median(t[i] for t in times[name]) for name in times} for i in (0, 1))
    limit = min(bounds, key=lambda name: wall[name])
    return [
        dataclasses.asdict(own)
        | {
            "params": own.params,
            "default_chunk": own.library == "nondiff" and own.chunk is None,
            "chunk": chunk(task, own),
            "population": task.population,
            "batch": own.shape[3],
            "ratio_wall": wall[own] / wall[limit],
            "ratio_single": wall[own] / wall["one call"],
            "ratio_cpu": cpu[own] / cpu[limit],
            "peak_mb": peak,
            "seconds": wall[own],
            "cpu_seconds": cpu[own],
            "limit_seconds": wall[limit],
            "limit_cpu_seconds": cpu[limit],
            "limit": limit,
            "ps": 1e12 * wall[own] / (task.population * own.params * own.shape[3]),
            "runs": len(times[own]),
            "device": jax.devices()[0].device_kind,
        }
        for own in advances
    ]


def other_chunks(job: Job) -> Iterator[Job]:
    """Every power of two up to half of the population, of points that together have at most 4 GB."""
    most = min(job.shape[2] // 2, 1e9 / job.params)
    yield from (dataclasses.replace(job, chunk=2**i) for i in range(int(math.log2(most)) + 1))


def turns(calls: dict[Any, Call], *, runs: int, seconds: float) -> dict[Any, list[tuple[float, float]]]:
    """Wall and CPU seconds of all calls, which take turns: `runs` of them, more if they are short."""
    times: dict[Any, list[tuple[float, float]]] = {name: [] for name in calls}
    begin, done, passed = time.perf_counter(), 0, 0.0
    while done < min(3, runs) or (passed < seconds and (done < runs or passed < min(1.0, seconds))):
        for name, call in calls.items():
            times[name].append(clock(call))
        done, passed = done + 1, time.perf_counter() - begin
    return times


def clock(call: Call) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


def memory(name: str) -> float:
    """Megabytes that Linux says of this process. Not `getrusage`: its peak may be that of the parent."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def forget_peak() -> None:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


if __name__ == "__main__":
    main(tyro.cli(Options))
