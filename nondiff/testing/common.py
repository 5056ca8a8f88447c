"""What the checks share: two problems with known minima, and comparisons that name the leaf."""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.monitoring
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Key, PyTree

from nondiff.core import words
from nondiff.core.domain import Integer, Real
from nondiff.core.problem import AbstractProblem
from nondiff.core.step import TrainState, compiled_step, step
from nondiff.core.tree import is_key


class Parabola(AbstractProblem):
    """`sum |x - target|^2` over a vector and a matrix; fails where told to."""

    noise: float = 0.0
    fail: Callable[[Key[Array, ""], Array], Array] | None = eqx.field(static=True, default=None)
    target: Array = eqx.field(default_factory=lambda: jnp.array([0.5, -0.5]))
    traceable: ClassVar[bool] = True

    def init(self, *, key: Key[Array, ""]) -> PyTree:
        del key
        return {"a": jnp.array([1.5, -2.0]), "b": {"w": jnp.ones((2, 3))}}

    def batch(self, state: Any, *, key: Key[Array, ""]) -> Array:
        del state, key
        return self.target

    def loss(self, params: PyTree, batch: Any, *, key: Key[Array, ""]) -> tuple[Array, Array]:
        cases = jnp.concatenate([(params["a"] - batch) ** 2, ((params["b"]["w"] - batch[0]) ** 2).ravel()])
        cases = cases + self.noise * words.normal(words.words(key, cases.size))
        if self.fail is not None:
            cases = jnp.where(self.fail(key, params["a"][0]), jnp.nan, cases)
        return cases, jnp.sum(params["a"])

    def rows(self, batch: Any, number: int, of: int) -> tuple[Any, int]:
        """Pieces whose minima are apart, and together those of the whole."""
        return batch + (number - 0.5 * (of - 1)), 1

    def exact(self, params: PyTree) -> float:
        return float(jnp.mean(self.loss(params, self.target, key=jr.key(0))[0]))


class Mixed(Parabola):
    """The parabola beside an integer."""

    def init(self, *, key: Key[Array, ""]) -> PyTree:
        return {**Parabola.init(self, key=key), "n": jnp.array([0, 3])}

    def domain(self, params: PyTree) -> PyTree:
        del params
        return {"a": Real(), "b": Real(), "n": Integer(0, 9)}

    def loss(self, params: PyTree, batch: Any, *, key: Key[Array, ""]) -> tuple[Array, Array]:
        cases, aux = Parabola.loss(self, params, batch, key=key)
        return jnp.concatenate([cases, (params["n"] - 5.0) ** 2]), aux


def run_steps(problem: Any, trainer: Any, evaluator: Any, state: TrainState, steps: int) -> TrainState:
    run = compiled_step if problem.traceable and trainer.traceable and evaluator.traceable else step
    for _ in range(steps):
        state, _ = run(problem, trainer, evaluator, state, None)
    return state


class count_compilations(list):
    """`with count_compilations() as compiled:` holds one entry for each function that XLA compiled inside."""

    def __enter__(self) -> "count_compilations":
        jax.monitoring.register_event_duration_secs_listener(self._note)
        return self

    def _note(self, event: str, duration_secs: float, **more: Any) -> None:
        del more
        if event == "/jax/core/compile/backend_compile_duration":
            self.append(duration_secs)

    def __exit__(self, *error: Any) -> None:
        jax.monitoring.unregister_event_duration_listener(self._note)


def named(tree: PyTree) -> list[tuple[str, Any]]:
    return [(jtu.keystr(path), leaf) for path, leaf in jtu.tree_flatten_with_path(tree)[0]]


def same_shapes(a: PyTree, b: PyTree, message: str) -> None:
    def shapes(tree: PyTree) -> list[tuple[str, str, bool]]:
        return [
            (
                name,
                f"{jnp.asarray(x).dtype if not is_key(x) else x.dtype}{list(np.shape(x))}",
                getattr(x, "weak_type", False),
            )
            for name, x in named(tree)
            if eqx.is_array_like(x)
        ]

    before, after = shapes(a), shapes(b)
    assert before == after, f"{message}:\n  before {set(before) - set(after)}\n  after  {set(after) - set(before)}"


def equal_bits(a: PyTree, b: PyTree, message: str) -> None:
    for (name, x), (_, y) in zip(named(a), named(b), strict=True):
        if is_key(x):
            x, y = jr.key_data(x), jr.key_data(y)
        if eqx.is_array_like(x):
            np.testing.assert_array_equal(x, y, f"{message} (state{name})")
