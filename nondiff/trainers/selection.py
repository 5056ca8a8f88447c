"""Who becomes a parent: by the loss, or by the losses of single cases."""

import abc
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from nondiff.core import words
from nondiff.core.checks import check_count, check_number, check_positive
from nondiff.core.query import Evaluation


class AbstractSelection(eqx.Module):
    """Who becomes a parent."""

    by_case: ClassVar[bool] = False
    """Does it look at the loss of every case?"""

    @abc.abstractmethod
    def __call__(
        self, losses: Float[Array, " pop"] | Float[Array, "pop cases"], n: int, *, key: Key[Array, ""]
    ) -> Int[Array, " n"]:
        """`n` indices; `losses`, one a member or `by_case` one a case, has every failure at infinity."""


def scores(selection: AbstractSelection, answer: Evaluation) -> Array:
    """What a selection sees of an answer."""
    if not selection.by_case:
        return jnp.asarray(answer.ranked)
    assert answer.cases is not None
    cases = jnp.asarray(answer.cases)
    return jnp.where(jnp.isfinite(answer.ranked)[:, None] & jnp.isfinite(cases), cases, jnp.inf)


class Truncation(AbstractSelection):
    """The `n` best."""

    def __call__(self, losses: Array, n: int, *, key: Key[Array, ""]) -> Array:
        del key
        return jnp.argsort(losses, stable=True)[:n]


class Tournament(AbstractSelection):
    """`n` times, the best of `size` members drawn with replacement. Larger is greedier (default 3)."""

    size: int = eqx.field(static=True, default=3)

    def __check_init__(self) -> None:
        check_count("Tournament", "size", self.size)

    def __call__(self, losses: Array, n: int, *, key: Key[Array, ""]) -> Array:
        entrants = words.below(words.shaped(key, (n, self.size)), losses.size)
        return jnp.take_along_axis(entrants, jnp.argmin(losses[entrants], 1)[:, None], 1)[:, 0]


class Lexicase(AbstractSelection):
    """`n` times: of all members those that are best in one case, of these those best in another, in random order, until
    one case is left (Spector, 2012, "Assessment of problem modality by differential performance of lexicase selection
    in genetic programming"). Those that are still equal have equal chances.

    So a member that alone can do some of the cases becomes a parent, however bad its mean is.

    **Arguments:**

    - `epsilon`: how much worse than the best still counts as best: a number (default 0), or `None` for each case's
      median absolute deviation, as befits losses that are real numbers (La Cava, Spector & Danai, 2016,
      https://arxiv.org/abs/1905.13266).

    The cost is `n * pop * cases`; `DALex` takes a matrix product.

    **Raises** `ValueError` for a negative epsilon.

    >>> import jax
    >>> losses = jnp.array([[0.0, 9.0], [9.0, 0.0], [4.0, 4.0]])  # the third has the best mean
    >>> sorted(set(Lexicase()(losses, 20, key=jax.random.key(0)).tolist()))
    [0, 1]
    """

    epsilon: float | None = eqx.field(static=True, default=0.0)
    by_case: ClassVar[bool] = True

    def __check_init__(self) -> None:
        if self.epsilon is not None:
            check_number("Lexicase", "epsilon", self.epsilon, example=0.0)

    def __call__(self, losses: Array, n: int, *, key: Key[Array, ""]) -> Array:
        by_case = losses.T
        slack = _deviation(by_case) if self.epsilon is None else jnp.full(len(by_case), self.epsilon)

        def one(key: Key[Array, ""]) -> Array:
            w_order, w_rest = words.pieces(key, [(len(by_case),), (len(losses),)])

            def filtered(alive: Array, case: Array) -> tuple[Array, None]:
                here = jnp.where(alive, by_case[case], jnp.inf)
                return alive & (here <= jnp.min(here) + slack[case]), None

            alive, _ = jax.lax.scan(filtered, jnp.ones(losses.shape[0], bool), words.permutation(w_order))
            return jnp.argmax(jnp.where(alive, words.uniform(w_rest), -1.0))

        return jax.vmap(one)(words.split(key, n))


def _deviation(by_case: Float[Array, "cases pop"]) -> Float[Array, " cases"]:
    """Each case's median absolute deviation from the median, of members that did not fail."""
    finite = jnp.where(jnp.isfinite(by_case), by_case, jnp.nan)
    deviation = jnp.nanmedian(jnp.abs(finite - jnp.nanmedian(finite, 1, keepdims=True)), 1)
    return jnp.nan_to_num(deviation)


class DALex(AbstractSelection):
    """`n` times the best of a randomly weighted sum of all cases, nearly lexicase's choice for the cost of one matrix
    product (Ni, Ding & Spector, 2024, "DALex: Lexicase-like Selection via Diverse Aggregation",
    https://arxiv.org/abs/2401.12424).

    **Arguments:**

    - `pressure`: the standard deviation of the weights' logarithms, above 0 (default 20, as in the paper: nearly all
      weight is on a few cases). Those that are equal have equal chances.

    **Raises** `ValueError` for a pressure that is not above 0.

    >>> import jax
    >>> losses = jnp.array([[0.0, 9.0], [9.0, 0.0], [4.0, 4.0]])  # the third has the best mean
    >>> sorted(set(DALex()(losses, 20, key=jax.random.key(0)).tolist()))
    [0, 1]
    """

    pressure: float = eqx.field(static=True, default=20.0)
    by_case: ClassVar[bool] = True

    def __check_init__(self) -> None:
        check_positive("DALex", "pressure", self.pressure)

    def __call__(self, losses: Array, n: int, *, key: Key[Array, ""]) -> Array:
        finite = jnp.isfinite(losses)
        worst = jnp.max(jnp.where(finite, losses, 0.0), 0)
        largest = jnp.maximum(jnp.max(jnp.abs(jnp.where(finite, losses, 0.0)), 0), 1e-30)
        held = jnp.where(finite, losses / largest, 2 * jnp.abs(worst / largest) + 1)  # a failure is worse than others
        spread = jnp.std(held, 0)
        standard = (held - jnp.mean(held, 0)) / jnp.where(spread > 0, spread, 1.0)
        members, cases = losses.shape
        w_weights, w_rest = words.pieces(key, [(cases, n), (members, n)])
        weights = jax.nn.softmax(self.pressure * words.normal(w_weights), axis=0)
        sums = standard @ weights
        equal = sums <= jnp.min(sums, axis=0)
        return jnp.argmax(jnp.where(equal, words.uniform(w_rest), -1.0), axis=0)
