"""64 bits on the host, whatever JAX is set to.

JAX rounds to 32 bits unless a switch is on that changes every program of the process. Some searches end there: of an
ellipsoid with condition 1e6 no covariance in 32 bits finds the last digits. So a trainer that is not traceable may keep
its state as NumPy arrays of 64 bits, and a problem in plain Python its parameters; what is computed of them is
compiled in 64 bits, and is NumPy's again. No global setting is touched.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from nondiff.core.compiled import PARTS, apart, programs_of, whole
from nondiff.core.tree import is_key, is_traced


def exactly(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn`, compiled; in 64 bits if an argument holds such a NumPy array, and then its results are NumPy's, too.

    What is no array among the leaves of the arguments is static, as for `nondiff.core.compiled`.

    >>> import numpy as np
    >>> third = exactly(lambda x: x / 3)
    >>> print(third(np.array(1.0)), third(np.float32(1.0)))
    0.3333333333333333 0.33333334
    """
    programs = programs_of(fn, PARTS)

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        arrays, key = apart((args, kwargs))
        program = programs(*key)
        if jax.config.jax_enable_x64 or not any(map(_is_exact, arrays)):  # pyright: ignore[reportAttributeAccessIssue]
            return whole(*program(arrays, []))
        with jax.enable_x64(True):
            found, rest = program(arrays, [])
        # What is part of a program that is being traced stays so.
        return whole([x if is_key(x) or is_traced(x) else np.asarray(x) for x in found], rest)

    return call


def namespace(x: Any) -> Any:
    """NumPy for its arrays, `jax.numpy` for JAX's: what is written for one runs on both, and compiles nothing where
    NumPy computes.
    """
    return np if isinstance(x, np.ndarray | np.generic) else jnp


def is_exact(tree: PyTree) -> bool:
    """Does it hold NumPy arrays of 64 bits?"""
    return any(map(_is_exact, jtu.tree_leaves(tree)))


def _is_exact(x: Any) -> bool:
    return isinstance(x, np.ndarray | np.generic) and x.dtype == np.float64
