"""What is minimised."""

from nondiff.problems.black_box import BlackBox
from nondiff.problems.gym import Gym
from nondiff.problems.supervised import Supervised

__all__ = ["BlackBox", "Gym", "Supervised"]
