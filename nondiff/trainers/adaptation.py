"""What all covariance matrix adaptation has in common: a cloud, the step that is learned from it, when it has ended.

Equation numbers are those of Hansen, 2016, "The CMA Evolution Strategy: A Tutorial", https://arxiv.org/abs/1604.00772.
The kind of covariance is left open (`covariance.py`); bounds and whole numbers are `genotype.py` and `margin.py`.
"""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from nondiff.arrays import normals
from nondiff.core.exact import exactly
from nondiff.core.population import AbstractSampler, Population
from nondiff.core.problem import Params
from nondiff.core.query import Evaluation, Query
from nondiff.core.trainer import AbstractTrainer, Metrics, check_count, check_positive
from nondiff.core.tree import broadcast, none_like
from nondiff.trainers.covariance import AbstractSpread
from nondiff.trainers.genotype import Genotype, check_ordered
from nondiff.trainers.margin import with_margin
from nondiff.trainers.rates import Rates, rates
from nondiff.trainers.weighting import by_rank


class _Shared(eqx.Module):
    mean: Float[Array, " n"]
    step: Float[Array, " n"]
    spread: AbstractSpread
    genotype: Genotype


class _Cloud(AbstractSampler):
    """`member = mean + step * spread(normals)`, inside of the domain; each = its normals, of 32 bits in any case, so
    that a member is the same whoever builds it. They are few beside what the covariance holds, and are needed twice.
    """

    def draw(self, shared: _Shared, each: Float[Array, " n"]) -> Float[Array, " n"]:
        return each

    def build(self, shared: _Shared, drawn: Float[Array, " n"]) -> Params:
        return shared.genotype.params(shared.mean + shared.step * shared.spread.times(drawn.astype(shared.mean.dtype)))

    def sums(self, shared: _Shared, drawn: Float[Array, "chunk n"], weights: Float[Array, " chunk"]) -> Array:
        del shared
        return weights @ drawn


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
    kind: eqx.AbstractClassVar[type[AbstractSpread]]

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
        n = sum(math.prod(x.shape) for x in jtu.tree_leaves(params))
        return _first(self.kind, genotype, sigma, self._rates(n)[1])

    def ask(self, state: _State, *, key: Key[Array, ""]) -> Query:
        return _asked(self.size(state.mean.size), state, key)

    def tell(self, state: _State, query: Query, answer: Evaluation, *, key: Key[Array, ""]) -> tuple[_State, Metrics]:
        del key
        sums, found = self._rates(state.mean.size)
        # In two parts: only the first is compiled anew for another population, as restarts have it.
        return _moved(
            state, _seen(state, query.population.each, answer, sums), found, np.array([self.tolfun, self.tolx], float)
        )

    def params(self, state: _State) -> Params:
        return _params(state)

    def ended(self, state: _State) -> Int[Array, ""]:
        return state.ending

    def size(self, n: int) -> int:
        return 4 + int(3 * math.log(max(n, 1))) if self.population is None else self.population  # (48)

    def _rates(self, n: int) -> tuple[np.ndarray, Rates]:
        return rates(n, self.size(n), self.kind.speed(n))


@exactly
def _first(kind: type[AbstractSpread], genotype: Genotype, sigma: PyTree, found: Rates) -> _State:
    bits = found.alpha.dtype
    widths = genotype.widths() if sigma is None else sigma
    mean, units = genotype.vector(genotype.like, bits), genotype.spread_out(widths).astype(bits)
    sigma = jnp.max(units, initial=jnp.finfo(bits).tiny)  # of leaves of one sigma, that is what is said of it
    units = jnp.maximum(units / sigma, jnp.finfo(bits).eps)  # a range may be 0
    zero, none = jnp.zeros_like(mean), jnp.full(_recent(mean.size), jnp.inf, bits)
    spread, count = kind.standard(mean, found.every), jnp.zeros((), jnp.int32)
    return _State(mean, sigma, units, spread, zero, zero, genotype, sigma, none, none, none[0], count, count)


def _recent(n: int) -> int:
    """How many steps are many. Whatever the population, so that a state keeps its shapes where that changes."""
    return 120 + int(30 * n / (4 + 3 * math.log(max(n, 1))))


@exactly
def _asked(population: int, state: _State, key: Key[Array, ""]) -> Query:
    k_noise, k_evaluation = jr.split(key)
    n = state.mean.size
    shared = _Shared(state.mean, state.sigma * state.units, state.spread, state.genotype)
    each = normals(k_noise, population * n).reshape(population, n)
    keys = jnp.broadcast_to(k_evaluation, (population,))  # common random numbers: members are compared
    return Query(Population(shared, each, _Cloud()), none_like(state.genotype.like), keys)


class _Seen(NamedTuple):
    """What a step learns from its members, whatever their number."""

    middle: Float[Array, " n"]
    """Of the better ones, as steps of the covariance."""
    turned: Float[Array, " n"]
    """The same without lengths."""
    many: Array
    """The covariance of all, the worse ones with negative weights."""
    total: Float[Array, ""]
    """The weights of all."""
    mass: Float[Array, ""]
    """mu_eff."""
    best: Float[Array, ""]
    median: Float[Array, ""]
    range: Float[Array, ""]
    """From the best to the worst."""
    flat: Bool[Array, ""]
    """Are the losses of the better half all the same?"""


@exactly
def _seen(state: _State, z: Float[Array, "pop n"], answer: Evaluation, sums: Array | np.ndarray) -> _Seen:
    z, losses = z.astype(state.mean.dtype), jnp.asarray(answer.ranked, state.mean.dtype)
    y, least = state.spread.times(z), jnp.finfo(z.dtype).tiny
    order = jnp.sort(losses)
    weights = jnp.where(order[0] == order[-1], 0.0, by_rank(sums, losses))  # equal losses say nothing
    weights = jnp.where(jnp.isfinite(losses), weights, jnp.minimum(weights, 0))  # a failure attracts nothing
    plus, minus = jnp.maximum(weights, 0), jnp.minimum(weights, 0)
    plus = plus / jnp.maximum(jnp.sum(plus), least)
    mass = 1 / jnp.maximum(jnp.sum(plus**2), least)
    active = plus + minus * state.mean.size / jnp.maximum(jnp.sum(z**2, 1), least)  # (46)
    many, total = state.spread.sum(y, active), jnp.sum(plus + minus)
    best, median, middle = order[0], order[(losses.size - 1) // 2], order[losses.size // 2]
    reach = jnp.max(losses, where=jnp.isfinite(losses), initial=-jnp.inf) - best
    return _Seen(plus @ y, state.spread.turned(plus @ z), many, total, mass, best, median, reach, best == middle)


@exactly
def _moved(state: _State, seen: _Seen, found: Rates, tolerances: Array | np.ndarray) -> tuple[_State, Metrics]:
    n = state.mean.size
    mean = state.mean + state.sigma * state.units * seen.middle  # (41), (42)
    # The step's length is compared with that of a random walk, whose expectation is E|N(0, I)|.
    c = found.length
    length = (1 - c) * state.length + jnp.sqrt(c * (2 - c) * seen.mass) * seen.turned  # (43)
    expected = math.sqrt(n) * (1 - 1 / (4 * max(n, 1)) + 1 / (21 * max(n, 1) ** 2))
    ratio = jnp.linalg.norm(length) / max(expected, 1e-300)
    sigma = state.sigma * jnp.exp(jnp.minimum(1, c / found.damping * (ratio - 1)))  # (44)
    # A path that is long only since sigma is much too small would stretch the covariance.
    usual = ratio / jnp.sqrt(1 - (1 - c) ** (2.0 * (state.step + 1))) < 1.4 + 2 / (n + 1)
    c = found.path
    path = (1 - c) * state.path + usual * jnp.sqrt(c * (2 - c) * seen.mass) * seen.middle  # (45)
    lost = jnp.where(usual, 0, found.one * c * (2 - c))
    keep = 1 + lost - found.one - found.many * seen.total
    spread = state.spread.learned(keep, path, found.one, found.many * seen.many)  # (47)
    # Where the better half is flat, selection says nothing: search wider, as pycma does.
    sigma = sigma * jnp.where(seen.flat, jnp.exp(0.2 + found.length / found.damping), 1.0)
    # Members that are folded back from everywhere see no slope: no step beyond a third of the range, as in pycma.
    ranges = state.genotype.ranges()
    widest = jnp.where(ranges > 0, ranges, jnp.inf) / (3 * state.units * jnp.sqrt(spread.variances()))
    sigma = jnp.minimum(sigma, jnp.min(widest, initial=jnp.inf))
    mean, units = with_margin(mean, sigma, state.units, spread.variances(), state.genotype, found.alpha)
    bests, medians = (
        jnp.roll(old, 1).at[0].set(new) for old, new in ((state.bests, seen.best), (state.medians, seen.median))
    )
    same = state.genotype, state.first
    new = _State(
        mean, sigma, units, spread, length, path, *same, bests, medians, seen.range, state.step + 1, state.ending
    )
    lengths, new = spread.lengths(), eqx.tree_at(lambda s: s.ending, new, _ending(new, found.lately, *tolerances))
    return new, {"sigma": sigma, "axis_ratio": jnp.max(lengths) / jnp.min(lengths)}


@exactly
def _params(state: _State) -> Params:
    return state.genotype.params(state.mean)


def _ending(state: _State, lately: Any, tolfun: Any, tolx: Any) -> Int[Array, ""]:
    """The number of the first of `endings` that holds, or 0 (Hansen, 2009, "Benchmarking a BI-population CMA-ES")."""
    third = state.bests.size * 3 // 10
    lately = jnp.arange(state.bests.size) < lately
    highest = jnp.max(state.bests, where=lately, initial=-jnp.inf)
    flat = (highest - jnp.min(state.bests, where=lately, initial=jnp.inf) < tolfun) & (state.range < tolfun)
    real = np.isnan(state.genotype.integers()[0])
    width = state.sigma * state.units * jnp.maximum(jnp.abs(state.path), jnp.sqrt(state.spread.variances()))
    still = jnp.all(width[real] < tolx * state.first) & real.any()
    lengths = state.spread.lengths()
    narrow = jnp.max(lengths) > 1e7 * jnp.min(lengths)
    stale = [jnp.median(x[:third]) >= jnp.median(x[-third:]) for x in (state.bests, state.medians)]
    stale = stale[0] & stale[1] & jnp.isfinite(state.bests[-1])
    grown = state.sigma * jnp.sqrt(jnp.max(state.spread.variances())) > 1e4 * state.first
    holds = jnp.stack([flat, still, narrow, stale, grown])
    return jnp.where(jnp.any(holds), jnp.argmax(holds) + 1, 0).astype(jnp.int32)
