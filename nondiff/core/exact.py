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

from nondiff.core.tree import is_key, is_traced

ARRAYS = jax.Array, np.ndarray, np.generic


def exactly(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn`, compiled; in 64 bits if an argument holds such a NumPy array, and then its results are NumPy's, too.

    What is no array among the leaves of the arguments is static, as for `equinox.filter_jit`. This calls sooner: trees
    are taken apart once, on the way in, and put together once.

    >>> import numpy as np
    >>> third = exactly(lambda x: x / 3)
    >>> print(third(np.array(1.0)), third(np.float32(1.0)))
    0.3333333333333333 0.33333334
    """

    @functools.cache
    def compiled(treedef: Any, static: tuple[Any, ...]) -> Callable[..., Any]:
        def flat(*arrays: Any) -> tuple[list[Any], _Tree]:
            these = iter(arrays)
            args, kwargs = treedef.unflatten([next(these) if x is _ARRAY else x for x in static])
            leaves, shape = jtu.tree_flatten(fn(*args, **kwargs))
            return leaves, _Tree(shape)

        return jax.jit(flat)

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        leaves, treedef = jtu.tree_flatten((args, kwargs))
        arrays = [x for x in leaves if isinstance(x, ARRAYS)]
        run = compiled(treedef, tuple(_ARRAY if isinstance(x, ARRAYS) else x for x in leaves))
        if jax.config.jax_enable_x64 or not any(map(_is_exact, arrays)):  # pyright: ignore[reportAttributeAccessIssue]
            found, tree = run(*arrays)
        else:
            with jax.enable_x64(True):
                found, tree = run(*arrays)
            # What is part of a program that is being traced stays so.
            found = [x if is_key(x) or is_traced(x) else np.asarray(x) for x in found]
        return tree.treedef.unflatten(found)

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


class _Array:
    """Stands for an array among static leaves."""


_ARRAY = _Array()


@jtu.register_static
class _Tree:
    """A structure without leaves, so that a compiled function can return it."""

    def __init__(self, treedef: Any):
        self.treedef = treedef

    def __hash__(self) -> int:
        return hash(self.treedef)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Tree) and self.treedef == other.treedef
