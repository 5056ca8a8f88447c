"""64 bits on the host, whatever JAX is set to.

JAX rounds to 32 bits unless a switch is on that changes every program of the process. Some searches end there: of an
ellipsoid with condition 1e6 no covariance in 32 bits finds the last digits. So a trainer that is not traceable may keep
its state as NumPy arrays of 64 bits, and a problem in plain Python its parameters; what is computed of them is
compiled in 64 bits, and is NumPy's again. No global setting is touched.
"""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from nondiff.core.tree import is_key


def exactly(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn`, compiled; in 64 bits if an argument holds such a NumPy array, and then those of its results are NumPy's.

    >>> import numpy as np
    >>> third = exactly(lambda x: x / 3)
    >>> print(third(np.array(1.0)), third(np.float32(1.0)))
    0.3333333333333333 0.33333334
    """
    jitted = eqx.filter_jit(fn)

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        if jax.config.jax_enable_x64 or not is_exact((args, kwargs)):  # pyright: ignore[reportAttributeAccessIssue]
            return jitted(*args, **kwargs)
        with jax.enable_x64(True):
            return jtu.tree_map(_numpy, jitted(*args, **kwargs))

    return call


def is_exact(tree: PyTree) -> bool:
    """Does it hold NumPy arrays of 64 bits?"""
    return any(isinstance(x, np.ndarray | np.generic) and x.dtype == np.float64 for x in jtu.tree_leaves(tree))


def _numpy(x: Any) -> Any:
    return np.asarray(x) if isinstance(x, jax.Array) and not is_key(x) and x.dtype.itemsize == 8 else x
