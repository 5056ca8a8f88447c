"""Eight problems in the manner of PSB2 (Helmuth & Kelly, 2021, "PSB2: The Second Program Synthesis Benchmark Suite",
https://arxiv.org/abs/2106.06086): their texts and ranges, our own generators, and text coded as whole numbers.

Each problem has an instruction set of elementary lines for its types, registers, a length and a budget, which were
chosen by hand. Inputs and the constants of the problem's text stand in registers that stay. The others start from the
inputs in turn, and from 0 where the input is an array. The first operand of a line is a register that may change.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

import nondiff as nd

WHOLE = [
    "r[a] = r[b]",
    "r[a] = r[a] + r[b]",
    "r[a] = r[a] - r[b]",
    "r[a] = r[a] * r[b]",
    "r[a] = r[a] // r[b]",
    "r[a] = r[a] % r[b]",
]
REAL = [
    "v[a] = v[b]",
    "v[a] = v[a] + v[b]",
    "v[a] = v[a] - v[b]",
    "v[a] = v[a] * v[b]",
    "v[a] = v[a] / v[b]",
]
SKIPS = ["skip = r[a] < r[b]", "skip = r[a] == r[b]", "skip = r[a] != r[b]", "skip = r[a] != 0"]
UNTIL = ["again = r[a] < r[b]", "again = r[a] != r[b]"]
COUNTED = ["r[a], again = (r[a] + 1, True) if r[a] + 1 < r[b] else (0, False)"]
"""The end of a loop over places, or so many times."""
LOAD = ["r[a] = x[r[b]]"]
TRUTH = ["r[a] = r[a] and r[b]", "r[a] = r[a] or r[b]", "r[a] = not r[b]"]
FIZZ, BUZZ, FIZZBUZZ = -11, -13, -17
"""The three words, as whole numbers."""
LETTERS = "FT&|"
"""The letters of an expression, coded as their places here."""
MOST = 20
"""Places of the longest array."""


@dataclasses.dataclass(frozen=True)
class Task:
    """A problem of the suite."""

    instructions: nd.Instructions
    length: int
    """Lines of a program."""
    steps: int
    """Lines that it may take."""
    draw: Callable[[np.random.Generator], tuple[Any, ...]]
    """A case's inputs, in the order of the instruction set's; a list where it is an array."""
    answer: Callable[..., tuple[int | float, ...]]
    """What a case's inputs give."""
    pushgp: int
    """Successes of PushGP in 100 runs of 300 generations of 1,000 programs with 200 examples: published figures, as
    https://github.com/jgh9094/GPTP-2025-GP-VS-LLM lists them."""
    near: float = 0.0
    """How far from the answer is right; search asks for a tenth of it."""
    patience: int | None = None
    """After so many steps without a better batch the search begins anew: for a problem with a near miss, such as a sum
    that is divided once."""
    graded: bool = True
    """Does the loss say how far off an answer is? Else only whether it is right."""


def whole(random: np.random.Generator, least: int, most: int) -> int:
    return int(random.integers(least, most + 1))


def array(random: np.random.Generator, least: int, most: int, shortest: int = 1) -> list[int]:
    return random.integers(least, most + 1, whole(random, shortest, MOST)).tolist()


def real(random: np.random.Generator, most: float) -> float:
    """A float of 32 bits."""
    return float(np.float32(random.uniform(0, most)))


def coins(cents: int) -> tuple[int, ...]:
    found = []
    for coin in (25, 10, 5, 1):
        found.append(cents // coin)
        cents %= coin
    return tuple(found)


def pair(random: np.random.Generator) -> tuple[list[int], int]:
    """An array and a target, which two of its elements make, and no other two."""
    while True:
        x = array(random, -10_000, 10_000, shortest=2)
        i, j = sorted(random.choice(len(x), 2, replace=False))
        target = x[i] + x[j]
        if sum(x[k] + x[m] == target for m in range(len(x)) for k in range(m)) == 1:
            return x, target


def the_pair(x: list[int], target: int) -> tuple[int, ...]:
    return next((x[i], x[j]) for j in range(len(x)) for i in range(j) if x[i] + x[j] == target)


def fizz_buzz(n: int) -> int:
    return FIZZBUZZ if n % 15 == 0 else FIZZ if n % 3 == 0 else BUZZ if n % 5 == 0 else n


def snow(hours: int, lies: float, falls: float, melts: float) -> float:
    """Each hour snow falls, and then a part of it melts."""
    for _ in range(hours):
        lies = (lies + falls) * (1 - melts)
    return lies


def sentence(random: np.random.Generator) -> tuple[list[int]]:
    """An expression of 1 to 20 letters, which is 1 to 10 truths."""
    letters = random.integers(0, 2, 2 * whole(random, 1, MOST // 2) - 1)
    letters[1::2] += 2
    return (letters.tolist(),)


def truth(x: list[int]) -> int:
    found = x[0]
    for join, value in zip(x[1::2], x[2::2], strict=True):
        found = found & value if LETTERS[join] == "&" else found | value
    return found


def higher(n: int, m: int) -> float:
    """By counting: for each throw of one die, the lower throws of the other."""
    return sum(min(i - 1, m) for i in range(1, n + 1)) / (n * m)


def registers(inputs: list[str], count: int, constants: list[str], *, real: bool = False) -> nd.Cells:
    """So many, which start from the inputs in turn, and those that stay."""
    return nd.Cells([inputs[i % len(inputs)] for i in range(count)], fixed=[*inputs, *constants], real=real)


TASKS: dict[str, Task] = {
    "coin-sums": Task(
        nd.Instructions(
            [*WHOLE, *SKIPS],
            {"r": registers(["cents"], 5, ["0", "1", "5", "10", "25"])},
            "r[0], r[1], r[2], r[3]",
            operands=(5, 11),
        ),
        length=16,
        steps=16,
        draw=lambda random: (whole(random, 1, 10_000),),
        answer=lambda cents: coins(cents),
        pushgp=17,
    ),
    "dice-game": Task(
        nd.Instructions(
            [*REAL, "skip = v[a] < v[b]"],
            {"v": registers(["n", "m"], 4, ["1"], real=True)},
            "v[0]",
            operands=(4, 7),
        ),
        length=16,
        steps=16,
        draw=lambda random: (whole(random, 1, 1_000), whole(random, 1, 1_000)),
        answer=lambda n, m: (higher(n, m),),
        pushgp=3,
        near=1e-3,
    ),
    "find-pair": Task(
        nd.Instructions(
            [*WHOLE[:3], *SKIPS, *LOAD, "begin", *COUNTED],
            {"r": nd.Cells(6, fixed=["target", "len(x)"]), "x": nd.Memory()},
            "r[0], r[1]",
            operands=(6, 8),
        ),
        length=14,
        steps=3_600,
        draw=pair,
        answer=the_pair,
        pushgp=19,
        graded=False,
    ),
    "fizz-buzz": Task(
        nd.Instructions(
            [*WHOLE, *SKIPS],
            {"r": registers(["n"], 3, ["0", "3", "5", str(FIZZ), str(BUZZ), str(FIZZBUZZ)])},
            "r[0]",
            operands=(3, 10),
        ),
        length=16,
        steps=16,
        draw=lambda random: (whole(random, 1, 1_000_000),),
        answer=lambda n: (fizz_buzz(n),),
        pushgp=82,
        graded=False,
    ),
    "fuel-cost": Task(
        nd.Instructions(
            [*WHOLE, *LOAD, "begin", *COUNTED],
            {"r": nd.Cells(3, fixed=["len(x)", "0", "1", "2", "3"]), "x": nd.Memory()},
            "r[0]",
            operands=(3, 8),
        ),
        length=10,
        steps=220,
        draw=lambda random: (array(random, 6, 100_000),),
        answer=lambda x: (sum(v // 3 - 2 for v in x),),
        pushgp=56,
        patience=30,
    ),
    "gcd": Task(
        nd.Instructions(
            [*WHOLE, "r[a], r[b] = r[b], r[a]", *SKIPS, "begin", *UNTIL],
            {"r": registers(["x", "y"], 3, ["0", "1"])},
            "r[0]",
            operands=(3, 7),
        ),
        length=10,
        steps=160,
        draw=lambda random: (whole(random, 1, 1_000_000), whole(random, 1, 1_000_000)),
        answer=lambda x, y: (math.gcd(x, y),),
        pushgp=14,
    ),
    "snow-day": Task(
        nd.Instructions(
            [*REAL, *SKIPS[:2], "begin", "leave = r[a] == r[b]", *COUNTED],
            {
                "v": registers(["lies", "falls", "melts"], 4, ["1"], real=True),
                "r": nd.Cells(1, fixed=["hours", "0"]),
            },
            "v[0]",
            operands=(4, 8),
        ),
        length=14,
        steps=200,
        draw=lambda random: (real(random, 20), real(random, 10), real(random, 1), whole(random, 0, 20)),
        answer=lambda lies, falls, melts, hours: (snow(hours, lies, falls, melts),),
        pushgp=12,
        near=1e-3,
    ),
    "solve-boolean": Task(
        nd.Instructions(
            [*WHOLE[:3], *TRUTH, *SKIPS, *LOAD, "begin", *COUNTED],
            {"r": nd.Cells(4, fixed=["len(x)", "0", "1", "2", "3"]), "x": nd.Memory()},
            "r[0]",
            operands=(4, 9),
        ),
        length=16,
        steps=320,
        draw=sentence,
        answer=lambda x: (truth(x),),
        pushgp=6,
        graded=False,
    ),
}


def cases(task: Task, random: np.random.Generator, count: int) -> tuple[dict[str, Any], np.ndarray]:
    """Inputs by name, an array as a pair with its lengths, and answers `[cases, outputs]`."""
    drawn = [task.draw(random) for _ in range(count)]
    inputs: dict[str, Any] = {}
    for name, values in zip(task.instructions.inputs, zip(*drawn, strict=True), strict=True):
        if isinstance(values[0], list):
            padded = np.array([v + [0] * (MOST - len(v)) for v in values], np.int32)
            inputs[name] = padded, np.array([len(v) for v in values], np.int32)
        else:
            inputs[name] = np.array(values, np.float32 if isinstance(values[0], float) else np.int32)
    answers = np.array([task.answer(*case) for case in drawn])
    return inputs, answers.astype(np.int32 if np.issubdtype(answers.dtype, np.integer) else np.float32)
