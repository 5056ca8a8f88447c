"""The contract of a trainer, as a test."""

from typing import Any

import jax
import jax.monitoring
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Key, PyTree

from nondiff.core import words
from nondiff.core.problem import AbstractProblem
from nondiff.core.query import queries
from nondiff.core.step import TrainState, compiled_step, init
from nondiff.core.trainer import AbstractTrainer
from nondiff.evaluators import Host, Vmap
from nondiff.testing.common import Mixed, Parabola, count_compilations, equal_bits, run_steps, same_shapes
from nondiff.trainers import Genetic, Split


def check_trainer(
    trainer: AbstractTrainer, *, problem: AbstractProblem | None = None, steps: int = 200, moving: bool = True
) -> None:
    """Does a trainer keep the contract?

    - the state keeps its structure, shapes, dtypes and strong types, and `params` is shaped like the start;
    - a second step compiles nothing;
    - it learns: on a parabola (default), the loss of `params` falls below a tenth within `steps`;
    - the same key gives the same bits, and a run cut in two and resumed equals the whole one;
    - it maps over keys, `jax.vmap(step)`;
    - evaluations that fail leave the parameters finite, and where all fail they do not move;
    - it leaves alone what is not its own: inside `Split`, beside an integer leaf of another trainer;
    - it follows an optimum that moves.

    **Arguments:**

    - `problem`: what to learn, instead of the parabola over a vector and a matrix.
    - `steps`: how many it may take (default 200).
    - `moving`: may the optimum move (default)? False for a trainer that is only for a loss that never changes.

    >>> import nondiff, optax
    >>> check_trainer(nondiff.Backprop(optax.adam(0.1)))
    """
    usual = problem is None
    # One problem all along, so that few steps are compiled: none of its evaluations fails, until some are to.
    problem = _Failing(Parabola(), jnp.float32(0.0)) if problem is None else problem
    evaluator = Vmap() if problem.traceable else Host()
    state = init(problem, trainer, key=jr.key(0))
    _check_state(problem, trainer, evaluator, state)
    _check_compiles_once(problem, trainer, evaluator, state)
    whole = run_steps(problem, trainer, evaluator, state, 6)
    half = run_steps(problem, trainer, evaluator, run_steps(problem, trainer, evaluator, state, 2), 4)
    equal_bits(whole, half, "2 + 4 steps differ from 6 steps: `tell` or `ask` depends on more than state and key")
    again = run_steps(problem, trainer, evaluator, init(problem, trainer, key=jr.key(0)), 6)
    equal_bits(whole, again, "the same key gave other bits")
    if problem.traceable and trainer.traceable:
        _check_vmap(problem, trainer, evaluator)
    _check_failures(problem, trainer, evaluator, state)
    if usual:
        _check_learns(trainer, steps, moving)
        _check_split(trainer)


def _check_state(problem: Any, trainer: Any, evaluator: Any, state: TrainState) -> None:
    after = run_steps(problem, trainer, evaluator, state, 1)
    same_shapes(state.trainer, after.trainer, "`tell` changes the shape of the state")
    start = problem.init(key=jr.key(0))
    same_shapes(start, trainer.params(after.trainer), "`params` is not shaped like the problem's parameters")
    query = trainer.ask(state.trainer, key=jr.key(1))
    assert queries(query), "`ask` asks nothing"
    sizes = [len(q) for q in queries(query)]
    later = trainer.ask(after.trainer, key=jr.key(2))
    assert [len(q) for q in queries(later)] == sizes, "the population's size changes from step to step"


def _check_compiles_once(problem: Any, trainer: Any, evaluator: Any, state: TrainState) -> None:
    state = run_steps(problem, trainer, evaluator, state, 1)
    with count_compilations() as compiled:
        run_steps(problem, trainer, evaluator, state, 1)
    assert not compiled, f"the second step compiles {len(compiled)} functions anew"


def _check_vmap(problem: Any, trainer: Any, evaluator: Any) -> None:
    keys = jr.split(jr.key(5), 8)
    states = jax.vmap(lambda k: init(problem, trainer, key=k))(keys)
    together = jax.vmap(lambda s: compiled_step(problem, trainer, evaluator, s, None)[0])(states)
    for i, key in enumerate(keys):
        alone = run_steps(problem, trainer, evaluator, init(problem, trainer, key=key), 1)
        got = trainer.params(jtu.tree_map(lambda x: x[i], together).trainer)
        for a, b in zip(jtu.tree_leaves(got), jtu.tree_leaves(trainer.params(alone.trainer)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg="`vmap(step)` differs from single steps")


class _Failing(AbstractProblem):
    """Another problem, some of whose evaluations fail: a share of the keys."""

    inner: AbstractProblem
    share: Array

    @property
    def traceable(self) -> bool:
        return self.inner.traceable

    def init(self, *, key: Key[Array, ""]) -> PyTree:
        return self.inner.init(key=key)

    def init_state(self, *, key: Key[Array, ""]) -> Any:
        return self.inner.init_state(key=key)

    def batch(self, state: Any, *, key: Key[Array, ""]) -> Any:
        return self.inner.batch(state, key=key)  # as it is, for a trainer that looks into it

    def loss(self, params: PyTree, batch: Any, *, key: Key[Array, ""]) -> tuple[Any, Any]:
        loss, aux = self.inner.loss(params, batch, key=key)
        # Failure depends on the point, so that members that share a key fail one by one.
        first = jnp.asarray(jtu.tree_leaves(params)[0]).ravel()[0].astype(jnp.float32)
        own = words.fold_in(key, jax.lax.bitcast_convert_type(first, jnp.uint32))
        dice = words.uniform(words.words(own, 1))[0]
        return jnp.where(dice < self.share, jnp.nan, loss), aux

    def losses(self, members: PyTree, batch: Any, *, keys: Any) -> tuple[Any, Any]:
        outs = [self.loss(jtu.tree_map(lambda x: x[i], members), batch, key=k) for i, k in enumerate(keys)]
        return jtu.tree_map(lambda *xs: np.stack([np.asarray(x) for x in xs]), *outs)

    def rows(self, batch: Any, number: int, of: int) -> Any:
        return self.inner.rows(batch, number, of)

    def absorb(self, state: Any, aux: Any, batch: Any) -> Any:
        return self.inner.absorb(state, aux, batch)

    def domain(self, params: PyTree) -> PyTree:
        return self.inner.domain(params)

    def differentiable(self, params: PyTree) -> PyTree:
        return self.inner.differentiable(params)


def _check_failures(problem: Any, trainer: Any, evaluator: Any, state: TrainState) -> None:
    inner = problem.inner if isinstance(problem, _Failing) else problem
    some = _Failing(inner, jnp.float32(0.3))
    params = trainer.params(run_steps(some, trainer, evaluator, state, 5).trainer)
    finite = [bool(jnp.all(jnp.isfinite(x))) for x in jtu.tree_leaves(params)]
    assert all(finite), "some evaluations failed, and the parameters are not finite any more"
    every = _Failing(inner, jnp.float32(2.0))
    after = run_steps(every, trainer, evaluator, state, 2)
    equal_bits(state.trainer, after.trainer, "every evaluation failed, and the state moved")


def _check_learns(trainer: AbstractTrainer, steps: int, moving: bool) -> None:
    def after(state: TrainState, parabola: Parabola) -> tuple[TrainState, float]:
        moved = run_steps(_Failing(parabola, jnp.float32(0.0)), trainer, Vmap(), state, steps)
        return moved, parabola.exact(trainer.params(moved.trainer))

    parabola = Parabola()
    begin = init(parabola, trainer, key=jr.key(0))
    first = parabola.exact(trainer.params(begin.trainer))
    state, last = after(begin, parabola)
    assert last < 0.1 * first, f"{steps} steps on a parabola took the loss from {first:.3g} to {last:.3g} only"
    if not moving:
        return
    moved = Parabola(target=jnp.array([-1.5, 1.0]))
    before = moved.exact(trainer.params(state.trainer))
    _, last = after(state, moved)
    assert last < 0.5 * before, (
        f"the optimum moved, and {steps} steps took the loss from {before:.3g} to {last:.3g} only: does the trainer "
        "compare with losses of earlier steps? Evaluate parents again."
    )


def _check_split(trainer: AbstractTrainer) -> None:
    """Beside a foreign integer leaf: `None` stands where a leaf is not mine."""
    problem = Mixed()
    both = Split({"mine": trainer, "theirs": Genetic(population=4)}, {"a": "mine", "b": "mine", "n": "theirs"})
    state = init(problem, both, key=jr.key(0))
    own = trainer.params(state.trainer["mine"])
    assert own["n"] is None, "`params` must keep `None` where a leaf is not mine"
    after = run_steps(problem, both, Vmap(), state, 3)
    same_shapes(state.trainer, after.trainer, "inside `Split` the state changes its shape")
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in jtu.tree_leaves(both.params(after.trainer)))
