"""How a learning signal crosses a part that has no derivative."""

from nondiff.core.estimator import ExpectedLoss, Heuristic, SuccessLikelihood
from nondiff.core.through import through
from nondiff.estimators.auto import Auto
from nondiff.estimators.blackbox import Blackbox
from nondiff.estimators.codec import Vocabulary
from nondiff.estimators.decisions import TopK, one_hot
from nondiff.estimators.failure import AbstractFailure, Instead, OpaqueError, Raise
from nondiff.estimators.health import health
from nondiff.estimators.indecater import IndeCateR
from nondiff.estimators.marginal_likelihood import MarginalLikelihood
from nondiff.estimators.opaque import Opaque
from nondiff.estimators.perturbed import Perturbed
from nondiff.estimators.score_function import AbstractBaseline, LeaveOneOut, NoBaseline, ScoreFunction
from nondiff.estimators.smoothing import Smoothing
from nondiff.estimators.splitting import Splitting
from nondiff.estimators.straight_through import (
    AbstractRelaxation,
    Clipped,
    GumbelSoftmax,
    Identity,
    Softmax,
    StraightThrough,
)
from nondiff.estimators.surrogate import LossModel, Surrogate
from nondiff.estimators.tabulate import Tabulate

__all__ = [
    "AbstractBaseline",
    "AbstractFailure",
    "AbstractRelaxation",
    "Auto",
    "Blackbox",
    "Clipped",
    "ExpectedLoss",
    "GumbelSoftmax",
    "Heuristic",
    "Identity",
    "IndeCateR",
    "Instead",
    "LeaveOneOut",
    "LossModel",
    "MarginalLikelihood",
    "NoBaseline",
    "Opaque",
    "OpaqueError",
    "Perturbed",
    "Raise",
    "ScoreFunction",
    "Smoothing",
    "Softmax",
    "Splitting",
    "StraightThrough",
    "SuccessLikelihood",
    "Surrogate",
    "Tabulate",
    "TopK",
    "Vocabulary",
    "health",
    "one_hot",
    "through",
]
