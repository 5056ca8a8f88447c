"""Which values a leaf may take, and how one moves among them.

A domain is all that a search trainer needs to know about a leaf: how to draw a value, which values are near another
one, and how to bring a stray value back. `Problem.domain` gives a tree of domains, a prefix of the parameters.
"""

import abc
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree, UInt

from nondiff.core.exact import exactly, namespace
from nondiff.core.tree import broadcast, is_traced, map_named
from nondiff.core.words import below, normal, uniform

Leaf = Array | np.ndarray
"""NumPy's on the host, of 64 bits (`nondiff.core.exact`)."""


class AbstractDomain(eqx.Module):
    """The values of one leaf, coordinate by coordinate.

    `words` are random bits, a word of 32 for each coordinate, shaped like the leaf. `nondiff.core.words` makes numbers
    of them: `uniform(words)`, `normal(words)`, `below(words, n)`. Nothing else of a domain is random. Whoever calls it
    draws the words of all leaves at once (`nondiff.core.words.like`).
    """

    @abc.abstractmethod
    def check(self, leaf: Leaf, name: str) -> None:
        """Raise `ValueError` if the leaf called `name` has a dtype that cannot lie in this domain."""

    @abc.abstractmethod
    def sample(self, x: Leaf, scale: Array, *, words: UInt[Array, "..."]) -> Leaf:
        """A fresh point, shaped like `x`: uniform where the domain is bounded, else a step of `scale` away from `x`."""

    @abc.abstractmethod
    def neighbour(self, x: Leaf, scale: Array, *, words: UInt[Array, "..."]) -> Leaf:
        """A point near `x`, every coordinate moved. `scale` is a share of the range where the domain is bounded."""

    @abc.abstractmethod
    def clip(self, x: Leaf) -> Leaf:
        """The nearest point inside."""


def _bound(x: Any) -> Any:
    """An infinite bound is none. In 64 bits, as it is written: those that the leaf has not are dropped at its side."""
    if x is None or np.all(np.isinf(x)):
        return None
    if not np.all(np.isfinite(x)):
        raise ValueError(f"`Real`: the bound {x} is not finite throughout; leave it out, or use a large number.")
    return np.asarray(x, dtype=float)


class Real(AbstractDomain):
    """Real numbers, `lo <= x <= hi`; unbounded where `None` (the default).

    `log=True` moves along the logarithm: steps are factors, as befits a learning rate or a penalty; it needs
    positive values. Bounds may be arrays that broadcast against the leaf.

    >>> import jax.numpy as jnp
    >>> Real(0.0, 1.0).clip(jnp.array([-3.0, 0.25]))
    Array([0.  , 0.25], dtype=float32)
    """

    lo: Leaf | None = eqx.field(default=None, converter=_bound)
    hi: Leaf | None = eqx.field(default=None, converter=_bound)
    log: bool = eqx.field(static=True, default=False)

    def __check_init__(self) -> None:
        if self.lo is not None and self.hi is not None and not np.all(self.lo < self.hi):
            raise ValueError(f"`Real(lo={self.lo}, hi={self.hi})`: `lo` must be below `hi`.")
        if self.log and self.lo is not None and not np.all(self.lo > 0):
            raise ValueError(f"`Real(lo={self.lo}, log=True)`: a log scale needs `lo` above 0, for example `lo=1e-6`.")
        if self.log and self.hi is not None and not np.all(self.hi > 0):
            raise ValueError(f"`Real(hi={self.hi}, log=True)`: a log scale needs `hi` above 0; no value would fit.")

    def __repr__(self) -> str:
        parts = [f"{name}={bound}" for name, bound in (("lo", self.lo), ("hi", self.hi)) if bound is not None]
        return f"Real({', '.join([*parts, *['log=True'] * self.log])})"

    @property
    def constrained(self) -> bool:
        """Is there any bound?"""
        return self.lo is not None or self.hi is not None

    def check(self, leaf: Leaf, name: str) -> None:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"`{name}` is {leaf.dtype}, and its domain is `Real`. Make it a float array, "
                "or give it `Integer(lo, hi)` or `Categorical(n)`."
            )

    def encode(self, x: Leaf) -> Leaf:
        """To the scale on which steps are taken."""
        here = namespace(x)
        return here.asarray(here.log(x)) if self.log else x

    def decode(self, u: Leaf) -> Leaf:
        """Back from that scale, inside the bounds."""
        here = namespace(u)
        return self.clip(here.asarray(here.exp(u)) if self.log else u)

    def clip(self, x: Leaf) -> Leaf:
        here = namespace(x)
        if self.log and self.lo is None:
            x = here.maximum(x, here.finfo(x.dtype).tiny)
        if self.lo is not None:
            x = here.maximum(x, self.lo.astype(x.dtype))
        if self.hi is not None:
            x = here.minimum(x, self.hi.astype(x.dtype))
        return here.asarray(x)  # of a number, NumPy makes no array

    def sample(self, x: Leaf, scale: Array, *, words: UInt[Array, "..."]) -> Leaf:
        if self.lo is None or self.hi is None:
            return self.neighbour(x, scale, words=words)
        lo, hi = self.encode(self.lo), self.encode(self.hi)
        return self.decode((lo + (hi - lo) * uniform(words)).astype(x.dtype))

    def neighbour(self, x: Leaf, scale: Array, *, words: UInt[Array, "..."]) -> Leaf:
        if self.lo is not None and self.hi is not None:
            scale = scale * (self.encode(self.hi) - self.encode(self.lo))
        step = scale * normal(words)
        return self.decode(self.encode(x) + step.astype(x.dtype))


def _between(x: Leaf, lo: int, hi: int) -> Leaf:
    here = namespace(x)
    return here.asarray(here.clip(x, lo, hi))


class _Discrete(AbstractDomain):
    @property
    @abc.abstractmethod
    def ends(self) -> tuple[int, int]:
        """The least and the greatest value."""

    def check(self, leaf: Leaf, name: str) -> None:
        if not jnp.issubdtype(leaf.dtype, jnp.integer):
            raise ValueError(
                f"`{name}` is {leaf.dtype}, and its domain is `{type(self).__name__}`. Make it an integer array, "
                "for example `jnp.zeros(shape, int)`, or give it `Real()`."
            )
        lo, hi = self.ends
        own, most = jnp.iinfo(leaf.dtype), jnp.iinfo(jnp.int32)  # of one word of 32 bits no more values are drawn
        least, greatest = max(own.min, most.min), min(own.max, most.max - 1)
        if lo < least or hi > greatest:
            raise ValueError(f"`{name}` is {leaf.dtype}, for {least} to {greatest}; its domain is {lo} to {hi}.")


class Integer(_Discrete):
    """Whole numbers, `lo <= x <= hi`, both included. Order matters: near numbers are neighbours.

    >>> import jax.numpy as jnp
    >>> Integer(0, 9).clip(jnp.array([-3, 12]))
    Array([0, 9], dtype=int32)
    """

    lo: int = eqx.field(static=True)
    hi: int = eqx.field(static=True)

    def __check_init__(self) -> None:
        if not (isinstance(self.lo, int) and isinstance(self.hi, int) and self.lo <= self.hi):
            raise ValueError(f"`Integer(lo={self.lo!r}, hi={self.hi!r})`: give two integers with `lo <= hi`.")

    @property
    def ends(self) -> tuple[int, int]:
        return self.lo, self.hi

    def clip(self, x: Leaf) -> Leaf:
        return _between(x, self.lo, self.hi)

    def sample(self, x: Leaf, scale: Array, *, words: UInt[Array, "..."]) -> Leaf:
        del scale
        return (self.lo + below(words, self.hi + 1 - self.lo)).astype(x.dtype)

    def neighbour(self, x: Leaf, scale: Array, *, words: UInt[Array, "..."]) -> Leaf:
        step = scale * (self.hi - self.lo) * normal(words)
        # A step of less than one would go nowhere: move by at least one, and turn round at a wall.
        wide = x.astype(jnp.promote_types(x.dtype, jnp.int32))  # the sum may not fit into a narrow dtype
        step = (jnp.sign(step) * jnp.maximum(jnp.round(jnp.abs(step)), 1.0)).astype(wide.dtype)
        ahead, back = self.clip(wide + step), self.clip(wide - step)
        return jnp.where((ahead == wide + step) | (back == wide), ahead, back).astype(x.dtype)


class Categorical(_Discrete):
    """`0 .. n - 1` without order: every other value is equally near.

    >>> Categorical(4)
    Categorical(n=4)
    """

    n: int = eqx.field(static=True)

    def __check_init__(self) -> None:
        if not (isinstance(self.n, int) and self.n >= 1):
            raise ValueError(f"`Categorical(n={self.n!r})`: give the number of categories, at least 1.")

    @property
    def ends(self) -> tuple[int, int]:
        return 0, self.n - 1

    def clip(self, x: Leaf) -> Leaf:
        return _between(x, 0, self.n - 1)

    def sample(self, x: Leaf, scale: Array, *, words: UInt[Array, "..."]) -> Leaf:
        del scale
        return below(words, self.n).astype(x.dtype)

    def neighbour(self, x: Leaf, scale: Array, *, words: UInt[Array, "..."]) -> Leaf:
        del scale
        wide = x.astype(jnp.promote_types(x.dtype, jnp.int32))  # the sum may not fit into a narrow dtype
        other = (1 + below(words, max(self.n, 2) - 1)).astype(wide.dtype)
        return ((wide + other) % self.n).astype(x.dtype)


def is_domain(x: Any) -> bool:
    return isinstance(x, AbstractDomain)


def complete(domain: PyTree, params: PyTree) -> PyTree:
    """One domain for every leaf of `params`, checked against it; `None` stands for `Real()` on float leaves.

    **Raises** `ValueError` if `domain` is not a prefix of `params`, an integer leaf has no domain, or a dtype does
    not fit.
    """
    full = broadcast(domain, params, what="domain", is_leaf=lambda x: x is None or is_domain(x))

    def one(name: str, leaf: Leaf, domain: Any) -> AbstractDomain:
        if domain is None and jnp.issubdtype(leaf.dtype, jnp.floating):
            return Real()
        if domain is None:
            raise ValueError(
                f"`{name}` is {leaf.dtype} and has no domain, so nobody can say which values it may take. "
                "Return `Integer(lo, hi)` or `Categorical(n)` for it from `Problem.domain` "
                "(`domain=` of `BlackBox`, `Supervised` and `minimise`)."
            )
        if not is_domain(domain):
            raise ValueError(f"the domain of `{name}` is {domain!r}; use `Real`, `Integer` or `Categorical`.")
        domain.check(leaf, name)
        return domain

    return map_named(one, params, full)


@exactly
def _inside(domain: AbstractDomain, leaf: Leaf) -> Array:
    return jnp.all(domain.clip(leaf) == leaf)


def check_inside(params: PyTree, domain: PyTree) -> None:
    """**Raises** `ValueError` for a leaf outside of its domain; says nothing of values that are not known yet."""

    def one(name: str, leaf: Any, domain: AbstractDomain) -> None:
        if isinstance(domain, Real | Integer | Categorical) and not is_traced(leaf):  # which take NumPy's as they are
            here = np.asarray(leaf)
            inside = np.all(domain.clip(here) == here)
        else:
            inside = _inside(domain, leaf)
        if not is_traced(inside) and not bool(inside):
            raise ValueError(f"`{name}` = {leaf} lies outside of its domain, {domain}. Start inside.")

    map_named(one, params, domain)
