"""What counts as a failed call of a program, and what is done about it."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree


class OpaqueError(RuntimeError):
    """A user's program raised, hung or crashed, or answered with something else than it promised."""


class AbstractFailure(eqx.Module):
    """What is done about a call that failed: the one that raised, gave no answer in time, ended its process, or
    answered with NaN or with another shape or dtype than promised.
    """

    allow_nan: eqx.AbstractVar[bool]
    """Is NaN an answer like others?"""

    @abc.abstractmethod
    def answer(self, error: OpaqueError) -> PyTree:
        """An answer to use instead, a pytree like `out`; or raise `error`, which names the input."""


class Raise(AbstractFailure):
    """A failed call ends the run, with `OpaqueError`; `fit` puts its last good state into it.

    `allow_nan`: NaN is an answer like others (default False). A loss that becomes NaN by it is one failed evaluation.

    >>> import nondiff
    >>> log = nondiff.Opaque(lambda x: np.log(x[0]), failure=Raise(allow_nan=True))
    >>> with np.errstate(invalid="ignore"):
    ...     log(jnp.array([-1.0]))
    Array(nan, dtype=float32)
    """

    allow_nan: bool = eqx.field(static=True, default=False, kw_only=True)

    def answer(self, error: OpaqueError) -> PyTree:
        raise error


class Instead(AbstractFailure):
    """A failed call is answered by `value`, counted in `Opaque.failures`, and logged, once for each kind of failure.

    **Arguments:**

    - `value`: a pytree like `out`, or one number for all of it: -1 where no right answer is negative, a loss that is
      worse than all others, or NaN, by which the evaluation counts as failed.
    - `allow_nan`: NaN is an answer like others, and no failure (default False).

    >>> import nondiff
    >>> inverse = nondiff.Opaque(lambda x: 1 / int(x[0]), failure=Instead(-1))
    >>> inverse(jnp.array([[2], [0]]))
    Array([ 0.5, -1. ], dtype=float32)
    >>> inverse.failures
    1
    """

    value: PyTree
    allow_nan: bool = eqx.field(static=True, default=False, kw_only=True)

    def answer(self, error: OpaqueError) -> PyTree:
        del error
        return self.value


class Broken(ValueError):
    """An answer is not what was promised: `kind` of failure, and the words before and after the input."""

    def __init__(self, kind: str, before: str, after: str):
        super().__init__(f"{before} it{after}")
        self.kind, self.before, self.after = kind, before, after


def as_promised(answer: Any, out: PyTree, *, allow_nan: bool) -> list[np.ndarray]:
    """The leaves of an answer, with the shapes and dtypes of `out`; **raises** `Broken`."""
    expected, treedef = jtu.tree_flatten(out)
    single = isinstance(out, jax.ShapeDtypeStruct) and isinstance(answer, list)  # an array, as NumPy takes it
    got, got_treedef = ([answer], treedef) if single else jtu.tree_flatten(answer)
    if treedef != got_treedef:
        raise Broken("it answered another structure than promised", f"answered {answer!r} to", f"; expected {out}.")
    arrays = [_fitted(x, s) for x, s in zip(got, expected, strict=True)]
    if not allow_nan and any(jnp.issubdtype(x.dtype, jnp.inexact) and np.isnan(x).any() for x in arrays):
        after = ". With `failure=Raise(allow_nan=True)` NaN is an answer like others."
        raise Broken("it answered NaN", f"answered {answer!r} to", after)
    return arrays


def stand_in(value: Any, out: PyTree) -> list[np.ndarray]:
    """The leaves of an answer that is used instead; one number may stand for all of them."""
    if isinstance(value, int | float):
        full = [_fitted(value, jax.ShapeDtypeStruct((), s.dtype)) for s in jtu.tree_leaves(out)]
        return [np.broadcast_to(x, s.shape) for x, s in zip(full, jtu.tree_leaves(out), strict=True)]
    return as_promised(value, out, allow_nan=True)


def _fitted(answer: Any, promised: jax.ShapeDtypeStruct) -> np.ndarray:
    try:
        array = np.asarray(answer)
    except ValueError:
        array = np.asarray(None)
    fits = array.dtype == promised.dtype or _holds(promised.dtype, answer)
    if array.shape != promised.shape or not fits:
        got = f"{array.dtype}{list(array.shape)}" if array.dtype != object else repr(answer)
        after = f"; promised was {promised.dtype}{list(promised.shape)}. Convert the answer, or correct `out`."
        raise Broken("it answered another shape or dtype than promised", f"answered {got} to", after)
    return array.astype(promised.dtype)


def _holds(dtype: Any, x: Any) -> bool:
    """A Python number has no dtype of its own: any that holds its value will do, alone or in a list."""
    if isinstance(x, list):
        return all(_holds(dtype, y) or getattr(y, "dtype", None) == dtype for y in x)
    if isinstance(x, int) and np.issubdtype(dtype, np.integer):
        return bool(np.iinfo(dtype).min <= x <= np.iinfo(dtype).max)
    number = isinstance(x, bool | int | float)
    return number and np.can_cast(np.float64 if isinstance(x, float) else np.int8, dtype, "same_kind")
