"""`through`: the boundary between the part that has a derivative and the part that has none.

A network gives logits, a program takes symbols: `through` makes the hard decision, runs the rest once, and lets an
estimator say what the logits should have been.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from nondiff.core.estimator import AbstractEstimator, Decide, Rest, argmax, with_gradient_of


def through(
    rest: Rest,
    logits: Float[Array, "cases *parts symbols"],
    *,
    via: AbstractEstimator,
    key: Key[Array, ""],
    decide: Decide = argmax,
) -> Float[Array, " cases"]:
    """`rest(decide(logits))`, one loss per case, with a derivative in `logits` estimated by `via`.

    **Arguments:**

    - `rest`: takes symbols `[cases, *parts]` and returns one loss per case, since credit is given case by case. It may
      call a program (`Opaque`) and other leaves; its value is differentiated as usual in those.
    - `logits`: `[cases, *parts, symbols]`, unnormalised log-probabilities.
    - `via`: the estimator, for example `MarginalLikelihood()`.
    - `key`: for the estimator's samples.
    - `decide`: logits to symbols (default: the argmax).

    The value is the same for every estimator, to the last bit. Under `jit`, when no gradient is asked, nothing else is
    computed.

    **Raises** `ValueError` if `rest` does not return one loss per case.

    >>> import jax, nondiff
    >>> def rest(symbols):  # a program: are the two symbols equal?
    ...     return (symbols[:, 0] != symbols[:, 1]).astype(jnp.float32)
    >>> logits = jnp.array([[[2.0, 0.0], [0.0, 1.0]]])
    >>> loss = lambda z: through(rest, z, via=nondiff.Tabulate(), key=jax.random.key(0))[0]
    >>> loss(logits)
    Array(1., dtype=float32)
    >>> jax.grad(loss)(logits)[0, 1, 1] > 0  # downhill, the second symbol becomes 0, too
    Array(True, dtype=bool)
    """
    if not isinstance(via, AbstractEstimator):
        raise ValueError(f"`through(via={via!r})`: expected an estimator, for example `MarginalLikelihood()`.")
    logits = jnp.asarray(logits)
    if logits.ndim < 2 or not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(
            f"`through(logits)` is {logits.dtype}{list(logits.shape)}; expected floats `[cases, ..., symbols]`."
        )
    decision = decide(jax.lax.stop_gradient(logits))
    value = jnp.asarray(rest(decision))
    if value.shape != logits.shape[:1] or not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(
            f"`through(rest)`: `rest` returned {value.dtype}{list(value.shape)}; expected one float loss per case, "
            f"`[{logits.shape[0]}]`. Compare each case with its own answer, and do not average."
        )
    return with_gradient_of(value, via.surrogate(rest, logits, decision, decide=decide, key=key))
