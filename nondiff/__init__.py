"""Training for models that backpropagation alone cannot train."""

from nondiff.core.domain import AbstractDomain, Categorical, Integer, Real
from nondiff.core.estimator import AbstractEstimator, AbstractObjective
from nondiff.core.evaluator import AbstractEvaluator
from nondiff.core.population import AbstractSampler, Centre, Points, Population
from nondiff.core.problem import AbstractProblem
from nondiff.core.query import AbstractWeighting, Evaluation, Quadratic, Query, Wants
from nondiff.core.step import TrainState, init, step
from nondiff.core.trainer import AbstractTrainer
from nondiff.estimators import (
    AbstractBaseline,
    ExpectedLoss,
    LeaveOneOut,
    MarginalLikelihood,
    NoBaseline,
    Opaque,
    OpaqueError,
    ScoreFunction,
    SuccessLikelihood,
    Tabulate,
    through,
)
from nondiff.evaluators import Host, Vmap
from nondiff.problems import BlackBox, Supervised
from nondiff.run.experiment import Experiment
from nondiff.run.fit import NonFiniteError, Result, fit
from nondiff.run.minimise import minimise
from nondiff.run.progress import Progress
from nondiff.trainers import (
    AbstractCrossover,
    AbstractSelection,
    Backprop,
    Best,
    CentredRanks,
    Genetic,
    Memetic,
    OnePointCrossover,
    OpenES,
    Split,
    Tournament,
    Truncation,
    UniformCrossover,
    ZScore,
)

__all__ = [
    "AbstractBaseline",
    "AbstractCrossover",
    "AbstractDomain",
    "AbstractEstimator",
    "AbstractEvaluator",
    "AbstractObjective",
    "AbstractProblem",
    "AbstractSampler",
    "AbstractSelection",
    "AbstractTrainer",
    "AbstractWeighting",
    "Backprop",
    "Best",
    "BlackBox",
    "Categorical",
    "Centre",
    "CentredRanks",
    "Evaluation",
    "ExpectedLoss",
    "Experiment",
    "Genetic",
    "Host",
    "Integer",
    "LeaveOneOut",
    "MarginalLikelihood",
    "Memetic",
    "NoBaseline",
    "NonFiniteError",
    "OnePointCrossover",
    "Opaque",
    "OpaqueError",
    "OpenES",
    "Points",
    "Population",
    "Progress",
    "Quadratic",
    "Query",
    "Real",
    "Result",
    "ScoreFunction",
    "Split",
    "SuccessLikelihood",
    "Supervised",
    "Tabulate",
    "Tournament",
    "TrainState",
    "Truncation",
    "UniformCrossover",
    "Vmap",
    "Wants",
    "ZScore",
    "fit",
    "init",
    "minimise",
    "step",
    "through",
]
