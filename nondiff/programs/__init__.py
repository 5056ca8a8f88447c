"""Programs: instruction sets, the machine that runs them, and what they say in Python."""

from nondiff.programs.banks import Cells, Constants, Memory
from nondiff.programs.execute import Outcome
from nondiff.programs.instructions import Instructions
from nondiff.programs.program import Genome, Program
from nondiff.programs.strategies import AbstractStrategy, Together

__all__ = [
    "AbstractStrategy",
    "Cells",
    "Constants",
    "Genome",
    "Instructions",
    "Memory",
    "Outcome",
    "Program",
    "Together",
]
