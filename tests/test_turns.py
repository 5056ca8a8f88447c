"""Parts that take turns: as many branches as there are turns, and in each of them what the host computes."""

import dataclasses
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from tiers import slow_but

import nondiff as nd
from nondiff.core.query import map_queries

pytestmark = pytest.mark.usefixtures("compiled_quickly", "unchecked")
DESCENT = nd.Backprop(optax.sgd(0.1))


class Remembers(nd.AbstractProblem):
    """Absorbs what it was told, so that order and number matter."""

    names: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    traceable = True

    def init(self, *, key: Any) -> Any:
        return {name: jnp.ones(2) for name in self.names}

    def init_state(self, *, key: Any) -> Any:
        return jnp.zeros(())

    def batch(self, state: Any, *, key: Any) -> Any:
        return state

    def loss(self, params: Any, batch: Any, *, key: Any) -> Any:
        return sum(i * jnp.sum(p**2) for i, p in enumerate(params.values(), 1)), jnp.sum(params[self.names[0]])

    def absorb(self, state: Any, aux: Any, batch: Any) -> Any:
        return 0.5 * state + jnp.sum(aux) + aux.shape[0]


class EveryOther(nd.AbstractTrainer):
    """Its query has a mind of its own: asked at every second of the steps that it sees."""

    inner: nd.AbstractTrainer
    traceable = True

    def init(self, params: Any, domain: Any, *, key: Any) -> Any:
        return self.inner.init(params, domain, key=key), jnp.zeros((), jnp.int32)

    def ask(self, state: Any, *, key: Any) -> Any:
        due = state[1] % 2 == 0
        return map_queries(lambda q: dataclasses.replace(q, due=due), self.inner.ask(state[0], key=key))

    def tell(self, state: Any, query: Any, answer: Any, *, key: Any) -> Any:
        if answer is None:
            return (state[0], state[1] + 1), {}
        moved, _ = self.inner.tell(state[0], query, answer, key=key)
        inner = jax.tree.map(lambda new, old: jnp.where(state[1] % 2 == 0, new, old), moved, state[0])
        return (inner, state[1] + 1), {}

    def params(self, state: Any) -> Any:
        return self.inner.params(state[0])


def turns(*names: str, steps: Any = None, **others: nd.AbstractTrainer) -> nd.Alternate:
    parts = dict.fromkeys(names, DESCENT) | others
    labels = {x: name for name in parts for x in name.split("_")}
    return nd.Alternate(parts, labels, steps=steps or dict.fromkeys(parts, 1))


SAME = nd.Split(
    {
        "left": nd.Alternate({"p": DESCENT, "q": DESCENT}, {"a": "p", "b": "q"}, steps={"p": 1, "q": 2}),
        "right": nd.Alternate(
            {"p": DESCENT, "q": DESCENT, "r": DESCENT}, {"c": "p", "d": "q", "e": "r"}, steps={"p": 1, "q": 1, "r": 1}
        ),
    },
    {"a": "left", "b": "left", "c": "right", "d": "right", "e": "right"},
)
TRAINERS: dict[str, tuple[nd.AbstractTrainer, str, int]] = {
    "five": (turns("a", "b", "c", "d", "e"), "abcde", 5),
    "unequal": (turns("a", "b", "c", steps={"a": 2, "b": 1, "c": 3}), "abc", 3),
    "equal names side by side": (SAME, "abcde", 2 * 3),
    "one in another": (turns("a", b_c=turns("b", "c", steps={"b": 1, "c": 2})), "abc", 1 + 2),
    "beside one in a split": (
        turns(
            "e",
            a_b_c_d=nd.Split(
                {"one": turns("a", "b"), "two": turns("c", "d")}, {"a": "one", "b": "one", "c": "two", "d": "two"}
            ),
        ),
        "abcde",
        1 + 2 * 2,
    ),
    "beside one that is always asked": (
        nd.Split({"turns": turns("a", "b"), "always": DESCENT}, {"a": "turns", "b": "turns", "c": "always"}),
        "abc",
        2,
    ),
    "beside one that knows for itself": (
        nd.Split(
            {"turns": turns("a", "b"), "own": EveryOther(DESCENT), "always": DESCENT},
            {"a": "turns", "b": "turns", "c": "own", "d": "always"},
        ),
        "abcd",
        2 * 2,
    ),
}


def branches(trainer: nd.AbstractTrainer, problem: nd.AbstractProblem) -> int:
    """Of the largest switch in a step."""
    state = nd.init(problem, trainer, key=jr.key(0))
    jaxpr = jax.make_jaxpr(lambda s: nd.step(problem, trainer, nd.Vmap(), s))(state)
    found = [2]

    def visit(jaxpr: Any) -> None:
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "cond":
                found.append(len(eqn.params["branches"]))
            for sub in jax.extend.core.jaxprs_in_params(eqn.params):
                visit(sub)

    visit(jaxpr.jaxpr)
    return max(found)


@pytest.mark.parametrize("name", slow_but(TRAINERS, "five", "one in another", "equal names side by side"))
def test_as_many_branches_as_turns_and_the_values_of_the_host(name: str) -> None:
    trainer, leaves, count = TRAINERS[name]
    problem = Remembers(tuple(leaves))
    assert branches(trainer, problem) == max(count, 2)
    steps = 13
    near, far = (nd.fit(problem, trainer, steps=steps, key=jr.key(0), evaluator=e) for e in (nd.Vmap(), _Far()))
    assert near.evaluations == far.evaluations
    for x, y in zip(
        jax.tree.leaves((near.params, near.state.problem)),
        jax.tree.leaves((far.params, far.state.problem)),
        strict=True,
    ):
        np.testing.assert_allclose(x, y, rtol=1e-6)


class _Far(nd.AbstractEvaluator):
    """Leaves out what is not due, as an evaluator does that computes elsewhere."""

    traceable = False
    gradients = True

    def evaluate(self, problem: Any, query: Any, batch: Any) -> Any:
        return nd.Vmap().evaluate(problem, query, batch)


def test_a_part_that_knows_for_itself_may_be_silent_in_its_turn() -> None:
    trainer = nd.Split(
        {"turns": turns("c", a_b=EveryOther(DESCENT)), "always": DESCENT},
        {"a": "turns", "b": "turns", "c": "turns", "d": "always"},
    )
    problem = Remembers(tuple("abcd"))
    assert branches(trainer, problem) == 3  # its turn, asked or not, or the other's
    result = nd.fit(problem, trainer, steps=8, key=jr.key(0), log_every=1)
    assert [row["evaluations"] for row in result.history] == [2, 2, 2, 1] * 2


def test_twenty_parts_have_twenty_branches() -> None:
    names = tuple(f"x{i}" for i in range(20))
    assert branches(turns(*names), Remembers(names)) == 20
