"""A formula from numbers, found by genetic programming: symbolic regression (Koza, 1992, "Genetic Programming").

    nondiff run experiments/symbolic_regression.py
    nondiff run experiments/symbolic_regression.py --formula I.12.2 --noise 0.01
    nondiff run experiments/symbolic_regression.py --formula II.11.28 --constants 2

One of the hundred equations of `feynman.py`: its variables are drawn from their ranges, and `noise` is added to its
values, in units of their root mean square, as in SRBench (La Cava et al., 2021, https://arxiv.org/abs/2107.14351).
Nothing is known of the variables' dimensions.

A program is straight: every line changes one of three cells, by another cell, a variable, or 1, 2 or pi. Lines whose
value is never read are left out before it is computed. Its loss is that of the best `c0 + c1 * program` (Keijzer, 2003,
"Improving Symbolic Regression with Interval Arithmetic and Linear Scaling"), so search finds the shape, and every line
multiplies it by a little. With `constants` programs also have floats of their own, which follow their gradient. In the
end c0 and c1 are left out, or have fewer digits, where that fits as well.

Results: docs/programs.md.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import feynman
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import sympy

import nondiff as nd

LINES = [
    "r[a] = r[a] * r[b]",
    "r[a] = r[a] + r[b]",
    "r[a] = r[a] - r[b]",
    "r[a] = r[b] - r[a]",
    "r[a] = r[a] / r[b]",
    "r[a] = r[b] / r[a]",
    "r[a] = r[b]",
    "r[a] = r[b] * r[b]",
    "r[a] = sqrt(r[b])",
    "r[a] = exp(r[b])",
    "r[a] = log(r[b])",
    "r[a] = sin(r[b])",
    "r[a] = cos(r[b])",
]
FLOATS = ["r[a] = r[a] * c[b]", "r[a] = r[a] + c[b]"]
CELLS = 3
"""That lines may change. They start at 1, and the first one is the result."""
NUMBERS = "1", "2", "3.1415927"
READS = {x: jnp.array([False, *(f"r[{x}]" in line.split("=")[1] for line in [*LINES, *FLOATS])]) for x in "ab"}
"""Of each line's number, whether it reads the cell."""
EXACT = 1e-9
"""Of the variance of the values: what is left is rounding, with floats of 32 bits."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What can be chosen."""

    formula: str = "I.27.6"
    """Its name in the table."""
    noise: float = 0.0
    """Standard deviation, in units of the values' root mean square."""
    cases: int = 64
    """To find it with."""
    nodes: float = 4e6
    """Lines that all programs may have together; each is computed for all cases."""
    population: int = 512
    """Programs a step."""
    islands: int = 4
    """That only know themselves, but for the best of each."""
    length: int = 16
    """Lines of a program."""
    line_costs: float = 0.01
    """By this share of itself the loss grows with every line."""
    constants: int = 0
    """Floats of a program's own. A node with its derivatives counts four times."""
    seed: int = 0
    """Of the numbers and the search."""


@functools.cache
def parts(variables: int, length: int, constants: int, line_costs: float) -> tuple[nd.Program, Callable[..., Any]]:
    """The program, and its loss, which formulas of equally many variables share."""
    fixed = [*(f"x{i}" for i in range(variables)), *NUMBERS]
    banks: dict[str, Any] = {"r": nd.Cells(["1"] * CELLS, fixed=fixed, real=True)}
    banks |= {"c": nd.Constants(constants)} if constants else {}
    lines = [*LINES, *FLOATS] if constants else LINES
    program = nd.Program(nd.Instructions(lines, banks, "r[0]", operands=(CELLS, CELLS + len(fixed))), length=length)

    def loss(genome: nd.Genome, batch: Any, key: Any) -> Any:
        x, y = batch
        genome = without_the_unread(genome)
        found = program(genome, {f"x{i}": x[:, i] for i in range(variables)})
        f, y = found - jnp.mean(found), y - jnp.mean(y)
        spread = jnp.mean(f**2)
        varies = spread > 1e-10 * jnp.mean(found**2)
        slope = jnp.where(varies, jnp.mean(f * y) / jnp.where(varies, spread, 1.0), 0.0 * spread)
        return (y - slope * f) ** 2 / jnp.mean(y**2) * (1 + line_costs) ** genome.lines

    return program, loss


class Spent:
    """Ends a search that has found the formula, or has computed its share of nodes: lines that matter, of all programs.
    Of the first step's all lines count, and the programs of the step that would follow count, too."""

    def __init__(self, config: Config):
        self.most, self.exactly, self.trainer = config.nodes, not config.noise, trainer_of(config)
        self.everyone, self.each = jnp.arange(config.population), 4 if config.constants else 1
        self.nodes = self.each * config.population * config.length

    def __call__(self, moment: Any) -> str | None:
        asked = self.trainer.ask(moment.state.trainer, key=jr.key(0)).population
        self.nodes += self.each * int(lines_that_matter(asked.take(self.everyone)))
        if self.exactly and moment.row["best"] < EXACT:
            return "found"
        return "all nodes are spent" if self.nodes >= self.most else None


@jax.jit
def lines_that_matter(genomes: nd.Genome) -> Any:
    return jnp.sum(jax.vmap(without_the_unread)(genomes).lines)


def trainer_of(config: Config) -> nd.AbstractTrainer:
    trainer = nd.GeneticProgramming(population=config.population, islands=config.islands, selection=nd.Tournament(4))
    return nd.Memetic(trainer, rate=0.3) if config.constants else trainer


def without_the_unread(genome: nd.Genome) -> nd.Genome:
    """No line whose value is never read (Brameier & Banzhaf, 2001, "A comparison of linear genetic programming and
    neural networks in medical data mining"). From the last line to the first: which cells are still to be read?"""
    cells = jnp.arange(64)

    def before(wanted: Any, line: Any) -> tuple[Any, Any]:
        op, a, b = line
        matters = (op != 0) & wanted[a]
        after = jnp.where(cells == a, READS["a"][op], wanted) | ((cells == b) & READS["b"][op])
        return jnp.where(matters, after, wanted), matters

    _, matter = jax.lax.scan(before, cells == 0, genome.code, reverse=True)
    return nd.Genome(jnp.where(matter[:, None], genome.code, 0), genome.constants)


def computed(genome: nd.Genome, names: list[Any], words: dict[str, Any], number: Any = np.float64) -> Any:
    """A program's result from variables of any kind, such as sympy's: its lines are Python."""
    r = [*[number(1)] * CELLS, *names, number(1), number(2), words["pi"]]
    c = [] if genome.constants is None else [number(x) for x in np.asarray(genome.constants).tolist()]
    for op, a, b in np.asarray(genome.code).tolist():
        if op:
            line = [*LINES, *FLOATS][op - 1].replace("c[b]", f"c[{b % max(len(c), 1)}]")
            exec(line, {"r": r, "c": c, "a": a, "b": b, **words})
    return r[0]


def scaled(f: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """The c0 and c1 of `c0 + c1 * f`: as few of them, with as few digits, as the values tell apart (Schwarz, 1978,
    "Estimating the dimension of a model")."""
    n, least = len(y), 1e-12 * float(np.mean(y**2))

    def error(c0: float, c1: float) -> float:
        return float(np.mean((y - c0 - c1 * f) ** 2)) + least

    c1 = float(np.mean(f * y) / np.mean(f**2))
    centred = f - np.mean(f)
    slope = float(np.mean(centred * y) / max(np.mean(centred**2), 1e-30))
    forms = [(0.0, 1.0, 0), (0.0, c1, 1), (float(np.mean(y - f)), 1.0, 1)]
    forms += [(float(np.mean(y) - slope * np.mean(f)), slope, 2)]
    criteria = [n * np.log(error(c0, c1)) + k * np.log(n) for c0, c1, k in forms]
    c0, c1, _ = forms[int(np.argmin(criteria))]
    bound = error(c0, c1) * n ** (1 / n)
    rounded = [(float(f"{c0:.{i}g}"), float(f"{c1:.{j}g}")) for i in (1, 2, 3) for j in (1, 2, 3)]
    return next((pair for pair in rounded if error(*pair) <= bound), (c0, c1))


def formula(genome: nd.Genome, equation: feynman.Equation, x: np.ndarray, y: np.ndarray) -> tuple[float, float, Any]:
    """The scaling of a program, and the whole as sympy says it."""
    with np.errstate(all="ignore"):
        f = np.broadcast_to(computed(genome, list(x.T.astype(float)), feynman.WORDS), y.shape)
    c0, c1 = scaled(f, y)
    named = feynman.symbols(equation)
    inner = sympy.sympify(computed(genome, list(named.values()), feynman.words(), sympy.sympify))
    return c0, c1, sympy.Float(c0) + sympy.Float(c1) * inner if c0 else sympy.Float(c1) * inner


def r_squared(y: np.ndarray, found: np.ndarray) -> float:
    return float(1 - np.mean((y - found) ** 2) / np.var(y))


def make(config: Config) -> nd.Experiment:
    if config.formula not in feynman.equations():
        raise ValueError(f"`--formula {config.formula}` is none of {', '.join(feynman.equations())}.")
    equation = feynman.equations()[config.formula]
    x, y = equation.drawn(config.cases, config.noise, np.random.default_rng([config.seed, 1]))
    program, loss = parts(x.shape[1], config.length, config.constants, config.line_costs)
    problem = nd.Supervised(loss, (x, y), params=program.init, domain=program.domain)
    spent = Spent(config)

    def report(result: nd.Result) -> dict[str, Any]:
        names = {f"x{i}": x[:, i] for i in range(x.shape[1])}
        genome = program.simplify(result.params, names)
        print(program.to_python(genome, name="shape"), flush=True)
        c0, c1, found = formula(genome, equation, x, y)
        print(f"{config.formula} = {c0:.6g} + {c1:.6g} * shape({', '.join(equation.ranges)})")
        with feynman.limited(20):
            found = sympy.simplify(found)
        print(f"found: {found.evalf(3)}\ntrue:  {equation.text}", flush=True)
        points = equation.unseen()
        told = np.asarray(jax.jit(program)(genome, {f"x{i}": points[:, i] for i in range(points.shape[1])}))
        return {
            "exact": int(feynman.recovered(found, equation)),
            "r2_unseen": r_squared(equation(points), c0 + c1 * told),
            "nodes": spent.nodes,
            "evaluations": result.evaluations,
            "lines": int(genome.lines),
            "train_seconds": result.seconds,
        }

    return nd.Experiment(problem, trainer_of(config), 10**6, stop=[spent], report=report, log_every=1)
