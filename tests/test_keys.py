"""Keys and draws on the host have the bits of `jax.random`, and compile nothing."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from nondiff.core import keys
from nondiff.testing import count_compilations


def data(key):
    return np.asarray(jr.key_data(key))


@pytest.mark.parametrize("seed", [0, 1, 12345, 2**31 - 1, 2**32 - 1])
def test_keys_are_those_of_jax(seed):
    key = keys.seeded(seed)
    assert (data(key) == data(jr.key(seed))).all()
    for n in (1, 2, 5):
        assert (np.stack([data(k) for k in keys.split(key, n)]) == data(jr.split(key, n))).all()
    for number in (0, 7, 2**31 - 1):
        assert (data(keys.fold_in(key, number)) == data(jr.fold_in(key, number))).all()
        ours = np.stack([data(k) for k in keys.of_step(key, number, 3)])
        assert (ours == data(jr.split(jr.fold_in(key, number), 3))).all()
    assert (data(keys.repeat(key, 5)) == data(jnp.broadcast_to(key, (5,)))).all()


@pytest.mark.parametrize("n", [1, 2, 1000])
def test_uniform_numbers_are_those_of_jax(n):
    key = keys.seeded(3)
    ours = keys.uniform(key, n)
    assert ours.dtype == np.float32
    assert (ours == np.asarray(jr.uniform(key, (n,), jnp.float32))).all()


def test_normals_are_those_of_jax_but_for_their_last_bits():
    key = keys.seeded(3)
    ours = keys.normal(key, 100_000)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, jr.normal(key, (100_000,), jnp.float32), rtol=2e-5, atol=1e-7)


def test_normals_are_exact_to_32_bits_of_the_inverse_error_function():
    import scipy.special

    x = np.linspace(-1 + 1e-7, 1 - 1e-7, 100_001)
    np.testing.assert_allclose(keys._erf_inv(x), scipy.special.erfinv(x), rtol=1e-6, atol=1e-12)


def test_nothing_is_compiled():
    jax.clear_caches()
    with count_compilations() as compiled:
        key = keys.seeded(11)
        one, two = keys.split(key)
        keys.normal(keys.fold_in(one, 3), 77)
        keys.uniform(two, 78)
        keys.repeat(keys.of_step(key, 4, 3)[0], 79)
    assert not compiled


def test_what_is_traced_or_of_another_generator_is_left_to_jax():
    key = keys.seeded(2)
    traced = jax.jit(lambda k, i: (keys.split(k)[1], keys.fold_in(k, i)))(key, 9)
    assert (data(traced[0]) == data(jr.split(key)[1])).all()
    assert (data(traced[1]) == data(jr.fold_in(key, 9))).all()
    other = jr.key(2, impl="rbg")
    assert not keys.is_known(other)
    assert (data(keys.split(other)[1]) == data(jr.split(other)[1])).all()
    assert (data(keys.fold_in(other, 9)) == data(jr.fold_in(other, 9))).all()
