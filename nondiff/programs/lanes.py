"""What expressions mean to JAX: a value is an array `[programs, cases]`, a lane for each program and case, or a list in
each. The cases stand last, so that a processor takes many at a time.
"""

import ast
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array

from nondiff.programs.arithmetic import COMPARE, FUNCTIONS, REAL, REAL_ONLY, WHOLE, whole
from nondiff.programs.banks import lengths_of
from nondiff.programs.line import AbstractMeaning, walk
from nondiff.programs.lists import ON_LISTS, Items, choose, join, keep, make

Banks = dict[str, Any]
"""By name: `[programs, places, cases]`; of a memory whose cases differ, also their lengths, `[programs, 1, cases]`; of
lists `Items` `[programs, places, capacity, cases]`."""
SHORT = 16
"""Up to so many places a bank is read by comparing all of them; a longer one by an address."""


def is_real(x: Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)


def as_number(x: Any) -> Array:
    """A truth value counts 0 or 1. **Raises** `ValueError` for a list."""
    if isinstance(x, Items):
        raise ValueError("a list stands where a number belongs.")
    x = jnp.asarray(x)
    return x.astype(jnp.int32) if x.dtype == bool else x


def as_list(x: Any) -> Items:
    """**Raises** `ValueError` for a number."""
    if not isinstance(x, Items):
        raise ValueError("a number stands where a list belongs, a place of `Lists`.")
    return x


class Lanes(AbstractMeaning[Any]):
    """The values of expressions, each computed once."""

    def __init__(self, banks: Mapping[str, Any], names: Mapping[str, Array]):
        self.banks, self.names = banks, names
        self.known: dict[str, Any] = {}

    def value(self, node: ast.expr) -> Any:
        """Of an expression, by its text."""
        text = ast.unparse(node)
        if text not in self.known:
            self.known[text] = walk(node, self, self.banks)
        return self.known[text]

    def number(self, value: bool | int | float) -> Array:
        if isinstance(value, bool):
            return jnp.asarray(value)
        return jnp.float32(value) if isinstance(value, float) else whole(jnp.int32(value))

    def name(self, name: str) -> Array:
        if name not in self.names:
            raise ValueError(f"`{name}` is neither a bank nor an operand nor an input.")
        return self.names[name]

    def whole_bank(self, bank: str) -> Any:
        if isinstance(self.banks[bank], Items):
            raise ValueError(f"`{bank}` has several lists; expected one of them, such as `{bank}[0]`.")
        return self.banks[bank]

    def place(self, bank: str, index: Array) -> Array:
        """An index, wrapped round. **Raises** `ValueError` for a float."""
        if is_real(index):
            raise ValueError(f"a float stands where a place of `{bank}` belongs.")
        own = self.own_length(bank)
        return jnp.atleast_2d(index % (_width(self.banks[bank]) if own is None else jnp.maximum(own, 1)))

    def read(self, bank: str, index: Array) -> Any:
        held, own, place = self.banks[bank], self.own_length(bank), self.place(bank, as_number(index))
        if isinstance(held, Items):
            return _list_at(held, place)
        found = _at(held, place)
        return found if own is None else jnp.where(own > 0, found, jnp.zeros_like(found))

    def own_length(self, bank: str) -> Array | None:
        """Each case's own, `[programs, cases]`; `None` where it is the same for all."""
        own = self.banks.get(lengths_of(bank))
        return None if own is None else own[:, 0]

    def length(self, bank: str) -> Array:
        own = self.own_length(bank)
        return jnp.int32(_width(self.banks[bank])) if own is None else own

    def call(self, function: str, args: list[Array]) -> Array:
        args = [as_number(x) for x in args]
        if function in REAL_ONLY:
            args = [x.astype(jnp.float32) for x in args]
        return FUNCTIONS[function](*args)

    def binary(self, op: ast.operator, left: Any, right: Any) -> Any:
        if isinstance(op, ast.Add) and isinstance(left, Items) and isinstance(right, Items):
            return join(left, right)
        left, right = as_number(left), as_number(right)
        if is_real(left) or is_real(right):
            return REAL[type(op)](left.astype(jnp.float32), right.astype(jnp.float32))
        if type(op) not in WHOLE:
            raise ValueError("`/` of whole numbers leaves them; use `//`, or `Cells(..., real=True)`.")
        return WHOLE[type(op)](left, right)

    def negative(self, x: Array) -> Array:
        return -as_number(x)

    def compare(self, op: ast.cmpop, left: Array, right: Array) -> Array:
        return COMPARE[type(op)](as_number(left), as_number(right))

    def both(self, left: Array, right: Array) -> Array:
        return truth(left) & truth(right)

    def either(self, left: Array, right: Array) -> Array:
        return truth(left) | truth(right)

    def no(self, x: Array) -> Array:
        return ~truth(x)

    def choose(self, test: Array, yes: Any, no: Any) -> Any:
        if isinstance(yes, Items) or isinstance(no, Items):
            return choose(jnp.atleast_2d(truth(test)), as_list(yes), as_list(no))
        return jnp.where(truth(test), yes, no)

    def empty(self) -> Items:
        return Items(jnp.zeros((1, 1, 1), jnp.int32), jnp.zeros((1, 1), jnp.int32))

    def on_list(self, function: str, args: list[Any]) -> Any:
        return ON_LISTS[function](as_list(args[0]), *[as_number(x) for x in args[1:]])

    def comprehension(self, names: list[str], lists: list[Any], body: ast.expr, test: ast.expr | None) -> Items:
        lists = [as_list(x) for x in lists]
        capacity = min(x.capacity for x in lists)
        lengths = functools.reduce(jnp.minimum, [x.lengths for x in lists])
        each = Elements(self, {name: x.values[..., :capacity, :] for name, x in zip(names, lists, strict=True)})

        def of_all(x: Array) -> Array:
            shape = *lengths.shape[:-1], capacity, lengths.shape[-1]
            return jnp.broadcast_to(x, jnp.broadcast_shapes(x.shape, shape))

        value = as_number(each.value(body))
        if is_real(value):
            raise ValueError(f"`{ast.unparse(body)}` is a float, and lists hold whole numbers.")
        out = make(of_all(value), lengths)
        return out if test is None else keep(out, of_all(truth(each.value(test))))


class Elements(Lanes):
    """The body of a comprehension: values are `[programs, capacity, cases]`, and 1 stands for the capacity of what is
    the same for all elements."""

    def __init__(self, outside: Lanes, names: Mapping[str, Array]):
        super().__init__(outside.banks, names)
        self.outside = outside

    def name(self, name: str) -> Array:
        return self.names[name] if name in self.names else self._wide(self.outside.name(name))

    def read(self, bank: str, index: Array) -> Any:
        return self._wide(self.outside.read(bank, self._one(index)))

    def length(self, bank: str) -> Array:
        return self._wide(self.outside.length(bank))

    def on_list(self, function: str, args: list[Any]) -> Any:
        return self._wide(self.outside.on_list(function, [self._one(x) for x in args]))

    def comprehension(self, names: list[str], lists: list[Any], body: ast.expr, test: ast.expr | None) -> Items:
        raise ValueError(f"`for {', '.join(names)} in ...` stands in another comprehension; make it a line of its own.")

    def _wide(self, x: Any) -> Any:
        return x if isinstance(x, Items) or jnp.ndim(x) == 0 else x[..., None, :]

    def _one(self, x: Any) -> Any:
        """As outside of the comprehension."""
        if isinstance(x, Items) or jnp.ndim(x) == 0:
            return x
        if x.shape[-2] != 1:
            raise ValueError("a place depends on the element of a comprehension; expected one for all elements.")
        return x[..., 0, :]


def truth(x: Any) -> Array:
    """**Raises** `ValueError` for a list."""
    if isinstance(x, Items):
        raise ValueError("a list stands where a truth belongs; use its `len`.")
    return x if x.dtype == bool else x != 0


def _at(held: Array, place: Array) -> Array:
    if place.shape == (1, 1):
        return jax.lax.dynamic_index_in_dim(held, place[0, 0], axis=1, keepdims=False)
    if held.shape[1] <= SHORT:
        out = held[:, 0]
        for i in range(1, held.shape[1]):
            out = jnp.where(place == i, held[:, i], out)
        return out
    place = jnp.broadcast_to(place, (held.shape[0], held.shape[2]))
    return jnp.take_along_axis(held, place[:, None], axis=1)[:, 0]


def _list_at(held: Items, place: Array) -> Items:
    if place.shape == (1, 1):
        return jtu.tree_map(lambda x: jax.lax.dynamic_index_in_dim(x, place[0, 0], axis=1, keepdims=False), held)
    out = jtu.tree_map(lambda x: x[:, 0], held)
    for i in range(1, _width(held)):
        out = choose(place == i, jtu.tree_map(lambda x, i=i: x[:, i], held), out)
    return out


def _width(held: Any) -> int:
    """How many places a bank has."""
    return jtu.tree_leaves(held)[0].shape[1]
