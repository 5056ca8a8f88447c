"""A simulated cheetah learns to run: a linear policy, augmented random search, and episodes spread over Ray workers.

    nondiff run experiments/halfcheetah.py
    nondiff run experiments/halfcheetah.py --evaluator ray --workers 2

HalfCheetah-v5 of gymnasium, 1,000 time steps an episode, in MuJoCo. The policy is one matrix; the search is ARS (Mania,
Guy & Recht, 2018), with observations normalised by what all candidates saw. No gradient passes through the simulator.

Result, over 16 held-out episodes, with 2 workers on 2 busy cores: mean returns of 4,300 after 2 minutes (seed 0), of
1,700 and 3,500 after 1 minute (seeds 1 and 2, 52 and 79 steps); random actions get -276. Cost: a step of the search is
16,000 time steps of the simulator: 0.7 s with 2 workers if the cores are free, 1.1 s in one process.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import jax.random as jr
import numpy as np
import optax

import nondiff as nd


@dataclasses.dataclass(frozen=True)
class Config:
    """What can be chosen."""

    steps: int = 1_000
    """Of the search, if the minutes last."""
    minutes: float = 2.0
    """Training ends then."""
    directions: int = 8
    """Tried at every step, forward and backward: one episode each."""
    used: int = 4
    """Of them, the best."""
    rate: float = 0.02
    """Size of a step."""
    sigma: float = 0.03
    """Size of the noise."""
    time_steps: int = 1_000
    """Of a training episode."""
    held_out: int = 16
    """Whole episodes, of other seeds, that measure the result."""
    picture: str = ""
    """Write a picture of the result to this file."""
    seed: int = 0
    """Of noise and episodes."""


def policy(params: Any, observation: Any) -> Any:
    return params @ observation


def make(config: Config) -> nd.Experiment:
    problem = nd.Gym("HalfCheetah-v5", policy, params=np.zeros((6, 17), np.float32), steps=config.time_steps)
    trainer = nd.ARS(
        optax.sgd(config.rate),
        sigma=config.sigma,
        population=2 * config.directions,
        elites=config.used / config.directions,
    )

    def report(result: nd.Result) -> dict[str, float | str]:
        trained, random = returns(config, result), random_returns(config)
        metrics = {
            "curve": ", ".join(f"{-row['loss']:.0f} at step {row['step']}" for row in spread(result.history)),
            "random_return": random.mean(),
            "trained_return": trained.mean(),
            "trained_return_std": trained.std(),
            "gain": trained.mean() - random.mean(),
            "environment_steps": result.evaluations * config.time_steps,
            "train_seconds": result.seconds,
        }
        if config.picture:
            draw(config, result, trained, random)
        return metrics

    return nd.Experiment(
        problem,
        trainer,
        config.steps,
        stop=[nd.WallClock(minutes=config.minutes)],
        report=report,
    )


def returns(config: Config, result: nd.Result) -> np.ndarray:
    """Of the trained policy, with the observations' statistics as training left them."""
    n, params = config.held_out, np.asarray(result.params)
    whole = nd.Gym("HalfCheetah-v5", policy, params=params)
    batch = whole.batch(result.state.problem, key=jr.key(0))
    losses, _ = whole.losses(np.repeat(params[None], n, 0), batch, keys=jr.split(jr.key(2**31), n))
    return -losses


def random_returns(config: Config) -> np.ndarray:
    """Of actions drawn from the whole space."""
    env, found = gymnasium.make("HalfCheetah-v5"), np.zeros(config.held_out)
    for i in range(config.held_out):
        env.reset(seed=i)
        env.action_space.seed(i)
        for _ in range(1_000):
            _, reward, _, _, _ = env.step(env.action_space.sample())
            found[i] += float(reward)
    return found


def spread(history: Sequence[Mapping[str, Any]], n: int = 8) -> list[Mapping[str, Any]]:
    """Some rows from the first to the last one."""
    rows = np.linspace(0, len(history) - 1, min(n, len(history))).round().astype(int)
    return [history[i] for i in rows]


def draw(config: Config, result: nd.Result, trained: np.ndarray, random: np.ndarray) -> None:
    """The candidates on the way, and what came of it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.4), layout="constrained")
    axes = figure.subplots()
    times = [row["step"] * 2 * config.directions * config.time_steps / 1e6 for row in result.history]
    axes.plot(times, [-row["loss"] for row in result.history], lw=1, color="#8aa4c8", label="candidates, mean")
    whole = f"mean of {config.held_out} held-out episodes"
    axes.axhline(trained.mean(), color="#1a7f37", lw=1.2, label=f"trained policy, {whole}: {trained.mean():,.0f}")
    axes.axhline(random.mean(), color="#555555", ls="--", lw=1, label=f"random actions: {random.mean():,.0f}")
    axes.set(xlabel="million time steps of the simulator", ylabel="return of an episode")
    axes.set_title(f"HalfCheetah-v5, a linear policy, ARS: {result.seconds / 60:.1f} minutes", fontsize=9)
    axes.legend(fontsize=8, loc="center right")
    figure.savefig(config.picture, dpi=120)
