"""What came out of an experiment: for people, and as JSON for programs."""

import dataclasses
import json
import math
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from nondiff.run.fit import Result


def show(result: Result, metrics: Mapping[str, Any]) -> None:
    """What came out, for people."""
    rows = {name: plain(value) for name, value in metrics.items()}
    rows = {name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in rows.items()}
    print(f"{result.steps} steps in {result.seconds:.1f} s, loss {result.loss:.4g}: {result.reason}")
    if sys.stdout.isatty() and rows:
        table = Table("metric", "value", box=None, show_header=False)
        for row in rows.items():
            table.add_row(*row)
        Console(markup=False, highlight=False).print(table)
        return
    for name, value in rows.items():
        print(f"{name}  {value}")


def as_json(stem: str, config: Any, seed: int, steps: int, seconds: float, metrics: Mapping[str, Any]) -> str:
    """What came out, for programs: strict JSON, `null` for what is not finite."""
    return json.dumps(
        {
            "experiment": stem,
            "config": strict({field.name: getattr(config, field.name) for field in dataclasses.fields(config)}),
            "seed": seed,
            "steps": steps,
            "seconds": seconds,
            "metrics": strict(metrics),
        },
        allow_nan=False,
    )


def plain(value: Any) -> Any:
    """A NumPy or JAX scalar as a number of Python's."""
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value


def strict(value: Any) -> Any:
    """The same as JSON can hold it.

    >>> import numpy as np
    >>> strict({"loss": np.float32(0.5), "best": float("nan"), "sizes": (1, 2), "dtype": complex})
    {'loss': 0.5, 'best': None, 'sizes': [1, 2], 'dtype': "<class 'complex'>"}
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
    return str(value)
