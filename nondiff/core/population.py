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
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from nondiff.core.problem import Params
from nondiff.core.record import record
from nondiff.core.tree import barrier, host_rows


class AbstractSampler(eqx.Module):
    """How to build a member from what all share and what it alone has."""

    @abc.abstractmethod
    def draw(self, shared: PyTree, each: PyTree) -> PyTree:
        """The random part of one member."""

    @abc.abstractmethod
    def build(self, shared: PyTree, drawn: PyTree) -> Params:
        """One member, from its random part."""

    def hoist(self, shared: PyTree, each: PyTree) -> bool:
        """May the draws of the whole population be held at once? False (default): they are made again, chunk by chunk.

        A function of shapes alone. Held draws are made once for the evaluation and for the sums.
        """
        del shared, each
        return False

    def draws(self, shared: PyTree, each: PyTree) -> PyTree:
        """`draw` for a chunk of the population, its members in order; override it to share work between them.

        Chunks start at multiples of their size. Not a bit may change.
        """
        return jax.vmap(lambda e: self.draw(shared, e))(each)

    def apply(self, fn: Callable[..., Any], shared: PyTree, drawn: PyTree, *args: Any) -> Any:
        """`fn(member, *args)`: the one place that knows how a member's model is run."""
        return fn(self.build(shared, drawn), *args)

    def on_host(self, shared: PyTree, each: PyTree) -> Params | None:
        """All members in NumPy, every leaf `[n, ...]`; None (default): they are built by JAX."""
        del shared, each
        return None

    @property
    def averages(self) -> bool:
        """Does the trainer learn from what `draw` made? Else from the members themselves, which then may be changed
        before it is told of them.
        """
        return type(self).sums is not AbstractSampler.sums

    def sums(self, shared: PyTree, drawn: PyTree, weights: Float[Array, " chunk"]) -> PyTree:
        """What a trainer wants summed over a chunk of members, each by its weight: the noise, its square, ...

        Members that are only selected have no such sums.
        """
        del shared, drawn, weights
        raise TypeError(
            f"`{type(self).__name__}` has no sums: its members can be selected (`Population.take`), "
            "not averaged. Leave `Query.weigh` at None, or define `sums`."
        )


@record
class Population:
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

    def rows(self, rows: np.ndarray) -> "Population":
        """The chosen members, still a recipe; chosen on the host, so that a number of them compiles once, whatever the
        population.
        """
        return Population(self.shared, host_rows(self.each, rows), self.sampler)

    def take(self, indices: Int[Array, " n"]) -> Params:
        """The chosen members as plain arrays, every leaf `[n, ...]`: survivors, the best, a chunk for the host."""

        def one(each: PyTree) -> Params:  # `draws` may share work between neighbours, and these are none
            return self.sampler.build(self.shared, self.sampler.draw(self.shared, each))

        return jax.vmap(one)(jtu.tree_map(lambda x: x[indices], self.each))

    def on_host(self) -> Params | None:
        """All members in NumPy, where their sampler can build them so."""
        return type(self.sampler).on_host(self.sampler, self.shared, self.each)

    def hoisted(self, held: bool | None = None) -> "Population":
        """The same members, whose `each` holds their draws, if the sampler allows it, or as `held` says."""
        if not (self.sampler.hoist(self.shared, self.each) if held is None else held):
            return self
        # Behind a barrier, or XLA draws again wherever the numbers are used.
        return Population(self.shared, barrier(self.sampler.draws(self.shared, self.each)), _Drawn(self.sampler))

    def sums(self, weights: Float[Array, " pop"], *, chunk: int) -> PyTree:
        """The weighted sums of the sampler: at once if its draws are held, else chunk by chunk in the order of their
        numbers; so always the same bits.
        """
        population, n = self.hoisted(), len(self)

        def partial(start: Any, size: int) -> PyTree:
            return population.part_sums(start, jax.lax.dynamic_slice_in_dim(weights, start, size))

        if isinstance(population.sampler, _Drawn) or chunk >= n:
            return partial(0, n)
        whole, rest = divmod(n, chunk)

        def add(total: PyTree, i: Array) -> tuple[PyTree, None]:
            return jtu.tree_map(jnp.add, total, partial(i * chunk, chunk)), None

        shapes = eqx.filter_eval_shape(lambda: partial(0, chunk))
        zero = jtu.tree_map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        total, _ = jax.lax.scan(add, zero, jnp.arange(whole))
        if rest:
            total = jtu.tree_map(jnp.add, total, partial(whole * chunk, rest))
        return total

    def part_sums(self, start: Any, weights: Float[Array, " chunk"]) -> PyTree:
        """What the members from `start` on, one for each weight, add to `sums`."""
        part = self.span(start, weights.shape[0])
        return part.sampler.sums(part.shared, part.sampler.draws(part.shared, part.each), weights)


class _Drawn(AbstractSampler):
    """Builds members whose `each` is what `inner` would draw."""

    inner: AbstractSampler

    def draw(self, shared: PyTree, each: PyTree) -> PyTree:
        del shared
        return each

    def build(self, shared: PyTree, drawn: PyTree) -> Params:
        return self.inner.build(shared, drawn)

    def apply(self, fn: Callable[..., Any], shared: PyTree, drawn: PyTree, *args: Any) -> Any:
        return self.inner.apply(fn, shared, drawn, *args)

    def sums(self, shared: PyTree, drawn: PyTree, weights: Float[Array, " chunk"]) -> PyTree:
        return self.inner.sums(shared, drawn, weights)


class Centre(AbstractSampler):
    """Every member is the centre. shared = the parameters; each = anything with a population axis."""

    def draw(self, shared: PyTree, each: PyTree) -> PyTree:
        del shared
        return each

    def build(self, shared: PyTree, drawn: PyTree) -> Params:
        del drawn
        return shared


class Points(AbstractSampler):
    """Members given as they are. shared = nothing; each = parameters with a population axis."""

    def draw(self, shared: PyTree, each: PyTree) -> PyTree:
        del shared
        return each

    def build(self, shared: PyTree, drawn: PyTree) -> Params:
        del shared
        return drawn
