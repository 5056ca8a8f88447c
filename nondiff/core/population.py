"""Candidate points as a recipe: `member(i) = sampler.build(shared, sampler.draw(shared, each[i]))`.

A materialised population is P x D numbers, drawn, written, read and sent. As a recipe it is what all members share (a
centre, an archive of parents) and a little that each one has (a pair number and a sign, two indices and a key). An
evaluator builds `chunk` members at a time, and a far worker gets the shared part once and a range of numbers.

Three populations, for example:
- backprop: shared = the parameters, each = nothing, build = the identity (`Centre`);
- an antithetic evolution strategy: shared = centre, key and sigma, each = pair number and sign, draw = the noise of
  that pair, build = centre + sign * sigma * noise;
- a genetic algorithm: shared = the archive of parents, each = two indices and a key, build = crossover and mutation.
"""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float, Int, PyTree

from nondiff.core.problem import Params


class AbstractSampler(eqx.Module):
    """How to build a member from what all share and what it alone has."""

    @property
    @abc.abstractmethod
    def hoist(self) -> bool:
        """May the draws of the whole population be held at once? False: they are made again, chunk by chunk."""

    @abc.abstractmethod
    def draw(self, shared: PyTree, each: PyTree) -> PyTree:
        """The random part of one member."""

    @abc.abstractmethod
    def build(self, shared: PyTree, drawn: PyTree) -> Params:
        """One member, from its random part."""

    def draws(self, shared: PyTree, each: PyTree) -> PyTree:
        """`draw` for a chunk of the population, its members in order; override it to share work between them.

        Chunks start at multiples of their size. Not a bit may change.
        """
        return jax.vmap(lambda e: self.draw(shared, e))(each)

    def apply(self, fn: Callable[..., Any], shared: PyTree, drawn: PyTree, *args: Any) -> Any:
        """`fn(member, *args)`: the one place that knows how a member's model is run."""
        return fn(self.build(shared, drawn), *args)

    def statistics(self, shared: PyTree, drawn: PyTree) -> PyTree:
        """What a trainer wants summed with weights over the population. Members that are only selected have none."""
        del shared, drawn
        raise TypeError(
            f"`{type(self).__name__}` has no statistics: its members can be selected (`Population.take`), "
            "not averaged. Leave `Query.weigh` at None, or define `statistics`."
        )


class Population(eqx.Module):
    """Candidate points. P models need never exist at once."""

    shared: PyTree
    """What all members share; no population axis."""
    each: PyTree
    """What each member has; every leaf `[pop, ...]`, small."""
    sampler: AbstractSampler

    def __len__(self) -> int:
        return jtu.tree_leaves(self.each)[0].shape[0]

    def span(self, start: Any, size: int) -> "Population":
        """Members `start .. start + size - 1`, still a recipe."""
        part = jtu.tree_map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size), self.each)
        return Population(self.shared, part, self.sampler)

    def take(self, indices: Int[Array, " n"]) -> Params:
        """The chosen members as plain arrays, every leaf `[n, ...]`: survivors, the best, a chunk for the host."""

        def one(each: PyTree) -> Params:  # `draws` may share work between neighbours, and these are none
            return self.sampler.build(self.shared, self.sampler.draw(self.shared, each))

        return jax.vmap(one)(jtu.tree_map(lambda x: x[indices], self.each))

    def sums(self, weights: Float[Array, " pop"], *, chunk: int) -> PyTree:
        """`sum_i weights[i] * statistics_i`, chunk by chunk in the order of their numbers, so always the same bits."""

        def partial(population: Population, weights: Array) -> PyTree:
            sampler, shared = population.sampler, population.shared
            one = jax.vmap(lambda d: sampler.statistics(shared, d))(sampler.draws(shared, population.each))
            return jtu.tree_map(lambda s: jnp.tensordot(weights, s, 1), one)

        n = len(self)
        if self.sampler.hoist or chunk >= n:
            return partial(self, weights)
        whole, rest = divmod(n, chunk)

        def add(total: PyTree, i: Array) -> tuple[PyTree, None]:
            part = partial(self.span(i * chunk, chunk), jax.lax.dynamic_slice_in_dim(weights, i * chunk, chunk))
            return jtu.tree_map(jnp.add, total, part), None

        shapes = eqx.filter_eval_shape(partial, self.span(0, chunk), weights[:chunk])
        zero = jtu.tree_map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        total, _ = jax.lax.scan(add, zero, jnp.arange(whole))
        if rest:
            total = jtu.tree_map(jnp.add, total, partial(self.span(whole * chunk, rest), weights[whole * chunk :]))
        return total


class Centre(AbstractSampler):
    """Every member is the centre. shared = the parameters; each = anything with a population axis."""

    hoist: ClassVar[bool] = True

    def draw(self, shared: PyTree, each: PyTree) -> PyTree:
        del shared
        return each

    def build(self, shared: PyTree, drawn: PyTree) -> Params:
        del drawn
        return shared


class Points(AbstractSampler):
    """Members given as they are. shared = nothing; each = parameters with a population axis."""

    hoist: ClassVar[bool] = True

    def draw(self, shared: PyTree, each: PyTree) -> PyTree:
        del shared
        return each

    def build(self, shared: PyTree, drawn: PyTree) -> Params:
        del shared
        return drawn
