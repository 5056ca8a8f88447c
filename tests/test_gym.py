"""Episodes: what a plain loop over gymnasium finds, NumPy's mean and deviation, and what must not end a run."""

import itertools
import json
import pathlib
from typing import Any

import gymnasium
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from gyms import ENVIRONMENTS, ES, KEYS, Diary, Toy, evaluate, linear, normal

import nondiff as nd
from nondiff.launch.main import main
from nondiff.testing import check_problem

ROOT = pathlib.Path(nd.__file__).parents[1]


def coarse(params: Any, observation: Any) -> Any:
    """In eighths: the last bits of a product do not matter, and chaos has nothing to work on."""
    return (jnp.round(8 * (params @ observation)) + params[:, 0]) / 8


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_returns_are_those_of_a_plain_loop(name: str) -> None:
    *shape, limit = ENVIRONMENTS[name]
    seeds: list[int] = []
    problem = nd.Gym(
        lambda: Diary(gymnasium.make(name), seeds, [], []),
        coarse,
        params=np.zeros(shape),
        episodes=2,
        steps=limit,
        normalize=False,
    )
    seeds.clear()
    members = 3 * normal(4, *shape)  # so that actions leave the bounds
    losses, _ = evaluate(problem, members)
    env, clipped, returns = gymnasium.make(name), 0, []
    for member, seed in zip(np.repeat(members, 2, 0), seeds, strict=True):
        observation, total = env.reset(seed=seed)[0], 0.0
        for _ in itertools.count() if limit is None else range(limit):
            action: Any = (np.round(8 * (member @ observation.astype(np.float32))) + member[:, 0]) / 8
            if isinstance(env.action_space, Discrete):
                action = int(np.argmax(action))
            else:
                assert isinstance(env.action_space, Box)
                bounded = np.clip(action, env.action_space.low, env.action_space.high)
                clipped, action = clipped + (bounded != action).sum(), bounded
            observation, reward, ended, cut, _ = env.step(action)
            total += float(reward)
            if ended or cut:
                break
        returns.append(total)
    np.testing.assert_allclose(losses, -np.reshape(returns, (4, 2)).mean(1), rtol=1e-12)
    assert len(set(seeds)) == 8 and len(set(returns)) > 4
    assert clipped > 0 or name == "CartPole-v1"


def test_equal_keys_are_equal_episodes() -> None:
    problem = nd.Gym("CartPole-v1", linear, params=np.zeros((2, 4)))
    members = np.repeat(normal(1, 2, 4), 4, 0)
    losses, _ = evaluate(problem, members, KEYS[jnp.array([0, 1, 0, 1])])
    assert losses[0] == losses[2] and losses[1] == losses[3] != losses[0]
    np.testing.assert_array_equal(losses, evaluate(problem, members, KEYS[jnp.array([0, 1, 0, 1])])[0])
    apart = [evaluate(problem, members[:1], KEYS[i : i + 1])[0][0] for i in (0, 1)]
    np.testing.assert_allclose(losses[:2], apart)


def test_statistics_are_numpys_of_all_that_was_seen() -> None:
    seen: list[np.ndarray] = []
    problem = nd.Gym(
        lambda: Diary(gymnasium.make("CartPole-v1"), [], seen, []), linear, params=np.zeros((2, 4)), episodes=2
    )
    result = nd.fit(problem, ES, steps=3, key=jr.key(0), evaluator=nd.Host(chunk=3))
    state = result.state.problem
    assert int(state.count) == len(seen) > 8 * 2 * 3 * 8
    np.testing.assert_allclose(state.mean, np.mean(seen, 0), rtol=1e-5, atol=1e-7)
    mean, deviation = problem.batch(state, key=jr.key(0))
    np.testing.assert_allclose(mean, state.mean)
    np.testing.assert_allclose(deviation, np.std(seen, 0), rtol=1e-5)


def test_what_the_policy_sees() -> None:
    seen: list[np.ndarray] = []
    problem = nd.Gym(lambda: Diary(Toy(), [], seen, []), lambda params, o: o + params, params=np.zeros(3), episodes=8)
    zero = np.zeros((4, 3), np.float32)
    losses, state = evaluate(problem, zero)
    np.testing.assert_array_equal(losses, [-10.0] * 4)  # as it comes: 0, 1, 2, 3, 4
    standard = (np.array(seen) - np.mean(seen, 0)) / np.maximum(np.std(seen, 0), 1e-9)
    for before, now in zip(seen[:5], standard[:5], strict=True):
        np.testing.assert_allclose(problem.act(zero[0], state, before), now, rtol=1e-5, atol=1e-6)
        assert now[2] == 0.0  # it never changed
    np.testing.assert_array_equal(problem.act(zero[0], state, [0.0, 0.0, 2e6])[2], 0.0)
    np.testing.assert_array_equal(problem.act(zero[0], state, [1e9, -1e9, 0.0])[:2], [9.0, -9.0])
    losses, _ = evaluate(problem, zero, state=state)
    np.testing.assert_allclose(losses, 0.0, atol=1e-5)
    assert problem.act(zero[0], problem.init_state(key=jr.key(0)), [0.5, 0.0, 0.0])[0] == 0.5


def test_a_discrete_action_is_counted_from_its_start() -> None:
    class Counted(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.action_space: Any = Discrete(3, start=5)

        def step(self, action: Any) -> Any:
            assert self.action_space.contains(action)
            return super().step([float(action)])

    problem = nd.Gym(Counted, lambda params, o: params, params=np.zeros(3))
    losses, _ = evaluate(problem, np.eye(3, dtype=np.float32), KEYS[:3])
    np.testing.assert_array_equal(losses, [-25.0, -30.0, -35.0])
    losses, _ = evaluate(problem, np.array([[-np.inf, 0, -1], [0, np.nan, 0]], np.float32), KEYS[:2])
    np.testing.assert_array_equal(losses, [-30.0, np.nan])


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_an_action_that_is_no_number_fails_alone(name: str) -> None:
    *shape, _ = ENVIRONMENTS[name]
    actions: list[Any] = []
    problem = nd.Gym(
        lambda: Diary(gymnasium.make(name), [], [], actions), linear, params=np.zeros(shape), steps=15, episodes=2
    )
    members = normal(4, *shape)
    broken = members.copy()
    broken[1] = np.nan
    right, _ = evaluate(problem, members)
    actions.clear()
    losses, state = evaluate(problem, broken)
    assert actions and np.isfinite(np.array(actions)).all()
    np.testing.assert_array_equal(losses, np.where(np.arange(4) == 1, np.nan, right))
    _, without = evaluate(problem, members[[0, 2, 3]], KEYS[jnp.array([0, 2, 3])])
    for x, y in zip(jtu.tree_leaves(state), jtu.tree_leaves(without), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)


def test_a_run_survives_members_that_fail() -> None:
    def policy(params: Any, observation: Any) -> Any:
        return jnp.where(params[0, 0] > 0.05, jnp.nan, params) @ observation

    problem = nd.Gym("Pendulum-v1", policy, params=np.zeros((1, 3)), steps=10)
    result = nd.fit(problem, ES, steps=3, key=jr.key(0), log_every=1)
    failed = [row["failed"] for row in result.history]
    assert 0 < sum(failed) < 24 and np.isfinite(np.asarray(result.params)).all()
    assert int(result.state.problem.count) == 10 * (24 - sum(failed))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1e200])
def test_observations_that_are_no_numbers_fail_alone(bad: float) -> None:
    seen: list[np.ndarray] = []

    def say(time: int, seed: int) -> list[float]:
        return [bad if seed % 2 and time == seed % 3 else time, seed % 7, 1.0]

    problem = nd.Gym(lambda: Diary(Toy(say), [], seen, []), lambda params, o: params, params=np.zeros(3))
    keys = jr.split(jr.key(1), 32)
    seen.clear()
    losses, state = evaluate(problem, np.ones((32, 3), np.float32), keys)
    assert set(losses[np.isfinite(losses)]) == {-5.0}
    assert 5 < np.isnan(losses).sum() < 27
    assert int(state.count) == len(seen)
    np.testing.assert_allclose(state.mean, np.mean(seen, 0), rtol=1e-5)
    np.testing.assert_allclose(state.squares, np.var(seen, 0) * len(seen), rtol=1e-5, atol=1e-9)


def test_statistics_survive_squares_without_end() -> None:
    problem = nd.Gym(
        lambda: Toy(lambda time, seed: [time + 1e30 * (time == 2 and seed % 2), 0, 0]),
        lambda params, o: params,
        params=np.zeros(3),
    )
    _, state = evaluate(problem, np.ones((32, 3), np.float32), jr.split(jr.key(1), 32))
    assert 5 < int(state.count) < 5 * 32 and int(state.count) % 5 == 0
    np.testing.assert_allclose(state.mean, [2.0, 0, 0])


def test_the_first_observation_far_from_the_others() -> None:
    problem = nd.Gym(lambda: Toy(lambda time, seed: [1e6 + time, 1e-3 * time, 0]), lambda p, o: p, params=np.zeros(3))
    state = problem.init_state(key=jr.key(0))
    for _ in range(3):
        _, state = evaluate(problem, np.ones((4, 3), np.float32), state=state)
    np.testing.assert_allclose(state.mean, [1e6 + 2, 2e-3, 0], rtol=1e-6)
    np.testing.assert_allclose(state.squares / state.count, [2.0, 2e-6, 0], rtol=1e-5, atol=1e-12)


def test_the_contract() -> None:
    check_problem(nd.Gym("CartPole-v1", linear, params=lambda key: jr.normal(key, (2, 4)), episodes=2))
    check_problem(nd.Gym("CartPole-v1", linear, params=np.zeros((2, 4)), normalize=False))


def test_settings_and_domain() -> None:
    problem = nd.Gym("CartPole-v1", linear, params=np.zeros((2, 4)), settings={"max_episode_steps": 3})
    np.testing.assert_array_equal(evaluate(problem, normal(4, 2, 4))[0], [-3.0] * 4)
    bounded = nd.Gym(Toy, lambda params, o: params, params=np.zeros(3), settings={"bound": 2.0})
    np.testing.assert_array_equal(evaluate(bounded, np.full((1, 3), 7.0, np.float32), KEYS[:1])[0], [-10.0])
    assert nd.Gym(Toy, linear, params=np.ones((3, 3)), domain=nd.Real(0.0, 1.0)).domain(None) is not None


class Whole(Toy):
    def __init__(self, **spaces: Any):
        super().__init__()
        for name, space in spaces.items():
            setattr(self, name, space)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"env": "NoSuch-v0"}, r"`Gym\(env='NoSuch-v0'\)`: .*`NoSuch` doesn't exist.*pprint_registry"),
        ({"env": 3}, r"`Gym\(env\)`: got 3; expected a name, such as 'CartPole-v1', or a function"),
        ({"env": lambda: 3}, r"`Gym\(env\)`: the function returned 3; expected a name"),
        ({"env": lambda: Whole(observation_space=Discrete(3))}, r"observations are Discrete\(3\).*FlattenObservation"),
        ({"env": lambda: Whole(action_space=MultiDiscrete([2, 2]))}, r"actions are MultiDiscrete.*TransformAction"),
        ({"env": lambda: Whole(action_space=Box(0, 9, (3,), np.int32))}, r"actions are Box.*int32"),
        ({"env": lambda: Whole(observation_space=Box(0, 1, (2,)))}, r"has shape \(3,\); its space says \(2,\)"),
        ({"policy": 3}, r"`Gym\(policy=3\)`: expected `policy\(params, observation\)`"),
        ({"policy": lambda p, o: o[:2]}, r"float32\[3\], is answered with float32\[2\]; expected the action, \[3\]"),
        ({"policy": lambda p, o: (o, o)}, r"is answered with PyTreeDef\(\(\*, \*\)\); expected the action, \[3\]"),
        (
            {"env": "CartPole-v1", "policy": lambda p, o: o[0]},
            r"float32\[4\], is answered with float32\[\]; expected a number for each action, \[2\]",
        ),
        ({"episodes": 0}, r"`Gym\(episodes=0\)`: expected a whole number of at least 1"),
        ({"steps": 2.5}, r"`Gym\(steps=2.5\)`: expected a whole number of at least 1"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_runs(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nd.Gym(**{"env": Toy, "policy": lambda params, o: params, "params": np.zeros(3), **arguments})


def test_the_experiment(capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path) -> None:
    picture = tmp_path / "cheetah.png"
    words = ["--steps", "2", "--time-steps", "20", "--held-out", "1", "--picture", str(picture), "--no-save", "--json"]
    assert main(["run", str(ROOT / "experiments" / "halfcheetah.py"), *words]) == 0
    assert picture.stat().st_size > 10_000
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["metrics"]
    assert -600 < found["random_return"] < 0 and found["curve"].count("at step") == 2
    assert found["environment_steps"] == 2 * 16 * 20
