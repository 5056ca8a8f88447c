"""Gaussian noise as a recipe: a population of P points around a centre is P numbers, never P x D.

Antithetic members 2j and 2j + 1 are the centre plus and minus the noise of pair j, and that noise is a function of the
step's key and of j alone: whoever needs it draws it again.

With `rank=r` the noise of a matrix `[m, n]` is `a @ b.T / sqrt(r)`, with `a [m, r]` and `b [n, r]` standard normal:
r (m + n) numbers instead of m n, and products with a member need not multiply it out (Sarkar et al., 2025, "Evolution
Strategies at the Hyperscale", https://arxiv.org/abs/2511.16652). A sum over the population is a product of two thin
matrices, and of full rank. Leaves for which that is no saving, such as vectors, have noise in full. Of a leaf with more
than two axes the first ones are the rows (`nondiff.arrays.halves`): a stack of layers shares one factor among them.

A member that is built as an array, for Python code or as a result, is `build`'s: the factors multiplied out and added.
A model that runs on the factors (`apply`) rounds differently in its last bits.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float, Key, PyTree, UInt

from nondiff.arrays import LowRank, factors, halves, interpret
from nondiff.core import words
from nondiff.core.domain import Real
from nondiff.core.population import AbstractSampler
from nondiff.core.problem import Params
from nondiff.core.tree import map_named

HELD = 64 * 2**20
"""Bytes: smaller draws of a whole population are held; to make larger ones twice is faster than to store them."""


class Factors(NamedTuple):
    """One thing for the rows of a matrix, one for its columns: noise `[rows, rank]`, or sigmas `[rows]`."""

    rows: Array
    columns: Array


class Shared(eqx.Module):
    """What all members have in common."""

    centre: Params
    """On the scale on which steps are taken (`Real.encode`)."""
    sigma: PyTree
    """Like the centre: for every leaf an array that broadcasts against it, or `Factors` whose product is meant."""
    key: Key[Array, ""]
    domain: PyTree


class Each(eqx.Module):
    """What a member has of its own: the number of its noise, and the side of the centre on which it lies."""

    pair: UInt[Array, "*pop"]
    sign: Float[Array, "*pop"]


class Sums(NamedTuple):
    """Over the members, with weights: of their noise e, and of what a sigma grows along, e^2 - 1."""

    first: PyTree
    """Like the centre."""
    second: PyTree | None
    """Like sigma; for `Factors` of the means over the rank of e^2 - 1."""


def pairs(population: int, *, antithetic: bool) -> Each:
    """`population` members, two to a pair, or each with noise of its own."""
    i = jnp.arange(population, dtype=jnp.uint32)
    if antithetic:
        return Each(i // 2, 1.0 - 2.0 * (i % 2).astype(jnp.float32))
    return Each(i, jnp.ones(population))


class Gaussian(AbstractSampler):
    """`member = centre + sign * sigma * noise(pair)`, inside the domain."""

    antithetic: bool = eqx.field(static=True)
    rank: int | None = eqx.field(static=True, default=None)
    dtype: Any = eqx.field(static=True, default=None)
    """Of the members; the centre's own by default."""
    spread: bool = eqx.field(static=True, default=False)
    """Whether the second sums are wanted."""

    def hoist(self, shared: Shared, each: Each) -> bool:
        needed = sum(x.size * x.dtype.itemsize for x in jtu.tree_leaves(self._shapes(shared.centre)))
        return each.pair.size * needed <= HELD

    def draw(self, shared: Shared, each: Each) -> PyTree:
        return self._noise(words.fold_in(shared.key, each.pair), shared.centre), each.sign

    def draws(self, shared: Shared, each: Each) -> PyTree:
        n = each.pair.shape[0]
        if not self._paired(n):
            return jax.vmap(lambda e: self.draw(shared, e))(each)
        noise = jax.vmap(lambda p: self._noise(words.fold_in(shared.key, p), shared.centre))(each.pair[::2])
        return jtu.tree_map(lambda x: jnp.repeat(x, 2, 0), noise), each.sign

    def build(self, shared: Shared, drawn: PyTree) -> Params:
        noise, sign = drawn

        def one(x: Array, e: Any, s: Any, d: Real) -> Array:
            return self._dense(x, _scaled(e, s, sign), d)

        return jtu.tree_map(one, shared.centre, noise, shared.sigma, shared.domain)

    def apply(self, fn: Callable[..., Any], shared: Shared, drawn: PyTree, *args: Any) -> Any:
        noise, sign = drawn

        def one(name: str, x: Array, e: Any, s: Any, d: Real) -> Any:
            e = _scaled(e, s, sign)
            if not isinstance(e, Factors) or d.constrained or d.log:
                return self._dense(x, e, d)
            base, a, b = (part.astype(self.dtype or x.dtype) for part in (x, *e))
            return LowRank(base, a, b, *_axes(x, e), name)

        member = map_named(one, shared.centre, noise, shared.sigma, shared.domain)
        return fn(member, *args) if self.rank is None else interpret(fn, member, *args)

    def sums(self, shared: Shared, drawn: PyTree, weights: Float[Array, " chunk"]) -> Sums:
        noise, sign = drawn
        odd, even = weights * sign, weights
        if self._paired(sign.shape[0]):
            noise = jtu.tree_map(lambda e: e[::2], noise)
            odd, even = (w.reshape(-1, 2).sum(1) for w in (odd, even))
        first = jtu.tree_map(lambda x, e: _first(odd, x, e), shared.centre, noise)
        second = jtu.tree_map(lambda _, e: _second(even, e), shared.centre, noise) if self.spread else None
        return Sums(first, second)

    def _paired(self, n: int) -> bool:
        """An even number of members of an even population are whole pairs: what is drawn serves both."""
        return self.antithetic and n % 2 == 0

    def _dense(self, x: Array, e: Array | Factors, d: Real) -> Any:
        if isinstance(e, Factors):
            e = factors(*e, *_axes(x, e))
        exact = d.decode(x + e)
        member = exact.astype(self.dtype or x.dtype)
        if member.dtype == exact.dtype or not d.constrained:
            return member
        rounded = member.astype(exact.dtype)  # perhaps beyond a bound, which is no number of the shorter type
        inside = d.clip(rounded)
        back = jnp.where(rounded > inside, -jnp.inf, jnp.inf).astype(member.dtype)
        return jnp.where(rounded == inside, member, jnp.nextafter(member, back))

    def _noise(self, key: Key[Array, ""], centre: Params) -> PyTree:
        """Standard normals, in one flat draw: a call of the generator costs more than a small leaf."""
        shapes = self._shapes(centre)
        leaves, treedef = jtu.tree_flatten(shapes)
        flat = words.normal(words.words(key, sum(x.size for x in leaves)))
        parts = words.cut(flat, [x.shape for x in leaves])
        return treedef.unflatten([part.astype(x.dtype) for part, x in zip(parts, leaves, strict=True)])

    def _shapes(self, centre: Params) -> PyTree:
        return jtu.tree_map(lambda x: noise_shape(x, self.rank), centre)


def noise_shape(x: Array, rank: int | None) -> Any:
    """The shape and type of a leaf's noise: of two factors, where these are smaller."""
    if rank is not None and x.ndim > 1 and x.size > 0:
        cut = halves(x.shape)
        parts = Factors((*x.shape[:cut], rank), (*x.shape[cut:], rank))  # pyright: ignore[reportArgumentType]
        if sum(map(math.prod, parts)) < x.size:
            return Factors(*(jax.ShapeDtypeStruct(shape, x.dtype) for shape in parts))  # pyright: ignore
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _axes(x: Array, e: Factors) -> tuple[tuple[int, ...], tuple[int, ...]]:
    cut = e.rows.ndim - 1
    return tuple(range(cut)), tuple(range(cut, x.ndim))


def _scaled(e: Array | Factors, sigma: Any, sign: Array) -> Array | Factors:
    """The noise as it is added."""
    if not isinstance(e, Factors):
        return (sign * sigma).astype(e.dtype) * e
    rows, columns = sigma if isinstance(sigma, Factors) else (sigma, jnp.ones(()))
    scale = (sign * rows / math.sqrt(e.rows.shape[-1])).astype(e.rows.dtype)
    return Factors(scale[..., None] * e.rows, columns.astype(e.columns.dtype)[..., None] * e.columns)


def _first(weights: Array, x: Array, e: Array | Factors) -> Array:
    if not isinstance(e, Factors):
        return _weighted(weights, e)
    pop, rank, cut = x.ndim, x.ndim + 1, e.rows.ndim - 2
    rows, columns = map(_exact, e)
    weighted = weights.astype(rows.dtype).reshape(-1, *[1] * (rows.ndim - 1)) * rows
    axes = [pop, *range(cut), rank], [pop, *range(cut, x.ndim), rank]
    total = jnp.einsum(weighted, axes[0], columns, axes[1], list(range(x.ndim)), precision="highest")
    return total / math.sqrt(e.rows.shape[-1])


def _second(weights: Array, e: Array | Factors) -> Array | Factors:
    if isinstance(e, Factors):
        return Factors(*(_weighted(weights, jnp.mean(_exact(part) ** 2 - 1, -1)) for part in e))
    return _weighted(weights, _exact(e) ** 2 - 1)


def _weighted(weights: Array, x: Array) -> Array:
    x = _exact(x)
    return jnp.tensordot(weights.astype(x.dtype), x, 1, precision="highest")


def _exact(x: Array) -> Array:
    """Sums over a population have 32 bits at least: their terms nearly cancel."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
