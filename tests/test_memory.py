"""A population is a recipe: its size does not show in memory."""

import subprocess
import sys

import pytest

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
