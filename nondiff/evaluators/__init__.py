"""Where losses are computed."""

from nondiff.evaluators.host import Host
from nondiff.evaluators.ray import Ray
from nondiff.evaluators.vmap import Vmap

__all__ = ["Host", "Ray", "Vmap"]
