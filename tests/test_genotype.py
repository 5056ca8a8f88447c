"""Bounds, logarithms and whole numbers as one unbounded vector; and the margin that keeps whole numbers moving."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest
from scipy.stats import norm

from nondiff import Integer, Real
from nondiff.core.exact import exactly
from nondiff.trainers.genotype import Genotype
from nondiff.trainers.margin import centred, with_margin

DOMAINS: dict[str, Real] = {
    "free": Real(),
    "both": Real(-0.5, 2.0),
    "narrow": Real(0.1, 0.13),  # the two parabolas meet in the middle
    "below": Real(lo=0.1),
    "above": Real(hi=-0.3),
    "many": Real(np.array([-1.0, 0.1, -50.0]), np.array([1.0, 0.7, 100.0])),
    "log": Real(1e-6, 0.1, log=True),
    "log_below": Real(lo=0.3, log=True),
    "log_above": Real(hi=0.3, log=True),
    "log_free": Real(log=True),
}
FLOATS = ["float32", "float64"]
"""0.1, 0.13, 0.3, 0.7 and 1e-6 are none of either."""

params = exactly(lambda genotype, vector: genotype.params(vector))
encoded = exactly(lambda genotype, point, exact: genotype.vector(point, exact.dtype))
clip = exactly(lambda domain, x: domain.clip(x))
together = exactly(lambda genotype, vectors: jax.vmap(genotype.params)(vectors))


def vector(genotype: Genotype, point: Any) -> np.ndarray:
    """In 64 bits, whatever the leaves have."""
    return encoded(genotype, point, np.zeros(()))


def alone(domain: Any, dtype: str = "float64", size: int = 3) -> Genotype:
    """Of one leaf."""
    return Genotype({"x": np.ones(size, dtype)}, {"x": domain})


def points(domain: Real, vectors: np.ndarray, dtype: str = "float64") -> np.ndarray:
    """What the rows become."""
    return np.asarray(together(alone(domain, dtype), vectors)["x"])


def ends(domain: Real) -> tuple[np.ndarray, np.ndarray]:
    """The bounds on the scale of the vector; infinite where there are none."""

    def one(bound: Any, missing: float) -> np.ndarray:
        bound = np.full(3, missing) if bound is None else np.broadcast_to(bound, 3)
        return np.log(bound) if domain.log and np.isfinite(bound).all() else bound

    return one(domain.lo, -np.inf), one(domain.hi, np.inf)


def reaches(lo: np.ndarray, hi: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How near to the bounds the parabolas begin: pycma's."""
    most = (hi - lo) / 2
    below, above = (np.where(np.isinf(x), 0.0, np.minimum((1 + np.abs(x)) / 20, most)) for x in (lo, hi))
    return below, above


def folded(u: float, lo: float, hi: float, a: float, b: float) -> float:
    """By hand: mirrored until it is near enough, then the parabolas."""
    while not lo - a <= u <= hi + b:
        u = 2 * (lo - a) - u if u < lo - a else 2 * (hi + b) - u
    if u < lo + a:
        return lo + (u - lo + a) ** 2 / (4 * a)
    return hi - (u - hi - b) ** 2 / (4 * b) if u > hi - b else u


def inside(domain: Real, random: np.random.Generator, rows: int = 50) -> np.ndarray:
    """Random points, some of them on the bounds and next to them."""
    lo, hi = ends(domain)
    lo, hi = np.where(np.isinf(lo), np.minimum(hi, 0) - 9, lo), np.where(np.isinf(hi), np.maximum(lo, 0) + 9, hi)
    share = random.uniform(size=(rows, 3)) ** 3
    share[:4] = [[0, 1, 0.5], [1, 0, 1], [1e-9, 1 - 1e-9, 1e-3], [0.02, 0.98, 0.99]]
    x = lo + (hi - lo) * share
    return np.exp(x) if domain.log else x


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", DOMAINS)
def test_a_point_becomes_a_vector_and_itself_again(name: str, dtype: str) -> None:
    domain, random = DOMAINS[name], np.random.default_rng(0)
    x = np.asarray(clip(domain, inside(domain, random).astype(dtype)))  # as a user's start, in the leaf's type
    genotype = alone(domain, dtype)
    again = np.stack([params(genotype, vector(genotype, {"x": row}))["x"] for row in x[:8]])
    assert again.dtype == dtype
    # Of 64 bits the rounding of a logarithm, or of a square root, is left; of 32 nothing.
    np.testing.assert_allclose(again, x[:8], rtol=2e-15 if dtype == "float64" else 0, atol=0 if domain.log else 1e-14)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", DOMAINS)
def test_every_vector_lands_inside(name: str, dtype: str) -> None:
    domain, random = DOMAINS[name], np.random.default_rng(1)
    lo, hi = ends(domain)
    near = [x for x in (lo, hi) if np.isfinite(x).all()]
    vectors = [random.normal(size=(200, 3)) * scale for scale in (0.1, 1.0, 30.0)]
    vectors += [x + random.normal(size=(100, 3)) * scale for x in near for scale in (1e-9, 0.1)]
    far = 1e3 if domain.log or not near else 1e30
    vectors += [np.stack([np.full(3, s * far), *near]) for s in (-1, 1)]
    vectors = np.concatenate(vectors)
    x = points(domain, vectors, dtype)
    assert x.dtype == dtype
    # The bounds as the leaf has them: where the nearest number of 32 bits lies beyond, that one is meant.
    if domain.lo is not None:
        assert (x >= np.asarray(domain.lo).astype(dtype)).all()
    if domain.hi is not None:
        assert (x <= np.asarray(domain.hi).astype(dtype)).all()
    if domain.log:
        assert (x > 0).all()
    np.testing.assert_array_equal(clip(domain, x), x)  # what a problem is checked by
    assert np.isfinite(x[np.abs(vectors).max(1) < 80]).all()


@pytest.mark.parametrize("name", [x for x in DOMAINS if DOMAINS[x].constrained])
def test_the_fold_is_that_of_the_second_implementation(name: str) -> None:
    domain, random = DOMAINS[name], np.random.default_rng(2)
    lo, hi = ends(domain)
    a, b = reaches(lo, hi)
    vectors = np.concatenate([random.normal(size=(100, 3)) * scale for scale in (0.2, 2.0, 40.0)])
    want = [[folded(u, *each) for u, *each in zip(row, lo, hi, a, b, strict=True)] for row in vectors]
    want = np.exp(want) if domain.log else np.array(want)
    some = want.max(1) < np.exp(30)  # above, what is left of a logarithm are few digits
    np.testing.assert_allclose(points(domain, vectors)[some], want[some], rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("name", [x for x in DOMAINS if DOMAINS[x].constrained])
def test_the_fold_has_no_jumps_and_no_kinks(name: str) -> None:
    domain = DOMAINS[name]
    lo, hi = ends(domain)
    lo, hi = np.where(np.isinf(lo), hi - 1, lo)[0], np.where(np.isinf(hi), lo + 1, hi)[0]
    u = np.linspace(lo - 3, hi + 3, 20_001)
    x = points(domain, np.tile(u[:, None], 3))[:, 0]
    x = np.log(x) if domain.log else x
    step, slope = u[1] - u[0], np.diff(x) / (u[1] - u[0])
    assert np.abs(slope).max() <= 1 + 1e-9  # a jump would be steeper
    sharpest = 1 / (2 * min(reach[0] for reach in reaches(*ends(domain)) if reach[0] > 0))
    assert np.abs(np.diff(slope)).max() <= 1.001 * sharpest * step + 1e-9


def test_the_middle_is_left_as_it_is() -> None:
    for domain, lo, hi in (
        (DOMAINS["both"], -0.42, 1.84),
        (DOMAINS["below"], 0.16, 1e3),
        (DOMAINS["above"], -1e3, -0.37),
    ):
        u = np.random.default_rng(3).uniform(lo, hi, (100, 3))
        np.testing.assert_allclose(points(domain, u), u, rtol=1e-15, atol=1e-15)
    u = np.random.default_rng(3).uniform(np.log(1e-6) + 0.75, np.log(0.1) - 0.17, (100, 3))
    np.testing.assert_allclose(points(DOMAINS["log"], u), np.exp(u), rtol=1e-14)
    u = np.random.default_rng(3).normal(size=(100, 3))
    np.testing.assert_array_equal(points(DOMAINS["free"], u), u)


@pytest.mark.parametrize("domain", [Real(-1e9, 1e9), Real(lo=-1e9), Real(hi=1e9)], ids=repr)
def test_bounds_far_away_take_no_digits(domain: Real) -> None:
    u = np.random.default_rng(3).normal(size=(100, 3))
    np.testing.assert_array_equal(points(domain, u), u)


def test_whole_numbers_are_the_nearest_within_their_range() -> None:
    genotype = Genotype(
        {"n": np.zeros(3, np.int8), "m": np.zeros((2, 2), np.int32)}, {"n": Integer(-2, 5), "m": Integer(3, 3)}
    )
    u = np.random.default_rng(4).normal(size=(200, 7)) * 5
    u[0] = [-1e9, 1e9, 4.49999, -2.6, 0.0, 9.0, 3.2]
    got = together(genotype, u)
    assert got["n"].dtype == np.int8 and got["m"].shape == (200, 2, 2)  # leaves in the order of their names
    np.testing.assert_array_equal(got["n"], np.clip(np.round(u[:, 4:]), -2, 5))
    np.testing.assert_array_equal(got["m"], 3)
    start = {"n": np.array([-2, 0, 5], np.int8), "m": np.full((2, 2), 3, np.int32)}
    np.testing.assert_array_equal(vector(genotype, start), [3, 3, 3, 3, -2, 0, 5])


def test_leaves_in_order_each_of_its_own_type() -> None:
    like = {
        "b": np.float64(0.5),
        "a": jnp.ones((2, 2), jnp.bfloat16),
        "none": None,
        "c": np.ones((0, 3)),
        "d": np.int32(4),
    }
    domain = {"b": Real(0, 1), "a": Real(), "none": None, "c": Real(), "d": Integer(0, 9)}
    genotype = Genotype(like, domain)
    got = params(genotype, np.array([1.0, 2.0, 3.0, 4.0, 0.25, 6.7]))
    assert jtu.tree_structure(got) == jtu.tree_structure(like)
    assert [got[name].dtype for name in "abcd"] == [jnp.bfloat16, np.float64, np.float64, np.int32]
    np.testing.assert_array_equal(np.asarray(got["a"], float), [[1, 2], [3, 4]])
    assert float(got["b"]) == 0.25 and int(got["d"]) == 7 and got["c"].shape == (0, 3)


# Whole numbers

LO, HI = np.array([0, -3, 0, 5]), np.array([1, 4, 20, 5])
"""Of the first four coordinates; the last can only be 5. Two real ones follow."""
MIXED = Genotype(
    {
        "a": np.zeros((), np.int32),
        "b": np.zeros((), np.int32),
        "c": np.zeros((), np.int32),
        "d": np.full((), 5),
        "e": np.ones(2),
    },
    {"a": Integer(0, 1), "b": Integer(-3, 4), "c": Integer(0, 20), "d": Integer(5, 5), "e": Real()},
)
ALPHA = 1 / (6 * 8)
margin = exactly(
    jax.vmap(lambda mean, sigma, units, squares: with_margin(mean, sigma, units, squares, MIXED.integers, ALPHA))
)


@pytest.fixture(scope="module")
def many() -> tuple[np.ndarray, ...]:
    """Means all over the ranges and a little beyond, with deviations from 1e-6 to 30: before and after."""
    random = np.random.default_rng(5)
    n = 2_000
    mean = np.concatenate([random.uniform(LO - 2, HI + 2, (n, 4)), random.normal(size=(n, 2))], 1)
    mean[: n // 4, :4] = np.round(mean[: n // 4, :4])
    sigma = 10 ** random.uniform(-3, 1, n)
    units, variances = 10 ** random.uniform(-1, 0.5, (n, 6)), 10 ** random.uniform(-4, 0, (n, 6))
    return mean, sigma, units, variances, *margin(mean, sigma, units, variances)


def odds(mean: np.ndarray, deviation: np.ndarray) -> tuple[np.ndarray, ...]:
    """What the first three coordinates' means round to, and how probable a lower and a higher number are."""
    mean, deviation, lo, hi = mean[:, :3], deviation[:, :3], LO[:3], HI[:3]
    number = np.clip(np.round(mean), lo, hi)
    low, up = norm.cdf((number - 0.5 - mean) / deviation), norm.sf((number + 0.5 - mean) / deviation)
    return number, np.where(number > lo, low, 0.0), np.where(number < hi, up, 0.0)


def test_the_margin_keeps_a_least_probability_of_another_number(many: tuple[np.ndarray, ...]) -> None:
    mean, sigma, units, variances, moved, stretched = many
    _, before, after = odds(mean, sigma[:, None] * units * np.sqrt(variances))
    rare = (before < ALPHA / 2) & (after < ALPHA / 2)
    number, low, up = odds(moved, sigma[:, None] * stretched * np.sqrt(variances))
    first, last = number == LO[:3], number == HI[:3]
    assert min(x.sum() for x in (first, last, ~first & ~last)) > 500 and rare.sum() > 1_000  # all are met
    assert (up[first] >= ALPHA - 1e-9).all() and (low[last] >= ALPHA - 1e-9).all()
    assert (np.minimum(low, up)[~first & ~last] >= ALPHA / 2 - 1e-9).all()
    # No more than is needed where there was next to nothing.
    inner = ~first & ~last & rare
    np.testing.assert_allclose(low[inner], ALPHA / 2, rtol=1e-6)
    np.testing.assert_allclose(up[inner], ALPHA / 2, rtol=1e-6)


def test_steps_that_cross_to_another_number_end_at_it() -> None:
    random = np.random.default_rng(6)
    mean = np.array([0.4, 1.3, 7.0, 4.0, 0.2, -3.0])
    steps = random.normal(size=(100, 6)) * [0.3, 2.0, 0.6, 1.0, 1.0, 1.0]
    got = centred(steps, mean, MIXED.integers)
    inside = [1, 2]  # the first one's mean is at an end of its range, the fourth has one number only
    crossed = np.round(mean + steps)[:, inside] != [1, 7]
    assert (crossed.sum(0) > 20).all() and (~crossed).any(0).all()
    want = np.where(crossed, np.round(mean + steps)[:, inside], (mean + steps)[:, inside])
    np.testing.assert_allclose((mean + got)[:, inside], want, atol=1e-14)
    np.testing.assert_array_equal(np.delete(got, inside, 1), np.delete(steps, inside, 1))


def test_the_margin_leaves_alone_what_has_it_and_what_is_real(many: tuple[np.ndarray, ...]) -> None:
    mean, sigma, units, variances, moved, stretched = many
    np.testing.assert_array_equal(moved[:, 4:], mean[:, 4:])
    np.testing.assert_array_equal(stretched[:, 3:], units[:, 3:])
    assert np.isfinite(moved).all() and (stretched > 0).all() and np.isfinite(stretched).all()
    number, low, up = odds(mean, sigma[:, None] * units * np.sqrt(variances))
    near = (mean[:, :3] >= LO[:3] - 1) & (mean[:, :3] <= HI[:3] + 1)  # further away, it is brought back
    assert (moved[:, :3] >= LO[:3] - 1).all() and (moved[:, :3] <= HI[:3] + 1).all()
    inner = (number > LO[:3]) & (number < HI[:3]) & (np.minimum(low, up) >= ALPHA / 2)
    ends = near & (((number == LO[:3]) & (up >= ALPHA)) | ((number == HI[:3]) & (low >= ALPHA)))
    assert inner.sum() > 100 and ends.sum() > 100
    np.testing.assert_allclose(moved[:, :3][inner | ends], mean[:, :3][inner | ends], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(stretched[:, :3][inner | ends], units[:, :3][inner | ends], rtol=1e-9)


def test_the_margin_never_changes_the_number(many: tuple[np.ndarray, ...]) -> None:
    """It makes others likely; which one the mean stands for is not its to say."""
    mean, sigma, _, variances, moved, stretched = many
    number, *_ = odds(mean, sigma[:, None])
    again, *_ = odds(moved, sigma[:, None] * stretched * np.sqrt(variances))
    np.testing.assert_array_equal(again, number)


def test_the_margin_on_a_border_between_two_numbers() -> None:
    mean = np.array([[0.5, -2.5, 19.5, 5.0, 0.0, 0.0], [0.5, 1.5, 7.5, 5.0, 0.0, 0.0], [0.5, 3.5, 0.5, 5.0, 0.0, 0.0]])
    for sigma in (1e-9, 0.1, 3.0):
        moved, stretched = margin(mean, np.full(3, sigma), np.ones((3, 6)), np.ones((3, 6)))
        np.testing.assert_allclose(moved, mean, atol=0.01)  # either of them is nearly as likely
        assert np.isfinite(stretched).all()
