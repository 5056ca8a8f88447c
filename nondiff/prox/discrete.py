"""Few values, with a scale for each leaf that is fitted to it: quantized weights (Leng et al., 2018, "Extremely Low Bit
Neural Network: Squeeze the Last Bit Out with ADMM", https://arxiv.org/abs/1707.09870).

With whole numbers `q` and a scale `a`, `|v - a q|^2` is least at `a = (v.q) / (q.q)`, and is `|v|^2 - (v.q)^2 / (q.q)`
there. None of the sets is convex.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nondiff.core.prox import AbstractProx, Rho
from nondiff.prox.indicator import indicator, slack


class Binary(AbstractProx):
    """`-a` and `a`, with one `a >= 0` for a leaf. Exact: `a` is the mean of `|v|`, and 0 counts as positive.

    >>> import jax.numpy as jnp
    >>> Binary()(jnp.array([1.0, -3.0, 0.5]), rho=1.0)
    Array([ 1.5, -1.5,  1.5], dtype=float32)
    """

    def __call__(self, v: Array, rho: Rho) -> Array:
        del rho
        return jnp.where(v < 0, -1, 1) * jnp.mean(jnp.abs(v))

    def value(self, z: Array) -> Float[Array, ""]:
        return indicator(jnp.min(jnp.abs(z)) >= (1 - slack(z)) * jnp.max(jnp.abs(z)))


class Ternary(AbstractProx):
    """`-a`, 0 and `a`, with one `a >= 0` for a leaf. Exact: of the `k` largest, for every `k`, the best is taken.

    >>> import jax.numpy as jnp
    >>> Ternary()(jnp.array([2.0, -3.0, 0.25, 1.0]), rho=1.0)
    Array([ 2.5, -2.5,  0. ,  0. ], dtype=float32)
    """

    def __call__(self, v: Array, rho: Rho) -> Array:
        del rho
        size = jnp.abs(v)
        k = jnp.arange(1, v.size + 1)
        sums = jnp.cumsum(jnp.sort(size, axis=None)[::-1])  # v.q with the k largest, where q.q = k
        best = jnp.argmax(sums**2 / k)
        kept = size >= sums[best] / k[best] / 2  # each to the nearest value, which a rounded sum may have missed
        return jnp.where(kept, jnp.where(v < 0, -1, 1), 0) * jnp.mean(size, where=kept)

    def value(self, z: Array) -> Float[Array, ""]:
        return indicator(_on_grid(z, 1))


class Grid(AbstractProx):
    """A uniform grid of `2^bits - 1` values: `a` times the whole numbers from `-m` to `m`, where `m = 2^(bits-1) - 1`.

    The scale `a >= 0` is fitted to the leaf, by turns with the numbers, from the best of 64 scales that bracket every
    best one. What is guaranteed: the result is on such a grid, no worse than for any of the 64, and every entry is at
    the grid's nearest value. The global minimum is not: up to 4 bits the squared error was within 3 % of it wherever we
    looked (tests/test_prox.py). `Ternary()`, which is 2 bits, has it.

    **Arguments:**

    - `bits`: 2 to 8. For one bit, `Binary()`; more than 8 are hardly a constraint.

    **Raises** `ValueError` for `bits` outside of that.

    >>> import jax.numpy as jnp
    >>> Grid(3)(jnp.array([0.25, 2.0, -4.0, 6.0]), rho=1.0)
    Array([ 0.,  2., -4.,  6.], dtype=float32)
    """

    bits: int = eqx.field(static=True)

    def __check_init__(self) -> None:
        if isinstance(self.bits, bool) or not isinstance(self.bits, int) or not 2 <= self.bits <= 8:
            raise ValueError(
                f"`Grid(bits={self.bits!r})`: expected a whole number from 2 to 8; for one bit, `Binary()`."
            )

    def __call__(self, v: Array, rho: Rho) -> Array:
        del rho
        m = 2 ** (self.bits - 1) - 1
        size = jnp.abs(v)

        def numbers(a: Array) -> Array:
            return jnp.clip(jnp.round(size / jnp.where(a > 0, a, 1)), 0, m)

        def fit(a: Array) -> tuple[Array, Array]:
            """The best scale for the numbers of this one, and the squared error that it leaves."""
            q = numbers(a)
            best = jnp.sum(size * q) / jnp.maximum(jnp.sum(q * q), 1)
            return best, jnp.sum((size - best * q) ** 2)

        # The largest value `m a` of a best grid is at least mean |v| / (1 + 1/(2m)), or its slope in `a` is not 0, and
        # need not be above 2 max |v|, or half of `a` would do as well.
        low = jnp.mean(size) / (m + 0.5)
        high = 2 * jnp.max(size) / m
        scales = low * (high / jnp.where(low > 0, low, 1)) ** jnp.linspace(0, 1, 64, dtype=v.dtype)
        fitted, errors = jax.lax.map(fit, scales)
        a = fitted[jnp.argmin(errors)]
        a = jax.lax.fori_loop(0, 10, lambda _, a: fit(a)[0], a)
        return jnp.sign(v) * a * numbers(a)

    def value(self, z: Array) -> Float[Array, ""]:
        return indicator(_on_grid(z, 2 ** (self.bits - 1) - 1))


def _on_grid(z: Array, m: int) -> Array:
    """Is `z` a scale times whole numbers up to `m`? The largest entry is one of them."""
    share = jnp.abs(z) / jnp.maximum(jnp.max(jnp.abs(z)), jnp.finfo(z.dtype).tiny)

    def whole(largest: Array) -> Array:
        q = largest * share
        return jnp.all(jnp.abs(q - jnp.round(q)) <= slack(z) * m)

    return jnp.any(jax.lax.map(whole, jnp.arange(1, m + 1)))
