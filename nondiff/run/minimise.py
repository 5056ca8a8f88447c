"""`minimise(f, x0)`: the one call for a black box."""

import contextlib
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.tree_util as jtu
import optax
from jaxtyping import Array, Key, PyTree

from nondiff.core import keys as host
from nondiff.core import query
from nondiff.core.checks import check_count
from nondiff.core.domain import Categorical, Real, is_domain
from nondiff.core.problem import Params
from nondiff.core.step import init, keys
from nondiff.core.trainer import AbstractTrainer
from nondiff.evaluators import Ray
from nondiff.problems import BlackBox
from nondiff.run.callback import Moment, Stop
from nondiff.run.fit import Result, checked_key, fit
from nondiff.run.shrinking import Shrinking, adam
from nondiff.run.stopping import Target
from nondiff.trainers import CMAES, Best, Genetic, OpenES, Restart, SepCMAES

LOST = 20
"""Steps in a row without a single answer: where half of all points fail, the small first population has many of them,
but not so many."""


def minimise(
    f: Callable[[Any], Any],
    x0: Params,
    *,
    domain: PyTree = None,
    trainer: AbstractTrainer | None = None,
    evaluations: int | None = None,
    target: float | None = None,
    key: Key[Array, ""] | None = None,
    vectorized: bool = False,
    workers: int = 0,
) -> Result:
    """The best point found for `f`, starting from `x0`.

    **Arguments:**

    - `f`: one number for one point; JAX or plain Python on NumPy arrays. Deterministic: the best value ever seen wins.
      NaN, and in plain Python an exception, is a failed evaluation; of exceptions a warning says the text.
    - `x0`: a number, an array, or any pytree of them.
    - `domain`: a `Real`, `Integer` or `Categorical`, or a tree of them, a prefix of `x0`.
    - `trainer`: any; `Backprop` too if `f` is written in JAX. Default, said in `Result.choice` with the reason: with a
      category among the leaves `Genetic`; else `CMAES` up to 200 coordinates and `SepCMAES` up to 10,000, with restarts
      (`IPOP`); above, `OpenES` with rank 1 where there are no bounds and no whole numbers. Steps of `Genetic` and
      `OpenES` shrink by three orders of magnitude over the budget.
    - `evaluations`: the budget, never exceeded (default: 1,000 for each coordinate, between 10,000 and 100,000).
    - `target`: stop as soon as the best value is at or below it.
    - `key`: `jax.random.key(seed)` (default seed 0: the same call gives the same answer).
    - `vectorized`: `f` takes many points, every leaf `[n, ...]`, and returns `[n]` numbers (default False).
    - `workers`: processes that evaluate, by `Ray` (default 0: this process does). Worth it from some 10 ms for a
      point on; what `f` prints is not seen then.

    **Returns** a `Result`: `params` is the best point, `loss` its value, `evaluations` how many were made, `reason` why
    it ended.

    **Raises** `ValueError` for a budget smaller than one step of the trainer, for a negative number of workers, and for
    what `BlackBox` refuses.

    >>> import nondiff
    >>> def cost(x):  # any Python
    ...     return (x["depth"] - 7) ** 2 + abs(float(x["rate"]) - 0.3)
    >>> domain = {"depth": nondiff.Integer(1, 20), "rate": nondiff.Real(0.001, 1.0, log=True)}
    >>> result = minimise(cost, {"depth": 1, "rate": 0.01}, domain=domain, target=1e-2)
    >>> int(result.params["depth"]), bool(result.loss <= 1e-2)
    (7, True)
    """
    if evaluations is not None:
        check_count("minimise", "evaluations", evaluations)
    check_count("minimise", "workers", workers, least=0)
    if target is not None and math.isnan(target):
        raise ValueError("`minimise(target=nan)`: expected a number; leave it out to spend the whole budget.")
    problem = BlackBox(f, x0, domain=domain, vectorized=vectorized, errors="raise" if vectorized else "fail")
    size = optax.tree.size(problem.x0)
    budget = min(max(1_000 * size, 10_000), 100_000) if evaluations is None else evaluations
    trainer, choice = _default(problem, budget) if trainer is None else (trainer, "given")
    chosen = Best(trainer)
    key = host.seeded(0) if key is None else checked_key("minimise", key)
    per_step = _evaluations(problem, chosen, key)
    if budget < per_step:
        raise ValueError(
            f"`minimise(evaluations={budget})`: one step of `{type(chosen.inner).__name__}` makes {per_step} of them; "
            "give at least as many, or a trainer with a smaller population."
        )

    steps = budget // per_step
    spent = f"the budget of {budget} evaluations was spent"
    stop: list[Stop] = [] if target is None else [Target(target, "best_ever")]
    if not chosen.traceable:  # its populations may grow
        stop.append(_Budget(budget, spent))
    log_every = 1 if stop or not problem.traceable else max(1, steps // 100)
    with Ray(workers) if workers else contextlib.nullcontext() as evaluator:
        result = fit(
            problem, chosen, steps=steps, key=key, evaluator=evaluator, stop=stop, log_every=log_every, lost=LOST
        )
    loss = float(result.state.trainer.loss)
    reason = spent if result.reason == f"all {steps} steps done" else result.reason
    return dataclasses.replace(result, loss=loss, reason=reason, choice=choice)


class _Budget:
    """Ends a run whose next step would make more evaluations than are left; called after every step."""

    def __init__(self, budget: int, reason: str):
        self.left, self.reason = budget, reason

    def __call__(self, moment: Moment) -> str | None:
        self.left -= int(moment.row["evaluations"])
        state = moment.state
        asked = type(moment.trainer).asks(moment.trainer, state.trainer, key=state.key)  # its number alone is read
        return self.reason if asked > self.left else None


def _default(problem: BlackBox, budget: int) -> tuple[AbstractTrainer, str]:
    """A trainer, and why this one."""
    size = optax.tree.size(problem.x0)
    population = 2 * (8 + int(1.5 * math.log(size + 1)))  # grows as in CMA-ES, from a base that a noisy start needs
    population = max(2, min(population, 2 * (budget // 2)))
    steps = max(budget // population, 1)

    def genetic() -> Genetic:
        return Genetic(population=population, scale=Shrinking(0.3, steps))

    domains = jtu.tree_leaves(problem.domains, is_leaf=is_domain)
    if any(isinstance(d, Categorical) for d in domains):
        return genetic(), "Genetic: some leaves are categories, which have no order"
    for most, kind, why in (
        (200, CMAES, "a full covariance can be learned"),
        (10_000, SepCMAES, "too many for a full covariance"),
    ):
        if size <= most:
            least = kind().size(size)
            inner = kind(population=None if budget >= least else max(4, budget))
            return Restart(inner), f"{kind.__name__} with restarts: {size} coordinates, {why}"
    if all(isinstance(d, Real) and not d.constrained for d in domains):
        reach = 0.3 * max(1.0, max(float(abs(x).max(initial=0.0)) for x in jtu.tree_leaves(problem.x0)))
        shrinking = Shrinking(reach, steps)
        trainer = OpenES(adam(shrinking), sigma=shrinking, population=population, rank=1)
        return trainer, f"OpenES of rank 1: {size} coordinates, too many to learn a sigma for each"
    return genetic(), f"Genetic: {size} coordinates, with bounds or whole numbers"


def _evaluations(problem: BlackBox, trainer: AbstractTrainer, key: Key[Array, ""]) -> int:
    """How many one step makes."""

    def first() -> PyTree:
        state = init(problem, trainer, key=key)
        return trainer.ask(state.trainer, key=keys(state)[1])

    return query.evaluations(eqx.filter_eval_shape(first) if trainer.traceable else first())
