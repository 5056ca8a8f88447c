"""What `nondiff run` and `nondiff resume` share: train in a run's folder, report, and leave all of it on the disk."""

import contextlib
import dataclasses
import functools
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from nondiff.core.step import TrainState, init
from nondiff.launch.output import show
from nondiff.launch.refusal import Refusal
from nondiff.pipeline import Pipeline
from nondiff.run.checkpoint import Checkpoint, CheckpointError
from nondiff.run.checkpointer import Checkpointer
from nondiff.run.directory import CHECKPOINTS, LOG, METRICS, RunDirectory
from nondiff.run.experiment import Experiment
from nondiff.run.fit import Result, fit
from nondiff.run.plain import strict
from nondiff.run.progress import Progress
from nondiff.run.record import Record, ended_by
from nondiff.run.rows import JSONLines, read_rows

log = logging.getLogger("nondiff")
EXPECTED = (Refusal, CheckpointError, KeyboardInterrupt, SystemExit)  # no traceback says more


def checkpointer(directory: RunDirectory, config: Any, seed: int) -> Checkpointer:
    settings = directory.config["checkpoints"]
    described = {**strict(config), "seed": seed}
    return Checkpointer(directory.path / CHECKPOINTS, config=described, **settings)


def train(
    experiment: Experiment,
    seed: int,
    log_every: int,
    directory: RunDirectory | None = None,
    saver: Checkpointer | None = None,
    start: Checkpoint | None = None,
) -> tuple[Result, Mapping[str, Any]]:
    """Train, from the seed or from a checkpoint, and report; the run's folder says how that went."""
    try:
        result = _fit(experiment, seed, log_every, directory, saver, start)
        metrics = {} if experiment.report is None else experiment.report(result)
        if not isinstance(metrics, Mapping):
            raise Refusal(f"`report` returned {metrics!r}; expected a dict of numbers and words.")
        if directory is not None:
            directory.update(status="finished", reason=result.reason, metrics=strict(metrics))
    except BaseException as error:
        if directory is not None and directory.summary["status"] == "running":
            with contextlib.suppress(OSError):
                directory.update(**ended_by(error))
        raise
    show(result, metrics)
    return result, metrics


def _fit(
    experiment: Experiment, seed: int, log_every: int, directory: RunDirectory | None, saver: Any, start: Any
) -> Result:
    files = ()
    if directory is not None:
        strictly = saver.strict
        files = JSONLines(directory.path / METRICS, strict=strictly), Record(directory, strict=strictly), saver
    begin: dict[str, Any] = {"key": jax.random.key(seed)} if start is None else {"state": start}
    result = _driver(experiment)(
        steps=experiment.steps,
        metrics=experiment.metrics,
        callbacks=(Progress(), *experiment.callbacks, *files),
        stop=experiment.stop,
        log_every=log_every,
        **begin,
    )
    if directory is None or start is None:
        return result
    rows = [dict(row) for row in read_rows(directory.path / METRICS)]  # those of before the resume, too
    for row in rows:
        del row["seconds"]
    seconds = directory.summary["seconds"]
    return dataclasses.replace(result, history=rows, loss=rows[-1]["loss"] if rows else result.loss, seconds=seconds)


def _driver(experiment: Experiment) -> Callable[..., Result]:
    """The one of the two that trains it."""
    if experiment.place is not None:
        return _pipeline(experiment).fit
    given = {"evaluator": experiment.evaluator, "batches": experiment.batches}
    return functools.partial(fit, experiment.problem, experiment.trainer, **given)


def _pipeline(experiment: Experiment) -> Pipeline:
    problem: Any = experiment.problem
    return Pipeline(problem, experiment.trainer, experiment.place)


def first_state(experiment: Experiment, seed: int) -> TrainState:
    """That of a new run."""
    key = jax.random.key(seed)
    if experiment.place is not None:
        return _pipeline(experiment).init(key=key)
    return init(experiment.problem, experiment.trainer, key=key)


class _Quiet(logging.FileHandler):
    """A full disk must not stop the run by way of its log."""

    def handleError(self, record: logging.LogRecord) -> None:
        del record


@contextlib.contextmanager
def logged(directory: RunDirectory | None) -> Iterator[None]:
    """Write what happens into the run's log, warnings and the error that ends it included, and release its folder."""
    if directory is None:
        yield
        return
    handler = _Quiet(directory.path / LOG, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    level, show_warning = log.level, warnings.showwarning

    def both(message: Any, category: Any, *rest: Any, **named: Any) -> None:
        log.warning("%s", message)
        print(f"warning: {message}", file=sys.stderr, flush=True)

    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    warnings.showwarning = both
    try:
        log.info("%s, nondiff %s", directory.path, directory.config["versions"].get("nondiff"))
        yield
        log.info("%s", directory.summary["reason"])
    except BaseException as error:
        log.error("%s", ended_by(error)["reason"], exc_info=not isinstance(error, EXPECTED))
        raise
    finally:
        warnings.showwarning = show_warning
        log.propagate = True
        log.setLevel(level)
        log.removeHandler(handler)
        handler.close()
        directory.release()
