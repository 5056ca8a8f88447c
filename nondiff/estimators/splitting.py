"""Splitting at the boundary, by hard expectation-maximisation: find symbols that give the answer, then fit them (Li,
Huang, Hong, Chen, Wu & Zhu, 2020, "Closed Loop Neural-Symbolic Learning via Integrating Neural Perception, Grammar
Parsing, and Symbolic Reasoning", https://arxiv.org/abs/2006.06649, section 3.3: back-search by single edits).

It is the alternating scheme of ADMM with the constraint `symbols = decision`; scaled duals changed nothing measurable,
so there are none.
"""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from nondiff.core import words
from nondiff.core.checks import check_count
from nondiff.core.estimator import AbstractEstimator, Decide, Heuristic, Rest, argmax, joint_log_prob, losses_of


class Splitting(AbstractEstimator):
    """The cross-entropy to the likeliest symbols that were found to succeed.

    **Arguments:**

    - `samples`: per case (default 16). Beside them stand the likeliest symbols, and every change of one symbol of
      those and of the first sample: `1 + samples + 2 * parts * symbols` requests a case.
    - `tolerance`: of the loss, up to which an assignment succeeds (default 0).

    Good where the answer all but determines the symbols, as in formulas and sorting: a single success is fitted at
    once. Where many assignments give the answer it settles on whichever came first, and may stay there: on sums of two
    digits wrap the trainer in `Restart(..., on=Stall())`, on sums of four use another estimator. A heuristic.

    **Raises** `ValueError` for fewer than 1 sample or a negative tolerance.

    >>> import jax, nondiff
    >>> rest = lambda symbols: (symbols.sum(-1) != jnp.array([4])).astype(jnp.float32)  # only 2 + 2
    >>> loss = lambda z: nondiff.through(rest, z, via=Splitting(50), key=jax.random.key(0))[0]
    >>> gradient = jax.grad(loss)(jnp.zeros((1, 2, 3)))
    >>> bool((gradient[0, :, 2] < 0).all())
    True
    """

    samples: int = eqx.field(static=True, default=16)
    tolerance: float | int = eqx.field(static=True, default=0.0, kw_only=True)
    objective: ClassVar[Heuristic] = Heuristic()  # pyright: ignore[reportIncompatibleVariableOverride]
    unbiased: ClassVar[bool] = False

    def __check_init__(self) -> None:
        check_count("Splitting", "samples", self.samples)
        if not self.tolerance >= 0:
            raise ValueError(f"`Splitting(tolerance={self.tolerance})`: expected 0 or more.")

    def surrogate(
        self, rest: Rest, logits: Array, decision: Array, *, decide: Decide, key: Key[Array, ""]
    ) -> Float[Array, " cases"]:
        del decision, decide
        here = jax.lax.stop_gradient(logits)
        drawn = words.categories(key, here, self.samples).astype(jnp.int32)
        likeliest = argmax(here).astype(jnp.int32)
        n = here.shape[-1]
        proposals = jnp.concatenate([likeliest[None], drawn, edits(likeliest, n), edits(drawn[0], n)])
        found = losses_of(rest, proposals) <= self.tolerance
        best = jnp.argmax(jnp.where(found, joint_log_prob(here, proposals), -jnp.inf), 0)
        target = jnp.take_along_axis(proposals, best.reshape(1, -1, *[1] * (likeliest.ndim - 1)), 0)
        return jnp.where(jnp.any(found, 0), -joint_log_prob(logits, target)[0], 0.0)


def edits(symbols: Int[Array, "cases *parts"], n: int) -> Int[Array, "edits cases *parts"]:
    """`symbols` with one part at a time set to every symbol.

    >>> edits(jnp.array([[0, 1]]), 2)[:, 0].tolist()
    [[0, 1], [1, 1], [0, 0], [0, 1]]
    """
    cases, *parts = symbols.shape
    flat = symbols.reshape(cases, -1)
    here = jnp.eye(flat.shape[1], dtype=bool)[:, None, None]
    changed = jnp.where(here, jnp.arange(n, dtype=symbols.dtype)[:, None, None], flat)
    return changed.reshape(-1, cases, *parts)
