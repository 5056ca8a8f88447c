"""How parameters move. One method, one file; nothing else in the library knows its name."""

from nondiff.trainers.activations import HardThreshold, KWinners, Relu, Sign, Step
from nondiff.trainers.admm import ADMM
from nondiff.trainers.alternate import Alternate
from nondiff.trainers.ars import ARS
from nondiff.trainers.backprop import Backprop
from nondiff.trainers.best import Best
from nondiff.trainers.cma_es import CMAES
from nondiff.trainers.consensus import Consensus
from nondiff.trainers.evosax import Evosax
from nondiff.trainers.genetic import AbstractCrossover, Genetic, OnePointCrossover, UniformCrossover
from nondiff.trainers.genetic_programming import GeneticProgramming
from nondiff.trainers.layerwise_admm import LayerwiseADMM
from nondiff.trainers.least_squares import AbstractLeastSquares, Cholesky, QuadraticBound
from nondiff.trainers.memetic import Memetic
from nondiff.trainers.open_es import OpenES
from nondiff.trainers.output_losses import AbstractOutputLoss, CrossEntropy, Hinge, SquaredError
from nondiff.trainers.pgpe import PGPE
from nondiff.trainers.restart import Restart
from nondiff.trainers.rho import AbstractRho, BalancedRho, FixedRho, GrowingRho
from nondiff.trainers.schedules import BIPOP, IPOP, AbstractSchedule, Same
from nondiff.trainers.selection import AbstractSelection, DALex, Lexicase, Tournament, Truncation
from nondiff.trainers.sep_cma_es import SepCMAES
from nondiff.trainers.snes import SNES
from nondiff.trainers.split import Split
from nondiff.trainers.stall import AbstractCriterion, NoBetter, Stall
from nondiff.trainers.weighting import CentredRanks, LogRanks, ZScore

__all__ = [
    "ADMM",
    "ARS",
    "BIPOP",
    "CMAES",
    "IPOP",
    "PGPE",
    "SNES",
    "AbstractCriterion",
    "AbstractCrossover",
    "AbstractLeastSquares",
    "AbstractOutputLoss",
    "AbstractRho",
    "AbstractSchedule",
    "AbstractSelection",
    "Alternate",
    "Backprop",
    "BalancedRho",
    "Best",
    "CentredRanks",
    "Cholesky",
    "Consensus",
    "CrossEntropy",
    "DALex",
    "Evosax",
    "FixedRho",
    "Genetic",
    "GeneticProgramming",
    "GrowingRho",
    "HardThreshold",
    "Hinge",
    "KWinners",
    "LayerwiseADMM",
    "Lexicase",
    "LogRanks",
    "Memetic",
    "NoBetter",
    "OnePointCrossover",
    "OpenES",
    "QuadraticBound",
    "Relu",
    "Restart",
    "Same",
    "SepCMAES",
    "Sign",
    "Split",
    "SquaredError",
    "Stall",
    "Step",
    "Tournament",
    "Truncation",
    "UniformCrossover",
    "ZScore",
]
