"""Forward and back through a module, once: XLA does not find out that two passes are the same, one with derivatives."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array

from nondiff.core.signal import Losses, along

Back = Callable[[Array], tuple[Losses, Any]]


def passed(fn: Callable[[Any, Any], Array], params: Any, inputs: Any, sends: bool) -> tuple[Array, Back]:
    """`fn(params, inputs)`, `[cases, ...]`, without derivatives, and the way back: from each case's gradient there to
    numbers, one per case, whose mean has that of the mean in `params`; and to the gradient in `inputs`, if it is to be
    sent.
    """
    if not sends:
        live = fn(params, inputs)
        return jax.lax.stop_gradient(live), lambda gradient: (along(gradient, live), ())
    trained, rest = eqx.partition(params, eqx.is_inexact_array)
    fixed = jax.lax.stop_gradient(trained)
    value, pull = jax.vjp(lambda p, x: fn(eqx.combine(p, rest), x), fixed, inputs)

    def back(gradient: Array) -> tuple[Losses, Any]:
        slopes, down = pull(gradient)
        each = [jnp.sum(g * p) for g, p in zip(jtu.tree_leaves(slopes), jtu.tree_leaves(trained), strict=True)]
        learned = sum(each, jnp.zeros((), gradient.dtype)) / gradient.shape[0]
        return jnp.full(gradient.shape[:1], learned), down

    return value, back
