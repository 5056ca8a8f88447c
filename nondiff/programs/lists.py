"""Lists of whole numbers, each of its own length, for all programs and cases at once.

Elements stand in the first places of an array, and zeros in the others. Whatever changes their order or number says
where each one goes, and all places are compared: for many short lists a sort, or an address, costs more.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from nondiff.core.record import record
from nondiff.programs.arithmetic import whole
from nondiff.programs.line import LIMIT

HALF = 2**15
"""Sums are taken of two halves of each number, which do not leave 32 bits."""


@record
class Items:
    """A list in every lane."""

    values: Int[Array, "*banks capacity cases"]
    """0 beyond the length."""
    lengths: Int[Array, "*banks cases"]

    @property
    def capacity(self) -> int:
        return self.values.shape[-2]


def make(values: Array, lengths: Array) -> Items:
    """Zeros are put beyond the length, and the length is within the capacity."""
    lengths = jnp.clip(lengths, 0, values.shape[-2])
    return Items(jnp.where(_places(values) < lengths[..., None, :], values, 0), lengths)


def fit(x: Items, capacity: int) -> Items:
    """With another capacity; what is too much is left out at the end."""
    if capacity == x.capacity:
        return x
    spare = [(0, 0)] * (x.values.ndim - 2) + [(0, max(capacity - x.capacity, 0)), (0, 0)]
    return make(jnp.pad(x.values, spare)[..., :capacity, :], x.lengths)


def choose(test: Array, yes: Items, no: Items) -> Items:
    capacity = max(yes.capacity, no.capacity)
    yes, no = fit(yes, capacity), fit(no, capacity)
    return Items(jnp.where(_wide(test), yes.values, no.values), jnp.where(test, yes.lengths, no.lengths))


def join(x: Items, y: Items) -> Items:
    """One after the other."""
    both = x.capacity + y.capacity
    x, y = fit(x, both), fit(y, both)
    return Items(x.values + _sent(y, _places(y.values) + _wide(x.lengths), _there(y)), x.lengths + y.lengths)


def keep(x: Items, test: Array) -> Items:
    """The elements that pass."""
    test = test & _there(x)
    return Items(_sent(x, jnp.cumsum(test, -2) - 1, test), _total(test, -2))


def _sorted(x: Items) -> Items:
    values = jnp.where(_there(x), x.values, LIMIT + 1)
    one, other = values[..., :, None, :], values[..., None, :, :]
    earlier = jnp.arange(x.capacity)[:, None] > jnp.arange(x.capacity)
    rank = jnp.sum((other < one) | ((other == one) & earlier[..., None]), -2)
    return Items(_sent(x, rank, _there(x)), x.lengths)


def _reversed(x: Items) -> Items:
    return Items(_sent(x, _wide(x.lengths) - 1 - _places(x.values), _there(x)), x.lengths)


def _take(x: Items, stop: Array) -> Items:
    """The first, as `x[:stop]`."""
    return make(x.values, _bound(x, stop))


def _drop(x: Items, start: Array) -> Items:
    """Without the first, as `x[start:]`."""
    start = _bound(x, start)
    place = _places(x.values) - _wide(start)
    return Items(_sent(x, place, _there(x) & (place >= 0)), jnp.maximum(x.lengths - start, 0))


def _bound(x: Items, i: Array) -> Array:
    """Python's: from the end if it is negative, and no further than the list."""
    return jnp.clip(jnp.where(i < 0, x.lengths + i, i), 0, x.lengths)


def _item(x: Items, i: Array) -> Array:
    """An element, whose place wraps round; 0 of an empty list."""
    return _total(jnp.where(_places(x.values) == _wide(i % jnp.maximum(x.lengths, 1)), x.values, 0), -2)


def _halves(low: Array, high: Array) -> Array:
    """A sum of the lower halves and one of the upper ones as a number, cut off at the limit."""
    high, low = high + low // HALF, low % HALF
    inside = whole(jnp.clip(high, -HALF, HALF - 1) * HALF + low)
    return jnp.where(high >= HALF, LIMIT, jnp.where(high < -HALF, -LIMIT, inside))


def _sum(x: Items) -> Array:
    return _halves(_total(x.values % HALF, -2), _total(x.values // HALF, -2))


def _sums(x: Items) -> Items:
    low, high = (jnp.cumsum(part, -2, dtype=jnp.int32) for part in (x.values % HALF, x.values // HALF))
    return make(_halves(low, high), x.lengths)


def _least(x: Items) -> Array:
    return jnp.where(x.lengths > 0, jnp.min(jnp.where(_there(x), x.values, LIMIT), -2), 0)


def _largest(x: Items) -> Array:
    return jnp.where(x.lengths > 0, jnp.max(jnp.where(_there(x), x.values, -LIMIT), -2), 0)


def _so_far(best: Callable[..., Array]) -> Callable[[Items], Items]:
    return lambda x: make(best(x.values, axis=x.values.ndim - 2), x.lengths)


ON_LISTS: dict[str, Callable[..., Array | Items]] = {
    "len": lambda x: x.lengths,
    "sum": _sum,
    "min": _least,
    "max": _largest,
    "sorted": _sorted,
    "reversed": _reversed,
    "take": _take,
    "drop": _drop,
    "item": _item,
    "accumulate": _sums,
    "accumulate min": _so_far(jax.lax.cummin),
    "accumulate max": _so_far(jax.lax.cummax),
}
"""What `line.py` calls so."""


def _places(values: Array) -> Array:
    return jnp.arange(values.shape[-2])[:, None]


def _there(x: Items) -> Array:
    return _places(x.values) < _wide(x.lengths)


def _wide(x: Array) -> Array:
    """A number, or one in each lane, beside elements."""
    x = jnp.asarray(x)
    return x[..., None, :] if x.ndim else x


def _sent(x: Items, places: Array, those: Array) -> Array:
    """`those` elements at new places, zeros elsewhere."""
    goes = (places[..., :, None, :] == jnp.arange(x.capacity)[:, None]) & those[..., :, None, :]
    return _total(jnp.where(goes, x.values[..., :, None, :], 0), -3)


def _total(x: Array, axis: int) -> Array:
    """Of 32 bits, also where JAX has 64."""
    return jnp.sum(x, axis, dtype=jnp.int32)
