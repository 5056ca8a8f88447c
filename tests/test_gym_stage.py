"""Environments are kept, used again, closed, and made anew in every process: with the same bits."""

import hashlib
import os
import pathlib
import signal
import threading
from typing import Any

import gymnasium
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import pytest
from gyms import ENVIRONMENTS, ES, KEYS, Toy, evaluate, linear, normal

import nondiff as nd
from nondiff.distributed.shipping import attach, detach
from nondiff.problems import stage
from nondiff.testing import count_compilations


@pytest.mark.parametrize("name", ["HalfCheetah-v5", "Pendulum-v1"])
def test_a_used_environment_has_the_bits_of_a_new_one(name: str) -> None:
    *shape, _ = ENVIRONMENTS[name]
    members = normal(4, *shape)

    def problem(steps: int) -> nd.Gym:
        return nd.Gym(name, linear, params=np.zeros(shape), steps=steps)

    used = problem(25)
    evaluate(used, -members, KEYS[::-1])  # and left in the middle
    for _ in range(2):
        new, again = evaluate(problem(25), members), evaluate(used, members)
        for x, y in zip(jtu.tree_leaves(new), jtu.tree_leaves(again), strict=True):
            np.testing.assert_array_equal(x, y)


def test_a_run_in_two_parts_has_the_bits_of_one(tmp_path: pathlib.Path) -> None:
    problem = nd.Gym("Pendulum-v1", linear, params=np.zeros((1, 3)), steps=30)
    whole = nd.fit(problem, ES, steps=4, key=jr.key(0))
    half = nd.fit(problem, ES, steps=2, key=jr.key(0), callbacks=[nd.Checkpointer(tmp_path)])
    restored = nd.Checkpointer(tmp_path).restore(nd.init(problem, ES, key=jr.key(0))).state
    with count_compilations() as compiled:
        rest = nd.fit(problem, ES, steps=4, state=half.state)
    assert not compiled
    for other in (rest, nd.fit(problem, ES, steps=4, state=restored)):
        for part in (lambda result: result.params, lambda result: result.state.problem):
            for x, y in zip(jtu.tree_leaves(part(whole)), jtu.tree_leaves(part(other)), strict=True):
                np.testing.assert_array_equal(x, y)
    assert isinstance(whole.state.problem.mean, np.ndarray) and whole.state.problem.mean.dtype == np.float64


def test_environments_are_kept_and_closed() -> None:
    made: list[Toy] = []

    def make() -> Toy:
        made.append(Toy())
        return made[-1]

    problem = nd.Gym(make, lambda params, o: params, params=np.zeros(3))
    for n in (2, 4, 1, 3):
        evaluate(problem, np.ones((n, 3), np.float32), KEYS[:n])
    assert len(made) == 4 and not any(env.closed for env in made)
    for _ in range(stage.KEPT):
        nd.Gym(Toy, lambda params, o: params, params=np.zeros(3))
    assert all(env.closed for env in made)
    evaluate(problem, np.ones((2, 3), np.float32), KEYS[:2])
    assert len(made) == 6


def test_what_an_environment_raises_is_raised_and_it_is_closed() -> None:
    made: list[Toy] = []

    class Fragile(Toy):
        def step(self, action: Any) -> Any:
            made.append(self)
            raise OSError("the simulator is gone")

    problem = nd.Gym(Fragile, lambda params, o: params, params=np.zeros(3))
    with pytest.raises(OSError, match="the simulator is gone"):
        evaluate(problem, np.ones((2, 3), np.float32), KEYS[:2])
    assert made and all(env.closed for env in made)


def test_one_environment_for_all_is_refused() -> None:
    env = Toy()
    problem = nd.Gym(lambda: env, lambda params, o: params, params=np.zeros(3))
    with pytest.raises(ValueError, match="the same environment twice; make a new one at each call"):
        evaluate(problem, np.ones((2, 3), np.float32), KEYS[:2])


def test_what_arrives_is_what_is_there_already() -> None:
    problem = nd.Gym(lambda: Toy(), lambda params, o: params, params=np.zeros(3))
    evaluate(problem, np.ones((2, 3), np.float32), KEYS[:2])
    pickled, held = detach(problem)
    arrays = jtu.tree_leaves(problem)
    assert attach(pickled, held, arrays).stage is problem.stage
    stage._stages.pop(problem.stage.name)
    first = attach(pickled, held, arrays)
    evaluate(first, np.ones((2, 3), np.float32), KEYS[:2])
    second = attach(pickled, held, arrays)
    assert second.stage is first.stage is not problem.stage
    with count_compilations() as compiled:
        evaluate(second, np.ones((2, 3), np.float32), KEYS[:2])
    assert not compiled


def test_what_cannot_be_sent_is_said() -> None:
    lock = threading.Lock()
    problem = nd.Gym(lambda: Toy(bound=9.0 + lock.locked()), lambda params, o: params, params=np.zeros(3))
    evaluate(problem, np.ones((2, 3), np.float32), KEYS[:2])
    with pytest.raises(ValueError, match=r"`Gym\(env=.*cannot be sent to another process: .*lock"):
        detach(problem)


class Mortal(gymnasium.Wrapper):
    """Kills its process in the middle of an episode, once."""

    def __init__(self, env: gymnasium.Env, sign: pathlib.Path):
        super().__init__(env)
        self.sign = sign

    def step(self, action: Any) -> Any:
        if not self.sign.exists():
            self.sign.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.env.step(action)


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_workers_have_the_same_bits_and_so_has_one_that_takes_over(tmp_path: pathlib.Path) -> None:
    sign = tmp_path / "killed"
    problem = nd.Gym(
        lambda: Mortal(gymnasium.make("HalfCheetah-v5"), sign), lambda p, o: p @ o, params=np.zeros((6, 17)), steps=20
    )

    def bits(evaluator: nd.AbstractEvaluator) -> str:
        result = nd.fit(problem, ES, steps=4, key=jr.key(0), evaluator=evaluator)
        leaves = jtu.tree_leaves((result.params, result.state.problem))
        return hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in leaves)).hexdigest()

    with nd.Ray(workers=2, chunk=4) as ray:
        killed = bits(ray)
        assert sign.exists()
        assert killed == bits(nd.Host(chunk=4))
