"""What is minimised."""

from .black_box import BlackBox as BlackBox
from .gym import Gym as Gym
from .supervised import Supervised as Supervised
from .windows import AbstractWindows as AbstractWindows
