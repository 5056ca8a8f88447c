"""Projections onto convex sets (Parikh & Boyd, 2014, "Proximal Algorithms", https://doi.org/10.1561/2400000003,
sections 6.2 and 6.5), most by `optax.projections`. `rho` does not matter to a projection.
"""

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from nondiff.core.checks import check_number
from nondiff.core.prox import AbstractProx, Rho
from nondiff.prox.indicator import indicator, slack

Bound = Array | np.ndarray | float | int | None


class Box(AbstractProx):
    """`lo <= z <= hi`, entry by entry.

    **Arguments:**

    - `lo`, `hi`: numbers, or arrays that broadcast against a leaf; no bound where `None` (default). `Box(0.0)` is
      everything that is not negative.

    **Raises** `ValueError` if not `lo <= hi`, as for NaN, and, on a leaf, for bounds that do not broadcast against it.

    >>> import jax.numpy as jnp
    >>> Box(-1.0, 1.0)(jnp.array([-3.0, 0.25]), rho=1.0)
    Array([-1.  ,  0.25], dtype=float32)
    """

    lo: Bound = None
    hi: Bound = None

    def __check_init__(self) -> None:
        lo, hi = (np.asarray(bound, float) for bound in self._bounds)
        try:
            good = (lo <= hi) & (lo < np.inf) & (hi > -np.inf)
        except ValueError:
            raise ValueError(f"`Box`: `lo` of shape {lo.shape} and `hi` of {hi.shape} do not broadcast.") from None
        if not np.all(good):
            raise ValueError(
                f"`Box(lo={self.lo}, hi={self.hi})`: `lo` must be at most `hi`; for no bound, leave it out."
            )

    @property
    def _bounds(self) -> tuple[Bound, Bound]:
        return -np.inf if self.lo is None else self.lo, np.inf if self.hi is None else self.hi

    def _fitted(self, x: Array) -> tuple[Array, Array]:
        """The bounds of this leaf."""
        lo, hi = (jnp.asarray(bound, x.dtype) for bound in self._bounds)
        try:
            return jnp.broadcast_to(lo, x.shape), jnp.broadcast_to(hi, x.shape)
        except ValueError:
            raise ValueError(
                f"`Box`: `lo` of shape {lo.shape} and `hi` of {hi.shape} do not broadcast against a leaf of {x.shape}."
            ) from None

    def __call__(self, v: Array, rho: Rho) -> Array:
        del rho
        return optax.projections.projection_box(v, *self._fitted(v))

    def value(self, z: Array) -> Float[Array, ""]:
        lo, hi = self._fitted(z)
        return indicator(jnp.all((z >= lo - slack(z) * jnp.abs(lo)) & (z <= hi + slack(z) * jnp.abs(hi))))


class Simplex(AbstractProx):
    """`z >= 0` and `sum z = scale`, over a whole leaf: shares, probabilities, mixing weights.

    **Arguments:**

    - `scale`: above 0 (default 1).

    **Raises** `ValueError` for a scale that is not finite and above 0.

    >>> import jax.numpy as jnp
    >>> Simplex()(jnp.array([0.5, 1.0, -3.0]), rho=1.0)
    Array([0.25, 0.75, 0.  ], dtype=float32)
    """

    scale: float | int = 1.0

    def __check_init__(self) -> None:
        check_number("Simplex", "scale", self.scale, positive=True)

    def __call__(self, v: Array, rho: Rho) -> Array:
        del rho
        # A shift of all entries changes nothing but the rounding, which is that of the largest.
        return optax.projections.projection_simplex(v - jnp.max(v), self.scale)

    def value(self, z: Array) -> Float[Array, ""]:
        inside = jnp.abs(jnp.sum(z) - self.scale) <= slack(z) * self.scale
        return indicator(inside & jnp.all(z >= -slack(z) * self.scale))


class L1Ball(AbstractProx):
    """`sum |z_i| <= radius`, over a whole leaf: the lasso as a constraint.

    **Arguments:**

    - `radius`: above 0 (default 1).

    **Raises** `ValueError` for a radius that is not finite and above 0.

    >>> import jax.numpy as jnp
    >>> L1Ball(1.0)(jnp.array([1.5, -1.0, 0.25]), rho=1.0)
    Array([ 0.75, -0.25,  0.  ], dtype=float32)
    """

    radius: float | int = 1.0

    def __check_init__(self) -> None:
        check_number("L1Ball", "radius", self.radius, positive=True)

    def __call__(self, v: Array, rho: Rho) -> Array:
        del rho
        return optax.projections.projection_l1_ball(v, self.radius)

    def value(self, z: Array) -> Float[Array, ""]:
        return indicator(jnp.sum(jnp.abs(z)) <= self.radius * (1 + slack(z)))


class L2Ball(AbstractProx):
    """`sqrt(sum z_i^2) <= radius`, over a whole leaf.

    **Arguments:**

    - `radius`: above 0 (default 1).

    **Raises** `ValueError` for a radius that is not finite and above 0.

    >>> import jax.numpy as jnp
    >>> L2Ball(1.0)(jnp.array([3.0, 4.0]), rho=1.0)
    Array([0.6, 0.8], dtype=float32)
    """

    radius: float | int = 1.0

    def __check_init__(self) -> None:
        check_number("L2Ball", "radius", self.radius, positive=True)

    def __call__(self, v: Array, rho: Rho) -> Array:
        del rho
        return optax.projections.projection_l2_ball(v, self.radius)

    def value(self, z: Array) -> Float[Array, ""]:
        return indicator(jnp.linalg.norm(z.ravel()) <= self.radius * (1 + slack(z)))
