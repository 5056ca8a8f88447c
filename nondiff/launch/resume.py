"""`nondiff resume RUN [--steps N] [--inexact] [--json]`: go on with a run that ended early, bit for bit."""

import argparse
import dataclasses
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nondiff.launch.answer import answered
from nondiff.launch.load import load, on_path
from nondiff.launch.output import as_json
from nondiff.launch.refusal import Refusal
from nondiff.launch.run import elsewhere, made, parse
from nondiff.launch.runs import find_run
from nondiff.launch.train import checkpointer, first_state, log, logged, train
from nondiff.run.checkpoint import CheckpointError, differences, flat
from nondiff.run.directory import SOURCE, RunDirectory, reopen
from nondiff.run.lock import describe
from nondiff.run.plain import strict


def resume(arguments: Sequence[str]) -> int:
    """Resume a run and return the exit code."""
    begin = time.perf_counter()
    parser = argparse.ArgumentParser(prog="nondiff resume", description="Go on with a run that ended early.")
    parser.add_argument("run", metavar="RUN", help="a path, or an id below runs/ or a unique beginning of one")
    parser.add_argument("--steps", type=int, help="train up to this step instead")
    parser.add_argument("--inexact", action="store_true", help="go on with other settings or versions: other bits")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object, the last line")
    options = parser.parse_args(arguments)
    with answered(options.run) as answer:
        directory = _reopen(find_run(options.run))
        answer.directory, asked = directory, directory.config
        with logged(directory):
            if directory.left_by is not None:
                _tell(f"{directory.name} is taken over: {describe(directory.left_by)} is gone")
            steps, path = _steps(directory, options.steps), _file(directory)
            with on_path(path.parent):
                module = load(path, str(path))
                config, settings = parse(module, str(path), asked["arguments"])
                _compare(directory, config, options.inexact)
                experiment = dataclasses.replace(made(module, str(path), config), steps=steps)
                experiment = elsewhere(experiment, settings)
                saver = checkpointer(directory, config, asked["seed"])
                start = saver.restore(first_state(experiment, asked["seed"]), exact=not options.inexact)
                where = f"step {start.step}" if start.path else "the beginning: there is no checkpoint"
                _tell(f"run {directory.name}: goes on from {where}")
                result, metrics = train(experiment, asked["seed"], asked["log_every"], directory, saver, start)
        if options.json:
            seconds = time.perf_counter() - begin
            print(as_json(path.stem, config, asked["seed"], result.steps, seconds, metrics, directory))
    return answer.code


def _reopen(path: Path) -> RunDirectory:
    try:
        return reopen(path)
    except OSError as error:
        raise Refusal(
            f"{path} cannot be written ({error.strerror}): a run goes on only where it can be saved."
        ) from None


def _steps(directory: RunDirectory, wanted: int | None) -> int:
    """How far to go. **Raises** `Refusal` for a run that is there."""
    summary = directory.summary
    done, steps = summary["step"], summary["steps"]
    steps = steps if isinstance(steps, int) else directory.config["steps"]
    if wanted is not None and wanted <= done:
        raise Refusal(f"`--steps {wanted}`: {directory.name} has done {done} already; give more.", code=2)
    if wanted is None and summary["status"] == "finished":
        raise Refusal(
            f"{directory.name} is finished: {summary['reason']}. To train it further: "
            f"nondiff resume {shlex.quote(directory.name)} --steps {2 * max(done, 1)}",
            code=2,
        )
    return steps if wanted is None else wanted


def _file(directory: RunDirectory) -> Path:
    """The experiment's file, where it was or as it was called from here."""
    asked = directory.config
    typed = Path(asked["command"][2]) if len(asked["command"]) > 2 else Path(asked["file"])
    for path in (Path(asked["file"]), typed):
        if path.is_file():
            kept = directory.path / SOURCE
            if not kept.is_file() or path.read_bytes() != kept.read_bytes():
                log.warning("%s is not what it was when the run began", path)
                print(
                    f"warning: {path} is not what it was when the run began ({directory.path / SOURCE}).",
                    file=sys.stderr,
                )
            return path.resolve()
    raise Refusal(
        f"{directory.name}: its experiment is neither {asked['file']} nor {typed.absolute()} any more. Put it there; a "
        f"copy as it was is {directory.path / SOURCE}."
    )


def _compare(directory: RunDirectory, config: Any, inexact: bool) -> None:
    lines = differences(flat(directory.config["config"]), flat(strict(config)), "in the run")
    if lines and not inexact:
        raise CheckpointError(
            "\n".join([f"{directory.name} has other settings than its experiment gives now:", *lines])
            + "\nPut the file's defaults back, or accept other bits: --inexact"
        )


def _tell(text: str) -> None:
    log.info("%s", text)
    print(text, file=sys.stderr, flush=True)
