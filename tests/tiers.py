"""Which cases of a test `pytest` runs, and which wait for `pytest -m slow` or for `pytest -m product`."""

from collections.abc import Iterable
from typing import Any

import pytest


def slow_but(cases: Iterable[Any], *now: Any) -> list[Any]:
    """The cases, all of them slow but those of `now`."""
    return _but(pytest.mark.slow, cases, now)


def product_but(cases: Iterable[Any], *now: Any) -> list[Any]:
    """The cases, all of them for a release but those of `now`."""
    return _but(pytest.mark.product, cases, now)


def _but(mark: Any, cases: Iterable[Any], now: tuple[Any, ...]) -> list[Any]:
    every = list(cases)
    assert all(case in every for case in now), now
    return [case if case in now else _marked(mark, case) for case in every]


def _marked(mark: Any, case: Any) -> Any:
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, marks=mark)
