"""What all covariance matrix adaptation has in common: a cloud, the step that is learned from it, when it has ended.

Equation numbers are those of Hansen, 2016, "The CMA Evolution Strategy: A Tutorial", https://arxiv.org/abs/1604.00772.
The kind of covariance is left open (`covariance.py`); bounds and whole numbers are `genotype.py` and `margin.py`.
"""

import functools
import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from nondiff.core import keys as host
from nondiff.core import words
from nondiff.core.checks import check_count, check_number, check_positive
from nondiff.core.domain import Leaf
from nondiff.core.exact import exactly, namespace
from nondiff.core.population import AbstractSampler, Population
from nondiff.core.problem import Params
from nondiff.core.query import Evaluation, Query
from nondiff.core.trainer import AbstractTrainer, Metrics
from nondiff.core.tree import broadcast, none_like, on_host
from nondiff.trainers.covariance import AbstractSpread
from nondiff.trainers.genotype import Genotype, check_ordered
from nondiff.trainers.margin import centred, with_margin
from nondiff.trainers.rates import Rates, rates
from nondiff.trainers.weighting import by_rank


class _Shared(NamedTuple):
    mean: Float[Leaf, " n"]
    step: Float[Leaf, " n"]
    spread: AbstractSpread
    genotype: Genotype


class _Cloud(AbstractSampler):
    """`member = mean + step * spread(normals)`, inside of the domain; each = its normals, of 32 bits in any case, so
    that a member is the same whoever builds it. They are few beside what the covariance holds, and are needed twice.
    """

    def draw(self, shared: _Shared, each: Float[Array, " n"]) -> Float[Array, " n"]:
        return each

    def build(self, shared: _Shared, drawn: Float[Array, " n"]) -> Params:
        return _members(shared, drawn)

    def on_host(self, shared: _Shared, each: Any) -> Params | None:
        if not isinstance(shared.mean, np.ndarray) or not isinstance(each, np.ndarray):
            return None
        with np.errstate(all="ignore"):
            return _members(shared, each)

    def sums(self, shared: _Shared, drawn: Float[Array, "chunk n"], weights: Float[Array, " chunk"]) -> Array:
        del shared
        return weights @ drawn


CLOUD = _Cloud()


def _members(shared: _Shared, drawn: Float[Leaf, "*pop n"]) -> Params:
    """One, or many at once."""
    return shared.genotype.params(shared.mean + shared.step * shared.spread.times(drawn.astype(shared.mean.dtype)))


class _State(NamedTuple):
    """Of NumPy's arrays, on which NumPy computes, or of JAX's: plain tuples, which take no time to build."""

    mean: Float[Leaf, " n"]
    sigma: Float[Leaf, ""]
    units: Float[Leaf, " n"]
    """What sigma is multiplied by: another scale for each coordinate, and the margin of whole numbers."""
    spread: AbstractSpread
    length: Float[Leaf, " n"]
    """The path of the steps without their lengths, p_sigma."""
    path: Float[Leaf, " n"]
    """The path of the steps, p_c."""
    genotype: Genotype
    first: Float[Leaf, ""]
    """The first sigma."""
    widest: Float[Leaf, " n"]
    """No coordinate's standard deviation may be larger."""
    bests: Float[Leaf, " recent"]
    """Of the last steps, the latest first; infinity before the first."""
    medians: Float[Leaf, " recent"]
    range: Float[Leaf, ""]
    """Of the losses of the last step."""
    step: Int[Leaf, ""]
    ending: Int[Leaf, ""]


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
            check_number(owner, name, getattr(self, name), example=1e-11)

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
        here = not self.traceable
        genotype = Genotype(on_host(params) if here else params, domain)
        sigma = None
        if self.sigma is not None:
            sigma = broadcast(self.sigma, params, what=f"`{type(self).__name__}(sigma)`")
        n = sum(math.prod(x.shape) for x in jtu.tree_leaves(params))
        found = rates(n, self.size(n), self.kind.speed(n))[1]
        return (_first if here else _first_compiled)(self.kind, genotype, sigma, found)

    def ask(self, state: _State, *, key: Key[Array, ""]) -> Query:
        n = state.mean.size
        size = _size(self.population, n)
        here = isinstance(state.mean, np.ndarray) and host.is_known(key)
        each, keys = (_noise_on_host if here else _noise)(key, size, n)
        shared = _Shared(state.mean, state.sigma * state.units, state.spread, state.genotype)
        return Query(Population(shared, each, CLOUD), none_like(state.genotype.like), keys)

    def asks(self, state: _State, *, key: Any) -> int:
        del key
        return _size(self.population, state.mean.size)

    def tell(self, state: _State, query: Query, answer: Evaluation, *, key: Key[Array, ""]) -> tuple[_State, Metrics]:
        del key
        with np.errstate(all="ignore"):
            return _told(state, query.population.each, answer.ranked, self.kind, self.tolfun, self.tolx)

    def params(self, state: _State) -> Params:
        with np.errstate(all="ignore"):
            return state.genotype.params(state.mean)

    def ended(self, state: _State) -> Int[Leaf, ""]:
        return state.ending

    def size(self, n: int) -> int:
        """How many evaluations a step makes with `n` coordinates."""
        return _size(self.population, n)


def _size(population: int | None, n: int) -> int:
    return 4 + int(3 * math.log(max(n, 1))) if population is None else population  # (48)


def _first(kind: type[AbstractSpread], genotype: Genotype, sigma: PyTree, found: Rates) -> _State:
    bits = found.alpha.dtype
    widths = genotype.widths() if sigma is None else sigma
    mean, units = genotype.vector(genotype.like, bits), genotype.spread_out(widths).astype(bits)
    here = namespace(mean)
    # Of leaves of one sigma, that is what is said of it.
    sigma = here.asarray(here.max(units, initial=here.finfo(bits).tiny))
    units = here.maximum(units / sigma, here.finfo(bits).eps)  # a range may be 0
    # Members that are folded back from everywhere see no slope: no step beyond a third of the range, as in pycma.
    ranges = genotype.ranges()
    widest = here.where(ranges > 0, ranges / 3, here.inf).astype(bits)
    zero, none = here.zeros_like(mean), here.full(_recent(mean.size), here.inf, bits)
    spread, count = kind.standard(mean, found.every), here.zeros((), here.int32)
    same = genotype, sigma, widest
    return _State(mean, sigma, units, spread, zero, zero, *same, none, none, here.asarray(none[0]), count, count)


_first_compiled = exactly(_first)


def _recent(n: int) -> int:
    """How many steps are many. Whatever the population, so that a state keeps its shapes where that changes."""
    return 120 + int(30 * n / (4 + 3 * math.log(max(n, 1))))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _noise(key: Key[Array, ""], population: int, n: int) -> tuple[Float[Array, "pop n"], Key[Array, " pop"]]:
    k_noise, k_evaluation = words.split(key)
    noise = words.normal(words.words(k_noise, population * n)).reshape(population, n)
    return noise, jnp.broadcast_to(k_evaluation, (population,))  # common random numbers: members are compared


def _noise_on_host(
    key: Key[Array, ""], population: int, n: int
) -> tuple[Float[np.ndarray, "pop n"], Key[Array, " pop"]]:
    k_noise, k_evaluation = host.parts(key, 2)
    return host.normal(k_noise, population * n).reshape(population, n), host.repeat(k_evaluation, population)


def _told(
    state: _State, z: Any, losses: Any, kind: type[AbstractSpread], tolfun: Any, tolx: Any
) -> tuple[_State, Metrics]:
    here: Any = namespace(state.mean)
    z, losses = here.asarray(z, state.mean.dtype), here.asarray(losses, state.mean.dtype)
    n, least = state.mean.size, here.finfo(z.dtype).tiny
    sums, found = rates(n, losses.size, kind.speed(n))
    order = here.sort(losses)
    weights = here.where(order[0] == order[-1], 0.0, by_rank(sums, losses))  # equal losses say nothing
    weights = here.where(here.isfinite(losses), weights, here.minimum(weights, 0))  # a failure attracts nothing
    plus, minus = here.maximum(weights, 0), here.minimum(weights, 0)
    plus = plus / here.maximum(here.sum(plus), least)
    mass = 1 / here.maximum(here.sum(plus**2), least)
    y = state.spread.times(z)
    middle = plus @ y
    ends = state.genotype.integers
    mean = state.mean + plus @ centred(state.sigma * state.units * y, state.mean, ends)  # (41), (42)
    # The step's length is compared with that of a random walk, whose expectation is E|N(0, I)|.
    c = found.length
    length = (1 - c) * state.length + here.sqrt(c * (2 - c) * mass) * state.spread.turned(plus @ z)  # (43)
    expected = math.sqrt(n) * (1 - 1 / (4 * max(n, 1)) + 1 / (21 * max(n, 1) ** 2))
    ratio = here.linalg.norm(length) / max(expected, 1e-300)
    sigma = state.sigma * here.exp(here.minimum(1, c / found.damping * (ratio - 1)))  # (44)
    # A path that is long only since sigma is much too small would stretch the covariance.
    usual = ratio / here.sqrt(1 - (1 - c) ** (2.0 * (state.step + 1))) < 1.4 + 2 / (n + 1)
    c = found.path
    path = (1 - c) * state.path + usual * here.sqrt(c * (2 - c) * mass) * middle  # (45)
    active = plus + minus * n / here.maximum(here.sum(z**2, 1), least)  # (46)
    lost = here.where(usual, 0, found.one * c * (2 - c))
    keep = 1 + lost - found.one - found.many * here.sum(plus + minus)
    spread = state.spread.learned(keep, path, found.one, y, found.many * active)  # (47)
    # Where the better half is flat, selection says nothing: search wider, as pycma does.
    flat = order[0] == order[losses.size // 2]
    sigma = sigma * here.where(flat, math.exp(0.2 + found.length / found.damping), 1.0)
    variances = spread.variances()
    widest = here.min(state.widest / (state.units * here.sqrt(variances)), initial=here.inf)
    sigma = here.asarray(here.minimum(sigma, widest))
    mean, units = with_margin(mean, sigma, state.units, variances, ends, found.alpha)
    reach = here.max(losses, where=here.isfinite(losses), initial=-here.inf) - order[0]
    new = state._replace(
        mean=mean,
        sigma=sigma,
        units=units,
        spread=spread,
        length=length,
        path=path,
        bests=here.concatenate([order[:1], state.bests[:-1]]),
        medians=here.concatenate([order[(losses.size - 1) // 2, None], state.medians[:-1]]),
        range=here.asarray(reach),
        step=here.asarray(state.step + 1, state.step.dtype),
    )
    lengths = spread.lengths()
    metrics = {"sigma": new.sigma, "axis_ratio": here.max(lengths) / here.min(lengths)}
    return new._replace(ending=_ending(new, found.lately, np.isnan(ends[0]), lengths, tolfun, tolx)), metrics


def _ending(state: _State, lately: Any, real: np.ndarray, lengths: Any, tolfun: Any, tolx: Any) -> Any:
    """The number of the first of `endings` that holds, or 0 (Hansen, 2009, "Benchmarking a BI-population CMA-ES").

    `real` says which coordinates are no whole numbers.
    """
    here, deviations = namespace(state.mean), state.sigma * namespace(state.mean).sqrt(state.spread.variances())
    third = state.bests.size * 3 // 10
    recent = state.bests[:lately]
    flat = (here.max(recent) - here.min(recent) < tolfun) & (state.range < tolfun)
    width = state.units * here.maximum(state.sigma * here.abs(state.path), deviations)
    still = here.all(width[real] < tolx * state.first) & real.any()
    narrow = here.max(lengths) > 1e7 * here.min(lengths)
    ends = here.stack([x for y in (state.bests, state.medians) for x in (y[:third], y[-third:])])
    middle = _medians(here, ends)
    stale = (middle[0] >= middle[1]) & (middle[2] >= middle[3]) & here.isfinite(state.bests[-1])
    grown = here.max(deviations) > 1e4 * state.first
    holds = here.stack([flat, still, narrow, stale, grown])
    return here.asarray(here.where(here.any(holds), here.argmax(holds) + 1, 0), state.ending.dtype)


def _medians(here: Any, x: Any) -> Any:
    """Of the rows; NumPy's own take longer for so few."""
    x, n = here.sort(x, 1), x.shape[1]
    return (x[:, (n - 1) // 2] + x[:, n // 2]) / 2
