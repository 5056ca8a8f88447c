"""What the tests check the types of nondiff's functions with, as they run."""

from collections.abc import Callable
from typing import Any

from beartype import beartype


def outer(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`beartype`, but for a function inside of another, which would be decorated again at each call: 2 ms."""
    return fn if "<locals>" in fn.__qualname__ else beartype(fn)
