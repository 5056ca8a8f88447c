"""How far an evolution strategy gets with a number of evaluations: nondiff and its peers.

    python experiments/benchmarks/es_quality.py
    python experiments/benchmarks/es_quality.py --libraries nondiff evosax --trainers open_es

A 64-32-10 network (relu, 2,410 parameters) learns handwritten digits. Each generation has a fresh batch of 256, the
same for all members; a split is a permutation of the digits (1,500 to train, 297 to test), the batches, an initial
network and a seed, and every library is given the same. At the end the centre has the `loss` on all 1,500 and the
`accuracy` on the 297, of which one digit is a third of a percent: medians over the splits, the least and the most.
`beats` counts the splits where the loss is below that of evosax's trainer of the same name; `s` is the median time of
a run, so that the first one, which compiles, does not matter.

All begin with sigma 0.15. Adam(0.06) moves the centres, but SGD those of SNES, by 1 as in every library by default and
in nondiff also by 3, and those of ARS, by 0.2. All else is the library's default; evotorch's PGPE has none for the rate
of its sigmas and is given evosax's, 0.1. Backpropagation, as many steps on the same batches, is the ceiling.

Result (median loss; nondiff with full noise / with rank 1; evosax; evotorch): OpenES 0.035 / 0.029; 0.045; none. PGPE
0.034 / 0.027; 0.042; 0.042. SNES 0.118 / 0.137; 0.126; 0.127, and 0.055 / 0.032 with a step of 3, which the peers were
not given. ARS 0.064 / 0.055; 0.071; none. Backpropagation 0.0035. Rank 1 beats evosax in 10 of 10 splits, SNES with a
step of 1 in none. Full noise does in 7 or 8, which may be chance: on 18 further splits OpenES did in 10 (0.037 against
0.038), with rank 1 in 15 (0.031). Rank 4 is no better than full noise. Accuracies, 0.948 to 0.963, hardly differ;
backpropagation has 0.968. Seconds of a run on one core of a busy machine: nondiff 2.0 to 2.7 / 1.0 to 1.6; evosax 1.4
to 2.3; evotorch 4. Cost: seven minutes.
"""

import dataclasses
import importlib.util
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import tyro
from es_peers import CLASSES, INPUTS, Library, Task
from jax.flatten_util import ravel_pytree

import nondiff as nd
from nondiff.launch.words import aligned
from nondiff.run.versions import version, versions

Trainer = Literal["open_es", "pgpe", "snes", "ars", "backprop"]
TRAIN, BATCH, WIDTH = 1_500, 256, 32
SEEDS = 1_000  # of the searches, apart from those of the networks
RANKS: dict[Trainer, tuple[int | None, ...]] = {"open_es": (None, 1, 4), "backprop": (None,)}  # others: full and 1
EVOSAX: dict[Trainer, str] = {"open_es": "Open_ES", "pgpe": "PGPE", "snes": "SNES", "ars": "ARS"}
PEERS: dict[Library, tuple[Trainer, ...]] = {"evosax": tuple(EVOSAX), "evotorch": ("pgpe", "snes")}
STEPS: dict[Trainer, tuple[float, ...]] = {"snes": (1.0, 3.0), "ars": (0.2,)}  # of SGD; peers: the first
COLUMNS = ("library", "trainer", "rank", "setting", "loss", "min", "max", "accuracy", "min", "max", "beats", "s")


@dataclasses.dataclass(frozen=True)
class Options:
    """What can be chosen."""

    splits: int = 10
    """Of the data, each with its own initial network, batches and seed."""
    generations: int = 200
    population: int = 256
    """Evaluations a generation."""
    libraries: tuple[Library, ...] = ("nondiff", "evosax", "evotorch")
    """Only these."""
    trainers: tuple[Trainer, ...] = ("open_es", "pgpe", "snes", "ars", "backprop")
    """Only these."""
    sigma: float = 0.15
    """Of the noise, at the beginning."""
    rate: float = 0.06
    """Of Adam."""
    json: bool = False
    """The last line is one JSON object with all of it."""


@dataclasses.dataclass(frozen=True)
class Row:
    """What is run on every split."""

    library: Library
    trainer: Trainer
    rank: int | None
    sigma: float | None
    rate: float

    @property
    def optimizer(self) -> optax.GradientTransformation:
        return (optax.sgd if self.trainer in STEPS else optax.adam)(self.rate)


@dataclasses.dataclass(frozen=True)
class Split:
    """What every library is given."""

    seed: int
    params: Any
    train: tuple[Any, Any]
    test: tuple[Any, Any]
    rows: np.ndarray
    """Of `train`: a batch for each generation."""

    def batch(self, step: int) -> tuple[Any, Any]:
        images, labels = self.train
        return images[self.rows[step]], labels[self.rows[step]]


Search = Callable[[Split], Any]  # a run, which returns its last centre


def main(options: Options) -> None:
    task, splits = make(options)
    found, skipped = [], []
    for row in rows(options):
        if importlib.util.find_spec(row.library):
            found.append(measure(row, task, splits, options))
            print(f"{len(found)}. {' '.join(cells(found[-1]))}", file=sys.stderr, flush=True)
        elif row.library not in skipped:
            skipped.append(row.library)
    rivals = {row["trainer"]: row["train_losses"] for row in found if row["library"] == "evosax"}
    for row in found:
        rival = rivals.get(row["trainer"]) if row["library"] != "evosax" else None
        row["beats"] = rival and sum(mine < theirs for mine, theirs in zip(row["train_losses"], rival, strict=True))
    print("\n".join(aligned([COLUMNS, *map(cells, found)], right=range(4, len(COLUMNS)))))
    for library in skipped:
        print(f"{library}: not installed, skipped")
    if options.json:
        known = versions() | {peer: version(peer) for peer in ("evosax", "evotorch", "torch")}
        print(json.dumps({"rows": found, "skipped": skipped, "versions": known}))


def rows(options: Options) -> Iterator[Row]:
    for library in options.libraries:
        ours = library == "nondiff"
        for trainer in options.trainers:
            if ours or trainer in PEERS[library]:
                sigma = None if trainer == "backprop" else options.sigma
                for rate in STEPS.get(trainer, (options.rate,))[: None if ours else 1]:
                    for rank in RANKS.get(trainer, (None, 1))[: None if ours else 1]:
                        yield Row(library, trainer, rank, sigma, rate)


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    rank, setting = str(row["rank"] or "full"), f"{'sgd' if row['trainer'] in STEPS else 'adam'} {row['rate']:g}"
    rank, setting = ("-", setting) if row["sigma"] is None else (rank, f"{setting}, sigma {row['sigma']:g}")
    names = "train_losses", "accuracies"
    figures = (f"{of(row[name]):.4f}" for name in names for of in (median, min, max))
    beats = "-" if row["beats"] is None else f"{row['beats']}/{row['splits']}"
    return row["library"], row["trainer"], rank, setting, *figures, beats, f"{row['seconds']:.2f}"


def make(options: Options) -> tuple[Task, list[Split]]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images, labels = np.asarray(images / 16, np.float32), np.asarray(labels, np.int32)
    splits, static = [], None
    for seed in range(options.splits):
        model = eqx.nn.MLP(INPUTS, CLASSES, WIDTH, 1, key=jr.key(seed))
        params, static = eqx.partition(model, eqx.is_inexact_array)
        draws = np.random.default_rng(seed)
        order = draws.permutation(len(images))
        train, test = ((images[part], labels[part]) for part in (order[:TRAIN], order[TRAIN:]))
        batches = [draws.choice(TRAIN, BATCH, replace=False) for _ in range(options.generations + 1)]
        splits.append(Split(seed, params, train, test, np.stack(batches)))
    return Task(splits[0].params, static, splits[0].train, options.population), splits


def measure(row: Row, task: Task, splits: list[Split], options: Options) -> dict[str, Any]:
    search = {"nondiff": nondiff, "evosax": evosax, "evotorch": evotorch}[row.library](row, task, options.generations)
    losses, accuracies, times = [], [], []
    for split in splits:
        begin = time.perf_counter()
        centre = jax.block_until_ready(search(split))
        times.append(time.perf_counter() - begin)
        images, labels = split.test
        guess = jnp.argmax(jax.vmap(eqx.combine(centre, task.static))(images), 1)
        losses.append(float(task.loss(centre, split.train)))
        accuracies.append(float(jnp.mean(guess == labels)))
    counts = {"evaluations": options.generations * (1 if row.trainer == "backprop" else options.population)}
    counts |= {"splits": len(splits), "beats": None, "seconds": median(times)}
    found = {"train_loss": median(losses), "train_losses": losses, "accuracy": median(accuracies)}
    return dataclasses.asdict(row) | counts | found | {"accuracies": accuracies}


def nondiff(row: Row, task: Task, generations: int) -> Search:
    common: dict[str, Any] = {"sigma": row.sigma, "population": task.population, "rank": row.rank}
    classes: dict[Trainer, Any] = {"open_es": nd.OpenES, "pgpe": nd.PGPE, "snes": nd.SNES, "ars": nd.ARS}
    ours = nd.Backprop(row.optimizer) if row.trainer == "backprop" else classes[row.trainer](row.optimizer, **common)

    def run(split: Split) -> Any:
        problem = nd.Supervised(task.loss, split.train, params=split.params)
        return nd.fit(problem, ours, steps=generations, batches=split.batch, key=jr.key(SEEDS + split.seed)).params

    return run


def evosax(row: Row, task: Task, generations: int) -> Search:
    """A generation is one jit."""
    import evosax.algorithms as algorithms  # pyright: ignore[reportMissingImports]

    common: dict[str, Any] = {"population_size": task.population, "solution": task.params, "optimizer": row.optimizer}
    if row.trainer in ("open_es", "ars"):
        common["std_schedule"] = lambda step: row.sigma
    search = getattr(algorithms, EVOSAX[row.trainer])(**common)
    settings = search.default_params
    if row.trainer in ("pgpe", "snes"):
        settings = settings.replace(std_init=row.sigma)

    @jax.jit
    def generation(key: Any, state: Any, batch: Any) -> Any:
        k_next, k_ask, k_tell = jr.split(key, 3)
        members, state = search.ask(k_ask, state, settings)
        losses = jax.vmap(lambda params: task.loss(params, batch))(members)
        return k_next, search.tell(k_tell, members, losses, state, settings)[0]

    def run(split: Split) -> Any:
        k_init, key = jr.split(jr.key(SEEDS + split.seed))
        state = search.init(k_init, split.params, settings)
        for step in range(generations):
            key, state = generation(key, state, split.batch(step))
        return search.get_mean(state)

    return run


def evotorch(row: Row, task: Task, generations: int) -> Search:
    """PGPE by its functions, which are faster than its class; SNES has no functions."""
    import evotorch  # pyright: ignore[reportMissingImports]
    import evotorch.algorithms.functional as pgpe  # pyright: ignore[reportMissingImports]
    import torch  # pyright: ignore[reportMissingImports]
    from evotorch.neuroevolution.net import make_functional_module  # pyright: ignore[reportMissingImports]

    layers = torch.nn.Linear(INPUTS, WIDTH), torch.nn.ReLU(), torch.nn.Linear(WIDTH, CLASSES)
    network = make_functional_module(torch.nn.Sequential(*layers), disable_autograd_tracking=True)
    batch: list[Any] = []
    logging.getLogger("evotorch").setLevel(logging.WARNING)  # it tells of every problem, on stdout

    @evotorch.decorators.vectorized
    def losses(members: Any) -> Any:
        images, labels = map(torch.as_tensor, batch)
        loss = torch.nn.functional.cross_entropy
        return torch.func.vmap(lambda one: loss(network(one, images), labels.long()))(members)

    def run(split: Split) -> Any:
        torch.manual_seed(SEEDS + split.seed)
        flat, back = ravel_pytree(split.params)  # in the order and the layout of torch
        centre = torch.as_tensor(np.array(flat))
        common = {"center_init": centre, "stdev_init": row.sigma, "center_learning_rate": row.rate}
        if row.trainer == "pgpe":
            state = pgpe.pgpe(**common, stdev_learning_rate=0.1, objective_sense="min", optimizer="adam")
            for step in range(generations):
                batch[:] = split.batch(step)
                members = pgpe.pgpe_ask(state, popsize=task.population)
                state = pgpe.pgpe_tell(state, members, losses(members))
            return back(jnp.asarray(state.optimizer_state.center.numpy()))
        problem = evotorch.Problem("min", losses, solution_length=len(centre), initial_bounds=(-1, 1))
        search = evotorch.algorithms.SNES(problem, popsize=task.population, **common)
        for step in range(generations + 1):  # it learns from a generation when the next one begins
            batch[:] = split.batch(step)
            search.step()
        return back(jnp.asarray(search.status["center"].numpy()))

    return run


if __name__ == "__main__":
    main(tyro.cli(Options))
