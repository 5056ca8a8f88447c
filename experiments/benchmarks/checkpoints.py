"""What saving costs a training loop, and what a damaged checkpoint does: nondiff's `Checkpointer` beside its peers.

    python experiments/benchmarks/checkpoints.py

Every library does the same work in one process, used as its documentation says: three float32 arrays, 100 MB together,
are saved every 10 steps, and the last three saves are kept. A step takes about 1 s (matrix products on the CPU, with as
many threads as JAX takes by default: all cores), changes every number and donates the old ones. A loop that saves is
compared with one that does not; the two take turns, far from the saves, so that what else the machine does hits both.
The time includes the wait until the last save is done, which falls on the last step, where nothing hides it. nondiff
and Orbax wait for the disk (that of `TMPDIR`), the others for the operating system only.

Then one bit of a small checkpoint is flipped, or a file of it cut, at random places over all its bytes. Detected:
loading fails. Harmless: it gives the saved numbers. Silent: it gives others without a word.

Result (2 cores, both used by the steps): nondiff, alone on the machine, -0.2 % (median of 3 pairs, less than noise);
the loop is blocked 0.01 s a save. All six beside a test run, before nondiff reused its buffers: nondiff 3.6,
equinox -7.7, safetensors 0.9, savez 2.8, Orbax 7.5 in the loop and 8.6 in the background. Of 100 flipped bits nondiff
detects 100, equinox and safetensors 0, savez 99 (1 harmless), Orbax 1. Cost: 20 minutes, 4 for one library.
"""

import dataclasses
import functools
import importlib.util
import json
import logging
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import safetensors.numpy
import tyro

import nondiff as nd
from nondiff.launch.words import aligned

KEEP = 3
SMALL = 0.08  # megabytes of the checkpoint that is damaged
SIDE = 512  # of the matrices that a step multiplies
State = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Options:
    """What can be chosen."""

    megabytes: float = 100.0
    """Of the state."""
    steps: int = 30
    """Of a loop; a multiple of `every`."""
    every: int = 10
    """Steps between two saves."""
    seconds: float = 1.0
    """Of a step."""
    repetitions: int = 3
    """Of each pair of loops; the median is reported."""
    flips: int = 100
    """Flipped bits for each library, and as many cut files."""
    libraries: tuple[str, ...] = ()
    """Only these."""
    json: bool = False
    """The last line is one JSON object with all of it."""


@dataclasses.dataclass(frozen=True)
class Saver:
    """A library's way to save in a folder."""

    save: Callable[[int, State], Any]
    close: Callable[[], Any]
    """Waits until all is saved."""
    load: Callable[[State], Any]
    """What was saved last, given another state of its kind; asked of a new saver."""


def nondiff(folder: Path) -> Saver:
    checkpointer = nd.Checkpointer(folder, minutes=None, keep=KEEP)
    return Saver(checkpointer.save, checkpointer.close, lambda like: checkpointer.restore(like).state)


def orbax(folder: Path, *, background: bool) -> Saver:
    import orbax.checkpoint as ocp  # pyright: ignore[reportMissingImports]

    options = ocp.CheckpointManagerOptions(max_to_keep=KEEP, enable_async_checkpointing=background)
    manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def load(like: State) -> Any:
        try:
            return manager.restore(manager.latest_step(), args=ocp.args.StandardRestore(like))
        finally:
            manager.close()

    return Saver(lambda step, state: manager.save(step, args=ocp.args.StandardSave(state)), manager.close, load)


def files(folder: Path, *, write: Callable[[Path, State], Any], read: Callable[[Path, State], Any]) -> Saver:
    """A file for each save, written in the loop."""
    folder.mkdir(exist_ok=True)

    def oldest_first() -> list[Path]:
        return sorted(folder.iterdir(), key=lambda path: int(path.stem))

    def save(step: int, state: State) -> None:
        write(folder / f"{step}.npz", state)  # `savez` knows no other ending
        for path in oldest_first()[:-KEEP]:
            path.unlink()

    return Saver(save, lambda: None, lambda like: read(oldest_first()[-1], like))


LIBRARIES: dict[str, Callable[[Path], Saver]] = {
    "nondiff": nondiff,
    "equinox": functools.partial(files, write=eqx.tree_serialise_leaves, read=eqx.tree_deserialise_leaves),
    "safetensors": functools.partial(
        files,
        write=lambda path, state: safetensors.numpy.save_file(on_host(state), path),
        read=lambda path, like: safetensors.numpy.load_file(path),
    ),
    "savez": functools.partial(
        files,
        write=lambda path, state: np.savez(path, **on_host(state)),  # pyright: ignore[reportArgumentType]
        read=lambda path, like: dict(np.load(path)),
    ),
    "orbax-sync": functools.partial(orbax, background=False),
    "orbax-async": functools.partial(orbax, background=True),
}


def on_host(state: State) -> dict[str, np.ndarray]:
    return {name: np.asarray(x) for name, x in state.items()}


def start(megabytes: float) -> State:
    size = max(1, round(megabytes * 1e6 / 12))
    return {name: jr.normal(key, (size,)) for name, key in zip("abc", jr.split(jr.key(0), 3), strict=True)}


@functools.partial(jax.jit, donate_argnums=0)
def advance(state: State, products: int) -> State:
    """A step: so many matrix products, and every number changes."""
    work = jax.lax.fori_loop(0, products, lambda _, x: jnp.tanh(x @ x), jnp.eye(SIDE) + 1 / SIDE)
    return jax.tree.map(lambda x: 0.999 * x + jnp.mean(work), state)


class Loop:
    """A training loop with a clock that stands still while another one runs."""

    def __init__(self, options: Options, products: int, saver: Saver | None = None):
        self.options, self.products, self.saver = options, products, saver
        self.state, self.step, self.seconds = jax.block_until_ready(start(options.megabytes)), 0, 0.0
        self.blocked: list[float] = []
        """Seconds, by each save and by the wait at the end."""

    def run(self, steps: int) -> float:
        begin = time.perf_counter()
        for _ in range(steps):
            self.step += 1
            self.state = jax.block_until_ready(advance(self.state, self.products))
            if self.saver is not None and self.step % self.options.every == 0:
                self._wait_for(self.saver.save, self.step, self.state)
        if self.saver is not None and self.step == self.options.steps:
            self._wait_for(self.saver.close)
        self.seconds += time.perf_counter() - begin
        return self.seconds

    def _wait_for(self, call: Callable[..., Any], *arguments: Any) -> None:
        begin = time.perf_counter()
        call(*arguments)
        self.blocked.append(time.perf_counter() - begin)


def calibrate(options: Options) -> int:
    """The matrix products that make a step about as long as asked."""
    products = 2
    for _ in range(4):
        seconds = min(Loop(options, products).run(1) for _ in range(3))
        products = max(1, min(20 * products, round(products * options.seconds / seconds)))
    return products


def same(a: State, b: State) -> bool:
    """To the bit?"""
    here, there = on_host(a), on_host(b)
    return here.keys() == there.keys() and all(
        (x.dtype, x.shape, x.tobytes()) == (there[name].dtype, there[name].shape, there[name].tobytes())
        for name, x in here.items()
    )


def costs(names: list[str], options: Options) -> tuple[dict[str, dict[str, float]], float]:
    """What saving costs with each library, and the seconds of a step."""
    half = options.every // 2
    turns = [half, *[options.every] * (options.steps // options.every - 1), options.every - half]
    pairs: dict[str, list[tuple[Loop, Loop]]] = {name: [] for name in names}
    for repetition in range(options.repetitions):
        products = calibrate(options)  # each time, for other work may have come or gone
        for name in names:
            with tempfile.TemporaryDirectory() as folder:
                plain, saving = Loop(options, products), Loop(options, products, LIBRARIES[name](Path(folder)))
                for steps in turns:
                    plain.run(steps)
                    saving.run(steps)
                if not same(LIBRARIES[name](Path(folder)).load(start(options.megabytes)), saving.state):
                    raise RuntimeError(f"{name} did not restore what it saved.")
            plain.state = saving.state = {}
            os.sync()  # or the next loop shares the disk with bytes of this one
            pairs[name].append((plain, saving))
            print(f"{repetition + 1}. {name}: {saving.seconds:.2f} s, without {plain.seconds:.2f} s", flush=True)
    step = statistics.median(plain.seconds / options.steps for timed in pairs.values() for plain, _ in timed)
    return {name: summary(timed) for name, timed in pairs.items()}, step


def summary(pairs: list[tuple[Loop, Loop]]) -> dict[str, float]:
    return {
        "overhead_percent": statistics.median(100 * (saving.seconds / plain.seconds - 1) for plain, saving in pairs),
        "blocked_seconds": statistics.median(seconds for _, saving in pairs for seconds in saving.blocked[:-1]),
        "wait_seconds": statistics.median(saving.blocked[-1] for _, saving in pairs),
    }


def flip(data: bytearray, chance: random.Random) -> bytearray:
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return data


def cut(data: bytearray, chance: random.Random) -> bytearray:
    return data[: chance.randrange(len(data))]


def outcomes(name: str, damage: Callable[[bytearray, random.Random], bytearray], options: Options) -> dict[str, int]:
    """What loading makes of damaged copies of a checkpoint. A file is hit in proportion to its size."""
    chance, found, state = random.Random(0), Counter(), advance(start(SMALL), 1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        saver = LIBRARIES[name](path / "whole")
        saver.save(1, state)
        saver.close()
        for i in range(options.flips):
            copy = shutil.copytree(path / "whole", path / str(i))
            files = sorted(file for file in copy.rglob("*") if file.is_file() and file.stat().st_size)
            file = chance.choices(files, [file.stat().st_size for file in files])[0]
            file.write_bytes(damage(bytearray(file.read_bytes()), chance))
            try:
                found["harmless" if same(LIBRARIES[name](copy).load(start(SMALL)), state) else "silent"] += 1
            except Exception:
                found["detected"] += 1
    return {f"{damage.__name__}s_{kind}": found[kind] for kind in ("detected", "harmless", "silent")}


def main(options: Options) -> None:
    if options.steps % options.every:
        raise SystemExit(f"--steps {options.steps} must be a multiple of --every {options.every}.")
    jax.config.update("jax_platforms", "cpu")
    sys.unraisablehook = lambda _: None  # Orbax leaves tasks behind where a load fails, which complain
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    absent = importlib.util.find_spec("orbax") is None
    skipped = [name for name in options.libraries or LIBRARIES if absent and name.startswith("orbax")]
    names = [name for name in options.libraries or LIBRARIES if name not in skipped]
    damage = {name: outcomes(name, flip, options) | outcomes(name, cut, options) for name in names}
    timed, step = costs(names, options)
    rows = [{"library": name, **timed[name], **damage[name]} for name in names]
    head = tuple(name.replace("_", " ") for name in rows[0])
    print("\n".join(aligned([head, *map(cells, rows)], right=range(1, len(head)))))
    print(f"{options.steps} steps of {step:.3g} s, {options.megabytes:g} MB saved every {options.every}")
    for name in skipped:
        print(f"{name} is skipped: it is not installed; pip install -e '.[bench]'")
    if options.json:
        print(json.dumps({"rows": rows, "skipped": skipped, "step_seconds": step}))


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values())


if __name__ == "__main__":
    main(tyro.cli(Options))
