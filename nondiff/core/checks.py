"""Checks of arguments that are numbers: each error names the argument, its value, and what was expected."""

import math
from collections.abc import Callable
from typing import Any


def check_positive(owner: str, name: str, value: int | float | Callable[[Any], Any]) -> None:
    """**Raises** `ValueError` for a rate or sigma (a schedule's first value) that is 0, negative or not finite."""
    first = float(value(0)) if callable(value) else value
    if isinstance(first, bool) or not isinstance(first, int | float):
        raise ValueError(f"`{owner}({name}={value!r})`: expected a number above 0 or an `optax.Schedule`.")
    if not (math.isfinite(first) and first > 0):
        which = f"a schedule whose first value is {first}" if callable(value) else repr(value)
        raise ValueError(f"`{owner}({name}={which})`: it must be finite and above 0, for example {name}=0.01.")


def check_count(owner: str, name: str, value: Any, least: int = 1) -> None:
    """**Raises** `ValueError` unless `value` is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"`{owner}({name}={value!r})`: expected a whole number of at least {least}.")


def check_factor(owner: str, name: str, value: Any) -> None:
    """**Raises** `ValueError` unless `value` is a finite number above 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 < value < math.inf:
        raise ValueError(f"`{owner}({name}={value!r})`: expected a number above 1, for example 2.")


def check_number(owner: str, name: str, value: Any, *, positive: bool = False, example: float = 1.0) -> None:
    """**Raises** `ValueError` unless `value` is finite and at least 0, or `positive`: above 0."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < 0 or (positive and value == 0):
        bound = "above 0" if positive else "of at least 0"
        raise ValueError(f"`{owner}({name}={value!r})`: expected a finite number {bound}, for example {example}.")


def check_share(owner: str, name: str, value: Any) -> None:
    """**Raises** `ValueError` unless `value` is a number in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"`{owner}({name}={value!r})`: expected a number in [0, 1].")
