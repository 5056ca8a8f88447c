"""Convex problems whose answer other solvers know: what `ADMM` finds in 64 bits, and what they find."""

import dataclasses
import importlib.util
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from sklearn.linear_model import ElasticNet, Lasso

import nondiff as nd

cp: Any = importlib.import_module("cvxpy") if importlib.util.find_spec("cvxpy") else None
SKIPPED = ["OSQP", "SCS"] if cp is None else []
"""Peers that are not installed here."""
Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Convex:
    """`min smooth(x) + rest(x)`, the rest known to ADMM by its operator."""

    smooth: Callable[[Any], Any]
    curvature: tuple[float, float]
    """The least (0 if not known to be more) and the largest of `smooth`."""
    rest: nd.AbstractProx
    start: Array
    objective: Callable[[Array], float]
    """Of a point that is allowed."""
    peers: dict[str, Callable[[], Array]]


def regression(seed: int) -> tuple[Array, Array]:
    random = np.random.default_rng(seed)
    a = random.normal(size=(200, 50))
    x = random.normal(size=50) * (random.random(50) < 0.3)
    return a, a @ x + 0.5 * random.normal(size=200)


def penalised(seed: int, quadratic: float) -> Convex:
    """Lasso, and elastic net with a quadratic penalty, too."""
    a, y = regression(seed)
    # scikit-learn divides the squares by the number of rows.
    weight = 0.1 * float(np.max(np.abs(a.T @ y)))
    square = quadratic * len(y)
    share, alpha = weight / (weight + square), (weight + square) / len(y)
    options = {"fit_intercept": False, "tol": 1e-14, "max_iter": 100_000}
    model = ElasticNet(alpha, l1_ratio=share, **options) if quadratic else Lasso(alpha, **options)
    matrix, answers = jnp.asarray(a), jnp.asarray(y)
    curvatures = np.linalg.eigvalsh(a.T @ a)
    penalty = nd.prox.ElasticNet(weight, square) if quadratic else nd.prox.L1(weight)

    def osqp(cp: Any) -> tuple[Any, Any]:
        x = cp.Variable(50)
        return x, 0.5 * cp.sum_squares(a @ x - y) + weight * cp.norm1(x) + square / 2 * cp.sum_squares(x)

    return Convex(
        lambda x: 0.5 * jnp.sum((matrix @ x - answers) ** 2),
        (curvatures[0], curvatures[-1]),
        penalty,
        np.zeros(50),
        lambda x: 0.5 * np.sum((a @ x - y) ** 2) + weight * np.sum(np.abs(x)) + square / 2 * np.sum(x**2),
        {"scikit-learn": lambda: model.fit(a, y).coef_} | peer("OSQP", osqp),
    )


def box(seed: int) -> Convex:
    """A quadratic program whose variables have bounds."""
    random = np.random.default_rng(seed)
    half = random.normal(size=(60, 50))
    p, q = half.T @ half / 10 + 0.1 * np.eye(50), random.normal(size=50)
    matrix, vector = jnp.asarray(p), jnp.asarray(q)
    curvatures = np.linalg.eigvalsh(p)

    def value(x: Array) -> float:
        return float(0.5 * x @ p @ x + q @ x)

    def osqp(cp: Any) -> tuple[Any, Any]:
        x = cp.Variable(50, bounds=[-0.1, 0.1])
        return x, 0.5 * cp.quad_form(x, cp.psd_wrap(p)) + q @ x

    return Convex(
        lambda x: 0.5 * x @ matrix @ x + vector @ x,
        (curvatures[0], curvatures[-1]),
        nd.prox.Box(-0.1, 0.1),
        np.zeros(50),
        lambda x: value(np.clip(x, -0.1, 0.1)),  # what a solver lets pass its bounds is put back first
        peer("OSQP", osqp),
    )


def completion(seed: int) -> Convex:
    """A matrix of rank 2 of which half is known, with a penalty on its nuclear norm."""
    random = np.random.default_rng(seed)
    whole = random.normal(size=(20, 2)) @ random.normal(size=(2, 15)) + 0.1 * random.normal(size=(20, 15))
    known = (random.random(whole.shape) < 0.5).astype(float)
    there, values = jnp.asarray(known), jnp.asarray(whole)

    def scs(cp: Any) -> tuple[Any, Any]:
        x = cp.Variable(whole.shape)
        return x, 0.5 * cp.sum_squares(cp.multiply(known, x - whole)) + cp.normNuc(x)

    return Convex(
        lambda x: 0.5 * jnp.sum((there * (x - values)) ** 2),
        (0.0, 1.0),
        nd.prox.Nuclear(1.0),
        np.zeros(whole.shape),
        lambda x: 0.5 * np.sum((known * (x - whole)) ** 2) + np.sum(np.linalg.svd(x, compute_uv=False)),
        peer("SCS", scs),
    )


CONVEX: dict[str, Callable[[int], Convex]] = {
    "lasso": lambda seed: penalised(seed, 0.0),
    "elastic-net": lambda seed: penalised(seed, 0.1),
    "box-qp": box,
    "completion": completion,
}


def peer(name: str, model: Callable[[Any], tuple[Any, Any]]) -> dict[str, Callable[[], Array]]:
    """A solver of CVXPY's, for a variable and what is to be least; nothing if CVXPY is not there."""
    if cp is None:
        return {}
    x, objective = model(cp)
    most = {"OSQP": "max_iter", "SCS": "max_iters"}[name]

    def solve() -> Array:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of every solver it may call
            cp.Problem(cp.Minimize(objective)).solve(solver=name, eps_abs=1e-10, eps_rel=1e-10, **{most: 200_000})
        return np.asarray(x.value)

    return {name: solve}


def by_admm(task: Convex) -> Array:
    """Gradient steps with momentum inside: as many an iteration as the sub-problem's condition asks for."""
    low, high = task.curvature
    rho = max((low * high) ** 0.5, 0.1 * high)
    condition = (high + rho) / (low + rho)
    root = condition**0.5
    # Nesterov's constants for a function between two curvatures.
    inner = optax.sgd(1 / (high + rho), momentum=(root - 1) / (root + 1), nesterov=True)
    trainer = nd.ADMM(
        nd.Backprop(inner), task.rest, rho=rho, every=max(int(3 * root), 1), relaxation=1.6,
        absolute=1e-10, relative=1e-10,
    )  # fmt: skip
    problem = nd.BlackBox(task.smooth, jnp.asarray(task.start))
    return np.asarray(nd.fit(problem, trainer, steps=50_000, key=jr.key(0), log_every=500).params)


def convex(name: str, seeds: int) -> list[dict[str, Any]]:
    """A row for each method: the objective of seed 0, and by how much it is above the best one, relative to that, on
    the worst seed.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    with jax.enable_x64(True):
        for seed in range(seeds):
            task = CONVEX[name](seed)
            for method, solve in {"nondiff ADMM": lambda task=task: by_admm(task), **task.peers}.items():
                begin = time.perf_counter()
                x = solve()
                found.setdefault(method, []).append((task.objective(x), time.perf_counter() - begin))
    best = [min(of[seed][0] for of in found.values()) for seed in range(seeds)]
    return [
        {
            "task": name,
            "method": method,
            "objective": of[0][0],
            "excess": max((value - least) / abs(least) for (value, _), least in zip(of, best, strict=True)),
            "seconds": float(np.median([seconds for _, seconds in of])),
        }
        for method, of in found.items()
    ]
