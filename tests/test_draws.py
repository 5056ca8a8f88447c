"""What is drawn of a key: choices with equal chances, children that depend on their own key alone, and domains of
one's own."""

import dataclasses

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import nondiff as nd
from nondiff.core import words
from nondiff.core.domain import AbstractDomain

BEYOND = {1: 10.83, 4: 18.47, 5: 20.52, 6: 22.46}  # chi squared by degrees of freedom: 1 in 1,000 lies there
START = {"x": jnp.zeros((2, 3)), "n": jnp.array([4, 5]), "kind": jnp.array(0)}
DOMAIN = {"x": nd.Real(), "n": nd.Integer(0, 9), "kind": nd.Categorical(5)}
PROBLEM = nd.BlackBox(lambda p: jnp.sum(p["x"] ** 2) + jnp.sum(p["n"]) + p["kind"], START, domain=DOMAIN)


def chi_squared(counts: np.ndarray) -> float:
    expected = counts.sum() / counts.size
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("domain", [nd.Integer(-2, 4), nd.Categorical(7)])
def test_points_of_a_discrete_domain_have_equal_chances(domain: nd.Integer | nd.Categorical) -> None:
    x = jnp.zeros(20_000, int)
    drawn = np.asarray(domain.sample(x, jnp.ones(()), words=words.like(jr.key(0), x)))
    least = domain.ends[0]
    assert chi_squared(np.bincount(drawn - least, minlength=7)) < BEYOND[6]


def test_neighbours_of_a_category_have_equal_chances() -> None:
    x = jnp.full(20_000, 3)
    moved = nd.Categorical(7).neighbour(x, jnp.ones(()), words=words.like(jr.key(1), x))
    counts = np.bincount(np.asarray(moved), minlength=7)
    assert counts[3] == 0 and chi_squared(np.delete(counts, 3)) < BEYOND[5]


def test_parents_of_a_step_have_equal_chances() -> None:
    trainer = nd.Genetic(population=4000, parents=5, elite=0)
    state = nd.init(PROBLEM, trainer, key=jr.key(0)).trainer
    each = trainer.ask(state, key=jr.key(1)).population.each
    first, second = np.asarray(each.first), np.asarray(each.second)
    assert max(chi_squared(np.bincount(x, minlength=5)) for x in (first, second)) < BEYOND[4]
    assert chi_squared(np.bincount((first == second) * 5 + first, minlength=10)[:5]) < BEYOND[4]


def test_a_child_depends_on_its_own_key_alone() -> None:
    """Neither on its place, nor on how many others there are, nor on the keys of these."""
    trainer = nd.Genetic(population=8, elite=1)
    state = nd.init(PROBLEM, trainer, key=jr.key(0)).trainer
    population = trainer.ask(state, key=jr.key(1)).population
    all_of_them = population.take(jnp.arange(8))
    alone = population.take(jnp.array([5]))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[5], b[0]), all_of_them, alone)
    others = population.each.key.at[:5].set(jr.split(jr.key(9), 5))
    changed = dataclasses.replace(population, each=dataclasses.replace(population.each, key=others))
    again = changed.take(jnp.arange(8))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[5:], b[5:]), all_of_them, again)
    assert (again["x"][1:5] != all_of_them["x"][1:5]).all()


def test_a_child_is_one_draw() -> None:
    """The words of a member are drawn once, for all of its leaves, and never for the whole population."""
    drawn, draw = [], words.words

    def seen(key, n):
        drawn.append(n)
        return draw(key, n)

    trainer = nd.Genetic(population=8)
    state = nd.init(PROBLEM, trainer, key=jr.key(0)).trainer
    population = trainer.ask(state, key=jr.key(1)).population
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(words, "words", seen)
        population.take(jnp.arange(8))
    assert drawn == [3 * (6 + 2 + 1)]


class Angle(AbstractDomain):
    def check(self, leaf, name: str) -> None:
        assert jnp.issubdtype(leaf.dtype, jnp.floating), name

    def sample(self, x, scale, *, words):
        return 2 * jnp.pi * _uniform(words)

    def neighbour(self, x, scale, *, words):
        return self.clip(x + 2 * jnp.pi * scale * _normal(words))

    def clip(self, x):
        return jnp.mod(x, 2 * jnp.pi)


_uniform, _normal = words.uniform, words.normal


def test_a_domain_of_ones_own_works_with_genetic() -> None:
    toward = jnp.array([0.1, 6.2, 3.0])
    problem = nd.BlackBox(lambda x: jnp.sum(1 - jnp.cos(x - toward)), jnp.full(3, 3.0), domain=Angle())
    result = nd.fit(problem, nd.Genetic(population=32), steps=100, key=jr.key(0))
    np.testing.assert_allclose(jnp.cos(result.params - toward), 1.0, atol=1e-3)


def test_one_seed_is_one_split_of_the_population_of_programs() -> None:
    """Programs of one island: children of the same parents differ, and the same key makes the same ones."""
    program = nd.Program(nd.Instructions(["v[a] = v[a] + v[b]"], {"v": nd.Cells(["x", "1"])}, "v[0]"), length=6)
    trainer = nd.GeneticProgramming(population=16)
    one, other = program.init(jr.key(0)), program.init(jr.key(1))

    def child(key):
        return trainer._child(one, other, program.domain, key=key)

    keys = jr.split(jr.key(2), 12)
    together = jax.vmap(child)(keys)
    np.testing.assert_array_equal(together.code[7], child(keys[7]).code)
    assert len(np.unique(np.asarray(together.code), axis=0)) > 6
