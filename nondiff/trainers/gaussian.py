"""Antithetic Gaussian noise as a recipe: a population of P points around a centre is P numbers, never P x D.

Members 2j and 2j + 1 are the centre plus and minus the noise of pair j, and that noise is a function of the step's key
and of j alone: whoever needs it draws it again.
"""

import itertools
import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
from jaxtyping import Array, Float, Key, PyTree, UInt

from nondiff.core.domain import Real
from nondiff.core.population import AbstractSampler
from nondiff.core.problem import Params


class Shared(eqx.Module):
    """What all members have in common."""

    centre: Params
    """On the scale on which steps are taken (`Real.encode`)."""
    sigma: Float[Array, ""]
    key: Key[Array, ""]
    domain: PyTree


class Each(eqx.Module):
    """What a member has of its own: the number of its noise, and the side of the centre on which it lies."""

    pair: UInt[Array, "*pop"]
    sign: Float[Array, "*pop"]


def pairs(population: int, *, antithetic: bool) -> Each:
    """`population` members, two to a pair, or each with noise of its own."""
    i = jnp.arange(population, dtype=jnp.uint32)
    if antithetic:
        return Each(i // 2, 1.0 - 2.0 * (i % 2).astype(jnp.float32))
    return Each(i, jnp.ones(population))


class Gaussian(AbstractSampler):
    """`member = centre + sign * sigma * noise(pair)`, inside the domain; its statistic is `sign * noise(pair)`."""

    antithetic: bool = eqx.field(static=True)
    hoist: ClassVar[bool] = False

    def draw(self, shared: Shared, each: Each) -> PyTree:
        return normals(jr.fold_in(shared.key, each.pair), shared.centre), each.sign

    def draws(self, shared: Shared, each: Each) -> PyTree:
        n = each.pair.shape[0]
        if not self.antithetic or n % 2:
            return jax.vmap(lambda e: self.draw(shared, e))(each)
        # An even number of members of an even population are whole pairs: draw once for both.
        noise = jax.vmap(lambda p: normals(jr.fold_in(shared.key, p), shared.centre))(each.pair[::2])
        return jtu.tree_map(lambda x: jnp.repeat(x, 2, 0), noise), each.sign

    def build(self, shared: Shared, drawn: PyTree) -> Params:
        noise, sign = drawn

        def move(x: Array, e: Array, d: Real) -> Array:
            return d.decode(x + (sign * shared.sigma).astype(x.dtype) * e)

        return jtu.tree_map(move, shared.centre, noise, shared.domain)

    def statistics(self, shared: Shared, drawn: PyTree) -> PyTree:
        noise, sign = drawn
        return jtu.tree_map(lambda e: sign.astype(e.dtype) * e, noise)


def normals(key: Key[Array, ""], like: PyTree) -> PyTree:
    """Standard normals shaped like a tree, in one flat draw: a call of the generator costs more than a small leaf."""
    leaves, treedef = jtu.tree_flatten(like)
    if not leaves:
        return like
    sizes = [math.prod(x.shape) for x in leaves]
    ends = list(itertools.accumulate(sizes))
    flat = jr.normal(key, (ends[-1],))
    cut = [flat[end - n : end].reshape(x.shape).astype(x.dtype) for x, end, n in zip(leaves, ends, sizes, strict=True)]
    return treedef.unflatten(cut)
