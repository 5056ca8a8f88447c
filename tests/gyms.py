"""Environments that write down what happens in them, and what a population's evaluation of a `Gym` finds."""

from collections.abc import Callable
from typing import Any

import gymnasium
import jax.random as jr
import numpy as np
import optax
from gymnasium.spaces import Box

import nondiff as nd

ES = nd.OpenES(optax.adam(0.1), sigma=0.1, population=8)
KEYS = jr.split(jr.key(7), 4)
ENVIRONMENTS = {
    "CartPole-v1": (2, 4, None),
    "Pendulum-v1": (1, 3, 60),
    "HalfCheetah-v5": (6, 17, 15),
}


def linear(params: Any, observation: Any) -> Any:
    return params @ observation


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


class Diary(gymnasium.Wrapper):
    """Writes down what happens: the seeds, and the observations that were acted on."""

    def __init__(self, env: gymnasium.Env, seeds: list[int], seen: list[np.ndarray], actions: list[Any]):
        super().__init__(env)
        self.seeds, self.seen, self.actions = seeds, seen, actions

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        assert seed is not None
        self.seeds.append(seed)
        self.last, info = self.env.reset(seed=seed, options=options)
        return self.last, info

    def step(self, action: Any) -> Any:
        self.seen.append(self.last)
        self.actions.append(action)
        self.last, *rest = self.env.step(action)
        return self.last, *rest


class Toy(gymnasium.Env):
    """Observes what `say(time, seed)` says, for five steps; the reward is the first action."""

    def __init__(self, say: Callable[[int, int], Any] = lambda time, seed: [time, seed % 7, 1e6], bound: float = 9.0):
        self.say, self.closed = say, False
        self.observation_space = Box(-np.inf, np.inf, np.shape(say(0, 0)), np.float64)
        self.action_space = Box(-bound, bound, (3,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.seed, self.time = seed or 0, 0
        return np.array(self.say(0, self.seed), float), {}

    def step(self, action: Any) -> Any:
        assert np.isfinite(action).all()
        self.time += 1
        return np.array(self.say(self.time, self.seed), float), float(action[0]), self.time == 5, False, {}

    def close(self) -> None:
        self.closed = True


def evaluate(problem: nd.Gym, members: Any, keys: Any = KEYS, state: Any = None) -> tuple[np.ndarray, Any]:
    state = problem.init_state(key=jr.key(0)) if state is None else state
    batch = problem.batch(state, key=jr.key(0))
    losses, aux = problem.losses(members, batch, keys=keys)
    return losses, problem.absorb(state, aux, batch)
