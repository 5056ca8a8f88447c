"""A Python program inside a jitted loss, and the one owner of the calls to it."""

import threading
import traceback
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, PyTree

from nondiff.core.trainer import check_count


class OpaqueError(RuntimeError):
    """A user's program raised, or answered with another shape or dtype than it promised."""


_failures: list[OpaqueError] = []


def last_failure() -> OpaqueError | None:
    """The failure behind an XLA error, once: compiled code can only pass its text on."""
    return _failures.pop() if _failures else None


class Opaque:
    """`fn`, callable on arrays under `jit` and `vmap`, batched, de-duplicated, remembered and counted.

    **Arguments:**

    - `fn`: any Python function of NumPy arrays; one call is about one case. It must answer the same every time, since
      each distinct input is asked once and its answer is kept.
    - `out`: shape and dtype of one answer, a `jax.ShapeDtypeStruct` or a pytree of them (default: a `float32` number).
    - `ndim`: how many trailing axes of the argument one call takes (default 1: a vector of symbols); everything before
      them is a batch. One number, or one for each argument.
    - `cache`: how many answers are kept (default 1,000,000; the oldest go first). 0 keeps none, and still asks once
      for equal rows of one batch.

    **Attributes:** `requests`, inputs that were asked about; `distinct_calls`, inputs on which `fn` really ran.

    There is no derivative through it: asking for one raises, and says what to use.

    **Raises** `OpaqueError`, with the program's traceback, when `fn` raises or breaks its promise.

    >>> add = Opaque(lambda digits: int(digits[0] + digits[1]), jax.ShapeDtypeStruct((), jnp.int32))
    >>> jax.jit(add)(jnp.array([[1, 2], [3, 4], [1, 2]]))
    Array([3, 7, 3], dtype=int32)
    >>> add.requests, add.distinct_calls
    (3, 2)
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        out: PyTree = jax.ShapeDtypeStruct((), jnp.float32),
        *,
        ndim: int | tuple[int, ...] = 1,
        cache: int = 1_000_000,
    ):
        if not callable(fn):
            raise ValueError(f"`Opaque(fn={fn!r})`: expected a function.")
        if not all(isinstance(x, jax.ShapeDtypeStruct) for x in jtu.tree_leaves(out)):
            raise ValueError(
                f"`Opaque(out={out!r})`: expected shapes and dtypes, for example `jax.ShapeDtypeStruct((), jnp.int32)`."
            )
        for n in (ndim,) if isinstance(ndim, int) else ndim:
            check_count("Opaque", "ndim", n, least=0)
        check_count("Opaque", "cache", cache, least=0)
        self.fn, self.out, self.ndim, self.cache = fn, out, ndim, cache
        self.requests = self.distinct_calls = 0
        self._answers: OrderedDict[tuple[Any, ...], list[np.ndarray]] = OrderedDict()
        self._lock = threading.Lock()
        self._call = jax.custom_jvp(self._callback)
        self._call.defjvp(self._no_derivative)

    @property
    def name(self) -> str:
        return getattr(self.fn, "__name__", type(self.fn).__name__)

    def __repr__(self) -> str:
        return f"Opaque({self.name})"

    def __call__(self, *args: Any) -> PyTree:
        """`fn` on every case of the batch: arguments `[*batch, *case]`, answers `[*batch, *out]`."""
        arrays = [jnp.asarray(x) for x in args]
        for array, n in zip(arrays, self._ndims(len(args)), strict=True):
            if array.ndim < n:
                raise ValueError(
                    f"`{self!r}` got {array.dtype}{list(array.shape)}, and one call takes {n} axes (`ndim={n}`)."
                )
        return self._call(*arrays)

    def _ndims(self, n_args: int) -> tuple[int, ...]:
        ndims = (self.ndim,) * n_args if isinstance(self.ndim, int) else self.ndim
        if len(ndims) != n_args:
            raise ValueError(f"`{self!r}` was called with {n_args} arguments; `ndim={self.ndim}` names {len(ndims)}.")
        return ndims

    def _batch(self, args: Any) -> tuple[int, ...]:
        return np.broadcast_shapes(*[x.shape[: x.ndim - n] for x, n in zip(args, self._ndims(len(args)), strict=True)])

    def _callback(self, *args: Array) -> PyTree:
        batch = self._batch(args)
        out = jtu.tree_map(lambda s: jax.ShapeDtypeStruct((*batch, *s.shape), s.dtype), self.out)
        return jax.pure_callback(self._answer, out, *args, vmap_method="expand_dims")

    def _no_derivative(self, primals: Any, tangents: Any) -> Any:
        raise TypeError(
            f"a gradient was asked through `{self!r}`, which has none. Cross it with an estimator, "
            "`through(rest, logits, via=MarginalLikelihood(), key=key)`, or give the leaves before it to a trainer "
            "that needs no gradient, `Split({'search': OpenES(...), ...}, labels)`."
        )

    def _answer(self, *args: Any) -> PyTree:
        try:
            arrays = [np.asarray(x) for x in args]
            batch = self._batch(arrays)
            rows = [
                np.broadcast_to(x, (*batch, *x.shape[x.ndim - n :])).reshape(-1, *x.shape[x.ndim - n :])
                for x, n in zip(arrays, self._ndims(len(arrays)), strict=True)
            ]
            with self._lock:
                flat = self._ask(rows)
            treedef = jtu.tree_structure(self.out)
            return treedef.unflatten([x.reshape((*batch, *x.shape[1:])) for x in flat])
        except OpaqueError as error:
            _failures[:] = [error]
            raise

    def _ask(self, rows: list[np.ndarray]) -> list[np.ndarray]:
        """Answers to `[n, ...]` rows: one look-up, or one call, for each distinct one."""
        n = rows[0].shape[0]
        self.requests += n
        leaves = jtu.tree_leaves(self.out)
        if n == 0:
            return [np.zeros((0, *s.shape), s.dtype) for s in leaves]
        first, inverse = _distinct(rows)
        found, kinds = [], tuple((x.dtype.str, x.shape[1:]) for x in rows)
        for i in first:
            key = (kinds, *[x[i].tobytes() for x in rows])
            answer = self._answers.get(key)
            if answer is None:
                answer = self._run([np.asarray(x[i]) for x in rows])
                self._answers[key] = answer
            found.append(answer)
        while len(self._answers) > self.cache:
            self._answers.popitem(last=False)
        return [np.stack([answer[j] for answer in found])[inverse] for j in range(len(leaves))]

    def _run(self, case: list[np.ndarray]) -> list[np.ndarray]:
        self.distinct_calls += 1
        try:
            answer = self.fn(*[np.array(x) for x in case])  # its own copy: a program may write into its input
        except (Exception, SystemExit) as error:
            text = "".join(traceback.format_exception(type(error), error, _own_frames(error)))
            raise OpaqueError(f"`{self!r}` raised on the input {_show(case)}:\n{text}") from error
        expected, treedef = jtu.tree_flatten(self.out)
        got, got_treedef = jtu.tree_flatten(answer)
        if treedef != got_treedef:
            raise OpaqueError(f"`{self!r}` answered {answer!r} to {_show(case)}; expected {self.out}.")
        return [self._checked(x, s, case) for x, s in zip(got, expected, strict=True)]

    def _checked(self, answer: Any, promised: jax.ShapeDtypeStruct, case: list[np.ndarray]) -> np.ndarray:
        try:
            array = np.asarray(answer)
        except ValueError:
            array = np.asarray(None)
        fits = array.dtype == promised.dtype or _holds(promised.dtype, answer)
        if array.shape != promised.shape or not fits:
            got = f"{array.dtype}{list(array.shape)}" if array.dtype != object else repr(answer)
            raise OpaqueError(
                f"`{self!r}` answered {got} to {_show(case)}; promised was {promised.dtype}{list(promised.shape)}. "
                "Convert the answer, or correct `out`."
            )
        return array.astype(promised.dtype)


def _holds(dtype: Any, x: Any) -> bool:
    """A Python number has no dtype of its own: any that holds its value will do."""
    if isinstance(x, int) and np.issubdtype(dtype, np.integer):
        return bool(np.iinfo(dtype).min <= x <= np.iinfo(dtype).max)
    number = isinstance(x, bool | int | float)
    return number and np.can_cast(np.float64 if isinstance(x, float) else np.int8, dtype, "same_kind")


def _show(case: list[np.ndarray]) -> str:
    return ", ".join(np.array2string(x, threshold=20) for x in case)


def _own_frames(error: BaseException) -> Any:
    return error.__traceback__.tb_next if error.__traceback__ is not None else None


def _distinct(rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Where each distinct row stands first, and which of them every row is."""
    columns = [x.reshape(x.shape[0], -1) for x in rows]
    narrow = [c.astype(np.int8) if c.size and np.issubdtype(c.dtype, np.integer) and _small(c) else c for c in columns]
    data = np.concatenate([np.ascontiguousarray(c).view(np.uint8).reshape(c.shape[0], -1) for c in narrow], 1)
    width = data.shape[1]
    if width <= 8:  # one machine word for each row: sorting those is many times faster
        data = np.pad(data, ((0, 0), (0, 8 - width)))
        words = np.ascontiguousarray(data).view(np.uint64).reshape(-1)
    else:
        words = np.ascontiguousarray(data).view(np.dtype((np.void, width))).reshape(-1)
    _, first, inverse = np.unique(words, return_index=True, return_inverse=True)
    return first, inverse.reshape(-1)


def _small(x: np.ndarray) -> bool:
    return bool(x.min() >= -128 and x.max() <= 127)
