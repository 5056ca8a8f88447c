"""When ADMM has converged, and when it never will (Boyd et al., 2011, https://doi.org/10.1561/2200000016, section 3.3).

The paper's `x` minimises its sub-problem exactly. Here it has made some steps towards the minimum, so that small
residuals alone say little: a trainer that has only begun has them, too.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Float, PyTree

from nondiff.core.checks import check_count, check_number, check_positive
from nondiff.core.exact import namespace
from nondiff.core.problem import Params
from nondiff.core.tree import is_none
from nondiff.trainers.rho import AbstractRho, check_rho

SHOWN = "rho", "primal", "dual", "primal_tolerance", "dual_tolerance", "iterations"
"""What metrics have of `Progress`."""


class Progress(NamedTuple):
    """How far it is; arrays without dimensions."""

    step: Any
    iterations: Any
    rho: Any
    primal: Any
    dual: Any
    primal_tolerance: Any
    dual_tolerance: Any
    lowest: Any
    """The primal residual when it fell last."""
    force: Any
    """The norm of the multipliers then."""
    waited: Any
    """Iterations since."""
    done: Any
    """The number of the reason why it has ended, or 0."""

    @classmethod
    def of(cls, policy: AbstractRho, array: Any) -> "Progress":
        """Before the first iteration; `array` is NumPy's or JAX's."""
        zero, count, most = array(0.0), array(0, "int32"), array(math.inf)
        rho = array(float(policy.first()))
        return cls(count, count, rho, most, most, zero, zero, most, zero, count, count)

    def stepped(self) -> "Progress":
        return self._replace(step=namespace(self.step).asarray(self.step + 1))  # a sum of NumPy's arrays is none

    def shown(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in SHOWN}


class Limits(NamedTuple):
    """Arguments of a trainer."""

    absolute: float | int
    relative: float | int
    patience: int

    @classmethod
    def of(cls, trainer: Any) -> "Limits":
        return cls(trainer.absolute, trainer.relative, trainer.patience)


def check_arguments(trainer: Any) -> None:
    """Those that ADMM around a trainer has in every form. **Raises** `ValueError` for numbers out of range."""
    owner = type(trainer).__name__
    check_rho(owner, trainer.rho)
    check_count(owner, "every", trainer.every)
    check_count(owner, "patience", trainer.patience)
    check_positive(owner, "relaxation", trainer.relaxation)
    if trainer.relaxation >= 2:
        raise ValueError(f"`{owner}(relaxation={trainer.relaxation})`: expected a number above 0 and below 2, say 1.6.")
    for name in ("absolute", "relative"):
        check_number(owner, name, getattr(trainer, name), example=1e-4)


class Norms(NamedTuple):
    """Of one iteration."""

    primal: Float[Array, ""]
    dual: Float[Array, ""]
    x: Float[Array, ""]
    z: Float[Array, ""]
    force: Float[Array, ""]
    """Of the multipliers, `rho u`."""
    unrest: Float[Array, ""]
    """Of what says that `x` is not at its minimum yet, such as the gradient of loss and quadratic."""


def judged(
    now: Progress, limits: Limits, norms: Norms, coordinates: int, *, at_bound: Bool[Array, ""] | bool = False
) -> tuple[Progress, Bool[Array, ""], Bool[Array, ""]]:
    """The state after an iteration; has it converged, is it diverging? `at_bound`: the multipliers can grow no more."""
    primal, dual, x, z, force, unrest = norms
    root = math.sqrt(coordinates)
    # eq. 3.12
    primal_tolerance = root * limits.absolute + limits.relative * jnp.maximum(x, z)
    dual_tolerance = root * limits.absolute + limits.relative * force
    near = primal <= primal_tolerance
    converged = near & (dual <= dual_tolerance) & (unrest <= dual_tolerance)
    fell = near | (primal < 0.99 * now.lowest)
    waited = jnp.where(fell, 0, now.waited + 1)
    lowest, first_force = jnp.where(fell, primal, now.lowest), jnp.where(fell, force, now.force)
    # A residual r that stays adds r to u in every iteration, until the multipliers are at their bound.
    grow = force - first_force >= 0.5 * waited * now.rho * primal
    tolerances = primal_tolerance, dual_tolerance
    new = (now.step, now.iterations + 1, now.rho, primal, dual, *tolerances, lowest, first_force, waited, now.done)
    return Progress(*new), converged, (waited >= limits.patience) & (grow | at_bound)


def next_rho(policy: AbstractRho, now: Progress) -> Float[Array, ""]:
    """By the residuals in units of their tolerances."""
    tiny = jnp.finfo(now.rho.dtype).tiny
    primal, dual = (
        now.primal / jnp.maximum(now.primal_tolerance, tiny),
        now.dual / jnp.maximum(now.dual_tolerance, tiny),
    )
    return policy.next(now.rho, primal, dual, now.iterations).astype(now.rho.dtype)


def rescaled(u: Params, old: Float[Array, ""], new: Float[Array, ""]) -> Params:
    """Scaled multipliers for another `rho`: the multipliers themselves, `rho u`, stay (section 3.4.1)."""
    return jtu.tree_map(lambda u: u * (old / new).astype(u.dtype), u)


def norm(tree: PyTree, like: Array) -> Float[Array, ""]:
    """Over all leaves, in the type of `like` or a wider one of a leaf."""
    squares = [jnp.sum(jnp.square(x.astype(jnp.promote_types(x.dtype, like.dtype)))) for x in jtu.tree_leaves(tree)]
    return jnp.sqrt(sum(squares, jnp.zeros((), like.dtype))).astype(like.dtype)


def distance(a: Params, b: Params, like: Array) -> Float[Array, ""]:
    return norm(jtu.tree_map(jnp.subtract, a, b), like)


def projected(gradient: Params, params: Params, domain: PyTree) -> Params:
    """The gradient, less what a bound of the domain stops."""

    def one(g: Any, x: Any, d: Any) -> Any:
        return None if g is None else x - d.clip(x - g)

    return jtu.tree_map(one, gradient, params, domain, is_leaf=is_none)
