"""The second driver: modules that are trained at the same time, each where it is."""

from nondiff.pipeline.actors import Actors
from nondiff.pipeline.devices import Devices
from nondiff.pipeline.pipeline import Pipeline

__all__ = ["Actors", "Devices", "Pipeline"]
