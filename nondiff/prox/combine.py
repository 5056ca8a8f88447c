"""Operators of operators: over all leaves at once, on some leaves, by a function of yours."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from nondiff.core.problem import Params
from nondiff.core.prox import AbstractProx, Rho, check_float, same_shape
from nondiff.core.tree import check_labels, label_leaves, map_named


class OverAll(AbstractProx):
    """Another operator on all leaves as one vector, so that they compete: `OverAll(Cardinality(share=0.05))`.

    **Arguments:**

    - `prox`: the operator of that vector.

    **Raises** `ValueError` for a part that is no operator.

    >>> import jax.numpy as jnp
    >>> from nondiff.prox import Cardinality
    >>> OverAll(Cardinality(2)).tree({"a": jnp.array([1.0, 2.0]), "b": jnp.array([[3.0]])}, rho=1.0)
    {'a': Array([0., 2.], dtype=float32), 'b': Array([[3.]], dtype=float32)}
    """

    prox: AbstractProx

    def __check_init__(self) -> None:
        _check_parts("OverAll", self.prox)

    def __call__(self, v: Array, rho: Rho) -> Array:
        return self.tree(v, rho)

    def value(self, z: Array) -> Float[Array, ""]:
        return self.tree_value(z)

    def tree(self, v: Params, rho: Rho) -> Params:
        if not jtu.tree_leaves(v):
            return v
        map_named(lambda name, x: check_float(self, name, x), v)
        vector, unravel = ravel_pytree(v)
        return unravel(same_shape(self.prox, vector, self.prox(vector, rho)))

    def tree_value(self, z: Params) -> Float[Array, ""]:
        return self.prox.value(ravel_pytree(z)[0]) if jtu.tree_leaves(z) else jnp.zeros(())


class Parts(AbstractProx):
    """One operator for each label: these leaves under one constraint, those under another, the rest free.

    **Arguments:**

    - `proxes`: a dictionary of operators; `None` for leaves without a constraint.
    - `labels`: a tree of their names, a prefix of the parameters: `{"net": "sparse", "head": "free"}` labels every leaf
      below `net` at once. Inside `Split`, names that hold none of its leaves may be left out.

    **Raises** `ValueError` if a label has no operator or an operator no label, for a part that is none, and, on a tree,
    if `labels` is not such a prefix of it.

    >>> import jax.numpy as jnp
    >>> from nondiff.prox import Box, L1
    >>> labels = {"a": "small", "b": "sparse", "c": "free"}
    >>> parts = Parts({"small": Box(-1.0, 1.0), "sparse": L1(0.5), "free": None}, labels)
    >>> v = {"a": jnp.array([3.0]), "b": jnp.array([3.0]), "c": jnp.array([3.0])}
    >>> parts.tree(v, rho=1.0)
    {'a': Array([1.], dtype=float32), 'b': Array([2.5], dtype=float32), 'c': Array([3.], dtype=float32)}
    >>> parts.constrained(v)
    {'a': True, 'b': True, 'c': False}
    """

    proxes: dict[str, AbstractProx | None]
    labels: PyTree

    def __check_init__(self) -> None:
        _check_parts("Parts", *[prox for prox in self.proxes.values() if prox is not None])
        check_labels("Parts", self.labels, self.proxes, what="operators")

    def __call__(self, v: Array, rho: Rho) -> Array:
        return self.tree(v, rho)

    def value(self, z: Array) -> Float[Array, ""]:
        return self.tree_value(z)

    def _mine(self, tree: Params) -> list[tuple[AbstractProx | None, Params]]:
        """Every operator, and its leaves."""
        labels = label_leaves(self.labels, tree)

        def leaves(name: str) -> Params:
            return jtu.tree_map(lambda label, x: x if label == name else None, labels, tree)

        return [(self.proxes[name], leaves(name)) for name in sorted(self.proxes)]

    def tree(self, v: Params, rho: Rho) -> Params:
        return eqx.combine(*[own if prox is None else prox.tree(own, rho) for prox, own in self._mine(v)])

    def tree_value(self, z: Params) -> Float[Array, ""]:
        values = [prox.tree_value(own) for prox, own in self._mine(z) if prox is not None]
        return sum(values, jnp.zeros(()))

    def constrained(self, params: Params) -> PyTree[bool]:
        def free(tree: Params) -> PyTree[bool]:
            return jtu.tree_map(lambda _: False, tree)

        return eqx.combine(*[free(own) if prox is None else prox.constrained(own) for prox, own in self._mine(params)])


class Custom(AbstractProx):
    """An operator by a function of yours.

    **Arguments:**

    - `fn`: `fn(v, rho)`, the best `z` for one leaf; in JAX, and of the shape and dtype of `v`.
    - `value`: `value(z)`, what it costs; `None` (default) leaves it out of what is reported, as 0.

    **Raises** `ValueError` for what cannot be called and, on a leaf, if `fn` changes its shape or dtype.

    >>> import jax.numpy as jnp
    >>> whole = Custom(lambda v, rho: jnp.round(v))
    >>> whole(jnp.array([0.25, 1.75]), rho=1.0)
    Array([0., 2.], dtype=float32)
    """

    fn: Callable[[Array, Rho], Any]
    cost: Callable[[Array], Any] | None

    def __init__(self, fn: Callable[[Array, Rho], Any], value: Callable[[Array], Any] | None = None) -> None:
        self.fn = fn
        self.cost = value  # a field called `value` would be hidden by the method

    def __check_init__(self) -> None:
        for name, given in (("fn", self.fn), ("value", self.cost)):
            if not (callable(given) or (name == "value" and given is None)):
                raise ValueError(f"`Custom({name}={given!r})`: expected a function.")

    def __call__(self, v: Array, rho: Rho) -> Array:
        return same_shape(self, v, self.fn(v, rho))

    def value(self, z: Array) -> Float[Array, ""]:
        return jnp.zeros(()) if self.cost is None else jnp.asarray(self.cost(z))


def _check_parts(owner: str, *parts: Any) -> None:
    for part in parts:
        if not isinstance(part, AbstractProx):
            raise ValueError(f"`{owner}` was given {part!r} where an operator belongs, for example `L1(0.1)`.")
