"""A tree of modules and arrays, sent to another process in two parts: what it is made of, once, and its arrays, always.

Pickled as it is, a class of `__main__` or of a notebook travels by value, and an `equinox.Module` then arrives without
its leaves (equinox issue 231), comes back as another class of the same name, and has its data as constants of whatever
is compiled from it. So arrays never go through the pickle: they are named there by their number, and traced values can
stand in their places when the tree is put together.
"""

import dataclasses
import functools
import io
import itertools
import pickle
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.random as jr
import jax.tree_util as jtu
import numpy as np

from nondiff.core.tree import is_key

# The functions that register a module are equinox's own; it has none for a class that exists already.
_eqx: Any = __import__("equinox._module._module", fromlist=["generate_flatten_functions"])
_registered: set[type] = set()


class _Slot(NamedTuple):
    """Stands in a tree where an array is sent beside it: its number, and of a key its kind."""

    number: int
    kind: Any


def detach(tree: Any) -> tuple[bytes, list[np.ndarray]]:
    """The tree without the arrays among its leaves, pickled; and those arrays that are none: held by a function, or as
    a static field.
    """
    import cloudpickle  # it comes with Ray

    leaves, treedef = jtu.tree_flatten(tree)
    numbers = itertools.count()
    slots = [_Slot(next(numbers), _kind(x)) if is_shipped(x) else x for x in leaves]
    held: list[np.ndarray] = []
    seen: dict[int, tuple[Any, Any]] = {}  # and alive, or another array might get the place of one that is gone

    class Pickler(cloudpickle.Pickler):
        def persistent_id(self, x: Any) -> Any:
            if isinstance(x, _Slot):
                return tuple(x)
            if not is_shipped(x):
                return None
            if id(x) not in seen:
                held.append(as_numpy(x))
                seen[id(x)] = (-len(held), _kind(x)), x
            return seen[id(x)][0]

    out = io.BytesIO()
    Pickler(out).dump(treedef.unflatten(slots))
    return out.getvalue(), held


def attach(pickled: bytes, held: Sequence[Any], arrays: Sequence[Any]) -> Any:
    """The tree with `arrays` as its leaves."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str, /) -> Any:
            ours = {"_make_skeleton_class": _skeleton, "_class_setstate": _filled}
            return ours[name] if module.startswith("cloudpickle") and name in ours else super().find_class(module, name)

        def persistent_load(self, pid: Any) -> Any:
            number, kind = pid
            x = arrays[number] if number >= 0 else held[-number - 1]
            return x if kind is None else jr.wrap_key_data(x, impl=kind)

    return Unpickler(io.BytesIO(pickled)).load()


def is_shipped(x: Any) -> bool:
    """Is it sent as an array, and not as part of the pickle?"""
    return isinstance(x, jax.Array | np.ndarray) and x.dtype != object


def as_numpy(x: Any) -> np.ndarray:
    return np.asarray(jr.key_data(x) if is_key(x) else x)


def _by_value() -> Any:
    import cloudpickle

    return cloudpickle.cloudpickle


def _kind(x: Any) -> Any:
    return str(jr.key_impl(x)) if is_key(x) else None


def _skeleton(*args: Any) -> type:
    """The class of a module that is pickled by value, still empty: too early to be registered as a pytree."""
    known = _by_value()._DYNAMIC_CLASS_TRACKER_BY_ID.get(args[4])
    if known is not None:  # sent from here, and come back
        _registered.add(known)
        return known
    register = jtu.register_pytree_with_keys
    jtu.register_pytree_with_keys = lambda *args, **kwargs: None
    try:
        return _by_value()._make_skeleton_class(*args)
    finally:
        jtu.register_pytree_with_keys = register


def _filled(kind: type, state: Any) -> type:
    kind = _by_value()._class_setstate(kind, state) or kind
    if isinstance(kind, type(eqx.Module)) and kind not in _registered:
        _registered.add(kind)
        fields = dataclasses.fields(kind)
        names = tuple(f.name for f in fields)
        _eqx._module_info[kind] = _eqx._ModuleInfo(names_tuple=names, names_set=frozenset(names))
        flatten, flatten_with_keys, unflatten = _eqx.generate_flatten_functions(kind, fields)
        jtu.register_pytree_with_keys(kind, flatten_with_keys, functools.partial(unflatten, kind), flatten)
    return kind
