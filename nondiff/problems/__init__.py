"""What is minimised."""

from nondiff.problems.black_box import BlackBox
from nondiff.problems.gym import Gym
from nondiff.problems.supervised import Supervised
from nondiff.problems.windows import AbstractWindows

__all__ = ["AbstractWindows", "BlackBox", "Gym", "Supervised"]
