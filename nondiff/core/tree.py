"""Parameter trees: `None` means "not mine", labels and domains may be prefixes, and a leaf has a name."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree


def is_arrayish(x: Any) -> bool:
    """Has it a shape and a dtype? An array, or what stands for one."""
    return eqx.is_array(x) or isinstance(x, jax.ShapeDtypeStruct)


def shape_of(x: Any) -> jax.ShapeDtypeStruct:
    """Shape and type alone."""
    return x if isinstance(x, jax.ShapeDtypeStruct) else jax.eval_shape(jnp.asarray, x)


def is_none(x: Any) -> bool:
    """For `is_leaf`: visit the leaves that belong to somebody else, too."""
    return x is None


def none_like(tree: PyTree) -> PyTree:
    """The same tree, owned by nobody: every leaf `None`."""
    return jtu.tree_map(lambda _: None, tree)


def name(path: tuple[Any, ...], root: str = "params") -> str:
    """`params['net'].weight`: a leaf as one would write it in Python."""
    return root + jtu.keystr(path)


def broadcast(prefix: PyTree, tree: PyTree, *, what: str, is_leaf: Callable[[Any], bool] | None = None) -> PyTree:
    """`prefix` with every leaf repeated over the subtree of `tree` that it stands for.

    **Raises** `ValueError` that shows both trees if `prefix` is not a prefix of `tree`; `what` names it there.
    """

    def spread(leaf: Any, subtree: PyTree) -> PyTree:
        return jtu.tree_map(lambda _: leaf, subtree)

    try:
        return jtu.tree_map(spread, prefix, tree, is_leaf=is_leaf)
    except ValueError as error:
        raise ValueError(
            f"{what} must be a prefix of the parameters, and is not.\n"
            f"  {what}: {jtu.tree_structure(prefix, is_leaf=is_leaf)}\n"
            f"  parameters: {jtu.tree_structure(tree)}\n"
            f"Give one entry for each leaf, or one for a whole subtree. ({error})"
        ) from None


def label_leaves(labels: PyTree, params: PyTree) -> PyTree:
    """The label of every leaf, of a prefix that may leave names out that hold none of them (a part of `Split`)."""
    return broadcast(_without_foreign(labels, params), params, what="labels")


def _without_foreign(labels: PyTree, params: PyTree) -> PyTree:
    """`labels` with an empty entry for every name that they leave out and that holds nothing of mine."""
    if not (isinstance(labels, dict) and isinstance(params, dict)):
        return labels
    known = {name: _without_foreign(label, params.get(name)) for name, label in labels.items()}
    return known | {name: sub for name, sub in params.items() if name not in labels and not jtu.tree_leaves(sub)}


def check_labels(owner: str, labels: PyTree, parts: dict[str, Any], *, what: str) -> None:
    """**Raises** `ValueError` that shows both sides unless the labels are the names of the parts; `what` these are."""
    used = jtu.tree_leaves(labels)
    if not all(isinstance(x, str) for x in used) or set(used) != set(parts):
        raise ValueError(
            f"`{owner}`: the labels and the {what} do not match.\n"
            f"  labels: {sorted(map(str, set(used)))}\n"
            f"  {what}: {sorted(parts)}\n"
            f"Give every label one of the {what}, by that name, and use all of them."
        )


def map_named(fn: Callable[..., Any], tree: PyTree, *rest: PyTree, is_leaf: Callable[[Any], bool] | None = None):
    """`tree_map` whose function also gets the leaf's name first."""
    return jtu.tree_map_with_path(lambda path, *xs: fn(name(path), *xs), tree, *rest, is_leaf=is_leaf)


def is_key(x: Any) -> bool:
    """Is this a typed random key (`jax.random.key`)?"""
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def key_words(key: jax.Array) -> np.ndarray:
    """What a key is made of, if its value is known: also while a program is traced of which it is no part."""
    with jax.ensure_compile_time_eval():
        return np.asarray(jax.random.key_data(key))


def is_traced(x: Any) -> bool:
    """Is it part of a program that JAX is tracing, so that its value is not known yet?"""
    return isinstance(x, jax.core.Tracer)  # pyright: ignore[reportAttributeAccessIssue]


def on_host(tree: PyTree) -> PyTree:
    """The same tree with NumPy's arrays in the place of JAX's; keys stay."""
    return jtu.tree_map(lambda x: np.asarray(x) if isinstance(x, jax.Array) and not is_key(x) else x, tree)


def host_rows(tree: PyTree, rows: np.ndarray) -> PyTree:
    """The chosen rows of every leaf, taken in NumPy."""

    def one(x: Any) -> Any:
        if is_key(x):
            data: Any = np.asarray(jax.random.key_data(x))[rows]
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
        return np.asarray(x)[rows]

    return jtu.tree_map(one, tree)


def fresh(tree: PyTree, *, host: bool = False) -> PyTree:
    """A copy with its own buffers and strong types; on the `host` NumPy's arrays stay such.

    A weakly typed leaf comes back strong from a step and would compile it a second time; a buffer that the caller
    still holds, or that stands twice in a state, must not be donated.
    """

    def one(x: Any) -> Any:
        if not eqx.is_array_like(x):
            return x
        if isinstance(x, jax.Array) and not is_traced(x) and [d.platform for d in x.sharding.device_set] == ["cpu"]:
            where = x.sharding if x.committed else None  # by NumPy, which compiles nothing
            if not is_key(x):
                return jax.device_put(np.array(x), where)
            data: Any = np.array(key_words(x))
            return jax.device_put(jax.random.wrap_key_data(data, impl=jax.random.key_impl(x)), where)
        if is_key(x):
            return jax.random.clone(x)
        if host and isinstance(x, np.ndarray | np.generic):
            return np.array(x)
        x = jnp.asarray(x)
        return jnp.array(jax.lax.convert_element_type(x, x.dtype), copy=True)

    return jtu.tree_map(one, tree)


def select(condition: Any, new: PyTree, old: PyTree) -> PyTree:
    """`new` where the scalar `condition` holds, else `old`, for every array of two equal trees."""
    return jtu.tree_map(lambda n, o: jnp.where(condition, n, o) if eqx.is_array(n) else n, new, old)


def barrier(tree: PyTree) -> PyTree:
    """A seam that XLA does not optimise across: the arrays as they are, computed before anything after it."""
    arrays, rest = eqx.partition(tree, eqx.is_array)
    return eqx.combine(jax.lax.optimization_barrier(arrays), rest)
