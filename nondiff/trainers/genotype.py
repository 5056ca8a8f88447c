"""Mixed parameters as one vector of real numbers, without bounds: where a covariance is learned.

A real leaf is itself, or its logarithm. A bounded one is folded into its bounds by a function that is the identity
inside, but for a parabola near a bound, and mirrored beyond it (Hansen, 2009, "CMA-ES with boundary handling", the
transformation of pycma): every vector has a point, smoothly, and no member lies outside. An integer is the nearest one.
"""

import functools
import math
from typing import Any

import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Float, PyTree

from nondiff.core.domain import AbstractDomain, Integer, Leaf, Real
from nondiff.core.exact import namespace
from nondiff.core.problem import Params
from nondiff.core.record import record
from nondiff.core.tree import map_named


@record
class Genotype:
    """How a vector becomes parameters shaped like `like`."""

    like: Params
    domain: PyTree

    def vector(self, params: Params, kind: Any = None) -> Float[Leaf, " n"]:
        """The vector of a point inside of the domain."""

        def one(x: Any, d: AbstractDomain) -> Any:
            x = namespace(x).asarray(x, kind or jnp.promote_types(x.dtype, jnp.float32))
            if isinstance(d, Real):
                x = _unfold(d.encode(x), *_ends(d, x))
            return x.ravel()

        parts = jtu.tree_leaves(jtu.tree_map(one, params, self.domain))
        return namespace(parts[0]).concatenate(parts) if parts else jnp.zeros(0)

    def params(self, vector: Float[Leaf, "*pop n"]) -> Params:
        """The point of a vector, or those of many, every leaf of its own type."""
        here, (leaves, treedef) = namespace(vector), jtu.tree_flatten(self.like)
        ends = np.cumsum([math.prod(x.shape) for x in leaves])[:-1]
        several = vector.shape[:-1]
        parts = [u.reshape((*several, *x.shape)) for u, x in zip(here.split(vector, ends, -1), leaves, strict=True)]

        def one(u: Any, x: Leaf, d: AbstractDomain) -> Any:
            if isinstance(d, Real) and not (d.log or d.constrained):
                return u.astype(x.dtype)
            if isinstance(d, Real):
                u = d.decode(_fold(u, *_ends(d, u)))
                return d.clip(u.astype(x.dtype))
            return d.clip(here.asarray(here.round(u))).astype(x.dtype)

        return jtu.tree_map(one, treedef.unflatten(parts), self.like, self.domain)

    def widths(self) -> PyTree:
        """A first sigma for every leaf, on the vector's scale: 0.3 of its range, or of its size; 1 on a log scale."""

        def one(x: Leaf, d: AbstractDomain) -> Any:
            if isinstance(d, Integer) or (d.lo is not None and d.hi is not None):  # pyright: ignore
                return 0.3 * _range(d)
            return 1.0 if d.log else 0.3 * namespace(x).max(namespace(x).abs(x), initial=1.0)  # pyright: ignore

        return jtu.tree_map(one, self.like, self.domain)

    def ranges(self) -> Float[Leaf, " n"]:
        """Between the bounds of every coordinate, on the vector's scale; infinity without."""
        return self.spread_out(jtu.tree_map(lambda _, d: _range(d), self.like, self.domain))

    def spread_out(self, tree: PyTree) -> Float[Leaf, " n"]:
        """The vector of something that every leaf, or coordinate, has one of."""

        def one(x: Leaf, y: Any) -> Leaf:
            here = namespace(x)
            return here.broadcast_to(here.asarray(y), x.shape).ravel()

        leaves = jtu.tree_leaves(jtu.tree_map(one, self.like, tree))
        return namespace(leaves[0]).concatenate(leaves) if leaves else jnp.zeros(0)

    @functools.cached_property
    def integers(self) -> tuple[np.ndarray, np.ndarray]:
        """The least and the greatest value of every coordinate that is a whole number; NaN for the others."""

        def ends(x: Leaf, d: AbstractDomain) -> np.ndarray:
            pair = (d.lo, d.hi) if isinstance(d, Integer) else (math.nan, math.nan)
            return np.broadcast_to(np.array(pair)[:, None], (2, math.prod(x.shape)))

        parts = jtu.tree_leaves(jtu.tree_map(ends, self.like, self.domain))
        least, greatest = np.concatenate(parts, 1) if parts else np.zeros((2, 0))
        return least, greatest


def check_ordered(owner: str, params: Params, domain: PyTree) -> None:
    """**Raises** `ValueError` for a leaf without an order, on which there are no steps of a length."""

    def one(name: str, leaf: Any, domain: Any) -> None:
        if not isinstance(domain, Real | Integer):
            raise ValueError(
                f"`{owner}` cannot move `{name}` ({leaf.dtype}, {domain}): it needs values with an order, `Real` or "
                f"`Integer`. Give that leaf to another trainer, `Split({{'rest': {owner}(...), 'search': "
                "Genetic(...)}, labels)`."
            )

    map_named(one, params, domain)


def _range(d: Any) -> Any:
    if d.lo is None or d.hi is None:
        return math.inf
    return float(d.hi - d.lo) if isinstance(d, Integer) else d.encode(d.hi) - d.encode(d.lo)


def _ends(d: Real, like: Leaf) -> tuple[Any, Any, Any, Any]:
    """The bounds where steps are taken, and how near to each the parabola begins."""
    here = namespace(like)
    lo, hi = (None if b is None else d.encode(here.asarray(b, like.dtype)) for b in (d.lo, d.hi))
    most = math.inf if lo is None or hi is None else (hi - lo) / 2
    below, above = (None if b is None else here.minimum(most, (1 + here.abs(b)) / 20) for b in (lo, hi))
    return lo, hi, below, above


def _fold(u: Leaf, lo: Any, hi: Any, a: Any, b: Any) -> Leaf:
    """Inside `lo .. hi`. Mirrored at `lo - a` and `hi + b`, whose images are the bounds."""
    here = namespace(u)
    low, high = (-math.inf if lo is None else lo + a), (math.inf if hi is None else hi - b)
    inside, same = (u >= low) & (u <= high), u
    if lo is not None and hi is not None:
        turn = 2 * (hi + b - lo + a)
        t = here.mod(u - (lo - a), turn)
        u = lo - a + here.minimum(t, turn - t)
    elif lo is not None:
        u = lo - a + here.abs(u - (lo - a))
    elif hi is not None:
        u = hi + b - here.abs(hi + b - u)
    if lo is not None:
        u = here.where(u < lo + a, lo + (u - (lo - a)) ** 2 / (4 * a), u)
    if hi is not None:
        u = here.where(u > hi - b, hi - (u - (hi + b)) ** 2 / (4 * b), u)
    return here.where(inside, same, u)  # far bounds would take its last digits


def _unfold(x: Any, lo: Any, hi: Any, a: Any, b: Any) -> Leaf:
    """The vector's own coordinate of a point inside."""
    here, u = namespace(x), x
    if lo is not None:
        u = here.where(x < lo + a, lo - a + 2 * here.sqrt(a * here.maximum(x - lo, 0)), u)
    if hi is not None:
        u = here.where(x > hi - b, hi + b - 2 * here.sqrt(b * here.maximum(hi - x, 0)), u)
    return u
