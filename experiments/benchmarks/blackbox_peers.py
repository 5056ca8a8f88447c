"""The searches that `blackbox.py` compares: each library's CMA-ES, or what it takes by default, as its documentation
says. A search calls the run with rows until it is `done`, or until its own criteria end it and there is no restart."""

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from blackbox_functions import Run

import nondiff as nd

Library = Literal["nondiff", "pycma", "cmaes", "evosax", "nevergrad"]
Regime = Literal["ipop", "bipop"]
Generation = Callable[[], Any]
Begin = Callable[[], Generation]
"""Begins a search of the sphere, of which each call makes a whole generation."""

SIGMA = 2.0  # a fifth of the box
PACKAGES: dict[Library, str] = {"pycma": "cma"}  # others have the library's name


def kind_of_restarts(library: Library, regime: Regime) -> str | None:
    """Where it is asked for any."""
    known: dict[Library, str | None] = {"cmaes": "ipop", "nevergrad": "own"}
    return known.get(library, regime)


def usual(dim: int) -> int:
    """The population that CMA-ES has by default."""
    return 4 + int(3 * math.log(dim))


def sphere(rows: Any) -> Any:
    return (rows**2).sum(-1)


def nondiff_search(run: Run, regime: Regime | None) -> None:
    """Each integer is a leaf, since each has a range of its own."""
    lower, upper, whole = run.function.lower, run.function.upper, run.function.whole
    domain = [*(nd.Integer(int(lower[i]), int(upper[i])) for i in range(whole)), None]
    sigma = [*((upper - lower)[:whole] * SIGMA / 10).tolist(), SIGMA]

    def start(key: Any = None) -> list[Any]:
        del key
        cube = run.start()
        return [*np.round(run.boxed(cube)[:whole]).astype(np.int32), cube[whole:]]

    def values(leaves: list[Any]) -> np.ndarray:
        rows = np.column_stack([*(np.zeros_like(leaves[-1][:, :1]) for _ in range(whole)), leaves[-1]])
        rows = run.boxed(rows)
        rows[:, :whole] = np.stack(leaves[:whole], 1) if whole else rows[:, :0]
        return run(rows)

    problem = nd.BlackBox(values, start(), domain=domain, vectorized=True, traceable=False)
    search: nd.AbstractTrainer = nd.CMAES(sigma)
    if regime:
        schedule = {"ipop": nd.IPOP(), "bipop": nd.BIPOP()}[regime]
        search = nd.Restart(search, schedule=schedule, tries=1_000, begin=start)
    nd.fit(problem, search, steps=run.budget, key=jr.key(run.seed), stop=[lambda _: "done" if run.done else None],
           evaluator=nd.Host(chunk=10_000), log_every=1)  # fmt: skip


def nondiff_generations(dim: int, population: int) -> Begin:
    """Of a function in NumPy."""
    problem = nd.BlackBox(sphere, np.ones(dim), vectorized=True, traceable=False)
    parts = problem, nd.CMAES(SIGMA, population=population), nd.Host(chunk=10_000)

    def begin() -> Generation:
        state = nd.init(*parts[:2], key=jr.key(0))

        def generation() -> None:
            nonlocal state
            state, _ = nd.step(*parts, state)

        return generation

    return begin


def compiled_generations(dim: int, population: int) -> Begin:
    """One step, compiled as under `jax_enable_x64`."""
    with jax.enable_x64(True):
        parts = nd.BlackBox(sphere, jnp.ones(dim)), nd.CMAES(SIGMA, population=population), nd.Vmap()
        step = eqx.filter_jit(lambda state: nd.step(*parts, state), donate="all")

    def begin() -> Generation:
        with jax.enable_x64(True):
            state = nd.init(*parts[:2], key=jr.key(0))

        def generation() -> None:
            nonlocal state
            with jax.enable_x64(True):
                state, _ = jax.block_until_ready(step(state))

        return generation

    return begin


def pycma(run: Run, regime: Regime | None) -> None:
    import cma  # pyright: ignore[reportMissingImports]

    options: dict[str, Any] = {
        "seed": run.seed + 1,  # 0 is the clock
        "maxfevals": run.budget,
        "termination_callback": lambda _: run.done,
        "verbose": -9,
        "verb_log": 0,
    }
    if run.function.whole:
        lower, upper = run.function.lower, run.function.upper
        options |= {"bounds": [lower, upper], "integer_variables": list(range(run.function.whole))}
        options |= {"CMA_stds": (upper - lower) / 10}
    again: dict[str, Any] = {"restarts": 9, "bipop": regime == "bipop"} if regime else {}
    again["parallel_objective"] = lambda members: run(members).tolist()
    cma.fmin2(None, lambda: run.boxed(run.start()), SIGMA, options, **again)


def pycma_generations(dim: int, population: int) -> Begin:
    import cma  # pyright: ignore[reportMissingImports]

    def begin() -> Generation:
        state = cma.CMAEvolutionStrategy(np.ones(dim), SIGMA, {"popsize": population, "verbose": -9, "seed": 1})

        def generation() -> None:
            members = state.ask()
            state.tell(members, sphere(np.array(members)))

        return generation

    return begin


def cmaes(run: Run, regime: Regime | None) -> None:
    """Its documentation restarts as IPOP. Of integers, `CMAwM` knows."""
    import cmaes  # pyright: ignore[reportMissingImports]

    lower, upper, whole = run.function.lower, run.function.upper, run.function.whole

    def begin(population: int, seed: int) -> Any:
        common: dict[str, Any] = {"sigma": SIGMA, "population_size": population, "seed": seed}
        mean = run.boxed(run.start())
        if not whole:
            return cmaes.CMA(mean, **common)
        steps = (np.arange(len(mean)) < whole).astype(float)
        cov = np.diag(((upper - lower) / 10) ** 2)
        return cmaes.CMAwM(mean, bounds=np.stack([lower, upper], 1), steps=steps, cov=cov, **common)

    state, seed = begin(usual(run.function.dim), 1000 * run.seed), 1000 * run.seed
    while not run.done:
        asked = [state.ask() for _ in range(state.population_size)]
        evaluated, told = zip(*asked, strict=True) if whole else (asked, asked)
        state.tell(list(zip(told, run(evaluated), strict=True)))
        if state.should_stop():
            if regime is None:
                return
            seed += 1
            state = begin(2 * state.population_size, seed)


@functools.cache  # it compiles anew for every object
def evosax_cma(dim: int, population: int) -> Any:
    from evosax.algorithms import CMA_ES  # pyright: ignore[reportMissingImports]

    return CMA_ES(population, jnp.zeros(dim))


def evosax_settings(cma: Any, _: Any = None) -> Any:
    return cma.default_params.replace(std_init=jnp.asarray(SIGMA))


@functools.cache
def evosax_restarts(dim: int, regime: Regime) -> tuple[Any, Any]:
    """The restarts, and whether one is due."""
    from evosax.core import restart  # pyright: ignore[reportMissingImports]

    kind = {"ipop": restart.IPOPRestart, "bipop": restart.BIPOPRestart}[regime]
    criteria = restart.spread_cond, restart.cma_cond
    restarts = kind(functools.partial(evosax_cma, dim), usual(dim), criteria, strategy_params_factory=evosax_settings)
    return restarts, jax.jit(restarts.should_restart)


def evosax(run: Run, regime: Regime | None) -> None:
    """Of integers it knows nothing: the function rounds."""
    dim = run.function.dim
    cma = evosax_cma(dim, usual(dim))
    settings, (key, k_init) = evosax_settings(cma), jr.split(jr.key(run.seed))
    state = cma.init(k_init, jnp.asarray(run.start(), float), settings)
    restarts, due = evosax_restarts(dim, regime) if regime else (None, None)
    history = restarts and restarts.init(cma)
    while not run.done:
        key, k_ask, k_tell, k_restart = jr.split(key, 4)
        members, state = cma.ask(k_ask, state, settings)
        losses = jnp.asarray(run(run.boxed(members)), float)
        state, _ = cma.tell(k_tell, members, losses, state, settings)
        if restarts and due and due(members, losses, state, settings, history):
            cma, settings, state, history = restarts.restart(k_restart, cma, state, settings, history)
            state = state.replace(mean=jnp.asarray(run.start(), float))


def evosax_generations(dim: int, population: int) -> Begin:
    """In one jit."""
    cma = evosax_cma(dim, population)
    settings = evosax_settings(cma)

    @jax.jit
    def whole(key: Any, state: Any) -> Any:
        k_next, k_ask, k_tell = jr.split(key, 3)
        members, state = cma.ask(k_ask, state, settings)
        return k_next, cma.tell(k_tell, members, sphere(members), state, settings)[0]

    def begin() -> Generation:
        key, state = jr.key(0), cma.init(jr.key(1), jnp.ones(dim), settings)

        def generation() -> None:
            nonlocal key, state
            key, state = jax.block_until_ready(whole(key, state))

        return generation

    return begin


def nevergrad(run: Run, regime: Regime | None) -> None:
    """NGOpt restarts if it sees fit. Reals are given no bounds: with them it did worse on all functions we tried."""
    del regime
    import nevergrad as ng  # pyright: ignore[reportMissingImports]

    lower, upper, whole = run.function.lower, run.function.upper, run.function.whole
    start = run.boxed(run.start())
    integers = [ng.p.Scalar(start[i], lower=lower[i], upper=upper[i]).set_integer_casting() for i in range(whole)]
    reals = ng.p.Array(init=start[whole:]).set_mutation(sigma=SIGMA)
    space = ng.p.Tuple(*integers, reals)
    space.random_state = np.random.RandomState(run.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of methods that it tries and drops
        state = ng.optimizers.NGOpt(space, budget=run.budget)
        while not run.done:
            asked = state.ask()
            state.tell(asked, run(np.hstack(asked.value)[None])[0])


SEARCHES: dict[Library, Callable[[Run, Regime | None], None]] = {
    "nondiff": nondiff_search,
    "pycma": pycma,
    "cmaes": cmaes,
    "evosax": evosax,
    "nevergrad": nevergrad,
}
GENERATIONS: dict[str, Callable[[int, int], Begin]] = {
    "nondiff": nondiff_generations,
    "nondiff x64": compiled_generations,
    "pycma": pycma_generations,
    "evosax": evosax_generations,
}
