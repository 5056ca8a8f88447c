"""Keys and draws on the host: the bits of `jax.random`, and nothing to compile.

Outside of a compiled function every call of `jax.random` compiles programs of its own, .1 to .3 s each, and a step on
the host needs a handful of words. So NumPy makes them. A key whose value is not known yet, since a program is being
traced, and one of another generator are left to JAX.
"""

import functools
import math
from typing import Any

import jax
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Key, UInt

from nondiff.core import words
from nondiff.core.tree import is_traced, key_words

_WORD = 0xFFFFFFFF
_BLOCK = 64
_USUAL = "threefry2x32"

Words = tuple[int, int]
"""What a key is made of."""


def is_known(key: Key[Array, ""]) -> bool:
    """Can NumPy draw from it?"""
    return not is_traced(key) and words.is_usual(key)


def seeded(seed: int) -> Key[Array, ""]:
    """`jax.random.key(seed)`.

    >>> bool(seeded(5) == jr.key(5))
    True
    """
    usual = jax.config.jax_default_prng_impl == _USUAL  # pyright: ignore[reportAttributeAccessIssue]
    return _key((0, seed)) if usual and 0 <= seed < 2**31 else jr.key(seed)


def split(key: Key[Array, ""], n: int = 2) -> list[Key[Array, ""]]:
    """The keys of `jax.random.split(key, n)`."""
    if not is_known(key):
        return list(words.split(key, n))
    return [_key(own) for own in parts(key, n)]


def fold_in(key: Key[Array, ""], number: Any) -> Key[Array, ""]:
    """`jax.random.fold_in(key, number)`."""
    if is_traced(number) or not is_known(key):
        return words.fold_in(key, number)
    return _key(words.threefry(*_words_of(key), 0, int(number) & _WORD))


def parts(key: Key[Array, ""], n: int) -> list[Words]:
    """What the keys of `split(key, n)` are made of, for a known key: `normal` and `repeat` take it as well, and to make
    a key of it costs more than a small draw.
    """
    own = _words_of(key)
    return [words.threefry(*own, 0, i) for i in range(n)]


def of_step(key: Key[Array, ""], step: int, n: int) -> list[Key[Array, ""]]:
    """`split(fold_in(key, step), n)` of a known key."""
    block, i = divmod(step & _WORD, _BLOCK)
    return [_key((a, b)) for a, b in _of_steps(_words_of(key), block, n)[i]]


@functools.lru_cache(maxsize=8)
def _of_steps(own: Words, block: int, n: int) -> list[list[list[int]]]:
    """Of a block of steps at once, which takes NumPy as long as one of them: `[steps, n, 2]` words."""
    steps = np.arange(block * _BLOCK, (block + 1) * _BLOCK, dtype=np.uint32)[:, None]
    count = np.arange(n, dtype=np.uint32)[None]
    a, b = (np.full_like(steps, word) for word in own)
    here = words.threefry(a, b, np.zeros_like(steps), steps)
    return np.stack(words.threefry(*here, np.zeros_like(count), count), -1).tolist()


def repeat(key: Key[Array, ""] | Words, n: int) -> Key[Array, " n"]:
    """`n` times the same known key."""
    data: Any = np.broadcast_to(np.array(_words_of(key), np.uint32), (n, 2))
    return jr.wrap_key_data(data, impl=_USUAL)


def uniform(key: Key[Array, ""] | Words, n: int) -> Float[np.ndarray, " n"]:
    """`jax.random.uniform(key, (n,))`, from 0 to below 1, 32 bits each."""
    if not isinstance(key, tuple) and not is_known(key):
        return np.asarray(jr.uniform(key, (n,), np.float32))
    return _between(_drawn(key, n))


def normal(key: Key[Array, ""] | Words, n: int) -> Float[np.ndarray, " n"]:
    """Standard normals of a known key, 32 bits each: `jax.random.normal(key, (n,))`, but for the last bit of some.

    They are computed in 64 bits and rounded, so that no machine's own logarithm shows.
    """
    least = np.nextafter(np.float32(-1.0), np.float32(0.0))
    between = np.maximum(least, uniform(key, n) * (np.float32(1.0) - least) + least)  # -1 to 1, both excluded
    return (math.sqrt(2) * _erf_inv(between.astype(float))).astype(np.float32)


def _drawn(key: Key[Array, ""] | Words, n: int) -> UInt[np.ndarray, " n"]:
    a, b = (np.uint32(word) for word in _words_of(key))
    count = np.arange(n, dtype=np.uint32)
    with np.errstate(over="ignore"):  # of single words, which NumPy would warn of
        x, y = words.threefry(a, b, np.zeros_like(count), count)
    return x ^ y


def _between(words: UInt[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    # 23 random bits are the mantissa of a number from 1 to below 2.
    return ((words >> np.uint32(9)) | np.uint32(0x3F800000)).view(np.float32) - np.float32(1.0)


_known: dict[int, tuple[Any, Words]] = {}
"""The last keys whose words were asked for or made, by their `id`: to ask JAX for them takes long."""


def _words_of(key: Key[Array, ""] | Words) -> Words:
    if isinstance(key, tuple):
        return key
    found = _known.get(id(key))
    if found is not None and found[0] is key:
        return found[1]
    a, b = key_words(key).tolist()
    return _noted(key, (a, b))


def _key(made: Words) -> Key[Array, ""]:
    data: Any = np.array(made, np.uint32)
    key = jr.wrap_key_data(data, impl=_USUAL)
    _noted(key, made)
    return key


def _noted(key: Key[Array, ""], own: Words) -> Words:
    if len(_known) >= 32:
        _known.clear()
    _known[id(key)] = key, own
    return own


# Of Giles, 2012, "Approximating the erfinv function", as XLA has them: where -log(1 - x^2) is below 5, and beyond.
# SciPy's `erfinv` would do; to import it takes a fifth of a second, as long as a small search.
_COEFFICIENTS = (
    (2.81022636e-08, -0.000200214257),
    (3.43273939e-07, 0.000100950558),
    (-3.5233877e-06, 0.00134934322),
    (-4.39150654e-06, -0.00367342844),
    (0.00021858087, 0.00573950773),
    (-0.00125372503, -0.0076224613),
    (-0.00417768164, 0.00943887047),
    (0.246640727, 1.00167406),
    (1.50140941, 2.83297682),
)


def _erf_inv(x: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    w = -np.log1p(-x * x)
    found = _polynomial(w - 2.5, 0) * x
    far = np.flatnonzero(w >= 5)  # 3 in 1,000
    found[far] = _polynomial(np.sqrt(w[far]) - 3, 1) * x[far]
    return found


def _polynomial(w: Float[np.ndarray, " n"], which: int) -> Float[np.ndarray, " n"]:
    p = np.full_like(w, _COEFFICIENTS[0][which])
    for c in _COEFFICIENTS[1:]:
        p *= w
        p += c[which]
    return p
