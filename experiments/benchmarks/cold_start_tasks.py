"""The tasks that `cold_start.py` measures, one of them in each process, which imports nothing that it does not need.

    python experiments/benchmarks/cold_start_tasks.py pycma function 2000

Prints `{"calls": [{"value", "evaluations", "programs", "wall", "cpu"}]}`: the loss that a call reached, how often the
loss was asked for, how many programs XLA compiled (`null` without JAX), and seconds of this call alone.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

Found = tuple[float, int]
"""The loss that was reached, and evaluations."""

STEPS, RATE, SIGMA, POPULATION = 100, 0.1, 0.1, 16  # of `fit` and of the loop by hand


class Counted:
    """A loss, and how often it was asked for."""

    def __init__(self, loss: Callable[..., float]):
        self.loss, self.evaluations = loss, 0

    def __call__(self, *point: Any) -> float:
        self.evaluations += 1
        return self.loss(*point)


def sphere(x: np.ndarray) -> float:
    return float(((x - 1) ** 2).sum())


def mixed(n: Any, c: Any, x: Any) -> Any:
    """A whole number, a category and a number; JAX can trace it, too."""
    return (n - 3) ** 2 + (c != 2) + abs(x - 0.3)


def nondiff_function(evaluations: int) -> Found:
    import nondiff

    f = Counted(sphere)
    return nondiff.minimise(f, np.zeros(10), evaluations=evaluations).loss, f.evaluations


def pycma_function(evaluations: int) -> Found:
    import cma  # pyright: ignore[reportMissingImports]

    f = Counted(sphere)
    best, _ = cma.fmin2(f, np.zeros(10), 0.5, {"maxfevals": evaluations, "verbose": -9, "verb_log": 0, "seed": 1})
    return sphere(best), f.evaluations


def cmaes_function(evaluations: int) -> Found:
    from cmaes import CMA  # pyright: ignore[reportMissingImports]

    f, search, best = Counted(sphere), CMA(mean=np.zeros(10), sigma=0.5, seed=0), np.inf
    while f.evaluations + search.population_size <= evaluations:
        points = [search.ask() for _ in range(search.population_size)]
        told = [(point, f(point)) for point in points]
        search.tell(told)
        best = min(best, *(loss for _, loss in told))
    return best, f.evaluations


def scipy_function(evaluations: int) -> Found:
    from scipy.optimize import differential_evolution  # pyright: ignore[reportMissingImports]

    f = Counted(sphere)
    generations = max(evaluations // 150 - 1, 0)  # 15 members for each of 10 coordinates, and those of the start
    best = differential_evolution(f, [(-5, 5)] * 10, maxiter=generations, polish=False, tol=0, rng=0)
    return float(best.fun), f.evaluations


def optuna_function(evaluations: int) -> Found:
    import optuna  # pyright: ignore[reportMissingImports]

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    names = [f"x{i}" for i in range(10)]
    f = Counted(sphere)
    study = optuna.create_study(sampler=optuna.samplers.CmaEsSampler(seed=0))
    study.enqueue_trial(dict.fromkeys(names, 0.0))
    study.optimize(lambda trial: f(np.array([trial.suggest_float(n, -5, 5) for n in names])), n_trials=evaluations)
    return study.best_value, f.evaluations


def nondiff_category(evaluations: int) -> Found:
    import nondiff

    domain = {"n": nondiff.Integer(1, 8), "c": nondiff.Categorical(3), "x": nondiff.Real(0, 1)}
    start = {"n": 1, "c": 0, "x": 0.1}
    result = nondiff.minimise(lambda p: mixed(**p), start, domain=domain, evaluations=evaluations)
    return result.loss, result.evaluations


def optuna_category(evaluations: int) -> Found:
    import optuna  # pyright: ignore[reportMissingImports]

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    f = Counted(mixed)

    def objective(trial):
        n, c = trial.suggest_int("n", 1, 8), trial.suggest_categorical("c", [0, 1, 2])
        return f(n, c, trial.suggest_float("x", 0, 1))

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    study.optimize(objective, n_trials=max(evaluations // 10, 1))
    return study.best_value, f.evaluations


def nevergrad_category(evaluations: int) -> Found:
    import nevergrad  # pyright: ignore[reportMissingImports]

    f = Counted(mixed)
    whole = nevergrad.p.Scalar(init=1, lower=1, upper=8).set_integer_casting()
    real = nevergrad.p.Scalar(init=0.1, lower=0, upper=1)
    space = nevergrad.p.Instrumentation(n=whole, c=nevergrad.p.Choice([0, 1, 2]), x=real)
    space.random_state.seed(0)
    search = nevergrad.optimizers.NGOpt(space, budget=evaluations)
    found = search.minimize(lambda n, c, x: f(n, c, x))
    return mixed(**found.kwargs), f.evaluations


def nondiff_fit(evaluations: int) -> Found:
    del evaluations
    import jax
    import jax.numpy as jnp
    import optax

    import nondiff

    problem = nondiff.BlackBox(lambda x: jnp.sum(jnp.abs(x - 3.0)), jnp.zeros(2))
    trainer = nondiff.OpenES(optax.adam(RATE), sigma=SIGMA, population=POPULATION)
    result = nondiff.fit(problem, trainer, steps=STEPS, key=jax.random.key(0))
    return distance(result.params), result.evaluations


def hand_fit(evaluations: int) -> Found:
    del evaluations
    import jax
    import jax.numpy as jnp
    import optax

    optimizer, x = optax.adam(RATE), jnp.zeros(2)

    def loss(x):
        return jnp.sum(jnp.abs(x - 3.0))

    @jax.jit
    def step(x, state, key):
        noise = jax.random.normal(key, (POPULATION // 2, 2))
        losses = jax.vmap(loss)(jnp.concatenate([x + SIGMA * noise, x - SIGMA * noise]))
        ranks = jnp.argsort(jnp.argsort(losses)) / (POPULATION - 1) - 0.5
        weights = ranks[: POPULATION // 2] - ranks[POPULATION // 2 :]
        updates, state = optimizer.update(weights @ noise / (POPULATION * SIGMA), state)
        return optax.apply_updates(x, updates), state, losses.mean()

    state, losses = optimizer.init(x), []
    for key in jax.random.split(jax.random.key(0), STEPS):
        x, state, mean = step(x, state, key)
        losses.append(mean)
    return distance(x), STEPS * POPULATION


def distance(x: Any) -> float:
    return float(np.abs(np.asarray(x, float) - 3).sum())


TASKS: dict[str, dict[str, Callable[[int], Found]]] = {
    "function": {
        "nondiff": nondiff_function,
        "pycma": pycma_function,
        "cmaes": cmaes_function,
        "SciPy": scipy_function,
        "optuna": optuna_function,
    },
    "category": {"nondiff": nondiff_category, "optuna": optuna_category, "nevergrad": nevergrad_category},
    "fit": {"nondiff": nondiff_fit, "by hand": hand_fit},
}
CALLS = {"function": 1, "category": 2, "fit": 1}  # in one process


def count_programs() -> list[str]:
    """Grows by one whenever XLA compiles a program in this process."""
    import jax

    compiled: list[str] = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        del duration_secs, kwargs
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return compiled


def main(library: str, task: str, evaluations: int) -> None:
    wall, cpu = time.perf_counter(), time.process_time()
    compiled = count_programs() if library in ("nondiff", "by hand") else None
    calls: list[dict[str, Any]] = []
    for _ in range(CALLS[task]):
        value, made = TASKS[task][library](evaluations)
        now = time.perf_counter(), time.process_time()
        call: dict[str, Any] = {"value": float(value), "evaluations": int(made)}
        call |= {"wall": now[0] - wall, "cpu": now[1] - cpu, "programs": None}
        if compiled is not None:
            call["programs"] = len(compiled)
            compiled.clear()
        calls.append(call)
        wall, cpu = now
    print(json.dumps({"calls": calls}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
