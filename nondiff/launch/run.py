"""`nondiff run FILE [--field value ...] [--seed N] [--json]`.

An experiment is a Python file with a frozen dataclass of settings and `make(config) -> Experiment`. Every field is a
typed flag. Progress and errors go to stderr, results to stdout, and all of it into the folder of the run.
"""

import dataclasses
import inspect
import math
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import tyro

from nondiff import evaluators
from nondiff.launch.answer import answered
from nondiff.launch.load import config_class, find, load, on_path
from nondiff.launch.output import as_json
from nondiff.launch.refusal import Refusal
from nondiff.launch.train import checkpointer, logged, train
from nondiff.run.callback import AbstractCallback
from nondiff.run.checkpointer import Checkpointer
from nondiff.run.directory import RunDirectory, create, new_path
from nondiff.run.experiment import Experiment
from nondiff.run.plain import strict
from nondiff.run.versions import git, versions

USAGE = """usage: nondiff run FILE [--field value ...] [--seed N] [--json]

FILE is an experiment: a Python file with a frozen dataclass of settings and `make(config) -> nondiff.Experiment`.
`nondiff run FILE --help` lists its settings."""


@dataclasses.dataclass(frozen=True)
class Options:
    """The launcher's own flags."""

    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the result as one JSON object, the last line of stdout."""
    run_dir: Path | None = None
    """The folder of the run, a new one. Default: runs/<experiment>/<time>-<digits>."""
    save: bool = True
    """Keep the run in that folder."""
    evaluator: Literal["host", "ray", "vmap"] | None = None
    """Where losses are computed. Default: as the experiment says."""
    workers: int | None = None
    """Processes that evaluate, with `--evaluator ray`. Default: as many as there are processors."""
    checkpoint_every: int | None = None
    """Steps between two checkpoints. Default: by time only."""
    checkpoint_minutes: float = 5.0
    """Minutes between two checkpoints; one more is written at the end."""
    stop_on_failed_save: bool = True
    """End the run if something cannot be saved; otherwise warn and go on."""


@dataclasses.dataclass(frozen=True)
class SeededOptions(Options):
    """The same for an experiment without a field `seed`."""

    seed: int = 0
    """Of all that is random in the training."""


def run(arguments: Sequence[str]) -> int:
    """Run an experiment and return the exit code."""
    begin = time.perf_counter()
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    name = arguments[0]
    with answered(name) as answer:
        path = find(name)
        answer.path = path
        with on_path(path.parent):
            module = load(path, name)
            config, options = parse(module, name, arguments[1:])
            seed = check_seed(options.seed if isinstance(options, SeededOptions) else config.seed)
            experiment = made(module, name, config)
            experiment = elsewhere(experiment, options)
            log_every = _log_every(experiment)
            directory = None
            if options.run_dir is not None and not options.save:
                raise Refusal(
                    f"{name}: `--run-dir` names a folder and `--no-save` wants none; give one of the two.", code=2
                )
            if options.save:
                directory = _new_directory(path, arguments, config, options, seed, experiment.steps, log_every)
                answer.directory, answer.new = directory, True
            with logged(directory):
                saver = None if directory is None else checkpointer(directory, config, seed)
                result, metrics = train(experiment, seed, log_every, directory, saver)
        if options.json:
            print(as_json(path.stem, config, seed, result.steps, time.perf_counter() - begin, metrics, directory))
    return answer.code


def made(module: ModuleType, name: str, config: Any) -> Experiment:
    experiment = module.make(config)
    if not isinstance(experiment, Experiment):
        raise Refusal(f"{name}: `make` returned {experiment!r}; expected a `nondiff.Experiment`.")
    return experiment


def elsewhere(experiment: Experiment, options: Options) -> Experiment:
    """The experiment with the evaluator of the command line, if that names one."""
    if options.workers is not None and options.evaluator != "ray":
        raise Refusal("`--workers` is for `--evaluator ray`.", code=2)
    if options.evaluator is None:
        return experiment
    evaluator = getattr(evaluators, options.evaluator.capitalize())
    many = {} if options.workers is None else {"workers": options.workers}
    return dataclasses.replace(experiment, evaluator=evaluator(**many))


def _log_every(experiment: Experiment) -> int:
    """A hundredth of the steps, or a little less: metrics of some steps only need a row at these."""
    if experiment.log_every is not None:
        return experiment.log_every
    every = [hook.every for hook in experiment.metrics if isinstance(hook, AbstractCallback) and hook.every]
    most = max(1, experiment.steps // 100)
    return max(n for n in range(1, most + 1) if math.gcd(*every) % n == 0)


def parse(module: ModuleType, name: str, arguments: Sequence[str]) -> tuple[Any, Options]:
    """The file's settings and the launcher's, from the command line."""
    config = config_class(module, name)
    own = {field.name for field in dataclasses.fields(config)}
    hidden = sorted(own & {field.name for field in dataclasses.fields(Options)})
    if hidden:
        flag = "--" + hidden[0].replace("_", "-")
        raise Refusal(
            f"{name}: `{config.__name__}.{hidden[0]}` would hide the flag `{flag}` of `nondiff run`; rename it."
        )
    options = Options if "seed" in own else SeededOptions
    flat = tyro.conf.arg(name="")
    return tyro.cli(
        tuple[Annotated[config, flat], Annotated[options, flat]],  # pyright: ignore[reportInvalidTypeForm]
        prog=f"nondiff run {name}",
        description=inspect.cleandoc(module.__doc__ or ""),
        args=arguments,
    )


def check_seed(seed: Any) -> int:
    """A whole number that a key can be made of."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise Refusal(f"`--seed {seed}`: a seed is a whole number from 0 to 2**32 - 1.", code=2)
    return seed


def _new_directory(
    path: Path, arguments: Sequence[str], config: Any, options: Options, seed: int, steps: int, log_every: int
) -> RunDirectory:
    folder = new_path(path.stem) if options.run_dir is None else options.run_dir
    saves = {
        "every": options.checkpoint_every,
        "minutes": options.checkpoint_minutes,
        "strict": options.stop_on_failed_save,
    }
    asked = {
        "experiment": path.stem,
        "file": str(path),
        "arguments": list(arguments[1:]),
        "config": strict(config),
        "seed": seed,
        "steps": steps,
        "log_every": log_every,
        "checkpoints": saves,
        "command": ["nondiff", "run", *arguments],
        "folder": os.getcwd(),
        "versions": versions(),
        "git": git(path.parent),
    }
    if folder.is_file():
        raise Refusal(f"`--run-dir {folder}` is a file; name a folder that is not there yet.", code=2)
    Checkpointer(folder, **saves)  # refuses what does not fit, before there is a folder
    try:
        directory = create(folder, asked, path)
    except FileExistsError:
        way = f"Go on with that run (`nondiff resume {shlex.quote(str(folder))}`), or name another `--run-dir`."
        raise Refusal(f"{folder} is there already. {way}", code=2) from None
    except OSError as error:
        raise Refusal(
            f"{folder}: the folder of the run cannot be written ({error.strerror}). Name another with `--run-dir`, or "
            "keep nothing with `--no-save`."
        ) from None
    print(f"run {directory.name}", file=sys.stderr, flush=True)
    return directory
