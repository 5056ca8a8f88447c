"""What `es_limit.py` measures: a generation of each library's evolution strategies, and the limit.

Each is what the library's documentation says: its own sampling, ranking and update. Those of the peers evaluate all
members at once. One job is one row of the table.
"""

import dataclasses
import functools
import importlib
from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax

import nondiff as nd

Library = Literal["nondiff", "evosax", "evotorch"]
Trainer = Literal["open_es", "pgpe", "snes"]
Call = Callable[[], Any]
"""Returns when its work is done."""

SIZES = {"10k": (128, 1), "100k": (280, 2), "1M": (960, 2), "10M": (3_100, 2), "100M": (7_040, 3)}  # width, depth
INPUTS, CLASSES = 64, 10
LOOPS = (1, 4, 16, 64)  # members in a chunk of the limit
SIGMA, RATE = 0.05, 0.01
WAYS = {"evosax": ("one jit", "three jits"), "evotorch": ("eager",)}
# What each has; and its peak memory, in arrays of population x parameters, as it was seen at 1M/256.
COPIES: dict[Library, dict[Trainer, float]] = {
    "nondiff": {"open_es": 0, "pgpe": 0, "snes": 0},
    "evosax": {"open_es": 3.5, "pgpe": 3.5, "snes": 6},
    "evotorch": {"pgpe": 2.5, "snes": 1.5},
}
MODULES = {
    "evosax": ["evosax.algorithms"],
    "evotorch": ["evotorch.algorithms.functional", "evotorch.neuroevolution.net"],
}


@dataclasses.dataclass(frozen=True)
class Job:
    """A row: one process."""

    library: Library
    trainer: Trainer
    rank: int | None
    cell: str
    chunk: int | None = None
    way: str = ""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Width, depth, population, batch."""
        size, population, *batch = self.cell.split("/")
        return *SIZES[size], int(population), int(batch[0]) if batch else 128

    @property
    def params(self) -> int:
        width, depth, _, _ = self.shape
        return (INPUTS + 1) * width + (depth - 1) * (width + 1) * width + (width + 1) * CLASSES


@dataclasses.dataclass(frozen=True)
class Task:
    """What every library is given."""

    params: Any
    static: Any
    data: tuple[jax.Array, jax.Array]
    population: int

    def loss(self, params: Any, batch: tuple[jax.Array, jax.Array], key: Any = None) -> jax.Array:
        """As a user would write it."""
        images, labels = batch
        logits = jax.vmap(eqx.combine(params, self.static))(images)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def make(job: Job) -> Task:
    """Also imports the library: what follows is its work alone."""
    from sklearn.datasets import load_digits

    for module in MODULES.get(job.library, ()):
        importlib.import_module(module)
    width, depth, population, batch = job.shape
    images, labels = load_digits(return_X_y=True)
    data = jnp.asarray(images[:batch] / 16, jnp.float32), jnp.asarray(labels[:batch], jnp.int32)
    model = eqx.filter_jit(eqx.nn.MLP)(INPUTS, CLASSES, width, depth, key=jr.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    return Task(jax.block_until_ready(params), static, data, population)


def limits(task: Task) -> dict[str, Call]:
    """The forward pass of the centre over all rows, in one call and in loops. The rows are arguments: of a constant,
    XLA would compute the pass once for all members."""
    rows, labels = (jnp.tile(x, (task.population, *(1 for _ in x.shape))) for x in task.data)

    def members(params: Any, rows: jax.Array, labels: jax.Array) -> jax.Array:
        logits = jax.vmap(eqx.combine(params, task.static))(rows.reshape(-1, INPUTS))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels.reshape(-1))
        return jnp.mean(losses.reshape(labels.shape), 1)

    def loop(params: Any, rows: jax.Array, labels: jax.Array, *, chunk: int) -> jax.Array:
        parts = tuple(x.reshape(-1, chunk, *x.shape[1:]) for x in (rows, labels))
        return jax.lax.map(lambda part: members(params, *part), parts)

    chunks = [chunk for chunk in LOOPS if chunk < task.population and task.population % chunk == 0]
    calls = {"one call": members} | {f"chunks of {chunk}": functools.partial(loop, chunk=chunk) for chunk in chunks}
    jitted = {name: jax.jit(call) for name, call in calls.items()}
    return {
        name: lambda call=call: jax.block_until_ready(call(task.params, rows, labels)) for name, call in jitted.items()
    }


def generation(task: Task, job: Job) -> Call:
    return {"nondiff": nondiff, "evosax": evosax, "evotorch": evotorch}[job.library](task, job)


def parts(task: Task, job: Job) -> tuple[nd.AbstractProblem, nd.AbstractTrainer, nd.AbstractEvaluator]:
    common: dict[str, Any] = {"sigma": SIGMA, "population": task.population, "rank": job.rank}
    trainers: dict[Trainer, Callable[[], nd.AbstractTrainer]] = {
        "open_es": lambda: nd.OpenES(optax.adam(RATE), **common),
        "pgpe": lambda: nd.PGPE(optax.adam(RATE), **common),
        "snes": lambda: nd.SNES(**common),
    }
    return nd.Supervised(task.loss, task.data, params=task.params), trainers[job.trainer](), nd.Vmap(chunk=job.chunk)


def chunk(task: Task, job: Job) -> int | None:
    """Members that exist at once."""
    if job.library != "nondiff":
        return None
    problem, trainer, evaluator = parts(task, job)
    return nd.fit(problem, trainer, steps=0, key=jr.key(0), evaluator=evaluator).chunks[0]


def nondiff(task: Task, job: Job) -> Call:
    """One call of the step that `nondiff.fit` runs: the state is donated, the problem's arrays are arguments."""
    problem, trainer, evaluator = parts(task, job)
    step = eqx.filter_jit(lambda problem, state: nd.step(problem, trainer, evaluator, state), donate="all-except-first")
    state = nd.init(problem, trainer, key=jr.key(1))

    def generation() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(step(problem, state))

    return generation


def evosax(task: Task, job: Job) -> Call:
    import evosax.algorithms as algorithms  # pyright: ignore[reportMissingImports]

    common: dict[str, Any] = {"population_size": task.population, "solution": task.params}
    search = {
        "open_es": lambda: algorithms.Open_ES(
            **common, optimizer=optax.adam(RATE), std_schedule=optax.constant_schedule(SIGMA)
        ),
        "pgpe": lambda: algorithms.PGPE(**common, optimizer=optax.adam(RATE)),
        "snes": lambda: algorithms.SNES(**common),
    }[job.trainer]()
    settings = search.default_params
    if job.trainer != "open_es":
        settings = settings.replace(std_init=SIGMA)

    def ask(key: Any, state: Any) -> Any:
        k_next, k_ask, k_tell = jr.split(key, 3)
        return k_next, k_tell, *search.ask(k_ask, state, settings)

    def evaluate(members: Any, data: Any) -> jax.Array:
        return jax.vmap(lambda params: task.loss(params, data))(members)

    def tell(key: Any, members: Any, losses: jax.Array, state: Any) -> Any:
        return search.tell(key, members, losses, state, settings)[0]

    def whole(key: Any, state: Any, data: Any) -> Any:
        k_next, k_tell, members, state = ask(key, state)
        return k_next, tell(k_tell, members, evaluate(members, data), state)

    one, (asks, evaluates, tells) = jax.jit(whole), map(jax.jit, (ask, evaluate, tell))
    key, state = jr.key(1), search.init(jr.key(2), task.params, settings)

    def together() -> None:
        nonlocal key, state
        key, state = jax.block_until_ready(one(key, state, task.data))

    def apart() -> None:
        nonlocal key, state
        key, k_tell, members, asked = asks(key, state)
        state = jax.block_until_ready(tells(k_tell, members, evaluates(members, task.data), asked))

    return together if job.way == "one jit" else apart


def evotorch(task: Task, job: Job) -> Call:
    """PGPE by its functions, which are up to three times as fast as its class; SNES has no functions."""
    import evotorch  # pyright: ignore[reportMissingImports]
    import evotorch.algorithms.functional as pgpe  # pyright: ignore[reportMissingImports]
    import torch  # pyright: ignore[reportMissingImports]
    from evotorch.neuroevolution.net import make_functional_module  # pyright: ignore[reportMissingImports]

    shapes = [leaf.shape[::-1] for leaf in jax.tree.leaves(task.params) if leaf.ndim == 2]
    layers = [layer for shape in shapes for layer in (torch.nn.Linear(*shape), torch.nn.ReLU())]
    network = make_functional_module(torch.nn.Sequential(*layers[:-1]), disable_autograd_tracking=True)
    images, labels = (torch.as_tensor(np.array(x)) for x in task.data)
    labels = labels.long()

    @evotorch.decorators.vectorized
    def losses(members: Any) -> Any:
        return torch.func.vmap(lambda one: torch.nn.functional.cross_entropy(network(one, images), labels))(members)

    # `Linear` and `equinox.nn.Linear` have their parameters in one order and in one layout.
    centre = torch.as_tensor(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(task.params)]))
    if job.trainer == "snes":
        problem = evotorch.Problem("min", losses, solution_length=centre.numel(), initial_bounds=(-1, 1))
        return evotorch.algorithms.SNES(problem, popsize=task.population, stdev_init=SIGMA, center_init=centre).step
    rates = {"center_learning_rate": RATE, "stdev_learning_rate": 0.1}
    state = pgpe.pgpe(center_init=centre, stdev_init=SIGMA, objective_sense="min", optimizer="adam", **rates)

    def generation() -> None:
        nonlocal state
        members = pgpe.pgpe_ask(state, popsize=task.population)
        state = pgpe.pgpe_tell(state, members, losses(members))

    return generation
