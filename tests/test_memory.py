"""A population is a recipe: its size does not show in memory; and a fit that is over is forgotten."""

import gc
import subprocess
import sys
import weakref
from typing import Any

import jax.numpy as jnp
import jax.random as jr
import optax
import pytest

import nondiff as nd
from nondiff.core.compiled import STEPS, compiled
from nondiff.testing import count_compilations

CODE = """
import resource, sys
import equinox as eqx, jax, jax.numpy as jnp, jax.random as jr, optax
import nondiff as nd

jnp.zeros(1).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
params, static = eqx.partition(eqx.nn.MLP(784, 10, 720, 2, key=jr.key(0)), eqx.is_inexact_array)
assert sum(x.size for x in jax.tree.leaves(params)) > 1_090_000

def loss(params, batch, key):
    logits = jax.vmap(eqx.combine(params, static))(batch[0])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])

data = jr.normal(jr.key(1), (128, 784)), jr.randint(jr.key(2), (128,), 0, 10)
trainer = nd.OpenES(optax.adam(0.01), sigma=0.05, population=1024)
result = nd.fit(nd.Supervised(loss, data, params=params), trainer, steps=1, key=jr.key(0))
assert result.evaluations == 1024
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20)
"""


@pytest.mark.slow
def test_open_es_on_a_million_parameters() -> None:
    """1.1 M parameters, population 1,024, batch 128: at most 1.5 GB above import; the points alone would be 4.6 GB."""
    out = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    print(f"peak resident memory above import: {float(out.stdout):.2f} GiB")
    assert float(out.stdout) <= 1.4


def test_a_fit_that_is_over_is_forgotten() -> None:
    """Problem, function and program are gone when as many others have followed as are kept."""
    trainer = nd.OpenES(optax.sgd(0.1), sigma=0.1, population=4)

    def fitted(target: float) -> Any:
        def loss(x: Any) -> Any:
            return jnp.sum((x - target) ** 2)

        nd.fit(nd.BlackBox(loss, jnp.zeros(2)), trainer, steps=2, key=jr.key(0))
        return weakref.ref(loss)

    functions = [fitted(float(i)) for i in range(STEPS + 2)]
    gc.collect()
    assert [f() is None for f in functions] == [True] * 2 + [False] * STEPS


def test_programs_are_found_again_and_the_oldest_is_made_again() -> None:
    made: list[str] = []

    def add(x: Any, name: str) -> Any:
        made.append(name)
        return x + 1, name

    call = compiled(add, kept=STEPS)
    for _ in range(2):
        assert [call(jnp.ones(()), str(i))[1] for i in range(STEPS)] == list(map(str, range(STEPS)))
    assert len(made) == STEPS
    call(jnp.ones(()), "one more")
    call(jnp.ones(()), "0")
    assert made[STEPS:] == ["one more", "0"]


def test_numbers_that_are_equal_and_of_another_kind_are_not_the_same() -> None:
    call = compiled(lambda x, n: x + n)
    assert [call(jnp.ones((), jnp.int32), n).dtype for n in (1, 1.0)] == [jnp.int32, jnp.float32]


def test_what_may_be_overwritten_is_all_but_the_first_argument() -> None:
    call = compiled(lambda a, b: (a + b["x"], b["n"]), donate=True)
    a, b = jnp.ones(3), jnp.ones(3)
    assert call(a, {"x": b, "n": 4})[1] == 4
    assert b.is_deleted() and not a.is_deleted()


def test_an_equal_fit_compiles_nothing() -> None:
    problem = nd.BlackBox(lambda x: jnp.sum(x**2), jnp.zeros(2))
    trainer = nd.OpenES(optax.sgd(0.1), sigma=0.1, population=4)
    first = nd.fit(problem, trainer, steps=2, key=jr.key(0))
    with count_compilations() as made:
        again = nd.fit(problem, trainer, steps=2, key=jr.key(0))
    assert not made and jnp.array_equal(first.params, again.params)


def test_a_step_of_many_parts_on_the_host_compiles_once() -> None:
    """Their programs are more than are kept of whole steps."""
    names = [f"x{i}" for i in range(STEPS + 2)]
    parts: dict[str, nd.AbstractTrainer] = {
        name: nd.OpenES(optax.sgd(0.01 * i), sigma=0.1, population=2) for i, name in enumerate(names, 1)
    }
    trainer = nd.Split({**parts, "host": nd.CMAES(0.5)}, {**{name: name for name in names}, "y": "host"})
    problem = nd.BlackBox(lambda p: float(sum(abs(x) for x in p.values())), {**dict.fromkeys(names, 1.0), "y": 1.0})
    first = nd.fit(problem, trainer, steps=2, key=jr.key(0))
    with count_compilations() as made:
        nd.fit(problem, trainer, steps=4, state=first.state)
    assert not made
