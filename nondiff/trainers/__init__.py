"""How parameters move. One method, one file; nothing else in the library knows its name."""

from nondiff.trainers.ars import ARS
from nondiff.trainers.backprop import Backprop
from nondiff.trainers.best import Best
from nondiff.trainers.cma_es import CMAES
from nondiff.trainers.evosax import Evosax
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
from nondiff.trainers.pgpe import PGPE
from nondiff.trainers.restart import Restart
from nondiff.trainers.schedules import BIPOP, IPOP, AbstractSchedule, Same
from nondiff.trainers.sep_cma_es import SepCMAES
from nondiff.trainers.snes import SNES
from nondiff.trainers.split import Split
from nondiff.trainers.stall import AbstractCriterion, NoBetter, Stall
from nondiff.trainers.weighting import CentredRanks, LogRanks, ZScore

__all__ = [
    "ARS",
    "BIPOP",
    "CMAES",
    "IPOP",
    "PGPE",
    "SNES",
    "AbstractCriterion",
    "AbstractCrossover",
    "AbstractSchedule",
    "AbstractSelection",
    "Backprop",
    "Best",
    "CentredRanks",
    "Evosax",
    "Genetic",
    "LogRanks",
    "Memetic",
    "NoBetter",
    "OnePointCrossover",
    "OpenES",
    "Restart",
    "Same",
    "SepCMAES",
    "Split",
    "Stall",
    "Tournament",
    "Truncation",
    "UniformCrossover",
    "ZScore",
]
