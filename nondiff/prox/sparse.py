"""Few entries that are not 0: hard thresholding, the step of iterative hard thresholding (Blumensath & Davies, 2009,
https://doi.org/10.1016/j.acha.2009.04.002) and of pruning by ADMM (Zhang et al., 2018,
https://arxiv.org/abs/1804.03294).
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nondiff.core.prox import AbstractProx, Rho
from nondiff.prox.indicator import indicator


class Cardinality(AbstractProx):
    """At most `k` entries of a leaf are not 0: the `k` largest, by absolute value, stay as they are.

    Of several that are equally large, the first stay. For so many among all leaves together,
    `OverAll(Cardinality(...))`. The set is not convex.

    **Arguments:**

    - `k`: how many, at least 0.
    - `share`: instead of `k`, which share of the entries, from 0 to 1, rounded; at least one entry, unless it is 0.

    **Raises** `ValueError` unless one of the two is given and in its range and, on a leaf, for a `k` above its size.

    >>> import jax.numpy as jnp
    >>> v = jnp.array([1.0, -3.0, 2.0, 0.5])
    >>> Cardinality(2)(v, rho=1.0), Cardinality(share=0.25)(v, rho=1.0)
    (Array([ 0., -3.,  2.,  0.], dtype=float32), Array([ 0., -3.,  0.,  0.], dtype=float32))
    """

    k: int | None = eqx.field(static=True, default=None)
    share: float | int | None = eqx.field(static=True, default=None, kw_only=True)

    def __check_init__(self) -> None:
        if (self.k is None) == (self.share is None):
            raise ValueError(f"`Cardinality(k={self.k}, share={self.share})`: give one of the two.")
        if self.k is not None and (isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 0):
            raise ValueError(
                f"`Cardinality(k={self.k!r})`: expected a whole number of at least 0; for a share of the entries, "
                "`Cardinality(share=0.05)`."
            )
        if self.share is not None and not (isinstance(self.share, float | int) and 0 <= self.share <= 1):
            raise ValueError(f"`Cardinality(share={self.share!r})`: expected a number from 0 to 1.")

    def _count(self, x: Array) -> int:
        if self.share is not None:
            return max(round(self.share * x.size), 1 if self.share and x.size else 0)
        assert self.k is not None
        if self.k > x.size:
            raise ValueError(
                f"`Cardinality(k={self.k})` was given a leaf of shape {list(x.shape)}, which has {x.size} entries. "
                "Use `share=`, or `OverAll(Cardinality(...))` for so many among all leaves together."
            )
        return self.k

    def __call__(self, v: Array, rho: Rho) -> Array:
        del rho
        flat = v.ravel()
        _, kept = jax.lax.top_k(jnp.abs(flat), self._count(v))
        return jnp.zeros_like(flat).at[kept].set(flat[kept]).reshape(v.shape)

    def value(self, z: Array) -> Float[Array, ""]:
        return indicator(jnp.count_nonzero(z) <= self._count(z))
