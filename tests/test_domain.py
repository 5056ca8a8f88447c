"""Domains keep points inside, really move them, and say clearly what does not fit."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from nondiff import Categorical, Integer, Real
from nondiff.core.domain import complete
from nondiff.core.words import shaped

N = 4000


def test_clip_gives_the_nearest_point_inside() -> None:
    np.testing.assert_array_equal(Real(-1.0, 2.0).clip(jnp.array([-5.0, 0.5, 7.0])), [-1.0, 0.5, 2.0])
    np.testing.assert_array_equal(Real(lo=0.0).clip(jnp.array([-5.0, 7.0])), [0.0, 7.0])
    np.testing.assert_array_equal(Real(hi=0.0).clip(jnp.array([-5.0, 7.0])), [-5.0, 0.0])
    np.testing.assert_array_equal(Real().clip(jnp.array([-5.0, 7.0])), [-5.0, 7.0])
    np.testing.assert_array_equal(Integer(-2, 3).clip(jnp.array([-9, 0, 9])), [-2, 0, 3])
    np.testing.assert_array_equal(Categorical(3).clip(jnp.array([-9, 1, 9])), [0, 1, 2])


def test_bounds_may_differ_by_coordinate() -> None:
    domain = Real(np.array([0.0, 10.0]), np.array([1.0, 20.0]))
    x = jnp.broadcast_to(jnp.array([0.5, 15.0]), (N, 2))
    for points in (
        domain.sample(x, jnp.float32(0.1), words=shaped(jr.key(0), x.shape)),
        domain.neighbour(x, jnp.float32(3.0), words=shaped(jr.key(1), x.shape)),
    ):
        assert (points >= jnp.array([0.0, 10.0])).all() and (points <= jnp.array([1.0, 20.0])).all()
    assert abs(domain.sample(x, jnp.float32(0.1), words=shaped(jr.key(0), x.shape))[:, 1].mean() - 15.0) < 0.2


def test_real_sample_is_uniform_where_bounded_and_a_step_where_not() -> None:
    inside = np.asarray(Real(2.0, 6.0).sample(jnp.zeros(N), jnp.float32(0.1), words=shaped(jr.key(0), (N,))))
    assert inside.min() >= 2.0 and inside.max() <= 6.0
    np.testing.assert_allclose(np.quantile(inside, [0.1, 0.5, 0.9]), [2.4, 4.0, 5.6], atol=0.15)
    free = np.asarray(Real().sample(jnp.full(N, 5.0), jnp.float32(0.1), words=shaped(jr.key(0), (N,))))
    assert abs(free.mean() - 5.0) < 0.01 and abs(free.std() - 0.1) < 0.005


def test_real_neighbour_scale_is_a_share_of_the_range() -> None:
    near = np.asarray(Real(0.0, 1000.0).neighbour(jnp.full(N, 500.0), jnp.float32(0.01), words=shaped(jr.key(0), (N,))))
    assert (near != 500.0).all()
    assert abs(near.std() - 10.0) < 0.5
    far = np.asarray(Real(0.0, 1000.0).neighbour(jnp.full(N, 500.0), jnp.float32(5.0), words=shaped(jr.key(0), (N,))))
    assert far.min() == 0.0 and far.max() == 1000.0


def test_log_steps_are_factors() -> None:
    """The logarithm of the factor has the same spread wherever the step starts."""
    domain, scale = Real(1e-6, 1.0, log=True), 0.02
    for start in (1e-4, 1e-2):
        factors = (
            np.asarray(domain.neighbour(jnp.full(N, start), jnp.float32(scale), words=shaped(jr.key(0), (N,)))) / start
        )
        assert abs(np.log(factors).std() - scale * np.log(1e6)) < 0.01
    unbounded = (
        np.asarray(Real(log=True).neighbour(jnp.full(N, 100.0), jnp.float32(0.5), words=shaped(jr.key(0), (N,))))
        / 100.0
    )
    assert (unbounded > 0).all() and abs(np.log(unbounded).std() - 0.5) < 0.02
    drawn = np.log10(np.asarray(domain.sample(jnp.ones(N), jnp.float32(scale), words=shaped(jr.key(1), (N,)))))
    np.testing.assert_allclose(np.quantile(drawn, [0.25, 0.5, 0.75]), [-4.5, -3.0, -1.5], atol=0.2)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.int8, jnp.uint8])
@pytest.mark.parametrize("scale", [1e-3, 0.3, 5.0])
def test_integer_neighbour_moves_and_stays_inside(dtype: jnp.dtype, scale: float) -> None:
    domain = Integer(1, 100)
    x = jnp.asarray(np.r_[np.arange(1, 101), np.full(200, 1), np.full(200, 100)], dtype)
    moved = domain.neighbour(x, jnp.float32(scale), words=shaped(jr.key(0), x.shape))
    assert moved.dtype == dtype
    assert (moved != x).all(), np.asarray(x)[np.asarray(moved == x)]
    assert moved.min() >= 1 and moved.max() <= 100
    inner = np.asarray(moved, int)[:100] - np.asarray(x, int)[:100]
    if scale == 1e-3:
        assert set(np.abs(inner)) == {1} and 25 < (inner > 0).sum() < 75


def test_integer_of_one_value_has_no_neighbour_and_two_values_swap() -> None:
    np.testing.assert_array_equal(
        Integer(4, 4).neighbour(jnp.full(50, 4), jnp.float32(0.5), words=shaped(jr.key(0), (50,))), np.full(50, 4)
    )
    x = jnp.arange(50) % 2
    for scale in (0.01, 10.0):
        np.testing.assert_array_equal(
            Integer(0, 1).neighbour(x, jnp.float32(scale), words=shaped(jr.key(0), x.shape)), 1 - x
        )


def test_integer_sample_reaches_both_ends_evenly() -> None:
    counts = np.bincount(
        np.asarray(Integer(0, 4).sample(jnp.zeros(5 * N, int), jnp.float32(0.1), words=shaped(jr.key(0), (5 * N,))))
    )
    assert counts.size == 5
    assert np.abs(counts - N).max() < 5 * np.sqrt(N)


@pytest.mark.parametrize(("n", "dtype"), [(2, jnp.int32), (5, jnp.int32), (100, jnp.int8), (256, jnp.uint8)])
def test_categorical_neighbour_is_uniform_over_the_others(n: int, dtype: jnp.dtype) -> None:
    each = 200
    x = jnp.full((n - 1) * each, n - 1, dtype)
    moved = Categorical(n).neighbour(x, jnp.float32(0.1), words=shaped(jr.key(0), x.shape))
    assert moved.dtype == dtype
    counts = np.bincount(np.asarray(moved), minlength=n)
    assert counts[n - 1] == 0
    assert np.abs(counts[:-1] - each).max() < 5 * np.sqrt(each)


def test_categorical_sample_is_uniform_and_one_category_stays() -> None:
    counts = np.bincount(
        np.asarray(Categorical(4).sample(jnp.zeros(4 * N, int), jnp.float32(0.1), words=shaped(jr.key(0), (4 * N,))))
    )
    assert counts.size == 4 and np.abs(counts - N).max() < 5 * np.sqrt(N)
    np.testing.assert_array_equal(
        Categorical(1).neighbour(jnp.zeros(9, int), jnp.float32(0.1), words=shaped(jr.key(0), (9,))), np.zeros(9)
    )


def test_domains_run_under_jit_and_vmap_alike() -> None:
    for domain, x in (
        (Real(0.0, 1.0), jnp.full(8, 0.5)),
        (Integer(0, 9), jnp.arange(8)),
        (Categorical(8), jnp.arange(8)),
    ):
        keys = jr.split(jr.key(0), 3)
        mapped = jax.jit(jax.vmap(lambda k: domain.neighbour(x, jnp.float32(0.2), words=shaped(k, x.shape))))(keys)
        alone = jnp.stack([domain.neighbour(x, jnp.float32(0.2), words=shaped(k, x.shape)) for k in keys])
        np.testing.assert_allclose(mapped, alone, rtol=1e-5)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Real(1.0, 1.0), r"`lo` must be below `hi`"),
        (lambda: Real(float("nan"), 1.0), r"the bound nan is not finite throughout"),
        (lambda: Real(0.0, 1.0, log=True), r"a log scale needs `lo` above 0, for example `lo=1e-6`"),
        (lambda: Integer(3, 2), r"`Integer\(lo=3, hi=2\)`: give two integers with `lo <= hi`"),
        (lambda: Integer(0.5, 2), r"`Integer\(lo=0.5, hi=2\)`"),
        (lambda: Categorical(0), r"`Categorical\(n=0\)`: give the number of categories, at least 1"),
        (lambda: Categorical(2.0), r"`Categorical\(n=2.0\)`"),
    ],
)
def test_what_cannot_be_built(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_complete_fills_in_reals_and_spreads_a_prefix() -> None:
    params = {"a": jnp.zeros(2), "b": {"c": jnp.zeros((), int), "d": jnp.zeros(3, int)}}
    full = complete({"a": None, "b": Integer(0, 5)}, params)
    assert full["a"] == Real() and full["b"] == {"c": Integer(0, 5), "d": Integer(0, 5)}
    assert complete(None, {"a": jnp.zeros(2)}) == {"a": Real()}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("domain", "params", "message"),
    [
        (None, {"n": jnp.zeros(2, int)}, r"`params\['n'\]` is int32 and has no domain.*`Integer\(lo, hi\)`"),
        (Real(), {"n": jnp.zeros(2, int)}, r"`params\['n'\]` is int32, and its domain is `Real`"),
        (Integer(0, 2), {"x": jnp.zeros(2)}, r"`params\['x'\]` is float32, and its domain is `Integer`"),
        (Categorical(2), {"x": jnp.zeros(2)}, r"`params\['x'\]` is float32, and its domain is `Categorical`"),
        ({"x": "real"}, {"x": jnp.zeros(2)}, r"the domain of `params\['x'\]` is 'real'; use `Real`, `Integer` or"),
    ],
)
def test_complete_says_which_leaf_does_not_fit(domain, params, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        complete(domain, params)


def test_complete_shows_both_sides_of_what_is_no_prefix() -> None:
    with pytest.raises(ValueError, match="domain must be a prefix of the parameters") as caught:
        complete({"x": Real(), "y": Real()}, {"x": jnp.zeros(1), "z": jnp.zeros(1)})
    lines = str(caught.value).splitlines()
    assert any(line.startswith("  domain:") and "'y'" in line for line in lines)
    assert any(line.startswith("  parameters:") and "'z'" in line for line in lines)
