"""What `fit` checks before anything is compiled: do problem, trainer and evaluator fit together?"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax.extend.core import jaxprs_in_params
from jaxtyping import PyTree

from nondiff.core.compiled import shapes_of
from nondiff.core.evaluator import AbstractEvaluator, about, chunks_of
from nondiff.core.problem import AbstractProblem, Batch
from nondiff.core.query import Query, member_shape, queries
from nondiff.core.step import TrainState, compiled_step, keys
from nondiff.core.trainer import AbstractTrainer
from nondiff.core.tree import is_arrayish, is_none, map_named


@dataclasses.dataclass(frozen=True)
class Plan:
    """How the steps are run."""

    compiled: bool
    """The whole step is one compiled function."""
    donate: bool
    """The step may overwrite its state. Not where it calls back into Python: an exception there would lose it."""
    metrics: PyTree
    """Shapes of a step's metrics, if it is compiled."""
    chunks: tuple[int, ...]
    """Members that exist at once, for each query; part of the experiment."""


def preflight(
    problem: AbstractProblem,
    trainer: AbstractTrainer,
    evaluator: AbstractEvaluator,
    state: TrainState,
    batch: Batch | None,
) -> Plan:
    """**Raises** `ValueError` for a problem that the evaluator cannot run, a gradient asked where there is none, a loss
    of another shape or dtype than the contract's, and a trainer whose state changes its shape.
    """
    if evaluator.traceable and not problem.traceable:
        raise ValueError(
            f"`{type(evaluator).__name__}` runs the problem under `jax.jit`, and `{type(problem).__name__}` is plain "
            "Python (`traceable` is False). Leave `evaluator` out, or use `Host()`."
        )
    ask = eqx.Partial(trainer.ask, state.trainer, key=keys(state)[1])
    question = eqx.filter_eval_shape(ask) if trainer.traceable else ask()
    asked = queries(question)
    for query in asked:
        _check_gradient(problem, trainer, evaluator, query)
    if not problem.traceable:
        return Plan(False, False, None, chunks_of(problem, evaluator, question, batch))
    like = batch
    if like is None:
        like = shapes_of(type(problem).batch, problem, state.problem, key=keys(state)[0])
    for query in asked:
        _check_loss(problem, query, like)
    chunks = chunks_of(problem, evaluator, question, like)
    if not (trainer.traceable and evaluator.traceable):
        return Plan(False, False, None, chunks)
    jaxpr, (new, metrics) = compiled_step.traced(problem, trainer, evaluator, state, batch)
    _check_stable(f"{type(trainer).__name__}.tell", state.trainer, new.trainer)
    _check_stable(f"{type(problem).__name__}.absorb", state.problem, new.problem)
    return Plan(True, not any("callback" in primitive for primitive in _primitives(jaxpr.jaxpr)), metrics, chunks)


def _check_gradient(problem: Any, trainer: Any, evaluator: Any, query: Query) -> None:
    if not (query.wants.gradient or query.wants.mean_gradient):
        return
    member = member_shape(query)
    possible = problem.differentiable(eqx.combine(member, query.others))
    missing = []

    def one(name: str, leaf: Any, possible: Any) -> None:
        if leaf is not None and jnp.issubdtype(leaf.dtype, jnp.inexact) and not (possible and evaluator.gradients):
            missing.append(name)

    map_named(one, member, possible, is_leaf=is_none)
    if missing:
        raise ValueError(
            f"`{type(trainer).__name__}` asks for the gradient of {', '.join(missing)}, and `{type(problem).__name__}` "
            f"has none there{_why(problem)}. Give these leaves to a trainer that searches (`OpenES`, `Genetic`; beside "
            "others with `Split`), or cross the part without a derivative with an estimator (`through(..., "
            "via=MarginalLikelihood())`)."
        )


def _why(problem: AbstractProblem) -> str:
    return "" if problem.traceable else " (it is plain Python; for a `BlackBox` written in JAX say `traceable=True`)"


def _check_loss(problem: AbstractProblem, query: Query, batch: Batch) -> None:
    member = eqx.combine(member_shape(query), query.others)

    def loss(problem: AbstractProblem, member: PyTree, batch: Batch, key: Any) -> Any:
        out = problem.loss(member, about(problem, query, batch)[0], key=key)
        return jtu.tree_map(lambda x: jnp.asarray(x) if eqx.is_array_like(x) else x, out)  # a plain number will do

    out = shapes_of(loss, problem, member, batch, jax.random.key(0))
    name = type(problem).__name__
    if not (isinstance(out, tuple) and len(out) == 2 and hasattr(out[0], "shape")):
        raise ValueError(f"`{name}.loss` returned {jtu.tree_structure(out)}; expected `(loss, aux)`.")
    value = out[0]
    if value.ndim > 1 or not jnp.issubdtype(value.dtype, jnp.floating) or 0 in value.shape:
        raise ValueError(
            f"`{name}.loss` returned {value.dtype}{list(value.shape)}; expected one float, `[]`, or one per case, "
            "`[cases]`. Average over other axes, or convert with `.astype(float)`."
        )
    if query.wants.cases and value.ndim == 0:
        raise ValueError(
            f"the trainer asks for a loss per case, and `{name}.loss` returns one number; return `[cases]`."
        )


def _primitives(jaxpr: Any) -> Iterator[str]:
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for inner in jaxprs_in_params(equation.params):
            yield from _primitives(inner)


def _check_stable(who: str, old: PyTree, new: PyTree) -> None:
    before, after = _shapes(old), _shapes(new)
    names = {**before, **after}
    changed = [f"  {k}: {before.get(k)} -> {after.get(k)}" for k in names if before.get(k) != after.get(k)]
    if changed:
        raise ValueError(
            f"`{who}` changes the shape of its state, so every step would compile anew:\n"
            + "\n".join(changed)
            + "\nReturn a state of the same structure, shapes and dtypes as the first one."
        )


def _shapes(state: PyTree) -> dict[str, str]:
    leaves = jtu.tree_flatten_with_path(eqx.filter(state, is_arrayish))[0]
    return {f"state{jtu.keystr(path)}": f"{x.dtype}{list(x.shape)}" for path, x in leaves}
