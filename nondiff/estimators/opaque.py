"""A Python program inside a jitted loss, and the one owner of the calls to it."""

import functools
import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from nondiff.core import failures
from nondiff.core.checks import check_count, check_positive
from nondiff.estimators.callback import call_back
from nondiff.estimators.calls import Calls
from nondiff.estimators.failure import AbstractFailure, Broken, Instead, OpaqueError, Raise, stand_in
from nondiff.estimators.isolated import Pool, ship


def _count(name: str) -> property:
    """One of the counters of `Calls`, which may be set back to 0."""
    return property(lambda self: getattr(self._calls, name), lambda self, n: setattr(self._calls, name, n))


class Opaque:
    """`fn`, callable on arrays under `jit` and `vmap`, batched, de-duplicated, remembered and counted.

    **Arguments:**

    - `fn`: any Python function of NumPy arrays; one call is about one case.
    - `out`: shape and dtype of one answer, a `jax.ShapeDtypeStruct` or a pytree of them (default: a `float32` number).
    - `ndim`: how many trailing axes of the argument one call takes (default 1: a vector of symbols); everything before
      them is a batch. One number, or one for each argument.
    - `decode`: from the arrays of one case to what `fn` takes: text, a list, any object; a tuple is several arguments.
      Default: `fn` takes the arrays. `Vocabulary.decode` makes text of symbols.
    - `encode`: from what `fn` answers to arrays like `out` (default: it answers so).
    - `failure`: what is done when a call fails, that is, when it raises, does not answer in time, ends its process, or
      answers with NaN or with another shape or dtype than `out`: `Raise()` (default) or `Instead(answer)`.
    - `timeout`: seconds for one call (default: as long as it takes). Calls then run in a process of their own, which is
      killed when they are over, with all that it has started.
    - `workers`: calls that run at the same time, each in a process of its own (default: 1 if there is a `timeout`, else
      none, and `fn` is called where JAX is). More are not the default, since memory and a program's files may not
      allow for them.
    - `deterministic`: does it answer the same every time (default True)? Then each distinct input is asked once and its
      answer is kept, that of a failed call too. If not, every request is a call.
    - `cache`: how many answers are kept (default 1,000,000; the oldest go first), and with them the last four batches
      of 1,000 rows or more. 0 keeps none, and still asks once for equal rows of one batch.
    - `verify`: the share of remembered answers that are asked again and compared, 0 (default) to 1.

    **Attributes:** `requests`, inputs that were asked about; `distinct_calls`, those of them on which `fn` really ran;
    `failures`, those of these that failed; `verified`, answers that were asked again. They may be set back to 0.

    There is no derivative through it: asking for one raises, and says what to use.

    Processes start at the first call, import no more than the program needs (if that is JAX, it sees CPUs only), and
    end with this object or with the process that made it, however that ends. `fn`, `decode` and `encode` run there;
    they may be lambdas, closures, and functions of a script or notebook (by cloudpickle), as they are when this is
    first called. A call costs about 0.1 ms more there, a new process about 0.3 s.

    Of a program that is not `deterministic` no call is merged with an equal one, moved out of a loop, or left out. JAX
    refuses it inside `jax.checkpoint`, which computes again; in a branch of a mapped `lax.cond` it is asked for every
    case, as any program is, or on GPUs refused, and there `vmap` calls it case by case.

    **Raises** `OpaqueError`, which names the input, when a call fails or is not `deterministic` as promised, with the
    traceback of one that raised; `ValueError` if what is to run in a process cannot be pickled, and
    `ModuleNotFoundError` without cloudpickle.

    >>> add = Opaque(lambda digits: int(digits[0] + digits[1]), jax.ShapeDtypeStruct((), jnp.int32))
    >>> jax.jit(add)(jnp.array([[1, 2], [3, 4], [1, 2]]))
    Array([3, 7, 3], dtype=int32)
    >>> add.requests, add.distinct_calls
    (3, 2)

    A program on text, some of which is nonsense to it and takes too long:

    >>> import nondiff
    >>> def value(text):
    ...     while text == "0*":  # forever
    ...         pass
    ...     return float(eval(text))
    >>> words = nondiff.Vocabulary("0123456789+*_", pad="_")
    >>> program = Opaque(value, decode=words.decode, timeout=1.0, failure=nondiff.Instead(-1))
    >>> jax.jit(program)(jnp.array([words.encode(text, 3) for text in ("2*3", "+*", "7", "0*")]))
    Array([ 6., -1.,  7., -1.], dtype=float32)
    >>> program.distinct_calls, program.failures
    (4, 2)
    """

    requests = _count("requests")
    distinct_calls = _count("distinct_calls")
    failures = _count("failures")
    verified = _count("verified")

    def __init__(
        self,
        fn: Callable[..., Any],
        out: PyTree = jax.ShapeDtypeStruct((), jnp.float32),
        *,
        ndim: int | tuple[int, ...] = 1,
        decode: Callable[..., Any] | None = None,
        encode: Callable[..., Any] | None = None,
        failure: AbstractFailure = Raise(),
        timeout: int | float | None = None,
        workers: int | None = None,
        deterministic: bool = True,
        cache: int = 1_000_000,
        verify: int | float = 0.0,
    ):
        for name, given in {"fn": fn, "decode": decode, "encode": encode}.items():
            if not (callable(given) or (given is None and name != "fn")):
                raise ValueError(f"`Opaque({name}={given!r})`: expected a function.")
        if not all(isinstance(x, jax.ShapeDtypeStruct) for x in jtu.tree_leaves(out)):
            raise ValueError(
                f"`Opaque(out={out!r})`: expected shapes and dtypes, for example `jax.ShapeDtypeStruct((), jnp.int32)`."
            )
        for n in (ndim,) if isinstance(ndim, int) else ndim:
            check_count("Opaque", "ndim", n, least=0)
        check_count("Opaque", "cache", cache, least=0)
        if timeout is not None:
            check_positive("Opaque", "timeout", timeout)
        if workers is not None:
            check_count("Opaque", "workers", workers)
        if not isinstance(failure, AbstractFailure):
            raise ValueError(f"`Opaque(failure={failure!r})`: expected `Raise()` or `Instead(answer)`.")
        if not 0 <= verify <= 1 or (verify and not deterministic):
            raise ValueError(
                f"`Opaque(verify={verify!r}, deterministic={deterministic})`: expected a share from 0 to 1, and 0 for "
                "a program whose answers are not remembered."
            )
        if isinstance(failure, Instead):
            try:
                stand_in(failure.value, out)
            except Broken as broken:
                raise ValueError(
                    f"`Opaque(failure={failure!r})` {broken.before} a call that failed{broken.after}"
                ) from None
        self.fn, self.out, self.ndim, self.cache = fn, out, ndim, cache
        self.failure, self.timeout, self.deterministic, self.verify = failure, timeout, deterministic, verify
        self.workers = 1 if workers is None and timeout is not None else workers
        self._program = decode, fn, encode
        self._calls = Calls(
            repr(self), self._program, out, failure, size=cache if deterministic else None, verify=verify
        )
        self._lock = threading.Lock()
        self._stop = jax.custom_jvp(lambda *arrays: arrays)
        self._stop.defjvp(self._no_derivative)

    @property
    def name(self) -> str:
        return getattr(self.fn, "__name__", type(self.fn).__name__)

    def __repr__(self) -> str:
        return f"Opaque({self.name})"

    def __reduce__(self) -> Any:
        """Sent elsewhere it starts anew: its answers, its counts and its processes stay here."""
        decode, fn, encode = self._program
        options = {"ndim": self.ndim, "decode": decode, "encode": encode, "failure": self.failure, "cache": self.cache}
        options |= {"timeout": self.timeout, "workers": self.workers}
        options |= {"deterministic": self.deterministic, "verify": self.verify}
        return functools.partial(Opaque, **options), (fn, self.out)

    def __call__(self, *args: Any) -> PyTree:
        """`fn` on every case of the batch: arguments `[*batch, *case]`, answers `[*batch, *out]`."""
        arrays = [jnp.asarray(x) for x in args]
        for array, n in zip(arrays, self._ndims(len(args)), strict=True):
            if array.ndim < n:
                raise ValueError(
                    f"`{self!r}` got {array.dtype}{list(array.shape)}, and one call takes {n} axes (`ndim={n}`)."
                )
        if self.workers is not None and self._calls.pool is None:
            self._calls.pool = Pool(ship(self._program, repr(self)), workers=self.workers, timeout=self.timeout)
        batch = self._batch(arrays)
        out = jtu.tree_map(lambda s: jax.ShapeDtypeStruct((*batch, *s.shape), s.dtype), self.out)
        return call_back(self._answer, out, self._stop(*arrays), pure=self.deterministic)

    def _ndims(self, n_args: int) -> tuple[int, ...]:
        ndims = (self.ndim,) * n_args if isinstance(self.ndim, int) else self.ndim
        if len(ndims) != n_args:
            raise ValueError(f"`{self!r}` was called with {n_args} arguments; `ndim={self.ndim}` names {len(ndims)}.")
        return ndims

    def _batch(self, args: Any) -> tuple[int, ...]:
        return np.broadcast_shapes(*[x.shape[: x.ndim - n] for x, n in zip(args, self._ndims(len(args)), strict=True)])

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
                flat = self._calls.answers(rows)
            treedef = jtu.tree_structure(self.out)
            return treedef.unflatten([x.reshape((*batch, *x.shape[1:])) for x in flat])
        except (OpaqueError, KeyboardInterrupt, SystemExit) as error:
            failures.note(error)
            raise
