"""Restarts (Auger & Hansen, 2005, "A Restart CMA Evolution Strategy With Increasing Population Size",
https://doi.org/10.1109/CEC.2005.1554902): a search that has come to its end begins anew, by a schedule.

A local search finds the bottom of one valley. Many of them, or ones that see more of the landscape at once, find more.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Key, PyTree

from nondiff.core import calls
from nondiff.core.domain import AbstractDomain, Leaf, Real
from nondiff.core.exact import exactly
from nondiff.core.problem import Params
from nondiff.core.query import Evaluation, Query, answers, evaluations
from nondiff.core.trainer import AbstractTrainer, Metrics, check_count, check_trainers
from nondiff.core.tree import split_like
from nondiff.trainers.schedules import IPOP, AbstractSchedule, Same, Try


class _State(eqx.Module):
    inner: Any
    start: Params
    domain: PyTree
    now: Try
    large: Any
    """Is the present try one of the large ones?"""
    counts: "_Counts"
    best: Any
    """Of this try."""
    done: Any
    """The number of the reason why it has ended, or 0."""


class _Counts(NamedTuple):
    """Whole numbers, on the host."""

    population: Any
    """The first one."""
    tries: Any
    large: Any
    """Of the tries that were large."""
    spent: Any
    """Evaluations in small tries, and in large ones."""
    last: Any
    """Evaluations in the last large try."""
    used: Any
    """Evaluations in this try."""
    since: Any
    """Steps of this try without a better loss."""


class Restart(AbstractTrainer[_State]):
    """`inner`, begun anew whenever it has come to its end.

    **Arguments:**

    - `inner`: any trainer. What grows and shrinks are its arguments `population` and `sigma`.
    - `schedule`: `IPOP()` (default), `BIPOP()`, or `Same()`, which needs no `population`.
    - `tries`: how many starts at most, the first one included (default 10).
    - `on`: steps without a better loss that end a try, for trainers that never end by themselves, or earlier than they
      do; default `None`: only what `inner` says itself (`CMAES` does).
    - `begin`: a function of a key that gives the point where a try after the first begins. Default `None`: a uniform
      one for leaves with bounds on both sides, and where the first try began for the others.

    `params` are those of the present try: to keep the best of all, `Best(Restart(...))`, as `minimise` does.

    Not traceable: where `inner` is compiled, a larger population is compiled when its try begins. A state whose arrays
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
    """

    inner: AbstractTrainer
    schedule: AbstractSchedule = eqx.field(kw_only=True, default=IPOP())
    tries: int = eqx.field(kw_only=True, static=True, default=10)
    on: int | None = eqx.field(kw_only=True, static=True, default=None)
    begin: Callable[[Key[Array, ""]], Params] | None = eqx.field(kw_only=True, static=True, default=None)
    traceable: ClassVar[bool] = False

    def __check_init__(self) -> None:
        check_trainers("Restart", self.inner)
        check_count("Restart", "tries", self.tries)
        name = type(self.inner).__name__
        if self.on is not None:
            check_count("Restart", "on", self.on)
        elif not self.inner.endings:
            raise ValueError(f"`Restart(on=None)`: `{name}` never ends by itself; give steps, for example `on=100`.")
        if not isinstance(self.schedule, Same) and not hasattr(self.inner, "population"):
            raise ValueError(f"`Restart(schedule={self.schedule})`: `{name}` has no `population`; use `Same()`.")

    @property
    def endings(self) -> tuple[str, ...]:
        return (f"all {self.tries} tries have come to their ends",)

    def init(self, params: Params, domain: PyTree, *, key: Key[Array, ""]) -> _State:
        k_try, k_size = jr.split(key)
        first = calls.ask(self.inner, calls.init(self.inner, params, domain, k_size), k_size)
        counts = _Counts(evaluations(first), 0, 0, np.zeros(2, int), 0, 0, 0)
        return self._begin(params, params, domain, counts, k_try)

    def ask(self, state: _State, *, key: Key[Array, ""]) -> PyTree[Query]:
        return calls.ask(self._trainer(state), state.inner, key)

    def tell(
        self, state: _State, query: PyTree[Query], answer: PyTree[Evaluation], *, key: Key[Array, ""]
    ) -> tuple[_State, Metrics]:
        k_tell, k_try, k_point = jr.split(key, 3)
        trainer = self._trainer(state)
        inner, metrics = calls.tell(trainer, state.inner, query, answer, k_tell)
        losses = [np.asarray(a.ranked) for a in answers(answer)]
        made, best = sum(map(len, losses)), min(float(x.min(initial=math.inf)) for x in losses)
        c, is_large = state.counts, int(state.large)
        spent = c.spent + made * (np.arange(2) == is_large)
        since = 0 if best < state.best else c.since + 1
        c = c._replace(spent=spent, used=c.used + made, since=since, last=c.used + made if is_large else c.last)
        metrics = {**metrics, "tries": c.tries}
        over = trainer.ended(inner) or c.used >= state.now.most or (self.on is not None and since >= self.on)
        best = np.array(min(best, float(state.best)))
        if over and c.tries < self.tries:
            return self._begin(self._point(state, k_point), state.start, state.domain, c, k_try), metrics
        done = np.array(int(bool(over)))
        return dataclasses.replace(state, inner=inner, counts=_arrays(c), best=best, done=done), metrics

    def params(self, state: _State) -> Params:
        return self.inner.params(state.inner)

    def ended(self, state: _State) -> int:
        return int(state.done)

    def _begin(self, point: Params, start: Params, domain: PyTree, c: _Counts, key: Key[Array, ""]) -> _State:
        """The state at the beginning of the next try."""
        k_dice, k_inner = jr.split(key)
        dice = np.asarray(jr.uniform(k_dice, (2,)), float)
        now, is_large = self.schedule(int(c.large), (int(c.spent[1]), int(c.spent[0])), int(c.last), dice)
        c = c._replace(tries=c.tries + 1, large=c.large + is_large, used=0, since=0)
        zero, now = np.zeros((), int), Try(*map(np.asarray, now))
        state = _State(None, start, domain, now, zero + is_large, _arrays(c), np.array(math.inf), zero)
        trainer = self._trainer(state)
        return dataclasses.replace(state, inner=calls.init(trainer, point, domain, k_inner))

    def _point(self, state: _State, key: Key[Array, ""]) -> Params:
        if self.begin is None:
            return _anew(state.start, state.domain, key)
        return jtu.tree_map(lambda x, like: np.asarray(x, like.dtype), self.begin(key), state.start)

    def _population(self, state: _State) -> int:
        first = int(state.counts.population)
        return first if state.now.population == 1 else 2 * round(float(state.now.population) * first / 2)

    def _trainer(self, state: _State) -> AbstractTrainer:
        """Of the present try."""
        changed: dict[str, Any] = {}
        if state.now.population != 1:
            changed["population"] = self._population(state)
        if state.now.sigma != 1 and getattr(self.inner, "sigma", None) is not None:
            changed["sigma"] = jtu.tree_map(lambda s: float(s * state.now.sigma), self.inner.sigma)  # pyright: ignore
        return dataclasses.replace(self.inner, **changed) if changed else self.inner


@exactly
def _anew(start: Params, domain: PyTree, key: Key[Array, ""]) -> Params:
    """Where a try begins: anywhere between two bounds, else where the first one began."""

    def one(x: Leaf, d: AbstractDomain, k: Key[Array, ""]) -> Leaf:
        bounded = not isinstance(d, Real) or (d.lo is not None and d.hi is not None)
        return d.sample(x, jnp.ones(()), key=k).astype(x.dtype) if bounded else x

    return jtu.tree_map(one, start, domain, split_like(key, start))


def _arrays(counts: _Counts) -> _Counts:
    return _Counts(*(np.asarray(x, np.int64) for x in counts))
