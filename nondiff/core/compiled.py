"""Compiled functions whose programs are forgotten again.

`equinox.filter_jit` keeps each program that it ever made for as long as the process lives, and with it whatever the
program was made for: a user's function, its problem, and some 10 MB a fit. Here only the programs that were used last
are kept. Equal arguments still find theirs.
"""

import functools
import re
import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.tree_util as jtu
import numpy as np

ARRAYS = jax.Array, np.ndarray, np.generic
_ERROR_IF = re.compile(r"EquinoxRuntimeError: (.*?)(?:\n-{8,}|\Z)", re.DOTALL)

STEPS = 6
"""Programs kept of a whole step. A run has one; a few more serve those who go back and forth between problems, and all
of them together are less than 70 MB."""
PARTS = 64
"""Programs kept of what a step calls once for each of its parts. Fewer than there are parts would compile at every
step; and they are small."""


class Compiled:
    """What `compiled` gives: called as the function."""

    def __init__(self, fn: Callable[..., Any], donate: bool, kept: int):
        functools.update_wrapper(self, fn)
        self._programs, self._donate = programs_of(fn, kept), donate

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        arrays, key = apart((args, kwargs))
        program = self._programs(*key)
        if not self._donate:
            return whole(*_finished(program, arrays, []))
        n = sum(isinstance(x, ARRAYS) for x in jtu.tree_leaves(args[0]))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Some donated buffers were not usable")
            return whole(*_finished(program, arrays[:n], arrays[n:]))

    def traced(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """The jaxpr for arrays, or shapes, like these, and what it returns, in shapes. A call with their like, alone or
        inside of another program, is not traced again. Not for functions that may overwrite their arguments.
        """
        arrays, key = apart((args, kwargs), (*ARRAYS, jax.ShapeDtypeStruct))
        found = self._programs(*key).trace(arrays, [])
        return found.jaxpr, whole(*found.out_info)


def compiled(fn: Callable[..., Any], *, donate: bool = False, kept: int = PARTS) -> Compiled:
    """`fn`, compiled: traced in its arrays, JAX's and NumPy's, and static in whatever else its arguments hold.

    **Arguments:**

    - `donate`: whether `fn` may overwrite the arrays of all arguments but the first (default False).
    - `kept`: how many of its programs are kept, those that were used last (default `PARTS`).

    Results may hold anything, too. A program is made for each structure and each value of what is static, as
    `equinox.filter_jit` does.

    **Raises** `TypeError` for something static that has no hash.

    >>> import jax.numpy as jnp
    >>> scaled = compiled(lambda x, how: (x * how["by"], how["name"]))
    >>> scaled(jnp.ones(2), {"by": 3.0, "name": "threefold"})
    (Array([3., 3.], dtype=float32), 'threefold')
    """
    return Compiled(fn, donate, kept)


def _finished(program: Callable[..., Any], staying: list[Any], donated: list[Any]) -> tuple[list[Any], "Rest"]:
    """What it computed; what `equinox.error_if` says is said here, and not where somebody first reads a result."""
    try:
        found, rest = program(staying, donated)
        for x in found[:1]:
            if not isinstance(x, jax.core.Tracer):  # pyright: ignore[reportAttributeAccessIssue]
                x.block_until_ready()
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        said = _ERROR_IF.search(str(error))
        if said is None:
            raise
        raise eqx.EquinoxRuntimeError(said[1].strip()) from None
    return found, rest


def shapes_of(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`equinox.filter_eval_shape`, without handing JAX a tree that holds what is static: its caches would keep it."""
    leaves, (treedef, static, _) = apart((args, kwargs), (*ARRAYS, jax.ShapeDtypeStruct))
    rest: list[Rest] = []

    def flat(leaves: list[Any]) -> list[Any]:
        given, named = whole(leaves, Rest(treedef, static))
        found, (treedef_out, static_out, _) = apart(fn(*given, **named))
        rest[:] = [Rest(treedef_out, static_out)]
        return found

    return whole(jax.eval_shape(flat, leaves), rest[0])


def programs_of(fn: Callable[..., Any], kept: int) -> Callable[..., Any]:
    """What makes the program of a `key` that `apart` gives, or finds it among the last ones: a function of the arrays,
    those that stay and those that may be overwritten."""

    @functools.lru_cache(maxsize=kept)
    def program(treedef: Any, static: tuple[Any, ...], kinds: tuple[type, ...]) -> Callable[..., Any]:
        del kinds  # for the cache: 1, 1.0 and True are equal

        def flat(staying: list[Any], donated: list[Any]) -> tuple[list[Any], Rest]:
            args, kwargs = whole([*staying, *donated], Rest(treedef, static))
            found, (treedef_out, static_out, _) = apart(fn(*args, **kwargs))
            return found, Rest(treedef_out, static_out)

        flat.__name__ = getattr(fn, "__name__", "flat")  # in what JAX logs
        return jax.jit(flat, donate_argnums=1)

    return program


def apart(tree: Any, arrays: Any = ARRAYS) -> tuple[list[Any], tuple[Any, tuple[Any, ...], tuple[type, ...]]]:
    """The arrays of a tree, and the rest of it: what has a hash."""
    leaves, treedef = jtu.tree_flatten(tree)
    static = tuple(_ARRAY if isinstance(x, arrays) else x for x in leaves)
    return [x for x in leaves if isinstance(x, arrays)], (treedef, static, tuple(map(type, static)))


def whole(arrays: list[Any], rest: "Rest") -> Any:
    """The tree again."""
    these = iter(arrays)
    return rest.treedef.unflatten([next(these) if x is _ARRAY else x for x in rest.static])


class _Array:
    """Stands for an array among static leaves."""


_ARRAY = _Array()


@jtu.register_static
class Rest:
    """A tree without its arrays, so that a compiled function can return it."""

    def __init__(self, treedef: Any, static: tuple[Any, ...]):
        self.treedef, self.static = treedef, static

    def __hash__(self) -> int:
        return hash(self.treedef)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rest) and (self.treedef, self.static) == (other.treedef, other.static)
