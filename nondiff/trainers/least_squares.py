"""How `LayerwiseADMM` solves for the weights of a layer, from sums over the rows alone.

argmin_W  1/2 |A W - Z|^2 + ridge/2 |W|^2 + inertia/2 |W - W_old|^2,  given A'A and A'Z
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
from jaxtyping import Array, Float

from nondiff.core.checks import check_count


class AbstractLeastSquares(eqx.Module):
    """Solves for a layer, or comes nearer to the solution."""

    @abc.abstractmethod
    def __call__(
        self,
        gram: Float[Array, "inputs inputs"],
        cross: Float[Array, "inputs outputs"],
        old: Float[Array, "inputs outputs"],
        ridge: Float[Array, ""],
        inertia: Float[Array, ""],
    ) -> Float[Array, "inputs outputs"]: ...


class Cholesky(AbstractLeastSquares):
    """By a Cholesky factorisation: of the order of `inputs^3`, once a step and layer, whatever the rows."""

    def __call__(self, gram: Array, cross: Array, old: Array, ridge: Array, inertia: Array) -> Array:
        left = gram + (ridge + inertia) * jnp.eye(gram.shape[0], dtype=gram.dtype)
        return jsl.cho_solve(jsl.cho_factor(left), cross + inertia * old)


class QuadraticBound(AbstractLeastSquares):
    """Steps to the minimum of a bound instead, so that nothing is factorised: `W - slope / theta`, where `theta` is at
    least the largest curvature (Wang, Yu, Chen & Zhao, 2019, "ADMM for Efficient Deep Learning with Global
    Convergence", https://arxiv.org/abs/1905.13611, section 3.2; there `theta` is found by trying).

    **Arguments:**

    - `steps`: how many, 1 or more (default 10); of the order of `inputs^2 outputs` each. They gather momentum
      (Nesterov, 1983), since the sums make them cheap.

    **Raises** `ValueError` for fewer than 1.
    """

    steps: int = eqx.field(static=True, default=10)

    def __check_init__(self) -> None:
        check_count("QuadraticBound", "steps", self.steps)

    def __call__(self, gram: Array, cross: Array, old: Array, ridge: Array, inertia: Array) -> Array:
        own = ridge + inertia
        theta = _largest(gram) + own
        root = jnp.sqrt(own / theta)
        momentum = (1 - root) / (1 + root)  # for a function between these two curvatures

        def step(_: int | Array, both: tuple[Array, Array]) -> tuple[Array, Array]:
            w, ahead = both
            new = ahead - (gram @ ahead - cross + own * ahead - inertia * old) / theta
            return new, new + momentum * (new - w)

        return jax.lax.fori_loop(0, self.steps, step, (old, old))[0]


def _largest(gram: Array) -> Array:
    """At least its largest eigenvalue: for every positive `x`, the largest of `(|gram| x)_i / x_i` (Collatz, 1942)."""
    size = jnp.abs(gram) + jnp.finfo(gram.dtype).tiny

    def turn(_: int | Array, x: Array) -> Array:
        x = size @ x
        return x / jnp.sum(x)

    x = jax.lax.fori_loop(0, 10, turn, jnp.ones(gram.shape[0], gram.dtype))
    return jnp.max((size @ x) / x)
