"""One training step: draw a batch, ask, evaluate, tell.

As data: `k_batch, k_ask, k_tell = split(fold_in(root, step), 3)` -> `batch` -> `ask` -> the evaluator answers all
queries -> `tell` -> metrics. The root key is never consumed, so step 731 can be computed again alone. `init` and `step`
are pure: jit them, scan them, map them over seeds.
"""

import dataclasses
import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Int, Key, PyTree

from nondiff.core import keys as host
from nondiff.core import words
from nondiff.core.compiled import STEPS, compiled
from nondiff.core.domain import check_inside, complete
from nondiff.core.evaluator import AbstractEvaluator
from nondiff.core.exact import exactly
from nondiff.core.problem import AbstractProblem, Batch
from nondiff.core.query import Evaluation, Query, Rows, answered, answers, is_query
from nondiff.core.record import record
from nondiff.core.trainer import AbstractTrainer, Metrics
from nondiff.core.tree import barrier, fresh, is_traced, map_named, select
from nondiff.core.turns import due_sets, dues


@record
class TrainState:
    """All that a bit-identical resume needs."""

    step: Int[Array, ""]
    key: Key[Array, ""]
    """The root key; only ever folded with `step`."""
    trainer: Any
    problem: Any


def init(problem: AbstractProblem, trainer: AbstractTrainer, *, key: Key[Array, ""]) -> TrainState:
    """The state before the first step.

    **Raises** `ValueError` if the problem's parameters are not all arrays, a domain does not fit, or the trainer
    cannot move a leaf.
    """
    k_params, k_trainer, k_problem, k_root = host.split(key, 4)
    params = map_named(_array, problem.init(key=k_params))
    if problem.traceable:
        params = jtu.tree_map(jnp.asarray, params)
    domain = complete(problem.domain(params), params)
    check_inside(params, domain)
    # Compiled as one: many small operations, one by one, are slow.
    start = _started if trainer.traceable else _start
    state = start(trainer, params, domain, k_trainer)
    state = TrainState(jax.device_put(np.int32(0)), k_root, state, problem.init_state(key=k_problem))
    return own(problem, trainer, state)


def own(problem: AbstractProblem, trainer: AbstractTrainer, state: TrainState) -> TrainState:
    """A copy that may be donated; NumPy's arrays stay such where Python is what reads them."""
    hosts = {"trainer": not trainer.traceable, "problem": not problem.traceable}
    parts = {name: fresh(getattr(state, name), host=host) for name, host in hosts.items()}
    return TrainState(fresh(state.step), fresh(state.key), **parts)


def _start(trainer: AbstractTrainer, params: Any, domain: PyTree, key: Key[Array, ""]) -> Any:
    return trainer.init(params, domain, key=key)


_started = compiled(_start, kept=STEPS)


def _array(name: str, leaf: Any) -> Array | np.ndarray:
    if not eqx.is_array_like(leaf):
        raise ValueError(
            f"`{name}` is {leaf!r}, not an array. `Problem.init` returns the trained leaves and nothing else: "
            "for a model that is a module, `equinox.filter(model, equinox.is_inexact_array)`."
        )
    return leaf if isinstance(leaf, np.ndarray) else jnp.asarray(leaf)


def keys(state: TrainState) -> tuple[Key[Array, ""], Key[Array, ""], Key[Array, ""]]:
    """The keys of this step: for the batch, for `ask`, for `tell`."""
    if is_traced(state.step) or not host.is_known(state.key):
        return _keys(state.key, state.step)
    k_batch, k_ask, k_tell = host.of_step(state.key, int(state.step), 3)
    return k_batch, k_ask, k_tell


@jax.jit
def _keys(key: Key[Array, ""], step: Int[Array, ""]) -> tuple[Key[Array, ""], Key[Array, ""], Key[Array, ""]]:
    k_batch, k_ask, k_tell = words.split(words.fold_in(key, step), 3)
    return k_batch, k_ask, k_tell


def step(
    problem: AbstractProblem,
    trainer: AbstractTrainer,
    evaluator: AbstractEvaluator,
    state: TrainState,
    batch: Batch | None = None,
) -> tuple[TrainState, Metrics]:
    """One step. `batch` is given when it comes from outside.

    The metrics are the trainer's own and, over all evaluations of the step, `loss` (their mean), `best`, `failed`,
    `evaluations` and `lost`: whether every evaluation of some query failed, or the step led to parameters that are not
    finite. Then the state stays, and only `step` moves on. Of queries about pieces of the batch it is enough that those
    about one piece did not fail: their trainer goes on without the others.
    """
    # Three seams, the same bits on both sides: XLA must not fuse across the lines where a far evaluator is cut off.
    seam, jit = (barrier, _same) if _all_traceable(problem, trainer, evaluator) else (_same, _COMPILED.__getitem__)
    ask, tell = (jit(_ask), jit(_tell)) if trainer.traceable else (_ask, _tell)
    draw, absorb = (jit(_draw), jit(_absorb)) if problem.traceable else (_draw, _absorb)
    k_batch, k_ask, k_tell = keys(state)
    if batch is None:
        batch = draw(problem, state.problem, k_batch)
    query, batch = seam((ask(trainer, state.trainer, k_ask), batch))
    evaluate = jit(_evaluate) if evaluator.traceable else _evaluate
    answer = seam(evaluate(evaluator, problem, query, batch))
    new, metrics = tell(trainer, state.trainer, query, answer, k_tell)
    # A far evaluator leaves out what is not due; a compiled one cannot, and says NaN.
    when = dues(query) if evaluator.traceable else []
    remembered = absorb(problem, state.problem, batch, answer, when, metrics["lost"])
    return TrainState(_after(state.step), state.key, new, remembered), metrics


compiled_step = compiled(step, kept=STEPS)
"""Traced once for a run: by `preflight`, before it begins."""


def _after(step: Int[Array, ""]) -> Int[Array, ""]:
    return step + 1 if is_traced(step) else _numbers((int(step) + 1) // 64)[(int(step) + 1) % 64]


@functools.lru_cache(maxsize=4)
def _numbers(block: int) -> list[Array]:
    """Those of 64 steps. So nothing is compiled, and of them all at once each takes little time."""
    return jax.device_put([np.int32(i) for i in range(64 * block, 64 * (block + 1))])


def _same(x: Any) -> Any:
    return x


def _all_traceable(*parts: Any) -> bool:
    return all(part.traceable for part in parts)


# `type(x).method(x, ...)`: equinox makes a module of every bound method, which takes longer than a small step.


def _draw(problem: AbstractProblem, state: Any, key: Key[Array, ""]) -> Batch:
    return type(problem).batch(problem, state, key=key)


def _absorb(problem: AbstractProblem, state: Any, batch: Batch, answer: PyTree, when: list[Any], lost: Any) -> Any:
    every = [a.aux for a in answers(answer)]

    def absorbed(aux: list[PyTree]) -> Any:
        if not aux:
            return state
        aux = jtu.tree_map(lambda *xs: jnp.concatenate([jnp.asarray(x) for x in xs]), *aux)
        return type(problem).absorb(problem, state, aux, batch)

    if all(due is None for due in when) or not jtu.tree_leaves(every):
        return _unless(lost, absorbed(every), state)
    sets, now = due_sets(when)
    new = jax.lax.switch(now, [functools.partial(absorbed, [every[i] for i in places]) for places in sets])
    return _unless(lost, new, state)


def _unless(lost: Any, new: Any, old: Any) -> Any:
    if is_traced(lost):
        return select(lost, old, new)
    return old if bool(lost) else new


def _is_float(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jnp.inexact)


def _evaluate(evaluator: AbstractEvaluator, problem: AbstractProblem, query: PyTree, batch: Batch) -> PyTree:
    asked, treedef = jtu.tree_flatten(query, is_leaf=is_query)
    if all(q.due is None for q in asked):
        return type(evaluator).evaluate(evaluator, problem, query, batch)
    bare = [dataclasses.replace(q, due=None) for q in asked]
    if not evaluator.traceable:
        due = [q.due is None or bool(q.due) for q in asked]
        found = iter(evaluator.evaluate(problem, [q for q, now in zip(bare, due, strict=True) if now], batch))
        return treedef.unflatten([next(found) if now else None for now in due])

    def one(query: Query, due: Any) -> Evaluation:
        def ask() -> Evaluation:
            return evaluator.evaluate(problem, query, batch)

        return ask() if due is None else jax.lax.cond(due, ask, lambda: _nothing(eqx.filter_eval_shape(ask)))

    return treedef.unflatten([one(q, was.due) for q, was in zip(bare, asked, strict=True)])


def _nothing(like: Evaluation) -> Evaluation:
    """In the place of an answer of this shape."""
    zeros = jtu.tree_map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    return dataclasses.replace(zeros, loss=jnp.full_like(zeros.loss, jnp.nan))


def _ask(trainer: AbstractTrainer, state: Any, key: Key[Array, ""]) -> PyTree:
    return type(trainer).ask(trainer, state, key=key)


def _tell(
    trainer: AbstractTrainer, state: Any, query: PyTree, answer: PyTree, key: Key[Array, ""]
) -> tuple[Any, Metrics]:
    new, own = type(trainer).tell(trainer, state, query, answer, key=key)
    pairs = answered(query, answer)
    losses, rows, dues = [a.loss for _, a in pairs], [q.rows for q, _ in pairs], [q.due for q, _ in pairs]
    moved = [x for x in jtu.tree_leaves(type(trainer).params(trainer, new)) if _is_float(x)]
    on_host = all(isinstance(x, np.ndarray) for x in [*losses, *moved])
    metrics = (functools.partial(_measured, np) if on_host else _measured_by_jax)(rows, losses, moved, dues)
    return _unless(metrics["lost"], new, state), {**own, **metrics}


def _measured(here: Any, rows: list[Rows | None], losses: list[Any], moved: list[Any], dues: list[Any]) -> Metrics:
    """`here` is NumPy or JAX's; `rows` say which piece of the batch each of the losses is about, `dues` whether it was
    asked for."""
    ok = [here.isfinite(x) for x in losses]
    every, all_ok = here.concatenate(losses), here.concatenate(ok)
    count = here.sum(all_ok)
    asked = [here.asarray(True if due is None else due) for due in dues]
    made = sum(x.size * due.astype(count.dtype) for x, due in zip(losses, asked, strict=True))
    nothing = [due & ~here.any(x) for x, due in zip(ok, asked, strict=True)]
    failed = {piece: [no for r, no in zip(rows, nothing, strict=True) if r == piece] for piece in rows}
    lost = failed.pop(None, [])
    if failed:  # of every piece
        lost = [*lost, here.all(here.stack([here.any(here.stack(each)) for each in failed.values()]))]
    lost = [*lost, *[~here.all(here.isfinite(x)) for x in moved]]
    return {
        "loss": here.where(count > 0, here.sum(every, where=all_ok) / here.maximum(count, 1), here.nan),
        "best": here.min(every, where=all_ok, initial=here.inf),
        "failed": made - count,
        "lost": here.any(here.stack(lost)),
        "evaluations": here.asarray(made),
    }


_measured_by_jax = exactly(functools.partial(_measured, jnp))


_COMPILED = {fn: compiled(fn, kept=STEPS) for fn in (_draw, _ask, _evaluate, _tell, _absorb)}
