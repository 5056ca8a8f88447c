"""`nondiff run FILE [--field value ...] [--seed N] [--json]`.

An experiment is a Python file with a frozen dataclass of settings and `make(config) -> Experiment`. Every field is a
typed flag. Progress and errors go to stderr, results to stdout.
"""

import dataclasses
import inspect
import sys
import time
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Annotated, Any

import jax
import tyro

from nondiff.launch.load import Refusal, config_class, find, is_missing, load, missing_package, on_path, place
from nondiff.launch.output import as_json, show
from nondiff.run.experiment import Experiment
from nondiff.run.fit import Result, fit
from nondiff.run.progress import Progress

USAGE = """usage: nondiff run FILE [--field value ...] [--seed N] [--json]

FILE is an experiment: a Python file with a frozen dataclass of settings and `make(config) -> nondiff.Experiment`.
`nondiff run FILE --help` lists its settings."""


@dataclasses.dataclass(frozen=True)
class Options:
    """The launcher's own flags."""

    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the result as one JSON object, the last line of stdout."""


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
    try:
        path = find(name)
        with on_path(path.parent):
            module = load(path, name)
            config, options = parse(module, name, arguments[1:])
            seed = check_seed(options.seed if isinstance(options, SeededOptions) else config.seed)
            result, metrics = train(module, name, config, seed)
    except Refusal as refusal:
        print(refusal, file=sys.stderr)
        return refusal.code
    except ModuleNotFoundError as error:
        if not is_missing(error):
            raise
        print(f"{name} needs {missing_package(error)}", file=sys.stderr)
        return 1
    except ValueError as error:
        if hasattr(error, "state"):  # from within the training: a failure, not a setting
            raise
        print(f"{name}: {error}{place(error, path)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"{name}: {stop if stop.args else 'interrupted'}", file=sys.stderr)
        return 130
    seconds = time.perf_counter() - begin
    show(result, metrics)
    if options.json:
        print(as_json(path.stem, config, seed, result.steps, seconds, metrics))
    return 0


def parse(module: ModuleType, name: str, arguments: Sequence[str]) -> tuple[Any, Options]:
    """The file's settings and the launcher's, from the command line."""
    config = config_class(module, name)
    own = {field.name for field in dataclasses.fields(config)}
    if "json" in own:
        raise Refusal(f"{name}: `{config.__name__}.json` would hide the flag `--json` of `nondiff run`; rename it.")
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


def train(module: ModuleType, name: str, config: Any, seed: int) -> tuple[Result, Mapping[str, Any]]:
    """Make the experiment, train, report."""
    experiment = module.make(config)
    if not isinstance(experiment, Experiment):
        raise Refusal(f"{name}: `make` returned {experiment!r}; expected a `nondiff.Experiment`.")
    log_every = experiment.log_every
    with Progress(total=experiment.steps) as progress:
        result = fit(
            experiment.problem,
            experiment.trainer,
            steps=experiment.steps,
            key=jax.random.key(seed),
            evaluator=experiment.evaluator,
            batches=experiment.batches,
            callbacks=(progress,),
            log_every=max(1, experiment.steps // 100) if log_every is None else log_every,
        )
    metrics = {} if experiment.report is None else experiment.report(result)
    if not isinstance(metrics, Mapping):
        raise Refusal(f"{name}: `report` returned {metrics!r}; expected a dict of numbers and words.")
    return result, metrics
