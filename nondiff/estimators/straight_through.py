"""Straight through (Bengio, Leonard & Courville, 2013, "Estimating or Propagating Gradients Through Stochastic Neurons
for Conditional Computation", https://arxiv.org/abs/1308.3432): backwards, the decision is taken for something smooth.

For a `rest` that has a derivative in the decision: rounded weights, binary activations, a hard choice of an expert.
"""

import abc
import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from nondiff.core import words
from nondiff.core.checks import check_positive
from nondiff.core.estimator import AbstractEstimator, Decide, Heuristic, Rest, slope_of


class AbstractRelaxation(eqx.Module):
    """What stands for the decision backwards."""

    @abc.abstractmethod
    def __call__(
        self, logits: Float[Array, "cases ..."], *, key: Key[Array, ""]
    ) -> tuple[Float[Array, "cases ..."], Float[Array, "cases ..."]]:
        """Where to decide, and the smooth stand-in for the decision there, shaped like it."""


class Identity(AbstractRelaxation):
    """The activation itself: for `jnp.round`, and wherever decisions lie near what they are made from."""

    def __call__(self, logits: Array, *, key: Key[Array, ""]) -> tuple[Array, Array]:
        del key
        return logits, logits


class Clipped(AbstractRelaxation):
    """The activation within `[lo, hi]` (default -1 and 1), for `jnp.sign`: nothing is learned beyond (Hubara,
    Courbariaux, Soudry, El-Yaniv & Bengio, 2016, "Binarized Neural Networks", https://arxiv.org/abs/1602.02830,
    equation 4).
    """

    lo: float | int = eqx.field(static=True, default=-1.0)
    hi: float | int = eqx.field(static=True, default=1.0)

    def __check_init__(self) -> None:
        if not -math.inf < self.lo < self.hi < math.inf:
            raise ValueError(f"`Clipped({self.lo}, {self.hi})`: expected finite bounds, the lower one first.")

    def __call__(self, logits: Array, *, key: Key[Array, ""]) -> tuple[Array, Array]:
        del key
        return logits, jnp.where((self.lo <= logits) & (logits <= self.hi), logits, jax.lax.stop_gradient(logits))


class Softmax(AbstractRelaxation):
    """The probabilities, for `one_hot` and `TopK`."""

    temperature: float | int = eqx.field(static=True, default=1.0)

    def __check_init__(self) -> None:
        check_positive("Softmax", "temperature", self.temperature)

    def __call__(self, logits: Array, *, key: Key[Array, ""]) -> tuple[Array, Array]:
        del key
        return logits, jax.nn.softmax(logits / self.temperature)


class GumbelSoftmax(AbstractRelaxation):
    """Those of a sample (Jang, Gu & Poole, 2017, "Categorical Reparameterization with Gumbel-Softmax",
    https://arxiv.org/abs/1611.01144, section 2.2): the derivative is taken where a draw decided, so others than the
    likeliest symbols are tried. The value is still that of the likeliest.
    """

    temperature: float | int = eqx.field(static=True, default=1.0)

    def __check_init__(self) -> None:
        check_positive("GumbelSoftmax", "temperature", self.temperature)

    def __call__(self, logits: Array, *, key: Key[Array, ""]) -> tuple[Array, Array]:
        noisy = logits + words.gumbel(words.shaped(key, logits.shape)).astype(logits.dtype)
        return noisy, jax.nn.softmax(noisy / self.temperature)


class StraightThrough(AbstractEstimator):
    """The derivative of `rest` at the decision, times that of a smooth stand-in for the decision.

    **Arguments:**

    - `relaxation`: the stand-in: `Identity()` (default), `Clipped()`, `Softmax()` or `GumbelSoftmax()`.

    `through(rest, z, via=StraightThrough(), decide=jnp.round)`; for symbols, `decide=one_hot` and a `rest` that takes
    vectors. No samples, one evaluation of `rest` beside the value's. A heuristic: of no loss is this the gradient, and
    how good it is depends on the decision. Weights are crossed as one case: `through(rest, w[None], ...)[0]`.

    **Raises** `ValueError` where the decision is whole numbers, or shaped otherwise than the stand-in; a program
    behind `Opaque` has no derivative, and says so.

    >>> import jax, nondiff
    >>> rest = lambda steps: (steps.sum(-1) - 5.0) ** 2
    >>> loss = lambda z: nondiff.through(rest, z, via=StraightThrough(), key=jax.random.key(0), decide=jnp.round)[0]
    >>> loss(jnp.array([[1.4, 1.6]])), jax.grad(loss)(jnp.array([[1.4, 1.6]]))  # 1 + 2, two short of 5
    (Array(4., dtype=float32), Array([[-4., -4.]], dtype=float32))
    """

    relaxation: AbstractRelaxation = Identity()
    objective: ClassVar[Heuristic] = Heuristic()  # pyright: ignore[reportIncompatibleVariableOverride]
    unbiased: ClassVar[bool] = False

    def __check_init__(self) -> None:
        if not isinstance(self.relaxation, AbstractRelaxation):
            raise ValueError(f"`StraightThrough({self.relaxation!r})`: expected a relaxation, for example `Clipped()`.")

    def surrogate(
        self, rest: Rest, logits: Array, decision: Array, *, decide: Decide, key: Key[Array, ""]
    ) -> Float[Array, " cases"]:
        del decision
        where, soft = self.relaxation(logits, key=key)
        slope = slope_of(rest, decide(jax.lax.stop_gradient(where)))
        if slope.shape != soft.shape:
            raise ValueError(
                f"`{self!r}`: the decision has shape {list(slope.shape)} and what stands for it {list(soft.shape)}; "
                "let it decide for one number per activation, for example `decide=one_hot`."
            )
        return jnp.sum(slope * soft, tuple(range(1, soft.ndim)))
