"""What a line does to the banks, in all lanes at once, whatever line each of them is at.

An expression that several lines share is computed once; what a place is given is then chosen by the line's number.
"""

import ast
import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array

from nondiff.programs.banks import Cells, Lists, lengths_of
from nondiff.programs.instructions import Instructions
from nondiff.programs.lanes import SHORT, Banks, Lanes, as_list, as_number, is_real, truth
from nondiff.programs.line import FLAGS, bank_of, expression
from nondiff.programs.lists import Items, choose, fit, make


def write(held: Any, place: Array, value: Any, where: Array) -> Any:
    """A bank with `value` at `place`, in the lanes `where`."""
    if isinstance(held, Items):
        at = (jnp.arange(held.lengths.shape[1])[:, None] == place[:, None, :]) & where[:, None, :]
        return choose(at, jtu.tree_map(lambda x: x[:, None], value), held)
    if held.shape[1] <= SHORT:
        at = jnp.arange(held.shape[1])[:, None] == place[:, None, :]
        return jnp.where(at & where[:, None, :], value[:, None, :], held)
    shape = held.shape[0], held.shape[2]
    place, value, where = (jnp.broadcast_to(x, shape) for x in (place, value, where))
    row, lane = jnp.arange(shape[0])[:, None], jnp.arange(shape[1])
    return held.at[row, place, lane].set(jnp.where(where, value, held[row, place, lane]))


def step(
    instructions: Instructions, banks: Banks, op: Array, a: Array, b: Array, running: Array
) -> tuple[Banks, dict[str, Array]]:
    """One line in every lane that is `running`: the banks, and the flags.

    Line `i` of the set has the number `i + 1`; any other number is no line, and does nothing.
    """
    lanes = Lanes(banks, {"a": a, "b": b})
    chosen = [op == i + 1 for i in range(len(instructions.lines))]
    flags: dict[str, Array] = {}
    after = dict(banks)
    most = max(len(line.targets) for line in instructions.parsed)
    for position in range(most):  # a line's first target is written first, as by Python
        groups: dict[str, list[tuple[ast.expr, Array, Any]]] = {}
        for line, here in zip(instructions.parsed, chosen, strict=True):
            if position < len(line.targets):
                assert line.value is not None
                with _named(f"the line {line.text!r}"):
                    value = lanes.value(line.value)
                    values = [_lanes(x) for x in (value if isinstance(value, tuple) else (value,))]
                    if len(values) != len(line.targets):
                        raise ValueError(f"it has {len(line.targets)} targets, {len(values)} values.")
                    target = line.targets[position]
                    value = values[position]
                    value = truth(value) if isinstance(target, ast.Name) else stored(value, banks[bank_of(target)])
                groups.setdefault(ast.unparse(target), []).append((target, here, value))
        for text, parts in groups.items():
            where = _any([here for _, here, _ in parts])
            value = _pick([(here, value) for _, here, value in parts])
            if text in FLAGS:
                flags[text] = flags.get(text, jnp.zeros((), bool)) | (value & where & running)
                continue
            target = parts[0][0]
            assert isinstance(target, ast.Subscript)
            bank = bank_of(target)
            place = lanes.place(bank, as_number(lanes.value(target.slice)))
            where = where & running
            kind = instructions.banks[bank]
            if isinstance(kind, Cells) and kind.fixed:
                where = where & (place < kind.free)
            own = lanes.own_length(bank)
            if own is not None:
                where = where & (own > 0)
            after[bank] = write(after[bank], place, value, where)
    return after, flags


def stored(value: Any, held: Any) -> Any:
    """As it stands in a bank. **Raises** `ValueError` for a float among whole numbers, or a list as a number."""
    if isinstance(held, Items):
        return fit(as_list(value), held.capacity)
    value = as_number(value)
    if is_real(value) and not is_real(held):
        raise ValueError("a float stands where whole numbers are held; make that bank `real=True`.")
    return value.astype(held.dtype)


@contextlib.contextmanager
def _named(where: str) -> Iterator[None]:
    """What is wrong is said of the line, or the start, which it is in."""
    try:
        yield
    except (ValueError, TypeError) as e:
        raise ValueError(f"{where}: {e}") from e


def _any(masks: list[Array]) -> Array:
    out = masks[0]
    for mask in masks[1:]:
        out = out | mask
    return out


def _pick(parts: list[tuple[Array, Any]]) -> Any:
    """The value of the line that is chosen; that of any line where none of them is."""
    out = parts[0][1]
    for here, value in parts[1:]:
        out = choose(here, value, out) if isinstance(out, Items) else jnp.where(here, value, out)
    return out


def _lanes(x: Any) -> Any:
    return x if isinstance(x, Items) else jnp.atleast_2d(x)


def start(
    instructions: Instructions, programs: int, cases: int, constants: Array | None, inputs: Mapping[str, Array]
) -> Banks:
    """The banks before the first line. Inputs are `[1 or programs, cases, ...]`."""
    memories = {name: jnp.moveaxis(inputs[name], 2, 1) for name in instructions.banks if name in inputs}
    lengths = {lengths_of(name): inputs[lengths_of(name)][:, None] for name in memories if lengths_of(name) in inputs}
    numbers = {name: x for name, x in inputs.items() if name not in memories}
    whole = Lanes(memories | lengths, numbers)
    real = Lanes(memories | lengths, {name: x.astype(jnp.float32) for name, x in numbers.items()})
    out: Banks = {name: jnp.broadcast_to(x, (programs, 1, cases)) for name, x in lengths.items()}
    for name, bank in instructions.banks.items():
        if name in memories:
            held, places = memories[name], memories[name].shape[1]
        elif isinstance(bank, Lists):
            out[name] = _lists(bank, inputs, programs, cases)
            continue
        elif isinstance(bank, Cells):
            held = jnp.stack(
                [_lane(x, real if bank.real else whole, bank.real, (programs, cases)) for x in bank.texts], axis=1
            )
            places = bank.size
        else:
            assert constants is not None
            held, places = constants[:, :, None], constants.shape[1]
        out[name] = jnp.broadcast_to(held, (programs, places, cases))
    return out


def _lane(text: str, lanes: Lanes, real: bool, shape: tuple[int, int]) -> Array:
    with _named(f"cells start from {text!r}"):
        value = as_number(lanes.value(expression(text)))
        return jnp.broadcast_to(stored(value, jnp.zeros((), jnp.float32 if real else jnp.int32)), shape)


def _lists(bank: Lists, inputs: Mapping[str, Array], programs: int, cases: int) -> Items:
    def one(text: str) -> Items:
        if text == "[]":
            values, lengths = jnp.zeros((1, bank.capacity, 1), jnp.int32), jnp.zeros((1, 1), jnp.int32)
        else:
            values = jnp.moveaxis(inputs[text], 2, 1)
            lengths = inputs.get(lengths_of(text), jnp.full((1, 1), values.shape[1], jnp.int32))
        x = fit(make(values, jnp.broadcast_to(lengths, (values.shape[0], values.shape[2]))), bank.capacity)
        return jtu.tree_map(lambda x: jnp.broadcast_to(x, (programs, *x.shape[1:-1], cases)), x)

    return jtu.tree_map(lambda *xs: jnp.stack(xs, 1), *[one(text) for text in bank.texts])
