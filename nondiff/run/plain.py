"""Values as other programs can read them: numbers of Python's, and strict JSON."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any


def plain(value: Any) -> Any:
    """A NumPy or JAX scalar as a number of Python's."""
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value


def strict(value: Any) -> Any:
    """The same as JSON can hold it.

    >>> import numpy as np
    >>> strict({"loss": np.float32(0.5), "best": float("nan"), "sizes": (1, 2), "dtype": complex})
    {'loss': 0.5, 'best': None, 'sizes': [1, 2], 'dtype': 'builtins.complex'}
    """
    value = plain(value)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): strict(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [strict(v) for v in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return strict({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))  # the same in every process
