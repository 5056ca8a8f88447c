"""Down-sampled lexicase selection (Hernandez, Lalejini, Dolson & Ofria, 2019, "Random subsampling improves performance
in lexicase selection") on the problems of `programs_psb2_tasks.py`.

200 examples, of which each step sees 20. A run ends when its best program does all 200, or when its time is up: that of
the processor, all threads together, compilation included. It is solved if this program, simplified, does all of 1,200
unseen cases.
"""

import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from programs_psb2_tasks import TASKS, Task, cases

import nondiff as nd

EXAMPLES = 200
UNSEEN = 6 * EXAMPLES
SEEN = 20
"""Examples of a step."""
POPULATION = 1_024
ENDLESS = 10.0
"""Loss of a program that has not ended, besides that of what it has by then."""


def answers(ran: nd.Outcome) -> Any:
    """`[cases, outputs]`."""
    return jnp.stack(ran.result, -1) if isinstance(ran.result, tuple) else ran.result[..., None]


def losses(task: Task, ran: nd.Outcome, wanted: Any, near: float) -> Any:
    """One for each case and output, `[cases * outputs]`: 0 is right, else the logarithm of how far off, or 1."""
    found = answers(ran)
    far = jnp.abs(found.astype(jnp.float32) - wanted.astype(jnp.float32))
    if not jnp.issubdtype(found.dtype, jnp.floating):
        far = jnp.where(found == wanted, 0.0, jnp.maximum(far, 1.0))
    far = jnp.where(jnp.isfinite(far), far, 1e30)
    wrong = jnp.log1p(far / (near if task.near else 1.0)) if task.graded else jnp.ones_like(far)
    return jnp.ravel(jnp.where(far <= near, 0.0, wrong) + ENDLESS * ~ran.halted[:, None])


def search(name: str, seed: int, seconds: float) -> dict[str, Any]:
    """One run."""
    began = time.process_time()
    task = TASKS[name]
    program = nd.Program(task.instructions, length=task.length, steps=task.steps)
    known = cases(task, np.random.default_rng([seed, 1]), EXAMPLES)

    def loss(genome: nd.Genome, batch: Any, key: Any) -> Any:
        inputs, wanted = batch
        return losses(task, program.run(genome, inputs), wanted, task.near / 10)

    @jax.jit
    def right(genome: nd.Genome, inputs: Any, wanted: Any, near: Any) -> Any:
        """How many cases are."""
        wrong = losses(task, program.run(genome, inputs), wanted, near)
        return jnp.sum(jnp.all(wrong.reshape(wanted.shape) == 0, axis=1))

    def all_right(moment: nd.Moment) -> str | None:
        done = moment.row["best"] == 0 and int(right(moment.params, *known, task.near / 10)) == EXAMPLES
        return "all examples are right" if done else None

    def time_is_up(moment: nd.Moment) -> str | None:
        return "the time is up" if time.process_time() - began > seconds else None

    problem = nd.Supervised(loss, known, params=program.init, domain=program.domain, batch_size=SEEN)
    trainer: nd.AbstractTrainer = nd.GeneticProgramming(population=POPULATION, selection=nd.Lexicase())
    if task.patience:
        again = nd.NoBetter(task.patience)
        trainer = nd.Restart(trainer, on=again, schedule=nd.Same(), tries=10**6, begin=program.init)
    result = nd.fit(problem, trainer, steps=10**6, key=jr.key(seed), stop=[all_right, time_is_up], log_every=2)
    took = time.process_time() - began
    trained = int(right(result.params, *known, task.near / 10))
    genome = program.simplify(result.params, known[0]) if trained == EXAMPLES else result.params
    unseen = cases(task, np.random.default_rng([seed, 2]), UNSEEN)
    parts = [jtu.tree_map(lambda x, i=i: x[i : i + EXAMPLES], unseen) for i in range(0, UNSEEN, EXAMPLES)]
    tested = sum(int(right(genome, *part, task.near)) for part in parts)
    return {
        "problem": name,
        "seed": seed,
        "solved": int(trained == EXAMPLES and tested == UNSEEN),
        "examples": trained / EXAMPLES,
        "unseen": tested / UNSEEN,
        "evaluations": result.evaluations,
        "seconds": took,
        "lines": int(genome.lines),
        "source": program.to_python(genome, name=name.replace("-", "_")),
    }


def rows(problems: Sequence[str], seeds: Sequence[int], seconds: float) -> Iterator[dict[str, Any]]:
    """One for each problem, with all of its runs."""
    for name in problems:
        runs = []
        for seed in seeds:
            runs.append(search(name, seed, seconds))
            print({key: value for key, value in runs[-1].items() if key != "source"}, file=sys.stderr, flush=True)
        yield {
            "problem": name,
            "solved": sum(run["solved"] for run in runs),
            "seeds": len(runs),
            "median_evaluations": statistics.median(run["evaluations"] for run in runs),
            "median_seconds": statistics.median(run["seconds"] for run in runs),
            "pushgp": TASKS[name].pushgp,
            "runs": runs,
        }
