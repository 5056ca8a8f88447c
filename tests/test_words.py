"""Random words are JAX's own, bit by bit, and numbers made of them have the distributions that they claim."""

import itertools
import math

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from nondiff.core import words as w

ROOT = jr.key(11)
MANY = jnp.stack([*jr.split(ROOT, 2), jr.fold_in(ROOT, 0), jr.fold_in(ROOT, 2**32 - 1)])
N = 100_000
WORDS = w.words(jr.key(5), N)


def same_keys(a, b) -> None:
    np.testing.assert_array_equal(jr.key_data(a), jr.key_data(b))


@pytest.mark.parametrize("n", [0, 1, 2, 7, 1000])
def test_words_and_keys_are_those_of_jax(n: int) -> None:
    np.testing.assert_array_equal(
        jax.jit(jax.vmap(lambda k: w.words(k, n)))(MANY), jax.vmap(lambda k: jr.bits(k, (n,)))(MANY)
    )
    np.testing.assert_array_equal(w.words(MANY[3], n), jr.bits(MANY[3], (n,)))
    same_keys(jax.jit(jax.vmap(lambda k: w.split(k, n)))(MANY), jax.vmap(lambda k: jr.split(k, n))(MANY))
    same_keys(jax.jit(w.fold_in)(ROOT, n), jr.fold_in(ROOT, n))


@pytest.mark.bits
@pytest.mark.parametrize("n", [0, 1, 2, 7, 1000])
def test_normals_are_those_of_jax(n: int) -> None:
    want = np.stack([np.asarray(jr.normal(k, (n,), jnp.float32)) for k in MANY])
    got = jax.jit(jax.vmap(lambda k: w.normal(w.words(k, n))))(MANY)
    assert got.dtype == jnp.float32 and got.shape == (4, n)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(jax.jit(lambda k: w.normal(w.words(k, n)))(MANY[3]), want[3])


def test_keys_of_another_generator_are_its_own() -> None:
    key = jr.key(0, impl="rbg")
    np.testing.assert_array_equal(w.words(key, 9), jr.bits(key, (9,)))
    same_keys(w.split(key, 3), jr.split(key, 3))
    same_keys(w.fold_in(key, 3), jr.fold_in(key, 3))


def test_rounds_of_python_numbers_and_of_numpy() -> None:
    a, b = np.asarray(jr.key_data(MANY[1])).tolist()
    assert w.threefry(a, b, 0, 3) == tuple(np.asarray(jr.key_data(jr.fold_in(MANY[1], 3))).tolist())
    count = np.arange(5, dtype=np.uint32)
    x, y = w.threefry(np.uint32(a), np.uint32(b), np.zeros_like(count), count)
    np.testing.assert_array_equal(x ^ y, jr.bits(MANY[1], (5,)))


def test_pieces_are_cut_in_order() -> None:
    a, b, c = w.cut(jnp.arange(10), [(2, 3), (), (3,)])
    assert (a.tolist(), b.tolist(), c.tolist()) == ([[0, 1, 2], [3, 4, 5]], 6, [7, 8, 9])
    assert w.cut(jnp.zeros(0), []) == []


@pytest.mark.parametrize("n", [1, 2, 7, 2**16 + 1, 2**31, 2**32 - 1])
def test_below_is_the_high_word_of_the_product(n: int) -> None:
    some = np.asarray(WORDS[:1000])
    want = (some.astype(np.uint64) * n >> 32).astype(np.uint32).view(np.int32)
    np.testing.assert_array_equal(w.below(jnp.asarray(some), n), want)


def test_below_has_equal_chances() -> None:
    counts = np.bincount(w.below(WORDS, 7), minlength=7)
    assert ((counts - N / 7) ** 2 / (N / 7)).sum() < 22.5  # chi squared of 6 degrees, beyond which lies 1 in 1,000


def test_gumbel_numbers_choose_by_the_logits() -> None:
    logits = jnp.log(jnp.array([0.5, 0.3, 0.2]))
    chosen = jnp.argmax(logits + w.gumbel(WORDS[: N - 1].reshape(-1, 3)), 1)
    n = len(chosen)
    for share, p in zip(np.bincount(chosen, minlength=3) / n, (0.5, 0.3, 0.2), strict=True):
        assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / n)
    assert jnp.all(jnp.isfinite(w.gumbel(jnp.array([0, 2**32 - 1], jnp.uint32))))


def test_chance_is_the_probability() -> None:
    assert not jnp.any(w.chance(WORDS, 0.0)) and jnp.all(w.chance(WORDS, 1.0))
    assert abs(jnp.mean(w.chance(WORDS, 0.3)) - 0.3) < 4 * math.sqrt(0.3 * 0.7 / N)


def test_every_order_is_equally_likely() -> None:
    orders = jax.vmap(w.permutation)(WORDS[: N - 1].reshape(-1, 3))
    n = len(orders)
    counts = [int(jnp.sum(jnp.all(orders == jnp.array(o), 1))) for o in itertools.permutations(range(3))]
    assert sum(counts) == n and all(abs(c / n - 1 / 6) < 4 * math.sqrt(5 / 36 / n) for c in counts)
