"""Global variable consensus by ADMM (Boyd, Parikh, Chu, Peleato & Eckstein, 2011, "Distributed Optimization and
Statistical Learning via the Alternating Direction Method of Multipliers", https://doi.org/10.1561/2200000016, section
7.1), around any trainer: `min f_1(x_1) + ... + f_N(x_N) + g(z)` such that every `x_i = z`.

Each shard of the data has a trainer of its own, which sees the loss on its rows and a quadratic; the multipliers make
all of them find the minimum of the whole, where plain averages of what each finds alone are another point. All shards
are asked in the same step, so that `Ray` works on them side by side.
"""

import dataclasses
import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Bool, Key, PyTree

from nondiff.core import calls, words
from nondiff.core.checks import check_count
from nondiff.core.exact import exactly, is_exact
from nondiff.core.problem import Params
from nondiff.core.prox import AbstractProx
from nondiff.core.query import Evaluation, Quadratic, Query, Rows, answers, check_always_due, map_queries, queries
from nondiff.core.trainer import AbstractTrainer, Metrics, check_real, check_trainers
from nondiff.core.tree import select
from nondiff.trainers.residuals import (
    Limits,
    Norms,
    Progress,
    check_arguments,
    distance,
    judged,
    next_rho,
    norm,
    projected,
    rescaled,
)
from nondiff.trainers.rho import AbstractRho, policy


class _State(eqx.Module):
    inner: tuple[Any, ...]
    """One for each shard."""
    z: Params
    u: tuple[Params, ...]
    answered: Any
    """Which shards had a step that did not fail since the last iteration."""
    left_out: Any
    """How many shards the last mean was made without."""
    domain: PyTree
    now: Progress


_Kept = tuple[Params, tuple[Params, ...], Any, Any, Progress]
"""Of the state what an iteration changes: `z`, `u`, `answered`, `left_out`, `now`."""


class Consensus(AbstractTrainer[_State]):
    """One `inner` trainer for each shard of the data, and parameters on which all of them come to agree.

    At every step trainer i minimises the mean loss of its own rows, `f_i(x_i) + rho/2 |x_i - z + u_i|^2`. Every
    `every` steps `z` becomes the mean of all `x_i + u_i`, weighted by the numbers of rows, and `u_i = u_i + x_i - z`.
    `params` is `z`; until the first mean, where training began.

    **Arguments:**

    - `inner`: any trainer of real leaves, a combinator too.
    - `shards`: how many parts the rows of a batch are cut into, in order, at least 1 (`AbstractProblem.rows`); their
      sizes may differ by one. Where batches are drawn from the data, `Supervised(batch_size=..., shards=...)` gives
      each shard rows of its own part.
    - `every`: steps of the inner trainers from one mean to the next (default 10).
    - `rho`: the weight of the quadratic, above 0: a number (default 0.1), or a policy as for `ADMM`: `BalancedRho(1.0)`
      for convex problems. Its unit is the loss's per squared unit of the parameters.
    - `prox`: a penalty or constraint `g` for `z`, in units of the mean loss, such as `nondiff.prox.L1(0.01)`; default
      `None`: the bounds of the domain alone.
    - `relaxation`: above 0 and below 2 (default 1, none). From 1.5 to 1.8 is often faster for convex problems.
    - `absolute`, `relative`: the tolerances (default 1e-4 and 1e-3). It has converged where both residuals are below
      them (section 3.3 of the paper), and gradients, where the inner trainers ask for them, too.
    - `patience`: iterations without a lower primal residual, while the multipliers grow as fast as it makes them, after
      which it is diverging (default 100).

    A shard none of whose steps succeeded since the last mean (its losses are NaN) is left out of the next one, and its
    `u_i` stays; metrics count it as `consensus/left_out`. Those of the inner trainers are averaged. The `loss` of a
    step is the mean over the shards, each at its own `x_i`; `HeldOut` measures `z`. Memory: the inner trainer's state
    and one copy of the parameters for each shard.

    **Raises** `ValueError` for numbers out of range and, when training starts, for a leaf that is not real, and for
    batches that cannot be cut into so many pieces.

    >>> import jax, jax.numpy as jnp, nondiff, optax
    >>> x = jnp.array([1.0, 1.0, 3.0, 3.0])  # alone, the halves of the data would find 1 and 0, on average .5
    >>> loss = lambda w, batch, key: (w * batch[0] - batch[1]) ** 2
    >>> problem = nondiff.Supervised(loss, (x, jnp.array([1.0, 1.0, 0.0, 0.0])), params=jnp.zeros(()))
    >>> trainer = Consensus(nondiff.Backprop(optax.sgd(0.05)), shards=2, rho=1.0)
    >>> result = nondiff.fit(problem, trainer, steps=2_000, key=jax.random.key(0))
    >>> round(float(result.params), 3), result.reason
    (0.1, 'converged: residuals and gradients are within their tolerances')
    """

    inner: AbstractTrainer
    shards: int = eqx.field(kw_only=True, static=True)
    every: int = eqx.field(kw_only=True, static=True, default=10)
    rho: AbstractRho = eqx.field(kw_only=True, default=0.1, converter=policy)
    prox: AbstractProx | None = eqx.field(kw_only=True, default=None)
    relaxation: float | int = eqx.field(kw_only=True, static=True, default=1.0)
    absolute: float | int = eqx.field(kw_only=True, static=True, default=1e-4)
    relative: float | int = eqx.field(kw_only=True, static=True, default=1e-3)
    patience: int = eqx.field(kw_only=True, static=True, default=100)

    def __check_init__(self) -> None:
        check_trainers("Consensus", self.inner)
        check_count("Consensus", "shards", self.shards)
        check_arguments(self)
        if not (self.prox is None or isinstance(self.prox, AbstractProx)):
            raise ValueError(f"`Consensus(prox={self.prox!r})`: expected an operator, or None.")

    @property
    def traceable(self) -> bool:
        return self.inner.traceable

    @property
    def endings(self) -> tuple[str, ...]:
        return (
            "converged: residuals and gradients are within their tolerances",
            "diverging: the shards do not come together while their multipliers grow; is a rate too large, or `rho` "
            "far too small?",
        )

    def init(self, params: Params, domain: PyTree, *, key: Key[Array, ""]) -> _State:
        check_real("Consensus", params, domain)
        inner = tuple(calls.init(self.inner, params, domain, k) for k in words.split(key, self.shards))
        # On the host 64 bits, where the parameters have them.
        array = np.array if is_exact(params) else jnp.asarray
        nothing = jtu.tree_map(lambda x: x * 0, params)
        answered, left_out = array(np.zeros(self.shards, bool)), array(0, "int32")
        now = Progress.of(self.rho, array)
        return _State(inner, params, (nothing,) * self.shards, answered, left_out, domain, now)

    def ask(self, state: _State, *, key: Key[Array, ""]) -> list[PyTree[Query]]:
        question = []
        for i, k in enumerate(words.split(key, self.shards)):
            # eq. 7.6
            quadratic = Quadratic(jtu.tree_map(lambda z, u: z - u, state.z, state.u[i]), state.now.rho)

            def own(query: Query, i: int = i, quadratic: Quadratic = quadratic) -> Query:
                check_always_due("Consensus", query)
                if query.rows is not None:
                    raise ValueError("`Consensus` has shards of shards inside of it; give one `Consensus` all of them.")
                return dataclasses.replace(query, quadratic=(*query.quadratic, quadratic), rows=Rows(i, self.shards))

            question.append(map_queries(own, calls.ask(self.inner, state.inner[i], k)))
        return question

    def tell(
        self, state: _State, query: PyTree[Query], answer: PyTree[Evaluation], *, key: Key[Array, ""]
    ) -> tuple[_State, Metrics]:
        keys = words.split(key, self.shards)
        told = [calls.tell(self.inner, *each) for each in zip(state.inner, query, answer, keys, strict=True)]
        x = tuple(self.inner.params(new) for new, _ in told)
        ok = [_succeeded(answers(a), p) for a, p in zip(answer, x, strict=True)]
        inner = tuple(self._kept(good, new, old) for good, (new, _), old in zip(ok, told, state.inner, strict=True))
        x = tuple(self.inner.params(new) for new in inner)
        answered, metrics = _noted(state.answered, ok), _average([own for _, own in told])
        now = state.now.stepped()
        kept = state.z, state.u, answered, state.left_out, now

        def iterate() -> _Kept:
            asked = zip(query, answer, x, strict=True)
            slopes = [projected(g, p, state.domain) for q, a, p in asked for g in _gradients(q, a)]
            rows = [jnp.asarray(answers(a)[0].rows)[0] for a in answer]
            return _iterate(self.prox, self.rho, self.relaxation, Limits.of(self), kept, x, slopes, rows, state.domain)

        due = now.step % self.every == 0
        z, u, answered, left_out, now = calls.either(self, due, iterate, lambda: kept)
        own = now.shown() | {"left_out": left_out}
        return _State(inner, z, u, answered, left_out, state.domain, now), {**metrics, "consensus": own}

    def _kept(self, good: Any, new: Any, old: Any) -> Any:
        if self.traceable:
            return select(good, new, old)
        return new if bool(good) else old

    def params(self, state: _State) -> Params:
        return state.z

    def ended(self, state: _State) -> Any:
        return state.now.done


def _gradients(query: PyTree[Query], answer: PyTree[Evaluation]) -> list[Params]:
    return [a.gradient for q, a in zip(queries(query), answers(answer), strict=True) if q.wants.mean_gradient]


@exactly
def _succeeded(answer: list[Evaluation], params: Params) -> Bool[Array, ""]:
    """Has every query of a shard some loss, and did they lead to parameters that are finite?"""
    answered = [jnp.any(jnp.isfinite(a.loss)) for a in answer]
    return jnp.all(jnp.stack([*answered, *[jnp.all(jnp.isfinite(x)) for x in jtu.tree_leaves(params)]]))


@exactly
def _noted(answered: Bool[Array, " shards"], ok: list[Any]) -> Bool[Array, " shards"]:
    return answered | jnp.stack(ok)


@exactly
def _average(metrics: list[Metrics]) -> Metrics:
    return jtu.tree_map(lambda *xs: jnp.mean(jnp.stack([jnp.asarray(x, float) for x in xs])), *metrics)


@exactly
def _iterate(
    prox: AbstractProx | None,
    policy: AbstractRho,
    alpha: float | int,
    limits: Limits,
    before: _Kept,
    x: tuple[Params, ...],
    slopes: list[Params],
    rows: list[Any],
    domain: PyTree,
) -> _Kept:
    """`z`, `u` and the residuals after an iteration."""
    old_z, old_u, answered, _, now = before
    rho, like = now.rho, now.rho
    # A shard of n_i rows counts as n_i: its quadratic, and with it its multiplier, has the weight rho n_i / mean n.
    count = jnp.where(answered, jnp.stack(rows).astype(like.dtype), 0)
    share = count / jnp.maximum(jnp.sum(count), 1)
    # section 3.4.3
    relaxed = [jtu.tree_map(lambda x, z: alpha * x + (1 - alpha) * z, each, old_z) for each in x]
    v = [jtu.tree_map(jnp.add, a, u) for a, u in zip(relaxed, old_u, strict=True)]
    mean = jtu.tree_map(lambda *vs: sum(v * share[i].astype(v.dtype) for i, v in enumerate(vs)), *v)
    # eq. 7.7, where f and g are divided by the number of shards
    z = mean if prox is None else prox.tree(mean, rho)
    z = jtu.tree_map(lambda z, d: d.clip(z), z, domain)
    z = select(jnp.any(answered), z, old_z)
    # eq. 7.8
    u = tuple(select(answered[i], jtu.tree_map(jnp.subtract, v[i], z), old_u[i]) for i in range(len(x)))
    # residuals and tolerances, sections 3.3 and 7.1
    apart = [jtu.tree_map(lambda x, z, i=i: jnp.where(answered[i], x - z, 0), each, z) for i, each in enumerate(x)]
    every = math.sqrt(len(x))
    # The paper's x_i are minima. Here they are where the gradients of losses and quadratics say so.
    norms = Norms(
        primal=norm(apart, like),
        dual=rho * every * distance(z, old_z, like),
        x=norm(x, like),
        z=every * norm(z, like),
        force=rho * norm(u, like),
        unrest=norm(slopes, like),
    )
    found, converged, diverging = judged(now, limits, norms, sum(leaf.size for leaf in jtu.tree_leaves(x)))
    done = jnp.select([converged & jnp.all(answered), diverging], [1, 2], 0)
    found = found._replace(rho=next_rho(policy, found), done=done)
    u = rescaled(u, rho, found.rho)
    left_out, found = jtu.tree_map(lambda new, old: new.astype(old.dtype), (jnp.sum(~answered), found), before[3:])
    return z, u, jnp.zeros_like(answered), left_out, found
