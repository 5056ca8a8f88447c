"""The law of estimators, as a test."""

from collections.abc import Callable

import jax
import jax.monitoring
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Key

from nondiff.core.estimator import AbstractEstimator, Decide, Heuristic, argmax, losses_of
from nondiff.estimators import through


def check_estimator(estimator: AbstractEstimator, *, decide: Decide = argmax, repeats: int = 4_000) -> None:
    """Does an estimator keep the law?

    - the value is `rest` at the hard decision, to the last bit, with and without a gradient;
    - the gradient, averaged over `repeats` keys, is that of the objective it names, enumerated: within 4 standard
      errors if it is unbiased, and in direction (cosine above 0.9) in any case. That of a `Heuristic`, and where
      numbers are decided, so that nothing can be enumerated, leads downhill: its cosine with the gradient of the loss
      smoothed by standard Gaussian noise on the activations is above 0.1;
    - a case's gradient depends on that case alone; every gradient is finite.

    `decide`: how it is meant to be used. With the default, symbols, and right or wrong answers; with one that gives
    numbers shaped like the activations, such as `jnp.round` or `one_hot`, a loss that has a derivative in them.

    >>> import nondiff
    >>> check_estimator(nondiff.Tabulate())
    >>> check_estimator(nondiff.StraightThrough(), decide=jnp.round)
    """
    answers = jnp.array([2, 3])
    goal = jnp.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    logits = jr.normal(jr.key(1), (2, 2, 3))
    numbers = jax.eval_shape(decide, logits).shape == logits.shape

    def rest(decided: Array) -> Array:
        if numbers:
            return jnp.sum((decided - goal) ** 2, (1, 2))
        return (jnp.sum(decided, -1) != answers).astype(jnp.float32)

    def value(logits: Array, key: Key[Array, ""]) -> Array:
        return through(rest, logits, via=estimator, key=key, decide=decide)

    key = jr.key(0)
    hard = jax.jit(lambda z: rest(decide(z)))(logits)
    np.testing.assert_array_equal(jax.jit(value)(logits, key), hard, "the value is not `rest` at the hard decision")
    through_grad = jax.jit(jax.value_and_grad(lambda z, k: jnp.sum(value(z, k))))
    np.testing.assert_array_equal(
        through_grad(logits, key)[0], jnp.sum(hard), "asking for a gradient changed the value"
    )

    gradients = jax.jit(jax.vmap(jax.grad(lambda z, k: jnp.sum(value(z, k))), (None, 0)))(
        logits, jr.split(key, repeats)
    )
    assert bool(jnp.all(jnp.isfinite(gradients))), "a gradient is not finite"
    if numbers or isinstance(estimator.objective, Heuristic):
        assert bool(jnp.any(gradients != 0)), "no gradient comes through"
        _check_downhill(jax.jit(lambda z: rest(decide(z))), logits, gradients)
    else:
        _check_objective(estimator, rest, logits, gradients)

    other = logits.at[1].add(1.0)
    one = jax.jit(jax.grad(lambda z, k: value(z, k)[0]))
    np.testing.assert_allclose(one(logits, key)[1], 0.0, atol=1e-7, err_msg="case 0 gives credit to case 1")
    np.testing.assert_allclose(one(other, key)[0], one(logits, key)[0], rtol=1e-4, atol=1e-6, err_msg="cases interfere")


def _check_downhill(hard: Callable[[Array], Array], logits: Array, gradients: Array) -> None:
    """Against the smoothed loss, from differences between 4,000 pairs of points on both sides of the logits."""

    def difference(noise: Array) -> Array:
        change = hard(logits + noise) - hard(logits - noise)
        return 0.5 * change[:, None, None] * noise

    slope = jnp.mean(jax.vmap(difference)(jr.normal(jr.key(2), (4_000, *logits.shape))), 0)
    cosine = _cosine(jnp.mean(gradients, 0), slope)
    assert cosine > 0.1, f"the mean gradient does not lead downhill: cosine {cosine:.2f} with that of the smoothed loss"


def _cosine(a: Array, b: Array) -> float:
    return float(jnp.sum(a * b) / (jnp.linalg.norm(a.ravel()) * jnp.linalg.norm(b.ravel())))


def _check_objective(estimator: AbstractEstimator, rest, logits: Array, gradients: Array) -> None:
    """Against the objective, summed over all assignments."""
    every = jnp.stack(jnp.meshgrid(jnp.arange(3), jnp.arange(3), indexing="ij"), -1).reshape(9, 1, 2)
    every = jnp.broadcast_to(every, (9, 2, 2))

    def exact(z: Array) -> Array:
        return jnp.sum(
            estimator.objective(losses_of(rest, every), estimator.log_prob(z, every), jnp.ones((9, 2), bool))
        )

    truth = jax.grad(exact)(logits)
    mean, error = jnp.mean(gradients, 0), jnp.std(gradients, 0) / np.sqrt(len(gradients))
    cosine = _cosine(mean, truth)
    assert cosine > 0.9, f"the mean gradient points elsewhere than that of {estimator.objective}: cosine {cosine:.2f}"
    if estimator.unbiased:
        distance = float(jnp.max(jnp.abs(mean - truth) / (error + 1e-5)))
        assert distance < 4, f"the mean gradient is {distance:.1f} standard errors from that of {estimator.objective}"
