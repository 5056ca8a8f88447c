"""Any algorithm of evosax (Lange, 2022, "evosax: JAX-based Evolution Strategies", https://arxiv.org/abs/2212.04180).

evosax searches among vectors of D real numbers. Here they are the leaves of a parameter tree, one after another, on the
scale on which steps are taken, in at least 32 bits. Candidates are moved inside the bounds and cast to the leaves'
types, and evosax is told of the points that were evaluated. What it may not survive is kept from it: losses that are
NaN or infinite, or so large that their squares are.
"""

import dataclasses
import difflib
import inspect
from collections.abc import Collection, Iterable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Key, PyTree

from nondiff.core import words
from nondiff.core.checks import check_count, check_positive
from nondiff.core.population import Points, Population
from nondiff.core.problem import Params
from nondiff.core.query import Evaluation, Query
from nondiff.core.trainer import AbstractTrainer, Metrics, check_optimizer, check_real
from nondiff.core.tree import none_like, select

LARGE = 1e9
"""Losses beyond it are told by their logarithm: in the same order, and sums of their squares stay finite."""


class _State(eqx.Module):
    params: Params  # to deploy
    domain: PyTree
    inner: Any  # evosax's own
    begun: Bool[Array, ""]  # False: a first population has to be evaluated


def _import() -> Any:
    try:
        import evosax.algorithms
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("`Evosax` needs evosax: `pip install evosax`.") from error
    return evosax.algorithms


def _strategy(given: Any) -> type:
    algorithms = _import()
    if isinstance(given, str):
        _check_known("algorithm of evosax", [given], algorithms.algorithms)
        return algorithms.algorithms[given]
    if not (isinstance(given, type) and issubclass(given, algorithms.base.EvolutionaryAlgorithm)):
        raise ValueError(
            f"`Evosax({given!r})`: expected a class of `evosax.algorithms`, not an object of it, or its name; for "
            "example `evosax.algorithms.CMA_ES`."
        )
    return given


def _check_known(what: str, given: Iterable[str], known: Collection[str]) -> None:
    """**Raises** `ValueError` for the first name that is not known."""
    lower = {x.lower(): x for x in known}
    for name in given:
        if name not in known:
            near = "".join(f" Did you mean `{lower[x]}`?" for x in difflib.get_close_matches(name.lower(), lower, 1))
            raise ValueError(f"`Evosax`: `{name}` is no {what}.{near} There are: {', '.join(known) or 'none'}.")


class Evosax(AbstractTrainer[_State]):
    """A search by an algorithm of `evosax.algorithms`, 0.3 or later: `pip install evosax`.

    **Arguments:**

    - `strategy`: a class of `evosax.algorithms`, or its name; built here, to fit the parameters.
    - `population`: evaluations a step, P, over all populations where an algorithm has several. No default: evosax has
      none, and what works differs from 16 (`CMA_ES`) to hundreds.
    - `scale`: of the first population, where an algorithm begins with one (differential evolution, particle swarms,
      genetic algorithms), and of the first means of those with several (`SV_CMA_ES`, `SV_Open_ES`). The starting point
      is one of them, the rest are uniform samples of bounded leaves, and of others steps of this standard deviation
      (default 1, evosax's own unit). The other algorithms begin at the starting point, whatever the scale.
    - `settings`: replace fields of the algorithm's `default_params`. evosax's default of `std_init`, for example, is 1,
      in units of the leaves (of their logarithms under `Real(log=True)`): too much for most networks.
    - `arguments`: of the algorithm's constructor: `optimizer`, `std_schedule`; `num_populations`, which `SV_CMA_ES` and
      `SV_Open_ES` need; `sampling_fn`, which `RandomSearch` needs. That takes a key and gives a vector `[D]` of all
      leaves, one after another, logarithms for `Real(log=True)`.

    Deployed is the algorithm's mean, or the best member of the population that it keeps; of several means the one whose
    population was better on average. `sigma` in the metrics is the mean of its `std`, if it has one.

    An algorithm that keeps a population compares new losses with old ones: it is for a loss that does not change. A
    failed evaluation is the worst of its step; where old losses are kept, worse than all of them. A distribution stays
    as it is where all losses are equal. Memory: all members at once, P x D numbers.

    **Raises** `ModuleNotFoundError` without evosax; `ValueError` for an algorithm or an argument that evosax does not
    have, and one that is missing; and, when training starts, for settings that the algorithm does not have, what it
    refuses itself, and a leaf that is not a real number.

    >>> import jax, jax.numpy as jnp, nondiff
    >>> from evosax.algorithms import CMA_ES
    >>> scale = jnp.array([1.0, 10.0, 100.0])
    >>> problem = nondiff.BlackBox(lambda x: jnp.sum((scale * (x - 3.0)) ** 2), jnp.zeros(3))
    >>> trainer = Evosax(CMA_ES, population=16, settings={"std_init": 0.5})
    >>> result = nondiff.fit(problem, trainer, steps=150, key=jax.random.key(0))
    >>> bool(jnp.allclose(result.params, 3.0, atol=1e-4))
    True
    """

    strategy: type = eqx.field(static=True, converter=_strategy)
    population: int = eqx.field(kw_only=True, static=True)
    scale: int | float = eqx.field(kw_only=True, static=True, default=1.0)
    settings: dict[str, Any] = eqx.field(kw_only=True, default_factory=dict)
    arguments: dict[str, Any] = eqx.field(kw_only=True, default_factory=dict)
    traceable: ClassVar[bool] = True

    def __check_init__(self) -> None:
        check_count("Evosax", "population", self.population)
        check_positive("Evosax", "scale", self.scale)
        signature, mine = inspect.signature(self.strategy), ("population_size", "solution", "metrics_fn")
        name, known = self.strategy.__name__, [x for x in signature.parameters if x not in mine]
        _check_known(f"argument of `{name}`", self.arguments, known)
        try:
            signature.bind(population_size=self.population, solution=None, **self.arguments)
        except TypeError as error:
            raise ValueError(f"`Evosax({name}, arguments={{...}})`: {error}.") from None
        if "optimizer" in self.arguments:
            check_optimizer("Evosax", self.arguments["optimizer"])
        check_count("Evosax", "num_populations", self._populations)
        if self.population % self._populations:
            raise ValueError(
                f"`Evosax(population={self.population})`: they are shared evenly between {self._populations} "
                "populations; use a multiple."
            )

    @property
    def _populations(self) -> int:
        return self.arguments.get("num_populations", 1)

    @property
    def _selects(self) -> bool:
        """Does the algorithm keep a population, rather than a distribution?"""
        return issubclass(self.strategy, _import().population_based.base.PopulationBasedAlgorithm)

    def _algorithm(self, start: Float[Array, " d"]) -> tuple[Any, Any]:
        """evosax's object and its hyperparameters: a function of my fields and of a shape, so built where needed."""
        name, size = self.strategy.__name__, self.population // self._populations
        # At once, even under `jit`: it must not hold on to what is only traced.
        with jax.ensure_compile_time_eval():
            try:
                solution = jnp.zeros(start.shape, start.dtype)
                algorithm: Any = self.strategy(population_size=size, solution=solution, **self.arguments)
                settings = algorithm.default_params
            except (AssertionError, ValueError) as error:
                raise ValueError(f"`Evosax({name}, population={self.population})`: {error}") from error
            _check_known(f"setting of `{name}`", self.settings, [x.name for x in dataclasses.fields(settings)])
            return algorithm, settings.replace(**self.settings)

    def _around(self, params: Params, domain: PyTree, n: int, key: Key[Array, ""]) -> Float[Array, "n d"]:
        """The parameters themselves, and samples of the domain around them."""
        scale = jnp.asarray(self.scale, float)

        def sample(key: Key[Array, ""]) -> Array:
            drawn = words.like(key, params)
            point = jtu.tree_map(lambda x, d, w: d.sample(x, scale, words=w), params, domain, drawn)
            return _vector(point, domain)

        return jax.vmap(sample)(words.split(key, n)).at[0].set(_vector(params, domain))

    def init(self, params: Params, domain: PyTree, *, key: Key[Array, ""]) -> _State:
        check_real("Evosax", params, domain)
        k_start, k_init = words.split(key)
        start = self._around(params, domain, self.population if self._selects else self._populations, k_start)
        algorithm, settings = self._algorithm(start[0])
        if self._selects:  # for the shapes; the first step draws its population, and begins anew with its losses
            inner = algorithm.init(k_init, start, jnp.zeros(self.population), settings)
        else:
            inner = algorithm.init(k_init, start if "num_populations" in self.arguments else start[0], settings)
        return _State(params, domain, inner, jnp.asarray(not self._selects))

    def ask(self, state: _State, *, key: Key[Array, ""]) -> Query:
        k_first, k_points, k_evaluation = words.split(key, 3)
        algorithm, settings = self._algorithm(_vector(state.params, state.domain))
        points, inner = algorithm.ask(k_points, state.inner, settings)
        if self._selects:
            first = self._around(state.params, state.domain, self.population, k_first)
            points = jnp.where(state.begun, points, first)
        members = jax.vmap(lambda u: _member(u, state.params, state.domain))(points)
        # What evosax's `ask` changes in its state its `tell` will need: the query takes it there.
        population = Population(inner, members, Points())
        keys = jnp.broadcast_to(k_evaluation, (self.population,))  # common random numbers: members are compared
        return Query(population, none_like(state.params), keys)

    def tell(self, state: _State, query: Query, answer: Evaluation, *, key: Key[Array, ""]) -> tuple[_State, Metrics]:
        domain = state.domain
        points = jax.vmap(lambda x: _vector(x, domain))(query.population.each)
        losses = _bearable(jnp.asarray(answer.ranked), kept=self._selects)
        algorithm, settings = self._algorithm(points[0])
        inner, _ = algorithm.tell(key, points, losses, query.population.shared, settings)
        if self._selects:
            inner = select(state.begun, inner, algorithm.init(key, points, losses, settings))
            found = algorithm.get_best_solution(inner)
        else:
            # Equal losses say nothing, but evosax would narrow its distribution until it divides 0 by 0.
            inner = select(jnp.all(losses == losses[0]), state.inner, inner)
            # All members of a mean far beyond a bound would be the same point of it.
            wide = jtu.tree_map(lambda x: x.astype(points.dtype), state.params)
            inside = jnp.vectorize(lambda u: _vector(_member(u, wide, domain), domain), signature="(d)->(d)")
            inner = inner.replace(mean=inside(inner.mean))
            found = algorithm.get_mean(inner)
            if "num_populations" in self.arguments:
                found = found[jnp.argmin(jnp.mean(losses.reshape(self._populations, -1), 1))]
        metrics = {"sigma": jnp.mean(inner.std)} if hasattr(inner, "std") else {}
        # Python's numbers in evosax are of weak types, which would compile the next step anew.
        inner = jtu.tree_map(lambda new, old: jnp.asarray(new).astype(old.dtype), inner, state.inner)
        return _State(_member(found, state.params, domain), domain, inner, jnp.ones_like(state.begun)), metrics

    def params(self, state: _State) -> Params:
        return state.params


def _vector(params: Params, domain: PyTree) -> Float[Array, " d"]:
    kind = jnp.result_type(jnp.float32, *jtu.tree_leaves(params))
    return ravel_pytree(jtu.tree_map(lambda x, d: d.encode(x.astype(kind)), params, domain))[0]


def _member(u: Float[Array, " d"], like: Params, domain: PyTree) -> Params:
    """What a vector stands for: inside the bounds, in the leaves' types, and still finite there."""

    def one(part: Array, x: Array, d: Any) -> Array:
        most = float(jnp.finfo(x.dtype).max)
        return jnp.clip(d.decode(part), -most, most).astype(x.dtype)

    _, parts = ravel_pytree(jtu.tree_map(lambda x: x.astype(u.dtype), like))
    return jtu.tree_map(one, parts(u), like, domain)


def _bearable(losses: Float[Array, " pop"], *, kept: bool) -> Float[Array, " pop"]:
    """All finite and in the same order, the failed ones last. `kept`: to be compared with losses of other steps."""
    size = jnp.abs(losses)
    losses = jnp.where(size > LARGE, jnp.sign(losses) * LARGE * (1 + jnp.log(size / LARGE)), losses)
    ok, limits = jnp.isfinite(losses), jnp.finfo(losses.dtype)
    # A little worse than the worst: the best of a step with a single answer must not be one that failed.
    worst = jnp.max(losses, where=ok, initial=limits.min)
    failed = worst + jnp.maximum(limits.eps * jnp.abs(worst), limits.tiny)
    # The worst of a step may be better than a member's parent, whose place a failed child must not take.
    return jnp.where(ok, losses, 1_000 * LARGE if kept else failed)
