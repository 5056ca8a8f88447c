"""An experiment: what `nondiff run` runs."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nondiff.core.checks import check_count
from nondiff.core.evaluator import AbstractEvaluator
from nondiff.core.problem import AbstractProblem
from nondiff.run.batches import Batches
from nondiff.run.callback import Callback, Measure, Stop
from nondiff.run.fit import Result

Report = Callable[[Result], Mapping[str, float | int | str]]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What `make(config)` of an experiment's file returns: the arguments of `fit` or of a `Pipeline`, and what to
    report.

    >>> import jax.numpy as jnp, nondiff, optax
    >>> problem = nondiff.BlackBox(lambda x: jnp.sum(x**2), jnp.ones(3))
    >>> Experiment(problem, nondiff.Backprop(optax.sgd(0.1)), 300, report=lambda result: {"loss": result.loss}).steps
    300
    """

    problem: AbstractProblem
    trainer: Any
    """A trainer; with a `place`, also one for each module, by its name."""
    steps: int
    _: dataclasses.KW_ONLY
    evaluator: AbstractEvaluator | None = None
    """Default: that of `fit`."""
    batches: Batches | None = None
    """Default: the problem's own."""
    place: Any = None
    """Where modules are trained by a `Pipeline`. Default: the whole model is, by `fit`."""
    metrics: Sequence[Measure] = ()
    callbacks: Sequence[Callback] = ()
    stop: Sequence[Stop] = ()
    report: Report | None = None
    """Called after training: the final metrics, by name. Default: none."""
    log_every: int | None = None
    """Steps between two lines of progress. Default: a hundredth of `steps`."""

    def __post_init__(self) -> None:
        check_count("Experiment", "steps", self.steps, least=0)
        if self.place is not None and not (self.evaluator is None and self.batches is None):
            raise ValueError("`Experiment(place=...)`: a `Pipeline` has neither an `evaluator` nor `batches`.")
        if self.log_every is not None:
            check_count("Experiment", "log_every", self.log_every)
