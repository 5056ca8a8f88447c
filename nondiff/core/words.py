"""Random words, and numbers made of one word each.

XLA compiles every random draw of its own shape for itself, a quarter of a second each on a CPU. So whatever a key is
for has one flat draw of `words`, cut into `pieces`, and each number is made of its own word: `uniform`, `normal`,
`gumbel`, `below`, `permutation`.

On a CPU JAX lowers its generator, Threefry-2x32, to a loop that reads and writes the whole array in each turn. The same
rounds written out give the same bits, compile up to eight times as fast, and are fused with what uses the numbers: they
run three times as fast. Elsewhere, and for keys of another generator, the words are those of `jax.random.bits`.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, UInt

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_WORD = 0xFFFFFFFF

_one_program = functools.partial(jax.jit, inline=True)
"""Part of the program that calls it, and where none is being compiled, not one program for each operation."""


@functools.partial(_one_program, static_argnames="n")
def words(key: Key[Array, ""], n: int) -> UInt[Array, " n"]:
    """`n` words of 32 bits: `jax.random.bits(key, (n,))`.

    >>> key = jr.key(0)
    >>> bool(jnp.all(words(key, 1000) == jr.bits(key, (1000,))))
    True
    """
    if not _written_out(key, n):
        return jr.bits(key, (n,))
    x, y = _numbered(key, n)
    return x ^ y


@functools.partial(_one_program, static_argnames="n")
def split(key: Key[Array, ""], n: int = 2) -> Key[Array, " n"]:
    """`jax.random.split(key, n)`."""
    if not _written_out(key, n):
        return jr.split(key, n)
    return _as_keys(_numbered(key, n), key)


@_one_program
def fold_in(key: Key[Array, ""], number: Any) -> Key[Array, ""]:
    """`jax.random.fold_in(key, number)`."""
    if not _written_out(key, 1):
        return jr.fold_in(key, number)
    a, b = jr.key_data(key)
    number = jnp.asarray(number).astype(jnp.uint32)
    return _as_keys(threefry(a, b, jnp.zeros_like(number), number), key)


def pieces(key: Key[Array, ""], shapes: Sequence[tuple[int, ...]]) -> list[UInt[Array, "..."]]:
    """Words of these shapes, of one flat draw.

    >>> [x.shape for x in pieces(jr.key(0), [(2, 3), (), (3,)])]
    [(2, 3), (), (3,)]
    """
    return cut(words(key, sum(map(math.prod, shapes))), shapes)


def shaped(key: Key[Array, ""], shape: tuple[int, ...]) -> UInt[Array, "..."]:
    """Words of this shape: `jax.random.bits(key, shape)`."""
    return words(key, math.prod(shape)).reshape(shape)


def like(key: Key[Array, ""], tree: PyTree, *first: int) -> PyTree:
    """One word for each coordinate of every leaf, of one flat draw; with axes `first` before it, so many.

    >>> jax.tree.map(jnp.shape, like(jr.key(0), {"a": jnp.zeros((2, 3)), "b": 0.5, "c": None}, 4))
    {'a': (4, 2, 3), 'b': (4,), 'c': None}
    """
    leaves, treedef = jtu.tree_flatten(tree)
    shapes = [(*first, *jnp.shape(x)) for x in leaves]
    return treedef.unflatten(pieces(key, shapes))


def cut(flat: Array, shapes: Sequence[tuple[int, ...]]) -> list[Array]:
    """The pieces of a flat draw, in the order of their shapes; what is before its last axis every piece has, too.

    >>> [x.shape for x in cut(jnp.zeros((2, 10)), [(2, 3), (), (3,)])]
    [(2, 2, 3), (2,), (2, 3)]
    """
    ends = list(itertools.accumulate(map(math.prod, shapes), initial=0))
    parts = itertools.pairwise(ends)
    return [flat[..., a:b].reshape(*flat.shape[:-1], *shape) for (a, b), shape in zip(parts, shapes, strict=True)]


@_one_program
def uniform(words: UInt[Array, "*shape"]) -> Float[Array, "*shape"]:
    """From 0 to below 1, in steps of 2^-23, as `jax.random.uniform` makes them of its words."""
    # 23 random bits are the mantissa of a number from 1 to below 2.
    return jax.lax.bitcast_convert_type((words >> 9) | jnp.uint32(0x3F800000), jnp.float32) - 1.0


@_one_program
def normal(words: UInt[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Standard normals, as `jax.random.normal` makes them of its words.

    >>> key = jr.key(0)
    >>> bool(jnp.all(normal(words(key, 1000)) == jr.normal(key, (1000,), jnp.float32)))
    True
    """
    least = jnp.nextafter(jnp.float32(-1.0), jnp.float32(0.0))
    between = jnp.maximum(least, uniform(words) * (1.0 - least) + least)  # -1 to 1, both excluded
    return jnp.float32(2**0.5) * jax.lax.erf_inv(between)


@_one_program
def gumbel(words: UInt[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Standard Gumbel numbers: the category of the largest `logits + gumbel` has the probabilities of the logits."""
    tiny = jnp.finfo(jnp.float32).tiny
    return -jnp.log(-jnp.log(jnp.maximum(uniform(words), tiny)))


def below(words: UInt[Array, "*shape"], n: Any) -> Int[Array, "*shape"]:
    """Whole numbers from 0 to `n` - 1, `n` at most 2^32 - 1: the high word of `words * n`.

    Their chances differ by 1 in 2^32 / n at most. (What is larger than an `int32` comes back negative: the difference
    to the least of a range, to which it is added, wraps round as well.)

    >>> below(jnp.array([0, 2**31, 2**32 - 1], jnp.uint32), 10)
    Array([0, 5, 9], dtype=int32)
    """
    return _high(words, np.uint32(n) if isinstance(n, int) else jnp.asarray(n, jnp.uint32))


@_one_program
def _high(words: UInt[Array, "*shape"], n: Any) -> Int[Array, "*shape"]:
    """The high word of the product."""
    low, high, a, b = words & 0xFFFF, words >> 16, n & 0xFFFF, n >> 16
    middle = high * a + ((low * a) >> 16)
    other = (middle & 0xFFFF) + low * b
    return (high * b + (middle >> 16) + (other >> 16)).astype(jnp.int32)


def category(words: UInt[Array, "*more symbols"], logits: Float[Array, "*shape symbols"]) -> Int[Array, "*more"]:
    """With the probabilities of the logits, of one word for each of them; `more` ends with `shape`."""
    return jnp.argmax(logits + gumbel(words).astype(logits.dtype), -1)


def categories(key: Key[Array, ""], logits: Float[Array, "*shape symbols"], n: int) -> Int[Array, "n *shape"]:
    """`n` of each: `jax.random.categorical(key, logits, shape=(n, *shape))`."""
    return category(shaped(key, (n, *logits.shape)), logits)


def chance(words: UInt[Array, "*shape"], probability: Any) -> Bool[Array, "*shape"]:
    """True with this probability."""
    return uniform(words) < probability


def permutation(words: UInt[Array, " n"]) -> Int[Array, " n"]:
    """0 to n - 1 in random order: the order of the words."""
    return jnp.argsort(words)


def threefry(a: Any, b: Any, x: Any, y: Any) -> tuple[Any, Any]:
    """20 rounds of Threefry-2x32 with the key (a, b), of Python's numbers or of arrays of `uint32` (Salmon, Moraes,
    Dror & Shaw, 2011, "Parallel Random Numbers: As Easy as 1, 2, 3")."""
    word = _low if isinstance(y, int) else _same
    keys = (a, b, a ^ b ^ 0x1BD11BDA)
    x, y = word(x + a), word(y + b)
    for i in range(5):
        for bits in _ROTATIONS[i % 2]:
            x = word(x + y)
            y = x ^ word((y << bits) | (y >> (32 - bits)))
        x, y = word(x + keys[(i + 1) % 3]), word(y + keys[(i + 2) % 3] + (i + 1))
    return x, y


def is_usual(key: Any) -> bool:
    """Is it a key of Threefry-2x32, drawn from as JAX does by default?"""
    partitionable = jax.config.jax_threefry_partitionable  # pyright: ignore[reportAttributeAccessIssue]
    return partitionable and str(jr.key_impl(key)) == "threefry2x32"


def _low(x: int) -> int:
    return x & _WORD


def _same(x: Any) -> Any:
    return x


def _written_out(key: Any, n: int) -> bool:
    return jax.default_backend() == "cpu" and n <= _WORD and is_usual(key)


def _numbered(key: Key[Array, ""], n: int) -> tuple[Array, Array]:
    a, b = jr.key_data(key)
    count = jax.lax.iota(jnp.uint32, n)
    return threefry(a, b, jnp.zeros_like(count), count)


def _as_keys(made: tuple[Array, Array], key: Key[Array, ""]) -> Key[Array, "..."]:
    """Behind a barrier, as XLA would make the keys again in every place that draws from them."""
    data = jax.lax.optimization_barrier(jnp.stack(made, -1))
    return jr.wrap_key_data(data, impl=jr.key_impl(key))
