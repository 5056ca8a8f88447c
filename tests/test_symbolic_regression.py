"""The experiment with formulas: its table, its algebra, what programs say to sympy, and constants that learn."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import sympy

import nondiff as nd
from nondiff.launch.load import load

FILE = pathlib.Path(__file__).parents[1] / "experiments" / "symbolic_regression.py"


@pytest.fixture(scope="module")
def regression() -> Any:
    return load(FILE, FILE.name)


def test_equations_have_their_variables_and_values(regression: Any) -> None:
    """All hundred; some values by hand."""
    equations = regression.feynman.equations()
    assert len(equations) == 100
    for equation in equations.values():
        names = set(compile(equation.text, equation.name, "eval").co_names) - regression.feynman.WORDS.keys()
        assert names == set(equation.ranges), equation
        x, y = equation.drawn(50, 0.0, np.random.default_rng(0))
        assert x.shape == (50, len(names)) and np.isfinite(y).all() and np.ptp(y) > 0, equation
        low, high = np.array(list(equation.ranges.values())).T
        assert np.all((low <= x) & (x <= high)) and np.all(low < high)
    for name, values, answer in [
        ("I.8.14", [1, 4, 5, 1], 5),
        ("I.18.4", [1, 3, 2, 4], 3.5),
        ("I.27.6", [2, 3, 3], 2 / 3),
        ("II.11.28", [1, 1], 2.5),
        ("III.19.51", [1, 2, 2, 1, 1], -0.5),
    ]:
        assert equations[name](np.array([values], float)) == pytest.approx([answer]), name


def test_noise_is_in_units_of_the_root_mean_square(regression: Any) -> None:
    equation = regression.feynman.equations()["I.12.1"]
    x, y = equation.drawn(20_000, 0.1, np.random.default_rng(0))
    clean = equation(x)
    assert np.std(y - clean) == pytest.approx(0.1 * np.sqrt(np.mean(clean**2)), rel=0.02)


@pytest.mark.parametrize(
    ("name", "found", "is_it"),
    [
        ("I.27.6", "d1*d2/(d2 + d1*n)", True),
        ("I.27.6", "2.5*d1*d2/(d2 + d1*n)", True),
        ("I.27.6", "1/(1/d1 + n/d2) - 0.31", True),
        ("I.27.6", "d1*d2/(d2 + d1*n) + 0.001*n", False),
        ("I.27.6", "d1*d2/(d1 + d2*n)", False),
        ("I.27.6", "1.0", False),
        ("I.10.7", "c*m_0/sqrt((c - v)*(c + v))", True),
        ("I.10.7", "m_0*(1 + v**2/c**2/2)", False),
        ("I.37.4", "(sqrt(I1) - sqrt(I2))**2 + 4*sqrt(I1*I2)*cos(delta/2)**2", True),
        ("III.4.32", "1/(exp(0.1592*h*omega/(kb*T)) - 1)", True),
        ("III.4.32", "1/(exp(0.18*h*omega/(kb*T)) - 1)", False),
        ("I.6.2a", "exp(-theta**2/2.0)", True),
        ("I.6.2a", "exp(-theta**2/2.03)", False),
        ("I.48.2", "log(-m)", False),
    ],
)
def test_what_counts_as_found(regression: Any, name: str, found: str, is_it: bool) -> None:
    equation = regression.feynman.equations()[name]
    words = regression.feynman.words() | regression.feynman.symbols(equation)
    assert regression.feynman.recovered(eval(found, words), equation) == is_it


def test_sympy_hears_what_jax_computes(regression: Any) -> None:
    """Of random programs with two variables and two floats."""
    program, _ = regression.parts(2, 8, 2, 0.01)
    x = np.random.default_rng(0).uniform(1, 3, (5, 2)).astype(np.float32)
    names = sympy.symbols("p q", positive=True)
    told = 0
    for seed in range(40):
        genome = program.init(jr.key(seed))
        wanted = np.asarray(program(genome, {"x0": x[:, 0], "x1": x[:, 1]}))
        expression = sympy.sympify(regression.computed(genome, list(names), regression.feynman.words(), sympy.sympify))
        with np.errstate(all="ignore"):
            numbers = regression.computed(genome, list(x.T.astype(float)), regression.feynman.WORDS)
        if np.isfinite(wanted).all() and np.abs(wanted).max() < 1e3:
            found = [float(sympy.re(expression.subs(dict(zip(names, row.tolist(), strict=True))))) for row in x]
            np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=2e-3)
            np.testing.assert_allclose(np.broadcast_to(numbers, wanted.shape), wanted, rtol=2e-3, atol=2e-3)
            told += len(expression.free_symbols) > 0
    assert told > 5


def test_lines_that_nothing_reads_are_left_out(regression: Any) -> None:
    """The values stay, and without any other line they do not."""
    program, _ = regression.parts(2, 12, 2, 0.01)
    x = {f"x{i}": np.random.default_rng(i).uniform(1, 3, 5).astype(np.float32) for i in range(2)}
    many = jax.vmap(program.init)(jr.split(jr.key(0), 200))
    fewer = jax.vmap(regression.without_the_unread)(many)
    run = jax.jit(jax.vmap(lambda g: program(g, x)))
    np.testing.assert_array_equal(run(many), run(fewer))
    count = np.sum(np.asarray(fewer.code)[:, :, 0] != 0)
    assert count < 0.7 * np.sum(np.asarray(many.code)[:, :, 0] != 0) and regression.lines_that_matter(many) == count
    lines = nd.Genome(
        jnp.array([[1, 0, 3], [9, 1, 4], [2, 2, 1], [12, 0, 1], [15, 1, 0]] + 7 * [[0, 0, 0]]), many.constants[0]
    )
    kept = regression.without_the_unread(lines)
    assert kept.code[:, 0].tolist() == [0, 9, 0, 12] + 8 * [0]  # r0 is written anew from r1; c[0] is no cell


def test_the_loss_is_that_of_the_best_line(regression: Any) -> None:
    """2 - 3 x0 * x1 has the shape x0 * x1, up to rounding, and a shape that is constant explains nothing."""
    _, loss = regression.parts(2, 4, 0, 0.0)
    x = np.random.default_rng(0).uniform(1, 3, (30, 2)).astype(np.float32)
    y = 2 - 3 * x[:, 0] * x[:, 1]
    shape = jnp.array([[1, 0, 3], [1, 0, 4], [0, 0, 0], [0, 0, 0]])
    assert jnp.mean(loss(nd.Genome(shape), (x, y), jr.key(0))) < regression.EXACT
    assert jnp.mean(loss(nd.Genome(shape * 0), (x, y), jr.key(0))) == pytest.approx(1, rel=1e-5)
    f = (x[:, 0] * x[:, 1]).astype(float)
    assert regression.scaled(f, y.astype(float)) == (2, -3)
    noisy = 3.14159 * f + np.random.default_rng(1).normal(size=30) * 0.05
    c0, c1 = regression.scaled(f, noisy)
    assert c0 == 0 and c1 == pytest.approx(3.14159, abs=0.02) and len(f"{c1}") <= 4


def test_constants_of_programs_learn() -> None:
    """y = x / (1.3 + x): its number is found by its gradient, its lines by selection among cases."""
    lines = ["v[a] = v[a] + c[b]", "v[a] = v[a] * v[b]", "v[a] = v[b] / v[a]"]
    banks = {"v": nd.Cells(["x"], fixed=["x"], real=True), "c": nd.Constants(1)}
    program = nd.Program(nd.Instructions(lines, banks, "v[0]", operands=(1, 2)), length=3)
    x = np.linspace(0.2, 4, 16, dtype=np.float32)

    def loss(genome: nd.Genome, batch: Any, key: Any) -> Any:
        return (program(genome, batch) - batch / (1.3 + batch)) ** 2

    problem = nd.Supervised(loss, x, params=program.init, domain=program.domain)
    search = nd.GeneticProgramming(population=64, selection=nd.Lexicase(epsilon=None), scale=0.01)
    result = nd.fit(problem, nd.Memetic(search, rate=1.0), steps=100, key=jr.key(0), log_every=100)
    at_two = program(result.params, jnp.array([2.0]))[0]  # its constant may be added twice, and is then half as large
    assert 2 / at_two - 2 == pytest.approx(1.3, abs=1e-3)
    assert result.history[-1]["best"] < 1e-6


def test_a_formula_is_found_again(regression: Any) -> None:
    config = regression.Config(formula="I.39.11", nodes=1e6, population=256, length=8)
    made = regression.make(config)
    result = nd.fit(made.problem, made.trainer, steps=made.steps, key=jr.key(0), stop=made.stop, log_every=1)
    assert result.reason == "found"
    found = made.report(result)
    assert found["exact"] == 1 and found["r2_unseen"] > 1 - 1e-6 and 0 < found["nodes"] < 1e6
    assert found["evaluations"] == result.steps * config.population
    with pytest.raises(ValueError, match=r"I\.0\.0.*I\.6\.2a"):
        regression.make(dataclasses.replace(config, formula="I.0.0"))
