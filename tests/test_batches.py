"""Batches from outside, and where a resumed run finds them."""

import pathlib
import warnings
from collections.abc import Iterator
from typing import Any

import grain
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import nondiff as nd
from nondiff.run.memory import decode, encode

DATA = np.linspace(-1.0, 1.0, 20).astype(np.float32)
TRAINER = nd.Backprop(optax.adam(0.1))


def loss(w: Any, x: Any, key: Any) -> Any:
    return (w[0] * x + w[1] - 3.0 * x + 1.0) ** 2


def problem() -> nd.Supervised:
    return nd.Supervised(loss, DATA, params=jnp.zeros(2))


def run(batches: Any, steps: int, folder: pathlib.Path | None = None) -> nd.Result:
    """From where the folder's newest checkpoint is, or from the beginning."""
    saver = None if folder is None else nd.Checkpointer(folder, every=5)
    first = nd.init(problem(), TRAINER, key=jr.key(0))
    state = first if saver is None else saver.restore(first)
    callbacks = [] if saver is None else [saver]
    return nd.fit(problem(), TRAINER, steps=steps, state=state, batches=batches, callbacks=callbacks, log_every=4)


class Shuffled:
    """An iterable that can be started again and has no position."""

    def __init__(self) -> None:
        self.read = 0

    def __iter__(self) -> Iterator[np.ndarray]:
        for x in np.random.default_rng(0).permutation(DATA).reshape(5, 4):
            self.read += 1
            yield x


class Positioned:
    """An iterator with a position, in bytes, as some of grain's have."""

    def __init__(self) -> None:
        self.next, self.put_back = 0, 0

    def __iter__(self) -> "Positioned":
        return self

    def __next__(self) -> np.ndarray:
        self.next += 1
        return DATA[(7 * self.next) % 20 :][:1]

    def get_state(self) -> dict[str, Any]:
        return {"next": np.int64(self.next), "raw": bytes([self.next, 255]), "path": [None, True, 0.5, "a"]}

    def set_state(self, state: dict[str, Any]) -> None:
        assert state["raw"] == bytes([state["next"], 255]) and state["path"] == [None, True, 0.5, "a"]
        self.next = state["next"]
        self.put_back += 1


def grains() -> Any:
    return grain.MapDataset.source(DATA).shuffle(seed=3).repeat().batch(4).to_iter_dataset()


def generator() -> Iterator[np.ndarray]:
    yield from np.random.default_rng(1).normal(size=(40, 4)).astype(np.float32)


@pytest.mark.parametrize(
    ("make", "replayed"),
    [
        (lambda: lambda step: DATA[step % 20 :][:1], False),
        (Positioned, False),
        (grains, False),
        (lambda: iter(grains()), False),
        (Shuffled, True),
        (generator, True),
    ],
    ids=["function", "positioned", "grain", "grain_iterator", "iterable", "generator"],
)
def test_a_resumed_run_meets_the_batches_it_would_have_met(tmp_path: pathlib.Path, make: Any, replayed: bool) -> None:
    whole = run(make(), 23)
    assert run(make(), 12, tmp_path).steps == 12
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rest = run(make(), 23, tmp_path)  # as another process would: everything is made anew
    assert (rest.steps, rest.evaluations) == (23, 11)
    np.testing.assert_array_equal(rest.params, whole.params)
    messages = [str(w.message) for w in caught]
    assert [m.split(",")[0] for m in messages] == replayed * ["the batches are read again from the first to number 12"]


def test_a_position_is_put_back_once_and_nothing_is_read_again(tmp_path: pathlib.Path) -> None:
    run(Positioned(), 12, tmp_path)
    batches = Positioned()
    run(batches, 23, tmp_path)
    assert (batches.put_back, batches.next) == (1, 23)


def test_with_a_plain_state_an_iterator_is_read_on_from_where_it_stands() -> None:
    batches, whole = generator(), run(generator(), 23)
    half = nd.fit(problem(), TRAINER, steps=12, key=jr.key(0), batches=batches)
    rest = nd.fit(problem(), TRAINER, steps=23, state=half.state, batches=batches)
    first = nd.fit(problem(), TRAINER, steps=23, key=jr.key(0), batches=generator())
    np.testing.assert_array_equal(rest.params, first.params)
    np.testing.assert_array_equal(rest.params, whole.params)


def test_batches_that_are_too_few_now(tmp_path: pathlib.Path) -> None:
    run(generator(), 12, tmp_path)
    with (
        pytest.warns(UserWarning, match="read again"),
        pytest.raises(ValueError, match="the batches ended after 3; the"),
    ):
        run(iter([DATA[:4]] * 3), 23, tmp_path)


def test_the_last_good_checkpoint_before_the_batches_end(tmp_path: pathlib.Path) -> None:
    result = run(iter([DATA[:4]] * 7), 23, tmp_path)
    assert result.reason == "the batches ended after 7 steps" and nd.Checkpointer(tmp_path).steps() == [5, 7]


def test_a_position_is_json_and_bytes_and_nothing_else() -> None:
    state = {"a": {"b": [b"\x00\xff", 1, None]}, "c": True}
    assert decode(encode(state, "it")) == state
    with pytest.raises(
        TypeError, match=r"of it returned array.* \(ndarray\); a checkpoint holds JSON and bytes, never pick"
    ):
        encode({"a": np.zeros(3)}, "it")


def test_a_memory_that_cannot_be_kept_ends_the_run_and_says_whose(tmp_path: pathlib.Path) -> None:
    class Odd(nd.AbstractCallback):
        def __call__(self, moment: nd.Moment) -> None:
            pass

        def get_state(self) -> Any:
            return {1, 2}

    with pytest.raises(TypeError, match=r"`get_state` of `Odd` returned \{1, 2\} \(set\)"):
        nd.fit(problem(), TRAINER, steps=9, key=jr.key(0), callbacks=[Odd(), nd.Checkpointer(tmp_path, every=5)])
