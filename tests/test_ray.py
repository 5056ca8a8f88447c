"""Ray: the same bits in one process and on any number of workers, whoever dies meanwhile."""

import contextlib
import itertools
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator

import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax
import pytest
from far import DATA, SHARDS, STEPS, TRAINERS, Fit, cluster, crew, pids, processes, run, run_in_python, sha, until
from tiers import slow_but

import nondiff as nd
from nondiff.distributed import session

pytestmark = pytest.mark.xdist_group("ray")
__all__ = ["cluster", "crew"]
TESTS = pathlib.Path(__file__).parent


@pytest.fixture(scope="module")
def alone() -> dict[str, str]:
    """What one process finds."""
    return {name: sha(run(nd.Vmap(4), name)) for name in TRAINERS}


@pytest.mark.parametrize(
    ("name", "workers"), slow_but(itertools.product(TRAINERS, [1, 2, 4]), *((name, 2) for name in TRAINERS))
)
def test_the_number_of_workers_does_not_matter(name: str, workers: int, alone: dict[str, str], crew) -> None:
    assert sha(run(crew(workers), name)) == alone[name]


@contextlib.contextmanager
def killing(ray: nd.Ray) -> Iterator[None]:
    """Up to three of its workers, while something runs."""
    stop = threading.Event()
    killed: list[int] = []

    def kill() -> None:
        dice = random.Random(0)
        while len(killed) < 3 and not stop.wait(dice.uniform(0.02, 0.2)):
            for pid in [pid for pid in pids(ray) if pid not in killed][:1]:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert killed


@pytest.mark.parametrize("name", slow_but(TRAINERS, "open_es_rank_1", "consensus"))
def test_workers_killed_at_random(name: str, alone: dict[str, str], crew) -> None:
    ray = crew(2)
    run(ray, name, 2)
    with killing(ray):
        assert sha(run(ray, name)) == alone[name]


@pytest.mark.slow
def test_islands_of_programs(crew) -> None:
    """Programs are pickled with their lines; workers evaluate all islands, and the bits are those of one process."""
    lines = ["v[a] = v[a] * v[b]", "v[a] = v[a] + v[b]"]
    program = nd.Program(nd.Instructions(lines, {"v": nd.Cells(["x", "1"])}, "v[0]"), length=5)

    def loss(genome: nd.Genome, x: jnp.ndarray, key: jnp.ndarray) -> jnp.ndarray:
        return (program(genome, x) != x**3 + x).astype(jnp.float32)

    problem = nd.Supervised(loss, np.arange(-4, 5), params=program.init, domain=program.domain)
    trainer = nd.GeneticProgramming(population=24, islands=3, migrate_every=2)
    one, far = (nd.fit(problem, trainer, steps=7, key=jr.key(0), evaluator=e) for e in (nd.Vmap(4), crew(2)))
    assert sha(one) == sha(far) and one.evaluations == far.evaluations == 7 * 24


def test_late_answers_in_another_order(crew) -> None:
    def wait() -> None:
        time.sleep(random.Random(f"{os.getpid()} {time.time()}").uniform(0.0, 0.05))

    assert sha(run_in_python(crew(4), wait)) == sha(run_in_python(nd.Host(4)))


def test_sums_are_added_where_the_draws_are(crew, monkeypatch) -> None:
    """Of more draws than one process would hold."""
    problem, trainer = nd.BlackBox(lambda x: jnp.mean((x - 1) ** 2), jnp.zeros(600_000)), TRAINERS["open_es"]
    monkeypatch.setattr(session, "MANY", 1e7)
    added = []
    sums = session.Session._sums
    monkeypatch.setattr(session.Session, "_sums", lambda *args: added.append(1) or sums(*args))
    there, here = (nd.fit(problem, trainer, steps=3, key=jr.key(0), evaluator=e) for e in (crew(2), nd.Vmap(4)))
    assert sha(there) == sha(here)
    assert len(added) == 3


def test_gradients_are_computed_here(crew) -> None:
    """In a program of their own, so with other last bits than as a part of a compiled step."""
    parts = {"w": nd.Backprop(optax.adam(0.05)), "rest": TRAINERS["open_es_rank_1"]}
    trainer = nd.Split(parts, {"w": "w", "b": "rest", "v": "rest"})
    one, two, none = (
        nd.fit(Fit(DATA), trainer, steps=5, key=jr.key(0), evaluator=e) for e in (crew(1), crew(2), nd.Vmap(4))
    )
    assert sha(one) == sha(two)
    for x, y in zip(jtu.tree_leaves(two.params), jtu.tree_leaves(none.params), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)


def on_shards(evaluator: nd.AbstractEvaluator, steps: int = 5) -> nd.Result:
    return nd.fit(Fit(DATA), SHARDS, steps=steps, key=jr.key(0), evaluator=evaluator)


def test_gradients_of_shards_are_computed_there(crew, monkeypatch) -> None:
    """A worker gets the rows of its shard alone."""
    sent, ship = [], session.Session._ship
    monkeypatch.setattr(
        session.Session, "_ship", lambda self, tree, sizes: sent.append(tree) or ship(self, tree, sizes)
    )
    monkeypatch.setattr(session, "_near", None)
    one, two = on_shards(crew(1)), on_shards(crew(2))
    assert sha(one) == sha(two)
    for x, y in zip(jtu.tree_leaves(two.params), jtu.tree_leaves(on_shards(nd.Vmap(4)).params), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
    assert len(sent) == 2 * 4 * 5 and {(len(queries), batch.shape) for _, _, queries, batch in sent} == {(1, (4, 4))}


def test_workers_killed_at_the_gradients_of_shards(crew) -> None:
    in_peace = sha(on_shards(crew(2), STEPS))
    with killing(crew(2)):
        assert sha(on_shards(crew(2), STEPS)) == in_peace


def test_the_bits_do_not_depend_on_other_runs_of_the_workers(alone: dict[str, str], crew) -> None:
    half = run(crew(2), steps=7)
    run(crew(2), "genetic", 3)
    whole = nd.fit(Fit(DATA), TRAINERS["open_es_rank_1"], steps=STEPS, state=half.state, evaluator=crew(2))
    assert sha(whole) == alone["open_es_rank_1"]


def script(tmp_path: pathlib.Path, text: str, *arguments: str) -> subprocess.Popen[str]:
    path = tmp_path / "script.py"
    path.write_text(text)
    environment = {**os.environ, "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"}
    command = [sys.executable, "-W", "error", str(path), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=tmp_path)


HERE = """
import jax, jax.numpy as jnp, nondiff as nd, numpy as np, optax, sys

class Steep(nd.AbstractProblem):
    width: jax.Array
    traceable = True

    def init(self, *, key):
        return jnp.zeros(3)

    def batch(self, state, *, key):
        return ()

    def loss(self, params, batch, *, key):
        return jnp.sum(((params - CENTRE) / self.width) ** 2), None

CENTRE = np.arange(3.0)
problem, trainer = Steep(jnp.array([1.0, 2.0, 3.0])), nd.OpenES(optax.adam(0.1), sigma=0.1, population=16)
with nd.Ray(workers=1, chunk=4) as ray:
    there = nd.fit(problem, trainer, steps=5, key=jax.random.key(0), evaluator=ray)
here = nd.fit(problem, trainer, steps=5, key=jax.random.key(0), evaluator=nd.Vmap(4))
print("same", there.params.tobytes() == here.params.tobytes())
"""


def test_a_problem_of_the_file_that_runs(tmp_path: pathlib.Path) -> None:
    with script(tmp_path, HERE) as process:
        assert process.communicate()[0].splitlines()[-1] == "same True"


def test_a_problem_of_a_notebook(tmp_path: pathlib.Path, monkeypatch) -> None:
    import nbclient
    import nbformat

    monkeypatch.setenv("PYTHONPATH", str(TESTS.parent))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell) for cell in re.split(r"\n\n(?=\S)", HERE)]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Jupyter's own event loops
        done = nbclient.execute(notebook, cwd=str(tmp_path))
    (said,) = [out["text"] for cell in done.cells for out in cell.outputs if out.get("name") == "stdout"]
    assert said == "same True\n"


NODES = """
import sys, time
import jax, nondiff as nd, ray
from ray.cluster_utils import Cluster
from far import DATA, STEPS, TRAINERS, FitInPython, sha

cluster = Cluster(
    initialize_head=True,
    head_node_args={
        "num_cpus": 1,
        "_system_config": {"health_check_period_ms": 500, "health_check_failure_threshold": 3},
    },
)
first = cluster.add_node(num_cpus=1)
ray.init(cluster.address, log_to_driver=False)
seen = []

def change(moment):
    from nondiff.evaluators.ray import _sessions
    seen.append(len(_sessions[evaluator].pool.members))
    if moment.step == 5:
        cluster.remove_node(first, allow_graceful=False)
        while sum(node["Alive"] for node in ray.nodes()) > 1:
            time.sleep(0.1)
    if moment.step == 10:
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()

def before():
    time.sleep(0.05)

evaluator = nd.Ray(chunk=4)
result = nd.fit(FitInPython(DATA, before), TRAINERS["open_es_rank_1"], steps=STEPS, key=jax.random.key(0),
                evaluator=evaluator, callbacks=[change], log_every=1)
evaluator.close()
print("\\nfound", sha(result), *seen, flush=True)
ray.shutdown()
cluster.shutdown()
"""


def test_a_node_is_lost_and_another_one_joins(tmp_path: pathlib.Path) -> None:
    with script(tmp_path, NODES) as process:
        out = process.communicate()[0]  # where Ray says things, too
    assert process.returncode == 0
    found, *seen = next(line for line in out.splitlines() if line.startswith("found")).split()[1:]
    assert found == sha(run_in_python(nd.Host(4)))
    assert (seen[0], min(seen[6:11]), seen[-1]) == ("2", "1", "2")


DRIVER = """
import sys
import jax, nondiff as nd
from far import DATA, TRAINERS, FitInPython, sha
from nondiff.distributed.cluster import home
import time

def before():
    time.sleep(0.02)

problem, trainer, saver = FitInPython(DATA, before), TRAINERS["open_es_rank_1"], nd.Checkpointer(sys.argv[1], every=1)
like = nd.init(problem, trainer, key=jax.random.key(0))
print(home(), flush=True)
result = nd.fit(problem, trainer, steps=40, state=saver.restore(like), evaluator=nd.Ray(workers=2, chunk=4),
                callbacks=[saver, lambda moment: print(moment.step, flush=True)], log_every=1)
print(sha(result), flush=True)
"""


def killed_until_done(tmp_path: pathlib.Path, times: int) -> str:
    """The driver is killed in mid-generation so many times; what the last one finds.

    A checkpoint is written behind the run: what a killed driver printed last need not be on disk, what is there counts.
    """
    place, dice = tmp_path / "run", random.Random(0)
    for _ in range(times):
        saved = max(nd.Checkpointer(place).steps(), default=0)
        with script(tmp_path, DRIVER, str(place)) as process:
            assert process.stdout is not None
            folder = process.stdout.readline().strip()
            assert int(process.stdout.readline()) == saved + 1 and len(processes(folder)) >= 2
            until(lambda: bool(nd.Checkpointer(place).steps()))
            time.sleep(dice.uniform(0.0, 0.1))
            process.kill()
        until(lambda folder=folder: not processes(folder) and not pathlib.Path(folder).exists())
        left = sorted((path, path.stat().st_mtime_ns) for path in place.rglob("*"))
        time.sleep(0.5)
        assert left == sorted((path, path.stat().st_mtime_ns) for path in place.rglob("*")), "somebody still writes"
    with script(tmp_path, DRIVER, str(place)) as process:
        return process.communicate()[0].split()[-1]


def test_the_driver_is_killed(tmp_path: pathlib.Path) -> None:
    assert killed_until_done(tmp_path, 1) == sha(run_in_python(nd.Host(4), steps=40))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_driver_is_killed_ten_times(tmp_path: pathlib.Path) -> None:
    assert killed_until_done(tmp_path, 10) == sha(run_in_python(nd.Host(4), steps=40))
