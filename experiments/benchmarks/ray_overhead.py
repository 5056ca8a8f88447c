"""What evaluation on Ray workers costs by itself, and what a second worker brings.

    python experiments/benchmarks/ray_overhead.py
    python experiments/benchmarks/ray_overhead.py --turns 9 --json

The fixed cost: a generation of 64 members in 8 chunks on 2 workers, less the same generation in this process, for
models so small that their evaluation takes no time: what is left is sending, waiting and putting together; and of 512
members in 256 chunks, which is what one driver can hand out. The gain:
HalfCheetah-v5 of gymnasium, 32 members of 500 time steps in chunks of 4, with 2 workers and with 1.

Each turn is a number of generations of `fit` with workers that have started; the turns of the variants alternate, and
the median of all their generations counts. Other work on the machine shows: workers and this process need a core each.

Result: docs/distributed.md. Cost: 2 minutes.
"""

import dataclasses
import json
import statistics
import time
from typing import Any

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import tyro

import nondiff as nd
from nondiff.launch.words import aligned


@dataclasses.dataclass(frozen=True)
class Config:
    """What can be chosen."""

    turns: int = 5
    """Of each variant."""
    generations: int = 40
    """Of a turn, of the small models; of HalfCheetah an eighth."""
    sizes: tuple[int, ...] = (1_000, 100_000)
    """Parameters of the small models; the first one gives the fixed cost."""
    json: bool = False
    """The rows as one JSON object, the last line."""


def small(size: int) -> nd.AbstractProblem:
    return nd.BlackBox(lambda x: jnp.sum((x - 1) ** 2), jnp.zeros(size))


def cheetah() -> nd.AbstractProblem:
    return nd.Gym("HalfCheetah-v5", lambda params, seen: params @ seen, params=np.zeros((6, 17), np.float32), steps=500)


def search(population: int) -> nd.AbstractTrainer:
    return nd.OpenES(optax.sgd(0.02), sigma=0.05, population=population, rank=1)


def turns(problem: nd.AbstractProblem, population: int, evaluators: list[Any], steps: int, many: int) -> list[float]:
    """Milliseconds of a generation with each evaluator; the first generation of a turn does not count."""
    times: list[list[float]] = [[] for _ in evaluators]
    for turn in range(many + 1):
        for each, evaluator in zip(times, evaluators, strict=True):
            stamps: list[float] = []
            nd.fit(
                problem, search(population), steps=steps + 1, key=jr.key(turn), evaluator=evaluator, log_every=1,
                callbacks=[lambda moment, stamps=stamps: stamps.append(time.perf_counter())],
            )  # fmt: skip
            if turn:  # the first one compiles
                each += list(np.diff(stamps) * 1e3)
    return [statistics.median(each) for each in times]


def main(config: Config) -> None:
    rows: list[dict[str, Any]] = []
    with nd.Ray(workers=1, chunk=8) as one, nd.Ray(workers=2, chunk=8) as two:
        for size in config.sizes:
            here, first, second = turns(small(size), 64, [nd.Vmap(8), one, two], config.generations, config.turns)
            rows += [
                {"task": f"{size:,} parameters", "workers": workers, "ms_per_generation": ms, "fixed_ms": ms - here}
                for workers, ms in ((0, here), (1, first), (2, second))
            ]
    with nd.Ray(workers=1, chunk=4) as one, nd.Ray(workers=2, chunk=4) as two:
        steps = max(1, config.generations // 8)
        here, first, second = turns(cheetah(), 32, [nd.Host(4), one, two], steps, config.turns)
        rows += [
            {"task": "HalfCheetah", "workers": workers, "ms_per_generation": ms, "speedup": first / ms}
            for workers, ms in ((0, here), (1, first), (2, second))
        ]
    with nd.Ray(workers=2, chunk=2) as two:
        here, many = turns(small(1_000), 512, [nd.Vmap(2), two], config.generations // 4, config.turns)
        task = "1,000 parameters, 256 chunks"
        rows.append({"task": task, "workers": 2, "ms_per_generation": many, "fixed_ms": many - here})
    fixed = next(row["fixed_ms"] for row in rows if row["workers"] == 2)
    columns = "task", "workers", "ms_per_generation", "fixed_ms", "speedup"
    shown = [[_shown(row.get(name)) for name in columns] for row in rows]
    print("\n".join(aligned([columns, *shown])))
    print(f"\nfixed cost of 8 chunks on 2 workers: {fixed:.1f} ms; 2 workers beside 1: {first / second:.2f} times")
    if config.json:
        print(json.dumps({"fixed_ms_per_generation": fixed, "speedup_2_workers": first / second, "rows": rows}))


def _shown(value: Any) -> str:
    return "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
