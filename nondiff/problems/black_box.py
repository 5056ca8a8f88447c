"""A function of a point, and nothing known about it: the classic of gradient-free optimisation."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Key, PyTree

from nondiff.core.domain import check_inside, complete
from nondiff.core.problem import AbstractProblem, Params
from nondiff.core.tree import map_named


class BlackBox(AbstractProblem):
    """`fn(x)`, minimised over any pytree `x`.

    **Arguments:**

    - `fn`: takes `x`, returns one number; NaN for a failed evaluation. Written with JAX it is compiled, and may be
      differentiated; anything else is plain Python on NumPy arrays, of 64 bits if `x0` and the trainer have them
      (`CMAES` has), else of 32.
    - `x0`: the starting point: a number, an array, or any pytree of them. Not changed.
    - `domain`: a `Real`, `Integer` or `Categorical`, or a tree of them, a prefix of `x0`; floats default to `Real()`.
    - `vectorized`: `fn` takes a whole chunk, every leaf `[n, ...]`, and returns `[n]` losses (default False).
    - `errors`: what an exception in plain Python means: `"raise"` (default) ends the run, `"fail"` counts that point as
      a failed evaluation, with a warning for the first one. Not for `vectorized`, where nobody knows whose it was.
    - `traceable`: may JAX trace `fn`? Default `None`: `fn(x0)` is computed once, with NumPy arrays, and a `jax.Array`
      as its answer means yes. That call also finds a wrong answer before anything is compiled. Give it to save the
      call.

    **Raises** what `fn(x0)` raises, and `ValueError` if that is not one number, `x0` lies outside of its domain or
    holds something that is no array, or an integer leaf has no domain.

    >>> import numpy as np
    >>> BlackBox(lambda x: float(np.sum(x**2)), np.ones(3)).traceable
    False
    >>> import jax.numpy as jnp
    >>> BlackBox(lambda x: jnp.sum(x**2), np.ones(3)).traceable
    True
    """

    fn: Callable[[Any], Any] = eqx.field(static=True)
    x0: Params
    domains: PyTree
    vectorized: bool = eqx.field(static=True)
    compiled: bool = eqx.field(static=True)
    errors: str = eqx.field(static=True)

    def __init__(
        self,
        fn: Callable[[Any], Any],
        x0: Params,
        *,
        domain: PyTree = None,
        vectorized: bool = False,
        traceable: bool | None = None,
        errors: str = "raise",
    ):
        if not callable(fn):
            raise ValueError(f"`BlackBox(fn={fn!r})`: expected a function of one point.")
        if not any(np.size(leaf) for leaf in jtu.tree_leaves(x0)):
            raise ValueError(f"`BlackBox(x0={x0!r})`: there is nothing to move; give at least one number.")
        if errors not in ("raise", "fail") or (errors == "fail" and vectorized):
            way = "only for a function of one point" if vectorized else "expected 'raise' or 'fail'"
            raise ValueError(f"`BlackBox(errors={errors!r}, vectorized={vectorized})`: {way}.")
        self.fn, self.vectorized, self.errors = fn, vectorized, errors
        self.x0 = map_named(_array, x0)
        self.domains = complete(domain, self.x0)
        check_inside(self.x0, self.domains)
        self.compiled = self._probe() if traceable is None else traceable
        if self.compiled:
            self.x0 = jtu.tree_map(jnp.asarray, self.x0)

    @property
    def traceable(self) -> bool:
        return self.compiled

    def _probe(self) -> bool:
        point = jtu.tree_map(lambda x: np.asarray(x)[None] if self.vectorized else np.asarray(x)[()], self.x0)
        out = self.fn(point)
        expected = (1,) if self.vectorized else ()
        try:
            shape, dtype = np.shape(out), np.asarray(out).dtype
        except ValueError:
            shape, dtype = None, None
        if shape != expected or dtype is None or not _is_loss(dtype):
            said = repr(out) if dtype is None or dtype == np.dtype(object) else f"{dtype}{list(np.shape(out))}"
            wanted = "`[n]` losses for `[n]` points" if self.vectorized else "one number"
            raise ValueError(f"`BlackBox(fn)`: `fn(x0)` returned {said}; expected {wanted}.")
        return isinstance(out, jax.Array)

    def init(self, *, key: Key[Array, ""]) -> Params:
        del key
        return self.x0

    def batch(self, state: Any, *, key: Key[Array, ""]) -> tuple[()]:
        del state, key
        return ()

    def loss(self, params: Params, batch: Any, *, key: Key[Array, ""]) -> tuple[Array, None]:
        del batch, key
        if not self.vectorized:
            return _float(self.fn(params)), None
        return _float(self.fn(jtu.tree_map(lambda x: jnp.asarray(x)[None], params))[0]), None

    def losses(self, members: Params, batch: Any, *, keys: Key[Array, " pop"]) -> tuple[Any, None]:
        del batch
        if self.vectorized:
            return self.fn(members), None
        points = [jtu.tree_map(lambda x: x[i], members) for i in range(keys.shape[0])]
        return np.stack([np.asarray(_one(self.fn, self.errors, point)) for point in points]), None

    def domain(self, params: Params) -> PyTree:
        del params
        return self.domains


def _one(fn: Callable[[Any], Any], errors: str, point: Any) -> Any:
    try:
        return fn(point)
    except Exception as error:
        if errors == "raise":
            raise
        warnings.warn(f"`fn` raised {error!r}; that evaluation has failed.", stacklevel=2)
        return math.nan


def _is_loss(dtype: Any) -> bool:
    return any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_))


def _float(loss: Any) -> Array:
    """Whole numbers count, too."""
    loss = jnp.asarray(loss)
    return loss if jnp.issubdtype(loss.dtype, jnp.inexact) else loss.astype(float)


def _array(name: str, leaf: Any) -> Array | np.ndarray:
    try:
        leaf = np.asarray(leaf)
    except ValueError:
        leaf = np.asarray(None)
    if not jnp.issubdtype(leaf.dtype, jnp.number):
        raise ValueError(f"`BlackBox(x0)`: `{name}` is {leaf.dtype}; expected numbers.")
    return leaf if leaf.dtype == np.float64 else jnp.asarray(leaf)
