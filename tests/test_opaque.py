"""`Opaque` owns the calls to a user's program: batched, de-duplicated, counted, and clear when it fails."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax
import pytest

import nondiff
from nondiff import Opaque, OpaqueError

INT = jax.ShapeDtypeStruct((), jnp.int32)
FLOAT = jax.ShapeDtypeStruct((), jnp.float32)
VECTOR = jax.ShapeDtypeStruct((2,), jnp.float32)


def total(digits: np.ndarray) -> int:
    return int(digits.sum())


def test_batches_of_any_shape() -> None:
    add = jax.jit(Opaque(total, INT))
    for shape in ((3,), (4, 3), (2, 5, 3)):
        x = jr.randint(jr.key(0), shape, 0, 9)
        np.testing.assert_array_equal(add(x), np.asarray(x).sum(-1))


def test_one_row_eager_and_jitted() -> None:
    add = Opaque(total, INT)
    assert add(jnp.array([1, 2])) == jax.jit(add)(np.array([1, 2])) == 3
    assert (add.requests, add.distinct_calls) == (2, 1)


def test_nested_vmap_is_one_request_for_each_case() -> None:
    add = Opaque(total, INT)
    x = jr.randint(jr.key(0), (2, 3, 4, 2), 0, 2)
    out = jax.jit(jax.vmap(jax.vmap(add, in_axes=1), in_axes=0))(x)
    np.testing.assert_array_equal(out, np.asarray(x).sum(-1).swapaxes(1, 2))
    assert add.requests == 24
    assert add.distinct_calls == len(np.unique(np.asarray(x).reshape(-1, 2), axis=0))


def test_scalars_are_cases_with_no_axes() -> None:
    square = Opaque(lambda x: float(x) ** 2, ndim=0)
    np.testing.assert_array_equal(jax.jit(square)(jnp.array([[1.0, 2.0], [3.0, 1.0]])), [[1.0, 4.0], [9.0, 1.0]])
    assert (square.requests, square.distinct_calls) == (4, 3)
    assert jax.vmap(square)(jnp.arange(3.0)).tolist() == [0.0, 1.0, 4.0]


def test_two_arguments_broadcast_over_the_batch() -> None:
    weighted = Opaque(lambda row, k: float(row.sum() * k), ndim=(1, 0))
    rows, ks = jnp.arange(6.0).reshape(3, 2), jnp.array([10.0, 1.0, 0.5])
    np.testing.assert_array_equal(jax.jit(weighted)(rows, ks), np.asarray(rows).sum(1) * np.asarray(ks))
    np.testing.assert_array_equal(weighted(rows, jnp.float32(2.0)), 2 * np.asarray(rows).sum(1))
    np.testing.assert_array_equal(weighted(rows[:, None], ks), np.outer(np.asarray(rows).sum(1), ks))
    mapped = jax.vmap(weighted, in_axes=(None, 0))(rows[1], ks)
    np.testing.assert_array_equal(mapped, 5.0 * np.asarray(ks))


def test_pytree_answers() -> None:
    both = Opaque(lambda d: {"sum": total(d), "pair": (d[::-1].astype(np.float32),)}, {"sum": INT, "pair": (VECTOR,)})
    x = jnp.array([[[1, 2], [3, 4], [1, 2]]])
    out = jax.jit(both)(x)
    np.testing.assert_array_equal(out["sum"], [[3, 7, 3]])
    np.testing.assert_array_equal(out["pair"][0], np.asarray(x)[..., ::-1])


def test_each_distinct_input_is_called_once() -> None:
    seen = []
    add = Opaque(lambda d: seen.append(tuple(map(int, d))) or total(d), INT)
    jitted = jax.jit(add)
    jitted(jnp.array([[1, 2], [3, 4], [1, 2], [2, 1]])).block_until_ready()
    assert sorted(seen) == [(1, 2), (2, 1), (3, 4)]
    jitted(jnp.array([[3, 4], [5, 6], [5, 6], [1, 2]])).block_until_ready()
    assert len(seen) == 4 and seen[-1] == (5, 6)
    assert (add.requests, add.distinct_calls) == (8, 4)


@pytest.mark.parametrize("low", [-3, -5000])
def test_wide_rows_and_large_numbers_are_told_apart(low: int) -> None:
    """One machine word for a row, or many; small integers are compared as bytes, large ones are not."""
    for width in (1, 8, 9, 30):
        x = jr.randint(jr.key(width), (60, width), low, low + 3)
        add = Opaque(total, INT)
        np.testing.assert_array_equal(add(x), np.asarray(x).sum(-1))
        assert add.distinct_calls == len(np.unique(np.asarray(x), axis=0))


def test_memory_forgets_the_oldest_answers_first() -> None:
    add = Opaque(total, INT, cache=2)
    for value in (1, 2, 3):
        add(jnp.array([value]))
    assert add.distinct_calls == 3
    add(jnp.array([3])), add(jnp.array([2]))
    assert add.distinct_calls == 3  # both still known
    add(jnp.array([1]))
    assert add.distinct_calls == 4  # the oldest was forgotten
    add(jnp.array([2]))
    assert add.distinct_calls == 5  # and has pushed out the next one


def test_a_batch_larger_than_the_memory_is_answered() -> None:
    x = jnp.arange(10)[:, None]
    add = Opaque(total, INT, cache=3)
    np.testing.assert_array_equal(add(x), np.arange(10))


def test_no_memory_still_asks_once_a_batch() -> None:
    add = Opaque(total, INT, cache=0)
    x = jnp.array([[1], [1], [2]])
    for calls in (2, 4):
        np.testing.assert_array_equal(add(x), [1, 1, 2])
        assert add.distinct_calls == calls


def test_the_same_bytes_in_another_shape_or_dtype_are_another_question() -> None:
    rows = Opaque(lambda m: len(m), INT, ndim=2)
    assert (rows(jnp.zeros((2, 3))), rows(jnp.zeros((3, 2)))) == (2, 3)
    kind = Opaque(lambda m: int(m.dtype.kind == "f"), INT)
    assert (kind(jnp.zeros(2, int)), kind(jnp.zeros(2))) == (0, 1)
    one = jnp.array([1.0])
    assert (kind(one.view(jnp.int32)), kind(one)) == (0, 1)


def test_a_program_that_writes_into_its_input_does_no_harm() -> None:
    def wipe(digits: np.ndarray) -> int:
        answer = total(digits)
        digits[:] = 0
        return answer

    x = jnp.array([[1, 2], [3, 4], [1, 2]])
    add = Opaque(wipe, INT)
    for _ in range(2):
        np.testing.assert_array_equal(add(x), [3, 7, 3])
    np.testing.assert_array_equal(x, [[1, 2], [3, 4], [1, 2]])
    assert add.distinct_calls == 2


def test_a_program_that_keeps_its_answer_and_changes_it_later_does_no_harm() -> None:
    answer = np.zeros(2, np.float32)

    def reuse(x: np.ndarray) -> np.ndarray:
        answer[:] = x
        return answer

    np.testing.assert_array_equal(Opaque(reuse, VECTOR)(jnp.array([[1.0, 2.0], [3.0, 4.0]])), [[1.0, 2.0], [3.0, 4.0]])


def test_empty_batch() -> None:
    both = Opaque(lambda d: (total(d), d), (INT, VECTOR))
    out = jax.jit(both)(jnp.zeros((0, 2)))
    assert [x.shape for x in out] == [(0,), (0, 2)]
    assert (both.requests, both.distinct_calls) == (0, 0)


LARGE = """
import jax, jax.numpy as jnp
from nondiff import Opaque
first = Opaque(lambda row: float(row[0]))
x = jnp.broadcast_to(jnp.arange(20_000)[:, None] % 7, (20_000, 1_000)).astype(jnp.float32)
print(int(jax.jit(lambda x: first(x * 2.0).sum())(x)), first.requests, first.distinct_calls)
"""


@pytest.mark.timeout(60)
def test_large_arguments_do_not_hang() -> None:
    """Where JAX has more than one thread, as by default; with one it hangs, and `nondiff doctor` says so."""
    environment = {name: value for name, value in os.environ.items() if name != "NPROC"}
    done = subprocess.run([sys.executable, "-c", LARGE], env=environment, capture_output=True, text=True, timeout=50)
    assert done.stdout == f"{2 * (np.arange(20_000) % 7).sum()} 20000 7\n", done.stderr


def answering(answer, out=FLOAT) -> jax.Array:
    """What the program's answer becomes, or the error it makes."""
    try:
        return Opaque(lambda x: answer, out)(jnp.zeros(1))
    except jax.errors.JaxRuntimeError:
        raise nondiff.estimators.opaque.last_failure() from None


@pytest.mark.parametrize(
    ("answer", "out", "value"),
    [
        (3, FLOAT, 3.0),
        (True, FLOAT, 1.0),
        (np.True_, jax.ShapeDtypeStruct((), bool), True),
        (0.5, FLOAT, 0.5),
        (np.float64(0.5), FLOAT, 0.5),
        (7, INT, 7),
        (False, INT, 0),
        (200, jax.ShapeDtypeStruct((), jnp.uint8), 200),
        (np.float32(2.0), FLOAT, 2.0),
        (jnp.float32(2.0), FLOAT, 2.0),
    ],
)
def test_answers_that_fit(answer, out: jax.ShapeDtypeStruct, value) -> None:
    got = answering(answer, out)
    assert got == value and got.dtype == out.dtype


@pytest.mark.parametrize(
    ("answer", "out", "message"),
    [
        (np.zeros(3, np.float32), FLOAT, r"answered float32\[3\] to \[0\.\]; promised was float32\[\]"),
        (np.zeros(3, np.float32), VECTOR, r"answered float32\[3\].*promised was float32\[2\]"),
        (
            np.zeros(2),
            VECTOR,
            r"answered float64\[2\].*promised was float32\[2\]. Convert the answer, or correct `out`",
        ),
        (1.5, INT, r"answered float64\[\] to \[0\.\]; promised was int32\[\]"),
        (1.0, INT, r"answered float64\[\]"),
        (2**40, INT, r"promised was int32\[\]"),
        (-1, jax.ShapeDtypeStruct((), jnp.uint8), r"promised was uint8\[\]"),
        (300, jax.ShapeDtypeStruct((), jnp.uint8), r"promised was uint8\[\]"),
        (2, jax.ShapeDtypeStruct((), bool), r"promised was bool\[\]"),
        ("yes", FLOAT, r"answered .*promised was float32\[\]"),
        ([1.0, [2.0]], VECTOR, r"expected"),
        (None, FLOAT, r"answered None to \[0\.\]; expected"),
        ((1.0, 2.0), FLOAT, r"answered \(1.0, 2.0\) to \[0\.\]; expected"),
        ({"a": 1.0}, {"b": FLOAT}, r"answered \{'a': 1.0\} to \[0\.\]; expected \{'b'"),
    ],
)
def test_broken_promises(answer, out, message: str) -> None:
    with pytest.raises(OpaqueError, match=message):
        answering(answer, out)


def hybrid(program: Opaque, steps: int, key: jax.Array = jr.key(0)) -> nondiff.Result:
    """Two logits, of which an opaque program judges the larger."""

    def loss(logits, batch, key):
        return nondiff.through(lambda s: program(s), logits + batch[:, None, None] * 0, via=nondiff.Tabulate(), key=key)

    problem = nondiff.Supervised(loss, jnp.arange(4.0), params=jnp.zeros((1, 1, 2)), batch_size=2)
    return nondiff.fit(problem, nondiff.Backprop(optax.sgd(0.5)), steps=steps, key=key)


def test_a_raising_program_shows_its_traceback_and_keeps_the_last_good_state() -> None:
    calls = []

    def breaks(symbols: np.ndarray) -> float:
        calls.append(0)
        if len(calls) > 10:
            raise KeyError("no such symbol")  # an unlucky line
        return float(symbols[0])

    with pytest.raises(OpaqueError, match=r"`Opaque\(breaks\)` raised on the input \[[01]\]") as caught:
        hybrid(Opaque(breaks, cache=0), 20)
    message = str(caught.value)
    assert "# an unlucky line" in message and "KeyError: 'no such symbol'" in message
    assert "XlaRuntimeError" not in message and "pure_callback" not in message
    state = caught.value.state
    done = int(state.step)
    assert 0 < done < 10
    reference = hybrid(Opaque(lambda s: float(s[0]), cache=0), done)
    for mine, other in zip(jtu.tree_leaves(state), jtu.tree_leaves(reference.state), strict=True):
        mine, other = (jr.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in (mine, other))
        np.testing.assert_array_equal(mine, other)


def test_failures_do_not_leak_into_the_next_run() -> None:
    with pytest.raises(OpaqueError):
        hybrid(Opaque(lambda s: "no"), 1)
    assert hybrid(Opaque(lambda s: float(s[0])), 2).steps == 2


def test_a_gradient_through_it_names_the_way_out() -> None:
    program = Opaque(total, FLOAT)
    message = r"a gradient was asked through `Opaque\(total\)`, which has none.*through\(rest, logits, via=.*`Split\("
    with pytest.raises(TypeError, match=message):
        jax.grad(lambda x: program(x))(jnp.ones(2))
    problem = nondiff.Supervised(lambda p, b, k: program(p * b), jnp.ones((3, 2)), params=jnp.ones(2))
    with pytest.raises(TypeError, match=message):
        nondiff.fit(problem, nondiff.Backprop(optax.sgd(0.1)), steps=1, key=jr.key(0))
    assert program.requests == 0


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Opaque(3), r"`Opaque\(fn=3\)`: expected a function"),
        (lambda: Opaque(total, "int32"), r"`Opaque\(out='int32'\)`: expected shapes and dtypes"),
        (lambda: Opaque(total, ndim=-1), r"`Opaque\(ndim=-1\)`"),
        (lambda: Opaque(total, cache=-1), r"`Opaque\(cache=-1\)`"),
        (lambda: Opaque(total)(jnp.float32(1.0)), r"`Opaque\(total\)` got float32\[\], and one call takes 1 axes"),
        (lambda: Opaque(total, ndim=(1, 1))(jnp.ones(2)), r"was called with 1 arguments; `ndim=\(1, 1\)` names 2"),
    ],
)
def test_what_it_refuses(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
