"""The engines that `programs.py --parts interpreter` compares: what evaluating the same random trees costs.

gplearn and DEAP walk a tree and call NumPy for every node, DEAP after it has compiled it, as its documentation says;
`numpy` is an interpreter of ours, which at each line of all programs computes those of one kind at once. It and nondiff
have the trees as lines of two operands, of which the second may be an input or a constant: so a leaf often needs no
line of its own. Rates are of the trees' nodes.
"""

import importlib
import importlib.util
import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import nondiff as nd

BINARY = ("add", "sub", "mul", "max", "min")
UNARY = ("neg", "sin", "tanh")
CELLS, CONSTANTS, MOST = 6, 16, 31
"""Cells that a tree may need, constants of a tree, nodes of the largest."""
X = {0: CELLS, 1: CELLS + 1}
"""The cell of each input."""
LINES = nd.Instructions(
    [
        *(f"v[a] = v[a] {sign} v[b]" for sign in "+-*"),
        *(f"v[a] = {name}(v[a], v[b])" for name in ("max", "min")),
        "v[a] = v[b] - v[a]",
        *(f"v[a] = v[a] {sign} c[b]" for sign in "+-*"),
        *(f"v[a] = {name}(v[a], c[b])" for name in ("max", "min")),
        "v[a] = c[b] - v[a]",
        "v[a] = -v[b]",
        *(f"v[a] = {name}(v[b])" for name in ("sin", "tanh")),
        "v[a] = v[b]",
        "v[a] = c[b]",
    ],
    {"v": nd.Cells(CELLS, fixed=["x", "y"], real=True), "c": nd.Constants(CONSTANTS)},
    result="v[0]",
)
WITH_CELL, WITH_CONSTANT = (
    (*(f"{name} {with_}" for name in BINARY), f"from {with_}") for with_ in ("cell", "constant")
)
NAMES = dict(enumerate((*WITH_CELL, *WITH_CONSTANT, *UNARY, "copy", "constant"), 1))
NUMBERS = {name: number for number, name in NAMES.items()}
NUMPY = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "max": np.maximum, "min": np.minimum,
    "neg": np.negative, "sin": np.sin, "tanh": np.tanh,
}  # fmt: skip
Tree = tuple[Any, ...]
"""`("x", number)`, `("c", value)`, or a function's name and its arguments."""
Run = Callable[[], np.ndarray]
"""All trees on all cases, `[trees, cases]`."""


def size(tree: Tree) -> int:
    return 1 + sum(size(part) for part in tree[1:] if isinstance(part, tuple))


def grow(random: np.random.Generator, depth: int, full: bool) -> Tree:
    """A random tree, by Koza's methods `full` and `grow`."""
    if depth == 0 or (not full and random.random() < 0.25):
        return ("x", int(random.integers(2))) if random.random() < 0.7 else ("c", float(np.float32(random.normal())))
    name = str(random.choice([*BINARY, *UNARY]))
    return (name, *(grow(random, depth - 1, full) for _ in range(2 if name in BINARY else 1)))


def trees(count: int, seed: int = 0) -> list[Tree]:
    """Of 3 to 31 nodes."""
    random, found = np.random.default_rng(seed), []
    while len(found) < count:
        tree = grow(random, int(random.integers(2, 6)), bool(random.integers(2)))
        if 3 <= size(tree) <= MOST:
            found.append(tree)
    return found


def lines(tree: Tree) -> tuple[list[tuple[int, int, int]], list[float]]:
    """A tree as lines that leave its value in the first cell, and its constants."""
    constants: list[float] = []

    def emit(tree: Tree, cell: int) -> Iterator[tuple[int, int, int]]:
        name, *parts = tree
        if name == "x":
            yield NUMBERS["copy"], cell, X[parts[0]]
        elif name == "c":
            yield NUMBERS["constant"], cell, constant(parts[0])
        elif len(parts) == 1:
            yield from () if parts[0][0] == "x" else emit(parts[0], cell)
            yield NUMBERS[name], cell, X[parts[0][1]] if parts[0][0] == "x" else cell
        else:
            first, second = parts
            if first[0] in ("x", "c"):  # a leaf stands second, where it needs no line of its own
                first, second, name = second, first, "from" if name == "sub" else name
            yield from emit(first, cell)
            if second[0] == "c":
                yield NUMBERS[f"{name} constant"], cell, constant(second[1])
                return
            yield from () if second[0] == "x" else emit(second, cell + 1)
            yield NUMBERS[f"{name} cell"], cell, X[second[1]] if second[0] == "x" else cell + 1

    def constant(value: float) -> int:
        constants.append(value)
        return len(constants) - 1

    return list(emit(tree, 0)), constants


def packed(of: list[Tree]) -> nd.Genome:
    """All trees as genomes of equal length."""
    found = [lines(tree) for tree in of]
    code = np.zeros((len(of), max(len(rows) for rows, _ in found), 3), np.int32)
    constants = np.zeros((len(of), CONSTANTS), np.float32)
    for i, (rows, values) in enumerate(found):
        code[i, : len(rows)] = rows
        constants[i, : len(values)] = values
    assert code[..., 1].max() < CELLS
    return nd.Genome(code, constants)


def by_nondiff(of: list[Tree], x: np.ndarray, strategy: nd.AbstractStrategy) -> Run:
    genomes = jax.tree.map(jnp.asarray, packed(of))
    program = nd.Program(LINES, length=genomes.code.shape[1], strategy=strategy)
    inputs = {"x": jnp.asarray(x[0]), "y": jnp.asarray(x[1])}
    run = jax.jit(lambda genomes, inputs: jax.vmap(lambda g: program(g, inputs))(genomes))
    return lambda: np.asarray(run(genomes, inputs))


def by_numpy(of: list[Tree], x: np.ndarray) -> Run:
    genomes = packed(of)
    first = np.zeros((len(of), CELLS + 2, x.shape[1]), np.float32)

    def run() -> np.ndarray:
        v = first.copy()
        v[:, CELLS:] = x
        for place in range(genomes.code.shape[1]):
            op, a, b = genomes.code[:, place].T
            for number in np.unique(op):
                here = np.flatnonzero(op == number)
                cell, other = a[here], b[here]
                name, *what = NAMES.get(int(number), "nothing").split()
                if name == "nothing":
                    continue
                second = genomes.constants[here, other][:, None] if "constant" in (name, *what) else v[here, other]
                if name in BINARY:
                    second = NUMPY[name](v[here, cell], second)
                elif name == "from":
                    second = second - v[here, cell]
                elif name in UNARY:
                    second = NUMPY[name](second)
                v[here, cell] = second
        return v[:, 0]

    return run


def by_gplearn(of: list[Tree], x: np.ndarray) -> Run:
    known = importlib.import_module("gplearn.functions")
    kind = importlib.import_module("gplearn._program")._Program
    functions = {name: known._function_map[name] for name in (*BINARY, "neg", "sin")}
    functions["tanh"] = known.make_function(function=np.tanh, name="tanh", arity=1)
    arities: dict[int, list[Any]] = {}
    for function in functions.values():
        arities.setdefault(function.arity, []).append(function)

    def prefix(tree: Tree) -> list[Any]:
        if tree[0] in ("x", "c"):
            return [tree[1]]
        return [functions[tree[0]], *(node for part in tree[1:] for node in prefix(part))]

    programs = [
        kind(
            function_set=list(functions.values()), arities=arities, init_depth=(2, 6), init_method="half and half",
            n_features=2, const_range=(-1.0, 1.0), metric=None, p_point_replace=0.05, parsimony_coefficient=0.0,
            random_state=np.random.RandomState(0), program=prefix(tree),
        )
        for tree in of
    ]  # fmt: skip
    rows = np.ascontiguousarray(x.T)
    return lambda: np.stack([np.broadcast_to(program.execute(rows), (len(rows),)) for program in programs])


def by_deap(of: list[Tree], x: np.ndarray) -> Run:
    gp = importlib.import_module("deap.gp")
    known = gp.PrimitiveSet("tree", 2)
    for name, function in NUMPY.items():
        known.addPrimitive(function, 2 if name in BINARY else 1, name=name)

    def prefix(tree: Tree) -> list[Any]:
        if tree[0] == "x":
            return [known.mapping[f"ARG{tree[1]}"]]
        if tree[0] == "c":
            return [gp.Terminal(tree[1], False, object)]
        return [known.mapping[tree[0]], *(node for part in tree[1:] for node in prefix(part))]

    compiled = [gp.PrimitiveTree(prefix(tree)) for tree in of]
    shape = x.shape[1:]
    return lambda: np.stack([np.broadcast_to(gp.compile(tree, known)(*x), shape) for tree in compiled])


PEERS = {"gplearn": by_gplearn, "deap": by_deap}


def rows(cases: tuple[int, ...], count: int, turns: int, skipped: list[str]) -> Iterator[dict[str, Any]]:
    """A row for every engine and number of cases; they take turns, and all of them give the same values."""
    of = trees(count)
    nodes = sum(map(size, of))
    for number in cases:
        x = np.random.default_rng(1).uniform(-2, 2, (2, number)).astype(np.float32)
        engines = {
            "nondiff": by_nondiff(of, x, nd.Automatic()),
            "nondiff Together()": by_nondiff(of, x, nd.Together()),
            "nondiff Switch()": by_nondiff(of, x, nd.Switch()),
            "numpy": by_numpy(of, x),
        }
        for name, make in PEERS.items():
            if importlib.util.find_spec(name) is None:
                skipped.append(f"{name}: not installed, skipped")
            else:
                engines[name] = make(of, x)
        with np.errstate(all="ignore"):
            wanted = engines["numpy"]()
            times: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
            calls = {name: _enough(run, wanted, name) for name, run in engines.items()}
            for _ in range(turns):
                for name, run in engines.items():
                    start = time.process_time(), time.perf_counter()
                    for _ in range(calls[name]):
                        run()
                    end = time.process_time(), time.perf_counter()
                    times[name].append(((end[0] - start[0]) / calls[name], (end[1] - start[1]) / calls[name]))
        cpu = {name: statistics.median(t for t, _ in found) for name, found in times.items()}
        for name, found in times.items():
            wall = statistics.median(t for _, t in found)
            yield {
                "engine": name, "cases": number, "cpu_seconds": cpu[name], "wall_seconds": wall,
                "nodes_per_cpu_second": nodes * number / cpu[name], "nondiff_times": cpu[name] / cpu["nondiff"],
            }  # fmt: skip


def _enough(run: Run, wanted: np.ndarray, name: str) -> int:
    """Calls that take half a second, since a system counts CPU time in ticks; after a check of the values."""
    np.testing.assert_allclose(np.asarray(run(), np.float32), wanted, rtol=2e-3, atol=1e-4, err_msg=name)
    start = time.perf_counter()
    run()
    return math.ceil(0.5 / (time.perf_counter() - start))
