"""Blackbox differentiation (Vlastelica, Paulus, Musil, Martius & Rolinek, 2020, "Differentiation of Blackbox
Combinatorial Solvers", https://arxiv.org/abs/1912.02175): the solver is asked once more, for costs that the loss has
moved, and the difference of its two answers is the gradient.
"""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from nondiff.core.checks import check_positive
from nondiff.core.estimator import AbstractEstimator, Decide, Heuristic, Rest, slope_of


class Blackbox(AbstractEstimator):
    """The gradient of the paper's piecewise linear interpolation of the loss, for a combinatorial solver as `decide`.

    **Arguments:**

    - `strength`: `lambda`, how far the costs are moved along the loss's slope (default 20, the paper's for shortest
      paths). Larger: smoother, and further from the loss.
    - `maximize`: does `decide` take what is largest, as `one_hot` and `TopK` do? Default: it takes the decision that
      minimises `sum(costs * decision)`, as a shortest path does.

    `decide` takes costs `[cases, ...]` and returns the decision in numbers of the same shape (a mask of edges); a
    solver in Python stands behind `Opaque`. `rest` has a derivative in the decision. One more call of the solver per
    case, one more evaluation of `rest`. A heuristic: the interpolation equals the loss at the costs it is made for.

    **Raises** `ValueError` for a strength that is not positive, and for decisions that are whole numbers or of another
    shape.

    >>> import jax, nondiff
    >>> rest = lambda path: jnp.sum(jnp.abs(path - jnp.array([0.0, 0.0, 1.0])), -1)  # the third edge would be right
    >>> def cheapest(costs): return nondiff.one_hot(-costs)
    >>> loss = lambda costs: nondiff.through(rest, costs, via=Blackbox(), key=jax.random.key(0), decide=cheapest)[0]
    >>> jax.grad(loss)(jnp.array([[1.0, 2.0, 3.0]]))  # the first should cost more, the third less
    Array([[-0.05,  0.  ,  0.05]], dtype=float32)
    """

    strength: float | int = eqx.field(static=True, default=20.0)
    maximize: bool = eqx.field(static=True, default=False, kw_only=True)
    objective: ClassVar[Heuristic] = Heuristic()  # pyright: ignore[reportIncompatibleVariableOverride]
    unbiased: ClassVar[bool] = False

    def __check_init__(self) -> None:
        check_positive("Blackbox", "strength", self.strength)

    def surrogate(
        self, rest: Rest, logits: Array, decision: Array, *, decide: Decide, key: Key[Array, ""]
    ) -> Float[Array, " cases"]:
        del key
        costs = jax.lax.stop_gradient(logits)
        sign = -1 if self.maximize else 1
        slope = slope_of(rest, decision)
        if slope.shape != costs.shape:
            raise ValueError(
                f"`{self!r}`: the decision has shape {list(slope.shape)} and the costs {list(costs.shape)}; expected "
                "one number per cost, such as a mask of the edges that are taken."
            )
        there = decide(costs + sign * self.strength * slope)  # algorithm 1 of the paper
        gradient = jax.lax.stop_gradient(sign * (there - decision) / self.strength)
        return jnp.sum(gradient * logits, tuple(range(1, logits.ndim)))
