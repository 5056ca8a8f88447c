"""Programs: instruction sets, the machine that runs them, and what they say in Python."""

from nondiff.programs.banks import Cells, Constants, Lists, Memory
from nondiff.programs.instructions import Instructions
from nondiff.programs.machine import Outcome
from nondiff.programs.program import Genome, Program
from nondiff.programs.strategies import AbstractStrategy, Automatic, Switch, Together

__all__ = [
    "AbstractStrategy",
    "Automatic",
    "Cells",
    "Constants",
    "Genome",
    "Instructions",
    "Lists",
    "Memory",
    "Outcome",
    "Program",
    "Switch",
    "Together",
]
