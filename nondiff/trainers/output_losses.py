"""Losses of a network's outputs, with the minimiser of `loss(z) + beta/2 |z - m|^2`, case by case.

The same object is the loss of a problem, `chain.loss(CrossEntropy())`, and what `LayerwiseADMM` solves for.
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class AbstractOutputLoss(eqx.Module):
    """How far outputs are from the answers."""

    @abc.abstractmethod
    def __call__(self, z: Float[Array, "cases width"], answers: Any) -> Float[Array, " cases"]:
        """The loss of each case."""

    @abc.abstractmethod
    def solve(
        self, answers: Any, m: Float[Array, "cases width"], beta: Float[Array, ""]
    ) -> Float[Array, "cases width"]:
        """`argmin_z loss(z) + beta/2 |z - m|^2`, of each case."""


class SquaredError(AbstractOutputLoss):
    """`1/2 |z - answer|^2`, answers `[cases, width]`."""

    def __call__(self, z: Array, answers: Any) -> Array:
        return 0.5 * jnp.sum((z - answers) ** 2, -1)

    def solve(self, answers: Any, m: Array, beta: Array) -> Array:
        return (answers + beta * m) / (1 + beta)


class Hinge(AbstractOutputLoss):
    """`max(0, 1 - z)` at the answer's place and `max(0, z)` at the others, summed; answers are numbers of classes
    (Taylor et al., 2016, section 6, with `0` as the others' bound).
    """

    def __call__(self, z: Array, answers: Any) -> Array:
        right = jax.nn.one_hot(answers, z.shape[-1], dtype=z.dtype)
        return jnp.sum(jnp.where(right > 0, jnp.maximum(1 - z, 0), jnp.maximum(z, 0)), -1)

    def solve(self, answers: Any, m: Array, beta: Array) -> Array:
        right = jax.nn.one_hot(answers, m.shape[-1], dtype=m.dtype)
        # On the slope the minimiser is 1/beta nearer; it stops at the kink, and beyond it nothing pulls.
        return jnp.where(
            right > 0, jnp.maximum(jnp.minimum(m + 1 / beta, 1), m), jnp.minimum(jnp.maximum(m - 1 / beta, 0), m)
        )


class CrossEntropy(AbstractOutputLoss):
    """Of the softmax; answers are numbers of classes.

    >>> CrossEntropy()(jnp.array([[0.0, 0.0]]), jnp.array([1]))
    Array([0.6931472], dtype=float32)
    """

    def __call__(self, z: Array, answers: Any) -> Array:
        return jax.nn.logsumexp(z, -1) - jnp.take_along_axis(z, jnp.asarray(answers)[:, None], -1)[:, 0]

    def solve(self, answers: Any, m: Array, beta: Array) -> Array:
        right = jax.nn.one_hot(answers, m.shape[-1], dtype=m.dtype)

        def cost(z: Array) -> Array:
            return self(z, answers) + beta / 2 * jnp.sum((z - m) ** 2, -1)

        def newton(_: Any, z: Array) -> Array:
            p = jax.nn.softmax(z)
            slope = p - right + beta * (z - m)
            # The Hessian is diag(p + beta) - p p': inverted by Sherman and Morrison.
            across = p / (p + beta)
            rest = jnp.sum(across * beta, -1, keepdims=True)  # 1 - sum p^2 / (p + beta)
            step = slope / (p + beta) + across * jnp.sum(across * slope, -1, keepdims=True) / rest
            best, least = z, cost(z)
            for tried in (step, step / 2, step / 4, step / 16, slope / (0.5 + beta)):  # the last always goes down
                there = cost(z - tried)
                best = jnp.where((there < least)[:, None], z - tried, best)
                least = jnp.minimum(there, least)
            return best

        return jax.lax.fori_loop(0, NEWTON, newton, m)


NEWTON = 10
"""Steps; they end within rounding of the minimiser for every `beta` between 1e-3 and 10."""
