"""Regression with an l1 penalty, by `ADMM` around any trainer: `min 1/2 |A x - y|^2 + w |x|_1`.

    nondiff run experiments/lasso.py
    nondiff run experiments/lasso.py --inner cma-es
    nondiff run experiments/lasso.py --inner open-es

The gradient is one way to minimise the smooth half of it; a search that only knows losses is another, and the quadratic
of ADMM is then part of the losses that it ranks. Zeros of the answer are exact. Beside it, coordinate
descent (Friedman, Hastie & Tibshirani, 2010, https://doi.org/10.18637/jss.v033.i01) in NumPy, in 64 bits, until nothing
moves.

Result, seed 0: the objective is above the best one by 2e-11 of it (`excess`) with `backprop`, after 110 steps; by 7e-9
with `cma-es`, after 370 of its steps; and by .007 with `open-es`, which is right about 13 of the 20 being 0 or not.
"""

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import optax

import nondiff as nd


@dataclasses.dataclass(frozen=True)
class Config:
    """What can be chosen."""

    inner: Literal["backprop", "cma-es", "open-es"] = "backprop"
    """Who minimises the squares and the quadratic."""
    rows: int = 60
    """Observations."""
    columns: int = 20
    """Coefficients, of which a third is not 0."""
    penalty: float = 0.1
    """`w`, as a share of the smallest one for which the answer is 0."""
    relaxation: float = 1.6
    """Of ADMM."""
    steps: int = 3_000
    """Of the inner trainer, at most."""
    seed: int = 0
    """Of the data and the search."""


def data(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """`A` and `y`."""
    random = np.random.default_rng(config.seed)
    a = random.normal(size=(config.rows, config.columns)) / np.sqrt(config.rows)
    x = random.normal(size=config.columns) * (random.random(config.columns) < 1 / 3)
    return a, a @ x + 0.01 * random.normal(size=config.rows)


def coordinate_descent(a: np.ndarray, y: np.ndarray, weight: float) -> np.ndarray:
    x, rest, sizes = np.zeros(a.shape[1]), y.copy(), (a**2).sum(0)
    for _ in range(10_000):
        before = x.copy()
        for j in range(len(x)):
            c = a[:, j] @ rest + sizes[j] * x[j]
            new = np.sign(c) * max(abs(c) - weight, 0) / sizes[j]
            rest, x[j] = rest + a[:, j] * (x[j] - new), new
        if np.array_equal(x, before):
            break
    return x


def make(config: Config) -> nd.Experiment:
    a, y = data(config)
    weight = config.penalty * float(np.max(np.abs(a.T @ y)))
    top, rho = float(np.linalg.norm(a, 2) ** 2), 1.0
    matrix, vector = jnp.asarray(a, jnp.float32), jnp.asarray(y, jnp.float32)
    inner: dict[str, nd.AbstractTrainer] = {
        "backprop": nd.Backprop(optax.sgd(1 / (top + rho))),
        "cma-es": nd.CMAES(0.3),
        "open-es": nd.OpenES(
            optax.adam(optax.cosine_decay_schedule(0.05, max(config.steps, 1))), sigma=0.02, population=64
        ),
    }
    every = 10 if config.inner == "cma-es" else 5
    trainer = nd.ADMM(
        inner[config.inner], nd.prox.L1(weight), rho=rho, every=every, relaxation=config.relaxation,
        absolute=1e-6, relative=1e-5,
    )  # fmt: skip

    def loss(x: Any) -> Any:
        return 0.5 * jnp.sum((matrix @ x - vector) ** 2)

    def objective(x: Any) -> float:
        x = np.asarray(x, float)
        return float(0.5 * np.sum((a @ x - y) ** 2) + weight * np.sum(np.abs(x)))

    def report(result: nd.Result) -> dict[str, float]:
        best = coordinate_descent(a, y, weight)
        found = np.asarray(result.params)
        return {
            "excess": objective(found) / objective(best) - 1,
            "same_zeros": float(np.mean((found == 0) == (best == 0))),
            "zeros": float(np.sum(found == 0)),
            "steps": result.steps,
            "converged": float(result.reason.startswith("converged")),
        }

    problem = nd.BlackBox(loss, jnp.zeros(config.columns))
    return nd.Experiment(problem, trainer, config.steps, report=report)
