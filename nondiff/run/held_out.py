"""The loss on data that are kept aside: an entry of `fit(metrics=)`."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
from jaxtyping import Array, Key

from nondiff.core import words
from nondiff.core.checks import check_count
from nondiff.core.compiled import STEPS, compiled
from nondiff.core.evaluator import AbstractEvaluator
from nondiff.core.failures import last_failure
from nondiff.core.population import Centre, Population
from nondiff.core.problem import AbstractProblem, Params
from nondiff.core.query import Query
from nondiff.core.tree import is_key, none_like
from nondiff.core.tree import name as leaf_name
from nondiff.evaluators import Host, Vmap
from nondiff.run.callback import AbstractCallback, Moment, at_row, check_row


class HeldOut(AbstractCallback):
    """The loss of what would be deployed now (`moment.params`) on another problem, as the metric `held_out/loss`.

    It comes every `every` steps and at step `steps` of `fit`; the rows between have no such metric, and `Patience` and
    `Target` pass them over. It is computed once for all the problem's data, in one call, and compiled once.

    **Arguments:**

    - `problem`: usually a `Supervised` with the loss and `params` of the problem that is trained, data kept aside and
      no `batch_size`: then every measurement takes all of them. With one it takes one batch, always the same.
    - `every`: steps between two measurements; a multiple of `log_every`, for the value joins a row of the log.
    - `name`: before the slash (default `"held_out"`); several of them need several names.
    - `key`: of the evaluation noise and the batch (default `jax.random.key(0)`); the same at every measurement, so that
      their values can be compared.
    - `evaluator`: default `Vmap()`, or `Host()` for a problem that JAX cannot trace.

    **Raises** `ValueError` for what is no problem or evaluator, or do not fit together, and batches from outside; when
    a run begins, for `every` that is no multiple of `log_every`, and parameters of another shape than the problem's.

    >>> import jax.numpy as jnp, nondiff, optax
    >>> x = jnp.linspace(-1.0, 1.0, 64)
    >>> def loss(w, batch, key):
    ...     return (w * batch[0] - batch[1]) ** 2
    >>> train, aside = (nondiff.Supervised(loss, (x, 3.0 * x), params=jnp.zeros(())) for x in (x[::2], x[1::2]))
    >>> result = nondiff.fit(train, nondiff.Backprop(optax.adam(0.1)), steps=100, key=jax.random.key(0),
    ...                      metrics=[HeldOut(aside, every=50)])
    >>> [row["step"] for row in result.history if "held_out/loss" in row]
    [50, 100]
    """

    every: int

    def __init__(
        self,
        problem: AbstractProblem,
        *,
        every: int,
        name: str = "held_out",
        key: Key[Array, ""] | None = None,
        evaluator: AbstractEvaluator | None = None,
    ):
        if not isinstance(problem, AbstractProblem):
            raise ValueError(f"`HeldOut({problem!r})`: expected a problem, for example a `Supervised`.")
        check_count("HeldOut", "every", every)
        if not isinstance(name, str) or not name:
            raise ValueError(f'`HeldOut(name={name!r})`: expected a name, for example "held_out".')
        key = jr.key(0) if key is None else key
        if not is_key(key) or key.shape != ():
            raise ValueError(f"`HeldOut(key={key!r})`: expected a key, `jax.random.key(seed)`.")
        if evaluator is None:
            evaluator = Vmap() if problem.traceable else Host()
        if not isinstance(evaluator, AbstractEvaluator):
            raise ValueError(f"`HeldOut(evaluator={evaluator!r})`: expected an evaluator, for example `Vmap()`.")
        kind = type(problem).__name__
        if evaluator.traceable and not problem.traceable:
            raise ValueError(
                f"`HeldOut(evaluator={type(evaluator).__name__}())` runs the problem under `jax.jit`, and `{kind}` is "
                "plain Python (`traceable` is False). Leave `evaluator` out, or use `Host()`."
            )
        if problem.batches() is not None:
            raise ValueError(
                f"`HeldOut({kind})`: its batches come from outside, one after the other; every measurement must be on "
                "the same data. Give it arrays."
            )
        self.problem, self.every, self.name, self.key, self.evaluator = problem, every, name, key, evaluator
        self._loss = _compiled if problem.traceable and evaluator.traceable else _loss

    def begin(self, moment: Moment) -> None:
        check_row("HeldOut", self.every, moment)
        if self.problem.traceable:
            _check_params(self.problem, moment.params)

    def due(self, moment: Moment) -> bool:
        return at_row(self.every, moment)

    def __call__(self, moment: Moment) -> Mapping[str, Any]:
        last_failure()  # forget one that belongs to training
        try:
            loss = float(self._loss(self.problem, self.evaluator, moment.params, self.key))
        except (jax.errors.JaxRuntimeError, ValueError) as error:
            raise (last_failure() or error) from None
        return {f"{self.name}/loss": loss}


def _loss(problem: AbstractProblem, evaluator: AbstractEvaluator, params: Params, key: Key[Array, ""]) -> Array:
    k_state, k_batch, k_loss = words.split(key, 3)
    batch = problem.batch(problem.init_state(key=k_state), key=k_batch)
    query = Query(Population(params, jnp.zeros(1), Centre()), none_like(params), k_loss[None])
    return evaluator.evaluate(problem, query, batch).loss[0]


_compiled = compiled(_loss, kept=STEPS)


def _check_params(problem: AbstractProblem, params: Params) -> None:
    """By name, shape and dtype: the functions that models carry beside their arrays may differ."""

    def init() -> Params:
        return jtu.tree_map(jnp.asarray, problem.init(key=jr.key(0)))

    try:
        theirs, ours = _shapes(eqx.filter_eval_shape(init)), _shapes(params)
    except jax.errors.JAXTypeError:  # a starting point that JAX cannot trace, and which may be dear to make
        return
    if theirs != ours:
        names = [n for n in {**theirs, **ours} if theirs.get(n) != ours.get(n)]
        lines = [f"  {n}: {ours.get(n, 'none')} in training, {theirs.get(n, 'none')} here" for n in names]
        raise ValueError(
            f"`HeldOut({type(problem).__name__})`: the parameters are others than those of the problem in training:\n"
            + "\n".join(lines)
            + "\nGive both problems the same `params`."
        )


def _shapes(params: Params) -> dict[str, str]:
    return {leaf_name(path): f"{x.dtype}{list(x.shape)}" for path, x in jtu.tree_flatten_with_path(params)[0]}
