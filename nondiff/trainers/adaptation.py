"""What all covariance matrix adaptation has in common: a cloud, the step that is learned from it, when it has ended.

Equation numbers are those of Hansen, 2016, "The CMA Evolution Strategy: A Tutorial", https://arxiv.org/abs/1604.00772.
The kind of covariance is left open (`covariance.py`); bounds and whole numbers are `genotype.py` and `margin.py`.
"""

import abc
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree, UInt

from nondiff.core.exact import exactly
from nondiff.core.population import AbstractSampler, Population
from nondiff.core.problem import Params
from nondiff.core.query import Evaluation, Query
from nondiff.core.trainer import AbstractTrainer, Metrics, check_count, check_positive
from nondiff.core.tree import broadcast, none_like
from nondiff.trainers.covariance import AbstractSpread, Rates, rates
from nondiff.trainers.genotype import Genotype, check_ordered
from nondiff.trainers.margin import with_margin
from nondiff.trainers.weighting import by_rank


class _Shared(eqx.Module):
    mean: Float[Array, " n"]
    step: Float[Array, " n"]
    spread: AbstractSpread
    key: Key[Array, ""]
    genotype: Genotype


class _Cloud(AbstractSampler):
    """`member = mean + step * spread(normals)`, inside of the domain; each = the number of its normals."""

    def hoist(self, shared: _Shared, each: UInt[Array, " pop"]) -> bool:
        return True

    def draw(self, shared: _Shared, each: UInt[Array, ""]) -> Float[Array, " n"]:
        # Of 32 bits in either precision, so that a member is the same whoever builds it.
        z = jr.normal(jr.fold_in(shared.key, each), shared.mean.shape, jnp.float32)
        return z.astype(jnp.result_type(shared.mean))

    def build(self, shared: _Shared, drawn: Float[Array, " n"]) -> Params:
        return shared.genotype.params(shared.mean + shared.step * shared.spread.times(drawn))


class _State(eqx.Module):
    mean: Float[Array, " n"]
    sigma: Float[Array, ""]
    units: Float[Array, " n"]
    """What sigma is multiplied by: another scale for each coordinate, and the margin of whole numbers."""
    spread: AbstractSpread
    length: Float[Array, " n"]
    """The path of the steps without their lengths, p_sigma."""
    path: Float[Array, " n"]
    """The path of the steps, p_c."""
    genotype: Genotype
    first: Float[Array, ""]
    """The first sigma."""
    bests: Float[Array, " recent"]
    """Of the last steps, the latest first; infinity before the first."""
    medians: Float[Array, " recent"]
    range: Float[Array, ""]
    """Of the losses of the last step."""
    step: Int[Array, ""]
    ending: Int[Array, ""]


class AbstractCMA(AbstractTrainer[_State]):
    """What all covariance matrix adaptation has in common; the kind of covariance is left open."""

    sigma: eqx.AbstractVar[Any]
    population: eqx.AbstractVar[int | None]
    tolfun: eqx.AbstractVar[int | float]
    tolx: eqx.AbstractVar[int | float]

    @abc.abstractmethod
    def speed(self, n: int) -> float:
        """How much faster than a full covariance of `n` coordinates it is learned."""

    @abc.abstractmethod
    def spread(self, mean: Float[Array, " n"], every: int) -> AbstractSpread:
        """The first one: of standard normals."""

    def __check_init__(self) -> None:
        owner = type(self).__name__
        for sigma in jtu.tree_leaves(self.sigma):
            if callable(sigma):
                raise ValueError(f"`{owner}(sigma)` adapts by itself; give its first value, a number, not a schedule.")
            check_positive(owner, "sigma", sigma)
        if self.population is not None:
            check_count(owner, "population", self.population, least=4)
        for name in ("tolfun", "tolx"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise ValueError(f"`{owner}({name}={value!r})`: expected a number of at least 0, for example 1e-11.")

    @property
    def traceable(self) -> bool:
        """Only where JAX has 64 bits of its own."""
        return bool(jax.config.jax_enable_x64)  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def endings(self) -> tuple[str, ...]:
        return (
            f"the losses of all members, and the best of many steps, differ by less than tolfun = {self.tolfun:g}",
            f"no coordinate moves by more than tolx = {self.tolx:g} of the first sigma",
            "the covariance's condition number is above 1e14",
            "the best and the median losses of many steps have not improved",
            "the steps have grown 10,000-fold: the first sigma was far too small, or the loss has no minimum",
        )

    def init(self, params: Params, domain: PyTree, *, key: Key[Array, ""]) -> _State:
        del key
        check_ordered(type(self).__name__, params, domain)
        genotype = Genotype(params, domain)
        sigma = None
        if self.sigma is not None:
            sigma = broadcast(self.sigma, params, what=f"`{type(self).__name__}(sigma)`")
        return _first(self, genotype, sigma, np.zeros(()))

    def ask(self, state: _State, *, key: Key[Array, ""]) -> Query:
        return _asked(self, state, key)

    def tell(self, state: _State, query: Query, answer: Evaluation, *, key: Key[Array, ""]) -> tuple[_State, Metrics]:
        del key
        return _told(self, state, query.population, answer)

    def params(self, state: _State) -> Params:
        return _params(state)

    def ended(self, state: _State) -> Int[Array, ""]:
        return state.ending

    def size(self, n: int) -> int:
        return 4 + int(3 * math.log(max(n, 1))) if self.population is None else self.population  # (48)

    def rates(self, n: int) -> Rates:
        return rates(max(n, 1), self.size(n), self.speed(n))


@exactly
def _first(trainer: AbstractCMA, genotype: Genotype, sigma: PyTree, exact: Any) -> _State:
    """`exact` says in how many bits."""
    widths = genotype.widths() if sigma is None else sigma
    mean, units = genotype.vector(genotype.like, exact.dtype), genotype.spread_out(widths).astype(exact.dtype)
    sigma = jnp.max(units, initial=jnp.finfo(units.dtype).tiny)  # of leaves of one sigma, that is what is said of it
    units = jnp.maximum(units / sigma, jnp.finfo(units.dtype).eps)  # a range may be 0
    n, found = mean.size, trainer.rates(mean.size)
    every = max(1, int(1 / (10 * max(n, 1) * (found.one + found.many))))  # tutorial, B.2
    zero, none = jnp.zeros_like(mean), jnp.full(_recent(n), jnp.inf, mean.dtype)
    spread, count = trainer.spread(mean, every), jnp.zeros((), jnp.int32)
    return _State(mean, sigma, units, spread, zero, zero, genotype, sigma, none, none, none[0], count, count)


def _recent(n: int) -> int:
    """How many steps are many. Whatever the population, so that a state keeps its shapes where that changes."""
    return 120 + int(30 * n / (4 + 3 * math.log(max(n, 1))))


@exactly
def _asked(trainer: AbstractCMA, state: _State, key: Key[Array, ""]) -> Query:
    k_noise, k_evaluation = jr.split(key)
    population = trainer.size(state.mean.size)
    shared = _Shared(state.mean, state.sigma * state.units, state.spread, k_noise, state.genotype)
    members = Population(shared, jnp.arange(population, dtype=jnp.uint32), _Cloud())
    return Query(members, none_like(state.genotype.like), jr.split(k_evaluation, population))


@exactly
def _told(trainer: AbstractCMA, state: _State, population: Population, answer: Evaluation) -> tuple[_State, Metrics]:
    n, found, losses = state.mean.size, trainer.rates(state.mean.size), answer.ranked.astype(state.mean.dtype)
    z = population.sampler.draws(population.shared, population.each)
    y = state.spread.times(z)
    weights = by_rank(jnp.asarray(found.weights, z.dtype), losses)
    weights = jnp.where(jnp.isfinite(losses), weights, jnp.minimum(weights, 0))  # a failure attracts nothing
    plus, minus = jnp.maximum(weights, 0), jnp.minimum(weights, 0)
    plus = plus / jnp.maximum(jnp.sum(plus), jnp.finfo(z.dtype).tiny)
    mass = 1 / jnp.maximum(jnp.sum(plus**2), jnp.finfo(z.dtype).tiny)
    middle = plus @ y
    mean = state.mean + state.sigma * state.units * middle  # (41), (42)
    # The step's length is compared with that of a random walk, whose expectation is E|N(0, I)|.
    c = found.length
    length = (1 - c) * state.length + jnp.sqrt(c * (2 - c) * mass) * state.spread.turned(plus @ z)  # (43)
    expected = math.sqrt(n) * (1 - 1 / (4 * max(n, 1)) + 1 / (21 * max(n, 1) ** 2))
    ratio = jnp.linalg.norm(length) / max(expected, 1e-300)
    sigma = state.sigma * jnp.exp(jnp.minimum(1, c / found.damping * (ratio - 1)))  # (44)
    # A path that is long only since sigma is much too small would stretch the covariance.
    usual = ratio / jnp.sqrt(1 - (1 - c) ** (2.0 * (state.step + 1))) < 1.4 + 2 / (n + 1)
    c = found.path
    path = (1 - c) * state.path + usual * jnp.sqrt(c * (2 - c) * mass) * middle  # (45)
    active = plus + minus * n / jnp.maximum(jnp.sum(z**2, 1), jnp.finfo(z.dtype).tiny)  # (46)
    lost = jnp.where(usual, 0, found.one * c * (2 - c))
    keep = 1 + lost - found.one - found.many * jnp.sum(plus + minus)
    spread = state.spread.learned(keep, path, found.one, y, found.many * active)  # (47)
    # Where the better half is flat, selection says nothing: search wider, as pycma does.
    order = jnp.sort(losses)
    flat = order[0] == order[losses.size // 2]
    sigma = sigma * jnp.where(flat, math.exp(0.2 + found.length / found.damping), 1.0)
    # Members that are folded back from everywhere see no slope: no step beyond a third of the range, as in pycma.
    ranges = state.genotype.ranges()
    widest = jnp.where(ranges > 0, ranges, jnp.inf) / (3 * state.units * jnp.sqrt(spread.variances()))
    sigma = jnp.minimum(sigma, jnp.min(widest, initial=jnp.inf))
    mean, units = with_margin(mean, sigma, state.units, spread.variances(), state.genotype, losses.size)
    ok = jnp.isfinite(losses)
    reach = jnp.max(losses, where=ok, initial=-jnp.inf) - order[0]
    bests, medians = (
        jnp.roll(old, 1).at[0].set(new)
        for old, new in ((state.bests, order[0]), (state.medians, order[(losses.size - 1) // 2]))
    )
    same = state.genotype, state.first
    new = _State(mean, sigma, units, spread, length, path, *same, bests, medians, reach, state.step + 1, state.ending)
    lengths, new = spread.lengths(), eqx.tree_at(lambda s: s.ending, new, _ending(trainer, new))
    return new, {"sigma": sigma, "axis_ratio": jnp.max(lengths) / jnp.min(lengths)}


@exactly
def _params(state: _State) -> Params:
    return state.genotype.params(state.mean)


def _ending(trainer: AbstractCMA, state: _State) -> Int[Array, ""]:
    """The number of the first of `endings` that holds, or 0 (Hansen, 2009, "Benchmarking a BI-population CMA-ES")."""
    n, third = state.mean.size, state.bests.size * 3 // 10
    lately = state.bests[: 10 + math.ceil(30 * n / trainer.size(n))]
    flat = (jnp.max(lately) - jnp.min(lately) < trainer.tolfun) & (state.range < trainer.tolfun)
    real = np.isnan(state.genotype.integers()[0])
    width = state.sigma * state.units * jnp.maximum(jnp.abs(state.path), jnp.sqrt(state.spread.variances()))
    still = jnp.all(width[real] < trainer.tolx * state.first) & real.any()
    lengths = state.spread.lengths()
    narrow = jnp.max(lengths) > 1e7 * jnp.min(lengths)
    stale = [jnp.median(x[:third]) >= jnp.median(x[-third:]) for x in (state.bests, state.medians)]
    stale = stale[0] & stale[1] & jnp.isfinite(state.bests[-1])
    grown = state.sigma * jnp.sqrt(jnp.max(state.spread.variances())) > 1e4 * state.first
    holds = jnp.stack([flat, still, narrow, stale, grown])
    return jnp.where(jnp.any(holds), jnp.argmax(holds) + 1, 0).astype(jnp.int32)
