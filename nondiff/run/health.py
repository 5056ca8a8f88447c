"""Why learning through a program stalls, beside the loss in the log: an entry of `fit(metrics=)`."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.random as jr
from jaxtyping import Array, Key

from nondiff.core.checks import check_count
from nondiff.core.compiled import STEPS, compiled
from nondiff.core.estimator import AbstractEstimator, Rest
from nondiff.core.failures import last_failure
from nondiff.core.problem import Params
from nondiff.core.tree import is_key
from nondiff.estimators.health import health, named
from nondiff.run.callback import AbstractCallback, Moment, at_row, check_row


class Health(AbstractCallback):
    """What the estimator has to learn from at `moment.params`, as metrics `health/right`, `health/cosine` and so on.

    They come every `every` steps and at step `steps` of `fit`, always on the same cases and with the same key, so that
    they can be compared; training keeps its bits. What each number says stands at `health`.

    **Arguments:**

    - `probe`: parameters to `(rest, logits)`, as they go into `through`, on cases of your choice: some tens of training
      cases, for that is where learning stalls.
    - `via`: the estimator in use.
    - `every`: steps between two measurements; a multiple of `log_every`, for the values join a row of the log.
    - `samples`, `tolerance`, `limit`: as for `health` (default 100, 0 and 100,000).
    - `name`: before the slash (default `"health"`); several of them need several names.
    - `key`: of the samples (default `jax.random.key(0)`).

    It asks the program for real, each time anew: `1 + samples` requests per case and those of the estimator, and
    `symbols ** parts` per case for the `cosine`; an `Opaque` program counts them. Around `Restart`, `moment.params`
    are those of the best try.

    **Raises** `ValueError` for arguments that cannot be, and when a run begins, for `every` that is no multiple of
    `log_every`; what the program raises ends the run.

    >>> import jax.numpy as jnp, nondiff, optax
    >>> x = jnp.eye(4)[jnp.arange(16) % 4]
    >>> y = jnp.arange(16) % 4 % 2
    >>> via = nondiff.MarginalLikelihood(10)
    >>> def rest(symbols, y):  # a program: is the symbol odd?
    ...     return (symbols[:, 0] % 2 != y).astype(jnp.float32)
    >>> def loss(w, batch, key):
    ...     return nondiff.through(lambda s: rest(s, batch[1]), (batch[0] @ w)[:, None], via=via, key=key)
    >>> def probe(w):
    ...     return lambda s: rest(s, y[:8]), (x[:8] @ w)[:, None]
    >>> problem = nondiff.Supervised(loss, (x, y), params=jnp.zeros((4, 3)))
    >>> result = nondiff.fit(problem, nondiff.Backprop(optax.adam(0.1)), steps=100, key=jax.random.key(0),
    ...                      metrics=[Health(probe, via=via, every=50)])
    >>> [(row["step"], row["health/right"], row["health/unsolved"]) for row in result.history if "health/right" in row]
    [(50, 1.0, 0.0), (100, 1.0, 0.0)]
    """

    every: int

    def __init__(
        self,
        probe: Callable[[Params], tuple[Rest, Array]],
        *,
        via: AbstractEstimator,
        every: int,
        samples: int = 100,
        tolerance: int | float = 0.0,
        limit: int = 100_000,
        name: str = "health",
        key: Key[Array, ""] | None = None,
    ):
        if not callable(probe):
            raise ValueError(f"`Health({probe!r})`: expected a function of the parameters that gives `(rest, logits)`.")
        if not isinstance(via, AbstractEstimator):
            raise ValueError(f"`Health(via={via!r})`: expected an estimator, for example `MarginalLikelihood()`.")
        check_count("Health", "every", every)
        check_count("Health", "samples", samples)
        check_count("Health", "limit", limit, least=0)
        if not isinstance(name, str) or not name:
            raise ValueError(f'`Health(name={name!r})`: expected a name, for example "health".')
        key = jr.key(0) if key is None else key
        if not is_key(key) or key.shape != ():
            raise ValueError(f"`Health(key={key!r})`: expected a key, `jax.random.key(seed)`.")
        self.every, self.name, self.key = every, name, key

        def measured(params: Params, key: Key[Array, ""]) -> dict[str, Array]:
            rest, logits = probe(params)
            return health(rest, logits, via=via, key=key, samples=samples, tolerance=tolerance, limit=limit)

        self._measured = compiled(measured, kept=STEPS)

    def begin(self, moment: Moment) -> None:
        check_row("Health", self.every, moment)

    def due(self, moment: Moment) -> bool:
        return at_row(self.every, moment)

    def __call__(self, moment: Moment) -> Mapping[str, Any]:
        last_failure()  # forget one that belongs to training
        try:
            found = jax.device_get(self._measured(moment.params, self.key))
        except (jax.errors.JaxRuntimeError, ValueError) as error:
            raise (last_failure() or error) from None
        return {f"{self.name}/{name}": value for name, value in named(found).items()}
