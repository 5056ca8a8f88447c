"""Layer-wise ADMM (Taylor, Burmeister, Xu, Singh, Patel & Goldstein, 2016, "Training Neural Networks Without Gradients:
A Scalable ADMM Approach", https://arxiv.org/abs/1605.02026), with a multiplier for every constraint.

The inner values of the network are variables of their own, tied to what they stand for by constraints. Given these,
the weights of each layer are a least-squares solution; given the weights, the inner values of each row are solved for
in closed form, where the row is. No step asks for a derivative of the network, so its activations may have none.
"""

import functools
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from nondiff.core.chain import Chain
from nondiff.core.checks import check_count, check_positive
from nondiff.core.layers import Activation, Dense
from nondiff.core.population import Population
from nondiff.core.problem import Params
from nondiff.core.query import Evaluation, Query, Wants
from nondiff.core.trainer import AbstractTrainer, Metrics, Scheduled, at, check_real
from nondiff.core.tree import none_like
from nondiff.trainers.least_squares import AbstractLeastSquares, Cholesky
from nondiff.trainers.output_losses import AbstractOutputLoss, CrossEntropy
from nondiff.trainers.substeps import Auxiliary, Own, Shards, Shared, SubSteps, Sums


class _State(eqx.Module):
    params: Params
    domain: PyTree
    auxiliary: Auxiliary | None
    """`[shards, rows, width]`."""
    known: Bool[Array, " shards"]
    """Which shards have begun."""
    inputs: Float[Array, "shards inputs inputs"] | None
    """The sums of the inputs' squares, which never change where the rows are the same."""
    grams: tuple[Float[Array, "..."], ...]
    crosses: tuple[Float[Array, "..."], ...]
    """Sums of earlier steps, as far as they are kept."""
    step: Int[Array, ""]


class LayerwiseADMM(AbstractTrainer[_State]):
    """Trains a chain of `Dense` and `Activation` stages without any derivative.

    **Arguments:**

    - `chain`: `Dense` and `Activation` in turn, a `Dense` first and last; the problem's batches are
      `(inputs [rows, width], answers)`, and its parameters `chain.init`.
    - `loss`: `CrossEntropy()` (default), `SquaredError()` or `Hinge()`, of the last layer's outputs. The problem's loss
      is only reported; let both be the same.
    - `rows`: how many the data have, where every step sees all of them (`Supervised(..., batch_size=None)`): inner
      values and multipliers of every row are kept from step to step, `rows * (sum of widths) * 4` numbers. Default
      `None`: every step starts from the network's own values of its batch.
    - `ridge`: shrinks the weights, above 0, per row and in units of a layer's mean squared input (default 0.03). The
      main hyperparameter: a layer that is solved for exactly fits thousands of rows perfectly, so the fewer rows there
      are for its inputs, the more of it; try factors of 3.
    - `inertia`: holds the weights near those of the step before, in the same units, 0 or more (default 0.1). Without it
      the accuracy of the last steps goes up and down.
    - `rho`: the penalty of all constraints, above 0, a float or an `optax.Schedule` (default 0.02). Larger: closer to
      the network's own values, and slower.
    - `relaxation`: over-relaxation, in [1, 2) (default 1: none).
    - `sweeps`: over all layers before the weights are solved for (default 1).
    - `multipliers`: default True; False is the quadratic-penalty method, for which `rho` should grow.
    - `solver`: `Cholesky()` (default), or `QuadraticBound()` without a factorisation, for thousands of inputs.
    - `keep`: of the sums of earlier steps, in [0, 1): 0 (default) where the rows are the same at every step.
    - `shards`: parts of the rows, which an evaluator may spread over its workers; it must divide `rows` (default 1).
      The sums of all are added in their order: the same bits for any number of workers.

    Metrics: `residual`, by stage: the root mean square of `z - (a w + b)` for a `Dense`, of `a - h(z)` for an
    `Activation`.

    **Raises** `ValueError` for a chain with other stages, numbers out of range, and, when training starts, for a stage
    that another trainer owns, or batches of another number of rows.

    >>> import jax, nondiff
    >>> x = jax.random.normal(jax.random.key(0), (200, 2))
    >>> answers = (jnp.abs(x).sum(-1) > 1.5).astype(int)
    >>> chain = nondiff.Chain({
    ...     "in": nondiff.Dense(2, 32), "bend": nondiff.Activation(nondiff.Step()), "out": nondiff.Dense(32, 2)
    ... })
    >>> problem = nondiff.Supervised(chain.loss(nondiff.CrossEntropy()), (x, answers), params=chain.init)
    >>> result = nondiff.fit(problem, LayerwiseADMM(chain, rows=200), steps=60, key=jax.random.key(1))
    >>> bool((chain(result.params, x).argmax(-1) == answers).mean() > 0.8)
    True
    """

    chain: Chain = eqx.field(static=True)
    loss: AbstractOutputLoss = CrossEntropy()
    rows: int | None = eqx.field(static=True, default=None, kw_only=True)
    ridge: float | int = eqx.field(static=True, default=0.03, kw_only=True)
    inertia: float | int = eqx.field(static=True, default=0.1, kw_only=True)
    rho: Scheduled = eqx.field(static=True, default=0.02, kw_only=True)
    relaxation: float | int = eqx.field(static=True, default=1.0, kw_only=True)
    sweeps: int = eqx.field(static=True, default=1, kw_only=True)
    multipliers: bool = eqx.field(static=True, default=True, kw_only=True)
    solver: AbstractLeastSquares = eqx.field(default=Cholesky(), kw_only=True)
    keep: float | int = eqx.field(static=True, default=0.0, kw_only=True)
    shards: int = eqx.field(static=True, default=1, kw_only=True)
    traceable: ClassVar[bool] = True

    def __check_init__(self) -> None:
        _check_chain(self.chain)
        for name, kind in (("loss", AbstractOutputLoss), ("solver", AbstractLeastSquares)):
            if not isinstance(getattr(self, name), kind):
                example = {"loss": "CrossEntropy()", "solver": "Cholesky()"}[name]
                raise ValueError(
                    f"`LayerwiseADMM({name}={getattr(self, name)!r})`: expected, for example, `{example}`."
                )
        check_positive("LayerwiseADMM", "ridge", self.ridge)
        check_positive("LayerwiseADMM", "rho", self.rho)
        for name, lo, hi in (("inertia", 0, float("inf")), ("relaxation", 1, 2), ("keep", 0, 1)):
            value = getattr(self, name)
            if not lo <= value < hi:
                raise ValueError(f"`LayerwiseADMM({name}={value})`: expected a number in [{lo}, {hi}).")
        check_count("LayerwiseADMM", "sweeps", self.sweeps)
        check_count("LayerwiseADMM", "shards", self.shards)
        if self.rows is not None:
            check_count("LayerwiseADMM", "rows", self.rows)
        if self.shards > 1 and (self.rows is None or self.rows % self.shards):
            raise ValueError(
                f"`LayerwiseADMM(rows={self.rows}, shards={self.shards})`: shards are equal parts of rows that stay; "
                "give a `rows` that they divide, or leave them out."
            )

    @property
    def _linear(self) -> list[str]:
        return [name for name, stage in self.chain.stages.items() if isinstance(stage, Dense)]

    @property
    def _steps(self) -> SubSteps:
        functions = [stage.function for stage in self.chain.stages.values() if isinstance(stage, Activation)]
        return SubSteps(
            tuple(self._linear),
            tuple(functions),
            self.loss,
            self.shards,
            self.sweeps,
            self.relaxation,
            self.multipliers,
        )

    def init(self, params: Params, domain: PyTree, *, key: Key[Array, ""]) -> _State:
        del key
        check_real("LayerwiseADMM", params, domain)
        for name in self._linear:
            if params[name]["w"] is None or params[name]["b"] is None:
                raise ValueError(
                    f"`LayerwiseADMM` solves for all layers together, and `{name}` belongs to another trainer. Give it "
                    "all `Dense` stages of the chain."
                )
        weights = self._weights(params)
        sizes = [w.shape for w in weights]
        grams = tuple(jnp.zeros((n, n), w.dtype) for (n, _), w in zip(sizes, weights, strict=True))
        known = jnp.zeros(self.shards, bool)
        auxiliary = inputs = None
        if self.rows is not None:
            shape, dtype = (self.shards, self.rows // self.shards), weights[0].dtype
            z = tuple(jnp.zeros((*shape, n), dtype) for _, n in sizes)
            u, v = (z, z[:-1]) if self.multipliers else ((), ())
            auxiliary = Auxiliary(z, z[:-1], u, v)
            inputs = jnp.zeros((self.shards, *grams[0].shape), dtype)
        step = jnp.zeros((), jnp.int32)
        crosses = tuple(map(jnp.zeros_like, weights))
        return _State(params, domain, auxiliary, known, inputs, grams, crosses, step)

    def _weights(self, params: Params) -> tuple[Array, ...]:
        """With the biases as the last row."""
        return tuple(jnp.concatenate([params[name]["w"], params[name]["b"][None]]) for name in self._linear)

    def ask(self, state: _State, *, key: Key[Array, ""]) -> Query:
        shared = Shared(state.params, at(self.rho, state.step), jnp.all(state.known))
        each = Own(jnp.arange(self.shards), state.known, state.auxiliary)
        keys = jnp.broadcast_to(key, (self.shards,))  # of a loss with noise, the same for all
        others = none_like(state.params)
        return Query(Population(shared, each, Shards()), others, keys, wants=Wants(compute=self._steps))

    def tell(self, state: _State, query: Query, answer: Evaluation, *, key: Key[Array, ""]) -> tuple[_State, Metrics]:
        del key
        new, sums = answer.computed
        ok = jnp.isfinite(answer.loss)  # a shard that was lost keeps what it had, and is missing from the sums
        auxiliary = None if new is None else _where(ok, new, state.auxiliary)
        inputs, found = state.inputs, sums.gram[0]
        if inputs is not None:
            found = inputs = jnp.where((ok & ~state.known)[:, None, None], found, inputs)
        known = state.known | ok
        sums = eqx.tree_at(lambda s: s.gram[0], sums, found)
        grams, crosses = self._added(ok, state.grams, sums.gram), self._added(ok, state.crosses, sums.cross)
        params = self._solved(state, grams, crosses)
        metrics = self._residuals(ok, sums, sums.gram[-1][:, -1, -1])
        return _State(params, state.domain, auxiliary, known, inputs, grams, crosses, state.step + 1), metrics

    def _added(self, ok: Array, old: tuple[Array, ...], new: tuple[Array, ...]) -> tuple[Array, ...]:
        return tuple(self.keep * x + _sum(ok, y) for x, y in zip(old, new, strict=True))

    def _solved(self, state: _State, grams: tuple[Array, ...], crosses: tuple[Array, ...]) -> Params:
        params = dict(state.params)
        weights = self._weights(state.params)
        for name, gram, cross, old in zip(self._linear, grams, crosses, weights, strict=True):
            rows = gram[-1, -1]  # the ones of the biases, squared
            new = self.solver(gram, cross, old, self.ridge * rows, self.inertia * rows)
            params[name] = {"w": new[:-1], "b": new[-1]}
        return jtu.tree_map(lambda x, d: d.clip(x), params, state.domain)

    def _residuals(self, ok: Array, sums: Sums, rows: Array) -> Metrics:
        stages = self.chain.stages
        bent = [name for name, stage in stages.items() if isinstance(stage, Activation)]
        total = jnp.maximum(jnp.sum(jnp.where(ok, rows, 0)), 1)
        widths = [stage.outputs for stage in stages.values() if isinstance(stage, Dense)]

        def of(names: list[str], squares: Array) -> dict[str, Array]:
            return {n: jnp.sqrt(s / (total * w)) for n, s, w in zip(names, _sum(ok, squares), widths, strict=False)}

        return {"residual": of(self._linear, sums.linear) | of(bent, sums.bent)}

    def params(self, state: _State) -> Params:
        return state.params


def _sum(ok: Bool[Array, " shards"], parts: Float[Array, "shards ..."]) -> Array:
    """Over the shards that answered, in their order."""
    return functools.reduce(jnp.add, jnp.where(ok.reshape(-1, *[1] * (parts.ndim - 1)), parts, 0))


def _where(ok: Bool[Array, " shards"], new: PyTree, old: PyTree) -> PyTree:
    def one(n: Array, o: Array) -> Array:
        return jnp.where(ok.reshape(-1, *[1] * (n.ndim - 1)), n, o)

    return jtu.tree_map(one, new, old)


def _check_chain(chain: Any) -> None:
    """**Raises** `ValueError` for anything but `Dense` and `Activation` in turn."""
    if not isinstance(chain, Chain):
        raise ValueError(f"`LayerwiseADMM({chain!r})`: expected a `Chain` of `Dense` and `Activation` stages.")
    stages = list(chain.stages.items())
    for i, (name, stage) in enumerate(stages):
        wanted = Activation if i % 2 else Dense
        if not isinstance(stage, wanted) or (i == len(stages) - 1 and wanted is Activation):
            raise ValueError(
                f"`LayerwiseADMM(chain)`: stage `{name}` is a `{type(stage).__name__}`, and it solves for `Dense` and "
                "`Activation` in turn, a `Dense` first and last. Prepare the inputs in the data; `Backprop`, "
                "with an estimator at every `Decision`, trains other chains."
            )
