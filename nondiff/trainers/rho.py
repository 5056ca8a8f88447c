"""How `rho` of `ADMM` changes from iteration to iteration: of the numbers of a run alone, never of time, so that the
same seed gives the same run.

Boyd, Parikh, Chu, Peleato & Eckstein, 2011, "Distributed Optimization and Statistical Learning via the Alternating
Direction Method of Multipliers", https://doi.org/10.1561/2200000016, section 3.4.1; Wohlberg, 2017, "ADMM Penalty
Parameter Selection by Residual Balancing", https://arxiv.org/abs/1704.06209.
"""

import abc
import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nondiff.core.checks import check_count, check_factor, check_positive

Scalar = Float[Array, ""]


class AbstractRho(eqx.Module):
    """The weight of the quadratic, and how it goes on."""

    @abc.abstractmethod
    def first(self) -> float | int:
        """Before the first iteration; above 0."""

    @abc.abstractmethod
    def next(self, rho: Scalar, primal: Scalar, dual: Scalar, iteration: Int[Array, ""]) -> Scalar:
        """After an iteration, numbered from 1. The residuals are in units of their tolerances. Traced."""


def policy(rho: Any) -> Any:
    """A number is one that stays; what is neither number nor policy is left to `check_rho`."""
    return FixedRho(float(rho)) if isinstance(rho, int | float) and 0 < rho < math.inf and rho is not True else rho


def check_rho(owner: str, rho: Any) -> None:
    """**Raises** `ValueError` unless it is what `policy` makes of a number above 0, or another policy."""
    if not isinstance(rho, AbstractRho):
        raise ValueError(
            f"`{owner}(rho={rho!r})`: expected a finite number above 0, or a policy, for example "
            "`nondiff.BalancedRho(1.0)`; both count iterations, so there is no schedule."
        )


class FixedRho(AbstractRho):
    """The same `rho` throughout; what a plain number means.

    **Raises** `ValueError` unless it is finite and above 0.

    >>> FixedRho(2.0).first()
    2.0
    """

    rho: float | int = eqx.field(static=True)

    def __check_init__(self) -> None:
        check_positive("FixedRho", "rho", self.rho)

    def first(self) -> float | int:
        return self.rho

    def next(self, rho: Scalar, primal: Scalar, dual: Scalar, iteration: Int[Array, ""]) -> Scalar:
        del primal, dual, iteration
        return rho


class BalancedRho(AbstractRho):
    """Residual balancing: a larger `rho` where the primal residual is the larger one, a smaller where the dual is.

    Residuals are compared in units of their tolerances, so that the scales of `x` and of the loss do not matter
    (Wohlberg, 2017). For convex problems, whose answer does not depend on `rho`, only the time to it.

    **Arguments:**

    - `rho`: the first one, above 0.
    - `ratio`: how many times one residual must be the other (default 10).
    - `factor`: what `rho` is multiplied or divided by (default 2).
    - `every`: iterations between two looks (default 10). An inner trainer of small steps needs some to follow.
    - `until`: the last iteration that may change it (default 1,000); ADMM converges where `rho` is constant in the end.
    - `least`, `most`: bounds (default: 1,000 times below and above the first). A gradient step of an optimizer without
      a line search needs a rate below `2 / (L + rho)`; `most` keeps it so.

    **Raises** `ValueError` for numbers out of range.

    >>> policy = BalancedRho(1.0, every=1)
    >>> [float(policy.next(jnp.float32(1.0), jnp.float32(p), jnp.float32(d), jnp.int32(1)))
    ...  for p, d in [(30.0, 1.0), (5.0, 1.0), (1.0, 30.0)]]
    [2.0, 1.0, 0.5]
    """

    rho: float | int = eqx.field(static=True)
    ratio: float | int = eqx.field(static=True, kw_only=True, default=10)
    factor: float | int = eqx.field(static=True, kw_only=True, default=2)
    every: int = eqx.field(static=True, kw_only=True, default=10)
    until: int = eqx.field(static=True, kw_only=True, default=1_000)
    least: float | int | None = eqx.field(static=True, kw_only=True, default=None)
    most: float | int | None = eqx.field(static=True, kw_only=True, default=None)

    def __check_init__(self) -> None:
        check_positive("BalancedRho", "rho", self.rho)
        check_factor("BalancedRho", "ratio", self.ratio)
        check_factor("BalancedRho", "factor", self.factor)
        check_count("BalancedRho", "every", self.every)
        check_count("BalancedRho", "until", self.until, least=0)
        for name in ("least", "most"):
            if getattr(self, name) is not None:
                check_positive("BalancedRho", name, getattr(self, name))
        least, most = self._ends()
        if not least <= self.rho <= most:
            raise ValueError(f"`BalancedRho(rho={self.rho}, least={least}, most={most})`: `rho` must lie between them.")

    def _ends(self) -> tuple[float, float]:
        least = self.rho / 1_000 if self.least is None else self.least
        return least, self.rho * 1_000 if self.most is None else self.most

    def first(self) -> float | int:
        return self.rho

    def next(self, rho: Scalar, primal: Scalar, dual: Scalar, iteration: Int[Array, ""]) -> Scalar:
        # eq. 3.13
        new = jnp.where(primal > self.ratio * dual, rho * self.factor, rho)
        new = jnp.where(dual > self.ratio * primal, rho / self.factor, new)
        looks = (iteration % self.every == 0) & (iteration <= self.until)
        return jnp.where(looks, jnp.clip(new, *self._ends()), rho)


class GrowingRho(AbstractRho):
    """`rho` grows by a factor every iteration: for sets that are not convex, such as `Binary` and `Cardinality`.

    A small `rho` lets the loss decide first which point of the set is near; a large one then leads there.

    **Arguments:**

    - `rho`: the first one, above 0.
    - `factor`: above 1 (default 1.15). For some 30 iterations; with more of them, nearer to 1.
    - `most`: where it ends (default: 1,000 times the first).

    **Raises** `ValueError` for numbers out of range.

    >>> round(float(GrowingRho(1e-3).next(jnp.float32(1.0), jnp.float32(0), jnp.float32(0), jnp.int32(1))), 2)
    1.0
    """

    rho: float | int = eqx.field(static=True)
    factor: float | int = eqx.field(static=True, kw_only=True, default=1.15)
    most: float | int | None = eqx.field(static=True, kw_only=True, default=None)

    def __check_init__(self) -> None:
        check_positive("GrowingRho", "rho", self.rho)
        check_factor("GrowingRho", "factor", self.factor)
        if self.most is not None:
            check_positive("GrowingRho", "most", self.most)
            if self.most < self.rho:
                raise ValueError(f"`GrowingRho(rho={self.rho}, most={self.most})`: `most` must not be below `rho`.")

    def first(self) -> float | int:
        return self.rho

    def next(self, rho: Scalar, primal: Scalar, dual: Scalar, iteration: Int[Array, ""]) -> Scalar:
        del primal, dual, iteration
        return jnp.minimum(rho * self.factor, 1_000 * self.rho if self.most is None else self.most)
