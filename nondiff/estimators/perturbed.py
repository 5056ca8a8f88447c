"""Perturbed optimizers (Berthet, Blondel, Teboul, Cuturi, Vert & Bach, 2020, "Learning with Differentiable Perturbed
Optimizers", https://arxiv.org/abs/2002.08676): under noise the mean decision is smooth in what it is made from.

The mean and its derivative are optax's `make_perturbed_fun`; here stands what makes an estimator of it.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
from optax.perturbations import Gumbel, make_perturbed_fun

from nondiff.core import words
from nondiff.core.checks import check_count, check_positive
from nondiff.core.estimator import AbstractEstimator, Decide, Heuristic, Rest, check_floats, slope_of


class Perturbed(AbstractEstimator):
    """The gradient of `rest` at the mean decision under noise on the activations.

    **Arguments:**

    - `samples`: decisions per case (default 100). An `Opaque` solver is called for every one of them.
    - `sigma`: of the noise (default 1): as large as a change of the activations that should change a decision.
    - `noise`: `optax.perturbations.Gumbel()` (default) or `Normal()`.

    `decide` gives floats, of any shape: `one_hot`, `TopK(3)`, ranks, or a solver behind `Opaque`. `rest` has a
    derivative in them. The paper's loss is that of the mean decision; the value here is that of the decision, so this
    counts as a heuristic.

    **Raises** `ValueError` for fewer than 1 sample, a sigma that is not positive, and whole numbers as decisions.

    >>> import jax, nondiff
    >>> rest = lambda chosen: jnp.sum((chosen - jnp.array([1.0, 0.0, 0.0])) ** 2, -1)
    >>> loss = lambda z: nondiff.through(rest, z, via=Perturbed(), key=jax.random.key(0), decide=nondiff.one_hot)[0]
    >>> gradient = jax.grad(loss)(jnp.array([[0.0, 1.0, 0.0]]))[0]
    >>> bool(gradient[0] < 0 < gradient[1])  # up with the first, down with the second
    True
    """

    samples: int = eqx.field(static=True, default=100)
    sigma: float | int = eqx.field(static=True, default=1.0, kw_only=True)
    noise: Any = eqx.field(static=True, default=Gumbel(), kw_only=True)
    objective: ClassVar[Heuristic] = Heuristic()  # pyright: ignore[reportIncompatibleVariableOverride]
    unbiased: ClassVar[bool] = False

    def __check_init__(self) -> None:
        check_count("Perturbed", "samples", self.samples)
        check_positive("Perturbed", "sigma", self.sigma)
        if not (hasattr(self.noise, "sample") and hasattr(self.noise, "log_prob")):
            raise ValueError(
                f"`Perturbed(noise={self.noise!r})`: expected `sample` and `log_prob`, as "
                "`optax.perturbations.Normal()` has them."
            )

    def surrogate(
        self, rest: Rest, logits: Array, decision: Array, *, decide: Decide, key: Key[Array, ""]
    ) -> Float[Array, " cases"]:
        check_floats(decision)

        def one(case: Any) -> Any:
            return decide(case[None])[0]

        mean: Any = make_perturbed_fun(one, self.samples, self.sigma, self.noise)
        keys = words.split(key, logits.shape[0])  # case by case: no credit for one's neighbours
        decided = jax.vmap(mean)(keys, logits)
        slope = slope_of(rest, decided)
        return jnp.sum(slope * decided, tuple(range(1, decided.ndim)))
