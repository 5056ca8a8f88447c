"""The failure behind an XLA error: compiled code can only pass its text on, so the exception itself waits here."""

_failures: list[BaseException] = []


def note(failure: BaseException) -> None:
    """For whoever catches XLA's error."""
    _failures[:] = [failure]


def last_failure() -> BaseException | None:
    """The one behind an XLA error, once."""
    return _failures.pop() if _failures else None
