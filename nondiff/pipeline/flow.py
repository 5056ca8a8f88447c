"""What goes between the modules of a pipeline: activations up, messages down, in the order of the steps."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from nondiff.core.module import Module
from nondiff.core.step import TrainState
from nondiff.evaluators import Vmap
from nondiff.pipeline.line import Line
from nondiff.pipeline.places import AbstractSession, Died, Out
from nondiff.pipeline.stage import LOST, at_home
from nondiff.pipeline.together import Together, joined
from nondiff.problems import Supervised
from nondiff.run.callback import Row
from nondiff.run.stepping import AbstractStepper, NonFiniteError

COUNTS = LOST, "best", "failed", "evaluations"
"""What a row has of the last module alone."""
MOST = 10
"""Tries to go on after something was lost."""
PAUSE = 5.0
"""Seconds after which the modules come together, so that signals and callbacks act."""


class Flow(AbstractStepper):
    """A run of a pipeline, as `fit` sees one."""

    source = None
    chunks = ()

    def __init__(
        self,
        problem: Supervised,
        trainer: Together,
        modules: Sequence[Module],
        session: AbstractSession,
        state: TrainState,
        *,
        queue: int,
        waits: bool,
        keep_every: int | None,
    ):
        self.parts, self.modules, self.session = (problem, trainer, Vmap()), modules, session
        self._silences = [at_home(module.silence(problem.cases)) for module in modules]
        self.queue, self.waits, self.keep_every = queue, waits, keep_every
        self.evaluations = 0
        self._last = state
        """The newest state of all that was fetched."""
        self._settled = self._next = self._kept = int(state.step)
        """Steps that all modules have done, steps that they were given, and those of what lost modules start from."""
        self._home: list[Any] = []
        """References to that."""
        self._out: list[dict[int, Out]] = [{} for _ in modules]
        self._lines = [self._lines_of(module, state) for module in modules]
        """Messages to each module, from below and from above."""
        self._saving: dict[int, list[Any]] = {}
        """References to the states after these steps, which are on their way."""
        self._tries = 0
        """To go on after something was lost, since a step was done."""
        self._row: Row = {}
        self._broken = False

    def _lines_of(self, module: Module, state: TrainState) -> tuple[Line, Line]:
        """A module that does not always wait does so for what it cannot do without."""
        there = None if self.waits else self.session.is_there
        every = module.sync.every
        (below, above), (late_below, late_above) = state.problem[module.name]["coming"], module.ways

        def sent(messages: Any) -> list[tuple[int, Any]]:
            numbered = enumerate(messages, int(state.step) - len(messages))
            return [(n, message) for n, message in numbered if int(message.about) >= 0]

        return (
            Line(late_below, 1, None) if module.predicts is None else Line(late_below, every, there, sent(below)),
            Line(late_above, every, None if module.replays else there, sent(above)),
        )

    @property
    def state(self) -> TrainState:
        while int(self._last.step) != self.done:
            refs = self._home if self._broken else [self.session.state(i) for i in range(len(self.modules))]
            try:
                self._last = self._whole([self.session.fetch(ref) for ref in refs], self.done)
            except Died:
                if self._broken:
                    self._kept = int(self._last.step)
                else:
                    self._revive()
            except BaseException:
                self._broken, self._kept = True, int(self._last.step)
                raise
        return self._last

    def reader(self) -> Callable[[], TrainState]:
        step = self.done

        def read() -> TrainState:
            if self.done != step:
                raise RuntimeError(
                    f"`Moment.state`: the modules have gone on from step {step} to {self.done}. Read it when called."
                )
            return self.state

        return read

    @property
    def done(self) -> int:
        return max(self._kept, int(self._last.step)) if self._broken else self._settled

    def ended(self) -> str | None:
        for name, trainer in self.parts[1].trainers.items():
            number = int(trainer.ended(self.state.trainer[name])) if trainer.endings else 0
            if number:
                return f"module `{name}`: {trainer.endings[number - 1]}"
        return None

    def advance(self, count: int, most: int) -> int:
        del most
        before, begin = self._settled, time.perf_counter()
        try:
            while self._next < before + count and (time.perf_counter() - begin < PAUSE or self._next == before):
                if self._next - self._settled >= self.queue:
                    # To wait for several costs as much as to wait for one; who hears the newest wants new ones.
                    self._settle(max(self.queue // 2, 1) if self.waits else 1)
                for i in range(len(self.modules)):
                    self._submit(i, self._next)
                self._next += 1
                if self.keep_every and self._next % self.keep_every == 0:
                    self._saving[self._next] = [self.session.state(i) for i in range(len(self.modules))]
            while self._settled < self._next:
                self._settle(self._next - self._settled)
            if not self.keep_every:
                self._last = self.state
        except BaseException:
            self._broken = True  # steps under way are lost
            raise
        return self._settled - before

    def fetch(self) -> Row:
        return dict(self._row)

    def _submit(self, i: int, n: int) -> None:
        below, above = self._lines[i]
        self._out[i][n] = out = self.session.submit(i, below.heard(n), above.heard(n))
        if i + 1 < len(self.modules):
            self._lines[i + 1][0].send(n, out.up)
        if i and self.modules[i - 1].source == "gradient":
            self._lines[i - 1][1].send(n, out.down)
        if i == len(self.modules) - 1:
            for (_, line), module in zip(self._lines, self.modules, strict=True):
                if module.source == "error":
                    line.send(n, out.error)

    def _settle(self, count: int) -> None:
        """Wait for so many of the oldest steps that are not done."""
        steps = range(self._settled, self._settled + count)
        try:
            rows = iter(self.session.rows([out[n] for n in steps for out in self._out]))
            for n in steps:
                self._settled, self._tries = n + 1, 0
                self._note([next(rows) for _ in self.modules])
            self._keep()
        except Died:
            self._revive()
            return
        self._forget()

    def _keep(self) -> None:
        """The newest states that have come; one is on its way, and for those before it we wait."""
        due = sorted(n for n in self._saving if n <= self._settled)
        for n in due:
            if self.session.arrived(self._saving[n], wait=n != due[-1]):
                self._kept, self._home = n, self._saving.pop(n)
                self.session.keep(self._home)

    def _note(self, rows: list[Row]) -> None:
        for module, row in zip(self.modules, rows, strict=True):
            if row[LOST]:
                self._broken = True
                raise NonFiniteError(
                    f"step {self._settled}: module `{module.name}` has no finite loss and gradient, or they lead to "
                    "parameters that are not finite. `error.state` is the last good one that was kept. Is a rate too "
                    "large, or the start outside of what the loss allows?",
                    step=self._settled,
                    state=self.state,
                )
        self.evaluations += int(sum(row["evaluations"] for row in rows))
        own = {k: v for k, v in rows[-1].items() if k != LOST}
        for module, row in zip(self.modules[:-1], rows, strict=False):
            own |= {f"{module.name}/{k}": v for k, v in row.items() if k not in COUNTS}
        self._row = {"step": self._settled, **own, "evaluations": sum(row["evaluations"] for row in rows)}

    def _forget(self) -> None:
        """What no module needs again, were it started from what was kept."""
        oldest = self._kept if self.keep_every else self._settled
        for out, lines in zip(self._out, self._lines, strict=True):
            for n in [n for n in out if n < oldest]:
                del out[n]
            for line in lines:
                line.forget(oldest)

    def _revive(self) -> None:
        """Lost modules go on from what was kept; whatever waits for them, from where it stands."""
        first = []
        for out in self._out:
            at = self._settled
            while at < self._next and self._is_done(out[at]):
                at += 1
            first.append(at)
        self._tries += 1
        if self._tries > MOST:
            raise RuntimeError(f"`Pipeline`: after step {self._settled} it does not go on, tried {MOST} times.")
        for i in self.session.revive():
            first[i] = self._kept
        self._saving.clear()
        for n in range(min(first), self._next):
            for i in range(len(self.modules)):
                if n >= first[i]:
                    self._submit(i, n)

    def _is_done(self, out: Out) -> bool:
        try:
            self.session.rows([out])
        except Died:
            return False
        return True

    def _whole(self, states: Sequence[TrainState], step: int) -> TrainState:
        coming = []
        for lines, silences in zip(self._lines, self._silences, strict=True):
            refs = zip((line.under_way(step) for line in lines), silences, strict=True)
            coming.append([[none if ref is None else self.session.fetch(ref) for ref in line] for line, none in refs])
        return joined(states, self.modules, coming, step)
