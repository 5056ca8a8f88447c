"""Hard decisions that stay vectors, for a `rest` that has a derivative in them: beside `jnp.round` and `jnp.sign`."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nondiff.core.checks import check_count


def one_hot(logits: Float[Array, "*parts symbols"]) -> Float[Array, "*parts symbols"]:
    """1 at the largest logit of each part, the first of equals, and 0 elsewhere.

    >>> one_hot(jnp.array([0.1, 2.0, 2.0]))
    Array([0., 1., 0.], dtype=float32)
    """
    return jax.nn.one_hot(jnp.argmax(logits, -1), logits.shape[-1], dtype=logits.dtype)


class TopK(eqx.Module):
    """1 at the `k` largest logits of each part, and 0 elsewhere.

    **Raises** `ValueError` for `k` below 1, and when called with fewer symbols than that.

    >>> TopK(2)(jnp.array([3.0, 1.0, 2.0]))
    Array([1., 0., 1.], dtype=float32)
    """

    k: int = eqx.field(static=True)

    def __check_init__(self) -> None:
        check_count("TopK", "k", self.k)

    def __call__(self, logits: Float[Array, "*parts symbols"]) -> Float[Array, "*parts symbols"]:
        if logits.shape[-1] < self.k:
            raise ValueError(f"`TopK({self.k})`: there are only {logits.shape[-1]} symbols to choose from.")
        chosen = jax.lax.top_k(logits, self.k)[1]
        return jnp.sum(jax.nn.one_hot(chosen, logits.shape[-1], dtype=logits.dtype), -2)
