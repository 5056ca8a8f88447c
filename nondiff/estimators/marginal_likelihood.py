"""Marginal likelihood over a sampled set of symbols: the self-normalised estimator of "Data-Efficient Learning with
Neural Programs" (Solko-Breslin, Choi, Li, Velingkar, Alur, Naik & Wong, 2024, https://arxiv.org/abs/2406.06246), with
the probabilities normalised within the set.

For each case: sample assignments of symbols, drop duplicates, ask the program which succeed, and raise the share of
probability that the successful ones hold. A case without any success in its sample teaches nothing this time.
"""

import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from nondiff.core import words
from nondiff.core.checks import check_count
from nondiff.core.estimator import AbstractEstimator, Decide, Rest, SuccessLikelihood, joint_log_prob, losses_of


class MarginalLikelihood(AbstractEstimator):
    """The gradient of `-log P(success)`, over the distinct ones among `samples` joint samples per case.

    **Arguments:**

    - `samples`: per case (default 100: sums of two, three and four digits and formulas are learned on every seed tried;
      with 32 some seeds fail). The program is asked about each; `Opaque` calls it on the distinct ones only.
    - `objective`: `SuccessLikelihood()` (a loss of 0 is a success), or with another `tolerance`.

    Biased for small sets, and exact once the set covers the domain. It needs a loss that can be met, such as 0 for a
    right answer and 1 for a wrong one; for a loss in degrees see `ScoreFunction`.

    >>> import jax, nondiff
    >>> rest = lambda symbols: (symbols.sum(-1) != jnp.array([3])).astype(jnp.float32)
    >>> loss = lambda z: nondiff.through(rest, z, via=MarginalLikelihood(50), key=jax.random.key(0))[0]
    >>> gradient = jax.grad(loss)(jnp.zeros((1, 2, 3)))  # only 1 + 2 and 2 + 1 are right
    >>> bool((gradient[0, :, 0] > 0).all())  # so down with symbol 0
    True
    """

    samples: int = eqx.field(static=True, default=100)
    objective: SuccessLikelihood = eqx.field(default=SuccessLikelihood(), kw_only=True)
    unbiased: ClassVar[bool] = False

    def __check_init__(self) -> None:
        check_count("MarginalLikelihood", "samples", self.samples)

    def surrogate(
        self, rest: Rest, logits: Array, decision: Array, *, decide: Decide, key: Key[Array, ""]
    ) -> Float[Array, " cases"]:
        del decision, decide
        symbols = words.categories(key, jax.lax.stop_gradient(logits), self.samples)
        distinct = first_of_each(symbols, logits.shape[-1])
        return self.objective(losses_of(rest, symbols), joint_log_prob(logits, symbols), distinct)


def first_of_each(symbols: Int[Array, "set cases *parts"], n: int) -> Bool[Array, "set cases"]:
    """True on one of every group of equal assignments of a case. Symbols are packed into as few words as hold them."""
    samples, cases = symbols.shape[:2]
    flat = symbols.reshape(samples, cases, -1)
    per_word = max(int(31 / max(math.log2(max(n, 2)), 1)), 1)
    packed = []
    for start in range(0, flat.shape[-1], per_word):
        part = flat[..., start : start + per_word].astype(jnp.int32)
        packed.append(jnp.sum(part * n ** jnp.arange(part.shape[-1], dtype=jnp.int32), -1, dtype=jnp.int32))
    place = jnp.broadcast_to(jnp.arange(samples)[:, None], (samples, cases))
    *ordered, place = jax.lax.sort([*packed, place], dimension=0, num_keys=len(packed))
    new = jnp.stack([w[1:] != w[:-1] for w in ordered]).any(0)
    new = jnp.concatenate([jnp.ones((1, cases), bool), new])
    return jnp.zeros_like(new).at[place, jnp.arange(cases)].set(new)
