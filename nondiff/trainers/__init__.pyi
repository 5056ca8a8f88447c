"""How parameters move. One method, one file; nothing else in the library knows its name."""

from .activations import HardThreshold as HardThreshold
from .activations import KWinners as KWinners
from .activations import Relu as Relu
from .activations import Sign as Sign
from .activations import Step as Step
from .admm import ADMM as ADMM
from .alternate import Alternate as Alternate
from .ars import ARS as ARS
from .backprop import Backprop as Backprop
from .best import Best as Best
from .cma_es import CMAES as CMAES
from .consensus import Consensus as Consensus
from .evosax import Evosax as Evosax
from .genetic import (
    AbstractCrossover as AbstractCrossover,
)
from .genetic import (
    Genetic as Genetic,
)
from .genetic import (
    OnePointCrossover as OnePointCrossover,
)
from .genetic import (
    UniformCrossover as UniformCrossover,
)
from .genetic_programming import GeneticProgramming as GeneticProgramming
from .layerwise_admm import LayerwiseADMM as LayerwiseADMM
from .least_squares import (
    AbstractLeastSquares as AbstractLeastSquares,
)
from .least_squares import (
    Cholesky as Cholesky,
)
from .least_squares import (
    QuadraticBound as QuadraticBound,
)
from .memetic import Memetic as Memetic
from .open_es import OpenES as OpenES
from .output_losses import (
    AbstractOutputLoss as AbstractOutputLoss,
)
from .output_losses import (
    CrossEntropy as CrossEntropy,
)
from .output_losses import (
    Hinge as Hinge,
)
from .output_losses import (
    SquaredError as SquaredError,
)
from .pgpe import PGPE as PGPE
from .restart import Restart as Restart
from .rho import AbstractRho as AbstractRho
from .rho import BalancedRho as BalancedRho
from .rho import FixedRho as FixedRho
from .rho import GrowingRho as GrowingRho
from .schedules import BIPOP as BIPOP
from .schedules import IPOP as IPOP
from .schedules import AbstractSchedule as AbstractSchedule
from .schedules import Same as Same
from .selection import (
    AbstractSelection as AbstractSelection,
)
from .selection import (
    DALex as DALex,
)
from .selection import (
    Lexicase as Lexicase,
)
from .selection import (
    Tournament as Tournament,
)
from .selection import (
    Truncation as Truncation,
)
from .sep_cma_es import SepCMAES as SepCMAES
from .snes import SNES as SNES
from .split import Split as Split
from .stall import AbstractCriterion as AbstractCriterion
from .stall import NoBetter as NoBetter
from .stall import Stall as Stall
from .weighting import CentredRanks as CentredRanks
from .weighting import LogRanks as LogRanks
from .weighting import ZScore as ZScore
