"""Plain records that are pytrees: what a step builds anew every time.

`equinox.Module` checks far more, and takes ten times as long to build one; where a step's own work takes as little,
that is most of it. `jax.tree_util.register_dataclass` builds through `__init__`, where a tree of anything but arrays
would not pass a check of types.
"""

import dataclasses
from typing import Any, TypeVar, dataclass_transform

import equinox as eqx
import jax.tree_util as jtu

Record = TypeVar("Record", bound=type)


@dataclass_transform(frozen_default=True, eq_default=False, field_specifiers=(dataclasses.field, eqx.field))
def record(kind: Record) -> Record:
    """Decorates a class: a frozen dataclass, equal to itself alone, whose fields are children of a pytree, but for
    those of `equinox.field(static=True)`.

    >>> @record
    ... class Point:
    ...     x: float
    ...     unit: str = eqx.field(static=True, default="m")
    >>> jtu.tree_map(lambda x: 2 * x, Point(3.0))
    Point(x=6.0, unit='m')
    """
    made: Any = dataclasses.dataclass(frozen=True, eq=False)(kind)
    fields = dataclasses.fields(made)
    static = tuple(f.name for f in fields if f.metadata.get("static"))
    names = tuple(f.name for f in fields if f.name not in static)
    paths = tuple(jtu.GetAttrKey(name) for name in names)

    def flatten(x: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        held = x.__dict__
        return tuple([held[name] for name in names]), tuple([held[name] for name in static])

    def flatten_with_keys(x: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        children, rest = flatten(x)
        return tuple(zip(paths, children, strict=True)), rest

    def unflatten(rest: tuple[Any, ...], children: Any) -> Any:
        x = object.__new__(made)
        x.__dict__.update(zip(names, children, strict=True))
        x.__dict__.update(zip(static, rest, strict=True))
        return x

    jtu.register_pytree_with_keys(made, flatten_with_keys, unflatten, flatten)
    return made
