"""A learned model of the program's loss (van Krieken, Thanapalasingam, Tomczak, van Harmelen & ten Teije, 2023,
"A-NeSI: A Scalable Approximate Method for Probabilistic Neurosymbolic Inference", https://arxiv.org/abs/2212.12393,
section 3.2, with the loss in place of the program's answer): fitted to a few calls, followed where it points.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
from jaxtyping import Array, Float, Key

from nondiff.core import words
from nondiff.core.checks import check_count
from nondiff.core.estimator import AbstractEstimator, Decide, Heuristic, Rest, losses_of

CONCENTRATIONS = (0.05, 0.3, 1.0)
"""Of the Dirichlet distributions that beliefs are drawn from: nearly sure ones, and open ones."""


class LossModel(eqx.Module):
    """Beliefs and context to one number: a network with one hidden layer.

    **Arguments:** `parts` and `symbols` of the boundary, `context`: how many numbers say what the right answer is
    (default 0: none are looked at), `width` (default 256), and a `key`.

    >>> import jax
    >>> net = LossModel(2, 10, context=19, key=jax.random.key(0))
    >>> net(jnp.ones((2, 10)) / 10, jnp.zeros(19)).shape
    ()
    """

    hidden: eqx.nn.Linear
    out: eqx.nn.Linear
    context: int = eqx.field(static=True)

    def __init__(self, parts: int, symbols: int, *, context: int = 0, width: int = 256, key: Key[Array, ""]):
        for name, value in (("parts", parts), ("symbols", symbols), ("width", width)):
            check_count("LossModel", name, value)
        check_count("LossModel", "context", context, least=0)
        self.context = context
        k_hidden, k_out = words.split(key)
        self.hidden = eqx.nn.Linear(parts * symbols + context, width, key=k_hidden)
        self.out = eqx.nn.Linear(width, "scalar", key=k_out)

    def __call__(self, beliefs: Float[Array, "*parts symbols"], context: Any) -> Float[Array, ""]:
        x = jnp.concatenate([beliefs.ravel(), jnp.ravel(context)]) if self.context else beliefs.ravel()
        return self.out(jax.nn.relu(self.hidden(x)))


class Surrogate(AbstractEstimator):
    """The gradient of `-log` of the predicted chance of success, by a `net` that learns to predict it.

    **Arguments:**

    - `net`: `net(beliefs, context)` takes one case's probabilities `[*parts, symbols]` and what was `given`, and
      returns the log-odds of success: `LossModel(...)`, or your own.
    - `samples`: calls per case for the probabilities of the network, and as many for random ones (default 4).
    - `tolerance`: of the loss, up to which an assignment succeeds (default 0).

    `net` is a part of `params`, and backwards it gets its own fitting gradient: `params = {"read": ..., "credit":
    Surrogate(LossModel(...))}`, and in the loss `via=params["credit"].given(answers)`; a `Chain` does so by itself.
    `given` takes what `rest` compares with, `[cases, ...]`, without which the net cannot know what is right. Far fewer
    calls than any other estimator; the boundary learns once the net has. So the net wants a rate of its own, some ten
    times that of the network before it, by `Split`: with the same one, sums of two digits were hardly learned. A
    heuristic: the gradient is the net's.

    **Raises** `ValueError` for fewer than 1 sample, a negative tolerance, and a context that is not one per case.

    >>> import jax, nondiff, optax
    >>> answers = jnp.array([0.0, 1.0])
    >>> rest = lambda symbols: jnp.abs(symbols[:, 0] - answers)
    >>> def loss(params, key):
    ...     return nondiff.through(rest, params["z"], via=params["credit"].given(answers), key=key).mean()
    >>> net = nondiff.LossModel(1, 2, context=1, width=16, key=jax.random.key(0))
    >>> params = {"z": jnp.zeros((2, 1, 2)), "credit": Surrogate(net)}
    >>> problem = nondiff.Supervised(lambda p, _, key: loss(p, key), jnp.zeros(1), params=params)
    >>> result = nondiff.fit(problem, nondiff.Backprop(optax.adam(0.03)), steps=200, key=jax.random.key(0))
    >>> jnp.argmax(result.params["z"][:, 0], -1).tolist()
    [0, 1]
    """

    net: Callable[..., Float[Array, ""]]
    samples: int = eqx.field(static=True, default=4, kw_only=True)
    tolerance: float | int = eqx.field(static=True, default=0.0, kw_only=True)
    context: Any = eqx.field(default=None, kw_only=True)
    objective: ClassVar[Heuristic] = Heuristic()  # pyright: ignore[reportIncompatibleVariableOverride]
    unbiased: ClassVar[bool] = False

    def __check_init__(self) -> None:
        check_count("Surrogate", "samples", self.samples)
        if not callable(self.net):
            raise ValueError(f"`Surrogate({self.net!r})`: expected a network, for example `LossModel(...)`.")
        if not self.tolerance >= 0:
            raise ValueError(f"`Surrogate(tolerance={self.tolerance})`: expected 0 or more.")

    def given(self, answers: Any) -> "Surrogate":
        return dataclasses.replace(self, context=answers)

    def surrogate(
        self, rest: Rest, logits: Array, decision: Array, *, decide: Decide, key: Key[Array, ""]
    ) -> Float[Array, " cases"]:
        del decision, decide
        for x in jtu.tree_leaves(self.context):
            if x.shape[:1] != logits.shape[:1]:
                raise ValueError(
                    f"`Surrogate.given(answers)` has shape {list(x.shape)}; expected one row for each of "
                    f"{logits.shape[0]} cases."
                )
        k_words, k_beliefs = words.split(key)
        here = jnp.broadcast_to(jax.lax.stop_gradient(logits), (self.samples, *logits.shape))
        both = (2 * self.samples, *logits.shape)
        w_sharp, w_symbols = words.pieces(k_words, [(*here.shape[:-1], 1), both])
        alpha = jnp.array(CONCENTRATIONS, logits.dtype)[words.below(w_sharp, len(CONCENTRATIONS))]
        random = jr.loggamma(k_beliefs, jnp.broadcast_to(alpha, here.shape))  # normalised: a Dirichlet draw
        log_beliefs = jax.nn.log_softmax(jnp.concatenate([here, random]))
        symbols = words.category(w_symbols, log_beliefs).astype(jnp.int32)
        success = losses_of(rest, symbols) <= self.tolerance
        seen = jax.vmap(lambda b: self._log_odds(self.net, b))(jnp.exp(log_beliefs))
        fit = jnp.mean(jax.nn.softplus(jnp.where(success, -seen, seen)), 0)  # the cross-entropy to what happened
        fixed = jax.lax.stop_gradient(eqx.filter(self.net, eqx.is_array))
        net = eqx.combine(fixed, self.net)
        return fit + jax.nn.softplus(-self._log_odds(net, jax.nn.softmax(logits)))

    def _log_odds(self, net: Any, beliefs: Float[Array, "cases *parts symbols"]) -> Float[Array, " cases"]:
        if self.context is None:
            return jax.vmap(lambda b: net(b, None))(beliefs)
        return jax.vmap(net)(beliefs, self.context)
