"""What goes wrong on workers, for a user to read; and the file of a chunk that fails, to try it alone."""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from nondiff.distributed.worker import Answer, Chunk, Code, Program


class ChunkError(RuntimeError):
    """A chunk that failed on every try: `chunk` says which members, `causes` what happened each time, with a traceback
    if there is one, and `path` where it was saved, or why it was not.
    """

    def __init__(self, chunk: Chunk, causes: list[tuple[str, str]], path: str):
        self.chunk, self.causes, self.path = chunk, causes, path
        said = "; ".join(dict.fromkeys(text for text, _ in causes))
        lines = [f"{chunk} failed {len(causes)} times: {said}.", f"Alone: `nondiff replay {path}`."]
        if causes[-1][1]:
            lines.append(f"On the worker:\n{causes[-1][1].rstrip()}")
        super().__init__("\n".join(lines))


class NotDeterministic(RuntimeError):
    """Two workers gave a chunk different bits: `members` says which ones."""

    def __init__(self, problem: str, chunk: Chunk, a: Answer, b: Answer):
        self.chunk, self.members = chunk, [chunk.start + i for i in _different(chunk.size, a, b)]
        super().__init__(
            f"two workers gave other bits for the same evaluations of `{problem}`, members {self.members} of query "
            f"{chunk.query}: its loss depends on more than parameters, batch and key. Does it draw from a global "
            "generator, read a clock, or keep something between calls?"
        )


def same_bits(a: Answer, b: Answer) -> bool:
    return [x.tobytes() for x in a.arrays] == [y.tobytes() for y in b.arrays]


def _different(size: int, a: Answer, b: Answer) -> list[int]:
    pairs = [(x, y) for x, y in zip(a.arrays, b.arrays, strict=False) if x.shape == y.shape and x.shape[:1] == (size,)]
    return [i for i in range(size) if any(x[i].tobytes() != y[i].tobytes() for x, y in pairs)] or list(range(size))


def save(folder: str, code: Code, arrays: list[np.ndarray], chunk: Chunk) -> str:
    """The file, or why there is none."""
    import cloudpickle

    content = cloudpickle.dumps((code, [np.array(x) for x in arrays], chunk))
    name = f"members-{chunk.start}-to-{chunk.start + chunk.size - 1}-{hashlib.sha256(content).hexdigest()[:8]}.failed"
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / name).write_bytes(content)
    except OSError as error:
        return f"FILE` (not saved: {error})`"
    return str(Path(folder) / name)


def losses(path: str) -> Any:
    """Number and loss of one member of the saved chunk after the other, in this process. It runs code in that file."""
    code, arrays, chunk = pickle.loads(Path(path).read_bytes())
    program = Program(code, arrays)
    for number in range(chunk.start, chunk.start + chunk.size):
        yield number, lambda number=number: float(program(arrays, Chunk(chunk.query, number, 1)).loss[0])
