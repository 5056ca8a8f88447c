"""The lists. One line here buys a trainer, problem, evaluator or estimator the whole contract suite."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import nondiff as nd


def says(*parts: str) -> Any:
    """The block raises `ValueError`, and its message has the parts, patterns, in this order."""
    return pytest.raises(ValueError, match=".*".join(parts))


def adam(rate: float = 0.1, steps: int = 200) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(rate, steps, 0.1))


TRAINERS: dict[str, nd.AbstractTrainer] = {
    "admm_backprop": nd.ADMM(nd.Backprop(adam()), nd.prox.L1(1e-3), rho=nd.BalancedRho(0.1), relaxation=1.6),
    "admm_cma_es": nd.ADMM(nd.CMAES(0.5), nd.prox.Box(-3.0, 3.0), rho=0.1),
    "admm_open_es": nd.ADMM(
        nd.OpenES(adam(), sigma=0.1, population=16), nd.prox.L1(1e-3), rho=nd.GrowingRho(0.01), warmup=20
    ),
    "admm_split": nd.ADMM(
        nd.Split(
            {"slope": nd.Backprop(adam()), "search": nd.OpenES(adam(), sigma=0.1, population=16)},
            {"a": "slope", "b": "search"},
        ),
        nd.prox.Box(-3.0, 3.0),
        rho=0.1,
        every=3,
    ),
    "alternate": nd.Alternate(
        {"slope": nd.Backprop(adam()), "search": nd.OpenES(adam(0.2), sigma=0.1, population=16)},
        {"a": "slope", "b": "search"},
        steps={"slope": 1, "search": 2},
    ),
    "ars": nd.ARS(adam(), sigma=0.1, population=16),
    "backprop": nd.Backprop(adam()),
    "backprop_samples": nd.Backprop(adam(), samples=3),
    "best_open_es": nd.Best(nd.OpenES(adam(), sigma=0.1, population=16)),
    "cma_es": nd.CMAES(0.5),
    "consensus": nd.Consensus(nd.Backprop(adam()), shards=2, every=5, rho=1.0),
    "consensus_open_es": nd.Consensus(nd.OpenES(adam(), sigma=0.1, population=16), shards=2, every=5, rho=0.3),
    "evosax_cma_es": nd.Evosax("CMA_ES", population=16, settings={"std_init": 0.3}),
    "evosax_de": nd.Evosax("DifferentialEvolution", population=32),
    "genetic": nd.Genetic(population=32),
    "memetic": nd.Memetic(nd.Genetic(population=8), rate=0.5),
    "open_es": nd.OpenES(adam(), sigma=0.1, population=16),
    "open_es_zscore": nd.OpenES(adam(), sigma=0.1, population=15, weighting=nd.ZScore(), antithetic=False),
    "open_es_rank_1": nd.OpenES(adam(), sigma=0.1, population=16, rank=1),
    "pgpe": nd.PGPE(adam(), sigma=0.1, population=16),
    "pgpe_rank_1": nd.PGPE(adam(), sigma=0.1, population=16, rank=1),
    "restart": nd.Best(nd.Restart(nd.CMAES(0.5))),
    "restart_stall": nd.Restart(nd.Backprop(adam()), on=nd.Stall(window=50), schedule=nd.Same()),
    "sep_cma_es": nd.SepCMAES(0.5),
    "snes": nd.SNES(sigma=0.3, population=16),
    "snes_rank_1": nd.SNES(sigma=0.3, population=16, rank=1),
    "split": nd.Split(
        {"slope": nd.Backprop(adam()), "search": nd.OpenES(adam(), sigma=0.1, population=16)},
        {"a": "slope", "b": "search"},
    ),
}

_STEPS = nd.Chain({"in": nd.Dense(2, 4), "bend": nd.Activation(nd.Step()), "out": nd.Dense(4, 1)})
_POINTS = np.random.default_rng(1).normal(size=(20, 2)).astype(np.float32)

_LINES = nd.Instructions(["v[a] = v[a] * v[b]", "v[a] = v[a] + v[b]"], {"v": nd.Cells(["x", "1"])}, "v[0]")
_PROGRAM = nd.Program(_LINES, length=4)


def _differs(genome: nd.Genome, x: Any, key: Any) -> Any:
    return jnp.minimum(jnp.abs(_PROGRAM(genome, x) - (x**2 + 1)), 100).astype(jnp.float32)


ON_THEIR_OWN: dict[str, tuple[nd.AbstractTrainer, nd.AbstractProblem]] = {
    "layerwise_admm": (
        nd.LayerwiseADMM(_STEPS, nd.SquaredError(), rows=20, shards=4),
        nd.Supervised(_STEPS.loss(nd.SquaredError()), (_POINTS, np.abs(_POINTS[:, :1])), params=_STEPS.init),
    ),
    "genetic_programming": (
        nd.GeneticProgramming(population=32),
        nd.Supervised(_differs, np.arange(-4, 5), params=_PROGRAM.init, domain=_PROGRAM.domain),
    ),
}
"""Trainers of one kind of model, with a problem that has it."""

FOR_STEADY_LOSSES = {"best_open_es", "evosax_de"} | {  # they keep losses
    "admm_cma_es",  # and these shrink their sigma
    "cma_es",
    "evosax_cma_es",
    "pgpe",
    "pgpe_rank_1",
    "restart",
    "sep_cma_es",
    "snes",
    "snes_rank_1",
}

WITH_GRADIENT = {
    "admm_backprop",
    "admm_split",
    "alternate",
    "backprop",
    "backprop_samples",
    "consensus",
    "memetic",
    "restart_stall",
    "split",
}

EVALUATORS: dict[str, nd.AbstractEvaluator] = {
    "host": nd.Host(chunk=5),
    "ray": nd.Ray(workers=1, chunk=5),
    "vmap": nd.Vmap(),
    "vmap_4": nd.Vmap(chunk=4),
}

ESTIMATORS: dict[str, nd.AbstractEstimator] = {
    "auto": nd.Auto(),
    "auto_samples": nd.Auto(limit=8, samples=20),
    "indecater": nd.IndeCateR(8),
    "indecater_expected": nd.IndeCateR(1, objective=nd.ExpectedLoss()),
    "marginal_likelihood": nd.MarginalLikelihood(20),
    "score_function": nd.ScoreFunction(8),
    "score_function_entropy": nd.ScoreFunction(8, entropy=0.01),
    "score_function_no_baseline": nd.ScoreFunction(8, baseline=nd.NoBaseline()),
    "smoothing": nd.Smoothing(8),
    "smoothing_unbiased": nd.Smoothing(4, normalize=False, entropy=0.0),
    "splitting": nd.Splitting(4),
    "surrogate": nd.Surrogate(nd.LossModel(2, 3, width=8, key=jr.key(0))),
    "tabulate": nd.Tabulate(),
    "tabulate_expected": nd.Tabulate(objective=nd.ExpectedLoss()),
}

DECIDED: dict[str, tuple[nd.AbstractEstimator, Any]] = {
    "auto_round": (nd.Auto(), jnp.round),
    "blackbox": (nd.Blackbox(2.0, maximize=True), nd.one_hot),
    "blackbox_costs": (nd.Blackbox(2.0), lambda costs: nd.TopK(2)(-costs)),
    "perturbed": (nd.Perturbed(8), nd.one_hot),
    "perturbed_top_k": (nd.Perturbed(8, sigma=0.5), nd.TopK(2)),
    "straight_through_clipped": (nd.StraightThrough(nd.Clipped()), jnp.sign),
    "straight_through_gumbel": (nd.StraightThrough(nd.GumbelSoftmax()), nd.one_hot),
    "straight_through_round": (nd.StraightThrough(), jnp.round),
    "straight_through_softmax": (nd.StraightThrough(nd.Softmax(0.5)), nd.TopK(2)),
}
"""Estimators for a `rest` that has a derivative in the decision, and the decision."""

SIGNALS: dict[str, nd.AbstractSignal] = {
    "delayed": nd.Delayed(),
    "feedback_alignment": nd.FeedbackAlignment(),
    "forward_gradient": nd.ForwardGradient(samples=2),
    "local_loss": nd.LocalLoss(),
    "local_loss_hidden": nd.LocalLoss(net=nd.Hidden(8)),
    "local_loss_similarity": nd.LocalLoss(similarity=0.9),
    "locked": nd.Locked(),
    "synthetic_gradient": nd.SyntheticGradient(),
    "synthetic_gradient_damped": nd.SyntheticGradient(damping=0.3),
    "synthetic_gradient_hidden": nd.SyntheticGradient(net=nd.Hidden(8)),
    "synthetic_gradient_mixed": nd.SyntheticGradient(mix=0.5),
    "synthetic_gradient_unconditioned": nd.SyntheticGradient(conditioned=False),
}


def start() -> Any:
    """The parameters of every problem here: names that `TRAINERS["split"]` labels."""
    return {"a": jnp.array([1.0, -1.0]), "b": {"w": jnp.ones((2, 3))}}


def _regression(params: Any, batch: Any, key: Any) -> Any:
    x, y = batch
    return (jnp.tanh(x @ params["b"]["w"]).sum(-1) + params["a"][0] * x[:, 0] + params["a"][1] - y) ** 2, {
        "noise": jr.normal(key, ())
    }


def _through_a_program(params: Any, batch: Any, key: Any) -> Any:
    x, y = batch
    logits = jnp.stack([x @ params["b"]["w"], params["a"][0] * x[:, :1] * jnp.array([1.0, 0.0, -1.0])], 1)

    def rest(symbols: Any) -> Any:
        return (PROGRAM(symbols) != y).astype(jnp.float32)

    return nd.through(rest, logits, via=nd.MarginalLikelihood(5), key=key)


PROGRAM = nd.Opaque(lambda symbols: int(symbols.sum()), jax.ShapeDtypeStruct((), jnp.int32))


def _rows(n: int) -> Any:
    random = np.random.default_rng(0)
    x = random.normal(size=(n, 2)).astype(np.float32)
    return x, x.sum(1) - 1


def _sums_of_symbols(n: int) -> Any:
    """What `_through_a_program` answers where `w` is this, and `a` as at the start."""
    x, _ = _rows(n)
    w = np.array([[1.0, 0.0, -1.0], [0.0, 1.0, -1.0]], np.float32)
    return x, (x @ w).argmax(1) + np.where(x[:, 0] > 0, 0, 2)


class _Growing(nd.AbstractWindows):
    """The sums of two numbers so far, of sequences that grow, through two steps at a time."""

    loss_of: nd.WindowLoss

    def init(self, *, key: Any) -> Any:
        del key
        return start()

    def start(self) -> Any:
        return jnp.int32(3)

    def learned(self, progress: Any, score: Any) -> Any:
        return jnp.minimum(progress + (score < 1e6), 5)

    def draw(self, progress: Any, *, key: Any) -> nd.Sequences:
        x = jr.normal(key, (4, 5, 2))
        counts = jnp.broadcast_to(jnp.arange(5) < progress, (4, 5))
        return nd.Sequences(x, jnp.cumsum(x, 1).sum(-1), counts.astype(jnp.float32))

    def loss(self, params: Any, batch: Any, *, key: Any) -> Any:
        return nd.AbstractWindows.loss(self, {"model": params}, batch, key=key)


def _error(outputs: Any, answers: Any) -> Any:
    return (outputs - answers) ** 2


def _sums(params: Any, h: Any, x: Any) -> Any:
    h = h + jnp.tanh(x @ params["b"]["w"])
    return h, h.sum(-1) + params["a"][0] * x[:, 0] + params["a"][1]


PROBLEMS: dict[str, nd.AbstractProblem] = {
    "black_box": nd.BlackBox(lambda p: jnp.sum((p["a"] - 0.5) ** 2) + jnp.sum(jnp.abs(p["b"]["w"])), start()),
    "black_box_numpy": nd.BlackBox(lambda p: float(np.sum(p["a"] ** 2) + np.abs(p["b"]["w"]).sum()), start()),
    "black_box_vectorized": nd.BlackBox(
        lambda p: jnp.sum(p["a"] ** 2, 1) + jnp.sum(p["b"]["w"] ** 2, (1, 2)), start(), vectorized=True
    ),
    "gym": nd.Gym(
        "Pendulum-v1",
        lambda params, o: jnp.tanh(params["b"]["w"] @ o)[:1] + params["a"][:1] * o[2],
        params=start(),
        steps=10,
    ),
    "supervised": nd.Supervised(_regression, _rows(20), params=start(), batch_size=8, shards=2),
    "supervised_all": nd.Supervised(_regression, _rows(8), params=lambda key: start()),
    "opaque": nd.Supervised(
        _through_a_program,
        _sums_of_symbols(8),
        params=start(),
        batch_size=4,
        shards=2,
        domain=nd.Real(-5.0, 5.0),
    ),
    "windows": _Growing(nd.Unroll(_sums, start(), jnp.zeros(3), window=2).loss(_error, _error)),
}

WITH_ROWS = {"supervised", "supervised_all", "opaque"}


def possible(trainer: str, problem: str, evaluator: str = "vmap") -> bool:
    """Does this combination exist? A gradient needs a problem and an evaluator that JAX can trace, shards need rows."""
    if trainer.startswith("consensus") and problem not in WITH_ROWS:
        return False
    host = not PROBLEMS[problem].traceable
    if host and EVALUATORS[evaluator].traceable:
        return False
    return not (trainer in WITH_GRADIENT and (host or not EVALUATORS[evaluator].gradients))


NO_GAIN = {("evosax_de", "windows")}
"""Trainers that do not claim to learn a problem within 30 steps: this one keeps losses that were lucky."""
