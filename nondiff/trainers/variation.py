"""How programs vary: lines are changed, added and left out, and stretches of lines change places.

Adding and leaving out are those of Helmuth, McPhee & Spector, 2018, "Program Synthesis using Uniform Mutation by
Addition and Deletion" (https://doi.org/10.1145/3205455.3205603): everywhere at rates that leave the size as it is, but
for new lines that happen to be empty, so programs shrink a little.
"""

import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int, Key

from nondiff.core.code import Code

Lines = Int[Array, "length columns"]


def splice(first: Lines, second: Lines, *, key: Key[Array, ""]) -> Lines:
    """`first`, with the lines between two random places as they are in `second` (two-point crossover)."""
    ends = jr.randint(key, (2,), 0, len(first) + 1)
    place = jnp.arange(len(first))
    inside = (place >= jnp.min(ends)) & (place < jnp.max(ends))
    return jnp.where(inside[:, None], second, first)


def change(lines: Lines, domain: Code, rate: Float[Array, ""], *, key: Key[Array, ""]) -> Lines:
    """Every line that is not empty is, with probability `rate`, another one: half of them anew, half in one entry."""
    k_which, k_new, k_whole, k_entry = jr.split(key, 4)
    which = jr.bernoulli(k_which, rate, (len(lines), 1)) & (lines[:, :1] != 0)
    new = domain.sample(lines, jnp.ones(()), key=k_new)
    whole = jr.bernoulli(k_whole, 0.5, (len(lines), 1))
    entry = jr.randint(k_entry, (len(lines), 1), 0, lines.shape[1]) == jnp.arange(lines.shape[1])
    return jnp.where(which & (whole | entry), new, lines)


def add_and_delete(lines: Lines, domain: Code, rate: Float[Array, ""], *, key: Key[Array, ""]) -> Lines:
    """A new line before or after every line with probability `rate`, then every line is left out with probability
    `rate / (1 + rate)`. Lines that were empty are left out as well; what does not fit at the end is lost."""
    k_add, k_side, k_new, k_delete = jr.split(key, 4)
    n = len(lines)
    new = domain.sample(lines, jnp.ones(()), key=k_new)
    there = lines[:, 0] != 0
    beside = there | ((jnp.arange(n) == 0) & ~jnp.any(there))  # of an empty program, its first line
    added = jr.bernoulli(k_add, rate, (n,)) & beside
    after = jr.bernoulli(k_side, 0.5, (n, 1))
    both = jnp.stack([jnp.where(after, lines, new), jnp.where(after, new, lines)], 1).reshape(2 * n, -1)
    is_new = jnp.stack([~after[:, 0], after[:, 0]], 1).reshape(-1)
    kept = jnp.where(is_new, jnp.repeat(added, 2), jnp.repeat(there, 2))
    kept &= ~jr.bernoulli(k_delete, rate / (1 + rate), (2 * n,))
    return _packed(both, kept)[:n]


def _packed(lines: Int[Array, "most columns"], there: Bool[Array, " most"]) -> Int[Array, "most columns"]:
    """The lines that are `there`, in order, and then empty ones."""
    order = jnp.argsort(~there, stable=True)
    return jnp.where(there[order][:, None], lines[order], 0)
