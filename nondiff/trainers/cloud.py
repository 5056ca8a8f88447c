"""What all strategies with a Gaussian cloud have in common: its centre, the question about it, its width."""

import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from nondiff.core import words
from nondiff.core.checks import check_count, check_number, check_positive
from nondiff.core.domain import Real
from nondiff.core.population import Population
from nondiff.core.problem import Params
from nondiff.core.query import AbstractWeighting, Query
from nondiff.core.trainer import Scheduled, at, check_real
from nondiff.core.tree import map_named, none_like
from nondiff.trainers.gaussian import Factors, Gaussian, Shared, noise_shape, pairs


class Mean(eqx.Module):
    """The middle of the cloud, and the optimizer that moves it. On the scale on which steps are taken."""

    point: Params
    optimizer: Any
    domain: PyTree
    step: Int[Array, ""]

    def move(self, optimizer: optax.GradientTransformation, gradient: Params) -> "Mean":
        """One step downhill, kept inside the bounds."""
        gradient = jtu.tree_map(lambda g, u: g.astype(u.dtype), gradient, self.point)
        updates, memory = optimizer.update(gradient, self.optimizer, self.point)
        point = optax.apply_updates(self.point, updates)
        point = jtu.tree_map(lambda u, d: d.encode(d.decode(u)) if d.constrained else u, point, self.domain)
        return Mean(point, memory, self.domain, self.step + 1)

    def params(self) -> Params:
        return jtu.tree_map(lambda u, d: d.decode(u), self.point, self.domain)


class Adaptive(eqx.Module):
    """A cloud whose width is learned."""

    mean: Mean
    sigma: PyTree
    """Like the mean: a sigma for every coordinate; where noise has low rank, for every row and column, as `Factors`."""


def start(trainer: Any, params: Params, domain: PyTree) -> Mean:
    """The first mean of a trainer with `optimizer`, `sigma` and `compute_dtype`.

    **Raises** `ValueError` for a leaf that is not a real number, and what `check_visible` does.
    """
    check_real(_name(trainer), params, domain)
    point = jtu.tree_map(lambda x, d: d.encode(x), params, domain)
    mean = Mean(point, trainer.optimizer.init(point), domain, jnp.zeros((), jnp.int32))
    return check_visible(trainer, mean, same_width(mean, trainer.sigma))


def start_adaptive(trainer: Any, params: Params, domain: PyTree) -> Adaptive:
    """`start` for a trainer that learns its sigmas: all of them the first one."""
    mean = start(trainer, params, domain)

    def one(x: Array) -> Array | Factors:
        shape, kind = noise_shape(x, trainer.rank), jnp.promote_types(x.dtype, jnp.float32)  # rounding must not shrink
        if isinstance(shape, Factors):
            rows, columns = shape
            return Factors(jnp.full(rows.shape[:-1], trainer.sigma, kind), jnp.ones(columns.shape[:-1], kind))
        return jnp.full(x.shape, trainer.sigma, kind)

    return Adaptive(mean, jtu.tree_map(one, mean.point))


def question(
    trainer: Any, mean: Mean, sigma: PyTree, sampler: Gaussian, weighting: AbstractWeighting, key: Key[Array, ""]
) -> Query:
    """The losses of a cloud; the two of a pair share their evaluation's noise."""
    k_noise, k_evaluation = words.split(key)
    each = pairs(trainer.population, antithetic=sampler.antithetic)
    keys = words.split(k_evaluation, trainer.population)[each.pair]
    if trainer.compute_dtype is not None:  # what is learned may outgrow it
        mean = check_visible(trainer, mean, jtu.tree_map(lambda _, s: typical_width(s), mean.point, sigma))
    members = Population(Shared(mean.point, sigma, k_noise, mean.domain), each, sampler)
    return Query(members, none_like(mean.point), keys, weigh=weighting)


def same_width(mean: Mean, sigma: Scheduled) -> PyTree:
    """One sigma for all leaves, at this step."""
    now = at(sigma, mean.step)
    return jtu.tree_map(lambda _: now, mean.point)


def times_width(x: Array, sigma: Array | Factors) -> Array:
    """A leaf's noise, or a weighted sum of it, in the leaf's own units."""
    if not isinstance(sigma, Factors):
        return (sigma * x).astype(x.dtype)
    rows, columns = sigma
    return (x * rows.reshape(*rows.shape, *[1] * columns.ndim) * columns).astype(x.dtype)


def typical_width(sigma: PyTree) -> Float[Array, ""]:
    """The geometric mean over all leaves."""
    leaves = [
        leaf for leaf in jtu.tree_leaves(sigma, is_leaf=lambda x: isinstance(x, Factors)) if optax.tree.size(leaf)
    ]
    logs = [sum(jnp.mean(jnp.log(part)) for part in jtu.tree_leaves(leaf)) for leaf in leaves]
    return jnp.exp(jnp.mean(jnp.stack(logs))) if logs else jnp.zeros(())


def check_visible(trainer: Any, mean: Mean, sigma: PyTree) -> Mean:
    """The mean. Fails, with the leaf's name, where a typical coordinate plus the leaf's sigma is that coordinate."""
    dtype = trainer.compute_dtype

    def one(name: str, x: Array, now: Array, domain: Real) -> Array:
        kind = max(dtype or x.dtype, x.dtype, key=lambda kind: float(jnp.finfo(kind).eps))  # the coarser one
        size = jnp.sqrt(jnp.mean(x**2)) if x.size else jnp.zeros((), x.dtype)
        # A step of a logarithm is a factor, whatever the size; the logarithm itself has the mean's type.
        if domain.log:
            own = float(jnp.finfo(x.dtype).eps) / float(jnp.finfo(kind).eps)
            size = jnp.maximum(1.0, own * size)
        return eqx.error_if(
            x,
            now < 0.5 * float(jnp.finfo(kind).eps) * size,
            f"`{_name(trainer)}(sigma)` is below what {jnp.dtype(kind)} can add to `{name}` at its size: members would "
            "equal the centre. Use a larger sigma, smaller parameters, or more bits in `compute_dtype`.",
        )

    return eqx.tree_at(lambda m: m.point, mean, map_named(one, mean.point, sigma, mean.domain))


def check_cloud(owner: str, population: int, *, antithetic: bool | None, rank: int | None, dtype: Any) -> None:
    """**Raises** `ValueError` for what no cloud can be. `antithetic` is `None` where it is no choice, but a must."""
    check_count(owner, "population", population, least=2)
    if population % 2 and antithetic is not False:
        n, way = population, "." if antithetic is None else ", or `antithetic=False`."
        raise ValueError(
            f"`{owner}(population={n})`: antithetic sampling needs an even population; use {n - 1} or {n + 1}{way}"
        )
    if rank is not None:
        check_count(owner, "rank", rank)
    if dtype is not None and not (_is_dtype(dtype) and jnp.issubdtype(dtype, jnp.floating)):
        raise ValueError(f"`{owner}(compute_dtype={dtype!r})`: expected a float type, for example `jnp.bfloat16`.")


def check_first_sigma(owner: str, sigma: Any, sigma_rate: Any) -> None:
    """**Raises** `ValueError` for what a strategy that adapts its sigma cannot begin with."""
    if callable(sigma):
        raise ValueError(f"`{owner}(sigma)` adapts by itself; give its first value, a number, not a schedule.")
    check_positive(owner, "sigma", sigma)
    check_number(owner, "sigma_rate", sigma_rate, example=0.05)


def _is_dtype(x: Any) -> bool:
    try:
        jnp.dtype(x)
    except TypeError:
        return False
    return True


def adapted(sigma: PyTree, second: PyTree, rate: Any, most: float = math.inf) -> PyTree:
    """Sigmas after a step of their logarithms down the second sums (`gaussian.Sums`), no longer than `most`."""

    def one(s: Array, q: Array) -> Array:
        return s * jnp.exp(jnp.clip(-rate * q, -most, most)).astype(s.dtype)

    return jtu.tree_map(one, sigma, second)


def _name(trainer: Any) -> str:
    return type(trainer).__name__
