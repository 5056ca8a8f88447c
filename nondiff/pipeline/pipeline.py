"""`Pipeline`: modules that are trained at the same time, each on its own device or in its own process."""

from collections.abc import Iterable, Mapping
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Key

from nondiff.core.checks import check_count
from nondiff.core.decoupled import Decoupled
from nondiff.core.domain import complete
from nondiff.core.late import LateLoss
from nondiff.core.module import Module
from nondiff.core.step import TrainState, init
from nondiff.core.trainer import AbstractTrainer, check_trainers
from nondiff.core.walk import BatchLoss
from nondiff.pipeline.devices import Devices
from nondiff.pipeline.flow import Flow
from nondiff.pipeline.places import AbstractPlace, Given
from nondiff.pipeline.stage import ModuleLoss, Parts, plan
from nondiff.pipeline.together import Together, shares, whole
from nondiff.problems import Supervised
from nondiff.run.callback import Callback, Measure, Stop
from nondiff.run.checkpoint import Checkpoint
from nondiff.run.fit import Result, check_alike, checked_key, drive, given_state
from nondiff.run.hooks import Hooks


class Pipeline:
    """The second driver beside `fit`: the modules of a `Decoupled` work at the same time, each at another batch.

    **Arguments:**

    - `problem`: a `Supervised` with data in memory, and the loss of a `Decoupled`. What its modules wait for comes
      `Decoupled(late=...)` steps late: at least 1, and 2 or more for two modules to work at the same time.
    - `trainer`: of each module, by its name, that of the boundary behind it or of the last stage; or one for all. Where
      it searches, it goes by a loss that is known there: the module has a `LocalLoss`, or is the last.
    - `place`: `Devices()` (default), `Devices(jax.devices())`, or `Actors()`.
    - `queue`: steps that the fastest module may be ahead of the slowest, 1 or more (default 8).
    - `deterministic`: do modules wait for the message of the step that is `late` steps back (default)? Then there are
      the same bits at every place. Otherwise a signal that is only fitted to messages takes the newest one that is
      there, if it is at most `late` steps old, and its module never waits.

    `fit` trains the same problem to the same parameters, to rounding: it has all modules in one compiled program. With
    predicted inputs the `loss` of a row is that of the last module, from predictions; that of `fit` is the true one.

    **Raises** `ValueError` for a problem that has no modules, messages that would have to come at once, a trainer that
    is missing or searches without a loss, a part without derivative under a trainer that asks for one.

    >>> import jax, jax.numpy as jnp, nondiff, optax
    >>> x = jax.random.normal(jax.random.key(0), (256, 2))
    >>> answers = (x[:, 0] * x[:, 1] > 0).astype(int)
    >>> chain = nondiff.Chain({
    ...     "in": nondiff.Dense(2, 32), "bend": nondiff.Activation(nondiff.Relu()), "out": nondiff.Dense(32, 2)
    ... })
    >>> model = nondiff.Decoupled(chain, signal={"bend": nondiff.LocalLoss()}, like=(x, answers))
    >>> loss = model.loss(optax.softmax_cross_entropy_with_integer_labels)
    >>> problem = nondiff.Supervised(loss, (x, answers), params=model.init, batch_size=64)
    >>> pipeline = Pipeline(problem, nondiff.Backprop(optax.adam(0.03)))
    >>> result = pipeline.fit(steps=300, key=jax.random.key(1), log_every=100)
    >>> bool((model(result.params, x).argmax(-1) == answers).mean() > 0.95)
    True
    """

    def __init__(
        self,
        problem: Supervised,
        trainer: AbstractTrainer | Mapping[str, AbstractTrainer],
        place: AbstractPlace | None = None,
        *,
        queue: int = 8,
        deterministic: bool = True,
    ):
        check_count("Pipeline", "queue", queue)
        self.place = Devices() if place is None else place
        if not isinstance(self.place, AbstractPlace):
            raise ValueError(f"`Pipeline(place={place!r})`: expected a place, for example `Actors()`.")
        self.problem, self.queue, self.deterministic = problem, queue, deterministic
        self._loss = _late(problem)
        self.modules = self._loss.modules
        self.trainers = _trainers(trainer, self.modules)
        self.place.check(len(self.modules))
        self._parts = [Parts(self._problem(module), self.trainers[module.name]) for module in self.modules]

    def fit(
        self,
        *,
        steps: int,
        key: Key[Array, ""] | None = None,
        state: TrainState | Checkpoint | None = None,
        metrics: Iterable[Measure] = (),
        callbacks: Iterable[Callback] = (),
        stop: Iterable[Stop] = (),
        log_every: int = 100,
    ) -> Result:
        """Train until `steps` steps are done; arguments, result and errors as of `nondiff.fit`.

        At a row of the log (default: every 100 steps) the modules come together. It has the metrics of the last module,
        and those of the others under their names. After an error, `error.state` is the last state that was kept.
        """
        check_count("Pipeline.fit", "steps", steps, least=0)
        check_count("Pipeline.fit", "log_every", log_every)
        hooks = Hooks(metrics, callbacks, stop)
        memory = state.memory if isinstance(state, Checkpoint) else None
        begin = given_state("Pipeline.fit", key, state)
        if begin is None:
            begin = self.init(key=key)
        else:
            check_alike("Pipeline.fit", begin, self.init(key=jax.random.key(0)), "pipeline")
        session = self.place.open(self.given(begin))
        try:
            flow = Flow(
                self.problem,
                Together(self.trainers),
                self.modules,
                session,
                begin,
                queue=self.queue,
                waits=self.deterministic,
                keep_every=self.place.checkpoint_every,
            )
            return drive(flow, hooks, memory, steps, log_every)
        finally:
            session.close()

    def init(self, *, key: Key[Array, ""] | None) -> TrainState:
        """The state of all modules before the first step."""
        key = checked_key("Pipeline", key)
        states = [init(part.problem, part.trainer, key=key) for part in self._parts]
        return whole(states, self.modules, self.problem.cases)

    def given(self, state: TrainState) -> list[Given]:
        """Every module, as it goes on from a state of all."""
        given = []
        for part, own in zip(self._parts, shares(state, self.modules), strict=True):
            started = part._replace(problem=eqx.tree_at(lambda p: p.params, part.problem, None))
            given.append(Given(started, own, plan(part, own)))
        return given

    def _problem(self, module: Module) -> Supervised:
        """A module's own: its share of the parameters, and of the data what it sees."""
        x, answers = self.problem.data
        loss = ModuleLoss(self.modules, module.number, self._loss.compare)
        problem = self.problem

        def share(key: Key[Array, ""]) -> Any:
            return module.share(problem.init(key=key))

        params = problem.init(key=jax.random.key(0))
        domain = module.share(complete(problem.domain(params), params))
        sees = module.below is None or module.predicts is not None
        sizes = {"batch_size": problem.batch_size, "shards": problem.shards}
        return Supervised(loss, (x if sees else None, answers), params=share, domain=domain, **sizes)


def _late(problem: Any) -> LateLoss:
    """The loss, as one of modules."""
    if not isinstance(problem, Supervised) or not isinstance(problem.fn, LateLoss | BatchLoss):
        raise ValueError(
            f"`Pipeline(problem={type(problem).__name__})`: expected a `Supervised` with the loss of a `Decoupled`, "
            "`Supervised(model.loss(compare), data, params=model.init)`."
        )
    if problem.data is None:
        raise ValueError("`Pipeline`: batches come from outside; give the data as arrays.")
    loss = problem.fn
    if isinstance(loss, BatchLoss):
        if not isinstance(loss.model, Decoupled):
            raise ValueError("`Pipeline`: a `Chain` is one module; cut it, `Decoupled(chain, signal=..., like=batch)`.")
        loss = LateLoss(loss.model.parts, loss.model.places, loss.compare)
    for module in loss.modules:
        if module.predicts is not None and not module.climb:
            raise ValueError(
                f"`Pipeline`: activations would have to come to module `{module.name}` within the step, which has "
                "predicted inputs to do without. Say how many steps late they may come, `Decoupled(..., late=2)`."
            )
        if module.source != "nothing" and not module.late:
            raise ValueError(
                f"`Pipeline`: what `{module.signal!r}` hears at boundary `{module.name}` would have to come within the "
                "step. Say how many steps late it may come, `Decoupled(..., late=2)`."
            )
    if not (isinstance(problem.data, tuple | list) and len(problem.data) == 2):
        raise ValueError("`Pipeline`: expected data as a pair, `(inputs, answers)`.")
    if not jax.tree.leaves(problem.data[1]):
        raise ValueError("`Pipeline`: there are no answers, by which each module would know its batch.")
    return loss


def _trainers(trainer: Any, modules: tuple[Module, ...]) -> dict[str, AbstractTrainer]:
    names = [module.name for module in modules]
    trainers: dict[str, Any] = dict(trainer) if isinstance(trainer, Mapping) else dict.fromkeys(names, trainer)
    if sorted(trainers) != sorted(names):
        raise ValueError(f"`Pipeline(trainer=...)` has {sorted(trainers)}; expected one for each of {names}.")
    check_trainers("Pipeline", *trainers.values())
    return {name: trainers[name] for name in names}
