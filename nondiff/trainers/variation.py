"""How programs vary: lines are changed, added and left out, and stretches of lines change places.

Adding and leaving out are those of Helmuth, McPhee & Spector, 2018, "Program Synthesis using Uniform Mutation by
Addition and Deletion" (https://doi.org/10.1145/3205455.3205603): everywhere at rates that leave the size as it is, but
for new lines that happen to be empty, so programs shrink a little.

`words` are random bits; each line has a row of them.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt

from nondiff.core.code import Code
from nondiff.core.words import below, chance

Lines = Int[Array, "length columns"]


def splice(first: Lines, second: Lines, *, words: UInt[Array, " 2"]) -> Lines:
    """`first`, with the lines between two random places as they are in `second` (two-point crossover)."""
    ends = below(words, len(first) + 1)
    place = jnp.arange(len(first))
    inside = (place >= jnp.min(ends)) & (place < jnp.max(ends))
    return jnp.where(inside[:, None], second, first)


def change(lines: Lines, domain: Code, rate: Float[Array, ""], *, words: UInt[Array, "length columns+3"]) -> Lines:
    """Every line that is not empty is, with probability `rate`, another one: half of them anew, half in one entry."""
    w_which, w_whole, w_entry, w_new = words[:, :1], words[:, 1:2], words[:, 2:3], words[:, 3:]
    which = chance(w_which, rate) & (lines[:, :1] != 0)
    new = domain.sample(lines, jnp.ones(()), words=w_new)
    entry = below(w_entry, lines.shape[1]) == jnp.arange(lines.shape[1])
    return jnp.where(which & (chance(w_whole, 0.5) | entry), new, lines)


def add_and_delete(
    lines: Lines, domain: Code, rate: Float[Array, ""], *, words: UInt[Array, "length columns+4"]
) -> Lines:
    """A new line before or after every line with probability `rate`, then every line is left out with probability
    `rate / (1 + rate)`. Lines that were empty are left out as well; what does not fit at the end is lost."""
    w_add, w_side, w_delete, w_new = words[:, 0], words[:, 1:2], words[:, 2:4], words[:, 4:]
    n = len(lines)
    new = domain.sample(lines, jnp.ones(()), words=w_new)
    there = lines[:, 0] != 0
    beside = there | ((jnp.arange(n) == 0) & ~jnp.any(there))  # of an empty program, its first line
    added = chance(w_add, rate) & beside
    after = chance(w_side, 0.5)
    both = jnp.stack([jnp.where(after, lines, new), jnp.where(after, new, lines)], 1).reshape(2 * n, -1)
    is_new = jnp.stack([~after[:, 0], after[:, 0]], 1).reshape(-1)
    kept = jnp.where(is_new, jnp.repeat(added, 2), jnp.repeat(there, 2))
    kept &= ~chance(w_delete.ravel(), rate / (1 + rate))
    return _packed(both, kept)[:n]


def _packed(lines: Int[Array, "most columns"], there: Bool[Array, " most"]) -> Int[Array, "most columns"]:
    """The lines that are `there`, in order, and then empty ones."""
    order = jnp.argsort(~there, stable=True)
    return jnp.where(there[order][:, None], lines[order], 0)
