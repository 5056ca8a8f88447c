"""The definition of a proximal operator, as a test."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array

from nondiff.core.prox import AbstractProx
from nondiff.testing.common import count_compilations

SHAPES = ((6,), (3, 4), (2, 3, 2), (2, 2, 1, 3))


def check_prox(
    prox: AbstractProx, *, shapes: tuple[tuple[int, ...], ...] = SHAPES, convex: bool = False, exact: bool = True
) -> None:
    """Is it the proximal operator of its `value`?

    - it keeps shape and dtype, on leaves of one to four axes, and is finite, also where all of `v` is 0;
    - under `jit`, with a traced `rho` that compiles nothing anew, and under `vmap` it is the same;
    - its `value` is one number, finite at what it returns;
    - no other point tried has a lower `value(z) + rho/2 |z - v|^2`: what it returns for other `v`, and points nearby;
    - it leaves alone what is `None` in a tree.

    **Arguments:**

    - `shapes`: of the leaves.
    - `convex`: is its function convex? Then the operator is firmly nonexpansive, which is checked, too.
    - `exact`: False for one that is an approximation, or has no `value`; the lowest value is not checked then.

    >>> import nondiff
    >>> check_prox(nondiff.prox.L1(0.5), convex=True)
    """
    for i, shape in enumerate(shapes):
        k_v, k_others = jr.split(jr.fold_in(jr.key(0), i))
        v = 2 * jr.normal(k_v, shape)
        distance = jnp.logspace(-2, 1, 60).reshape(-1, *[1] * len(shape))
        others = (v + distance * jr.normal(k_others, (60, *shape))).at[-1].set(0)
        # Operation by operation is slow to compile; once will do.
        _check_leaf(prox, v, others, convex, exact, jax.jit(lambda v, rho: prox(v, rho)) if i else prox)
    v = jnp.ones(shapes[0])
    tree = prox.tree({"mine": v, "theirs": None}, 1.0)
    assert set(tree) == {"mine", "theirs"} and tree["theirs"] is None, f"{prox}: `tree` must keep `None`: {tree}"
    assert tree["mine"].shape == v.shape, f"{prox}: `tree` changes a shape"


def _check_leaf(
    prox: AbstractProx, v: Array, others: Array, convex: bool, exact: bool, apply: Callable[[Array, Array], Array]
) -> None:
    @jax.jit
    def look(v: Array, others: Array, rho: Array) -> tuple[Array, ...]:
        def total(z: Array) -> Array:
            return prox.value(z) + rho / 2 * jnp.sum((z - v) ** 2)

        z, images = prox(v, rho), jax.vmap(prox, (0, None))(others, rho)
        points = jnp.concatenate([others, images, z + (others - v)])
        return z, images, prox.value(z), total(z), points, jax.vmap(total)(points)

    look(v, others, jnp.asarray(1.0))
    for rho in map(jnp.asarray, (0.5, 3.0)):
        with count_compilations() as compiled:
            answer = look(v, others, rho)
        assert not compiled, f"{prox}: another `rho` compiles it anew"
        z, images, value, lowest, points, totals = map(np.asarray, answer)
        assert z.shape == v.shape and z.dtype == v.dtype, f"{prox}: {v.dtype}{v.shape} became {z.dtype}{z.shape}"
        assert np.all(np.isfinite(z)), f"{prox}: the result is not finite: {z}"
        assert np.all(np.isfinite(images[-1])), f"{prox}: `v` of zeros, {v.shape}, gives {images[-1]}"
        _same(prox, z, apply(v, rho), "`jit`")
        _same(prox, images[7], apply(others[7], rho), "`vmap`")
        assert value.shape == () and np.isfinite(value), f"{prox}: `value` of the result is {value}"
        best = np.argmin(totals)
        tolerance = 1e3 * jnp.finfo(v.dtype).eps * (1 + abs(lowest))
        assert not exact or totals[best] >= lowest - tolerance, (
            f"{prox}: at v={v}, rho={rho} it gives {z} of {lowest}, and {points[best]} has {totals[best]}"
        )
        if convex:
            moved, asked = (images - z).reshape(len(others), -1), np.asarray(others - v).reshape(len(others), -1)
            gap = np.sum(moved * asked - moved**2, axis=1)
            assert np.all(gap >= -1e-5 * np.sum(asked**2, axis=1)), (
                f"{prox}: it is not firmly nonexpansive: {gap.min()}"
            )


def _same(prox: AbstractProx, z: np.ndarray, plain: Array, where: str) -> None:
    tolerance = 1e3 * float(jnp.finfo(plain.dtype).eps) * (1 + np.max(np.abs(plain)))
    error = np.max(np.abs(z - np.asarray(plain)))
    assert error <= tolerance, f"{prox}: under {where} the result differs by {error}"
