"""Arrays with a low-rank perturbation, which any JAX function takes."""

from nondiff.arrays.interpret import interpret as interpret
from nondiff.arrays.low_rank import LowRank as LowRank
from nondiff.arrays.low_rank import factors as factors
from nondiff.arrays.low_rank import halves as halves
