"""What came out of an experiment: for people, and as JSON for programs."""

import dataclasses
import json
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from nondiff.run.fit import Result
from nondiff.run.plain import plain, strict


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


def as_json(
    stem: str, config: Any, seed: int, steps: int, seconds: float, metrics: Mapping[str, Any], directory: Any = None
) -> str:
    """What came out, for programs: strict JSON, `null` for what is not finite."""
    return json.dumps(
        {
            "experiment": stem,
            "config": strict({field.name: getattr(config, field.name) for field in dataclasses.fields(config)}),
            "seed": seed,
            "steps": steps,
            "seconds": seconds,
            "metrics": strict(metrics),
            "run": None if directory is None else directory.name,
        },
        allow_nan=False,
    )
