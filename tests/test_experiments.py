"""The experiments: their programs are right, small runs learn, and (slow) the default runs keep what they claim."""

import gzip
import importlib.util
import itertools
import json
import os
import pathlib
import subprocess
import sys
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import nondiff as nd
from nondiff.launch.main import main

EXPERIMENTS = pathlib.Path(__file__).parents[1] / "experiments"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"experiment_{name}", EXPERIMENTS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def run(capsys: pytest.CaptureFixture[str], name: str, *words: str) -> dict[str, Any]:
    """What an experiment reports."""
    assert main(["run", str(EXPERIMENTS / f"{name}.py"), *words, "--no-save", "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])["metrics"]


def test_every_sudoku_has_one_filling_and_the_solver_finds_it() -> None:
    sudoku = load("visual_sudoku")
    grids = sudoku.all_grids()
    assert len(np.unique(grids, axis=0)) == 288  # as is known of 4 x 4
    boards = sudoku.Source(sudoku.Config()).draw(0, 40, 10)
    image, blank = boards.known == sudoku.IMAGE, boards.known == sudoku.BLANK
    assert np.all(blank.sum(1) == 6) and np.all(image.sum(1) == 10)
    given = np.where(image, boards.digits, boards.known)
    for board, answer, empty in zip(given, boards.answers, blank, strict=True):
        fillings = grids[np.all((grids == board) | empty, 1)]
        assert len(fillings) == 1
        np.testing.assert_array_equal(sudoku.solve(board), fillings[0])
        np.testing.assert_array_equal(answer, fillings[0] * empty)


def test_a_sudoku_that_cannot_be_solved_is_told() -> None:
    sudoku = load("visual_sudoku")
    twice = np.array([1, 1, *[0] * 14], np.int32)
    stuck = np.array([1, 2, 3, 0, *[0] * 3, 4, *[0] * 8], np.int32)  # nothing fits into the first row
    empty = np.zeros(16, np.int32)
    assert not sudoku.solve(twice).any() and not sudoku.solve(stuck).any()
    assert np.any(np.all(sudoku.all_grids() == sudoku.solve(empty), 1))


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_quickly")
def test_visual_sudoku_learns(capsys: pytest.CaptureFixture[str]) -> None:
    """A batch stays below 100 KiB: with one thread, as in tests, JAX may hang where a program is given more."""
    small = ("--steps", "60", "--boards", "8", "--images", "4", "--test-boards", "300", "--width", "64")
    found = run(capsys, "visual_sudoku", *small)
    assert found["digit_accuracy"] > 0.8 and found["cell_accuracy"] > 0.5  # guessing: 0.25, and no board in 100
    assert found["program_calls"] == 60 * 8 * (100 + 1)


def test_the_cheapest_way_is_the_cheapest() -> None:
    """Against Bellman and Ford's relaxation, on real numbers, where it is unique."""
    paths = load("shortest_path")
    solver, side = paths.Solver(5), 5
    for seed in range(10):
        costs = np.random.default_rng(seed).uniform(0.1, 9, (side, side)).astype(np.float32)
        least = np.full((side, side), np.inf)
        least[0, 0] = costs[0, 0]
        for _ in range(side**2):
            wide = np.pad(least, 1, constant_values=np.inf)
            shifts = [
                wide[1 + i : 1 + i + side, 1 + j : 1 + j + side] for i, j in itertools.product((-1, 0, 1), repeat=2)
            ]
            least = np.minimum(least, np.min(shifts, 0) + costs)
        way = solver(costs)
        assert set(np.unique(way)) == {0, 1} and way[0, 0] == way[-1, -1] == 1
        assert np.sum(way * costs) == pytest.approx(least[-1, -1], rel=1e-5)


@pytest.mark.slow
def test_shortest_path_learns(capsys: pytest.CaptureFixture[str]) -> None:
    small = ("--steps", "60", "--side", "4", "--maps", "300", "--test-maps", "300", "--channels", "8")
    found = run(capsys, "shortest_path", *small)
    assert found["optimal"] > found["random"] + 0.1 and 1 <= found["cost_ratio"] < found["random_cost_ratio"]
    assert found["solver_calls"] == 60 * 32 * 2


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--weights", "binary"), [-1.0, -1.0, 1.0, 1.0]),
        (("--weights", "ternary"), [-1.5, 0.0, 0.0, 1.5]),
        (("--weights", "rounded", "--bits", "2"), [-2.0, 0.0, 0.0, 0.0]),
        (("--weights", "rounded", "--bits", "3"), [-2.0, -0.6667, 0.6667, 1.3333]),
    ],
)
def test_weights_are_rounded(words: tuple[str, ...], expected: list[float]) -> None:
    quantized = load("quantized_mlp")
    settings = {"weights": words[1]} | ({"bits": int(words[3])} if len(words) > 2 else {})
    weights = jnp.array([[-2.0, -0.5], [0.5, 1.0]])
    found = quantized.rounded(weights, quantized.Config(**settings))
    np.testing.assert_allclose(np.ravel(found), expected, atol=1e-4)


@pytest.mark.usefixtures("compiled_quickly")
def test_quantized_mlp_learns(capsys: pytest.CaptureFixture[str]) -> None:
    found = run(capsys, "quantized_mlp", "--steps", "80", "--width", "64")
    assert found["accuracy"] > 0.7 and found["weight_values"] == 2


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_quickly")
def test_step_network_learns(capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path) -> None:
    """From files like those of MNIST: 100 images of 4 x 4, of which a half that is lit is the answer."""
    network, random = load("step_network"), np.random.default_rng(0)
    for part, n in (("train", 100), ("t10k", 50)):
        answers = random.integers(0, 2, n)
        images = random.integers(0, 60, (n, 4, 4)) + 190 * (np.arange(4) // 2 == answers[:, None])[:, None, :]
        for kind, data in (("images-idx3", images), ("labels-idx1", answers)):
            head = bytes([0, 0, 8, data.ndim]) + np.array(data.shape, ">i4").tobytes()
            (tmp_path / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(head + data.astype(np.uint8).tobytes()))
            np.testing.assert_array_equal(network.read(tmp_path / f"{part}-{kind}-ubyte.gz"), data)
    found = run(capsys, "step_network", "--folder", str(tmp_path), "--width", "20", "--steps", "15", "--epochs", "1")
    assert found["accuracy"] > 0.9 and found["best_accuracy"] >= found["accuracy"]


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_quickly")
def test_decoupled_mlp_learns(capsys: pytest.CaptureFixture[str]) -> None:
    found = run(capsys, "decoupled_mlp", "--epochs", "8", "--depth", "2", "--width", "32", "--learning-rate", "0.003")
    assert found["accuracy"] > 0.7 and found["cosine/hidden1"] > found["cosine/hidden0"] > 0


def test_symbols_to_copy_stand_where_they_are_to_be_written() -> None:
    rnn = load("decoupled_rnn")
    found = rnn.sequences(2, rnn.Config(repeats=2, cases=3), jr.key(0))
    first, second = found.inputs[:, 0], found.inputs[:, 1]
    assert np.all(found.inputs[:, 2] == rnn.SYMBOLS) and np.all(found.inputs[:, 3:] == rnn.SYMBOLS + 1)
    assert np.all(found.weights[:, 3:7] == 1) and found.weights.sum() == 3 * 4
    np.testing.assert_array_equal(found.answers[:, 3:7], np.stack([first, second] * 2, 1))


@pytest.mark.slow
def test_decoupled_rnn_learns_beyond_its_window(capsys: pytest.CaptureFixture[str]) -> None:
    """Sequences grow beyond what truncated backpropagation learns, a fifth of the way already."""
    solved = {
        s: run(capsys, "decoupled_rnn", "--updates", "8000", "--signal", s)["solved"] for s in ("synthetic", "none")
    }
    assert solved["synthetic"] > 5 > solved["none"]


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_quickly")
def test_sort_in_the_middle_learns(capsys: pytest.CaptureFixture[str]) -> None:
    sort = load("sort_in_the_middle")
    scores = np.array([0.5, -1.0, 2.0], np.float32)
    np.testing.assert_array_equal(sort.in_order(scores), [1, 0, 2])
    hands, _ = sort.load(sort.Config(hands=50))
    assert all(len(set(keys)) == 3 for keys in hands.digits[..., 0].tolist())
    for digits, answer in zip(hands.digits.tolist(), hands.answers.tolist(), strict=True):
        assert [value for _, value in sorted(digits)] == answer
    found = run(capsys, "sort_in_the_middle", "--steps", "150", "--cards", "2", "--hands", "1000", "--width", "64")
    assert found["answer_accuracy"] > found["unsorted"] + 0.05 and found["same_order"] > 0.6
    assert found["program_calls"] == 150 * 64 * (2 * 8 + 1)


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_quickly")
def test_perceive_and_compute_learns(capsys: pytest.CaptureFixture[str]) -> None:
    found = run(
        capsys, "perceive_and_compute", "--task", "max", "--rounds", "3", "--gradient", "100", "--population", "64",
        "--tries", "1", "--end-to-end", "50",
    )  # fmt: skip
    assert found["exact"] == 1 and found["answer_accuracy"] > 0.85 and found["digit_accuracy"] > 0.9
    assert found["evaluations"] == 3 * (15 * 64 + 100 * 1) and found["tries"] == 1
    assert 0.1 < found["end_to_end"] < found["answer_accuracy"]


@pytest.mark.usefixtures("compiled_quickly")
def test_an_answers_probability_is_that_of_all_symbols_that_give_it() -> None:
    both = load("perceive_and_compute")
    train, test = both.load(both.Config(task="difference", pairs=7))
    shown = {image.tobytes() for image in train.images.reshape(-1, 64)}
    assert not any(image.tobytes() in shown for image in test.images.reshape(-1, 64))
    np.testing.assert_array_equal(train.answers, abs(train.digits[:, 0] - train.digits[:, 1]))
    params = both.start(both.Config())(jr.key(0))
    code = jnp.zeros_like(params["program"].code).at[:2].set(jnp.array([[3, 0, 1], [7, 0, 0]]))  # v[0] - v[1], abs
    params["program"] = nd.Genome(code)
    found = both.loss(params, (train.images, train.answers), None)
    says = np.asarray(jax.nn.softmax(both.apply(params["reader"], train.images)), float)
    for (a, b), answer, value in zip(says, train.answers, found, strict=True):
        p = sum(a[i] * b[j] for i in range(10) for j in range(10) if abs(i - j) == answer)
        assert value == pytest.approx(-np.log(p + both.FLOOR), rel=1e-4)

    def tabulated(reader: Any) -> Any:
        def wrong(symbols: Any) -> Any:
            given = both.PROGRAM(params["program"], {"x": symbols[:, 0], "y": symbols[:, 1]})
            return (given != train.answers).astype(jnp.float32)

        logits = both.apply(reader, train.images)
        return jnp.mean(nd.through(wrong, logits, via=nd.Tabulate(), key=jr.key(0)))

    def direct(reader: Any) -> Any:
        return jnp.mean(both.loss({**params, "reader": reader}, (train.images, train.answers), None))

    one, other = jax.grad(direct)(params["reader"]), jax.grad(tabulated)(params["reader"])
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5)


def test_a_renaming_is_what_most_images_of_a_digit_are_called() -> None:
    digits = np.repeat(np.arange(10), 4).reshape(-1, 2)
    symbols = 9 - digits
    symbols[0, 0], symbols[-1, 0] = 3, 5  # one of four is read as something else
    assert load("perceive_and_compute").renaming(symbols, digits).tolist() == list(range(9, -1, -1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words", "metric", "least"),
    [
        ("perceive_and_compute", ("--task", "modular"), "exact", 1),
        ("perceive_and_compute", ("--task", "multiply"), "answer_accuracy", 0.93),
        ("visual_sudoku", (), "share_of_ceiling", 0.95),
        ("shortest_path", (), "share_of_ceiling", 0.8),
        ("step_network", (), "accuracy", 0.88),  # seed 0: .912 on two cores, .894 on one
        ("step_network", ("--activation", "relu"), "accuracy", 0.92),
        ("decoupled_mlp", ("--depth", "5"), "accuracy", 0.9),
        ("decoupled_mlp", ("--depth", "5", "--signal", "local"), "accuracy", 0.89),
        ("quantized_mlp", (), "share_of_float", 0.95),
        ("sort_in_the_middle", (), "share_of_ceiling", 0.92),
        ("sort_in_the_middle", ("--trainer", "split"), "share_of_ceiling", 0.92),
    ],
)
def test_what_is_claimed(name: str, words: tuple[str, ...], metric: str, least: float) -> None:
    """In a process of its own: with one thread, as in tests, JAX may hang where a program is given 100 KiB or more."""
    environment = {key: value for key, value in os.environ.items() if key != "NPROC"}
    command = [sys.executable, "-m", "nondiff.launch.main", "run", str(EXPERIMENTS / f"{name}.py"), *words]
    done = subprocess.run([*command, "--no-save", "--json"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["metrics"][metric] >= least
