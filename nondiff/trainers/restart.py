"""Restarts (Auger & Hansen, 2005, "A Restart CMA Evolution Strategy With Increasing Population Size",
https://doi.org/10.1109/CEC.2005.1554902): a search that has come to its end begins anew, by a schedule.

A local search finds the bottom of one valley. Many of them, or ones that see more of the landscape at once, find more.
The same holds for networks that learn through a program: some starts end in a code that the program half accepts, and
the plateau of their training losses shows it.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Key, PyTree

from nondiff.core import calls, words
from nondiff.core import keys as host
from nondiff.core.checks import check_count
from nondiff.core.domain import AbstractDomain, Leaf, Real
from nondiff.core.exact import exactly
from nondiff.core.problem import Params
from nondiff.core.query import Evaluation, Query, answers, evaluations
from nondiff.core.record import record
from nondiff.core.trainer import AbstractTrainer, Metrics, check_trainers
from nondiff.core.tree import select
from nondiff.trainers.schedules import IPOP, AbstractSchedule, Try
from nondiff.trainers.stall import AbstractCriterion, Never


class _Plan(NamedTuple):
    """What a schedule decides by; on the host."""

    now: Try
    is_large: Any
    """Is the present try one of the large ones?"""
    population: Any
    """The first one."""
    large: Any
    """Tries that were large."""
    spent: Any
    """Evaluations in small tries, and in large ones."""
    last: Any
    """Evaluations in the last large try."""
    used: Any
    """Evaluations in this try."""


@record
class _State:
    inner: Any
    start: Params
    domain: PyTree
    plan: _Plan | None
    """None where all tries are alike."""
    watch: Any
    """What `on` has seen of this try."""
    level: Any
    """Of this try."""
    steps: Any
    """Of this try."""
    kept: Params
    """Of the best try before this one."""
    kept_level: Any
    tries: Any
    done: Any
    """The number of the reason why it has ended, or 0."""


class Restart(AbstractTrainer[_State]):
    """`inner`, begun anew whenever it has come to its end.

    **Arguments:**

    - `inner`: any trainer. What grows and shrinks are its arguments `population` and `sigma`.
    - `schedule`: `IPOP()` (default), `BIPOP()`, or `Same()`, which needs no `population`.
    - `tries`: how many starts at most, the first one included (default 10).
    - `on`: when a try is given up, for trainers that never end by themselves, or earlier than they do: `NoBetter(100)`
      for a loss without noise, `Stall()` for a noisy one. Default `None`: only what `inner` says itself (`CMAES` does).
    - `begin`: a function of a key that gives the point where a try after the first begins. Default `None`: a uniform
      one for leaves with bounds on both sides, and where the first try began for the others. Where the problem's
      `params` are a function of a key, as for a network, give the same one here: `begin=network`.
    - `steps`: a try that has done so many without being given up is the last one (default `None`: no bound). With it
      `fit(steps=)` is the most for all of them together, `tries * steps`.

    `params` are those of the present try, or of an earlier one that was better when it ended: by the level of `on` (for
    `Stall` the mean loss of its last full window, for others the best loss of the try). So the best try is deployed,
    whenever training ends. For the best single point of a loss without noise: `Best(Restart(...))`, as `minimise` does.
    Parts that learn together begin anew together: `Restart(Split(...))`, not inside of it.

    **Traceable** where `inner` is and all tries are alike (`Same`): one compiled step serves all of them, and `begin`
    must be a JAX function. Otherwise the larger population of a try is compiled when it begins. A state whose arrays
    grow with the population (that of `Genetic` does, that of `CMAES` does not) can be resumed from a checkpoint only in
    a try as large as the first one.

    **Raises** `ValueError` for fewer than one try or step, for a trainer that never ends without `on`, and for a
    schedule that changes what the trainer has not.

    >>> import jax, nondiff, numpy as np
    >>> def rastrigin(x):
    ...     return float(np.sum(x**2 + 10 * (1 - np.cos(2 * np.pi * x))))
    >>> problem = nondiff.BlackBox(rastrigin, np.full(2, 3.0))
    >>> trainer = nondiff.Best(Restart(nondiff.CMAES(sigma=2.0)))
    >>> stop = [nondiff.Target(1e-8, "best_ever")]
    >>> result = nondiff.fit(problem, trainer, steps=2_000, key=jax.random.key(0), stop=stop, log_every=1)
    >>> bool(np.allclose(result.params, 0.0, atol=1e-4))
    True

    A loss with noise and a flat part above -1; each try begins where `begin` says:

    >>> import jax.numpy as jnp, optax
    >>> def loss(x, batch, key):
    ...     return jnp.where(x > -1.0, 0.5, (x + 3.0) ** 2 / 8) + 0.1 * jax.random.normal(key)
    >>> def network(key):
    ...     return jax.random.uniform(key, (), minval=-5.0, maxval=5.0)
    >>> problem = nondiff.Supervised(loss, jnp.zeros(1), params=network)
    >>> trainer = Restart(nondiff.Backprop(optax.adam(0.01)), on=nondiff.Stall(), schedule=nondiff.Same(), tries=8,
    ...                   begin=network, steps=1_000)
    >>> result = nondiff.fit(problem, trainer, steps=8_000, key=jax.random.key(0))
    >>> round(float(result.params)), result.reason
    (-3, 'a try has done its 1000 steps')
    """

    inner: AbstractTrainer
    schedule: AbstractSchedule = eqx.field(kw_only=True, default=IPOP())
    tries: int = eqx.field(kw_only=True, static=True, default=10)
    on: AbstractCriterion | None = eqx.field(kw_only=True, default=None)
    begin: Callable[[Key[Array, ""]], Params] | None = eqx.field(kw_only=True, static=True, default=None)
    steps: int | None = eqx.field(kw_only=True, static=True, default=None)

    def __check_init__(self) -> None:
        check_trainers("Restart", self.inner)
        check_count("Restart", "tries", self.tries)
        if self.steps is not None:
            check_count("Restart", "steps", self.steps)
        name = type(self.inner).__name__
        if self.on is not None and not isinstance(self.on, AbstractCriterion):
            raise ValueError(
                f"`Restart(on={self.on!r})`: expected when a try is given up, for example `NoBetter(100)`, or "
                "`Stall()` where losses are noisy."
            )
        if self.on is None and not self.inner.endings:
            raise ValueError(
                f"`Restart(on=None)`: `{name}` never ends by itself; say when a try is given up, for example "
                "`on=NoBetter(100)`, or `on=Stall()` where losses are noisy."
            )
        if not self.schedule.alike and not hasattr(self.inner, "population"):
            raise ValueError(f"`Restart(schedule={self.schedule})`: `{name}` has no `population`; use `Same()`.")

    @property
    def traceable(self) -> bool:
        return self.inner.traceable and self.schedule.alike

    @property
    def endings(self) -> tuple[str, ...]:
        every = f"all {self.tries} tries have come to their ends"
        return (every,) if self.steps is None else (every, f"a try has done its {self.steps} steps")

    def init(self, params: Params, domain: PyTree, *, key: Key[Array, ""]) -> _State:
        k_try, k_size = host.split(key)
        plan = None
        if not self.schedule.alike:
            first = calls.ask(self.inner, calls.init(self.inner, params, domain, k_size), k_size)
            plan = _Plan(Try(1.0, 1.0, math.inf), False, evaluations(first), 0, np.zeros(2, int), 0, 0)
        zero, worst = self._array(0), self._array(math.inf)
        return self._begin(
            _State(None, params, domain, plan, None, worst, zero, params, worst, zero, zero), params, k_try
        )

    def ask(self, state: _State, *, key: Key[Array, ""]) -> PyTree[Query]:
        return calls.ask(Restart._trainer(self, state), state.inner, key)

    def tell(
        self, state: _State, query: PyTree[Query], answer: PyTree[Evaluation], *, key: Key[Array, ""]
    ) -> tuple[_State, Metrics]:
        k_tell = host.fold_in(key, 0)  # the others where a try begins: a key costs more than a small step's sums
        trainer = Restart._trainer(self, state)
        inner, metrics = calls.tell(trainer, state.inner, query, answer, k_tell)
        here = jnp if self.traceable else np
        losses = here.concatenate([here.asarray(a.ranked) for a in answers(answer)])
        watched = _never if here is np and isinstance(self._on, Never) else _watched
        watch, over, level = watched(self._on, state.watch, _mean(here, losses), here.min(losses))
        over = over | (type(trainer).ended(trainer, inner) != 0)
        steps, plan = state.steps + 1, state.plan
        if plan is not None:
            plan = _counted(plan, len(losses))
            over = over | (plan.used >= plan.now.most)
        finished = 2 * (steps >= self.steps) if self.steps is not None else 0 * steps
        done = here.where(over, 1, finished).astype(state.done.dtype)
        steps, plan = jtu.tree_map(here.asarray, (steps, plan))  # a sum of NumPy's is no array
        now = dataclasses.replace(state, inner=inner, plan=plan, watch=watch, level=level, steps=steps, done=done)

        def anew() -> _State:
            lowest = here.asarray(here.minimum(level, now.kept_level))
            best = dataclasses.replace(now, kept=self.params(now), kept_level=lowest)
            return self._begin(best, self._point(state, host.fold_in(key, 2)), host.fold_in(key, 1))

        more = over & (state.tries < self.tries)
        return calls.either(self, more, anew, lambda: now), {**metrics, "tries": state.tries}

    def params(self, state: _State) -> Params:
        here = self.inner.params(state.inner)
        better = state.level <= state.kept_level
        return select(better, here, state.kept) if self.traceable else (here if better else state.kept)

    def ended(self, state: _State) -> Any:
        return state.done

    def asks(self, state: _State, *, key: Key[Array, ""]) -> int:
        trainer = Restart._trainer(self, state)
        return type(trainer).asks(trainer, state.inner, key=key)

    @property
    def _on(self) -> AbstractCriterion:
        return Never() if self.on is None else self.on

    def _array(self, x: Any) -> Array | np.ndarray:
        """On the host of 64 bits."""
        return jnp.asarray(np.asarray(x)) if self.traceable else np.array(x)

    def _begin(self, state: _State, point: Params, key: Key[Array, ""]) -> _State:
        """The state at the beginning of the next try."""
        k_dice, k_inner = host.split(key)
        plan = state.plan
        if plan is not None:
            dice = host.uniform(k_dice, 2).astype(float)
            spent = int(plan.spent[1]), int(plan.spent[0])
            now, is_large = self.schedule(int(plan.large), spent, int(plan.last), dice)
            plan = plan._replace(now=now, is_large=is_large, large=plan.large + is_large, used=0)
            plan = jtu.tree_map(np.asarray, plan)
        watch = jtu.tree_map(self._array, self._on.init())
        zero, level = 0 * state.steps, self._array(math.inf)
        zero, one_more = jtu.tree_map(jnp.asarray if self.traceable else np.asarray, (zero, state.tries + 1))
        begun = dataclasses.replace(state, plan=plan, watch=watch, level=level, steps=zero, tries=one_more, done=zero)
        return dataclasses.replace(begun, inner=calls.init(self._trainer(begun), point, state.domain, k_inner))

    def _point(self, state: _State, key: Key[Array, ""]) -> Params:
        if self.begin is None:
            return _anew(state.start, state.domain, key)
        here = jnp if self.traceable else np
        return jtu.tree_map(lambda x, like: here.asarray(x, like.dtype), self.begin(key), state.start)

    def _trainer(self, state: _State) -> AbstractTrainer:
        """Of the present try."""
        if state.plan is None:
            return self.inner
        now, first = state.plan.now, int(state.plan.population)
        changed: dict[str, Any] = {}
        if now.population != 1:
            changed["population"] = 2 * round(float(now.population) * first / 2)
        if now.sigma != 1 and getattr(self.inner, "sigma", None) is not None:
            changed["sigma"] = jtu.tree_map(lambda s: float(s * now.sigma), self.inner.sigma)  # pyright: ignore
        return dataclasses.replace(self.inner, **changed) if changed else self.inner


def _counted(plan: _Plan, made: int) -> _Plan:
    used = plan.used + made
    spent = plan.spent + made * (np.arange(2) == plan.is_large)
    return plan._replace(used=used, spent=spent, last=used if plan.is_large else plan.last)


def _mean(here: Any, losses: Any) -> Any:
    """`here` is NumPy or JAX's; failed evaluations are left out."""
    ok = here.isfinite(losses)
    return here.sum(losses, where=ok) / here.maximum(here.sum(ok), 1)


def _never(on: AbstractCriterion, state: Any, mean: Any, best: Any) -> tuple[Any, Any, Any]:
    """What `_watched` says of `Never`, in NumPy."""
    del on, mean
    new = np.minimum(np.asarray(best, float), state)
    return np.asarray(new), np.asarray(False), np.asarray(new)


@exactly
def _watched(on: AbstractCriterion, state: Any, mean: Any, best: Any) -> tuple[Any, Any, Any]:
    new = jtu.tree_map(lambda x, old: jnp.asarray(x, old.dtype), on.update(state, mean, best), state)
    return new, on.over(new), on.level(new)


@exactly
def _anew(start: Params, domain: PyTree, key: Key[Array, ""]) -> Params:
    """Where a try begins: anywhere between two bounds, else where the first one began."""

    def one(x: Leaf, d: AbstractDomain, drawn: Array) -> Leaf:
        bounded = not isinstance(d, Real) or (d.lo is not None and d.hi is not None)
        return d.sample(x, jnp.ones(()), words=drawn).astype(x.dtype) if bounded else x

    return jtu.tree_map(one, start, domain, words.like(key, start))
