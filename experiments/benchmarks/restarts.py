"""Runs that get stuck in a code that the program half accepts: are they noticed, and does beginning anew help?

    python experiments/benchmarks/restarts.py
    python experiments/benchmarks/restarts.py --parts detect --curves curves.npz --json

A network reads handwritten digits and learns from the right answers of a program alone (that of
`experiments/digit_sum.py`: 5,000 pairs, batches of 64, 1,200 steps of Adam). Three parts:

- detect: the loss curves of 20 runs that learn (`MarginalLikelihood`; sums of two, three and four digits, products of
  two) and of 20 that do not (`ScoreFunction(16)`, sums of two digits, the first 20 seeds that end below 60 % right
  sums), each shown to `Stall()` and to some with other settings: how many of either does it stop? `--curves` keeps the
  curves in a file, and reads them from there.
- restart: `Restart(Backprop(adam), on=Stall(), schedule=Same(), tries=8, steps=1_200)` with `Splitting()`, with
  `ScoreFunction(16)`, and with the same and a little entropy (0.02): right sums of unseen pairs on 10 seeds, beside the
  same without restarts, and beside the same network trained on the digits' labels (the ceiling).
- speed: seconds of 1,200 steps with `Restart` around and without, in turns; the median counts.

The programs are written in JAX here: the bits are those of `Opaque` ones, and thousands of steps go sooner.

Result: `Stall()` stops 0 of the 20 runs that learn and all 20 that do not, after 400 steps (median); so does each of
its numbers changed by a third or more, but for windows of 50, which stop 4 that learn. Right sums at 0.95 of the
ceiling or above: with `Splitting()` on 10 of 10 seeds (4 without restarts, 3 tries at most), with
`ScoreFunction(16, entropy=0.02)` on 10 (7 without). `ScoreFunction(16)` alone learns on none of 20 seeds, and there
beginning anew does not help: 8 tries from seed 1 end at 0.57. Cost: 25 minutes on one core.
"""

import dataclasses
import functools
import importlib.util
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
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

    parts: tuple[Literal["detect", "restart", "speed"], ...] = ("detect", "restart", "speed")
    """What to measure."""
    runs: int = 20
    """Loss curves of either kind, for `detect`."""
    seeds: int = 10
    """Of `restart`."""
    vias: tuple[Literal["splitting", "entropy", "score_function"], ...] = ("splitting", "entropy", "score_function")
    """Estimators of `restart`."""
    tries: int = 8
    """Of `restart`."""
    steps: int = 1_200
    """Of a try."""
    turns: int = 5
    """Of each variant, for `speed`."""
    window: int = 100
    """Of `Stall`."""
    curves: str = ""
    """A file that keeps the loss curves."""
    json: bool = False
    """The numbers as one JSON object, the last line."""


_SPEC = importlib.util.spec_from_file_location("digit_sum", Path(__file__).parents[1] / "digit_sum.py")
assert _SPEC is not None and _SPEC.loader is not None
digit_sum = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(digit_sum)

network, read = digit_sum.network(digit_sum.Config()), jax.jit(digit_sum.read)
TASKS: dict[str, tuple[int, Callable[[Any], Any]]] = {
    "sum2": (2, lambda digits: digits.sum(-1)),
    "sum3": (3, lambda digits: digits.sum(-1)),
    "sum4": (4, lambda digits: digits.sum(-1)),
    "product2": (2, lambda digits: digits.prod(-1)),
}
images_of = functools.cache(digit_sum.mnist_data)


def pairs(task: str, seed: int) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Images and digits to train with and to test with, as `digit_sum` draws them; no image is in both."""
    images, digits = images_of()
    random, count = np.random.default_rng(seed), TASKS[task][0]
    order = random.permutation(len(images))
    images, digits = images[order].astype(np.uint8), digits[order].astype(np.int32)
    train, test = random.integers(0, 4_000, (5_000, count)), random.integers(4_000, 5_000, (10_000, count))
    return (images[train], digits[train]), (images[test], digits[test])


@functools.cache  # one function for all seeds, so that one compiled step serves them
def loss_of(task: str, via: nd.AbstractEstimator | None) -> Callable[..., Any]:
    """Through the program, or without an estimator on the digits' labels."""
    program = TASKS[task][1]

    def loss(params: Any, batch: Any, key: Any) -> Any:
        images, digits = batch
        logits = digit_sum.read(params, images)
        if via is None:
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, digits), 1)

        def rest(symbols: Any) -> Any:
            return (program(symbols) != program(digits)).astype(jnp.float32)

        return nd.through(rest, logits, via=via, key=key)

    return loss


BACKPROP = nd.Backprop(optax.adam(1e-3))
VIAS = {
    "splitting": nd.Splitting(),
    "entropy": nd.ScoreFunction(16, entropy=0.02),
    "score_function": nd.ScoreFunction(16),
}


def train(
    task: str, seed: int, via: nd.AbstractEstimator | None, steps: int, trainer: nd.AbstractTrainer = BACKPROP
) -> tuple[nd.Result, float, float]:
    """The run, and of unseen pairs the share of right answers and of right digits."""
    data, (images, digits) = pairs(task, seed)
    problem = nd.Supervised(loss_of(task, via), data, params=network, batch_size=64)
    result = nd.fit(problem, trainer, steps=steps, key=jr.key(seed), log_every=1)
    symbols = np.asarray(jnp.argmax(read(result.params, images), -1))
    program = TASKS[task][1]
    return result, float(np.mean(program(symbols) == program(digits))), float(np.mean(symbols == digits))


def curve(result: nd.Result) -> np.ndarray:
    return np.array([row["loss"] for row in result.history], np.float32)


def record(config: Config) -> dict[str, np.ndarray]:
    """Loss curves `[runs, steps]` of runs that learn and of runs that do not, and what they ended at."""
    healthy, trapped = [], []
    for i in range(config.runs):
        task = list(TASKS)[i % len(TASKS)]
        result, right, _ = train(task, i // len(TASKS), nd.MarginalLikelihood(), config.steps)
        healthy.append((curve(result), right))
        print(f"{task} seed {i // len(TASKS)}: {right:.3f}", flush=True)
    seed = 0
    while len(trapped) < config.runs:
        result, right, digits = train("sum2", seed, nd.ScoreFunction(16), config.steps)
        if right < 0.6:
            trapped.append((curve(result), right))
        print(f"ScoreFunction(16), sum2 seed {seed}: {right:.3f}, digits {digits:.3f}", flush=True)
        seed += 1
    kinds = {"healthy": healthy, "trapped": trapped}
    found = {name: np.stack([c for c, _ in each]) for name, each in kinds.items()}
    return found | {f"{name}_right": np.array([right for _, right in each]) for name, each in kinds.items()}


def stopped(on: nd.Stall, curves: np.ndarray) -> np.ndarray:
    """The step at which `on` gives each run up, 0 where it never does."""

    def one(losses: Any) -> Any:
        def body(state: Any, loss: Any) -> Any:
            state = on.update(state, loss, loss)
            return state, on.over(state)

        begin = jax.tree.map(jnp.asarray, on.init())
        over = jax.lax.scan(body, begin, losses)[1]
        return jnp.where(jnp.any(over), jnp.argmax(over) + 1, 0)

    return np.asarray(jax.jit(jax.vmap(one))(curves))


def detect(config: Config) -> list[dict[str, Any]]:
    file = Path(config.curves)
    if config.curves and file.exists():
        found = dict(np.load(file))
    else:
        found = record(config)
        if config.curves:
            np.savez(file, **found)  # pyright: ignore[reportArgumentType]
    usual = nd.Stall(window=config.window)
    others = [dataclasses.replace(usual, window=w) for w in (max(2, config.window // 2), 2 * config.window)]
    others += [dataclasses.replace(usual, least=x) for x in (0.02, 0.04)]
    others += [dataclasses.replace(usual, errors=x) for x in (1, 2)]
    others += [dataclasses.replace(usual, good=x) for x in (0.1, 0.3)]
    rows = []
    for on in [usual, *others]:
        healthy, trapped = stopped(on, found["healthy"]), stopped(on, found["trapped"])
        caught = trapped[trapped > 0]
        rows.append(
            {
                **{name: getattr(on, name) for name in ("good", "window", "least", "errors")},
                "healthy stopped": f"{np.count_nonzero(healthy)} of {len(healthy)}",
                "trapped missed": f"{np.count_nonzero(trapped == 0)} of {len(trapped)}",
                "stopped at": f"{np.median(caught):.0f}" if caught.size else "",
            }
        )
    return rows


def restart(config: Config) -> list[dict[str, Any]]:
    trainer = nd.Restart(BACKPROP, on=nd.Stall(window=config.window), schedule=nd.Same(), tries=config.tries,
                         begin=network, steps=config.steps)  # fmt: skip
    rows = []
    for seed in range(config.seeds):
        _, ceiling, _ = train("sum2", seed, None, config.steps)
        for name in config.vias:
            via = VIAS[name]
            _, alone, _ = train("sum2", seed, via, config.steps)
            result, right, digits = train("sum2", seed, via, config.tries * config.steps, trainer)
            rows.append(
                {
                    "via": name,
                    "seed": seed,
                    "ceiling": ceiling,
                    "without": alone,
                    "with": right,
                    "digits": digits,
                    "share": right / ceiling,
                    "tries": int(result.history[-1]["tries"]),
                    "steps": result.steps,
                }
            )
            print(" ".join(f"{what} {_shown(x)}" for what, x in rows[-1].items()), flush=True)
    return rows


def speed(config: Config) -> dict[str, float]:
    variants = {
        "without": BACKPROP,
        "with": nd.Restart(BACKPROP, on=nd.Stall(window=config.window), schedule=nd.Same(), begin=network),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(config.turns + 1):
        for name, trainer in variants.items():
            begin = time.perf_counter()
            train("sum2", 0, nd.MarginalLikelihood(), config.steps, trainer)
            if turn:  # the first one compiles
                seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(each) for name, each in seconds.items()}


def table(rows: Sequence[dict[str, Any]]) -> str:
    return "\n".join(aligned([list(rows[0]), *([_shown(x) for x in row.values()] for row in rows)]))


def _shown(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def main(config: Config) -> None:
    found: dict[str, Any] = {}
    if "detect" in config.parts:
        found["detect"] = detect(config)
        print(table(found["detect"]))
    if "restart" in config.parts:
        rows = found["restart"] = restart(config)
        print(table(rows))
        for via in dict.fromkeys(row["via"] for row in rows):
            these = [row for row in rows if row["via"] == via]
            without, reached = (sum(row[x] >= 0.95 * row["ceiling"] for row in these) for x in ("without", "with"))
            print(f"{via}: at 0.95 of the ceiling on {reached} of {len(these)} seeds, without `Restart` on {without}")
    if "speed" in config.parts:
        times = found["speed"] = speed(config)
        print(", ".join(f"{name} `Restart`: {s:.2f} s for {config.steps} steps" for name, s in times.items()))
    if config.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
