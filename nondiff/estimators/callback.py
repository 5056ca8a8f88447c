"""A Python function inside a compiled program, by the way that costs least on the platform.

On CPUs the function is shown the program's own memory (`jax.experimental.buffer_callback`), and writes its answers
there. `jax.pure_callback` copies arguments into arrays of JAX first; a large copy waits for a thread, and where JAX has
one only, the one that is in the callback, it waits forever (JAX 0.10.2, from somewhere between 32 and 80 MB).
Elsewhere memory is on one device or several, and JAX's own callbacks bring it here.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.tree_util as jtu
import numpy as np
from jax.experimental import io_callback
from jax.experimental.buffer_callback import buffer_callback
from jaxtyping import Array, PyTree


def call_back(answer: Callable[..., PyTree], out: PyTree, args: Sequence[Array], *, pure: bool) -> PyTree:
    """`answer` on NumPy arrays with the values of `args`, which it must not keep or change, when the program runs.

    If `pure`, equal calls may be merged, moved out of loops, and left out where nobody wants the answer. Otherwise each
    stands where it was written. Mapped, it is called with the batch as leading axes, of size 1 in arguments that have
    none; what is not pure, and not on a CPU, is called case by case.
    """
    if jax.default_backend() == "cpu" and jax.local_device_count() == 1:  # of several, each would ask
        call = buffer_callback(_Filling(answer), out, has_side_effect=not pure, vmap_method="expand_dims")
        return call(*args)
    if pure:
        return jax.pure_callback(answer, out, *args, vmap_method="expand_dims")
    return io_callback(answer, out, *args)


class _Filling:
    """Equal for the same function, so that what was compiled for it is found again."""

    def __init__(self, answer: Callable[..., PyTree]):
        self.answer = answer

    def __call__(self, context: Any, out: PyTree, *args: Any) -> None:
        del context
        for buffer, value in zip(jtu.tree_leaves(out), jtu.tree_leaves(self.answer(*map(_shown, args))), strict=True):
            np.asarray(buffer)[...] = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Filling) and self.answer == other.answer

    def __hash__(self) -> int:
        return hash(self.answer)


def _shown(buffer: Any) -> np.ndarray:
    array = np.asarray(buffer)
    array.flags.writeable = False  # the program goes on with it
    return array
