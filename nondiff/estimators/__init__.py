"""How a learning signal crosses a part that has no derivative."""

from nondiff.core.estimator import ExpectedLoss, SuccessLikelihood
from nondiff.estimators.indecater import IndeCateR
from nondiff.estimators.marginal_likelihood import MarginalLikelihood
from nondiff.estimators.opaque import Opaque, OpaqueError
from nondiff.estimators.score_function import AbstractBaseline, LeaveOneOut, NoBaseline, ScoreFunction
from nondiff.estimators.smoothing import Smoothing
from nondiff.estimators.tabulate import Tabulate
from nondiff.estimators.through import through

__all__ = [
    "AbstractBaseline",
    "ExpectedLoss",
    "IndeCateR",
    "LeaveOneOut",
    "MarginalLikelihood",
    "NoBaseline",
    "Opaque",
    "OpaqueError",
    "ScoreFunction",
    "Smoothing",
    "SuccessLikelihood",
    "Tabulate",
    "through",
]
