"""The sub-steps of `LayerwiseADMM` where the rows are: outputs, activations and multipliers for given weights, and the
sums from which weights are solved for (Taylor et al., 2016, https://arxiv.org/abs/1605.02026, sections 3 and 4).

For each layer `l` and each row, `z_l` stands for `a_l W_l` and `a_(l+1)` for `h_l(z_l)`. What is minimised is

    loss(z_L) + sum_l rho/2 |z_l - a_l W_l + u_l|^2 + rho/2 |h_l(z_l) - a_(l+1) + v_l|^2,  u, v: scaled multipliers

and no term couples more than two of them, so each is solved for alone. In the sums, biases are the last row of `W`.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from nondiff.core.layers import AbstractActivation, affine
from nondiff.core.population import AbstractSampler
from nondiff.trainers.output_losses import AbstractOutputLoss


class Auxiliary(eqx.Module):
    """What stands for the network's inner values, `[rows, width]` of each layer; `a` of the hidden ones alone."""

    z: tuple[Float[Array, "..."], ...]
    a: tuple[Float[Array, "..."], ...]
    u: tuple[Float[Array, "..."], ...]
    """Multipliers of `z = a W`, times `rho`; empty without."""
    v: tuple[Float[Array, "..."], ...]
    """Those of `a = h(z)`."""


class Shared(eqx.Module):
    """What all shards see."""

    params: PyTree
    rho: Float[Array, ""]
    known: Bool[Array, ""]
    """Has every shard begun?"""


class Own(eqx.Module):
    """What one shard has."""

    index: Int[Array, "*shards"]
    known: Bool[Array, "*shards"]
    auxiliary: Auxiliary | None
    """`None` if nothing is remembered from step to step."""


class Sums(eqx.Module):
    """Over the rows of a shard; by layer."""

    gram: tuple[Float[Array, "..."], ...]
    """`a' a`; of the inputs zero where they are known already."""
    cross: tuple[Float[Array, "..."], ...]
    """`a' (z + u)`."""
    linear: Float[Array, "*shards layers"]
    """`|z - a W|^2`, the residual of a linear map."""
    bent: Float[Array, "*shards hidden"]
    """`|a - h(z)|^2`, that of an activation."""


class Shards(AbstractSampler):
    """Every member is the network; each has rows of its own."""

    def draw(self, shared: Shared, each: Own) -> Own:
        del shared
        return each

    def build(self, shared: Shared, drawn: Own) -> PyTree:
        del drawn
        return shared.params


class SubSteps(eqx.Module):
    """`Wants.compute`: `sweeps` over all layers of a shard's rows, with the weights held."""

    names: tuple[str, ...] = eqx.field(static=True)
    """Of the layers, among the parameters."""
    functions: tuple[AbstractActivation, ...]
    loss: AbstractOutputLoss
    shards: int = eqx.field(static=True)
    sweeps: int = eqx.field(static=True)
    relaxation: float | int = eqx.field(static=True)
    multipliers: bool = eqx.field(static=True)

    def __call__(self, shared: Shared, own: Own, batch: PyTree, key: Key[Array, ""]) -> tuple[Auxiliary | None, Sums]:
        del key
        x, answers = (self._rows(jnp.asarray(part), own) for part in batch)
        now, inputs = self._begun(shared, own, x)
        apart: list[Array] = []
        for _ in range(self.sweeps):
            now, apart = self.sweep(shared, now, x, answers)
        return (None if own.auxiliary is None else now), self._sums(shared, now, x, inputs, apart)

    def _rows(self, part: Array, own: Own) -> Array:
        """Those of this shard."""
        if own.auxiliary is None:
            return part
        rows = own.auxiliary.z[0].shape[0]
        if part.shape[0] != rows * self.shards:
            raise ValueError(
                f"`LayerwiseADMM(rows={rows * self.shards})`: the batch has {part.shape[0]} rows. With `rows` it is "
                "all the data, in the same order at every step, as `Supervised(..., batch_size=None)` gives it; for "
                "minibatches leave `rows` out."
            )
        return jax.lax.dynamic_slice_in_dim(part, own.index * rows, rows)

    def _begun(self, shared: Shared, own: Own, x: Array) -> tuple[Auxiliary, Array]:
        """Where this step starts, and the sums of the inputs' squares where they are still to be known."""
        if own.auxiliary is None:
            return self.forward(shared.params, x), gram(x)

        def goes_on(old: Auxiliary) -> tuple[Auxiliary, Array]:
            return old, jnp.zeros(2 * (x.shape[1] + 1,), x.dtype)

        def begins(old: Auxiliary) -> tuple[Auxiliary, Array]:  # another shard may have been lost at its first step
            new = self.forward(shared.params, x)
            return jax.tree.map(lambda o, n: jnp.where(own.known, o, n), old, new), gram(x)

        return jax.lax.cond(shared.known, goes_on, begins, own.auxiliary)

    def forward(self, params: PyTree, x: Array) -> Auxiliary:
        """The network's own values: every constraint holds."""
        z, a = [affine(params[self.names[0]], x)], []
        for h, name in zip(self.functions, self.names[1:], strict=True):
            a.append(h(z[-1]))
            z.append(affine(params[name], a[-1]))
        u, v = (z, a) if self.multipliers else ([], [])
        return Auxiliary(tuple(z), tuple(a), tuple(map(jnp.zeros_like, u)), tuple(map(jnp.zeros_like, v)))

    def sweep(self, shared: Shared, now: Auxiliary, x: Array, answers: Array) -> tuple[Auxiliary, list[Array]]:
        """Each `z`, then the `a` behind it, then their multipliers; from the first layer to the last. Also `z - a W` of
        each, which is the same at the end: an `a` is settled before the layer behind it.
        """
        z, a, rho, layers = list(now.z), list(now.a), shared.rho, [shared.params[name] for name in self.names]
        u = [x / rho for x in now.u] or [jnp.zeros(())] * len(z)
        v = [x / rho for x in now.v] or [jnp.zeros(())] * len(a)
        apart = []
        for i, layer in enumerate(layers):
            own = affine(layer, x if i == 0 else a[i - 1])
            fit = self.relaxation * own + (1 - self.relaxation) * z[i]  # Boyd et al., 2011, equation 3.19
            if i < len(a):
                h = self.functions[i]
                z[i] = h.solve(a[i] - v[i], fit - u[i], rho, rho)
                there = h(z[i])
                a[i] = solve_inputs(layers[i + 1], z[i + 1] + u[i + 1], there + v[i])
                v[i] = v[i] + there - a[i]
            else:
                z[i] = self.loss.solve(answers, fit - u[i], rho)
            u[i] = u[i] + z[i] - fit
            apart.append(z[i] - own)
        if not self.multipliers:
            return Auxiliary(tuple(z), tuple(a), (), ()), apart
        return Auxiliary(tuple(z), tuple(a), tuple(rho * x for x in u), tuple(rho * x for x in v)), apart

    def _sums(self, shared: Shared, now: Auxiliary, x: Array, inputs: Array, apart: list[Array]) -> Sums:
        layers = [x, *now.a]
        targets = [z + u / shared.rho for z, u in zip(now.z, now.u, strict=True)] if now.u else now.z
        bent = [a - h(z) for a, h, z in zip(now.a, self.functions, now.z[:-1], strict=True)]
        return Sums(
            (inputs, *map(gram, now.a)),
            tuple(cross(a, t) for a, t in zip(layers, targets, strict=True)),
            jnp.stack([jnp.sum(r**2) for r in apart]),
            jnp.stack([jnp.sum(r**2) for r in bent]) if bent else jnp.zeros(0),
        )


def solve_inputs(layer: PyTree, z: Array, near: Array) -> Array:
    """`argmin_a |z - (a w + b)|^2 + |a - near|^2`: Taylor et al., 2016, equation 5, with equal weights."""
    w = layer["w"]
    right = near + (z - layer["b"]) @ w.T
    # Inverses, of matrices with no eigenvalue below 1: products for all rows are faster than triangular solves.
    if w.shape[1] < w.shape[0]:  # the matrix inversion lemma
        return right - (right @ w) @ (inverse(w.T @ w) @ w.T)
    return right @ inverse(w @ w.T)


def inverse(square: Array) -> Array:
    """Of 1 + a matrix that is not negative."""
    one = jnp.eye(square.shape[0], dtype=square.dtype)
    return jsl.cho_solve(jsl.cho_factor(one + square), one)


def gram(a: Array) -> Array:
    """`[a, 1]' [a, 1]`, without a copy of all rows."""
    sums = jnp.sum(a, 0)[:, None]
    return jnp.block([[a.T @ a, sums], [sums.T, jnp.full((1, 1), len(a), a.dtype)]])


def cross(a: Array, t: Array) -> Array:
    """`[a, 1]' t`."""
    return jnp.concatenate([a.T @ t, jnp.sum(t, 0, keepdims=True)])
