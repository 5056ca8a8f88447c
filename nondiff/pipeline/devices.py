"""Modules on the devices of this process: JAX computes on each while the next calls are made."""

from collections.abc import Sequence
from typing import Any

import jax
from jaxtyping import PyTree

from nondiff.core.step import TrainState
from nondiff.pipeline.places import AbstractPlace, AbstractSession, Given, Out
from nondiff.pipeline.stage import Stage, at_home, numbers
from nondiff.run.callback import Row


class Devices(AbstractPlace):
    """One module a device, in this process.

    **Arguments:**

    - `devices`: `jax.devices()`, for example, of which each module has one, from below. Default `None`: all are on the
      default device, one after the other.

    **Raises** `ValueError` for something else, and, where it is used, for fewer devices than modules.

    >>> Devices(jax.devices()).devices == tuple(jax.devices())
    True
    """

    def __init__(self, devices: Sequence[Any] | None = None):
        if devices is not None and (isinstance(devices, str) or not all(isinstance(d, jax.Device) for d in devices)):
            raise ValueError(f"`Devices({devices!r})`: expected devices, for example `jax.devices()`.")
        self.devices = None if devices is None else tuple(devices)

    def check(self, modules: int) -> None:
        if self.devices is not None and len(self.devices) < modules:
            raise ValueError(
                f"`Devices`: {modules} modules, and {len(self.devices)} device{'s' * (len(self.devices) != 1)}, of "
                "which each has one. Join modules (chains of several stages), or leave `devices` out."
            )

    def open(self, given: Sequence[Given]) -> AbstractSession:
        devices = self.devices or [None] * len(given)
        return _Session([Stage(*one, device) for one, device in zip(given, devices, strict=False)])


class _Session(AbstractSession):
    def __init__(self, stages: list[Stage]):
        self._stages = stages

    def submit(self, i: int, inputs: Any, message: Any) -> Out:
        handed, metrics = self._stages[i].step(inputs, message)
        return Out(handed.up, handed.down, handed.error, metrics)

    def rows(self, outs: Sequence[Out]) -> list[Row]:
        return [numbers(out.row) for out in outs]

    def is_there(self, ref: PyTree) -> bool:
        arrays: list[Any] = [x for x in jax.tree.leaves(ref) if isinstance(x, jax.Array)]  # NumPy's are there
        return all(x.is_ready() for x in arrays)

    def state(self, i: int) -> TrainState:
        return self.fetch(self._stages[i].state)  # at once: the next step may overwrite it

    def fetch(self, ref: Any) -> Any:
        return at_home(ref)

    def close(self) -> None:
        """Nothing was started."""
