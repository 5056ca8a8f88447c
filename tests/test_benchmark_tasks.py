"""What benchmarks ask and count, before anything is measured: right answers, and every evaluation once."""

import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

BENCHMARKS = pathlib.Path(__file__).parents[1] / "experiments" / "benchmarks"


def test_tasks_of_neural_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs, their answers to what is drawn, and no image both to train and to test."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from neural_programs_tasks import METHODS, TASKS, Task, cases_of  # pyright: ignore[reportMissingImports]

    said = {"sum2": 15, "sum3": 18, "sum4": 20, "mult2": 56, "mod2": 7, "add-sub": 12, "sort3": [3, 7, 8]}
    symbols = np.array([7, 8, 3, 2])
    for name, answer in said.items():
        assert np.all(TASKS[name].program(symbols[: TASKS[name].parts]) == np.asarray(answer))
    assert [name for name in TASKS if not METHODS["Tabulate"].fits(TASKS[name])] == ["hwf", "sudoku"]
    for task in (task for task in TASKS.values() if isinstance(task, Task)):
        train, test = cases_of(task, 0, 40, 20)
        answers = train.answers(task.program)
        assert answers.shape == (40, *task.out.shape) and np.isfinite(answers).all()
        assert train.symbols.shape == (40, task.parts) and test.symbols.shape == (20, task.parts)
        assert np.array_equal(train.images.kinds[train.chosen], train.symbols)
        seen = {image.tobytes() for image in train.images.pixels if image.any()}
        assert len(seen) == 5_600 and not seen & {image.tobytes() for image in test.images.pixels if image.any()}


def test_evaluations_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the first value at or below each target, in whatever portions they are made; NaN is none."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from blackbox_functions import Function, Run, area, made  # pyright: ignore[reportMissingImports]

    square = Function(lambda rows: (rows**2).sum(1), np.full(1, -5.0), np.full(1, 5.0))
    points = np.array([[4.0], [np.nan], [2.0], [1.0], [0.5], [0.0]])
    for portion in (1, 4, 6):
        run = Run(square, (10.0, 4.0, 1.0, 0.1), budget=5, seed=0)
        for i in range(0, len(points), portion):
            run(points[i : i + portion])
        assert run.reached == [3, 3, 4] and run.spent == 5 and run.done
        assert area(run) == pytest.approx((3 - np.log(3 * 3 * 4) / np.log(5)) / 4)
    for name in ("sphere", "ellipsoid", "rotated", "rosenbrock", "rastrigin"):
        function = made(name, 4, seed=1)
        optimum = np.random.default_rng([4, 1]).uniform(-3, 3, 4)
        assert function.values(optimum[None]) == 0
        assert np.all(function.values(optimum + 0.1 * np.eye(4)) > 0)


def test_problems_of_psb2(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the generators draw, against answers of another kind, and the losses of what is right and nearly so."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import programs_psb2 as psb2  # pyright: ignore[reportMissingImports]
    import programs_psb2_tasks as tasks  # pyright: ignore[reportMissingImports]

    def all_of(name: str) -> list[tuple[tuple[Any, ...], Any]]:
        random = np.random.default_rng(0)
        drawn = [tasks.TASKS[name].draw(random) for _ in range(300)]
        return [(case, tasks.TASKS[name].answer(*case)) for case in drawn]

    for (cents,), (*counts,) in all_of("coin-sums"):
        assert np.dot(counts, [25, 10, 5, 1]) == cents and np.all(np.array(counts[1:]) <= [2, 1, 4])
    for (n, m), (chance,) in all_of("dice-game")[:20]:
        throws = np.arange(1, n + 1)[:, None] > np.arange(1, m + 1)
        assert chance == pytest.approx(throws.mean())
    for (x, target), (first, second) in all_of("find-pair"):
        assert 2 <= len(x) <= 20 and first + second == target
        i = x.index(first)
        assert second in x[i + 1 :]
    words = {"Fizz": tasks.FIZZ, "Buzz": tasks.BUZZ, "FizzBuzz": tasks.FIZZBUZZ}
    for (n,), (said,) in all_of("fizz-buzz"):
        assert said == words.get("Fizz" * (n % 3 == 0) + "Buzz" * (n % 5 == 0), n)
    for (x,), (fuel,) in all_of("fuel-cost"):
        assert 1 <= len(x) <= 20 and min(x) >= 6 and fuel == np.sum(np.floor_divide(x, 3)) - 2 * len(x)
    for (x, y), (divisor,) in all_of("gcd"):
        assert divisor == np.gcd(x, y)
    for (lies, falls, melts, hours), (after,) in all_of("snow-day"):
        kept = (1 - melts) ** np.arange(hours + 1)
        assert after == pytest.approx(lies * kept[-1] + falls * kept[1:].sum())
    for (x,), (truth,) in all_of("solve-boolean"):
        text = "".join(tasks.LETTERS[i] for i in x).replace("T", "True").replace("F", "False")
        nested = text.replace("&", ") and ").replace("|", ") or ")
        assert truth == eval("(" * (len(x) // 2) + nested)

    task = tasks.TASKS["snow-day"]
    inputs, answers = tasks.cases(task, np.random.default_rng(0), 4)
    assert answers.shape == (4, 1) and inputs["hours"].dtype == np.int32
    halted = jnp.array([True, True, True, False])
    ran = psb2.nd.Outcome(answers[:, 0] + jnp.array([0, 5e-4, 1, 0]), halted, jnp.ones(4, int))
    found = np.asarray(psb2.losses(task, ran, answers, 1e-3))
    assert found[:2].tolist() == [0, 0] and 0 < found[2] < psb2.ENDLESS == found[3]
    found = psb2.losses(task, ran, answers, 1e-4)
    assert found[1] > 0
