"""Proximal operators against their definition: by enumeration, by scipy, and in NumPy. One line in `CASES` buys a new
one the checks of every operator, one in `SOLVED` a second implementation.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax
import pytest
import scipy.optimize

import nondiff as nd
from nondiff import prox as px
from nondiff.testing import check_prox

pytestmark = pytest.mark.usefixtures("compiled_quickly")
Solver = Callable[[np.ndarray, float], np.ndarray]


class Case(NamedTuple):
    prox: nd.AbstractProx
    convex: bool = True
    exact: bool = True
    shapes: tuple[tuple[int, ...], ...] = nd.testing.prox.SHAPES


CASES = {
    "binary": Case(px.Binary(), convex=False),
    "box": Case(px.Box(-0.5, 1.0)),
    "box_array": Case(px.Box(np.array([-1.0, 0.0, 0.5]), None), shapes=((3,), (4, 3), (2, 1, 2, 3))),
    "cardinality": Case(px.Cardinality(2), convex=False),
    "cardinality_share": Case(px.Cardinality(share=0.3), convex=False),
    "custom": Case(px.Custom(lambda v, rho: v / (1 + 2 / rho), lambda z: jnp.sum(z**2))),
    "elastic_net": Case(px.ElasticNet(0.5, 2.0)),
    "grid": Case(px.Grid(3), convex=False, exact=False),
    "group": Case(px.Group(0.7, axis=-1)),
    "group_axes": Case(px.Group(0.7, axis=(0, -1)), shapes=((3, 4), (2, 3, 2))),
    "l1": Case(px.L1(0.5)),
    "l1_ball": Case(px.L1Ball(2.0)),
    "l2": Case(px.L2(0.5)),
    "l2_ball": Case(px.L2Ball(2.0)),
    "monotone": Case(px.Monotone()),
    "monotone_first": Case(px.Monotone(axis=0)),
    "nothing": Case(px.L1(0)),
    "nuclear": Case(px.Nuclear(0.5)),
    "over_all": Case(px.OverAll(px.Cardinality(2)), convex=False),
    "parts": Case(px.Parts({"all": px.L1(0.5)}, "all"), shapes=((3,),)),
    "simplex": Case(px.Simplex(2.0)),
    "squared_l2": Case(px.SquaredL2(2.0)),
    "ternary": Case(px.Ternary(), convex=False),
}


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("name", CASES)
def test_contract(name: str, bits: int) -> None:
    case = CASES[name]
    with jax.enable_x64(bits == 64):
        shapes = case.shapes if bits == 32 else case.shapes[:1]
        check_prox(case.prox, convex=case.convex, exact=case.exact, shapes=shapes)


def test_every_operator_is_in_the_list() -> None:
    assert {type(case.prox).__name__ for case in CASES.values()} == set(px.__all__)


# Second implementations, in float64


def by_entry(cost: Callable[[float], float]) -> Solver:
    """Entry by entry, by golden sections of the definition."""

    def solve(v: np.ndarray, rho: float) -> np.ndarray:
        def one(x: float) -> float:
            return scipy.optimize.minimize_scalar(
                lambda z: cost(z) + rho / 2 * (z - x) ** 2, bounds=(-20, 20), method="bounded", options={"xatol": 1e-9}
            ).x

        return np.vectorize(one)(v)

    return solve


def by_slsqp(*, weight: float = 0.0, constraints: Callable[[int], list[dict[str, Any]]], start: Any) -> Solver:
    """`min weight * t + rho/2 |z - v|^2` over `(z, t)` under constraints, for penalties written with a bound `t`."""

    def solve(v: np.ndarray, rho: float) -> np.ndarray:
        flat, n = v.ravel(), v.size
        found = scipy.optimize.minimize(
            lambda x: weight * np.sum(x[n:]) + rho / 2 * np.sum((x[:n] - flat) ** 2),
            start(flat),
            constraints=constraints(n),
            method="SLSQP",
            options={"ftol": 1e-15, "maxiter": 1000},
        )
        return found.x[:n].reshape(v.shape)

    return solve


def at_least(fn: Callable[[np.ndarray], Any]) -> dict[str, Any]:
    return {"type": "ineq", "fun": fn}


def absolute(bound: float) -> Solver:
    """`sum |z| <= bound`, by signs: `z = a - b` with both at least 0, their sum bounded."""

    def solve(v: np.ndarray, rho: float) -> np.ndarray:
        flat, n = v.ravel(), v.size
        found = scipy.optimize.minimize(
            lambda x: rho / 2 * np.sum((x[:n] - x[n:] - flat) ** 2),
            np.full(2 * n, bound / (4 * n)),
            bounds=[(0, None)] * (2 * n),
            constraints=[at_least(lambda x: bound - x.sum())],
            method="SLSQP",
            options={"ftol": 1e-15, "maxiter": 1000},
        )
        return (found.x[:n] - found.x[n:]).reshape(v.shape)

    return solve


def dual_ball(weight: float) -> Solver:
    """Moreau: what is left of `v` by the projection of `rho v` onto the dual norm's ball, here that of l2."""

    def solve(v: np.ndarray, rho: float) -> np.ndarray:
        ball = by_slsqp(constraints=lambda n: [at_least(lambda x: weight**2 - np.sum(x**2))], start=np.zeros_like)
        return v - ball(rho * v, 1.0) / rho

    return solve


def by_line(solve: Solver, axis: int) -> Solver:
    def lines(v: np.ndarray, rho: float) -> np.ndarray:
        return np.apply_along_axis(lambda line: solve(line, rho), axis, v)

    return lines


def factored(weight: float) -> Solver:
    """Nuclear norm: the least of `(|a|^2 + |b|^2) / 2` over all `a b^T = z`."""

    def solve(v: np.ndarray, rho: float) -> np.ndarray:
        m, n = v.shape
        r = min(m, n)

        def cost(x: np.ndarray) -> tuple[float, np.ndarray]:
            a, b = x[: m * r].reshape(m, r), x[m * r :].reshape(n, r)
            error = a @ b.T - v
            slope = np.concatenate([(rho * error @ b + weight * a).ravel(), (rho * error.T @ a + weight * b).ravel()])
            return rho / 2 * np.sum(error**2) + weight / 2 * np.sum(x**2), slope

        start = np.random.default_rng(0).normal(size=(m + n) * r)
        x = scipy.optimize.minimize(cost, start, jac=True, method="BFGS", options={"gtol": 1e-10}).x
        return x[: m * r].reshape(m, r) @ x[m * r :].reshape(n, r).T

    return solve


def by_support(k: int) -> Solver:
    """All choices of `k` entries to keep."""

    def solve(v: np.ndarray, rho: float) -> np.ndarray:
        del rho
        flat = v.ravel()
        points = []
        for kept in itertools.combinations(range(v.size), k):
            points.append(np.where(np.isin(np.arange(v.size), kept), flat, 0.0))
        return min(points, key=lambda z: np.sum((z - flat) ** 2)).reshape(v.shape)

    return solve


def by_pattern(numbers: list[int]) -> Solver:
    """All assignments of whole numbers, each with its best scale that is at least 0."""

    def solve(v: np.ndarray, rho: float) -> np.ndarray:
        del rho
        q = np.array(list(itertools.product(numbers, repeat=v.size)), float)
        scale = np.maximum(q @ v.ravel(), 0) / np.maximum(np.sum(q**2, axis=1), 1)
        z = scale[:, None] * q
        return z[np.argmin(np.sum((z - v.ravel()) ** 2, axis=1))].reshape(v.shape)

    return solve


def isotonic(v: np.ndarray, rho: float) -> np.ndarray:
    del rho
    return scipy.optimize.isotonic_regression(v).x


def pooled(v: np.ndarray, rho: float) -> np.ndarray:
    """Adjacent violators, pooled as long as there are any."""
    del rho
    blocks = [[x] for x in v]
    while any(np.mean(a) > np.mean(b) for a, b in itertools.pairwise(blocks)):
        i = next(i for i, (a, b) in enumerate(itertools.pairwise(blocks)) if np.mean(a) > np.mean(b))
        blocks[i : i + 2] = [blocks[i] + blocks[i + 1]]
    return np.concatenate([np.full(len(block), np.mean(block)) for block in blocks])


def clipped(v: np.ndarray) -> np.ndarray:
    return np.clip(v, 0.1, None)


on_simplex = by_slsqp(
    constraints=lambda n: [{"type": "eq", "fun": lambda x: x.sum() - 2.0}, at_least(lambda x: x)], start=clipped
)
in_l2_ball = by_slsqp(constraints=lambda n: [at_least(lambda x: 4.0 - np.sum(x**2))], start=np.zeros_like)

SOLVED: list[tuple[nd.AbstractProx, tuple[int, ...], Solver]] = [
    (px.Binary(), (2, 5), by_pattern([-1, 1])),
    (px.Box(-0.5, 1.0), (5,), lambda v, rho: np.minimum(np.maximum(v, -0.5), 1.0)),
    (px.Cardinality(0), (4,), by_support(0)),
    (px.Cardinality(3), (2, 4), by_support(3)),
    (px.Cardinality(share=0.5), (2, 4), by_support(4)),
    (px.ElasticNet(0.5, 2.0), (6,), by_entry(lambda z: 0.5 * abs(z) + z**2)),
    (px.Grid(2), (7,), by_pattern([-1, 0, 1])),
    (px.Grid(3), (5,), by_pattern([-3, -2, -1, 0, 1, 2, 3])),
    (px.Group(0.7, axis=0), (3, 4), by_line(dual_ball(0.7), 0)),
    (px.Group(0.7, axis=-1), (2, 2, 3), by_line(dual_ball(0.7), -1)),
    (px.Group(0.7, axis=(0, 1)), (2, 3), dual_ball(0.7)),
    (px.L1(0.5), (6,), by_entry(lambda z: 0.5 * abs(z))),
    (px.L1Ball(2.0), (5,), absolute(2.0)),
    (px.L1Ball(20.0), (5,), absolute(20.0)),
    (px.L2(0.5), (2, 3), dual_ball(0.5)),
    (px.L2Ball(2.0), (5,), in_l2_ball),
    (px.Monotone(), (3, 12), by_line(isotonic, -1)),
    (px.Monotone(axis=0), (12, 2), by_line(pooled, 0)),
    (px.Monotone(axis=1), (2, 9, 2), by_line(pooled, 1)),
    (px.Nuclear(1.5), (3, 4), factored(1.5)),
    (px.Nuclear(0.5), (5,), dual_ball(0.5)),
    (px.OverAll(px.L2(0.5)), (2, 3), dual_ball(0.5)),
    (px.Simplex(2.0), (5,), on_simplex),
    (px.SquaredL2(2.0), (6,), by_entry(lambda z: z**2)),
    (px.Ternary(), (9,), by_pattern([-1, 0, 1])),
]


@pytest.mark.parametrize("prox, shape, solve", SOLVED, ids=lambda x: str(x) if isinstance(x, nd.AbstractProx) else "")
def test_against_a_second_implementation(prox: nd.AbstractProx, shape: tuple[int, ...], solve: Solver) -> None:
    apply = jax.jit(lambda v, rho: prox(v, rho))  # bounds that are arrays have no hash
    for seed, rho in enumerate((0.3, 1.0, 4.0)):
        v = 1.5 * np.random.default_rng(seed).normal(size=shape)
        expected = solve(v, rho)
        np.testing.assert_allclose(apply(jnp.asarray(v, jnp.float32), rho), expected, atol=3e-4)
        with jax.enable_x64(True):
            np.testing.assert_allclose(apply(jnp.asarray(v), rho), expected, atol=3e-6)


VALUES = [
    (px.ElasticNet(0.5, 2.0), 0.5 * 10 + 30.0),
    (px.Group(2.0, axis=1), 2 * (np.sqrt(5) + 5)),
    (px.L1(0.5), 5.0),
    (px.L2(0.5), 0.5 * np.sqrt(30)),
    (px.Nuclear(2.0), 2 * np.linalg.svd([[1, -2], [3, 4]], compute_uv=False).sum()),
    (px.SquaredL2(2.0), 30.0),
    (px.Box(-2, 4), 0.0),
    (px.Box(-1.99, 4), np.inf),
    (px.Cardinality(4), 0.0),
    (px.Cardinality(3), np.inf),
    (px.L1Ball(10.0), 0.0),
    (px.L1Ball(9.99), np.inf),
    (px.L2Ball(5.48), 0.0),
    (px.L2Ball(5.47), np.inf),
    (px.Simplex(6.0), np.inf),
    (px.Monotone(axis=0), 0.0),
    (px.Monotone(axis=1), np.inf),
    (px.Binary(), np.inf),
    (px.Ternary(), np.inf),
    (px.Grid(3), np.inf),
    (px.Grid(4), 0.0),
    (px.Custom(lambda v, rho: v), 0.0),
    (px.Custom(lambda v, rho: v, jnp.sum), 6.0),
]


@pytest.mark.parametrize("prox, expected", VALUES, ids=str)
def test_values(prox: nd.AbstractProx, expected: float) -> None:
    np.testing.assert_allclose(prox.value(jnp.array([[1.0, -2.0], [3.0, 4.0]])), expected, rtol=1e-6)


def test_values_of_points_that_are_inside() -> None:
    assert px.Simplex(6.0).value(jnp.array([[1.0, 2.0], [3.0, 0.0]])) == 0
    assert px.Simplex(6.0).value(jnp.array([1.0, 6.0, -1.0])) == np.inf
    assert px.Binary().value(jnp.array([0.3, -0.3])) == px.Ternary().value(jnp.array([0.3, 0.0, -0.3])) == 0
    assert px.Grid(3).value(jnp.array([0.2, 0.3])) == 0  # twice and three times 0.1
    assert px.Grid(3).value(jnp.array([0.2, 0.5])) == np.inf


# What each promises beside


@pytest.mark.parametrize("kind", ["normal", "uniform", "standard_cauchy"])
@pytest.mark.parametrize("n", [10, 300])
def test_grid_is_near_the_global_minimum(kind: str, n: int) -> None:
    v = getattr(np.random.default_rng(0), kind)(size=(20, n)).astype(np.float32)
    for bits in (2, 3, 4):
        z = jax.vmap(px.Grid(bits), (0, None))(jnp.asarray(v), 1.0)
        least = [least_error(line.astype(np.float64), 2 ** (bits - 1) - 1) for line in v]
        error, size = np.sum((np.asarray(z, np.float64) - v) ** 2, axis=1), np.sum(v.astype(np.float64) ** 2, axis=1)
        assert np.all(error <= 1.03 * np.array(least) + 1e-9 * size)
        assert all(px.Grid(bits).value(line) == 0 for line in z)


def least_error(v: np.ndarray, m: int) -> float:
    """Over all scales: they differ only where `|v|` passes the middle between two values of the grid."""
    a, j = np.abs(v), np.arange(1, m + 1)
    order = np.argsort(-(a[:, None] / (j - 0.5)).ravel(), kind="stable")
    product, square = np.cumsum(np.repeat(a, m)[order]), np.cumsum(np.tile(2 * j - 1, len(a))[order])
    return float(np.sum(a**2) - np.max(product**2 / square))


def test_ties_zeros_and_single_entries() -> None:
    np.testing.assert_array_equal(px.Cardinality(2)(jnp.array([1.0, -2.0, 2.0, -2.0]), 1.0), [0, -2, 2, 0])
    np.testing.assert_array_equal(px.Cardinality(2)(jnp.zeros(3), 1.0), np.zeros(3))
    np.testing.assert_array_equal(px.Ternary()(jnp.array([2.0, -2.0, 2.0, 0.0]), 1.0), [2, -2, 2, 0])
    np.testing.assert_array_equal(px.Binary()(jnp.array([0.0, -2.0]), 1.0), [1, -1])
    np.testing.assert_array_equal(px.Monotone()(jnp.array([3.0, 2.0, 1.0]), 1.0), [2, 2, 2])
    np.testing.assert_array_equal(px.Cardinality(share=0.01)(jnp.array([1.0, 2.0]), 1.0), [0, 2])
    np.testing.assert_array_equal(px.Cardinality(share=0.0)(jnp.array([1.0, 2.0]), 1.0), [0, 0])
    for prox in (px.Binary(), px.Ternary(), px.Grid(4), px.Monotone(), px.Nuclear(0), px.L2(0), px.Group(0, axis=0)):
        np.testing.assert_allclose(prox(jnp.array([-3.0]), 1.0), [-3.0], rtol=1e-6)
        np.testing.assert_array_equal(prox(jnp.zeros((1,)), 1.0), [0.0])


def test_large_leaves_are_inside_in_spite_of_rounding() -> None:
    v = 3 + jr.normal(jr.key(0), (1_000, 1_000))
    for prox in (px.Simplex(), px.L1Ball(10.0), px.L2Ball(1.0), px.Binary(), px.Ternary(), px.Grid(4)):
        assert prox.value(prox(v, 1.0)) == 0, prox
    small = px.Simplex()(v + 1e4, 1.0)  # a shift of all entries changes nothing
    np.testing.assert_allclose(small, px.Simplex()(v + 1e4 - 1e4, 1.0), atol=1e-6)


# Trees

TREE = {"a": jnp.array([1.0, -4.0]), "b": {"w": jnp.array([[3.0], [0.5]]), "c": None}, "n": jnp.array(2.0)}


def test_over_all_counts_the_leaves_together() -> None:
    out = px.OverAll(px.Cardinality(2)).tree(TREE, 1.0)
    np.testing.assert_array_equal(out["a"], [0.0, -4.0])
    np.testing.assert_array_equal(out["b"]["w"], [[3.0], [0.0]])
    assert out["b"]["c"] is None and out["n"] == 0
    assert px.OverAll(px.Cardinality(2)).tree_value(out) == 0
    assert px.OverAll(px.Cardinality(1)).tree_value(out) == np.inf
    assert px.Cardinality(1).tree_value(out) == 0  # leaf by leaf
    np.testing.assert_allclose(px.OverAll(px.L2(2.0)).tree_value(TREE), 2 * np.sqrt(17 + 9.25 + 4), rtol=1e-6)
    with jax.enable_x64(True):
        mixed = px.OverAll(px.L1(1.0)).tree({"a": jnp.ones(2, jnp.float32), "b": 3 * jnp.ones(2, jnp.float64)}, 2.0)
        assert mixed["a"].dtype == jnp.float32 and mixed["b"].dtype == jnp.float64
        np.testing.assert_array_equal(mixed["b"], [2.5, 2.5])


def test_parts() -> None:
    proxes = {"few": px.OverAll(px.Cardinality(1)), "small": px.Box(-1, 1), "free": None}
    parts = px.Parts(proxes, {"a": "few", "b": "few", "n": "small"} | {"k": "free"})
    tree = TREE | {"k": jnp.array([7])}  # whole numbers may stand beside
    out = jax.jit(lambda tree: parts.tree(tree, 1.0))(tree)
    np.testing.assert_array_equal(out["a"], [0.0, -4.0])
    np.testing.assert_array_equal(out["b"]["w"], [[0.0], [0.0]])
    assert out["n"] == 1 and out["k"] == 7 and jtu.tree_structure(out) == jtu.tree_structure(tree)
    assert parts.constrained(tree) == {"a": True, "b": {"w": True, "c": None}, "n": True, "k": False}
    assert parts.tree_value(out) == 0 and parts.tree_value(tree) == np.inf
    mine = tree | {"a": None, "n": None, "k": None}  # inside `Split`
    assert parts.tree(mine, 1.0)["b"]["w"][0, 0] == 3
    assert parts.constrained(mine) == {"a": None, "b": {"w": True, "c": None}, "n": None, "k": None}
    inner = px.Parts({"free": None, "sum": px.L1(1.0)}, {"b": "sum", "n": "free"})
    outer = px.Parts({"inner": inner, "rest": px.SquaredL2(2.0)}, {"a": "rest", "b": "inner", "n": "inner"})
    assert outer.constrained(TREE) == {"a": True, "b": {"w": True, "c": None}, "n": False}
    np.testing.assert_allclose(outer.tree_value(TREE), 17 + 3.5)
    np.testing.assert_allclose(outer.tree(TREE, 2.0)["b"]["w"], [[2.5], [0.0]])


def test_constrains_everything_by_default() -> None:
    assert px.L1(1.0).constrained(TREE) == {"a": True, "b": {"w": True, "c": None}, "n": True}


def test_parts_errors_name_both_sides() -> None:
    with pytest.raises(ValueError, match="`Parts`: the labels and the operators do not match") as caught:
        px.Parts({"one": None, "two": px.L1(1.0)}, {"a": "one", "b": "three"})
    assert "labels: ['one', 'three']" in str(caught.value) and "operators: ['one', 'two']" in str(caught.value)
    with pytest.raises(ValueError, match="labels must be a prefix of the parameters") as caught:
        px.Parts({"one": px.L1(1.0)}, {"a": "one", "z": "one"}).tree({"a": jnp.ones(2), "b": jnp.ones(2)}, 1.0)
    assert "'z'" in str(caught.value) and "'b'" in str(caught.value)


BAD: list[tuple[Callable[[], Any], str]] = [
    (lambda: px.L1(-1.0), r"L1\(weight=-1.0\).*at least 0"),
    (lambda: px.L2(np.nan), r"L2\(weight=nan\).*finite"),
    (lambda: px.SquaredL2(np.inf), "SquaredL2.*finite"),
    (lambda: px.SquaredL2("1"), "SquaredL2.*expected a finite number"),  # pyright: ignore
    (lambda: px.ElasticNet(1.0, -2.0), r"ElasticNet\(l2=-2.0\)"),
    (lambda: px.Nuclear(True), "Nuclear.*expected a finite number"),
    (lambda: px.Group(-1.0, axis=0), "Group.*weight=-1.0"),
    (lambda: px.Group(1.0, axis=(0, 0)), "Group.*axis"),
    (lambda: px.Group(1.0, axis=()), "Group.*axis"),
    (lambda: px.Group(1.0, axis=1)(jnp.ones(3), 1.0), r"\[3\], which has no such axis"),
    (lambda: px.Monotone(axis=-2)(jnp.ones(3), 1.0), r"\[3\], which has no such axis"),
    (lambda: px.Monotone(axis=0.5), "Monotone.*axis=0.5"),  # pyright: ignore
    (lambda: px.Box(1.0, 0.0), r"Box\(lo=1.0, hi=0.0\)"),
    (lambda: px.Box(np.nan), r"Box\(lo=nan"),
    (lambda: px.Box(np.inf), r"Box\(lo=inf"),
    (lambda: px.Box(np.zeros(2), np.ones(3)), r"`lo` of shape \(2,\) and `hi` of \(3,\)"),
    (lambda: px.Box(np.zeros(2), 1.0)(jnp.ones(3), 1.0), r"\(2,\).*against a leaf of \(3,\)"),
    (lambda: px.Simplex(0.0), "Simplex.*above 0"),
    (lambda: px.L1Ball(-1.0), "L1Ball.*above 0"),
    (lambda: px.L2Ball(np.nan), "L2Ball.*above 0"),
    (lambda: px.Cardinality(-1), "Cardinality.*k=-1.*at least 0"),
    (lambda: px.Cardinality(0.1), "Cardinality.*share=0.05"),  # pyright: ignore
    (lambda: px.Cardinality(), "one of the two"),
    (lambda: px.Cardinality(1, share=0.5), "one of the two"),
    (lambda: px.Cardinality(share=1.5), "from 0 to 1"),
    (lambda: px.Cardinality(share=np.nan), "from 0 to 1"),
    (lambda: px.Cardinality(4)(jnp.ones(3), 1.0), r"\[3\], which has 3 entries"),
    (lambda: px.Grid(1), "Grid.*2 to 8.*Binary"),
    (lambda: px.Grid(0), "Grid.*2 to 8"),
    (lambda: px.Grid(2.5), "Grid.*2 to 8"),  # pyright: ignore
    (lambda: px.OverAll(optax.adam(1.0)), "OverAll.*where an operator belongs"),  # pyright: ignore
    (lambda: px.Parts({"a": 3.0}, "a"), "Parts.*where an operator belongs"),  # pyright: ignore
    (lambda: px.Custom(3.0), "Custom.*expected a function"),  # pyright: ignore
    (lambda: px.Custom(lambda v, rho: v, 3.0), "Custom.*value=3.0"),  # pyright: ignore
    (lambda: px.Custom(lambda v, rho: v[:1])(jnp.ones(3), 1.0), r"`v`, float32\[3\], and returned float32\[1\]"),
    (lambda: px.Custom(lambda v, rho: v > 0)(jnp.ones(3), 1.0), r"float32\[3\], and returned bool\[3\]"),
    (lambda: px.OverAll(px.Custom(lambda v, rho: v[:1])).tree(TREE, 1.0), r"float32\[5\], and returned float32\[1\]"),
    (lambda: px.L1(1.0).tree({"n": jnp.array([1])}, 1.0), r"`params\['n'\]`, which is int32"),
    (lambda: px.OverAll(px.L1(1.0)).tree({"n": jnp.array([1])}, 1.0), r"`params\['n'\]`, which is int32"),
    (lambda: Shorter().tree({"a": jnp.ones(3)}, 1.0), r"`params\['a'\]`, float32\[3\], and returned float32\[2\]"),
]


class Shorter(px.L1):
    weight: float | int = 1.0

    def __call__(self, v: Any, rho: Any) -> Any:
        return v[1:]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("bad, message", BAD, ids=[str(i) for i in range(len(BAD))])
def test_errors(bad: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bad()


# The check itself


@pytest.mark.parametrize(
    "fn, value, message",
    [
        (lambda v, rho: jnp.sign(v) * jnp.maximum(jnp.abs(v) - 1, 0), lambda z: jnp.sum(jnp.abs(z)), "has"),
        (lambda v, rho: v / (1 + rho), lambda z: 0.5 * jnp.sum(z**2), "has"),  # rho upside down
        (lambda v, rho: jnp.maximum(v, 0), lambda z: jnp.where(jnp.all(z > 0), 0.0, jnp.inf), "`value` of the result"),
        (lambda v, rho: v / jnp.linalg.norm(v), None, "not finite|zeros"),
        (lambda v, rho: jnp.sign(v), None, "not firmly nonexpansive"),
    ],
)
def test_the_check_finds_what_is_wrong(fn: Any, value: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_prox(px.Custom(fn, value), exact=value is not None, convex=message.startswith("not firmly"))
