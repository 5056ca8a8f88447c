"""The alternating direction method of multipliers (Boyd, Parikh, Chu, Peleato & Eckstein, 2011, "Distributed
Optimization and Statistical Learning via the Alternating Direction Method of Multipliers",
https://doi.org/10.1561/2200000016), around any trainer: `min f(x) + g(z)` such that `x = z`.

`f` is the problem's loss, of which the inner trainer needs what it always needs; `g` is a constraint or a penalty that
is known by its proximal operator. The two meet in a quadratic, which the queries carry: it is added where the loss is
computed, so a trainer that ranks its members ranks them by loss and quadratic together. Three examples:
- weights that are binary in the end: `Backprop` and `prox.Binary()`;
- a sparse policy: `OpenES` and `prox.Cardinality(share=0.1)`;
- a regression with an l1 penalty: `Backprop` and `prox.L1(0.1)`.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Bool, Key, PyTree

from nondiff.core import calls
from nondiff.core.checks import check_count, check_positive
from nondiff.core.exact import exactly, is_exact, namespace
from nondiff.core.problem import Params
from nondiff.core.prox import AbstractProx
from nondiff.core.query import Evaluation, Quadratic, Query, answers, check_always_due, map_queries, queries
from nondiff.core.trainer import AbstractTrainer, Metrics, check_trainers
from nondiff.core.tree import is_none, is_traced, map_named
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

ENDINGS = (
    "converged: residuals and gradient are within their tolerances",
    "diverging: the primal residual does not fall while the multipliers grow; the inner trainer cannot go where the "
    "constraint is, or `rho` is far too small",
    "the operator `prox` gave values that are not finite; the last good ones were kept",
    "the inner trainer has come to its end before the residuals were within their tolerances",
)


class _State(eqx.Module):
    inner: Any
    x: Params
    """At the last iteration; as `z` and `u` with `None` for leaves without a constraint."""
    z: Params
    u: Params
    domain: PyTree
    now: Progress


class ADMM(AbstractTrainer[_State]):
    """`inner` minimises the loss `f(x)`, and its parameters are led to where a constraint or penalty `g` wants them.

    Every step the inner trainer minimises `f(x) + rho/2 |x - z + u|^2`. Every `every` steps one iteration of ADMM
    follows: `z = prox(x + u)`, `u = u + x - z`. `params` is `z` on the leaves that `prox` is about, so a constraint
    holds exactly, whenever training stops; on the others it is `x`.

    **Arguments:**

    - `inner`: any trainer, a combinator too.
    - `prox`: what `g` is, an operator of `nondiff.prox`: `Box`, `L1`, `Binary`, ..., `Parts` for some leaves alone.
    - `rho`: the weight of the quadratic, above 0: a number, or a policy, `BalancedRho(1.0)` for convex problems,
      `GrowingRho(1e-3)` for sets such as `Binary`. No default: its unit is the loss's per squared unit of `x`.
    - `every`: steps of the inner trainer from one iteration to the next (default 10): for data in batches an epoch.
    - `relaxation`: above 0 and below 2 (default 1, none). From 1.5 to 1.8 is often faster for convex problems.
    - `warmup`: steps of training without the quadratic, at first (default 0): what a set that is not convex offers is
      best compared near a good point.
    - `absolute`, `relative`: the tolerances (default 1e-4 and 1e-3). It has converged where both residuals are below
      them (section 3.3 of the paper), and `x` is at rest, too: an inner trainer that has only begun has small
      residuals. With data in batches it hardly ever is, and the number of steps is what ends the run.
    - `bound`: multipliers `rho u` are kept within it (default 1e6), since those of a constraint that cannot be met grow
      for ever (safeguarding; Andreani, Birgin, Martinez & Schuverdt, 2008, https://doi.org/10.1137/060654797).
    - `patience`: iterations without a lower primal residual, while the multipliers grow as fast as it makes them or are
      at the bound, after which it has diverged (default 100): `x` cannot go where the constraint is, or hardly does,
      for `rho` is far too small.

    `Result.reason` says whether it converged or diverged, and metrics have the numbers: `admm/rho`, `admm/primal`,
    `admm/dual`, their tolerances, and the `iterations`. An inner trainer that has come to its own end goes
    on, since its problem changes whenever `z` does, until it moves no more. One that keeps losses, such as `Best`,
    belongs nowhere in here. Bounds of the
    domain hold for `x`: give them to `prox` as well (`Box`) where they matter for `z`. For a trainer of steps,
    `Backprop(optax.sgd(rate))`, the quadratic asks for a rate below `2 / (L + rho)`. Memory: three more of each
    constrained leaf.

    **Raises** `ValueError` for numbers out of range and, when training starts, for an operator that is about no leaf,
    about a leaf that is not real, or changes a leaf's shape or type; `RuntimeError` or `ValueError` if it gives values
    that are not finite.

    >>> import jax, jax.numpy as jnp, nondiff, optax
    >>> problem = nondiff.BlackBox(lambda x: jnp.sum((x - jnp.array([3.0, 0.3])) ** 2), jnp.zeros(2))
    >>> trainer = ADMM(nondiff.Backprop(optax.sgd(0.3)), nondiff.prox.Box(-1.0, 1.0), rho=1.0)
    >>> result = nondiff.fit(problem, trainer, steps=1_000, key=jax.random.key(0))
    >>> [round(float(x), 2) for x in result.params], result.reason
    ([1.0, 0.3], 'converged: residuals and gradient are within their tolerances')
    """

    inner: AbstractTrainer
    prox: AbstractProx
    rho: AbstractRho = eqx.field(kw_only=True, converter=policy)
    every: int = eqx.field(kw_only=True, static=True, default=10)
    relaxation: float | int = eqx.field(kw_only=True, static=True, default=1.0)
    warmup: int = eqx.field(kw_only=True, static=True, default=0)
    absolute: float | int = eqx.field(kw_only=True, static=True, default=1e-4)
    relative: float | int = eqx.field(kw_only=True, static=True, default=1e-3)
    bound: float | int = eqx.field(kw_only=True, static=True, default=1e6)
    patience: int = eqx.field(kw_only=True, static=True, default=100)

    def __check_init__(self) -> None:
        check_trainers("ADMM", self.inner)
        if not isinstance(self.prox, AbstractProx):
            raise ValueError(
                f"`ADMM(prox={self.prox!r})`: expected an operator, for example `nondiff.prox.Box(-1.0, 1.0)`; "
                "`nondiff.prox.Custom` makes one of a function."
            )
        check_arguments(self)
        check_count("ADMM", "warmup", self.warmup, least=0)
        check_positive("ADMM", "bound", self.bound)

    @property
    def traceable(self) -> bool:
        return self.inner.traceable

    @property
    def endings(self) -> tuple[str, ...]:
        return ENDINGS

    def init(self, params: Params, domain: PyTree, *, key: Key[Array, ""]) -> _State:
        inner = self.inner.init(params, domain, key=key)
        params = self.inner.params(inner)
        x = self._constrained(params)
        # On the host 64 bits, where the parameters have them.
        array = np.array if is_exact(params) else jnp.asarray
        now = Progress.of(self.rho, array)
        z, finite = _first(self.prox, x, now.rho)
        words = f"`ADMM(prox)`: `{type(self.prox).__name__}` gave values that are not finite for the starting point."
        if is_traced(finite):
            z = eqx.error_if(z, ~finite, words)
        elif not finite:
            raise ValueError(words)
        return _State(inner, x, z, jtu.tree_map(lambda a: namespace(a).zeros_like(a), x), domain, now)

    def _constrained(self, params: Params) -> Params:
        """The leaves that the operator is about."""

        def one(name: str, x: Any, mine: Any) -> Any:
            if x is None or not mine:
                return None
            if not jnp.issubdtype(x.dtype, jnp.floating):
                raise ValueError(
                    f"`ADMM` cannot move `{name}` ({x.dtype}): its quadratic is one of real numbers. Leave that leaf "
                    "out, `nondiff.prox.Parts({...: None}, labels)`."
                )
            return x

        chosen = map_named(one, params, self.prox.constrained(params), is_leaf=is_none)
        if not jtu.tree_leaves(chosen):
            raise ValueError(f"`ADMM(prox)`: `{type(self.prox).__name__}` is about none of the parameters.")
        return chosen

    def ask(self, state: _State, *, key: Key[Array, ""]) -> PyTree[Query]:
        now = state.now
        rho = namespace(now.rho).where(now.step < self.warmup, 0 * now.rho, now.rho)
        quadratic = Quadratic(jtu.tree_map(lambda z, u: z - u, state.z, state.u), rho)

        def led(query: Query) -> Query:
            check_always_due("ADMM", query)
            return dataclasses.replace(query, quadratic=(*query.quadratic, quadratic))

        return map_queries(led, self.inner.ask(state.inner, key=key))

    def tell(
        self, state: _State, query: PyTree[Query], answer: PyTree[Evaluation], *, key: Key[Array, ""]
    ) -> tuple[_State, Metrics]:
        inner, metrics = self.inner.tell(state.inner, query, answer, key=key)
        params = self.inner.params(inner)
        asked = zip(queries(query), answers(answer), strict=True)
        gradients = [a.gradient for q, a in asked if q.wants.mean_gradient]
        now = state.now.stepped()
        kept = state.x, state.z, state.u, now

        def iterate() -> tuple[Params, Params, Params, Progress]:
            slope = [projected(gradient, params, state.domain) for gradient in gradients]
            mine = jtu.tree_map(lambda z, x: None if z is None else x, state.z, params, is_leaf=is_none)
            free, ended = now.step <= self.warmup, jnp.asarray(self.inner.ended(inner) != 0)
            limits = Limits.of(self)
            return _iterate(self.prox, self.rho, self.relaxation, self.bound, limits, kept, mine, slope, free, ended)

        x, z, u, now = calls.either(self, now.step % self.every == 0, iterate, lambda: kept)
        own = now.shown()
        state = _State(inner, x, z, u, state.domain, now)
        return state, {**metrics, "admm": own | ({"inner": metrics["admm"]} if "admm" in metrics else {})}

    def params(self, state: _State) -> Params:
        def one(z: Any, x: Any) -> Any:
            # A step that led to numbers that are not finite must not be hidden by a good `z`.
            return x if z is None else namespace(x).where(namespace(x).isfinite(x), z, x)

        return jtu.tree_map(one, state.z, self.inner.params(state.inner), is_leaf=is_none)

    def ended(self, state: _State) -> Any:
        return state.now.done


def _finite(tree: PyTree) -> Bool[Array, ""]:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jtu.tree_leaves(tree)]))


@exactly
def _first(prox: AbstractProx, x: Params, rho: Array) -> tuple[Params, Bool[Array, ""]]:
    z = prox.tree(x, rho)
    return z, _finite(z)


@exactly
def _iterate(
    prox: AbstractProx,
    policy: AbstractRho,
    alpha: float | int,
    bound: float | int,
    limits: Limits,
    before: tuple[Params, Params, Params, Progress],
    x: Params,
    slope: list[Params],
    free: Bool[Array | np.ndarray, ""],
    inner_ended: Bool[Array, ""],
) -> tuple[Params, Params, Params, Progress]:
    """After an iteration: `x`, `z`, `u`, and how far it is. While it is `free`, `z` follows `x`, and `u` stays 0."""
    old_x, old_z, old_u, now = before
    # section 3.4.3
    relaxed = jtu.tree_map(lambda x, z: jnp.where(free, x, alpha * x + (1 - alpha) * z), x, old_z)
    v = jtu.tree_map(jnp.add, relaxed, old_u)
    # the scaled form, eq. 3.6
    z = prox.tree(v, now.rho)
    ok = _finite(z)
    z = jtu.tree_map(lambda new, old: jnp.where(ok, new, old), z, old_z)
    # eq. 3.7; safeguarded
    widest = bound / now.rho

    def dual(v: Any, z: Any, old: Any) -> Any:
        new = jnp.clip(v - z, -widest.astype(v.dtype), widest.astype(v.dtype))
        return jnp.where(ok & ~free, new, old)

    u, like = jtu.tree_map(dual, v, z, old_u), now.rho
    moved = distance(x, old_x, like)
    norms = Norms(
        primal=distance(x, z, like),
        dual=now.rho * distance(z, old_z, like),
        x=norm(x, like),
        z=norm(z, like),
        force=now.rho * norm(u, like),
        unrest=jnp.maximum(norm(slope, like), now.rho * moved),
    )
    at_bound = jnp.any(jnp.stack([jnp.any(jnp.abs(leaf) * now.rho >= 0.999 * bound) for leaf in jtu.tree_leaves(u)]))
    size = sum(leaf.size for leaf in jtu.tree_leaves(x))
    found, converged, diverging = judged(now, limits, norms, size, at_bound=at_bound)
    stuck = inner_ended & (moved <= jnp.maximum(1e-6 * norms.primal, jnp.finfo(like.dtype).eps ** 0.5 * norms.x))
    done = jnp.select([~ok, converged, diverging, stuck], [3, 1, 2, 4], 0).astype(now.done.dtype)
    rho = jnp.where(free, now.rho, next_rho(policy, found))
    warm = now._replace(primal=found.primal, dual=found.dual, done=jnp.where(ok, now.done, done))
    found = jtu.tree_map(lambda a, b: jnp.where(free, a, b), warm, found._replace(rho=rho, done=done))
    return x, z, rescaled(u, now.rho, rho), found
