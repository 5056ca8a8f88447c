"""The sub-steps of `LayerwiseADMM` where the rows are: outputs, activations and multipliers for given weights, and the
sums from which weights are solved for (Taylor et al., 2016, https://arxiv.org/abs/1605.02026, sections 3 and 4).

For each layer `l` and each row, `z_l` stands for `a_l W_l` and `a_(l+1)` for `h_l(z_l)`. What is minimised is

    loss(z_L) + sum_l rho/2 |z_l - a_l W_l + u_l|^2 + rho/2 |h_l(z_l) - a_(l+1) + v_l|^2,  u, v: scaled multipliers

and no term couples more than two of them, so each is solved for alone. `W` holds the biases as its last row.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from nondiff.core.layers import AbstractActivation
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
    weights: tuple[Float[Array, "..."], ...]
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

    functions: tuple[AbstractActivation, ...]
    loss: AbstractOutputLoss
    shards: int = eqx.field(static=True)
    sweeps: int = eqx.field(static=True)
    relaxation: float | int = eqx.field(static=True)
    multipliers: bool = eqx.field(static=True)

    def __call__(self, shared: Shared, own: Own, batch: PyTree, key: Key[Array, ""]) -> tuple[Auxiliary | None, Sums]:
        del key
        x, answers = (self._rows(jnp.asarray(part), own) for part in batch)
        x = with_ones(x)
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
            return self.forward(shared.weights, x), x.T @ x

        def goes_on(old: Auxiliary) -> tuple[Auxiliary, Array]:
            return old, jnp.zeros((x.shape[1], x.shape[1]), x.dtype)

        def begins(old: Auxiliary) -> tuple[Auxiliary, Array]:  # another shard may have been lost at its first step
            new = self.forward(shared.weights, x)
            return jax.tree.map(lambda o, n: jnp.where(own.known, o, n), old, new), x.T @ x

        return jax.lax.cond(shared.known, goes_on, begins, own.auxiliary)

    def forward(self, weights: tuple[Array, ...], x: Array) -> Auxiliary:
        """The network's own values: every constraint holds."""
        z, a = [x @ weights[0]], []
        for h, w in zip(self.functions, weights[1:], strict=True):
            a.append(h(z[-1]))
            z.append(with_ones(a[-1]) @ w)
        u, v = (z, a) if self.multipliers else ([], [])
        return Auxiliary(tuple(z), tuple(a), tuple(map(jnp.zeros_like, u)), tuple(map(jnp.zeros_like, v)))

    def sweep(self, shared: Shared, now: Auxiliary, x: Array, answers: Array) -> tuple[Auxiliary, list[Array]]:
        """Each `z`, then the `a` behind it, then their multipliers; from the first layer to the last. Also `z - a W` of
        each, which is the same at the end: an `a` is settled before the layer behind it.
        """
        z, a, rho, weights = list(now.z), list(now.a), shared.rho, shared.weights
        u = [x / rho for x in now.u] or [jnp.zeros(())] * len(z)
        v = [x / rho for x in now.v] or [jnp.zeros(())] * len(a)
        apart = []
        for i, w in enumerate(weights):
            own = (x if i == 0 else with_ones(a[i - 1])) @ w
            fit = self.relaxation * own + (1 - self.relaxation) * z[i]  # Boyd et al., 2011, equation 3.19
            if i < len(a):
                h = self.functions[i]
                z[i] = h.solve(a[i] - v[i], fit - u[i], rho, rho)
                there = h(z[i])
                a[i] = solve_inputs(weights[i + 1], z[i + 1] + u[i + 1], there + v[i])
                v[i] = v[i] + there - a[i]
            else:
                z[i] = self.loss.solve(answers, fit - u[i], rho)
            u[i] = u[i] + z[i] - fit
            apart.append(z[i] - own)
        if not self.multipliers:
            return Auxiliary(tuple(z), tuple(a), (), ()), apart
        return Auxiliary(tuple(z), tuple(a), tuple(rho * x for x in u), tuple(rho * x for x in v)), apart

    def _sums(self, shared: Shared, now: Auxiliary, x: Array, inputs: Array, apart: list[Array]) -> Sums:
        layers = [x, *map(with_ones, now.a)]
        targets = [z + u / shared.rho for z, u in zip(now.z, now.u, strict=True)] if now.u else now.z
        bent = [a - h(z) for a, h, z in zip(now.a, self.functions, now.z[:-1], strict=True)]
        return Sums(
            (inputs, *[a.T @ a for a in layers[1:]]),
            tuple(a.T @ t for a, t in zip(layers, targets, strict=True)),
            jnp.stack([jnp.sum(r**2) for r in apart]),
            jnp.stack([jnp.sum(r**2) for r in bent]) if bent else jnp.zeros(0),
        )


def solve_inputs(w: Array, z: Array, near: Array) -> Array:
    """`argmin_a |z - [a, 1] W|^2 + |a - near|^2`: Taylor et al., 2016, equation 5, with equal weights."""
    w, b = w[:-1], w[-1]
    right = near + (z - b) @ w.T
    one = jnp.eye(w.shape[0], dtype=w.dtype)
    # The inverse, of a matrix with no eigenvalue below 1: a product for all rows is faster than two triangular solves.
    return right @ jsl.cho_solve(jsl.cho_factor(one + w @ w.T), one)


def with_ones(x: Array) -> Array:
    """For the biases, the last row of the weights."""
    return jnp.concatenate([x, jnp.ones((*x.shape[:-1], 1), x.dtype)], -1)
