"""Lines of a program as a domain: what stands in a row belongs together."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, UInt

from nondiff.core.checks import check_count
from nondiff.core.domain import AbstractDomain, Leaf
from nondiff.core.exact import namespace
from nondiff.core.words import below


class Code(AbstractDomain):
    """Rows of categories, `[lines, columns]`: column `i` takes `0 .. sizes[i] - 1`, without order. A row whose first
    entry is 0 is an empty line.

    To most trainers its entries are categories; `GeneticProgramming` knows that rows are lines, which may be added and
    left out.

    >>> Code((7, 4, 4)).clip(jnp.array([[9, 2, -1]]))
    Array([[6, 2, 0]], dtype=int32)
    """

    sizes: tuple[int, ...] = eqx.field(static=True)

    def __check_init__(self) -> None:
        if not (isinstance(self.sizes, tuple) and self.sizes):
            raise ValueError(f"`Code(sizes={self.sizes!r})`: give how many values each column takes, as a tuple.")
        for size in self.sizes:
            check_count("Code", "sizes", size)

    def check(self, leaf: Leaf, name: str) -> None:
        if not jnp.issubdtype(leaf.dtype, jnp.integer) or leaf.ndim != 2 or leaf.shape[1] != len(self.sizes):
            raise ValueError(
                f"`{name}` is {leaf.dtype}{list(leaf.shape)}, and its domain is {self}: expected integers "
                f"`[lines, {len(self.sizes)}]`."
            )

    def clip(self, x: Leaf) -> Leaf:
        here = namespace(x)
        return here.asarray(here.clip(x, 0, here.asarray(self.sizes, x.dtype) - 1))

    def sample(self, x: Leaf, scale: Array, *, words: UInt[Array, "..."]) -> Leaf:
        del scale
        return below(words, jnp.asarray(self.sizes)).astype(x.dtype)

    def neighbour(self, x: Leaf, scale: Array, *, words: UInt[Array, "..."]) -> Leaf:
        del scale
        sizes = jnp.asarray(self.sizes)
        other = 1 + below(words, jnp.maximum(sizes, 2) - 1)
        return ((x + other) % sizes).astype(x.dtype)
