"""Restarts: how often, how large, from where, within which budget; and what they find."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from tiers import slow_but

import nondiff as nd
from nondiff.testing.common import count_compilations
from nondiff.trainers.schedules import Try

SHIFT = np.random.default_rng(0).uniform(-3, 3, 5)


def rastrigin(x: np.ndarray) -> np.ndarray:
    z = x - SHIFT
    return (z**2 + 10 * (1 - np.cos(2 * np.pi * z))).sum(-1)


def run(trainer: nd.AbstractTrainer, f: Any = rastrigin, *, seed: int = 0, steps: int = 5_000, **options: Any) -> Any:
    problem = nd.BlackBox(f, np.full(5, 4.0), vectorized=True, domain=nd.Real(-5, 5))
    return nd.fit(problem, trainer, steps=steps, key=jr.key(seed), log_every=1, **options)


def tries(schedule: nd.AbstractSchedule, made: list[int]) -> list[tuple[Try, bool]]:
    """Of a search whose tries make so many evaluations."""
    found, spent, last, large = [], [0, 0], 0, 0
    for n in made:
        found.append(schedule(large, (spent[1], spent[0]), last, np.array([0.5, 0.5])))
        is_large = found[-1][1]
        spent[is_large] += n
        large, last = large + is_large, n if is_large else last
    return found


def test_schedules() -> None:
    assert [t.population for t, _ in tries(nd.Same(), [1] * 3)] == [1, 1, 1]
    assert [t.population for t, _ in tries(nd.IPOP(), [1] * 4)] == [1, 2, 4, 8]
    assert [t.population for t, _ in tries(nd.IPOP(3), [1] * 3)] == [1, 3, 9]
    found = tries(nd.BIPOP(), [100, 60, 60, 400, 50, 500, 900])
    # Small ones until they have used more than the large ones: 60 + 60 > 100, then 120 + 50 + 500 > 500.
    assert [is_large for _, is_large in found] == [True, False, False, True, False, False, True]
    assert [t.population for t, is_large in found if is_large] == [1, 2, 4]
    small = [t for t, is_large in found if not is_large]
    assert all(t.sigma == pytest.approx(0.1) and t.population == 1 for t in small)
    assert [t.most for t in small] == [50, 50, 200, 200]


@pytest.mark.slow
def test_populations_double_and_the_optimum_among_many_is_found() -> None:
    sizes: list[int] = []

    def counted(x: np.ndarray) -> np.ndarray:
        sizes.append(len(x))
        return rastrigin(x)

    trainer = nd.Best(nd.Restart(nd.CMAES(2.0)))
    problem = nd.BlackBox(counted, np.full(5, 4.0), vectorized=True)
    stop = [nd.Target(1e-8, "best_ever")]
    result = nd.fit(problem, trainer, steps=5_000, key=jr.key(0), evaluator=nd.Host(10_000), stop=stop, log_every=1)
    assert result.reason == "the target 1e-08 was reached"
    np.testing.assert_allclose(result.params, SHIFT, atol=1e-4)
    seen = list(dict.fromkeys(sizes[1:]))  # the first call is the probe's
    assert seen == [8 * 2**i for i in range(len(seen))] and len(seen) > 1
    by_step = [(row["tries"], row["evaluations"]) for row in result.history]
    assert all(evaluations == 8 * 2 ** (n - 1) for n, evaluations in by_step)


@pytest.mark.parametrize("most", slow_but([1_500, 2_222], 2_222))
def test_a_budget_is_never_exceeded(most: int) -> None:
    calls: list[int] = []
    trainer = nd.Restart(nd.CMAES(2.0, tolfun=1.0))
    count = lambda x: calls.append(len(x)) or rastrigin(x)  # noqa: E731
    result = nd.minimise(count, np.full(5, 4.0), domain=nd.Real(-5, 5), trainer=trainer, evaluations=most,
                         vectorized=True)  # fmt: skip
    made = sum(calls) - 1
    last = result.history[-1]["evaluations"]
    assert result.reason == f"the budget of {most} evaluations was spent"
    assert made == result.evaluations <= most < made + 2 * last
    assert result.history[-1]["tries"] > 1


def test_tries_end_and_params_are_those_of_the_last() -> None:
    result = run(nd.Restart(nd.CMAES(2.0), tries=2))
    assert result.reason == "all 2 tries have come to their ends" and result.history[-1]["tries"] == 2
    z = (result.params - SHIFT + 0.5) % 1.0 - 0.5  # near some valley's bottom
    assert np.abs(z).max() < 0.1
    again = nd.fit(nd.BlackBox(rastrigin, np.full(5, 4.0), vectorized=True, domain=nd.Real(-5, 5)),
                   nd.Restart(nd.CMAES(2.0), tries=2), steps=10_000, state=result.state)  # fmt: skip
    assert again.evaluations == 0 and again.reason == result.reason


def test_on_ends_a_trainer_that_never_does() -> None:
    """A flat loss never gets better, so a try has one step and `on` more; and each starts elsewhere."""
    firsts: list[np.ndarray] = []
    trainer = nd.Restart(
        nd.OpenES(optax.sgd(0.1), sigma=1e-3, population=4), on=nd.NoBetter(3), tries=4, schedule=nd.Same()
    )
    result = run(trainer, lambda x: firsts.append(x.mean(0)) or np.zeros(len(x)))
    assert result.steps == 4 * 4 and result.reason == "all 4 tries have come to their ends"
    starts = np.array(firsts[1:][::4])
    assert np.allclose(starts[0], 4.0, atol=0.01) and np.abs(np.diff(starts, axis=0)).max(1).min() > 0.5
    assert np.all(np.abs(starts) <= 5.01)


def test_where_a_try_begins_may_be_given() -> None:
    points = iter(np.arange(1.0, 9.0))
    firsts: list[np.ndarray] = []
    trainer = nd.Restart(nd.CMAES(1e-6, tolfun=1e9), tries=3, begin=lambda key: np.full(5, next(points)))
    run(trainer, lambda x: firsts.append(x.mean(0)) or rastrigin(x))
    assert sorted({round(float(x[0])) for x in firsts[1:]}) == [1, 2, 4]


def test_a_run_cut_at_any_step_is_the_whole_one(tmp_path) -> None:
    problem = nd.BlackBox(rastrigin, np.full(5, 4.0), vectorized=True, domain=nd.Real(-5, 5))
    trainer = nd.Best(nd.Restart(nd.CMAES(2.0, tolfun=1.0), schedule=nd.BIPOP()))
    whole = nd.fit(problem, trainer, steps=150, key=jr.key(1), log_every=1)
    assert whole.history[60]["tries"] < whole.history[-1]["tries"], "the cut should lie between tries"
    keeper = nd.Checkpointer(tmp_path, every=1)
    nd.fit(problem, trainer, steps=60, key=jr.key(1), callbacks=[keeper])
    restored = keeper.restore(nd.init(problem, trainer, key=jr.key(1)))
    assert restored is not None
    rest = nd.fit(problem, trainer, steps=150, state=restored, log_every=1)
    np.testing.assert_array_equal(whole.params, rest.params)
    assert whole.history[-1] == rest.history[-1] and rest.evaluations < whole.evaluations


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nd.Restart(nd.OpenES(optax.sgd(0.1), sigma=0.1, population=4)), r"`OpenES` never ends by itself"),
        (
            lambda: nd.Restart(nd.Backprop(optax.sgd(0.1)), on=nd.NoBetter(5)),
            r"`Backprop` has no `population`; use `Same\(\)`",
        ),
        (lambda: nd.Restart(nd.CMAES(), tries=0), r"`Restart\(tries=0\)`: expected a whole number of at least 1"),
        (
            lambda: nd.Restart(nd.CMAES(), on=nd.NoBetter(0)),
            r"`NoBetter\(steps=0\)`: expected a whole number of at least 1",
        ),
        (lambda: nd.Restart(nd.CMAES(), on=3), r"`Restart\(on=3\)`: expected .*`NoBetter\(100\)`"),  # pyright: ignore
        (lambda: nd.Restart(nd.CMAES(), steps=0), r"`Restart\(steps=0\)`: expected a whole number of at least 1"),
        (lambda: nd.Restart("CMAES"), r"was given 'CMAES' where a trainer belongs"),  # pyright: ignore
        (lambda: nd.IPOP(1), r"`IPOP\(factor=1\)`: expected a number above 1"),
        (lambda: nd.BIPOP(float("nan")), r"`BIPOP\(factor=nan\)`: expected a number above 1"),
    ],
)
def test_what_cannot_be_built(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.slow
def test_any_trainer_that_jax_traces() -> None:
    """The state's shapes grow with the population here."""
    problem = nd.BlackBox(lambda x: jnp.sum((x - 1.0) ** 2), jnp.zeros(3))
    trainer = nd.Restart(nd.Genetic(population=8), on=nd.NoBetter(5), tries=3)
    result = nd.fit(problem, trainer, steps=200, key=jr.key(0), log_every=1)
    assert {row["evaluations"] for row in result.history} == {8, 16, 32}
    assert result.reason == "all 3 tries have come to their ends"


def given_up(losses: np.ndarray, good: float, window: int, least: float, errors: float) -> tuple[int, float]:
    """The rule of `Stall` once more: the step, 0 for never, and the level there or at the end."""
    before, level = None, np.inf
    for end in range(window, len(losses) + 1, window):
        now = losses[end - window : end]
        level = now.mean()
        if before is not None:
            error = np.sqrt((before.var(ddof=1) + now.var(ddof=1)) / window)
            if level > good and before.mean() - level + errors * error < least:
                return end, level
        before = now
    return 0, level


@pytest.mark.parametrize("best", [False, True])
def test_stall_is_the_rule(best: bool) -> None:
    on = nd.Stall(0.3, window=20, least=0.05, errors=1, best=best)

    def run(losses: Any) -> Any:
        def body(state: Any, loss: Any) -> Any:
            state = on.update(state, *((-loss, loss) if best else (loss, jnp.zeros(()))))
            return state, (on.over(state), on.level(state))

        return jax.lax.scan(body, jax.tree.map(jnp.asarray, on.init()), losses)[1]

    random, steps = np.random.default_rng(0), np.arange(200)
    slope, floor, noise = (random.uniform(0, most, (60, 1)) for most in (0.01, 0.6, 0.3))
    curves = np.maximum(0.9 - slope * steps, floor) + noise * random.normal(size=(60, 200))
    over, level = jax.device_get(jax.jit(jax.vmap(run))(curves.astype(np.float32)))
    found = [given_up(curve, 0.3, 20, 0.05, 1) for curve in curves]
    ends = [end for end, _ in found]
    assert 10 < np.count_nonzero(ends) < 50 and len(set(ends)) > 5, "the curves are of all kinds"
    for each, levels, (end, last) in zip(over, level, found, strict=True):
        assert (np.argmax(each) + 1 if each.any() else 0) == end
        assert levels[end - 1] == pytest.approx(last, rel=1e-5)


PLATEAU = 0.5


def flat(x: Any, batch: Any, key: Any) -> Any:
    """A plateau above 0; below it a slope."""
    return jnp.where(x > 0, PLATEAU, (x + 2.0) ** 2 / 16)


def stalling(begin: Any, tries: int = 3, steps: int | None = None, on: nd.Stall | None = None) -> nd.Restart:
    on = nd.Stall(window=10) if on is None else on
    return nd.Restart(nd.Backprop(optax.sgd(0.5)), on=on, schedule=nd.Same(), tries=tries, begin=begin, steps=steps)


def trap(loss: Any = flat) -> nd.AbstractProblem:
    return nd.Supervised(loss, jnp.zeros(1), params=jnp.ones(()))


def test_a_trap_is_left_after_two_windows() -> None:
    trainer = stalling(lambda key: -jnp.ones(()), steps=30)
    assert trainer.traceable
    result = nd.fit(trap(), trainer, steps=1_000, key=jr.key(0), log_every=1)
    assert [row["tries"] for row in result.history] == [1] * 20 + [2] * 30
    assert result.reason == "a try has done its 30 steps" and result.evaluations == result.steps == 50
    losses = [row["loss"] for row in result.history]
    # (x + 2)^2 / 16 from -1: every step takes a sixteenth of x + 2 away.
    np.testing.assert_allclose(losses, [PLATEAU] * 20 + [(15 / 16) ** (2 * i) / 16 for i in range(30)], rtol=1e-5)
    assert result.params == pytest.approx((15 / 16) ** 30 - 2, rel=1e-5)


def test_a_plateau_that_is_good_is_kept() -> None:
    result = nd.fit(trap(), stalling(None, on=nd.Stall(PLATEAU, window=10)), steps=100, key=jr.key(0))
    assert result.history[-1]["tries"] == 1 and result.steps == 100


def test_a_first_try_is_the_run_without() -> None:
    def noisy(x: Any, batch: Any, key: Any) -> Any:
        return (x - 3.0) ** 2 + jr.normal(key)

    trainer = stalling(None, on=nd.Stall(100, window=10))
    plain, result = (nd.fit(trap(noisy), t, steps=40, key=jr.key(0), log_every=1) for t in (trainer.inner, trainer))
    losses = [[row["loss"] for row in each.history] for each in (plain, result)]
    np.testing.assert_allclose(*losses, rtol=1e-6)
    assert result.params == pytest.approx(plain.params, rel=1e-6) and result.history[-1]["tries"] == 1


def test_the_best_try_is_deployed() -> None:
    """The last is not the best: each try stands still where it begins."""

    def still(x: Any, batch: Any, key: Any) -> Any:
        return 0.3 + jax.lax.stop_gradient(x)

    trainer = stalling(lambda key: jr.uniform(key, ()), tries=6)
    result = nd.fit(trap(still), trainer, steps=1_000, key=jr.key(0), log_every=1)
    assert result.steps == 6 * 20 and result.reason == "all 6 tries have come to their ends"
    begins = np.array([row["loss"] for row in result.history])[::20] - 0.3
    assert len(np.unique(begins)) == 6 and np.argmin(begins) not in (0, 5)
    assert result.params == pytest.approx(begins.min(), rel=1e-5)
    # Between tries, too: in the first window of a new one an earlier one is deployed.
    lowest = [float(nd.fit(trap(still), trainer, steps=20 * n + 5, key=jr.key(0)).params) for n in range(6)]
    np.testing.assert_allclose(lowest, [begins[0], *np.minimum.accumulate(begins)[:-1]], rtol=1e-5)


def test_tries_are_compiled_once() -> None:
    problem, trainer = trap(), stalling(lambda key: jr.uniform(key, ()))
    step = jax.jit(lambda state: nd.step(problem, trainer, nd.Vmap(), state))
    state, _ = step(nd.init(problem, trainer, key=jr.key(0)))
    state, metrics = step(state)
    with count_compilations() as compiled:
        for _ in range(40):
            state, metrics = step(state)
    assert int(metrics["tries"]) == 3 and not compiled


@pytest.mark.parametrize("cut", [25, 33])
def test_a_run_cut_in_the_middle_of_a_window_is_the_whole_one(tmp_path: Any, cut: int) -> None:
    def noisy(x: Any, batch: Any, key: Any) -> Any:
        return flat(x, batch, key) + 0.02 * jr.normal(key)

    trainer, problem = stalling(lambda key: jr.uniform(key, ()), tries=4), trap(noisy)
    whole = nd.fit(problem, trainer, steps=70, key=jr.key(1), log_every=1)
    assert 1 < whole.history[cut]["tries"] < whole.history[-1]["tries"], "the cut lies in the second try"
    keeper = nd.Checkpointer(tmp_path, every=1)
    nd.fit(problem, trainer, steps=cut, key=jr.key(1), callbacks=[keeper])
    restored = keeper.restore(nd.init(problem, trainer, key=jr.key(1)))
    assert restored is not None
    rest = nd.fit(problem, trainer, steps=70, state=restored, log_every=1)
    assert rest.evaluations == 70 - cut and rest.history == whole.history[cut:]
    same = jax.tree.map(lambda a, b: np.array_equal(a, b), whole.state.trainer, rest.state.trainer)
    assert jax.tree.all(same) and rest.params == whole.params


@pytest.mark.slow
def test_stall_where_the_population_grows() -> None:
    """On the host, since shapes change: the mean of a step's losses is what counts, not the best."""
    problem = nd.BlackBox(lambda x: jnp.abs(x[0]), jnp.zeros(2), domain=nd.Real(-1.0, 1.0))
    search = nd.OpenES(optax.sgd(1e-6), sigma=0.2, population=400, antithetic=False)
    trainer = nd.Restart(search, on=nd.Stall(0.12, window=2, least=0.05), tries=3)
    assert not trainer.traceable
    result = nd.fit(problem, trainer, steps=50, key=jr.key(0), log_every=1)
    # The mean of |N(0, 0.2^2)| is 0.16, the best next to 0; a population of 400 knows it within 0.006.
    assert [row["evaluations"] for row in result.history] == [400] * 4 + [800] * 4 + [1_600] * 4
