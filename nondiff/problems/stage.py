"""Environments that a process keeps and uses again, and episodes played side by side in them."""

import atexit
import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float

from nondiff.core.problem import Params
from nondiff.core.record import record


@record
class Seen:
    """Of observations: how many, their mean, and the summed squares of their distances from it."""

    count: Any
    mean: Any
    squares: Any


class Stage:
    """What a process makes once and every chunk uses: environments, and the compiled policy.

    A worker gets the problem anew with each chunk, and its functions are other ones every time; so a stage goes by a
    name, and the one that is there already is what arrives.
    """

    def __init__(self, name: str, env: Any, settings: dict[str, Any], policy: Callable[[Any, Any], Any]):
        self.name, self.env, self.settings, self.policy = name, env, settings, policy
        self.act = jax.jit(self._act)
        self._idle: list[Any] = []

    def __reduce__(self) -> Any:
        _check_sendable(self.env, self.settings)
        return _stage, (self.name, self.env, self.settings, self.policy)

    @contextlib.contextmanager
    def envs(self, n: int) -> Iterator[list[Any]]:
        """To make one takes longer than many an episode, so they are kept; but not those in which something raised."""
        _keep(self)
        taken, self._idle = self._idle[:n], self._idle[n:]
        try:
            while len(taken) < n:
                taken.append(self._made())
                if any(taken[-1] is env for env in [*taken[:-1], *self._idle]):
                    raise ValueError(
                        "`Gym(env)`: the function returned the same environment twice; make a new one at each call."
                    )
            yield taken
        except BaseException:
            _close(taken)
            raise
        self._idle = taken + self._idle

    def play(
        self, seeds: list[int], act: Callable[[np.ndarray], np.ndarray], limit: int | None
    ) -> tuple[np.ndarray, Seen]:
        """An episode of each seed, all at once: their returns, NaN for those that failed, and what was acted on."""
        with self.envs(len(seeds)) as envs:
            return _play(envs, seeds, act, limit)

    def close(self) -> None:
        idle, self._idle = self._idle, []
        _close(idle)

    def _made(self) -> Any:
        gymnasium = load_gymnasium()
        if not isinstance(self.env, str):
            made = self.env(**self.settings) if callable(self.env) else self.env
            if not callable(self.env) or not isinstance(made, gymnasium.Env):
                what = f"the function returned {made!r}" if callable(self.env) else f"got {made!r}"
                raise ValueError(
                    f"`Gym(env)`: {what}; expected a name, such as 'CartPole-v1', or a function that makes a new "
                    "`gymnasium.Env`."
                )
            return made
        try:
            return gymnasium.make(self.env, disable_env_checker=True, **self.settings)
        except gymnasium.error.UnregisteredEnv as error:
            raise ValueError(
                f"`Gym(env={self.env!r})`: {error} `gymnasium.pprint_registry()` prints the names that there are; "
                "'package:Name-v0' imports the package first."
            ) from error

    def _act(self, members: Params, observations: Float[Array, "n episodes *shape"], batch: Any) -> Array:
        if batch:
            mean, deviation = batch
            observations = (observations - mean) / deviation
        return jax.vmap(jax.vmap(self.policy, (None, 0)))(members, observations)


KEPT = 4
"""Stages whose environments a process keeps: those of the problems that it used last."""
_stages: dict[str, Stage] = {}


def _stage(name: str, *parts: Any) -> Stage:
    return _stages.get(name) or Stage(name, *parts)


def _keep(stage: Stage) -> None:
    _stages.pop(stage.name, None)
    _stages[stage.name] = stage
    while len(_stages) > KEPT:
        _stages.pop(next(iter(_stages))).close()


@atexit.register
def _close_all() -> None:
    for stage in _stages.values():
        stage.close()


def _close(envs: list[Any]) -> None:
    for env in envs:
        with contextlib.suppress(Exception):  # there is nothing that could be done about it
            env.close()


def _play(
    envs: list[Any], seeds: list[int], act: Callable[[np.ndarray], np.ndarray], limit: int | None
) -> tuple[np.ndarray, Seen]:
    space, moves = envs[0].action_space, [env.step for env in envs]
    begins = [env.reset(seed=seed)[0] for env, seed in zip(envs, seeds, strict=True)]
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is looked for
        observations = np.stack(begins).astype(np.float32)
        # Sums of distances from the first one: it is one of them, so their squares cannot cancel.
        first = observations.astype(float)
        count, total, squares = np.zeros(len(envs)), np.zeros(first.shape), np.zeros(first.shape)
        returns, going = [0.0] * len(envs), np.ones(len(envs), bool)
        for _ in itertools.count() if limit is None else range(limit):
            if not going.any():
                break
            actions, ok = actions_of(space, act(observations))
            ok &= _finite(observations)
            for i in np.flatnonzero(going & ~ok):
                returns[i], going[i] = np.nan, False
            apart = observations - first
            apart[~going] = 0.0
            count += going
            total += apart
            squares += apart * apart
            for i in np.flatnonzero(going).tolist():
                observation, reward, ended, cut, _ = moves[i](actions[i])
                returns[i] += reward
                if ended or cut:
                    going[i] = False
                else:
                    observations[i] = observation
        share = 1 / np.maximum(count, 1).reshape(-1, *[1] * (first.ndim - 1))
        mean = np.where(np.isfinite(first), first, 0.0) + total * share
        seen = Seen(count, mean, np.maximum(squares - total**2 * share, 0.0))
        return np.array(returns), jtu.tree_map(lambda x: x.astype(np.float32), seen)  # as answers have them


def actions_of(space: Any, answers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the policy's answers `[n, ...]` mean, and which of them mean something."""
    if hasattr(space, "n"):
        return space.start + answers.argmax(1), ~np.any(np.isnan(answers), axis=1)
    actions = np.minimum(np.maximum(answers.astype(space.dtype), space.low), space.high)
    return actions, _finite(actions)


def _finite(rows: np.ndarray) -> np.ndarray:
    return np.all(np.isfinite(rows.reshape(len(rows), -1)), axis=1)


def load_gymnasium() -> Any:
    try:
        import gymnasium
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('`Gym` needs gymnasium: `pip install "nondiff[rl]"`.') from error
    return gymnasium


def _check_sendable(env: Any, settings: dict[str, Any]) -> None:
    with contextlib.suppress(ModuleNotFoundError):  # it comes with Ray, which is who sends
        import cloudpickle

        try:
            cloudpickle.dumps((env, settings))
        except Exception as error:
            raise ValueError(
                f"`Gym(env={env!r}, settings={settings!r})` cannot be sent to another process: {error}. Make what it "
                "holds inside of the function."
            ) from error
