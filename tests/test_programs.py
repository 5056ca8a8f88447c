"""Programs: what JAX computes is what is printed, for whole numbers and floats, whatever runs them, and search finds
them."""

import itertools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import says

import nondiff as nd
from nondiff.core.step import init
from nondiff.core.words import shaped
from nondiff.programs.line import LIMIT
from nondiff.testing import count_compilations
from nondiff.trainers.variation import add_and_delete, change, splice

COUNTING = nd.Instructions(
    [
        "r[a] = r[a] + 1",
        "r[a] = r[b]",
        "begin",
        "r[a], again = (r[a] + 1, True) if r[a] + 1 < r[b] else (0, False)",
        "skip = x[r[a]] <= x[r[b]] or r[a] == 2",
        "x[r[a]], x[r[b]] = x[r[b]], x[r[a]]",
        "r[a] = r[a] * r[b] - x[b]",
        "r[a], r[b] = r[b] // r[a], x[r[a]] % r[b]",
        "r[a], r[b] = r[a] and r[b], (r[a] or x[r[b]]) + (r[a] < r[b])",
        "x[r[a]] = max(abs(r[b]), -r[a]) if not r[a] > r[b] and r[a] != 0 else min(r[a], a)",
    ],
    {"r": nd.Cells(["0", "first", "7"], fixed=["len(x)"]), "x": nd.Memory()},
    result="x, r[1]",
    operands=(4, 4),
)
FORMULAS = nd.Instructions(
    [
        "v[a] = v[a] + v[b]",
        "v[a] = v[a] - c[b]",
        "v[a] = v[a] * v[b]",
        "v[a] = v[a] / v[b]",
        "v[a] = sin(v[b])",
        "v[a] = sqrt(v[b]) if v[b] >= 0 else -1",
        "v[a] = c[b]",
        "v[a] = 1.5 if v[b] < 0.25 else 0",
        "v[a] = v[b] // v[a] if v[a] != 0 else v[b] > 1",
        "v[a] = (v[a] < v[b]) + (v[b] > 0.5) - (v[a] == v[b])",
        "v[a] = -(v[a] < v[b]) * max(v[b] > 1, v[a] < 0)",
    ],
    {"v": nd.Cells(["x", "y", "1"], real=True), "c": nd.Constants(2)},
    result="v[0]",
)


def genomes(program: nd.Program, count: int, seed: int = 0) -> nd.Genome:
    return jax.vmap(program.init)(jr.split(jr.key(seed), count))


def row(tree: Any, i: int) -> Any:
    return jax.tree.map(lambda x: np.asarray(x[i]), tree)


def printed(program: nd.Program, genome: nd.Genome) -> Any:
    made: dict[str, Any] = {}
    exec(program.to_python(genome), made)
    return made["program"]


def inputs(cases: int, length: int = 5, large: int = 9) -> dict[str, Any]:
    random = np.random.default_rng(0)
    return {"x": random.integers(-large, large, (cases, length)), "first": random.integers(-large, large, cases)}


@pytest.mark.parametrize(("length", "large"), [(5, 9), (20, LIMIT)])
def test_python_says_what_jax_computes(length: int, large: int) -> None:
    """Short memories are read by comparison, long ones by address."""
    program = nd.Program(COUNTING, length=12, steps=150)
    x, every = inputs(4, length, large), genomes(program, 150)
    ran = jax.tree.map(np.asarray, jax.jit(jax.vmap(lambda g: program.run(g, x)))(every))
    told = 0
    for i in range(150):
        function = printed(program, row(every, i))
        for case in np.flatnonzero(ran.halted[i]):
            memory, cell = function(x["x"][case].tolist(), int(x["first"][case]))
            assert memory == ran.result[0][i, case].tolist() and cell == ran.result[1][i, case]
            told += 1
    assert 300 < told < 600  # some never end
    assert np.all((ran.steps == 150) | ran.halted)


def test_python_says_what_jax_computes_of_floats() -> None:
    program = nd.Program(FORMULAS, length=8)
    every = genomes(program, 100)
    random = np.random.default_rng(0)
    x = {"x": random.normal(size=6).astype(np.float32), "y": np.array([0, 1, -1, 1e30, 3, -2], np.float32)}
    found = np.asarray(jax.jit(jax.vmap(lambda g: program(g, x)))(every))
    with np.errstate(all="ignore"):
        for i in range(100):
            function = printed(program, row(every, i))
            told = [function(float(x["x"][k]), float(x["y"][k])) for k in range(6)]
            np.testing.assert_allclose(found[i], np.array(told, np.float32), rtol=2e-4, atol=1e-6)
    assert np.isfinite(found).mean() > 0.6 and np.unique(found).size > 100


def test_arithmetic_is_closed() -> None:
    lines = [
        "v[0] = v[0] + v[1]",
        "v[0] = v[0] - v[1]",
        "v[0] = v[0] * v[1]",
        "v[0] = v[0] // v[1]",
        "v[0] = v[0] % v[1]",
    ]
    program = nd.Program(nd.Instructions(lines, {"v": nd.Cells(["x", "y"])}, "v[0]", operands=(1, 1)), length=1)
    values = [0, 1, -1, 7, -7, 46_341, 2**20, LIMIT, -LIMIT]
    x, y = map(np.array, zip(*itertools.product(values, values), strict=True))
    cut = lambda z: max(-LIMIT, min(LIMIT, z))  # noqa: E731
    exact = [
        lambda x, y: cut(x + y), lambda x, y: cut(x - y), lambda x, y: cut(x * y),
        lambda x, y: x // y if y else 0, lambda x, y: x % y if y else 0,
    ]  # fmt: skip
    for i, fn in enumerate(exact):
        found = program(nd.Genome(jnp.array([[i + 1, 0, 0]])), {"x": x, "y": y})
        assert found.tolist() == [fn(int(a), int(b)) for a, b in zip(x, y, strict=True)]


@pytest.mark.parametrize(
    ("instructions", "strategy"),
    [
        *itertools.product([COUNTING, FORMULAS], [nd.Together(1), nd.Together(7), nd.Together(13)]),
        (FORMULAS, nd.Switch()),
    ],
)
def test_strategies_are_equal(instructions: nd.Instructions, strategy: nd.AbstractStrategy) -> None:
    usual = nd.Program(instructions, length=9, steps=90)
    other = nd.Program(instructions, length=9, steps=90, strategy=strategy)
    x = inputs(3) if instructions is COUNTING else {"x": np.array([0.5, 2, -1]), "y": np.array([1.0, -2, 0])}
    every = genomes(usual, 40)
    found = [jax.jit(jax.vmap(lambda g, p=p: p.run(g, x)))(every) for p in (usual, other)]
    jax.tree.map(np.testing.assert_array_equal, *found)
    alone = [usual.run(row(every, i), x) for i in range(3)]
    for i, one in enumerate(alone):
        jax.tree.map(np.testing.assert_array_equal, one, row(found[0], i))


@pytest.mark.parametrize(("capacity", "traced"), [(6, False), (20, True)])
def test_cases_with_lengths_of_their_own(capacity: int, traced: bool) -> None:
    """Each is what the same program makes of an array of that length, printed and computed; what is beyond stays."""
    program = nd.Program(COUNTING, length=12, steps=150)
    x, every = inputs(5, capacity), genomes(program, 100)
    lengths = np.array([0, 1, 3, capacity, 0])

    def run(genome: nd.Genome, lengths: Any) -> Any:
        return program.run(genome, {"x": (x["x"], lengths), "first": x["first"]})

    if traced:
        ran = jax.jit(jax.vmap(run, (0, None)))(every, jnp.asarray(lengths))
    else:
        ran = jax.vmap(lambda genome: run(genome, lengths))(every)
    ran = jax.tree.map(np.asarray, ran)
    assert np.all(
        ran.result[0][:, np.arange(capacity) >= lengths[:, None]] == x["x"][np.arange(capacity) >= lengths[:, None]]
    )
    told = np.zeros(5)
    for i in range(100):
        function = printed(program, row(every, i))
        for case in np.flatnonzero(ran.halted[i]):
            n = lengths[case]
            memory, cell = function(x["x"][case, :n].tolist(), int(x["first"][case]))
            assert memory == ran.result[0][i, case, :n].tolist() and cell == ran.result[1][i, case]
            told[case] += 1
    assert told.min() > 30 and len({tuple(r) for r in ran.result[1]}) > 20
    short = {"x": x["x"][2:3, : lengths[2]], "first": x["first"][2:3]}
    alone = jax.vmap(lambda genome: program.run(genome, short))(every)
    np.testing.assert_array_equal(alone.result[0][:, 0], ran.result[0][:, 2, : lengths[2]])
    np.testing.assert_array_equal(alone.steps[:, 0], ran.steps[:, 2])


def test_lengths_of_floats_and_of_straight_lines() -> None:
    lines = ["v[a] = x[b] - v[b]", "v[a] = v[a] / x[a]", "x[a] = v[b]", "v[a] = len(x)"]
    banks = {"v": nd.Cells(["x[7]", "len(x)", "0"], real=True), "x": nd.Memory(real=True)}
    sums = nd.Instructions(lines, banks, "v[0], v[1]", operands=(3, 3))
    program = nd.Program(sums, length=7)
    random = np.random.default_rng(0)
    x, lengths = random.normal(size=(12, 4)).astype(np.float32), np.arange(12) % 5
    every = genomes(program, 60)
    found = np.asarray(jnp.stack(jax.vmap(lambda g: program(g, (x, lengths)))(every), -1))
    with np.errstate(all="ignore"):
        for i in range(60):
            function = printed(program, row(every, i))
            told = np.array([function(x[k, : lengths[k]].tolist()) for k in range(12)], np.float32)
            np.testing.assert_allclose(found[i], told, rtol=2e-4, atol=1e-6)
    assert np.isfinite(found).mean() > 0.4 and np.unique(found).size > 100
    loads = nd.Instructions(["x[a] = x[b] + 1"], {"x": nd.Memory()}, "x", operands=(4, 4))
    own = nd.Program(loads, length=5)
    held, every = np.arange(40).reshape(10, 4), genomes(own, 20)
    found = np.asarray(jax.vmap(lambda g: own(g, (held, lengths[:10])))(every))
    for i in range(20):
        function = printed(own, row(every, i))
        for k in range(10):
            assert function(held[k, : lengths[k]].tolist()) + held[k, lengths[k] :].tolist() == found[i, k].tolist()
    with says("Switch", "own lengths", "Together"):
        nd.Program(loads, length=5, strategy=nd.Switch())(row(every, 0), (held, lengths[:10]))


def test_maps_over_lengths() -> None:
    program = nd.Program(COUNTING, length=9, steps=90)
    every, x = genomes(program, 6), inputs(4)
    lengths = np.array([[0, 1, 2, 3], [5, 4, 3, 2], [1, 1, 5, 0]])

    def run(genome: nd.Genome, lengths: Any) -> Any:
        return program(genome, {"x": (x["x"], lengths), "first": x["first"]})

    mapped = jax.vmap(lambda one: jax.vmap(lambda g: run(g, one))(every))(lengths)
    for k in range(3):
        alone = jax.vmap(lambda g, k=k: run(g, lengths[k]))(every)
        jax.tree.map(lambda a, b, k=k: np.testing.assert_array_equal(a[k], b), mapped, alone)


LEAVING = nd.Instructions(
    [
        "r[a] = r[a] + r[b]",
        "r[a], r[b] = r[b], r[a] % r[b]",
        "begin",
        "again = r[a] < r[b]",
        "again = True",
        "leave = r[a] == 0",
        "r[a], leave = r[a] + 1, r[a] > r[b]",
        "skip = r[a] < r[b]",
    ],
    {"r": nd.Cells(["x", "y", "1"])},
    result="r[0], r[1]",
)


def test_a_loop_is_left() -> None:
    """From the middle, and before anything was done; the program ends where there is none."""
    program = nd.Program(LEAVING, length=4, steps=60)
    by_euclid = nd.Genome(jnp.array([[3, 0, 0], [6, 1, 0], [2, 0, 1], [5, 0, 0]]))
    x, y = np.array([12, 7, 0, 35, 8]), np.array([18, 0, 9, 21, 8])
    ran = program.run(by_euclid, {"x": x, "y": y})
    assert ran.result[0].tolist() == np.gcd(x, y).tolist() and bool(ran.halted.all())
    assert ran.steps.tolist()[1] == 2  # `begin`, and out
    source = program.to_python(by_euclid)
    assert "while True:\n        if r[1] == 0:\n            break\n" in source
    at_once = nd.Genome(jnp.array([[6, 0, 0], [1, 0, 0], [3, 0, 0], [4, 0, 0]]))
    assert program(at_once, {"x": np.array([0, 3]), "y": np.array([5, 5])})[0].tolist() == [0, 6]
    assert "if r[0] == 0:\n        return r[0], r[1]\n" in program.to_python(at_once)


def test_python_leaves_where_jax_does() -> None:
    program, random = nd.Program(LEAVING, length=10, steps=120), np.random.default_rng(0)
    every = genomes(program, 400)
    x = {"x": random.integers(-5, 9, 6), "y": random.integers(-5, 9, 6)}
    ran = jax.tree.map(np.asarray, jax.vmap(lambda g: program.run(g, x))(every))
    told = 0
    for i in range(400):
        if ran.halted[i].all():
            function = printed(program, row(every, i))
            for case in range(6):
                found = function(int(x["x"][case]), int(x["y"][case]))
                assert found == (ran.result[0][i, case], ran.result[1][i, case]), program.to_python(row(every, i))
            told += re.search(r"(== 0|if leave):\n +break", program.to_python(row(every, i))) is not None
    assert told > 30


TURNS = nd.Instructions(
    [
        "r[a] = 0",
        "r[a], r[b] = r[b] + 1, r[a] + 10",
        "r[b], r[a] = r[a] + 100, 3",
        "x[r[a]] = x[b]",
        "x[r[b]], r[a] = r[a], a",
    ],
    {"r": nd.Cells(["first", "1"]), "x": nd.Memory()},
    result="x, r[0] + r[1]",
    operands=(2, 2),
)


def test_straight_lines_with_several_targets() -> None:
    """Equal operands, places that differ between cases, and lines that are a number alone; with many cases, too."""
    program = nd.Program(TURNS, length=5)
    every, x = genomes(program, 60), inputs(10)
    ran = jax.tree.map(np.asarray, jax.jit(jax.vmap(lambda g: program(g, x)))(every))
    for i in range(60):
        function = printed(program, row(every, i))
        for case in range(10):
            memory, total = function(x=x["x"][case].tolist(), first=int(x["first"][case]))
            assert (memory, total) == (ran[0][i, case].tolist(), ran[1][i, case])


def test_maps_over_programs_inputs_and_both() -> None:
    program = nd.Program(COUNTING, length=9, steps=90)
    every, x = genomes(program, 6), inputs(4)
    grid = jax.tree.map(lambda g: g.reshape(2, 3, *g.shape[1:]), every)
    both = jax.vmap(jax.vmap(lambda g: program(g, x)))(grid)
    flat = jax.vmap(lambda g: program(g, x))(every)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.reshape(b.shape), b), both, flat)
    shifted = {name: np.stack([value, value + 1, value * 2]) for name, value in x.items()}
    mapped = jax.vmap(lambda row, inputs: jax.vmap(lambda g: program(g, inputs))(row), (None, 0))(every, shifted)
    for k in range(3):
        one = {name: value[k] for name, value in shifted.items()}
        alone = jax.vmap(lambda g, one=one: program(g, one))(every)
        jax.tree.map(lambda a, b, k=k: np.testing.assert_array_equal(a[k], b), mapped, alone)


def test_a_new_program_compiles_nothing() -> None:
    program = nd.Program(COUNTING, length=6, steps=50)
    x, first, second = inputs(2), program.init(jr.key(0)), program.init(jr.key(1))
    for run in (jax.jit(program.run), program.run):
        jax.block_until_ready(run(first, x))
        with count_compilations() as compiled:
            jax.block_until_ready(run(second, x))
        assert not compiled


def test_constants_have_derivatives() -> None:
    """(x - c0) * x * c1 at (3, 1) and (2, 1)."""
    program = nd.Program(FORMULAS, length=4)
    code = jnp.array([[7, 1, 0], [2, 0, 0], [3, 0, 2], [0, 0, 0]])  # y = c0; x = x - c0; x = x * 1

    def loss(constants: Any) -> Any:
        return jnp.sum(program(nd.Genome(code, constants), {"x": jnp.array([3.0, 2.0]), "y": jnp.ones(2)}) ** 2)

    np.testing.assert_allclose(jax.grad(loss)(jnp.array([0.5, 4.0])), [-2 * (2.5 + 1.5), 0], rtol=1e-6)
    many = jax.vmap(jax.grad(loss))(jnp.array([[0.5, 4.0], [1.0, 0.0]]))
    np.testing.assert_allclose(many[:, 0], [-8, -6], rtol=1e-6)


@pytest.mark.parametrize("jumps", [False, True])
def test_lines_that_a_program_does_not_take_leave_its_derivatives_alone(jumps: bool) -> None:
    """Their own are infinite, or none, where it is."""
    wild = ["v[a] = sqrt(v[a])", "v[a] = 1 / v[a]", "v[a] = log(v[a])", "v[a] = v[a] % v[a]", "v[a] = exp(exp(v[a]))"]
    guarded = "v[a] = sqrt(v[a]) if v[a] > 0 else 0.5 * v[a]"
    code = jnp.array([[1, 0, 0], [2, 0, 0], [2, 0, 0]])  # v = v + c; twice what is guarded

    def slopes(lines: list[str], x: float) -> Any:
        lines = [*lines, "skip = v[a] > 1e9"] if jumps else lines
        banks = {"v": nd.Cells(["x"], real=True), "c": nd.Constants(1)}
        program = nd.Program(nd.Instructions(lines, banks, "v[0]"), length=3)
        return jax.grad(lambda c: program(nd.Genome(code, c), jnp.array([x]))[0])(jnp.zeros(1))

    for x in (-1.0, 0.0, 1e4):
        expected = 0.25 * 1e4**-0.75 if x > 0 else 0.25
        np.testing.assert_allclose(slopes(["v[a] = v[a] + c[b]", guarded, *wild], x), [expected], rtol=1e-5)


def test_real_cells_start_from_floats() -> None:
    """Of whole numbers, too: as the printed program does."""
    cells = nd.Cells(["x * x", "x // y", "x / 2"], real=True)
    program = nd.Program(nd.Instructions(["v[a] = v[b]"], {"v": cells}, "v[0], v[1], v[2]"), length=1)
    empty = nd.Genome(jnp.zeros((1, 3), int))
    found = program(empty, {"x": np.array([100_000, 7]), "y": np.array([3, 0])})
    function = printed(program, empty)
    with np.errstate(all="ignore"):
        told = [function(100_000, 3), function(7, 0)]
    np.testing.assert_array_equal(np.stack(found, 1), np.array(told, np.float32))
    assert found[0][0] == 1e10 and np.isinf(found[1][1]) and found[2][1] == 3.5


def test_unsigned_numbers_are_cut_off() -> None:
    lines = nd.Instructions(["r[a] = r[b]"], {"r": nd.Cells(["x"])}, "r[0]")
    program, empty = nd.Program(lines, length=1), nd.Genome(jnp.zeros((1, 3), int))
    for x in (jnp.array([3_000_000_000], jnp.uint32), np.array([3_000_000_000], np.uint32)):
        assert program(empty, x).tolist() == [LIMIT]
    assert program(empty, jnp.array([200], jnp.uint8)).tolist() == [200]


def test_a_program_that_never_ends_spends_its_budget() -> None:
    lines = nd.Instructions(["r[a] = r[a] + 1", "again = True"], {"r": nd.Cells(["x"])}, "r[0]")
    code = jnp.array([[1, 0, 0], [2, 0, 0], [1, 0, 0]])
    ran = nd.Program(lines, length=3, steps=101).run(nd.Genome(code), jnp.array([0, 10]))
    assert ran.result.tolist() == [51, 61] and not ran.halted.any() and ran.steps.tolist() == [101, 101]
    nothing = nd.Program(lines, length=3, steps=101).run(nd.Genome(jnp.zeros((3, 3), int)), jnp.array([5]))
    assert nothing.result.tolist() == [5] and nothing.halted.all() and nothing.steps.tolist() == [3]


def test_what_changes_nothing_is_left_out() -> None:
    lines = ["r[a] = r[a] + 1", "r[a] = r[a] - 1", "r[a] = r[a] + r[b]"]
    program = nd.Program(nd.Instructions(lines, {"r": nd.Cells(["x", "0"])}, "r[0]"), length=6)
    code = jnp.array([[1, 1, 0], [1, 0, 0], [2, 0, 0], [2, 1, 0], [3, 0, 0], [3, 1, 1]])  # 2 x, and much besides
    short = program.simplify(nd.Genome(code), jnp.arange(-5, 6))
    assert short.code[:, 0].tolist() == [0, 0, 0, 0, 3, 0]
    assert program(short, jnp.array([21])).tolist() == [42]


@pytest.mark.usefixtures("unchecked")
def test_wrong_input() -> None:
    r = {"r": nd.Cells(2)}
    for line, *parts in [
        ("r[a] = ", "not one line"),
        ("r[a] + 1", "assigns nothing"),
        ("q[a] = 1", "assigns to `q", "banks r"),
        ("r[a] = q[b]", "`q"),
        ("r[a] = r[b] / 2", "`//`"),
        ("r[a] = open('x')", "open", "nothing that a line may say"),
        ("r[a] = 1.5", "float", "real=True"),
        ("r[a] = 2 ** 3", "nothing that a line may say"),
        ("r[a] = 1073741824", "1073741824", "whole numbers end"),
        ("skip = 1 < r[a] < 3", "comparisons of two"),
        ("r[a], r[b] = 1", "2 targets, 1 values"),
        ("skip, again = True, True", "several lines"),
        ("again, leave = True, True", "several of"),
    ]:
        with says(*parts):
            program = nd.Program(nd.Instructions([line], {**r, "x": nd.Memory()}, "r[0]"), length=1)
            program(program.init(jr.key(0)), jnp.ones((1, 1), int))
    with says("none"):
        nd.Instructions([], r, "r[0]")
    with says("`b` takes is unknown", "operands="):
        nd.Instructions(["r[a] = x[b]"], {**r, "x": nd.Memory()}, "r[0]")
    with says("writes to `c`", "constants stay"):
        nd.Instructions(["c[a] = 1.0"], {"c": nd.Constants(1)}, "c[0]")
    with says("'skip'", "cannot be a name"):
        nd.Instructions(["skip[a] = 1"], {"skip": nd.Cells(1)}, "skip[0]")
    program = nd.Program(COUNTING, length=3, steps=10)
    code, x = jnp.zeros((3, 3), int), inputs(2)
    for genome, *parts in [
        (code, "a `Genome`"),
        (nd.Genome(code[:2]), "length=3", r"\[2, 3\]"),
        (nd.Genome(code.astype(float)), "float32"),
        (nd.Genome(code, jnp.ones(1)), r"constants \[1\]"),
        (nd.Genome(code, 1.0), r"constants \[\]"),
    ]:
        with says(*parts):
            program(genome, x)
    for given, *parts in [
        (x["x"], "x, first", "dictionary"),
        ({"x": x["x"]}, "first"),
        ({**x, "first": x["first"][:1]}, "equally many"),
        ({**x, "x": x["x"][:0]}, "1 or more"),
        ({**x, "x": x["x"][:, :0]}, "1 or more"),
        ({**x, "x": x["x"] * 0.5}, "whole numbers"),
        ({**x, "first": x["first"] * 0.5}, "cells start from 'first'", "real=True"),
        ({**x, "x": x["x"] * 1j}, "complex128"),
        ({**x, "x": None}, "`x` is object"),
        ({**x, "x": [x["x"], [5, 6]]}, "`x` is no array"),
        ({**x, "x": (x["x"], [5, 6])}, "lengths of the input `x`", "5 to 6", "0 to 5"),
        ({**x, "x": (x["x"], [-1, 5])}, "-1 to 5"),
        ({**x, "x": (x["x"], [2**32 + 1, 5])}, "0 to 5"),
        ({**x, "x": (x["x"], [1, 2, 3])}, r"int64\[3\]", r"\[cases\]"),
        ({**x, "x": (x["x"], [1.0, 2.0])}, "float64", "whole numbers"),
        ({**x, "x": (x["x"][0], [1] * 5)}, r"\[cases, capacity\]"),
        ({**x, "x": (x["x"],)}, "tuple of 1", "lengths"),
    ]:
        with says(*parts):
            program(nd.Genome(code), given)
    with says("line 1", "99", "0 to 10"):
        program.to_python(nd.Genome(code.at[1, 0].set(99)))
    for name in ("sum", "no name", "def", 3):
        with says("cannot be a name"):
            program.to_python(nd.Genome(code), name=name)  # pyright: ignore[reportArgumentType]
    for operands in ((1,), (1, 2, 3), (0, 1), (2.0, 3), ("a", "b")):
        with says("operands=", "`a` and `b`"):
            nd.Instructions(["r[a] = 1"], r, "r[0]", operands=operands)  # pyright: ignore[reportArgumentType]
    assert program(nd.Genome(code.at[1, 0].set(99)), x)[0].tolist() == x["x"].tolist()  # no line: does nothing
    wrong: list[dict[str, Any]] = [{"length": 0}, {"length": 1, "steps": 0}, {"length": 1, "strategy": 3}]
    for arguments in wrong:
        with says("Program"):
            nd.Program(COUNTING, **arguments)
    for instructions in (COUNTING, TURNS):
        with says("Switch", "jump"):
            nd.Program(instructions, length=1, strategy=nd.Switch())
    for line, *parts in [
        ("r[a], x[r[a]] = 1, 2", "depends on `r`", "two lines"),
        ("f[r[a]] = 1", "computed place of `f`"),
        ("r[a] = foo(r[b])", "foo"),
        ("r[a] = q", "`q`"),
        ("r[a] = x", r"'r\[a\] = x' takes the whole of `x`"),
        ("r[a] = min(r[a], x)", "the whole of `x`"),
        ("r[a] = x[:2]", "the whole of `x`"),
        ("r[a] = 1, 2", r"'r\[a\] = 1, 2'", "1 targets, 2 values"),
        ("r[a] = r[b] * 0.5", r"'r\[a\] = r\[b\] \* 0.5'", "real=True"),
        ("r[a] = r[0.5]", "float stands where a place of `r`"),
    ]:
        with says(*parts):
            more = {**r, "x": nd.Memory(), "f": nd.Cells(1, fixed=["1"])}
            nd.Program(nd.Instructions([line], more, "r[0]"), length=1)
    results = [("q[0]", "`q"), ("foo(r[0])", "foo"), ("(r[0], (r[0], r[0]))", "cannot be computed")]
    results += [("r + 1", "whole of `r`"), ("r[0] if r else 1", "whole of `r`"), ("r, -r", "whole of `r`")]
    for result, what in results:
        with says(what):
            nd.Program(nd.Instructions(["r[a] = 1"], {"r": nd.Cells(["x"])}, result), length=1)
    wrong_banks: list[tuple[dict[str, Any], str]] = [
        ({"r": nd.Cells(2)}, "expected one"),
        ({"max": nd.Cells(["x"])}, "'max'"),
        ({"lambda": nd.Cells(["x"])}, "'lambda'"),
        ({"r": nd.Cells(["clip"])}, "'clip'"),
        ({"r": nd.Cells(["r"])}, "whole of `r`"),
        ({"r": nd.Cells(["len(r)"])}, "a bank"),
        ({"r": nd.Cells(["x"]), "s": nd.Cells(["x"], real=True), "t": nd.Cells(["0.5"])}, "start from '0.5'"),
        ({"r": nd.Cells(["x"]), "c": nd.Constants(1), "d": nd.Constants(1)}, "several"),
    ]
    for some, what in wrong_banks:
        with says(what):
            name = next(iter(some))
            nd.Program(nd.Instructions([f"{name}[a] = 1"], some, f"{name}[0]"), length=1)
    sets: list[tuple[Any, Any, Any, str]] = [
        ("r[a] = 1", r, "r[0]", "a list of lines"),
        ([7], r, "r[0]", "a list of lines"),
        (["r[a] = 1"], {}, "r[0]", "banks by name"),
        (["r[a] = 1"], [nd.Cells(2)], "r[0]", "banks by name"),
        (["r[a] = 1"], {1: nd.Cells(2)}, "r[0]", "1 cannot be a name"),
        (["r[a] = 1"], r, None, "as text"),
    ]
    for lines, banks, result, what in sets:
        with says(what):
            nd.Instructions(lines, banks, result)
    for start in (2.5, None):
        with says("Cells", "one for each cell"):
            nd.Cells(start)  # pyright: ignore[reportArgumentType]
    with says("chunk"):
        nd.Together(0)


def test_lexicase_by_enumeration() -> None:
    """Every order of three cases is as likely as any other."""
    losses = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0], [0, 2, 2], [0, 1, 1], [np.inf] * 3])
    chances = np.zeros(len(losses))
    for order in itertools.permutations(range(3)):
        alive = np.arange(len(losses))
        for case in order:
            alive = alive[losses[alive, case] == losses[alive, case].min()]
        chances[alive] += 1 / len(alive) / math.factorial(3)
    chosen = nd.Lexicase()(jnp.asarray(losses, jnp.float32), 20_000, key=jr.key(0))
    np.testing.assert_allclose(np.bincount(chosen, minlength=6) / 20_000, chances, atol=0.02)
    assert chances[3] == 0 and chances[2] == pytest.approx(1 / 3)
    aggregated = nd.DALex()(jnp.asarray(losses, jnp.float32), 20_000, key=jr.key(0))
    shares = np.bincount(aggregated, minlength=6) / 20_000
    assert shares[5] == 0 and shares[3] < 0.1  # 3 is as good as 0 and 4 where one case has all the weight
    np.testing.assert_allclose([shares[0] + shares[4] + shares[3], shares[1], shares[2]], [1 / 3] * 3, atol=0.05)


def test_epsilon_lexicase_keeps_what_is_nearly_best() -> None:
    losses = jnp.array([[0.0, 9.0], [0.5, 0.0], [1.0, 0.6], [7.0, 0.1]])  # median deviations 0.5 and 0.3
    exactly = nd.Lexicase()(losses, 400, key=jr.key(0))
    nearly = nd.Lexicase(None)(losses, 400, key=jr.key(0))
    assert set(exactly.tolist()) == {0, 1} and set(nearly.tolist()) == {1}
    assert set(nd.Lexicase(1.0)(losses, 400, key=jr.key(0)).tolist()) == {1, 2}


def test_lines_vary() -> None:
    domain = nd.Code((50, 50, 50))
    lines = jnp.where(jnp.arange(20)[:, None] < 12, 10 + jnp.arange(20)[:, None] * jnp.ones((1, 3), int), 0)
    keys = jr.split(jr.key(0), 2_000)
    added = jax.vmap(lambda k: add_and_delete(lines, domain, jnp.asarray(0.2), words=shaped(k, (20, 7))))(keys)
    counts = np.sum(np.asarray(added)[:, :, 0] != 0, 1)
    assert counts.mean() == pytest.approx(12, abs=0.15)  # 1.2 (1 - 1/6) = 1; new lines may be empty ones, 1 in 50
    kept = [x[np.all(x == x[:, :1], 1) & (x[:, 0] >= 10) & (x[:, 0] < 22), 0] for x in np.asarray(added)]
    assert all(np.all(np.diff(x) > 0) for x in kept)  # in order
    changed = jax.vmap(lambda k: change(lines, domain, jnp.asarray(0.25), words=shaped(k, (20, 6))))(keys)
    differing: Any = np.not_equal(changed, lines)
    assert differing.any(2)[:, :12].mean() == pytest.approx(0.25 * (0.5 * (1 - 1e-5) + 0.5 * 0.98), abs=0.01)
    assert not differing[:, 12:].any()
    other = jnp.full((20, 3), 3)
    spliced = np.asarray(jax.vmap(lambda k: splice(lines, other, words=shaped(k, (2,))))(keys))
    inside = np.all(spliced == 3, 2)
    assert np.all(np.abs(np.diff(inside.astype(int), axis=1)).sum(1) <= 2)  # one stretch
    assert np.array_equal(spliced[~inside], np.broadcast_to(lines, spliced.shape)[~inside])


def square() -> tuple[nd.Program, nd.Supervised]:
    """x**2 + x + 1, exactly."""
    lines = ["v[a] = v[a] * v[b]", "v[a] = v[a] + v[b]"]
    program = nd.Program(nd.Instructions(lines, {"v": nd.Cells(["x", "1"])}, "v[0]"), length=6)

    def loss(genome: nd.Genome, x: Any, key: Any) -> Any:
        return jnp.minimum(jnp.abs(program(genome, x) - (x**2 + x + 1)), 100).astype(jnp.float32)

    return program, nd.Supervised(loss, jnp.arange(-4, 5), params=program.init, domain=program.domain)


@pytest.mark.parametrize("selection", [nd.Lexicase(), nd.DALex(), nd.Tournament(), nd.Truncation()])
def test_search_finds_a_program(selection: nd.AbstractSelection) -> None:
    program, problem = square()
    trainer = nd.GeneticProgramming(population=128, selection=selection)
    result = nd.fit(problem, trainer, steps=60, key=jr.key(1), log_every=60)
    assert result.history[-1]["best"] == 0
    assert program(result.params, jnp.array([100, -50])).tolist() == [10_101, 2_451]
    assert result.history[-1]["lines"] == np.sum(result.params.code[:, 0] != 0)


def test_genetic_takes_lines_and_lexicase_too() -> None:
    _, problem = square()
    trainer = nd.Genetic(population=256, selection=nd.Lexicase(), rate=0.1)
    assert nd.fit(problem, trainer, steps=60, key=jr.key(0), log_every=60).history[-1]["best"] == 0


def test_seeds_islands_and_a_mutation_of_ones_own() -> None:
    _, problem = square()
    found = jnp.array([[2, 1, 0], [1, 0, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]])  # v1 += x; v0 *= v1
    seeds = nd.Genome(jnp.stack([found, found * 0]))
    trainer = nd.GeneticProgramming(population=8, seeds=seeds, islands=2, migrate_every=3, mutate=lambda p, key: p)
    state = init(problem, trainer, key=jr.key(0))
    assert state.trainer.members.code[1].tolist() == found.tolist()

    def nothing(params: nd.Genome, key: Any) -> nd.Genome:
        return jax.tree.map(jnp.zeros_like, params)

    def islands(keep: bool, steps: int) -> list[set[int]]:
        """Where a program of one line, which nobody makes, has got to."""
        still = nd.GeneticProgramming(
            population=12, islands=3, migrate_every=4, mutate=nothing,
            seeds=nd.Genome(found[None]) if keep else None,
        )  # fmt: skip
        result = nd.fit(problem, still, steps=steps, key=jr.key(0), log_every=steps)
        code = np.asarray(result.state.trainer.members.code).reshape(3, 4, -1)
        return [{int(np.abs(c).sum()) for c in island} for island in code]

    def elsewhere(steps: int) -> list[bool]:
        """The same, of a program that starts on the third island."""
        others = nd.Genome(jnp.concatenate([jnp.zeros((8, 6, 3), int), found[None]]))
        still = nd.GeneticProgramming(population=12, islands=3, migrate_every=100, seeds=others, mutate=nothing)
        result = nd.fit(problem, still, steps=steps, key=jr.key(0), log_every=steps)
        assert result.params.code.tolist() == found.tolist()
        code = np.asarray(result.state.trainer.members.code).reshape(3, 4, -1)
        return [bool(np.any(np.all(c == np.ravel(found), 1))) for c in code]

    assert elsewhere(5) == [False, False, True]
    mark = int(np.abs(np.asarray(found)).sum())
    assert [mark in island for island in islands(True, 3)] == [True, False, False]
    assert [mark in island for island in islands(True, 4)] == [True, True, False]
    assert [mark in island for island in islands(True, 8)] == [True, True, True]


@pytest.mark.usefixtures("unchecked")
def test_wrong_searches() -> None:
    for arguments, *parts in [
        ({"population": 1}, "population"),
        ({"population": 8, "islands": 3}, "islands=3"),
        ({"population": 8, "selection": 3}, "selection"),
        ({"population": 8, "crossover": 1.5}, "crossover"),
        ({"population": 8, "add": 0}, "add"),
        ({"population": 8, "change": -1.0}, "change"),
        ({"population": 8, "migrate_every": 0}, "migrate_every"),
        ({"population": 8, "mutate": 3}, "mutate=3"),
    ]:
        with says(*parts):
            nd.GeneticProgramming(**arguments)  # pyright: ignore[reportArgumentType]
    program, problem = square()
    seeds = jax.vmap(program.init)(jr.split(jr.key(0), 8))
    with says("there are 8 seeds"):
        nd.fit(problem, nd.GeneticProgramming(population=8, seeds=seeds), steps=1, key=jr.key(0))
    most = nd.GeneticProgramming(population=9, seeds=seeds, mutate=lambda params, key: params)
    assert nd.fit(problem, most, steps=1, key=jr.key(0)).evaluations == 9
    for wrong, *parts in [
        (nd.Genome(seeds.code[:, :2]), r"\[8, 2, 3\]", "an axis of programs first"),
        (nd.Genome(seeds.code[0]), "an axis of programs first"),
        (nd.Genome(seeds.code + 0.7), "float32", "an axis of programs first"),
        (seeds.code, "an axis of programs first"),
    ]:
        with says(*parts):
            nd.fit(problem, nd.GeneticProgramming(population=64, seeds=wrong), steps=1, key=jr.key(0))
    with says("no leaf is a program"):
        real = nd.BlackBox(lambda x: x**2, 1.0)
        nd.fit(real, nd.GeneticProgramming(population=8), steps=1, key=jr.key(0))
    for wrong in (lambda params, key: None, lambda params, key: nd.Genome(params.code[:2])):
        with says("mutate=", "the same structure, shapes and types"):
            nd.fit(problem, nd.GeneticProgramming(population=8, mutate=wrong), steps=1, key=jr.key(0))
    for epsilon in (-1.0, True, "a"):
        with says("epsilon"):
            nd.Lexicase(epsilon)  # pyright: ignore[reportArgumentType]
    with says("pressure"):
        nd.DALex(0)
    with says("sizes"):
        nd.Code((3, 0))
    with says(r"\[lines, 2\]"):
        nd.Code((3, 3)).check(jnp.zeros((4, 3), int), "params")
