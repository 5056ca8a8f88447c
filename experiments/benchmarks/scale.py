"""How far one driver reaches: a simulation of `Ray` with the costs that were measured, up to 10,000 workers.

    python experiments/benchmarks/scale.py
    python experiments/benchmarks/scale.py --seconds 0.1 --chunks 8

No cluster of that size was used. Assumptions: the driver spends `call` seconds on each chunk, half
of it on the answer, one after the other (docs/distributed.md has what was measured), and `fixed` seconds on a
generation (ask, tell, sending what all share); the network is free. A chunk takes `seconds` times a lognormal factor
(sigma `spread`), and once in a thousand times `slow` times as long, the next time not: a machine that pauses. A late
chunk, three times the median, is begun again on an idle worker, as `Ray` does; `wait` never does that; `drop` goes on
when 99 of 100 chunks are there.

`efficiency` is the time that all workers would need if nothing was ever lost, over the simulated time: 1 is perfect.

Result: docs/distributed.md. Cost: a minute.
"""

import dataclasses
import heapq
import json
import statistics
from typing import Literal

import numpy as np
import tyro

from nondiff.launch.words import aligned

Policy = Literal["wait", "again", "drop"]


@dataclasses.dataclass(frozen=True)
class Config:
    """What can be chosen."""

    workers: tuple[int, ...] = (10, 100, 1_000, 3_000, 10_000)
    """Each with a core of its own."""
    chunks: int = 4
    """For each worker."""
    seconds: float = 1.0
    """The median chunk."""
    spread: float = 0.3
    """Of the logarithm of a chunk's time."""
    slow: float = 30.0
    """A pause's factor."""
    call: float = 185e-6
    """Of the driver, for a call and its answer."""
    fixed: float = 0.005
    """Of the driver, for a generation."""
    generations: int = 5
    """Simulated; the median is shown."""
    json: bool = False
    """The rows as one JSON object, the last line."""


def generation(config: Config, workers: int, policy: Policy, dice: np.random.Generator) -> float:
    """Seconds until the last answer that is waited for."""
    chunks = workers * config.chunks
    usual = config.seconds * dice.lognormal(0.0, config.spread, chunks)
    first = np.where(dice.random(chunks) < 1e-3, config.slow, 1.0) * usual
    late = 3 * config.seconds
    needed = chunks - chunks // 100 if policy == "drop" else chunks
    now = config.fixed  # of the driver
    waiting, running, done, idle = list(range(chunks))[::-1], {}, set(), workers
    answers: list[tuple[float, int]] = []  # when, and which chunk
    overdue: list[tuple[float, int]] = []

    def begin(chunk: int, takes: float) -> None:
        nonlocal now, idle
        now, idle = now + config.call / 2, idle - 1
        heapq.heappush(answers, (now + takes, chunk))
        running[chunk] = running.get(chunk, 0) + 1
        heapq.heappush(overdue, (now + late, chunk))

    while len(done) < needed:
        while idle and waiting:
            chunk = waiting.pop()
            begin(chunk, first[chunk])
        while policy == "again" and idle and overdue and overdue[0][0] <= now:
            _, chunk = heapq.heappop(overdue)
            if chunk not in done and running[chunk] == 1:
                begin(chunk, usual[chunk])
        at, chunk = answers[0]
        if policy == "again" and idle and overdue and overdue[0][0] < at:
            now = max(now, overdue[0][0])  # nothing to do until somebody is late
            continue
        heapq.heappop(answers)
        now, idle = max(now, at) + config.call / 2, idle + 1
        done.add(chunk)
    return now


def main(config: Config) -> None:
    rows = []
    for workers in config.workers:
        for policy in ("wait", "again", "drop"):
            dice = np.random.default_rng(0)
            times = [generation(config, workers, policy, dice) for _ in range(config.generations)]
            ideal = config.chunks * config.seconds * float(np.exp(config.spread**2 / 2))
            seconds = statistics.median(times)
            driver = config.fixed + config.call * workers * config.chunks
            rows.append(
                {"workers": workers, "late chunks": policy, "seconds": seconds, "longest": max(times),
                 "driver": driver, "efficiency": ideal / seconds}
            )  # fmt: skip
    cells = [[f"{x:.2f}" if isinstance(x, float) else f"{x}" for x in row.values()] for row in rows]
    print("\n".join(aligned([list(rows[0]), *cells], right=(0, 2, 3, 4, 5))))
    if config.json:
        print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
