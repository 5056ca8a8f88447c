"""What a program is given: arrays by name, and where cases differ the lengths beside them."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from nondiff.core.exact import namespace
from nondiff.core.tree import is_traced
from nondiff.programs.arithmetic import whole
from nondiff.programs.banks import Lists, lengths_of
from nondiff.programs.instructions import Instructions
from nondiff.programs.line import LIMIT


def checked(instructions: Instructions, x: Any) -> dict[str, Array]:
    """By name, with an axis of programs first.

    **Raises** `ValueError` for other names, types, shapes or lengths than the set says, and for inputs without cases.
    """
    names, banks = instructions.inputs, instructions.banks
    given = x if isinstance(x, Mapping) else {names[0]: x} if len(names) == 1 else None
    if given is None or set(given) != set(names):
        what = sorted(given) if given is not None else type(x).__name__
        raise ValueError(
            f"`Program`: its inputs are {', '.join(names)}, and {what} is given; pass "
            "a dictionary by name, or an array if there is one input."
        )
    out = {}
    for name, value in given.items():
        bank = instructions.lists.get(name, banks.get(name))
        if isinstance(value, tuple) and bank is not None:
            value, out[lengths_of(name)] = _checked_pair(name, value)
        value = jnp.asarray(_cut_off(name, value))
        if value.ndim != (1 if bank is None else 2) or 0 in value.shape:
            raise ValueError(
                f"`Program`: the input `{name}` is {list(value.shape)}; expected "
                f"{'[cases]' if bank is None else '[cases, length]'}, 1 or more of each."
            )
        if isinstance(bank, Lists) and value.shape[1] > bank.capacity:
            raise ValueError(
                f"`Program`: the input `{name}` is {list(value.shape)}, and a list holds {bank.capacity} elements; "
                "expected no more, or `Lists` of a larger `capacity`."
            )
        real = jnp.issubdtype(value.dtype, jnp.floating)
        if bank is not None and real and not bank.real:
            raise ValueError(f"`Program`: the input `{name}` is {value.dtype}, and holds whole numbers.")
        is_real = real if bank is None else bank.real
        out[name] = (value.astype(jnp.float32) if is_real else whole(value.astype(jnp.int32)))[None]
    counts = {name: x.shape[1] for name, x in out.items()}
    if len(set(counts.values())) != 1:
        raise ValueError(f"`Program`: its inputs have so many cases: {counts}; expected equally many.")
    return out


def _cut_off(name: str, value: Any) -> Array | np.ndarray:
    """Whole numbers within the limit, while they have all of their bits."""
    if not isinstance(value, jax.Array):
        try:
            value = np.asarray(value)
        except ValueError as e:
            raise ValueError(f"`Program`: the input `{name}` is no array; a pair of one and lengths is a tuple.") from e
    if jnp.issubdtype(value.dtype, jnp.integer):
        info, here = jnp.iinfo(value.dtype), namespace(value)
        return here.clip(value, max(info.min, -LIMIT), min(info.max, LIMIT))
    if not (jnp.issubdtype(value.dtype, jnp.floating) or value.dtype == bool):
        raise ValueError(f"`Program`: the input `{name}` is {value.dtype}; expected whole numbers or floats.")
    return value


def _checked_pair(name: str, pair: tuple[Any, ...]) -> tuple[Any, Array]:
    """The values of a memory, and its cases' lengths `[1, cases]`."""
    if len(pair) != 2:
        raise ValueError(
            f"`Program`: the input `{name}` is a tuple of {len(pair)}; expected an array [cases, length], or a pair "
            "of one [cases, capacity] and its cases' lengths."
        )
    value, lengths = pair[0], pair[1] if isinstance(pair[1], jax.Array) else np.asarray(pair[1])
    shape = np.shape(value)
    if len(shape) != 2 or lengths.shape != shape[:1] or not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise ValueError(
            f"`Program`: the input `{name}` is a pair, {list(shape)} with lengths {lengths.dtype}"
            f"{list(lengths.shape)}; expected [cases, capacity] with whole numbers [cases]."
        )
    if not is_traced(lengths) and lengths.size and not 0 <= int(lengths.min()) <= int(lengths.max()) <= shape[1]:
        raise ValueError(
            f"`Program`: the lengths of the input `{name}` are {int(lengths.min())} to {int(lengths.max())}; expected "
            f"0 to {shape[1]}, its capacity."
        )
    return value, jnp.clip(jnp.asarray(lengths).astype(jnp.int32), 0, shape[1])[None]
