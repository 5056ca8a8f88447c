"""How far a run is: a bar on a terminal, plain lines anywhere else."""

import collections
import sys
from typing import Any

import rich.console
import rich.progress

from nondiff.run.callback import AbstractCallback, Moment, Row

_NOT_SHOWN = ("step", "loss", "evaluations", "lost")
_SHOWN = 4  # metrics beside the loss
_WINDOW = 30  # rows over which the rate is measured
_PAUSE = 1.0  # seconds between two plain lines
_BAR = 16  # characters


class Progress(AbstractCallback):
    """Shows step, loss, a few metrics, rate and time to go, on stderr.

    On a terminal it is a bar; elsewhere a line, at most one a second, and the last one.

    >>> import jax, jax.numpy as jnp, nondiff, optax
    >>> problem = nondiff.BlackBox(lambda x: jnp.sum(x**2), jnp.ones(3))
    >>> result = nondiff.fit(problem, nondiff.Backprop(optax.sgd(0.1)), steps=100, key=jax.random.key(0),
    ...                      callbacks=[Progress()])
    """

    def __init__(self) -> None:
        self._seen: collections.deque[tuple[float, int]] = collections.deque(maxlen=_WINDOW)
        self._bar: rich.progress.Progress | None = None
        self._task: Any = None
        self._printed = -float("inf")
        self._waiting: str | None = None

    def begin(self, moment: Moment) -> None:
        self._seen.clear()
        self._bar, self._printed, self._waiting = None, -float("inf"), None
        if sys.stderr.isatty():
            self._bar = rich.progress.Progress(
                rich.progress.BarColumn(bar_width=_BAR),
                rich.progress.MofNCompleteColumn(),
                rich.progress.TextColumn("{task.fields[text]}", markup=False),
                console=rich.console.Console(stderr=True),
            )
            self._task = self._bar.add_task("", total=moment.steps, completed=moment.start, text="compiling")
            self._bar.start()

    def __call__(self, moment: Moment) -> None:
        step, total = moment.step, moment.steps
        self._seen.append((moment.seconds, step))
        values, pace = _values(moment.row), self._pace(total)
        if self._bar is not None:
            room = self._bar.console.width - _BAR - 2 * len(str(total)) - 3
            while len(values) > 1 and len("  ".join([*values, *pace])) > room:
                values.pop()
            self._bar.update(self._task, completed=step, text="  ".join([*values, *pace]))
            return
        self._waiting = "  ".join([f"step {step}/{total}", *values, *pace])
        if moment.seconds - self._printed >= _PAUSE or step >= total:
            self._printed = moment.seconds
            self._print()

    def end(self, moment: Moment, error: BaseException | None) -> None:
        del moment, error
        if self._bar is not None:
            self._bar.stop()
        elif self._waiting is not None:
            self._print()

    def _print(self) -> None:
        print(self._waiting, file=sys.stderr, flush=True)
        self._waiting = None

    def _pace(self, total: int) -> list[str]:
        """Steps per second and time to go; the first row has none, for it holds the compilation."""
        (then, before), (now, step) = self._seen[0], self._seen[-1]
        if step == before or now == then:
            return []
        rate = (step - before) / (now - then)
        return [
            f"{rate:.3g} steps/s" if rate < 1000 else f"{rate:.0f} steps/s",
            f"ETA {_clock((total - step) / rate)}",
        ]


def _values(row: Row) -> list[str]:
    others = [name for name, value in row.items() if name not in _NOT_SHOWN and (name != "failed" or value > 0)]
    return [f"{name} {row[name]:.4g}" for name in ["loss", *others[:_SHOWN]] if name in row]


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
