"""What goes wrong on workers, one fault after the other: what comes out, and what is said."""

import ctypes
import json
import os
import pathlib
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax.random as jr
import numpy as np
import pytest
from far import STEPS, cluster, crew, run, run_in_python, sha

import nondiff as nd
from nondiff.distributed.cluster import home
from nondiff.distributed.failure import ChunkError, NotDeterministic
from nondiff.launch.main import main

pytestmark = pytest.mark.xdist_group("ray")
__all__ = ["cluster", "crew"]


class Odd(Exception):
    def __init__(self) -> None:
        super().__init__("odd")
        self.held = lambda: 1  # cannot be pickled


def troubled(kind: str, folder: pathlib.Path, times: int) -> Callable[[], None]:
    """Goes wrong in the first so many chunks, on whatever worker."""

    def before() -> None:
        for i in range(times):
            try:
                (folder / str(i)).touch(exist_ok=False)
            except FileExistsError:
                continue
            return trouble(kind)

    return before


def trouble(kind: str) -> None:
    if kind == "raise":
        raise ValueError("no such file: 7")
    if kind == "odd":
        raise Odd
    if kind == "exit":
        sys.exit(3)
    if kind == "memory":
        np.ones(1 << 50)
    if kind == "segfault":
        ctypes.string_at(0)
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "hang":
        time.sleep(1_000)


SAID = {
    "raise": r"(?s)members 0 to 3 failed 2 times: ValueError: no such file: 7\..*On the worker:.*in trouble",
    "odd": r"failed 2 times: Odd: odd\.",
    "exit": r"failed 2 times: SystemExit: 3\.",
    "memory": r"failed 2 times: .*MemoryError: Unable to allocate",
    "segfault": r"failed 2 times: its worker died",
    "kill": r"failed 2 times: its worker died",
    "hang": r"failed 2 times: no answer within 5 s",  # of the first chunk
}


@pytest.fixture(scope="module")
def alone() -> str:
    """What one process finds in peace."""
    return sha(run_in_python(nd.Host(4)))


@pytest.fixture(scope="module")
def hurried(cluster: None) -> nd.Ray:
    return nd.Ray(workers=2, chunk=4, deadline=0.5)


@pytest.mark.parametrize("kind", SAID)
def test_a_fault_that_passes_leaves_the_bits(kind: str, tmp_path: pathlib.Path, alone: str, hurried: nd.Ray) -> None:
    assert sha(run_in_python(hurried, troubled(kind, tmp_path, 2))) == alone
    assert (tmp_path / "1").exists()


@pytest.mark.parametrize("kind", SAID)
def test_a_fault_that_stays_is_said(kind: str, tmp_path: pathlib.Path, monkeypatch, cluster: None) -> None:
    monkeypatch.chdir(tmp_path)
    ray = nd.Ray(workers=1, chunk=4, tries=2, deadline=0.5)
    with pytest.raises(ChunkError, match=SAID[kind]) as caught:
        run_in_python(ray, troubled(kind, tmp_path, 1_000))
    assert caught.value.chunk.start == 0 and pathlib.Path(caught.value.path).parent.name == "failed"


def test_what_failed_is_tried_alone(tmp_path: pathlib.Path, cluster: None, capsys, monkeypatch) -> None:
    """The file holds all that it takes, and each member is tried by itself."""
    monkeypatch.chdir(tmp_path)

    def loss(x: Any) -> float:
        if x[0] > 0.9:
            raise ValueError(f"out of the furnace: {x[0]:.3f}")
        return float(x.sum())

    problem = nd.BlackBox(loss, np.zeros(2), domain=nd.Real(0.0, 1.0))
    with pytest.raises(ChunkError) as caught:
        nd.fit(problem, nd.Genetic(population=64), steps=20, key=jr.key(0), evaluator=nd.Ray(workers=1, chunk=4))
    assert main(["replay", caught.value.path]) == 1
    out = capsys.readouterr().out
    assert out.count("out of the furnace") >= 1 and out.count("failed:") < 4
    assert main(["replay", "nowhere"]) == 1 and "nowhere" in capsys.readouterr().err


def test_the_file_cannot_be_written(tmp_path: pathlib.Path, cluster: None) -> None:
    (tmp_path / "file").touch()
    ray = nd.Ray(workers=1, chunk=4, tries=1, failures=str(tmp_path / "file"))
    with pytest.raises(ChunkError, match=r"not saved: .*File exists"):
        run_in_python(ray, troubled("raise", tmp_path, 1_000))


def test_a_straggler_is_overtaken(tmp_path: pathlib.Path, alone: str, crew) -> None:
    """Its chunk is begun again elsewhere, and nobody waits for it."""
    run_in_python(crew(2), steps=2)

    def before() -> None:
        (tmp_path / f"{time.time_ns()}-{os.getpid()}").touch()
        try:
            (tmp_path / "slow").touch(exist_ok=False)
        except FileExistsError:
            return
        time.sleep(20.0)

    begin = time.monotonic()
    assert sha(run_in_python(crew(2), before)) == alone
    assert time.monotonic() - begin < 15.0
    assert len(list(tmp_path.glob("*-*"))) == STEPS * 8 + 1


def test_dropped_once_dropped_again(tmp_path: pathlib.Path, cluster: None) -> None:
    """Whatever is late the first time; the second time nothing is."""
    path = tmp_path / "dropped.jsonl"

    def before() -> None:
        try:
            (tmp_path / "slow").touch(exist_ok=False)
        except FileExistsError:
            return
        time.sleep(5.0)

    with nd.Ray(workers=2, chunk=4, drop=0.2, dropped=str(path)) as ray:
        run(ray, "genetic", 1)  # so that the workers are there
        path.unlink()
        first = run_in_python(ray, before, steps=5)
    assert [len(json.loads(line)["dropped"]) for line in path.read_text().splitlines()] == [1, 0, 0, 0, 0]
    with nd.Ray(workers=1, chunk=4, drop=0.2, dropped=str(path)) as ray:
        assert sha(run_in_python(ray, steps=5)) == sha(first) != sha(run_in_python(nd.Host(4), steps=5))


def test_a_loss_that_depends_on_more_is_found(cluster: None) -> None:
    problem = nd.BlackBox(lambda x: float(x[0]) + os.getpid() * (x[1] > 0), np.zeros(2), traceable=False)
    said = r"other bits for the same evaluations of `BlackBox`, members \[.*\]"
    with nd.Ray(workers=2, chunk=4, verify=True) as ray, pytest.raises(NotDeterministic, match=said) as caught:
        nd.fit(problem, nd.Genetic(population=8), steps=5, key=jr.key(0), evaluator=ray)
    assert 0 < len(caught.value.members) < 4


def test_verified(cluster: None) -> None:
    with nd.Ray(workers=2, chunk=4, verify=True) as ray:
        assert sha(run(ray, steps=5)) == sha(run(nd.Vmap(4), steps=5))


@pytest.mark.parametrize("python", [False, True])
def test_minimise_finds_the_same(python: bool, cluster: None) -> None:
    def bowl(x: Any) -> Any:
        square = ((x - 0.3) ** 2).sum()
        return float(square) if python else square

    here, there = (nd.minimise(bowl, np.zeros(3), evaluations=300, workers=workers) for workers in (0, 2))
    assert here.params.tobytes() == there.params.tobytes() and here.loss == there.loss < 1e-6


def test_warnings_are_said_here(cluster: None) -> None:
    def loss(x: Any) -> float:
        return float(np.log(np.float64(x[0])))  # of a negative number

    with pytest.warns(UserWarning, match="invalid value encountered in log"):
        nd.minimise(loss, np.array([1.0]), evaluations=30, workers=1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"workers": 0}, r"`Ray\(workers=0\)`: expected a whole number of at least 1"),
        ({"chunk": 0}, r"`Ray\(chunk=0\)`"),
        ({"tries": 0}, r"`Ray\(tries=0\)`"),
        ({"num_cpus": -1}, r"`Ray\(num_cpus=-1\)`: expected a number above 0"),
        ({"num_gpus": float("nan")}, r"`Ray\(num_gpus=nan\)`"),
        ({"deadline": 0}, r"`Ray\(deadline=0\)`"),
        ({"drop": 1.0}, r"`Ray\(drop=1.0\)`: expected a share in \[0, 1\)"),
        ({"workers": 1, "verify": True}, "at least 2 workers"),
        ({"drop": 0.1, "verify": True}, "either `drop` or `verify`"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        nd.Ray(**arguments)


@pytest.mark.parametrize("verify", [False, True])
def test_more_than_the_cluster_has(verify: bool, cluster: None, monkeypatch) -> None:
    monkeypatch.setattr("nondiff.distributed.dispatch.STARTING", 2.0)
    said = rf"not {1 + verify} of the workers .* num_gpus=3 each; it has \d+ CPUs and 0 GPUs"
    with nd.Ray(workers=2, num_gpus=3, verify=verify) as ray, pytest.raises(RuntimeError, match=said):
        run(ray)


def test_workers_that_never_live(cluster: None) -> None:
    broken = nd.Ray(workers=1, env={"JAX_ENABLE_X64": "perhaps"})
    with broken as ray, pytest.raises(RuntimeError, match="workers die as soon as they start"):
        run(ray)


def test_a_file_of_drops_that_is_none(tmp_path: pathlib.Path, cluster: None) -> None:
    (tmp_path / "some.csv").write_text("a,b\n")
    with pytest.raises(ValueError, match=r"line 1: .*no line of that file"):
        run(nd.Ray(workers=1, drop=0.1, dropped=str(tmp_path / "some.csv")))


def test_only_who_has_the_token_may_come_in(cluster: None) -> None:
    import ray

    token = pathlib.Path(home()) / "token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600 and stat.S_IMODE(token.parent.stat().st_mode) == 0o700
    address = ray.get_runtime_context().gcs_address
    code = f"import ray; ray.init({address!r}, log_to_driver=False); print(ray.cluster_resources())"
    environment = {**os.environ, "RAY_AUTH_TOKEN": "0" * 64, "RAY_AUTH_TOKEN_PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode != 0 and "CPU" not in done.stdout and "oken" in done.stderr
    environment = {**os.environ, "RAY_AUTH_TOKEN_PATH": str(token)}
    environment.pop("RAY_AUTH_TOKEN", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "CPU" in done.stdout, done.stderr
