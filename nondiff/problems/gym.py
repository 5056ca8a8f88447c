"""Episodes of a gymnasium environment (https://gymnasium.farama.org), played by a policy written in JAX.

The observations are normalised by what all members have seen (Mania, Guy & Recht, 2018, "Simple random search of static
linear policies is competitive for reinforcement learning", https://arxiv.org/abs/1803.07055, section 3.2), which the
problem remembers from step to step.
"""

import uuid
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Key, PyTree

from nondiff.core.checks import check_count
from nondiff.core.problem import AbstractProblem, Batch, Params, starting_point
from nondiff.problems.stage import Seen, Stage, actions_of, load_gymnasium


class Gym(AbstractProblem):
    """Minus the mean return of a policy over some episodes: `pip install "nondiff[rl]"`.

    **Arguments:**

    - `env`: a name, as for `gymnasium.make`, or a function that makes a new environment at each call.
    - `policy`: `policy(params, observation)`, in JAX, for one observation of 32 bits. Its answer is the action, which
      is clipped to the space's bounds; for discrete actions one number for each, of which the largest is chosen.
    - `params`: the starting point, arrays only, or a function of a key that makes it.
    - `episodes`: how many an evaluation plays (default 1). Which ones the key says: equal keys, equal episodes.
    - `steps`: of an episode at most (default `None`: until the environment ends it).
    - `normalize`: observations less their mean, over their standard deviation, both of what all members saw in the
      steps before (default). A coordinate that has not changed yet reads 0; at the first step they come as they are.
    - `settings`: keyword arguments for `gymnasium.make`, or for the function.
    - `domain`: as for `BlackBox`.

    Episodes of a chunk are played side by side: one call of the policy for each time step of all of them. Environments
    are used again and again, so `reset(seed=)` has to forget everything; on `Ray`, each worker has its own. An
    evaluation fails, and nothing else does, where an action or an observation is not finite.

    **Raises** `ModuleNotFoundError` without gymnasium; `ValueError` for an environment that does not exist,
    observations that are no array of numbers, actions that are neither that nor one of several, and a policy whose
    answer is no action; and what the environment raises.

    >>> import jax, jax.numpy as jnp, nondiff, optax
    >>> policy = lambda params, observation: params @ observation
    >>> problem = Gym("CartPole-v1", policy, params=jnp.zeros((2, 4)))
    >>> trainer = nondiff.OpenES(optax.adam(0.1), sigma=0.3, population=16)
    >>> result = nondiff.fit(problem, trainer, steps=10, key=jax.random.key(0))
    >>> bool(result.history[-1]["loss"] < -100)
    True
    >>> int(problem.act(result.params, result.state.problem, [0.0, 0.0, 0.1, 1.0]))  # it falls to the right
    1
    """

    stage: Stage = eqx.field(static=True)
    params: Any
    domains: PyTree
    episodes: int = eqx.field(static=True)
    steps: int | None = eqx.field(static=True)
    normalize: bool = eqx.field(static=True)
    traceable: ClassVar[bool] = False

    def __init__(
        self,
        env: str | Callable[..., Any],
        policy: Callable[[Any, Any], Any],
        *,
        params: Params | Callable[[Key[Array, ""]], Params],
        episodes: int = 1,
        steps: int | None = None,
        normalize: bool = True,
        settings: Mapping[str, Any] | None = None,
        domain: PyTree = None,
    ):
        check_count("Gym", "episodes", episodes)
        if steps is not None:
            check_count("Gym", "steps", steps)
        if not callable(policy):
            raise ValueError(f"`Gym(policy={policy!r})`: expected `policy(params, observation)`.")
        self.stage = Stage(uuid.uuid4().hex, env, dict(settings or {}), policy)
        self.params, self.domains = params, domain
        self.episodes, self.steps, self.normalize = episodes, steps, normalize
        with self.stage.envs(1) as (env,):
            _check_spaces(env)
            _check_policy(policy, self.init(key=jr.key(0)), env)

    def init(self, *, key: Key[Array, ""]) -> Params:
        return starting_point(self.params, key)

    def init_state(self, *, key: Key[Array, ""]) -> Any:
        del key
        if not self.normalize:
            return ()
        with self.stage.envs(1) as (env,):
            shape = env.observation_space.shape
        return Seen(np.zeros(()), np.zeros(shape), np.zeros(shape))

    def batch(self, state: Any, *, key: Key[Array, ""]) -> Batch:
        """Mean and standard deviation of the observations so far."""
        del key
        if not self.normalize:
            return ()
        if state.count == 0:
            return state.mean, np.ones_like(state.mean)
        deviation = np.sqrt(state.squares / state.count)
        # Below, 32 bits hold nothing but rounding; and over infinity it is 0.
        least = np.maximum(1e-7 * np.abs(state.mean), np.finfo(np.float32).tiny)
        return state.mean, np.where(deviation > least, deviation, np.inf)

    def loss(self, params: Params, batch: Batch, *, key: Key[Array, ""]) -> tuple[Any, Any]:
        one = jtu.tree_map(lambda x: np.asarray(x)[None], params)
        return jtu.tree_map(lambda x: x[0], self.losses(one, batch, keys=key[None]))

    def losses(self, members: Params, batch: Batch, *, keys: Key[Array, " pop"]) -> tuple[Any, Any]:
        sizes = keys.shape[0], self.episodes
        members, batch = _on_device(members), _on_device(batch)

        def act(observations: np.ndarray) -> np.ndarray:
            actions = self.stage.act(members, observations.reshape(*sizes, *observations.shape[1:]), batch)
            return np.asarray(actions).reshape(len(observations), *actions.shape[2:])

        returns, seen = self.stage.play(_seeds(keys, self.episodes), act, self.steps)
        seen = jtu.tree_map(lambda x: x.reshape(*sizes, *x.shape[1:]), seen) if self.normalize else None
        return -returns.reshape(sizes).mean(1), seen

    def absorb(self, state: Any, aux: Any, batch: Batch) -> Any:
        """The statistics of all groups of observations: those before, and each episode's (Chan et al., 1979)."""
        del batch
        if not self.normalize:
            return state

        def joined(old: Any, new: Any) -> np.ndarray:
            return np.concatenate([np.asarray(old)[None], np.asarray(new, float).reshape(-1, *np.shape(old))])

        groups = jtu.tree_map(joined, state, aux)
        # Observations may be finite where their squares are not.
        ok = np.isfinite(groups.mean + groups.squares).reshape(len(groups.count), -1).all(1)
        count, means, squares = groups.count[ok], groups.mean[ok], groups.squares[ok]
        each = count.reshape(-1, *[1] * np.ndim(state.mean))
        mean = (each * means).sum(0) / max(count.sum(), 1)
        return Seen(np.asarray(count.sum()), mean, squares.sum(0) + (each * (means - mean) ** 2).sum(0))

    def domain(self, params: Params) -> PyTree:
        del params
        return self.domains

    def act(self, params: Params, state: Any, observation: Any) -> Any:
        """The action of trained parameters, for use: `act(result.params, result.state.problem, observation)`."""
        members = _on_device(jtu.tree_map(lambda x: np.asarray(x)[None], params))
        batch = _on_device(self.batch(state, key=jr.key(0)))
        answer = self.stage.act(members, np.asarray(observation, np.float32)[None, None], batch)
        with self.stage.envs(1) as (env,):
            return actions_of(env.action_space, np.asarray(answer)[0])[0][0]


def _seeds(keys: Key[Array, " pop"], episodes: int) -> list[int]:
    words = np.asarray(jr.key_data(keys)).reshape(keys.shape[0], -1).tolist()
    each = [np.random.SeedSequence([*key, episode]) for key in words for episode in range(episodes)]
    return [int(sequence.generate_state(1)[0]) for sequence in each]


def _on_device(tree: PyTree) -> PyTree:
    """Once for all time steps; of 32 bits, as JAX has them."""
    return jtu.tree_map(jnp.asarray, tree)


def _check_spaces(env: Any) -> None:
    spaces, around = load_gymnasium().spaces, "A wrapper of `gymnasium.wrappers` may make it one"
    seen, done = env.observation_space, env.action_space
    if not isinstance(seen, spaces.Box):
        raise ValueError(
            f"`Gym`: observations are {seen}; expected an array of numbers, `Box`. {around}: "
            "`env=lambda: FlattenObservation(gymnasium.make(...))`."
        )
    if not isinstance(done, spaces.Discrete) and not (
        isinstance(done, spaces.Box) and np.issubdtype(done.dtype, np.floating)
    ):
        raise ValueError(
            f"`Gym`: actions are {done}; expected one of several, `Discrete`, or an array of floats, `Box`. {around}: "
            "`env=lambda: TransformAction(gymnasium.make(...), ...)`."
        )
    shape = np.shape(env.reset(seed=0)[0])
    if shape != seen.shape:
        raise ValueError(f"`Gym`: the environment's first observation has shape {shape}; its space says {seen.shape}.")


def _check_policy(policy: Callable[[Any, Any], Any], params: Params, env: Any) -> None:
    observation = jax.ShapeDtypeStruct(env.observation_space.shape, jnp.float32)
    answer = eqx.filter_eval_shape(policy, params, observation)
    space = env.action_space
    expected = (int(space.n),) if hasattr(space, "n") else space.shape
    if getattr(answer, "shape", None) != expected:
        found = f"{answer.dtype}{list(answer.shape)}" if hasattr(answer, "shape") else jtu.tree_structure(answer)
        wanted = "a number for each action" if hasattr(space, "n") else "the action"
        raise ValueError(
            f"`Gym(policy)`: an observation, float32{list(observation.shape)}, is answered with {found}; expected "
            f"{wanted}, {list(expected)}."
        )
