"""The hooks of a run in their three lists: who is called when, in which order, and what they remember."""

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from nondiff.core.checks import check_count
from nondiff.run.batches import Source
from nondiff.run.callback import AbstractCallback, Callback, Measure, Moment, Row, Stop

UNSEEN, STOPPED = "unseen row", "stopped"  # beside the names of hooks in what is saved


class Hooks:
    """**Raises** `ValueError` for an entry that cannot be called."""

    def __init__(self, metrics: Iterable[Measure], callbacks: Iterable[Callback], stop: Iterable[Stop]):
        self.metrics, self.callbacks, self.stop = (
            _listed(name, hooks) for name, hooks in (("metrics", metrics), ("callbacks", callbacks), ("stop", stop))
        )
        for hook in (*self.metrics, *self.stop):
            if isinstance(hook, AbstractCallback) and hook.saves_others:
                raise ValueError(f"`fit(callbacks=...)` is where a `{type(hook).__name__}` belongs, to be called last.")
        self.callbacks.sort(key=lambda hook: isinstance(hook, AbstractCallback) and hook.saves_others)  # stable
        every = [hook for hook in (*self.metrics, *self.stop, *self.callbacks) if isinstance(hook, AbstractCallback)]
        counts: Counter[str] = Counter()
        self.named: dict[str, AbstractCallback] = {}  # `Patience`, `Patience 2`, ...
        for hook in dict.fromkeys(every):
            kind = type(hook).__name__
            counts[kind] += 1
            self.named[kind if counts[kind] == 1 else f"{kind} {counts[kind]}"] = hook
        self.pauses = [hook.every for hook in self.named.values() if hook.every is not None]
        for name, hook in self.named.items():
            if hook.every is not None:
                check_count(name, "every", hook.every)
        self._begun: list[AbstractCallback] = []
        self._stopped: str | None = None  # why, if one of `stop` ended the run
        self._before: dict[str, Any] | None = None  # while they are called: what they remembered before

    def remember(self, memory: Mapping[str, Any]) -> Row | None:
        """Give each what it returned from `get_state` when the checkpoint was written.

        **Returns** the row that not all of them had seen then, since one of them raised.
        """
        for name, hook in self.named.items():
            if name in memory:
                hook.set_state(memory[name])
        return memory.get(UNSEEN)

    def memory(self, source: Source | None, step: int, steps: int) -> Callable[[], dict[str, Any]]:
        def now() -> dict[str, Any]:
            states = self._states() if self._before is None else self._before
            states = states if source is None else {"batches": source.memory(step), **states}
            return states if self._stopped is None else {STOPPED: {"why": self._stopped, "steps": steps}, **states}

        return now

    def stopped(self, memory: Mapping[str, Any], steps: int) -> str | None:
        """Why the run had ended by one of its `stop`, if there are some now and no more steps are wanted."""
        end = memory.get(STOPPED)
        self._stopped = end["why"] if end is not None and self.stop and steps <= end["steps"] else None
        return self._stopped

    def _states(self) -> dict[str, Any]:
        states = {name: hook.get_state() for name, hook in self.named.items()}
        return copy.deepcopy({name: state for name, state in states.items() if state is not None})

    def begin(self, moment: Moment) -> None:
        for hook in self.named.values():
            self._begun.append(hook)
            hook.begin(moment)

    def at(self, moment: Moment) -> str | None:
        """Call those that are due. Why the run ends, if one of them says so.

        If one raises, what is saved then is as before: a run that goes on shows this row to all of them, again.
        """
        self._before = {**self._states(), **({UNSEEN: dict(moment.row)} if moment.logged else {})}
        for hook in self.metrics if moment.logged else ():
            if _due(hook, moment):
                self._join(moment, hook(moment))
        reasons = [hook(moment) for hook in self.stop if _due(hook, moment)]
        for reason in reasons:
            if not (reason is None or isinstance(reason, str)):
                raise ValueError(
                    f"`fit(stop=...)`: one returned {reason!r}; expected why to end, as a string, or `None`."
                )
        self._stopped = next((reason for reason in reasons if reason is not None), None)
        for hook in self.callbacks:
            if isinstance(hook, AbstractCallback) and hook.saves_others:
                self._before = None  # all others have seen it
            if _due(hook, moment):
                hook(moment)
        self._before = None
        return self._stopped

    def _join(self, moment: Moment, measured: Any) -> None:
        if not isinstance(measured, Mapping):
            raise ValueError(f"`fit(metrics=...)`: one returned {measured!r}; expected a dict of numbers by name.")
        for name, value in measured.items():
            if name in moment.row:
                raise ValueError(f"`fit(metrics=...)`: there are two metrics of the name {name!r}; rename one.")
            moment.row[name] = float(value)

    def end(self, moment: Moment, error: BaseException | None) -> None:
        """End all that began, in reverse. An error on the way is the run's, or a note on the run's."""
        for hook in reversed(self._begun):
            try:
                hook.end(moment, error)
            except BaseException as another:  # also a second signal: the others hold locks
                if error is None:
                    error = another
                elif error is not another:
                    error.add_note(f"and `{type(hook).__name__}`: {another}")
        self._begun, ended = [], self._begun
        if ended and error is not None:
            raise error


def _due(hook: Any, moment: Moment) -> bool:
    return hook.due(moment) if isinstance(hook, AbstractCallback) else moment.logged


def _listed(name: str, hooks: Any) -> list[Any]:
    entries = list(hooks) if hasattr(hooks, "__iter__") else [hooks]
    wrong = [hook for hook in entries if not callable(hook) or isinstance(hook, type)]
    if not hasattr(hooks, "__iter__") or wrong:
        shown = repr(wrong[0] if wrong else hooks)
        raise ValueError(
            f"`fit({name}=...)` was given {shown}; expected a tuple of functions of a `Moment` or `AbstractCallback`s, "
            f"`{name}=(first, second)`."
        )
    return entries
