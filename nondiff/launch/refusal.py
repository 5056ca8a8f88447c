"""What the command says instead of a traceback. Without JAX: some commands need none."""


class Refusal(Exception):
    """Said instead of a traceback; `code` is the exit code."""

    def __init__(self, message: str, *, code: int = 1):
        super().__init__(message)
        self.code = code
