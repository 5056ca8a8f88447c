"""Which chunks each step went without: what was a matter of time once is read from a file by who does it again."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import jax.random as jr
import numpy as np

from nondiff.core.query import Query


class Dropped:
    """A line for each step, by the keys of its queries, which no other step has."""

    def __init__(self, path: str):
        self.path = Path(path)
        self.known: dict[str, list[int]] = {}
        if self.path.exists():
            for number, line in enumerate(self.path.read_text().splitlines(), 1):
                try:
                    entry = json.loads(line)
                    self.known[entry["step"]] = entry["dropped"]
                except (ValueError, KeyError, TypeError) as error:
                    raise ValueError(
                        f"`Ray(dropped={path!r})`, line {number}: {error!r}; no line of that file."
                    ) from None

    def of(self, queries: Sequence[Query]) -> list[int] | None:
        """The chunks that this step went without; `None` if it is a new one."""
        return self.known.get(_name(queries))

    def note(self, queries: Sequence[Query], chunks: list[int]) -> None:
        name = _name(queries)
        if name not in self.known:
            self.known[name] = chunks
            with self.path.open("a") as file:
                file.write(json.dumps({"step": name, "dropped": chunks}) + "\n")


def _name(queries: Sequence[Query]) -> str:
    return hashlib.sha256(b"".join(np.asarray(jr.key_data(q.keys)).tobytes() for q in queries)).hexdigest()[:32]
