"""Perturbed arrays: every result is that of the multiplied-out arrays, and the short way is really taken."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import helpers
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from tiers import slow_but

import nondiff as nd
from nondiff.arrays import LowRank, factors, halves, interpret

MEMBERS, RANK = 7, 2
Cases = dict[str, tuple[Callable[..., Any], Any]]


def is_low_rank(x: Any) -> bool:
    return isinstance(x, LowRank)


def perturbed(tree: Any, *population: int) -> Any:
    """`tree` with a perturbation of rank 2 on every leaf with two axes or more, and leaves' paths as names."""
    random = np.random.default_rng(0)

    def one(path: Any, x: Any) -> Any:
        if not eqx.is_inexact_array(x) or x.ndim < 2:
            return x
        i = halves(x.shape)
        sizes = ((*population, *n, RANK) for n in (x.shape[:i], x.shape[i:]))
        a, b = (jnp.asarray(random.normal(0.0, 0.5, size), x.dtype) for size in sizes)
        return LowRank(x, a, b, tuple(range(i)), tuple(range(i, x.ndim)), jtu.keystr(path))

    return jtu.tree_map_with_path(one, tree)


def dense(tree: Any) -> Any:
    return jtu.tree_map(lambda x: x.dense() if is_low_rank(x) else x, tree, is_leaf=is_low_rank)


def members(fn: Callable[..., Any], how: Callable[..., Any]) -> Callable[..., Any]:
    """Of a population, whose factors alone have an axis of members."""

    def run(params: Any) -> Any:
        leaves, treedef = jtu.tree_flatten(perturbed(params, MEMBERS), is_leaf=is_low_rank)
        pairs = [(x.a, x.b) for x in leaves if is_low_rank(x)]

        def member(pairs: Any) -> Any:
            left = iter(pairs)
            own = [eqx.tree_at(lambda x: (x.a, x.b), x, next(left)) if is_low_rank(x) else x for x in leaves]
            return how(fn, treedef.unflatten(own))

        return jax.vmap(member, axis_size=MEMBERS)(pairs)

    return run


def by_hand(fn: Callable[..., Any], params: Any) -> Any:
    return fn(dense(params))


def assert_close(got: Any, want: Any, tolerance: float = 3e-5) -> None:
    assert jtu.tree_structure(got) == jtu.tree_structure(want)
    for x, y in zip(jtu.tree_leaves(got), jtu.tree_leaves(want), strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        x, y = (np.asarray(z.astype(jnp.float32) if z.dtype == jnp.bfloat16 else z) for z in (x, y))
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


def check(fn: Callable[..., Any], params: Any, tolerance: float = 3e-5) -> None:
    """A population's results, compiled; the other settings differ in the tracer alone, see `test_settings_of_use`."""
    assert_close(jax.jit(members(fn, interpret))(params), jax.jit(members(fn, by_hand))(params), tolerance)


def equations(jaxpr: Any, looped: bool = False) -> Iterator[tuple[Any, bool]]:
    """All of them, also the inner ones, and whether each is in a loop."""
    for equation in jaxpr.eqns:
        yield equation, looped
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner, looped or equation.primitive.name in ("scan", "while"))


def expanded(fn: Callable[..., Any], params: Any, size: int) -> list[bool]:
    """Of each product of factors that has `size` entries for every member: is it in a loop?"""
    jaxpr = jax.make_jaxpr(members(fn, interpret))(params)
    return [
        looped
        for equation, looped in equations(jaxpr.jaxpr)
        if equation.primitive.name == "dot_general"
        and equation.outvars[0].aval.size == MEMBERS * size
        and all(v.aval.shape[-1] == RANK for v in equation.invars)
    ]


def largest(fn: Callable[..., Any], params: Any) -> int:
    """Entries of the largest intermediate array."""
    jaxpr = jax.make_jaxpr(members(fn, interpret))(params)
    return max(v.aval.size for equation, _ in equations(jaxpr.jaxpr) for v in equation.outvars)


def arrays(*shapes: tuple[int, ...]) -> list[jax.Array]:
    return [jr.normal(k, shape) for k, shape in zip(jr.split(jr.key(5), len(shapes)), shapes, strict=True)]


W, V, S, STACK, KERNEL = arrays((13, 11), (11, 13), (12, 12), (3, 12, 12), (3, 13, 11))
X, Y, Z, IMAGE = arrays((2, 11), (2, 13), (2, 12), (1, 3, 6, 6))
P = {"w": W, "s": S, "l": STACK, "v": V, "b": jnp.ones(11)}
"""Sizes that no data reaches: an array of members times 13 times 11 entries has been multiplied out."""

SHORT: Cases = {
    "x @ w.T": (lambda w: X @ w.T, W),
    "x @ w": (lambda w: Y @ w, W),
    "w @ x": (lambda w: w @ X[0], W),
    "w.T @ x": (lambda w: w.T @ Y.T, W),
    "mlp": (lambda p: jnp.tanh(Y @ p["w"] + p["b"]) @ p["v"], P),
    "twice": (lambda w: (Y @ w) @ w.T @ w, W),
    "einsum_bi_ij": (lambda w: jnp.einsum("bi,ij->jb", Y, w), W),
    "einsum_ji_bj": (lambda w: jnp.einsum("ji,bj->ib", w, Y), W),
    "einsum_all": (lambda w: jnp.einsum("i,ij,j", Y[0], w, X[0]), W),
    "einsum_batch": (lambda k: jnp.einsum("hij,bhj->hbi", k, jnp.stack([X, X, X], 1)), KERNEL),
    "einsum_batch_2": (lambda k: jnp.einsum("hbi,hij->bhj", jnp.stack([Y, Y, Y]), k), KERNEL),
    "einsum_heads": (lambda k: jnp.einsum("bi,hji->bhj", X, k), KERNEL),
    "vmap_over_heads": (lambda k: jax.vmap(lambda w: w @ X[0])(k), KERNEL),
    "vmap_over_data": (lambda w: jax.vmap(lambda x: jnp.tanh(w @ x))(X), W),
    "tied": (lambda w: jnp.tanh(Y @ w) @ w.T, W),
    "w.T @ w of a slice": (lambda w: w[:, :2].T @ w, W),
    "precision": (lambda w: jnp.dot(Y, w, precision="highest", preferred_element_type=jnp.float32), W),
    "precisions": (lambda w: jnp.dot(w, X[0], precision=("highest", "default")), W),
    "sum_of_two": (lambda p: Y @ (p["w"] + 2.0 * p["v"].T), P),
    "difference": (lambda p: Y @ (p["w"] - p["v"].T) + Y @ (1.0 - p["w"]) + Y @ -p["w"], P),
    "symmetric": (lambda s: Z @ (s + s.T) / 2, S),
    "plus_dense": (lambda w: Y @ (w - jnp.ones_like(w)) + Y @ (w + jnp.ones(11)), W),
    "scaled": (lambda w: Y @ (w * jnp.sqrt(2.0)) + Y @ (jnp.full((1, 1), 0.5) * w) + Y @ (w / 3), W),
    "reshape": (lambda k: k.reshape(39, 11) @ X[0], KERNEL),
    "reshape_rows": (lambda w: Y[0] @ w.reshape(13, 1, 11, 1).squeeze((1, 3)), W),
    "squeeze": (lambda w: jnp.squeeze(w[2:3], 0) @ X[0] + w[3] @ X[1] + w[:, 4] @ Y[0], W),
    "squeeze_turned": (lambda k: jnp.moveaxis(k, 1, 0)[:, 1].T @ Y[0], KERNEL),
    "expand_dims": (lambda w: (jnp.expand_dims(w, (0, 2))[0, :, 0] @ X[0], w[None] @ X[0], w[:, None] @ X[0]), W),
    "slice": (lambda w: w[1:9:2, 3:] @ X[0, 3:], W),
    "dynamic_slice": (lambda w: jax.lax.dynamic_slice(w, (jnp.int32(9), 2), (5, 7)) @ X[0, :7], W),
    "split": (lambda w: [Y[:, :n] @ part for n, part in zip((6, 7), jnp.split(w, [6]), strict=True)], W),
    "concatenate": (lambda s: Z @ jnp.concatenate([s, 2 * s, jnp.ones((12, 2))], 1), S),
    "concatenate_rows": (lambda s: jnp.concatenate([jnp.ones((2, 12)), s, s]) @ Z[0], S),
    "stack": (lambda s: jnp.stack([s, -s]) @ Z[0], S),
    "rows": (lambda w: w[jnp.array([3, 3, 0])], W),
    "row": (lambda w: jax.vmap(lambda i: w[i])(jnp.array([2, 5])), W),
    "columns": (lambda w: w[:, jnp.array([[1], [5]])], W),
    "take_clip": (lambda w: jnp.take(w, jnp.array([1, 99, -99]), 0, mode="clip"), W),
    "take_nan": (lambda w: jnp.take(w, jnp.array([1, 99]), 0), W),
    "take_fill": (lambda w: w.at[jnp.array([1, 99])].get(mode="fill", fill_value=5.0), W),
    "take_heads": (lambda k: k[:, jnp.array([1, 2])].sum(2), KERNEL),
    "bfloat16": (lambda w: (Y.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16)).astype(jnp.float32), W),
    "preferred": (
        lambda w: jnp.dot(Y.astype(jnp.bfloat16), w.astype(jnp.bfloat16), preferred_element_type=jnp.float32),
        W,
    ),
    "jit": (lambda w: jax.jit(lambda w: jax.jit(jnp.matmul)(Y, w))(w), W),
    "remat": (lambda w: jax.checkpoint(lambda w: jnp.tanh(Y @ w) @ w.T)(w), W),
    "stop_gradient": (lambda w: Y @ jax.lax.stop_gradient(w), W),
    "custom_vjp": (lambda w: halved_gradient(Y @ halved_gradient(w)), W),
    "custom_jvp": (lambda w: jax.nn.relu(doubled_slope(Y @ doubled_slope(w, Y[0, 0]), Y[0, 0])), W),
    "cond": (lambda w: jax.lax.cond(X[0, 0] > jnp.sum(Y), lambda w: (w @ X[0])[0], lambda w: 0.0, w), W),
    "switch": (lambda w: jax.lax.switch(2, [lambda: Y, lambda: 2 * Y, lambda: X @ w.T]), W),
    "scan_constant": (lambda s: jax.lax.scan(lambda h, x: (jnp.tanh(s @ h + x), h[0]), Z[0], Z), S),
    "scan_layers": (lambda p: jax.lax.scan(lambda h, s: (jnp.tanh(h @ s.T), None), Z, p["l"])[0], P),
    "scan_layers_reversed": (lambda p: jax.lax.scan(lambda h, s: (s @ h, h), Z[0], p["l"], reverse=True), P),
    "scan_column": (lambda s: jax.lax.scan(lambda h, c: (h + c @ Z[0], None), 0.0, s.T), S),
    "scan_in_scan": (lambda p: jax.lax.scan(lambda h, s: (repeated(s @ p["s"][0], h), None), Z[0], p["l"])[0], P),
    "layer_by_index": (lambda p: jax.lax.fori_loop(0, 3, lambda i, h: jnp.tanh(p["l"][i] @ h), Z[0]), P),
    "while": (lambda s: until(s), S),
    "fori": (lambda s: jax.lax.fori_loop(0, 3, lambda i, h: jnp.tanh(s @ h) * i, Z[0]), S),
    "invariant_carry": (lambda s: jax.lax.fori_loop(0, 3, lambda i, c: (c[0], c[0] @ c[1]), (s, Z[0]))[1], S),
    "map": (lambda w: jax.lax.map(lambda x: w @ x, X, batch_size=1), W),
    "gradient_of_data": (lambda w: jax.grad(lambda x: jnp.sum(jnp.tanh(x @ w) ** 2))(Y), W),
    "callback": (lambda w: jax.pure_callback(np.sin, Y, X @ w.T, vmap_method="expand_dims"), W),
    "integer": (lambda w: jnp.argmax(Y @ w, -1), W),
    "unused": (lambda p: {"of": None, "two": [jnp.ones(3), 7.0, p["b"]]}, P),
}  # fmt: skip


def until(s: jax.Array) -> Any:
    """As many turns as the member needs."""
    return jax.lax.while_loop(lambda c: (s @ c[1])[0] + c[0] < 9, lambda c: (c[0] + 1, s @ c[1] / 9), (0, Z[0]))


def repeated(direction: jax.Array, x: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda h, _: (jnp.tanh(h + direction), None), x, length=2)[0]


@jax.custom_vjp
def halved_gradient(x: jax.Array) -> jax.Array:
    return x * 1.0


halved_gradient.defvjp(lambda x: (x, None), lambda _, g: (g / 2,))


@jax.custom_jvp
def doubled_slope(x: jax.Array, s: jax.Array) -> jax.Array:
    return x + s


doubled_slope.defjvp(lambda primals, tangents: (doubled_slope(*primals), 2 * tangents[0]))

LONG: Cases = {
    "broadcast": (lambda w: jnp.broadcast_to(w.T, (2, 11, 13))[1] @ Y[0], W),
    "w.T @ w": (lambda w: w.T @ w, W),
    "vdot": (lambda w: jnp.vdot(w - 1.0, w - 1.0), W),
    "squares": (lambda w: jnp.sum(w**2), W),
    "norm": (lambda w: jnp.linalg.norm(w), W),
    "sort": (lambda w: jnp.sort(w, 0), W),
    "where": (lambda w: Y @ jnp.where(w > 0, w, 0.0), W),
    "normalised": (lambda w: Y @ (w / jnp.linalg.norm(w, axis=0)) + Y @ (w / jnp.linalg.norm(w)), W),
    "two_of_other_shapes": (lambda w: w + w[:1] + w[0], W),
    "scaled_by_itself": (lambda w: w * w[:1, :1] / w[0, 0], W),
    "transposed": (lambda k: jnp.tanh(jnp.transpose(k, (2, 0, 1)).reshape(11, 39)), KERNEL),
    "as_it_is": (lambda p: (p["w"], p["w"].T, p), P),
    "update": (lambda w: w.at[2].set(0.0) @ X[0], W),
    "integer_weights": (lambda w: w.astype(jnp.int32), W),
    "gather_of_entries": (lambda w: w[jnp.array([1, 2]), jnp.array([3, 4])], W),
    "step": (lambda w: memetic(w), W),
    "carry": (lambda s: jax.lax.fori_loop(0, 2, lambda i, s: s @ s / 9, s), S),
    "scanned_carry": (lambda s: jax.lax.scan(lambda s, x: (s * 0.5, s @ x), s, Z), S),
    "cond_of_a_member": (lambda w: jax.lax.cond((w @ X[0])[0] > 0, lambda w: w @ X[0], lambda w: w @ X[1], w), W),
    "cond_result": (lambda s: jax.lax.cond(s[0, 0] > 0, lambda s: s, lambda s: s.T * 2, s), S),
    "weak_branches": (lambda s: jax.lax.cond(s[0, 0] > 0, lambda s: 1.0, lambda s: s[0, 0], s), S),
    "weak_carry": (lambda s: jax.lax.scan(lambda c, x: (c + s[0, 0] + 1, c), 0.0, length=3), S),
    "weak_while": (lambda s: jax.lax.while_loop(lambda c: c < 3, lambda c: c + jnp.abs(s[0, 0]) + 1, 0.0), S),
    "scanned_results": (lambda s: jax.lax.scan(lambda c, x: (c, s), 0, length=2), S),
    "many_stacked": (lambda w: jnp.concatenate([w[:2], w[:2], w[:2]]) @ X[0], W),
    "convolved_weights": (lambda w: jnp.convolve(w[0], w[:, 0]), W),
    "empty_axes": (lambda w: (w[:0] @ X[0], Y[:, :0] @ w[:0], w[:, :0].reshape(0)), W),
    "empty_scan": (lambda p: jax.lax.scan(lambda h, s: (jnp.tanh(s) @ h, None), Z[0], p["l"][:0])[0], P),
    "lone_equation": (lambda w: jnp.linalg.slogdet(w[:4, :4])[1], W),
    "two_results": (lambda w: jax.lax.top_k(w, 2)[1], W),
}


def memetic(w: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A gradient step within the evaluation, and the loss after it."""

    def loss(w: jax.Array) -> jax.Array:
        return jnp.mean(jnp.tanh(Y @ w) ** 2)

    value, slope = jax.value_and_grad(loss)(w)
    return value, loss(w - 0.1 * slope)


@pytest.mark.parametrize("name", [*SHORT, *LONG])
def test_the_result_is_that_of_the_dense_arrays(name: str) -> None:
    check(*(SHORT | LONG)[name], tolerance=0.1 if name in ("bfloat16", "preferred") else 3e-5)


@pytest.mark.parametrize("name", SHORT)
def test_nothing_is_multiplied_out(name: str) -> None:
    fn, params = SHORT[name]
    assert largest(fn, params) < MEMBERS * 11 * 12


def test_the_measure_of_that_sees_what_is() -> None:
    for name in ("squares", "as_it_is", "normalised", "carry"):
        assert largest(*LONG[name]) >= MEMBERS * 11 * 12


def equinox_models() -> Cases:
    keys = iter(jr.split(jr.key(3), 20))

    def model(made: Any, run: Callable[..., Any]) -> tuple[Callable[..., Any], Any]:
        params, static = eqx.partition(made, eqx.is_inexact_array)
        return lambda p: run(eqx.combine(p, static)), params

    def recur(cell: Any) -> Any:
        return jax.lax.scan(lambda h, x: (cell(x, h), h), jnp.zeros(16), jr.normal(jr.key(0), (3, 8)))

    def layers(p: Any) -> Any:
        arrays, static = eqx.partition(p, eqx.is_array)
        return jax.lax.scan(lambda h, layer: (jnp.tanh(eqx.combine(layer, static)(h)), None), Z[0], arrays)[0]

    nn = eqx.nn
    normed = nn.Sequential([nn.Linear(11, 12, key=next(keys)), nn.LayerNorm(12), nn.Linear(12, 3, key=next(keys))])
    conv = nn.Sequential(
        [
            nn.Conv2d(3, 16, 3, padding=1, key=next(keys)),
            nn.Lambda(jax.nn.relu),
            nn.MaxPool2d(2, 2),
            nn.Conv2d(16, 16, 3, key=next(keys)),
            nn.Lambda(jnp.ravel),
            nn.Linear(16, 5, key=next(keys)),
        ]
    )
    return {
        "mlp": model(nn.MLP(11, 3, 16, 2, key=next(keys)), lambda m: jax.vmap(m)(X)),
        "layer_norm": model(normed, lambda m: jax.vmap(m)(X)),
        "gru": model(nn.GRUCell(8, 16, key=next(keys)), recur),
        "attention": model(nn.MultiheadAttention(2, 12, key=next(keys)), lambda m: m(Z, Z, Z)),
        "conv": model(conv, lambda m: jax.vmap(m)(IMAGE)),
        "depthwise": model(nn.Conv2d(3, 6, 3, groups=3, key=next(keys)), lambda m: jax.vmap(m)(IMAGE)),
        "embedding": model(nn.Embedding(20, 6, key=next(keys)), lambda m: jax.vmap(m)(jnp.array([1, 7, 7]))),
        "stacked": model(eqx.filter_vmap(lambda k: nn.Linear(12, 12, key=k))(jr.split(next(keys), 3)), layers),
    }


def linen_models() -> Cases:
    nn = pytest.importorskip("flax.linen")

    def model(module: Any, x: Any) -> tuple[Callable[..., Any], Any]:
        return lambda p: module.apply(p, x), jax.jit(module.init)(jr.key(0), x)

    image = jnp.moveaxis(IMAGE, 1, -1)
    return {
        "dense": model(nn.Sequential([nn.Dense(16), nn.LayerNorm(), nn.gelu, nn.Dense(10)]), X),
        "attention": model(nn.MultiHeadDotProductAttention(num_heads=2), Z),
        "conv": model(nn.Sequential([nn.Conv(16, (3, 3)), nn.relu, nn.Conv(16, (3, 3), strides=2)]), image),
        "conv_of_one_channel": model(nn.Conv(16, (3, 3)), image[..., :1]),
        "embed": model(nn.Embed(20, 6), jnp.array([1, 7, 7])),
        "lstm": model(nn.RNN(nn.OptimizedLSTMCell(16)), Z[None]),
    }


def nnx_models() -> Cases:
    nnx = pytest.importorskip("flax.nnx")

    def model(made: Any, run: Callable[..., Any]) -> tuple[Callable[..., Any], Any]:
        graph, state = nnx.split(made)
        return lambda p: run(nnx.merge(graph, p)), state

    rngs = nnx.Rngs(0)
    mlp = nnx.Sequential(nnx.Linear(11, 16, rngs=rngs), nnx.relu, nnx.Linear(16, 4, rngs=rngs))
    cell = nnx.GRUCell(12, 16, rngs=rngs)
    return {
        "linear": model(mlp, lambda m: m(X)),
        "conv": model(nnx.Conv(3, 16, (3, 3), rngs=rngs), lambda m: m(jnp.moveaxis(IMAGE, 1, -1))),
        "gru": model(cell, lambda m: jax.lax.scan(lambda h, x: (m(h, x)[0], None), jnp.zeros(16), Z)[0]),
    }


GROUPED = {"depthwise"}
"""Without a short way."""


@pytest.mark.parametrize("models", slow_but([equinox_models, linen_models, nnx_models], nnx_models))
def test_models_of_the_libraries(models: Callable[[], Cases]) -> None:
    for name, (fn, params) in models().items():
        check(fn, params, 1e-4)
        kernels = [x for x in jtu.tree_leaves(params) if x.ndim > 1 and x.size > 20]  # and no bias of several axes
        sizes = {x.size for x in kernels}
        multiplied = [n for n in sizes if expanded(fn, params, n)]
        assert not multiplied or name in GROUPED, name


def test_settings_of_use() -> None:
    """Plain, compiled, with values from outside, and in a loop; a population is what all other tests have."""
    p = perturbed(P)

    def fn(p: Any, x: Any, more: Any = ()) -> Any:
        return {"out": jnp.tanh(x @ p["w"] + p["b"]) @ p["v"], "more": (more, None, 3)}

    want = fn(dense(p), Y)
    assert_close(interpret(fn, p, Y), {**want, "more": ((), None, jnp.asarray(3))})
    assert_close(jax.jit(lambda p, x: interpret(lambda p: fn(p, x)["out"], p))(p, Y), want["out"])
    assert_close(jax.vmap(lambda x: interpret(lambda p: fn(p, x)["out"], p))(Y), want["out"])
    assert_close(jax.lax.map(lambda x: interpret(lambda p: fn(p, x)["out"], p), Y), want["out"])
    assert_close(interpret(lambda p, x: fn(p, x)["out"], p, np.asarray(Y)), want["out"])
    assert interpret(lambda: {}) == {} and interpret(lambda x: x, []) == []
    assert interpret(lambda x, n: x * n, jnp.ones((), jnp.bfloat16), 2.0).dtype == jnp.bfloat16  # a weak type stays so


def test_double_precision() -> None:
    with jax.enable_x64(True):
        w = jnp.asarray(np.random.default_rng(0).normal(size=(13, 11)))
        check(lambda w: (jnp.tanh(np.asarray(Y, np.float64) @ w * 2.0), w.astype(jnp.float32) @ X[0]), w, 1e-6)
        assert interpret(lambda w: w @ np.ones(11), perturbed(w)).dtype == jnp.float64


@pytest.mark.parametrize("name", helpers.ESTIMATORS)
def test_estimators_inside(name: str) -> None:
    def wrong(symbols: jax.Array) -> jax.Array:
        return jnp.abs(symbols.sum(-1) - jnp.array([1, 4])) * 1.0

    def loss(w: jax.Array) -> jax.Array:
        logits = (Y @ w)[:, :6].reshape(2, 2, 3)
        return nd.through(wrong, logits, via=helpers.ESTIMATORS[name], key=jr.key(0))

    check(loss, W)


def test_an_opaque_program_inside() -> None:
    def loss(w: jax.Array) -> jax.Array:
        logits = (Y @ w)[:, :6].reshape(2, 2, 3)
        return nd.through(
            lambda s: (helpers.PROGRAM(s) != 2) * 1.0, logits, via=nd.MarginalLikelihood(5), key=jr.key(0)
        )

    check(loss, W)


def nonlinear(h: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.tanh(w) @ h + jnp.sin(w) @ h


@pytest.mark.parametrize(
    "fn",
    [
        lambda s: nonlinear(Z[0], s),
        lambda s: jax.lax.scan(lambda h, x: (nonlinear(h, s) + x, None), Z[0], Z)[0],
        lambda s: jax.lax.fori_loop(0, 3, lambda i, h: nonlinear(h, s), Z[0]),
        lambda s: jax.lax.fori_loop(0, 3, lambda i, h: nonlinear(h, s.T), nonlinear(Z[0], s)),
        lambda s: jax.lax.map(lambda x: jax.lax.map(lambda y: nonlinear(x * y, s), Z), Z),
        lambda s: jax.lax.map(lambda x: jax.lax.cond(x[0] > 0, lambda: nonlinear(x, s), lambda: x), Z),
    ],
    ids=["twice", "scan", "fori", "before_and_in", "nested", "cond_in_loop"],
)
def test_an_operation_without_a_rule_multiplies_out_once_and_outside_of_loops(fn: Any, caplog: Any) -> None:
    with caplog.at_level(logging.DEBUG, "nondiff.arrays"):
        assert expanded(fn, S, 144) == [False]
    (message,) = (r.getMessage() for r in caplog.records if r.name == "nondiff.arrays")
    assert message.startswith("`` [12, 12] is multiplied out for `tanh` at ") and "test_arrays.py:" in message


def test_each_of_two_of_the_same_name_is_told_apart(caplog: Any) -> None:
    def fn(p: Any) -> Any:
        return jax.lax.scan(lambda h, x: (p["s"] @ jnp.tanh(p["t"] @ h) + jnp.tanh(p["s"]) @ x, None), Z[0], Z)[0]

    p = {name: LowRank(x.base, x.a, x.b, x.rows, x.columns) for name, x in perturbed({"s": S, "t": S + 1}).items()}
    with caplog.at_level(logging.DEBUG, "nondiff.arrays"):
        got = jax.jit(lambda p: interpret(fn, p))(p)
    assert_close(got, fn(dense(p)))
    assert len(caplog.records) == 1


def test_a_sum_of_two_in_a_loop_has_both_multiplied_out_outside() -> None:
    def fn(p: Any) -> Any:
        return jax.lax.fori_loop(0, 3, lambda i, h: jnp.tanh(p["s"] + p["t"]) @ h, Z[0])

    params = {"s": S, "t": S + 1}
    check(fn, params)
    assert expanded(fn, params, 144) == [False, False]


def test_a_row_of_a_table_is_multiplied_out_alone() -> None:
    def fn(table: Any) -> Any:
        return jax.lax.map(lambda i: jnp.tanh(table[i]), jnp.array([1, 3, 2]))

    check(fn, W)
    assert not expanded(fn, W, 143)


def test_the_message_names_the_leaf(caplog: Any) -> None:
    with caplog.at_level(logging.DEBUG, "nondiff.arrays"):
        interpret(lambda p: jnp.sort(p["w"]), perturbed(P))
        interpret(lambda p: p["l"], perturbed(P))
    first, second = (r.getMessage() for r in caplog.records)
    assert first.startswith("`['w']` [13, 11] is multiplied out for `sort` at ")
    assert second == "`['l']` [3, 12, 12] is multiplied out for the result"


def test_effects_happen(capfd: Any) -> None:
    def fn(w: Any) -> Any:
        jax.debug.print("{} {}", w[0, 0], 1, ordered=True)
        return w @ X[0]

    interpret(fn, perturbed(W)).block_until_ready()
    jax.effects_barrier()
    assert capfd.readouterr().out.strip().endswith(" 1")


def test_factors_at_any_axes() -> None:
    a, b = arrays((3, 5, RANK), (4, 2, RANK))
    np.testing.assert_allclose(factors(a, b, (2, 0), (1, 3)), jnp.einsum("caz,bdz->abcd", a, b), rtol=1e-5)
    assert halves((3, 3, 32, 64)) == 3 and halves((5, 7)) == 1


@pytest.mark.parametrize("start", [-11, -3, 0, 7, 12])
def test_a_dynamic_slice_out_of_bounds_is_clamped_as_in_jax(start: int) -> None:
    w = perturbed(arrays((10, 2))[0])
    for wrap in (True, False):

        def part(w: Any, i: Any, wrap: bool = wrap) -> Any:
            return jax.lax.dynamic_slice(w, (i, 0), (2, 2), allow_negative_indices=wrap)

        np.testing.assert_allclose(interpret(part, w, jnp.int32(start)), part(w.dense(), jnp.int32(start)), rtol=1e-5)
