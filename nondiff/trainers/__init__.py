"""How parameters move. One method, one file; nothing else in the library knows its name."""

from nondiff.trainers.backprop import Backprop
from nondiff.trainers.best import Best
from nondiff.trainers.genetic import (
    AbstractCrossover,
    AbstractSelection,
    Genetic,
    OnePointCrossover,
    Tournament,
    Truncation,
    UniformCrossover,
)
from nondiff.trainers.memetic import Memetic
from nondiff.trainers.open_es import OpenES
from nondiff.trainers.split import Split
from nondiff.trainers.weighting import CentredRanks, ZScore

__all__ = [
    "AbstractCrossover",
    "AbstractSelection",
    "Backprop",
    "Best",
    "CentredRanks",
    "Genetic",
    "Memetic",
    "OnePointCrossover",
    "OpenES",
    "Split",
    "Tournament",
    "Truncation",
    "UniformCrossover",
    "ZScore",
]
