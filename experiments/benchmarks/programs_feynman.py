"""What `programs.py --parts feynman` runs: formulas from numbers, by nondiff's programs and by gplearn.

All have the same numbers and functions, and may compute as many nodes: lines of ours that matter, or nodes of gplearn's
trees, of all programs that were ever evaluated, each for all cases. A search ends with the step, or the
generation, in which they are spent, or which has found the formula where there is no noise. `nondiff, 10 times` may
compute ten times as many.

`gplearn` is called as its documentation says, with its own constants; `gplearn, scaled` has Pearson's correlation as
its fitness, which is the loss of ours, and what it finds is scaled and rounded as ours is. It also has our numbers 1, 2
and pi, as columns. Its root and logarithm are those of absolute values; what it finds is right if it is so with these,
or without them. Division by zero is 1, and the logarithm of zero 0.
"""

import concurrent.futures
import functools
import importlib
import importlib.util
import multiprocessing
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax.random as jr
import numpy as np
import sympy

import nondiff as nd
from nondiff.launch.load import load

FILE = pathlib.Path(__file__).parents[1] / "symbolic_regression.py"
METHODS = ("nondiff", "nondiff, 10 times", "gplearn", "gplearn, scaled")


@functools.cache
def experiment() -> Any:
    return load(FILE, FILE.name)


def names() -> list[str]:
    """All formulas but those with an arcsine, which SRBench leaves out as well."""
    return [name for name, equation in experiment().feynman.equations().items() if "arcsin" not in equation.text]


def by_nondiff(equation: Any, x: Any, y: Any, noise: float, seed: int, nodes: float) -> tuple[list[Any], float, float]:
    """The formula for sympy, in each way that it may be read, its R2 on unseen points, and the nodes."""
    here = experiment()
    config = here.Config(noise=noise, nodes=nodes, seed=seed)
    program, loss = here.parts(x.shape[1], config.length, 0, config.line_costs)
    problem = nd.Supervised(loss, (x, y), params=program.init, domain=program.domain)
    spent = here.Spent(config)
    result = nd.fit(problem, here.trainer_of(config), steps=10**6, key=jr.key(seed), stop=[spent], log_every=1)
    c0, c1, found = here.formula(result.params, equation, x, y)
    unseen = equation.unseen()
    with np.errstate(all="ignore"):
        told = c0 + c1 * here.computed(result.params, list(unseen.T.astype(float)), here.feynman.WORDS)
    return [found], here.r_squared(equation(unseen), told), spent.nodes


def by_gplearn(
    equation: Any, x: Any, y: Any, noise: float, seed: int, nodes: float, *, scaled: bool
) -> tuple[list[Any], float, float]:
    here = experiment()
    genetic = importlib.import_module("gplearn.genetic")
    new = importlib.import_module("gplearn.functions").make_function
    functions = ["add", "sub", "mul", "div", "sqrt", "log", "sin", "cos"]
    functions += [new(function=_exp, name="exp", arity=1), new(function=np.square, name="square", arity=1)]
    enough = 1 - here.EXACT / 2 if scaled else here.EXACT**0.5 * float(np.mean(np.abs(y - np.mean(y))))
    search = genetic.SymbolicRegressor(
        function_set=functions, generations=0, warm_start=True, low_memory=True, random_state=seed,
        **({"metric": "pearson"} if scaled else {}),
        stopping_criteria=(-np.inf if not scaled else np.inf) if noise else enough,
    )  # fmt: skip

    def columns(x: np.ndarray) -> np.ndarray:
        return np.column_stack([x, *(np.full(len(x), float(n)) for n in here.NUMBERS)]) if scaled else x

    spent = 0.0
    while spent < nodes:
        search.set_params(generations=search.generations + 1)
        with np.errstate(all="ignore"):
            search.fit(columns(x).astype(float), y.astype(float))
        details = search.run_details_
        spent += float(details["average_length"][-1]) * search.population_size
        best = details["best_fitness"][-1]
        if not noise and (best >= enough if scaled else best <= enough):
            break
    c0, c1 = here.scaled(search._program.execute(columns(x).astype(float)), y) if scaled else (0.0, 1.0)
    named = list(here.feynman.symbols(equation).values()) + ([1, 2, sympy.Float(np.pi)] if scaled else [])
    words = here.feynman.words() | {f"X{i}": sympy.sympify(symbol) for i, symbol in enumerate(named)}
    readings = []
    for absolute in (False, True):
        found = sympy.sympify(eval(str(search._program), words | said(absolute)))
        readings.append((sympy.Float(c0) if c0 else 0) + sympy.Float(c1) * found if scaled else found)
    unseen = equation.unseen()
    return readings, here.r_squared(equation(unseen), c0 + c1 * search._program.execute(columns(unseen))), spent


def _exp(x: np.ndarray) -> np.ndarray:
    return np.exp(np.minimum(x, 50.0))


def said(absolute: bool) -> dict[str, Any]:
    """gplearn's functions for sympy."""

    def of_size(x: Any) -> Any:
        return sympy.Abs(x) if absolute or x.is_number else x

    def is_zero(x: Any) -> bool:
        return x.is_number and abs(x) <= 0.001

    functions = {
        "add": lambda x, y: x + y,
        "sub": lambda x, y: x - y,
        "mul": lambda x, y: x * y,
        "div": lambda x, y: sympy.Integer(1) if is_zero(y) else x / y,
        "square": lambda x: x**2,
        "sqrt": lambda x: sympy.sqrt(of_size(x)),
        "log": lambda x: sympy.Integer(0) if is_zero(x) else sympy.log(of_size(x)),
        **{name: getattr(sympy, name) for name in ("sin", "cos", "exp")},
    }
    return {name: functools.partial(_said, function) for name, function in functions.items()}


def _said(function: Any, *parts: Any) -> Any:
    return function(*map(sympy.sympify, parts))


def runs(name: str, noises: tuple[float, ...], seeds: int, cases: int, nodes: float, methods: Any) -> list[Any]:
    """All runs for one formula."""
    here, found = experiment(), []
    equation = here.feynman.equations()[name]
    for noise in noises:
        for seed in range(seeds):
            x, y = equation.drawn(cases, noise, np.random.default_rng([seed, 1]))
            for method in methods:
                start = time.process_time()
                if method in METHODS[:2]:
                    share = nodes if method == "nondiff" else 10 * nodes
                    readings, r2, spent = by_nondiff(equation, x, y, noise, seed, share)
                else:
                    scaled = method.endswith("scaled")
                    readings, r2, spent = by_gplearn(equation, x, y, noise, seed, nodes, scaled=scaled)
                seconds = time.process_time() - start
                row = {
                    "method": method, "formula": name, "noise": noise, "seed": seed, "nodes": spent, "r2": r2,
                    "exact": int(any(here.feynman.recovered(x, equation) for x in readings)), "cpu_seconds": seconds,
                    "found": str(readings[0].evalf(3)),
                }  # fmt: skip
                found.append(row)
    return found


def rows(
    chosen: tuple[str, ...], noises: tuple[float, ...], seeds: int, cases: int, nodes: float, processes: int,
    methods: tuple[str, ...], skipped: list[str],
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """A row for every method, formula, noise and seed."""
    if importlib.util.find_spec("gplearn") is None:
        skipped.append("gplearn: not installed, skipped")
        methods = tuple(method for method in methods if not method.startswith("gplearn"))
    by_variables = sorted(chosen, key=lambda name: len(experiment().feynman.equations()[name].ranges))
    work = functools.partial(runs, noises=noises, seeds=seeds, cases=cases, nodes=nodes, methods=methods)
    if processes == 1:
        found = map(work, by_variables)
    else:
        pool = concurrent.futures.ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"))
        found = pool.map(work, by_variables)
    for some in found:
        print(*some, sep="\n", file=sys.stderr, flush=True)
        yield from some


def summary(found: list[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    """Of each noise and method: how many formulas were found exactly, of how many, nodes and CPU time."""
    for noise in sorted({row["noise"] for row in found}):
        for method in METHODS:
            some = [row for row in found if (row["noise"], row["method"]) == (noise, method)]
            if some:
                yield (
                    method, str(noise), str(sum(row["exact"] for row in some)), str(len(some)),
                    f"{100 * np.mean([row['exact'] for row in some]):.1f}",
                    f"{np.mean([row['r2'] > 0.999 for row in some]):.3f}",
                    f"{np.mean([row['nodes'] for row in some]) / 1e6:.2f}",
                    f"{np.mean([row['cpu_seconds'] for row in some]):.1f}",
                )  # fmt: skip
