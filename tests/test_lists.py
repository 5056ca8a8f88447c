"""Lines over lists: every strategy computes what the printed Python does, and search finds such programs."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import says

import nondiff as nd
from nondiff.programs.line import LIMIT
from nondiff.testing import count_compilations

EVERYTHING = nd.Instructions(
    [
        "l[a] = sorted(l[b])",
        "l[a] = l[b][::-1]",
        "l[a] = [x * x - a for x in l[b] if x % 2 == 0]",
        "l[a] = [x < y for x, y in zip(l[a], l[b])]",
        "l[a] = [x + y for x, y in zip(l[a], l[b]) if x > y or y]",
        "l[a] = list(accumulate(l[b]))",
        "l[a] = list(accumulate(l[b], max))",
        "l[a] = list(accumulate(l[b], min))",
        "l[a] = l[b][:r[a]]",
        "l[a] = l[b][r[b]:]",
        "l[a] = l[a] + l[b]",
        "l[a] = l[b] if r[a] > 2 else []",
        "l[a] = [max(x, r[b]) + len(l[b]) - l[a][0] for x in l[a]]",
        "r[a] = sum(l[b] + l[a])",
        "r[a] = max(l[b])",
        "r[a] = l[b][r[a]]",
        "r[a] = len(l[b]) - min(l[a])",
    ],
    {"l": nd.Lists(["x", "y", "[]"], capacity=6), "r": nd.Cells(["0", "1", "k"])},
    "l[0], r[0]",
)


def inputs(cases: int, large: int) -> dict[str, Any]:
    """The first list is empty, the second full."""
    random = np.random.default_rng(0)
    lengths = np.r_[0, 5, random.integers(0, 6, cases - 2)]
    x, y = random.integers(-large, large, (cases, 5)), random.integers(-large, large, (cases, 4))
    return {"x": (x, lengths), "y": y, "k": random.integers(-5, 6, cases)}


def check_printed(program: nd.Program, every: nd.Genome, x: dict[str, Any], ran: Any) -> None:
    (values, lengths), numbers = jax.tree.map(np.asarray, ran.result)
    assert ran.halted.all() and np.all(values[np.arange(6) >= lengths[..., None]] == 0)
    for i in range(len(every.code)):
        made: dict[str, Any] = {}
        exec(program.to_python(jax.tree.map(lambda code, i=i: np.asarray(code[i]), every)), made)
        for case, n in enumerate(x["x"][1]):
            found = made["program"](x["x"][0][case, :n].tolist(), x["y"][case].tolist(), int(x["k"][case]))
            assert found == (values[i, case, : lengths[i, case]].tolist(), numbers[i, case]), (i, case)
    assert len(np.unique(values[lengths > 0], axis=0)) > 100 and len(np.unique(numbers)) > 30
    assert 0.1 < np.mean(lengths == 0) < 0.8


@pytest.mark.parametrize(("strategy", "large"), [(nd.Together(7), 9), (nd.Together(), LIMIT), (nd.Switch(), LIMIT)])
def test_python_says_what_jax_computes(strategy: nd.AbstractStrategy, large: int) -> None:
    program = nd.Program(EVERYTHING, length=9, strategy=strategy)
    every = jax.vmap(program.init)(jr.split(jr.key(1), 120))
    x = inputs(6, large)
    check_printed(program, every, x, jax.jit(jax.vmap(lambda genome: program.run(genome, x)))(every))


def test_where_jax_has_64_bits() -> None:
    """Whole numbers are the same, and longer ones are cut off before they lose any."""
    program = nd.Program(EVERYTHING, length=9)
    every = jax.vmap(program.init)(jr.split(jr.key(1), 20))
    x = inputs(4, LIMIT)
    found = jax.vmap(lambda genome: program.run(genome, x))(every)
    with jax.enable_x64(True):
        again = jax.vmap(lambda genome: program.run(genome, x))(every)
        longer = {**x, "k": jnp.array([2**40, -(2**40), 2**32 + 1, 3])}
        cut = jax.vmap(lambda genome: program.run(genome, longer))(every)
    jax.tree.map(np.testing.assert_array_equal, found, again)
    expected = jax.vmap(lambda genome: program.run(genome, {**x, "k": np.array([LIMIT, -LIMIT, LIMIT, 3])}))(every)
    jax.tree.map(np.testing.assert_array_equal, expected, cut)


def test_what_each_line_makes() -> None:
    """Two lists, one line, and a result that Python gives."""
    x, y = [5, -3, 8, 8, 0], [1, 2]
    for text, wanted in {
        "sorted(l[0])": [-3, 0, 5, 8, 8],
        "l[0][::-1]": [0, 8, 8, -3, 5],
        "l[0][:-2]": [5, -3, 8],
        "l[0][2:]": [8, 8, 0],
        "l[0][9:]": [],
        "l[0] + l[1]": [5, -3, 8, 8, 0, 1],
        "[u * v for u, v in zip(l[0], l[1])]": [5, -6],
        "[u for u in l[0] if u > 0]": [5, 8, 8],
        "list(accumulate(l[0]))": [5, 2, 10, 18, 18],
        "[u - l[0][1] for u in l[1]]": [4, 5],
    }.items():
        made = nd.Instructions([f"l[2] = {text}"], {"l": nd.Lists(["x", "y", "[]"], capacity=6)}, "l[2]")
        values, lengths = nd.Program(made, length=1)(
            nd.Genome(jnp.array([[1, 0, 0]])), {"x": np.array([x]), "y": np.array([y])}
        )
        assert np.asarray(values)[0, : int(lengths[0])].tolist() == wanted, text


def test_sums_are_cut_off_at_the_end_alone() -> None:
    """The whole sum is exact, however far it goes in between."""
    made = nd.Instructions(["r[a] = sum(l[b])"], {"l": nd.Lists(["x"], capacity=200), "r": nd.Cells(1)}, "r[0]")
    program, random = nd.Program(made, length=1), np.random.default_rng(0)
    x = random.integers(-LIMIT, LIMIT + 1, (400, 200))
    x[0], x[1], x[2] = LIMIT, -LIMIT, [LIMIT] * 100 + [-LIMIT] * 99 + [-5]
    x[3:200, 5:] = 0
    found = program(nd.Genome(jnp.array([[1, 0, 0]])), x)
    np.testing.assert_array_equal(found, np.clip(x.sum(1), -LIMIT, LIMIT))
    assert int(found[2]) == LIMIT - 5


def test_search_finds_a_list_program() -> None:
    """The two largest of the even numbers, largest first, from 12 examples; no program compiles anew."""
    lines = ["l[a] = sorted(l[b])", "l[a] = l[b][::-1]", "l[a] = l[b][:2]", "l[a] = [x for x in l[b] if x % 2 == 0]"]
    lines += ["l[a] = [x + 1 for x in l[b]]", "l[a] = [x + y for x, y in zip(l[a], l[b])]", "l[a] = l[b][1:]"]
    made = nd.Instructions(lines, {"l": nd.Lists(["x", "[]"], capacity=8)}, "l[0]")
    program, random = nd.Program(made, length=6), np.random.default_rng(0)

    def draw(cases: int) -> tuple[Any, Any]:
        x, n = random.integers(0, 30, (cases, 8)), random.integers(2, 9, cases)
        wanted = [sorted((v for v in row[:m] if v % 2 == 0), reverse=True)[:2] for row, m in zip(x, n, strict=True)]
        padded = np.array([w + [0] * (8 - len(w)) for w in wanted])
        return (x, n), (padded, np.array([len(w) for w in wanted]))

    def loss(genome: nd.Genome, batch: Any, key: Any) -> Any:
        given, (values, lengths) = batch
        found, counts = program(genome, given)
        return jnp.mean(found != values, 1) + jnp.abs(counts - lengths)

    problem = nd.Supervised(loss, draw(12), params=program.init, domain=program.domain)
    trainer = nd.GeneticProgramming(population=256)
    result = nd.fit(problem, trainer, steps=40, key=jr.key(0), stop=[nd.Target(0, "best")], log_every=5)
    assert result.history[-1]["best"] == 0 and result.evaluations <= 256 * 40
    given, (values, lengths) = draw(300)
    found, counts = program(result.params, given)
    np.testing.assert_array_equal(found, values)
    np.testing.assert_array_equal(counts, lengths)
    with count_compilations() as compiled:
        program(program.init(jr.key(5)), given)
    assert not compiled


@pytest.mark.usefixtures("unchecked")
def test_wrong_lists() -> None:
    for make, *parts in [
        (lambda: nd.Lists([], capacity=3), "start", "name of an input"),
        (lambda: nd.Lists(["x + 1"], capacity=3), "start", "x \\+ 1"),
        (lambda: nd.Lists("x", capacity=3), "for each place"),
        (lambda: nd.Lists(0, capacity=3), "start=0"),
        (lambda: nd.Lists(2, capacity=0), "capacity=0"),
        (lambda: nd.Lists(2, capacity=257), "257", "Memory"),
        (
            lambda: nd.Instructions(["l[a] = l[b]"], {"l": nd.Lists(2, capacity=3)}, "l[0]"),
            "nothing starts from an input",
        ),
    ]:
        with says(*parts):
            make()
    banks = {"l": nd.Lists(["x"], capacity=3), "r": nd.Cells(1)}
    for line, *parts in [
        ("r[a] = l[a]", "list stands where a number"),
        ("l[a] = r[a]", "number stands where a list"),
        ("l[a] = l[a] + 1", "list stands where a number"),
        ("l[a] = l[a] * 2", "list stands"),
        ("r[a] = sum(r[a])", "number stands"),
        ("l[a] = l[a][::2]", r"\[:stop\]"),
        ("l[a] = [x for x in r[a]]", "number stands"),
        ("l[a] = [x * 0.5 for x in l[a]]", "float"),
        ("l[a] = [l[x] for x in l[a]]", "depends on the element|list stands"),
        ("l[a] = [x for r in l[a]]", "different names"),
        ("l[a] = [clip + 1 for clip in l[a]]", "'clip'", "cannot be a name"),
        ("l[a] = [x for x, x in zip(l[a], l[a])]", "different names"),
        ("l[a] = [x for x, y in l[a]]", "zip"),
        ("l[a] = [x for x in l[a] if x if a]", "several tests", "and"),
        ("l[a] = [sum([y for y in l[a]]) for x in l[a]]", "in another comprehension"),
        ("l[a] = l", "whole of `l`"),
        ("l[a] = l[b] if l[a] else []", "list stands where a truth", "len"),
        ("l[a] = list(accumulate(l[b], func=max))", "nothing that a line may say"),
        ("l[a] = list(accumulate(l[b], initial=0))", "nothing that a line may say"),
        ("l[a][0] = 3", "expected a place"),
    ]:
        with says(*parts):
            nd.Program(nd.Instructions([line], banks, "l[0]"), length=2)
    with says("`x`", "another"):
        nd.Instructions(["r[a] = 1"], {"l": nd.Lists(["x"], capacity=3), "r": nd.Cells(["x"])}, "r[0]")
    program = nd.Program(nd.Instructions(["l[a] = l[b]"], banks, "l[0]"), length=2)
    genome = program.init(jr.key(0))
    for given, *parts in [
        (np.zeros((2, 4), int), "holds 3", "capacity"),
        (np.zeros(3, int), r"\[cases, length\]"),
        (np.zeros((2, 3)), "whole numbers"),
        ((np.zeros((2, 3), int), [0, 4]), "0 to 4"),
        (np.zeros((0, 3), int), "1 or more"),
    ]:
        with says(*parts):
            program(genome, given)
    values, lengths = program(genome, (np.full((2, 3), 7), [0, 3]))  # as far as it goes
    assert values.tolist() == [[0, 0, 0], [7, 7, 7]] and lengths.tolist() == [0, 3]
