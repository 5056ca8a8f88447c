"""Why learning through a program stalls: is there any success to learn from, is the network still open, and where does
the estimated gradient point?

Effective sample size: Kong, 1992, "A Note on Importance Sampling using Standardized Weights", Technical Report 348,
University of Chicago.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from nondiff.core import words
from nondiff.core.checks import check_count
from nondiff.core.estimator import (
    AbstractEstimator,
    Heuristic,
    Rest,
    SuccessLikelihood,
    argmax,
    joint_log_prob,
    losses_of,
)
from nondiff.estimators.marginal_likelihood import first_of_each
from nondiff.estimators.tabulate import every_assignment


def health(
    rest: Rest,
    logits: Float[Array, "cases *parts symbols"],
    *,
    via: AbstractEstimator,
    key: Key[Array, ""],
    samples: int = 100,
    tolerance: int | float = 0.0,
    limit: int = 100_000,
) -> dict[str, Array]:
    """What `via` has to learn from at `logits`; for `through(rest, logits, via=via)`, on a few cases.

    **Arguments:**

    - `rest`, `logits`, `via`, `key`: as for `through`. Decisions are the argmax.
    - `samples`: assignments drawn per case from the softmax of its logits (default 100), whatever `via` draws.
    - `tolerance`: a loss at or below it is a success (default 0).
    - `limit`: the longest list of all `symbols ** parts` assignments of a case for which the exact gradient is computed
      (default 100,000; 0 for never).

    **Returns** a dictionary of

    - `right`: share of cases whose argmax succeeds.
    - `reached`: share of cases with a success among the samples.
    - `unsolved`: share of cases with neither. No sample of theirs says what would be right.
    - `successes`: share of the samples that succeed.
    - `effective`: effective sample size, of the distinct samples of a case weighted by their probabilities,
      `(sum p)^2 / sum p^2`, averaged over cases: from 1, where one assignment holds everything, to their number.
    - `entropy`, `[parts]`: of each part's softmax, averaged over cases, in nats, from 0 to `log(symbols)`. At 0 nothing
      new will be tried.
    - `usage`, `[parts]`: entropy of each part's softmax averaged over the cases: near 0 where all cases get the same
      symbol, a collapse.
    - `cosine`: of the angle between the gradient by `via`, from one draw, and that of its objective over all
      assignments (for a heuristic, that of `-log P(success)`); 0 where one of them vanishes. Left out where the list is
      longer than `limit`.

    A trap, a code that the program half accepts, shows as `right` well below 1 with `entropy` near 0 and cases that
    stay `unsolved`. Collapse shows in `usage`, and too few samples in `reached` and in `cosine`.

    It asks the program for real: `1 + samples` requests per case, those of `via`, and `symbols ** parts` for the
    `cosine`; an `Opaque` program counts them, and remembers the answers. Under `jit` like any function.

    **Raises** `ValueError` for logits that are no floats `[cases, ..., symbols]`, and for what is no estimator.

    >>> import nondiff
    >>> rest = lambda symbols: (symbols.sum(-1) != jnp.array([4, 1])).astype(jnp.float32)
    >>> logits = jnp.zeros((2, 2, 3)).at[0, :, 2].set(9.0)  # the first case is sure of 2 + 2, the second open
    >>> found = health(rest, logits, via=nondiff.Tabulate(), key=jax.random.key(0))
    >>> [round(float(found[name]), 2) for name in ("right", "reached", "effective", "cosine")]
    [0.5, 1.0, 5.0, 1.0]
    >>> found["entropy"].round(2)  # of the second case log(3) = 1.10, of the first 0
    Array([0.55, 0.55], dtype=float32)
    """
    if not isinstance(via, AbstractEstimator):
        raise ValueError(f"`health(via={via!r})`: expected an estimator, for example `MarginalLikelihood()`.")
    check_count("health", "samples", samples)
    check_count("health", "limit", limit, least=0)
    logits = jax.lax.stop_gradient(jnp.asarray(logits))
    if logits.ndim < 2 or not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(
            f"`health(logits)` is {logits.dtype}{list(logits.shape)}; expected floats `[cases, ..., symbols]`."
        )
    k_samples, k_estimate = words.split(key)
    decision = argmax(logits)
    value = jnp.asarray(rest(decision))
    symbols = words.categories(k_samples, logits, samples)
    success = losses_of(rest, symbols) <= tolerance
    right, reached = value <= tolerance, jnp.any(success, 0)
    p = jax.nn.softmax(logits)
    found = {
        "right": jnp.mean(right.astype(float)),
        "reached": jnp.mean(reached.astype(float)),
        "unsolved": jnp.mean((~right & ~reached).astype(float)),
        "successes": jnp.mean(success.astype(float)),
        "effective": jnp.mean(_effective(joint_log_prob(logits, symbols), first_of_each(symbols, logits.shape[-1]))),
        "entropy": jnp.mean(_entropy(p), 0).ravel(),
        "usage": _entropy(jnp.mean(p, 0)).ravel(),
    }
    cosine = _cosine(rest, logits, decision, via, k_estimate, tolerance, limit)
    return found if cosine is None else {**found, "cosine": cosine}


def _entropy(p: Float[Array, "*parts symbols"]) -> Float[Array, "*parts"]:
    return -jnp.sum(jax.scipy.special.xlogy(p, p), -1)


def _effective(logp: Float[Array, "samples cases"], distinct: Bool[Array, "samples cases"]) -> Float[Array, " cases"]:
    weight = jax.nn.softmax(jnp.where(distinct, logp, -jnp.inf), axis=0)
    return 1 / jnp.sum(weight**2, 0)


def _cosine(
    rest: Rest,
    logits: Array,
    decision: Array,
    via: AbstractEstimator,
    key: Key[Array, ""],
    tolerance: int | float,
    limit: int,
) -> Float[Array, ""] | None:
    cases, *parts, n = logits.shape
    count = n ** math.prod(parts)
    if count > limit:
        return None
    every = jnp.broadcast_to(every_assignment(parts, n), (count, cases, *parts))
    losses = losses_of(rest, every)
    objective = SuccessLikelihood(tolerance) if isinstance(via.objective, Heuristic) else via.objective

    def exact(z: Array) -> Array:
        return jnp.sum(objective(losses, via.log_prob(z, every), jnp.ones(losses.shape, bool)))

    def estimate(z: Array) -> Array:
        return jnp.sum(via.surrogate(rest, z, decision, decide=argmax, key=key))

    a, b = jax.grad(estimate)(logits).ravel(), jax.grad(exact)(logits).ravel()
    size = jnp.linalg.norm(a) * jnp.linalg.norm(b)
    return jnp.where(size > 0, jnp.dot(a, b) / jnp.where(size > 0, size, 1.0), 0.0)


def named(found: dict[str, Any]) -> dict[str, float]:
    """The same as single numbers: `entropy/0`, `entropy/1` where there are several parts."""
    numbers = {}
    for name, x in found.items():
        values = np.asarray(x).ravel().tolist()
        numbers.update({name: values[0]} if len(values) == 1 else {f"{name}/{i}": v for i, v in enumerate(values)})
    return numbers
