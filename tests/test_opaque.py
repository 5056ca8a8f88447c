"""`Opaque` owns the calls to a user's program: batched, de-duplicated, counted, and clear when it fails."""

import collections
import functools
import logging
import os
import pickle
import subprocess
import sys

import cloudpickle
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax
import pytest

import nondiff
from nondiff import Instead, Opaque, OpaqueError, Raise, Vocabulary

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
    add.requests = add.distinct_calls = 0  # from here on
    assert add(jnp.array([1, 2])) == 3 and (add.requests, add.distinct_calls) == (1, 0)


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


@pytest.mark.timeout(120)
@pytest.mark.parametrize("threads", [None, "1"])
def test_large_arguments_do_not_hang(threads: str | None) -> None:
    """With one thread JAX's own `pure_callback` waits forever for the copy of an argument of 80 MB."""
    environment = {name: value for name, value in os.environ.items() if name != "NPROC"}
    environment |= {"NPROC": threads} if threads else {}
    done = subprocess.run([sys.executable, "-c", LARGE], env=environment, capture_output=True, text=True, timeout=100)
    assert done.stdout == f"{2 * (np.arange(20_000) % 7).sum()} 20000 7\n", done.stderr


def asked(program: Opaque, x) -> jax.Array:
    """What the program answers, or the error it makes."""
    try:
        return program(jnp.asarray(x))
    except (jax.errors.JaxRuntimeError, ValueError):  # a compiled call that ran before raises the latter
        raise nondiff.core.failures.last_failure() from None


def answering(answer, out=FLOAT) -> jax.Array:
    return asked(Opaque(lambda x: answer, out), jnp.zeros(1))


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
        ([1.0, [2.0]], VECTOR, r"answered \[1.0, \[2.0\]\] to .* promised was float32\[2\]"),
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
        (lambda: Opaque(total, decode=3), r"`Opaque\(decode=3\)`: expected a function"),
        (lambda: Opaque(total, encode="ascii"), r"`Opaque\(encode='ascii'\)`: expected a function"),
        (lambda: Opaque(total, failure=-1), r"`Opaque\(failure=-1\)`: expected `Raise\(\)` or `Instead\(answer\)`"),
        (lambda: Opaque(total, INT, failure=Instead(0.5)), r"answered float64\[\] to a call.*promised was int32\[\]"),
        (lambda: Opaque(total, INT, failure=Instead((1, 2))), r"answered \(1, 2\) to a call that failed; expected"),
        (lambda: Opaque(total, timeout=0), r"`Opaque\(timeout=0\)`"),
        (lambda: Opaque(total, workers=0), r"`Opaque\(workers=0\)`"),
        (lambda: Opaque(total, verify=1.5), r"`Opaque\(verify=1.5.*expected a share from 0 to 1"),
        (lambda: Opaque(total, verify=0.5, deterministic=False), r"`Opaque\(verify=0.5, deterministic=False\)`"),
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


# What is remembered.


@pytest.mark.parametrize("cache", [0, 3, 7, 1_000])
def test_memory_is_that_of_a_dictionary(cache: int) -> None:
    """Against a second implementation: whole numbers in a dictionary that forgets its oldest entries."""
    random, known = np.random.default_rng(cache), collections.OrderedDict()
    program, calls = Opaque(lambda d: int(d[0]) ** 2, INT, cache=cache), 0
    for _ in range(40):
        batch = random.integers(0, 12, size=16)
        np.testing.assert_array_equal(program(jnp.asarray(batch)[:, None]), batch**2)
        asked_now = sorted(set(batch.tolist()) - set(known))
        calls += len(asked_now)
        for value in asked_now:
            known[value] = None
            while len(known) > cache:
                known.popitem(last=False)
        assert program.distinct_calls == calls
    assert program.requests == 640


@pytest.mark.parametrize("out", [INT, (INT, VECTOR)], ids=["number", "tree"])
def test_a_table_that_comes_again_is_answered_as_before(out) -> None:
    def answer(d: np.ndarray):
        return int(d @ [100, 10, 1]) if out is INT else (int(d @ [100, 10, 1]), np.float32([d[0], d[2]]))

    table = np.stack(np.meshgrid(*[np.arange(12)] * 3, indexing="ij"), -1).reshape(-1, 3)
    program = Opaque(answer, out)
    ask = jax.jit(lambda x: program(x))
    order = np.random.default_rng(0)
    for rows in (table, table, order.permutation(table), np.concatenate([table, table]), table):
        for x in (rows, rows.astype(np.int8)):  # the same rows, and another question
            for _ in range(2):
                found = ask(x)
                np.testing.assert_array_equal(found if out is INT else found[0], rows @ [100, 10, 1])
                if out is not INT:
                    np.testing.assert_array_equal(found[1], rows[:, [0, 2]])
    assert program.distinct_calls == 2 * len(table)
    assert program.requests == 2 * 2 * 6 * len(table)


def test_more_tables_than_are_remembered() -> None:
    program = Opaque(lambda d: int(d[0]), INT)
    for _ in range(2):
        for start in range(7):
            rows = np.arange(start, start + 1_500)
            np.testing.assert_array_equal(program(jnp.asarray(rows)[:, None]), rows)
    assert program.distinct_calls == 1_506


def test_a_table_larger_than_the_memory_is_not_kept_as_one() -> None:
    program = Opaque(lambda d: int(d[0]), INT, cache=1_000)
    for calls in (2_000, 3_000):  # the newer half is known
        np.testing.assert_array_equal(program(jnp.arange(2_000)[:, None]), np.arange(2_000))
        assert program.distinct_calls == calls


def test_sent_elsewhere_it_starts_anew() -> None:
    add = Opaque(lambda d: total(d), INT, ndim=1, cache=5, failure=Instead(-1), verify=0.5, timeout=3.0)
    other = pickle.loads(cloudpickle.dumps(add))
    assert other.out == INT and (other.ndim, other.cache, other.verify, other.timeout) == (1, 5, 0.5, 3.0)
    assert isinstance(other.failure, Instead) and other.deterministic and other.workers == 1
    counted = Opaque(total, INT)
    counted(jnp.array([1, 2]))
    other = pickle.loads(cloudpickle.dumps(counted))
    assert other(jnp.array([1, 2])) == 3 and (other.requests, other.distinct_calls) == (1, 1)


# What is done when a call fails.


def moody(digits: np.ndarray):
    """Fails in another way for each number from 1 on."""
    if digits[0] == 1:
        raise KeyError("no such symbol")
    if digits[0] == 7:
        raise SystemExit(3)
    return {2: np.nan, 3: "text", 4: np.zeros(2), 5: (1.0, 2.0), 6: None}.get(int(digits[0]), float(digits[1]))


def test_failed_calls_are_answered_counted_and_logged_once(caplog) -> None:
    program = Opaque(moody, failure=Instead(-1))
    x = jnp.array([[0, 5], [1, 0], [2, 0], [3, 0], [4, 0], [5, 0], [6, 0], [7, 0], [1, 0], [0, 7]])
    with caplog.at_level(logging.WARNING, "nondiff"):
        for _ in range(2):  # failures are remembered, too
            np.testing.assert_array_equal(jax.jit(program)(x), [5, *[-1] * 8, 7])
            assert (program.failures, program.distinct_calls) == (7, 9)
        program(jnp.array([[1, 1], [3, 1], [2, 1]]))
    assert program.failures == 10
    said = [record.getMessage() for record in caplog.records if record.name == "nondiff"]
    assert len(said) == 5  # KeyError, NaN, shape or dtype, structure, SystemExit
    assert "`Opaque(moody)` raised on the input [1 0]" in said[0] and "answered by -1." in said[0]
    assert "`Opaque(moody)` answered nan to [2 0]" in said[1]


def test_nan_is_a_failure_unless_it_is_allowed() -> None:
    def half(x: np.ndarray) -> dict:
        return {"a": np.float32([x[0], np.nan]), "b": 1}

    out = {"a": VECTOR, "b": INT}
    with pytest.raises(
        OpaqueError, match=r"(?s)answered \{.*nan.*\} to \[2\.\]. With `failure=Raise\(allow_nan=True\)`"
    ):
        asked(Opaque(half, out), [2.0])
    got = Opaque(half, out, failure=Raise(allow_nan=True))(jnp.array([2.0]))
    np.testing.assert_array_equal(got["a"], [2.0, np.nan])
    program = Opaque(half, out, failure=Instead({"a": np.float32([1, 2]), "b": 3}))
    got = program(jnp.array([2.0]))
    assert got["a"].tolist() == [1, 2] and got["b"] == 3 and program.failures == 1
    got = Opaque(half, out, failure=Instead(7))(jnp.array([2.0]))
    assert got["a"].tolist() == [7, 7] and got["b"] == 7
    assert np.isinf(Opaque(moody, failure=Instead(np.inf))(jnp.array([2, 0])))
    assert np.isinf(Opaque(lambda x: np.inf)(jnp.zeros(1)))  # infinite is a number


def test_a_loss_that_is_nan_by_a_failure_is_a_failed_evaluation() -> None:
    program = Opaque(lambda s: 1 / int(s[0]), failure=Instead(np.nan))
    with pytest.raises(nondiff.NonFiniteError, match="all evaluations of a query failed"):
        hybrid(program, 2)
    assert program.failures == 1  # of symbol 0


def test_a_policy_of_ones_own() -> None:
    class Nearest(nondiff.AbstractFailure):
        allow_nan: bool = False

        def answer(self, error: OpaqueError):
            assert "`Opaque(" in str(error)
            return 0.25

    assert Opaque(moody, failure=Nearest())(jnp.array([1, 2])) == 0.25
    with pytest.raises(
        OpaqueError, match=r"`Opaque\(total\)`: `failure` answered float64\[\] to \[0.5\]; promised was int32"
    ):
        asked(Opaque(total, INT, encode=lambda n: "no", failure=Nearest()), [0.5])


def test_an_interrupt_is_no_failure_of_the_program() -> None:
    def interrupted(symbols: np.ndarray) -> float:
        raise KeyboardInterrupt

    program = Opaque(interrupted, failure=Instead(0))
    with pytest.raises(KeyboardInterrupt) as caught:
        hybrid(program, 2)
    assert program.failures == 0 and int(caught.value.state.step) == 0


# Text and objects.


def test_text_in_and_out() -> None:
    words = Vocabulary("0123456789+*-_", pad="_")
    out = jax.ShapeDtypeStruct((5,), jnp.int32)
    encode = functools.partial(words.encode, length=5)
    program = Opaque(lambda text: str(eval(text)), out, decode=words.decode, encode=encode)
    texts = ["3+4*2", "99*99", "7", "1-20"]
    found = jax.jit(program)(jnp.stack([words.encode(text, 6) for text in texts]))
    assert [words.decode(row) for row in found] == ["11", "9801", "7", "-19"]


def test_objects_and_several_arguments() -> None:
    def pick(items: list[str], index: int) -> str:
        return items[index]

    def decode(symbols: np.ndarray, index: np.ndarray) -> tuple[list[str], int]:
        return [chr(97 + i) for i in symbols], int(index)

    program = Opaque(pick, INT, ndim=(1, 0), decode=decode, encode=ord)
    x = jnp.array([[0, 1, 2], [5, 6, 7]])
    np.testing.assert_array_equal(jax.jit(program)(x, jnp.array([2, 0])), [99, 102])
    whole = Opaque(len, INT, decode=lambda d: (d.tolist(),))  # in a tuple: the only argument
    assert whole(jnp.arange(4)) == 4


def test_errors_name_the_part_that_raised() -> None:
    words = Vocabulary("ab")
    with pytest.raises(
        OpaqueError, match=r"`Opaque\(len\)` has a `decode` that raised on the input \[0 2\](?s:.*)from 0 to 1"
    ):
        asked(Opaque(len, INT, decode=words.decode), [0, 2])
    with pytest.raises(OpaqueError, match=r"`Opaque\(len\)` has a `encode` that raised on the input \[0 1\]"):
        asked(Opaque(len, INT, decode=words.decode, encode=words.encode), [0, 1])
    program = Opaque(len, INT, decode=words.decode, failure=Instead(-1))
    np.testing.assert_array_equal(program(jnp.array([[0, 1], [1, 3]])), [2, -1])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Vocabulary("abca"), r"`Vocabulary\('abca'\)`: expected characters, each of them once"),
        (lambda: Vocabulary(""), r"`Vocabulary\(''\)`"),
        (lambda: Vocabulary("ab", pad="c"), r"`Vocabulary\(pad='c'\)`: expected one of its symbols, 'ab'"),
        (lambda: Vocabulary("ab").decode([-1]), r"`Vocabulary.decode\(\[-1\]\)`: expected numbers from 0 to 1"),
        (lambda: Vocabulary("ab").decode([2]), r"expected numbers from 0 to 1"),
        (lambda: Vocabulary("ab").encode("abc"), r"'c' is none of its symbols, 'ab'"),
        (
            lambda: Vocabulary("ab").encode("a", 2),
            r"`Vocabulary.encode\('a', 2\)`: it is shorter, and there is no `pad`",
        ),
        (lambda: Vocabulary("ab_", pad="_").encode("aaa", 2), r"`Vocabulary.encode\('aaa', 2\)`: it is longer"),
    ],
)
def test_what_a_vocabulary_refuses(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_every_text_comes_back() -> None:
    words = Vocabulary("xyz_", pad="_")
    for numbers in np.ndindex(3, 3, 3):
        text = words.decode(np.array(numbers))
        np.testing.assert_array_equal(words.encode(text), numbers)
        assert words.decode(words.encode(text, 5)) == text
    assert len(words) == 4 and words.decode([]) == words.decode([3, 3]) == "" and words.encode("").shape == (0,)
    assert repr(words) == "Vocabulary('xyz_', pad='_')"


# Programs that are not deterministic.


def counter(**options) -> Opaque:
    """It answers how many calls there were before."""
    calls = []
    return Opaque(lambda x: calls.append(0) or len(calls) - 1, INT, **options)


def test_every_request_is_a_call() -> None:
    program = counter(deterministic=False)
    assert sorted(program(jnp.zeros((4, 1))).tolist()) == [0, 1, 2, 3]
    assert program(jnp.zeros(1)) == 4
    assert (program.requests, program.distinct_calls) == (5, 5)
    assert program(jnp.zeros((0, 1))).shape == (0,)


@pytest.mark.parametrize(
    ("fn", "calls"),
    [
        (lambda f, x: f(x) + f(x), 2),  # not merged
        (lambda f, x: jax.lax.fori_loop(0, 5, lambda i, n: n + f(x), 0), 5),  # nor moved out of a loop
        (lambda f, x: jax.lax.scan(lambda n, _: (n + f(x), None), 0, None, length=5)[0], 5),
        (lambda f, x: jax.lax.cond(x[0] > 1, f, lambda x: 0, x), 0),
        (lambda f, x: (f(x), 0)[1], 1),  # nor left out
        (lambda f, x: jax.vmap(f)(jnp.stack([x, x, x])).sum(), 3),
        (lambda f, x: jax.vmap(jax.vmap(f))(jnp.zeros((2, 3, 1))).sum(), 6),
        (lambda f, x: jax.vmap(lambda x: jax.lax.cond(x[0] > 1, f, lambda x: 0, x))(jnp.zeros((3, 1))).sum(), 3),
        (lambda f, x: jax.grad(lambda w: w * f(x))(2.0), 1),
        (lambda f, x: jax.lax.map(f, jnp.stack([x, x, x]), batch_size=2).sum(), 3),
    ],
    ids=["twice", "fori", "scan", "cond", "unused", "vmap", "nested", "mapped_cond", "grad", "map"],
)
def test_calls_stand_where_they_are_written(fn, calls: int) -> None:
    program = counter(deterministic=False)
    total = jax.jit(lambda x: fn(program, x))(jnp.zeros(1)).block_until_ready()
    assert program.requests == program.distinct_calls == calls
    if calls > 1 and total != 0:  # of a branch that is not taken the answers are not
        assert total == sum(range(calls))


def test_jax_refuses_to_compute_again_what_is_not_deterministic() -> None:
    program = counter(deterministic=False)
    with pytest.raises(NotImplementedError, match=r"[Ee]ffect"):
        jax.grad(jax.checkpoint(lambda w: w * program(jnp.zeros(1))))(2.0)
    assert program.requests == 0


@pytest.mark.parametrize(
    ("via", "requests"),
    [
        (nondiff.Tabulate(), 2 + 2 * 4),  # the value of two cases, and their tables
        (nondiff.ScoreFunction(3), 2 + 2 * 3),
        (nondiff.MarginalLikelihood(5), 2 + 2 * 5),
    ],
)
def test_estimators_past_what_is_not_deterministic(via, requests: int) -> None:
    program = counter(deterministic=False)

    def loss(logits):
        return nondiff.through(lambda s: program(s) * 1.0, logits, via=via, key=jr.key(0)).sum()

    _, slope = jax.jit(jax.value_and_grad(loss))(jnp.zeros((2, 1, 4)))
    assert np.isfinite(slope).all()
    assert program.requests == program.distinct_calls == requests


def test_a_promise_of_the_same_answers_is_verified() -> None:
    for rows in (np.arange(10), np.arange(2_000)):  # one by one, and as a whole
        x = jnp.asarray(rows)[:, None]
        honest = Opaque(lambda d: int(d[0]), INT, verify=1.0)
        for k in range(3):
            np.testing.assert_array_equal(honest(x), rows)
            assert (honest.verified, honest.distinct_calls) == (k * len(rows), len(rows))
    some = Opaque(lambda d: int(d[0]), INT, verify=0.1)
    some(x), some(x)
    assert 120 < some.verified < 280  # 200 are expected, 13 is the standard deviation
    moody = counter(verify=1.0)
    assert asked(moody, [5.0]) == 0
    message = r"is not deterministic: to the input \[5\.\] it answered 0, and now 1. Say so with `deterministic=False`"
    with pytest.raises(OpaqueError, match=message):
        asked(moody, [5.0])
    nan = Opaque(lambda x: np.nan, verify=1.0, failure=Raise(allow_nan=True))
    for _ in range(2):
        assert np.isnan(asked(nan, [5.0]))


def test_on_several_devices_each_case_is_one_request() -> None:
    code = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from nondiff import Opaque
program = Opaque(lambda d: int(d.sum()), jax.ShapeDtypeStruct((), jnp.int32))
mesh = jax.make_mesh((2,), ("a",), axis_types=(jax.sharding.AxisType.Auto,))
x = jax.device_put(jnp.arange(12).reshape(6, 2), NamedSharding(mesh, PartitionSpec("a")))
print(np.asarray(jax.jit(lambda x: program(x))(x)).tolist(), program.requests)
calls = []
count = Opaque(lambda d: calls.append(0) or len(calls), deterministic=False)
twice = jax.jit(jax.vmap(lambda x: count(x) + count(x)))(jnp.zeros((3, 2)))
print(float(twice.sum()), count.requests, count.distinct_calls)
"""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **flags}, capture_output=True, text=True)
    assert done.stdout == "[1, 5, 9, 13, 17, 21] 6\n21.0 6 6\n", done.stderr


def test_a_list_of_numbers_is_an_array_of_them() -> None:
    program = Opaque(lambda s: sorted(s.tolist()), jax.ShapeDtypeStruct((3,), jnp.int32))
    np.testing.assert_array_equal(jax.jit(program)(jnp.array([[2, 3, 1], [0, 0, -1]])), [[1, 2, 3], [-1, 0, 0]])
    np.testing.assert_array_equal(Opaque(sorted, jax.ShapeDtypeStruct((2,), jnp.int32))(jnp.array([2, 1])), [1, 2])
    for answer in ([1, 2.5], [1, 2**40], [1], [[1], 2], ["1", "2"]):
        broken = Opaque(lambda s, answer=answer: answer, jax.ShapeDtypeStruct((2,), jnp.int32))
        with pytest.raises(jax.errors.JaxRuntimeError, match="promised was int32"):
            broken(jnp.array([0]))
