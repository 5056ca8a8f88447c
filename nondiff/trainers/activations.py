"""Activations and the exact minimiser of `gamma/2 |a - h(z)|^2 + beta/2 |z - m|^2` for each.

Where `h` has pieces, the minimiser is the best of the pieces' own ones (Taylor, Burmeister, Xu, Singh, Patel &
Goldstein, 2016, "Training Neural Networks Without Gradients", https://arxiv.org/abs/1605.02026, section 3.1): no
derivative is asked for, so a step or a sign is as good as a ramp.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from nondiff.core.checks import check_count, check_positive
from nondiff.core.layers import AbstractActivation


class Relu(AbstractActivation):
    """`max(z, 0)`.

    >>> Relu()(jnp.array([-1.0, 2.0]))
    Array([0., 2.], dtype=float32)
    """

    def __call__(self, z: Array) -> Array:
        return jnp.maximum(z, 0)

    def solve(self, a: Array, m: Array, gamma: Array, beta: Array) -> Array:
        above, below = jnp.maximum((gamma * a + beta * m) / (gamma + beta), 0), jnp.minimum(m, 0)
        return _better(self, a, m, gamma, beta, above, below)


class Step(AbstractActivation):
    """1 above 0, else 0.

    **Arguments:**

    - `margin`: `solve` keeps this far from 0, above 0 (default 0.5): weights that fit a `z` close to the jump would
      land on either side of it. Pre-activations are of the order of 1.

    >>> Step()(jnp.array([-1.0, 0.0, 2.0]))
    Array([0., 0., 1.], dtype=float32)
    """

    margin: float | int = eqx.field(static=True, default=0.5, kw_only=True)

    def __check_init__(self) -> None:
        check_positive("Step", "margin", self.margin)

    def __call__(self, z: Array) -> Array:
        return jnp.where(z > 0, 1.0, 0.0).astype(z.dtype)

    def solve(self, a: Array, m: Array, gamma: Array, beta: Array) -> Array:
        return _better(self, a, m, gamma, beta, jnp.maximum(m, self.margin), jnp.minimum(m, -self.margin))


class Sign(AbstractActivation):
    """1 above 0, else -1.

    **Arguments:**

    - `margin`: as for `Step`.

    >>> Sign()(jnp.array([-1.0, 0.0, 2.0]))
    Array([-1., -1.,  1.], dtype=float32)
    """

    margin: float | int = eqx.field(static=True, default=0.5, kw_only=True)

    def __check_init__(self) -> None:
        check_positive("Sign", "margin", self.margin)

    def __call__(self, z: Array) -> Array:
        return jnp.where(z > 0, 1.0, -1.0).astype(z.dtype)

    def solve(self, a: Array, m: Array, gamma: Array, beta: Array) -> Array:
        return _better(self, a, m, gamma, beta, jnp.maximum(m, self.margin), jnp.minimum(m, -self.margin))


class HardThreshold(AbstractActivation):
    """`z` where `|z|` is above a threshold, else 0.

    **Arguments:**

    - `threshold`: above 0 (default 1).

    >>> HardThreshold()(jnp.array([-2.0, 0.5, 1.5]))
    Array([-2. ,  0. ,  1.5], dtype=float32)
    """

    threshold: float | int = eqx.field(static=True, default=1.0)

    def __check_init__(self) -> None:
        check_positive("HardThreshold", "threshold", self.threshold)

    def __call__(self, z: Array) -> Array:
        return jnp.where(jnp.abs(z) > self.threshold, z, 0)

    def solve(self, a: Array, m: Array, gamma: Array, beta: Array) -> Array:
        at = jnp.asarray(self.threshold, m.dtype)
        over = jnp.nextafter(at, jnp.asarray(jnp.inf, m.dtype))  # the first number that passes
        free = (gamma * a + beta * m) / (gamma + beta)
        sides = jnp.maximum(free, over), jnp.minimum(free, -over), jnp.clip(m, -at, at)
        return _better(self, a, m, gamma, beta, *sides)


class KWinners(AbstractActivation):
    """The `k` largest of a layer, as they are; the others give 0.

    **Arguments:**

    - `k`: how many, 1 or more. Of equal ones the first win.

    `solve` is exact for the set of winners that it settles on. Which set is best, it finds out by turns, from three
    starts: the winners of `m`, those that gain most, and those that would win with `a` alone; so it may miss a slightly
    better one.

    **Raises** `ValueError` for `k` below 1, and when called on fewer.

    >>> KWinners(2)(jnp.array([3.0, -1.0, 2.0, 1.0]))
    Array([3., 0., 2., 0.], dtype=float32)
    """

    k: int = eqx.field(static=True)

    def __check_init__(self) -> None:
        check_count("KWinners", "k", self.k)

    def __call__(self, z: Array) -> Array:
        return jnp.where(self._winners(z), z, 0)

    def _winners(self, z: Array) -> Array:
        if z.shape[-1] < self.k:
            raise ValueError(f"`KWinners({self.k})`: there are only {z.shape[-1]} units to choose from.")
        places = jnp.argsort(jnp.argsort(-z, axis=-1), axis=-1)  # stable: of equal ones the first
        return places < self.k

    def solve(self, a: Array, m: Array, gamma: Array, beta: Array) -> Array:
        free = (gamma * a + beta * m) / (gamma + beta)  # where a winner goes, if it may

        def gain(t: Any) -> Array:
            """What each saves by winning, if winners lie above `t` and losers below."""
            win, lose = jnp.maximum(free, t), jnp.minimum(m, t)
            return gamma * (a**2 - (a - win) ** 2) + beta * ((lose - m) ** 2 - (win - m) ** 2)

        starts = m, gamma * a**2 - gamma * beta / (gamma + beta) * (a - m) ** 2, a
        best, least = m, jnp.full_like(m[..., :1], jnp.inf)
        for start in starts:
            won = self._winners(start)
            for _ in range(TURNS):
                t = _meeting(free, m, won, (gamma + beta) / beta)
                below = t - 1e-6 * (1 + jnp.abs(t))  # of equal ones, another might win
                z = jnp.where(won, jnp.maximum(free, t), jnp.minimum(m, below))
                cost = jnp.sum(gamma * (a - jnp.where(won, z, 0)) ** 2 + beta * (z - m) ** 2, -1, keepdims=True)
                best, least = jnp.where(cost < least, z, best), jnp.minimum(cost, least)
                won = self._winners(gain(t))
        return best


TURNS = 3
"""Of winners and threshold; the cost falls with each, and more of them found nothing in tests."""


def _meeting(free: Array, m: Array, won: Array, weight: Array) -> Array:
    """Where winners that want to lie lower meet losers that want to lie higher: the root of the cost's slope, which
    grows, by bisection.
    """
    lo = jnp.min(jnp.minimum(free, m), -1, keepdims=True)
    hi = jnp.max(jnp.maximum(free, m), -1, keepdims=True)

    def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        lo, hi = ends
        t = (lo + hi) / 2
        slope = jnp.where(won, weight * jnp.maximum(t - free, 0), -jnp.maximum(m - t, 0))
        up = jnp.sum(slope, -1, keepdims=True) < 0
        return jnp.where(up, t, lo), jnp.where(up, hi, t)

    lo, hi = jax.lax.fori_loop(0, 30, halve, (lo, hi))
    return (lo + hi) / 2


def _better(h: AbstractActivation, a: Array, m: Array, gamma: Array, beta: Array, *candidates: Array) -> Array:
    """Element by element, the candidate of the least cost; the first of equals."""
    best, least = m, jnp.full_like(m, jnp.inf)
    for z in candidates:
        cost = gamma * (a - h(z)) ** 2 + beta * (z - m) ** 2
        best, least = jnp.where(cost < least, z, best), jnp.minimum(cost, least)
    return best
