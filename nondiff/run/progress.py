"""How far a run is: a bar on a terminal, plain lines anywhere else."""

import collections
import sys
import time
from collections.abc import Mapping
from typing import Any

import rich.console
import rich.progress

_NOT_SHOWN = ("step", "loss", "evaluations", "lost")
_SHOWN = 4  # metrics beside the loss
_WINDOW = 30  # rows over which the rate is measured
_PAUSE = 1.0  # seconds between two plain lines
_BAR = 16  # characters


class Progress:
    """A callback of `fit` that shows step, loss, a few metrics, rate and time to go, on stderr.

    On a terminal it is a bar; elsewhere a line, at most one a second, and the last one.

    **Arguments:**

    - `total`: the `steps` given to `fit`.

    >>> import jax, jax.numpy as jnp, nondiff, optax
    >>> problem = nondiff.BlackBox(lambda x: jnp.sum(x**2), jnp.ones(3))
    >>> with Progress(total=100) as progress:
    ...     result = nondiff.fit(problem, nondiff.Backprop(optax.sgd(0.1)), steps=100, key=jax.random.key(0),
    ...                          callbacks=(progress,))
    """

    def __init__(self, total: int):
        self.total = total
        self._seen: collections.deque[tuple[float, int]] = collections.deque(maxlen=_WINDOW)
        self._bar: rich.progress.Progress | None = None
        self._task: Any = None
        self._printed = -float("inf")
        self._waiting: str | None = None

    def __enter__(self) -> "Progress":
        if sys.stderr.isatty():
            self._bar = rich.progress.Progress(
                rich.progress.BarColumn(bar_width=_BAR),
                rich.progress.MofNCompleteColumn(),
                rich.progress.TextColumn("{task.fields[text]}", markup=False),
                console=rich.console.Console(stderr=True),
            )
            self._task = self._bar.add_task("", total=self.total, text="compiling")
            self._bar.start()
        return self

    def __call__(self, step: int, metrics: Mapping[str, float | int]) -> None:
        now = time.perf_counter()
        self._seen.append((now, step))
        values, pace = _values(metrics), self._pace(step)
        if self._bar is not None:
            room = self._bar.console.width - _BAR - 2 * len(str(self.total)) - 3
            while len(values) > 1 and len("  ".join([*values, *pace])) > room:
                values.pop()
            self._bar.update(self._task, completed=step, text="  ".join([*values, *pace]))
            return
        self._waiting = "  ".join([f"step {step}/{self.total}", *values, *pace])
        if now - self._printed >= _PAUSE or step >= self.total:
            self._print(now)

    def __exit__(self, *error: Any) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._waiting is not None:
            self._print(time.perf_counter())

    def _print(self, now: float) -> None:
        print(self._waiting, file=sys.stderr, flush=True)
        self._waiting, self._printed = None, now

    def _pace(self, step: int) -> list[str]:
        """Steps per second and time to go; the first row has none, for it holds the compilation."""
        (then, before), (now, _) = self._seen[0], self._seen[-1]
        if step == before or now == then:
            return []
        rate = (step - before) / (now - then)
        return [
            f"{rate:.3g} steps/s" if rate < 1000 else f"{rate:.0f} steps/s",
            f"ETA {_clock((self.total - step) / rate)}",
        ]


def _values(metrics: Mapping[str, float | int]) -> list[str]:
    others = [name for name, value in metrics.items() if name not in _NOT_SHOWN and (name != "failed" or value > 0)]
    return [f"{name} {metrics[name]:.4g}" for name in ["loss", *others[:_SHOWN]] if name in metrics]


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
