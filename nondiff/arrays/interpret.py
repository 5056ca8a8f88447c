"""Runs any JAX function on perturbed arrays, operation by operation.

The function is traced as if its arguments were plain arrays, so the model, its library and its transformations
(`vmap`, `scan`, a custom derivative, a gradient taken inside) know nothing of this. Then its operations are repeated:
those that a perturbed array reaches by their rule (`nondiff.arrays.rules`), others as they are. An operation without a
rule multiplies its operands out, each once. To see which ones do:

    logging.getLogger("nondiff.arrays").setLevel(logging.DEBUG)

before the first step. Quax offers the same idea; it raises on every `custom_vjp` (0.4.6), and a strategy needs the
values alone.
"""

import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core.primitives as lax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax.extend import source_info_util
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun
from jaxtyping import Array, PyTree

from nondiff.arrays.low_rank import LowRank, Operand, is_low_rank
from nondiff.arrays.rules import RULES

log = logging.getLogger("nondiff.arrays")


def interpret(fn: Callable[..., Any], *args: PyTree) -> PyTree:
    """`fn(*args)`, whose arguments may hold `LowRank` leaves, and whose result holds none.

    >>> import jax, jax.numpy as jnp
    >>> w = LowRank(jnp.zeros((2, 3)), jnp.ones((2, 1)), jnp.arange(3.0)[:, None], (0,), (1,))
    >>> interpret(lambda w, x: jnp.tanh(w @ x), w, jnp.array([0.0, 0.0, 0.5]))
    Array([0.7615942, 0.7615942], dtype=float32)
    """
    leaves, treedef = jtu.tree_flatten(args, is_leaf=is_low_rank)
    plain = [x.base if isinstance(x, LowRank) else x for x in leaves]
    jaxpr, out = jax.make_jaxpr(lambda *xs: fn(*treedef.unflatten(xs)), return_shape=True)(*plain)
    results = _Interpreter().run(jaxpr.jaxpr, jaxpr.consts, leaves)
    return jtu.tree_unflatten(jtu.tree_structure(out), results)


Found = dict[str, tuple[int, str]]
"""What was multiplied out: of each name the most entries at once, and what for."""


class _Interpreter:
    """One level of a program: it remembers what was multiplied out, so that nothing is twice."""

    def __init__(self, found: Found | None = None, dense: dict[int, tuple[LowRank, Array]] | None = None) -> None:
        self.found = found
        """Where a rehearsal notes what it multiplies out, instead of in the log."""
        self.dense = dict(dense or {})  # by identity; the first of the two keeps it alive

    def run(self, jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any]) -> list[Array]:
        """The results, as arrays."""
        return [self.materialise(x, "the result") for x in self.evaluate(jaxpr, consts, args)]

    def evaluate(self, jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any]) -> list[Operand]:
        given = map(_operand, [*consts, *args])
        values: dict[Any, Operand] = dict(zip([*jaxpr.constvars, *jaxpr.invars], given, strict=True))

        def read(x: Any) -> Operand:
            return _operand(x.val) if isinstance(x, Literal) else values[x]

        debug = jaxpr.debug_info._replace(arg_names=None, result_paths=None)
        for equation in jaxpr.eqns:
            outs = self.apply(equation, [read(x) for x in equation.invars], debug)
            values.update(zip(equation.outvars, outs, strict=True))
        return [read(x) for x in jaxpr.outvars]

    def apply(self, equation: JaxprEqn, operands: list[Operand], debug: Any) -> Sequence[Operand]:
        """The results of one operation."""
        if not any(map(is_low_rank, operands)):
            return _plain(equation, operands, debug)
        primitive, params = equation.primitive, equation.params
        if primitive in RULES:
            out = RULES[primitive](*operands, **params)
            if out is not None:
                return out if isinstance(out, list) else [out]
        elif primitive in STRUCTURES:
            return STRUCTURES[primitive](self, operands, params, _described(equation))
        elif primitive in CALLS:
            inner = _closed(params[CALLS[primitive]])
            return self.evaluate(inner.jaxpr, inner.consts, operands)
        return _plain(equation, [self.materialise(x, _described(equation)) for x in operands], debug)

    def materialise(self, x: Operand, why: str) -> Array:
        if not isinstance(x, LowRank):
            return x
        if id(x) not in self.dense:
            if self.found is None:
                log.debug("`%s` %s is multiplied out for %s", x.name, list(x.shape), why)
            else:
                self.found[x.name] = max(self.found.get(x.name, (0, "")), (math.prod(x.shape), why))
            self.dense[id(x)] = x, x.dense()
        return self.dense[id(x)][1]

    def fixed(self, loop: Callable[[Found | None, Sequence[Operand]], Any], operands: Sequence[Operand]) -> Any:
        """`operands`, those multiplied out that `loop` would multiply out as a whole in every turn.

        A part of one, such as a row of a table, is better multiplied out in the turn that needs it.
        """
        if not any(map(is_low_rank, operands)):
            return operands
        found: Found = {}
        named = [dataclasses.replace(x, name=str(i)) if isinstance(x, LowRank) else x for i, x in enumerate(operands)]
        jax.eval_shape(lambda: loop(found, named))
        whole = {
            i: found[str(i)][1]
            for i, x in enumerate(operands)
            if isinstance(x, LowRank) and found.get(str(i), (0, ""))[0] >= math.prod(x.shape)
        }
        if not whole:
            return operands
        # Once more: of a sum of two, only the name of the first has been noted.
        return self.fixed(loop, [self.materialise(x, whole[i]) if i in whole else x for i, x in enumerate(operands)])


def _operand(x: Any) -> Operand:
    return x if isinstance(x, Operand) else jnp.asarray(x)


def _plain(equation: JaxprEqn, operands: Sequence[Operand], debug: Any) -> Sequence[Array]:
    """The operation as it is: as a program of one line, which JAX itself knows how to repeat."""
    given = {v: x for v, x in zip(equation.invars, operands, strict=True) if not isinstance(v, Literal)}
    one = Jaxpr((), list(given), equation.outvars, [equation], equation.effects, debug_info=debug)
    return jaxpr_as_fun(ClosedJaxpr(one, ()))(*given.values())


def _closed(jaxpr: Jaxpr | ClosedJaxpr) -> ClosedJaxpr:
    return jaxpr if isinstance(jaxpr, ClosedJaxpr) else ClosedJaxpr(jaxpr, ())


def _described(equation: JaxprEqn) -> str:
    return f"`{equation.primitive}` at {source_info_util.summarize(equation.source_info)}"


def _scan(level: _Interpreter, operands: list[Operand], params: dict[str, Any], what: str) -> Sequence[Array]:
    """Constants stay perturbed, and so does what is scanned along its first axis, as a stack of layers."""
    n, k = params["num_consts"], params["num_consts"] + params["num_carry"]
    carry = [level.materialise(x, f"the carry of {what}") for x in operands[n:k]]
    inner = params["jaxpr"]
    moving, layers = zip(*map(_unstack, operands[k:]), strict=True) if operands[k:] else ((), ())
    how = {name: params[name] for name in ("length", "reverse", "unroll")}

    def loop(found: Found | None, consts: Sequence[Operand]) -> Any:
        def step(carry: list[Array], parts: Any) -> tuple[list[Array], list[Array]]:
            xs = [layer(part) for layer, part in zip(layers, parts, strict=True)]
            outs = _Interpreter(found).run(inner.jaxpr, inner.consts, [*consts, *carry, *xs])
            return outs[: k - n], outs[k - n :]

        return jax.lax.scan(step, carry, list(moving), **how)

    last, ys = loop(level.found, level.fixed(loop, operands[:n]))
    return [*last, *ys]


def _unstack(x: Operand) -> tuple[PyTree, Callable[[PyTree], Operand]]:
    """The parts of a stack that have its first axis, and how a slice of them becomes a layer."""
    if not isinstance(x, LowRank):
        return x, lambda part: part
    rows, columns = (tuple(i - 1 for i in axes if i > 0) for axes in (x.rows, x.columns))
    if 0 in x.rows:
        a = jnp.moveaxis(x.a, x.rows.index(0), 0)
        return (x.base, a), lambda part: LowRank(part[0], part[1], x.b, rows, columns, x.name)
    b = jnp.moveaxis(x.b, x.columns.index(0), 0)
    return (x.base, b), lambda part: LowRank(part[0], x.a, part[1], rows, columns, x.name)


def _while(level: _Interpreter, operands: list[Operand], params: dict[str, Any], what: str) -> Sequence[Array]:
    n, k = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    carry = [level.materialise(x, f"the carry of {what}") for x in operands[k:]]
    going, turn = params["cond_jaxpr"], params["body_jaxpr"]

    def loop(found: Found | None, consts: Sequence[Operand]) -> Any:
        return jax.lax.while_loop(
            lambda carry: _Interpreter(found).run(going.jaxpr, going.consts, [*consts[:n], *carry])[0],
            lambda carry: _Interpreter(found).run(turn.jaxpr, turn.consts, [*consts[n:], *carry]),
            carry,
        )

    return loop(level.found, level.fixed(loop, operands[:k]))


def _cond(level: _Interpreter, operands: list[Operand], params: dict[str, Any], what: str) -> Sequence[Array]:
    """What only one branch multiplies out costs nothing where the other one is taken."""
    index, rest = level.materialise(operands[0], f"the index of {what}"), operands[1:]

    def branch(inner: ClosedJaxpr) -> Callable[[], list[Array]]:
        return lambda: _Interpreter(level.found, level.dense).run(inner.jaxpr, inner.consts, rest)

    return jax.lax.switch(index, [branch(inner) for inner in params["branches"]])


CALLS = {
    lax.jit_p: "jaxpr",
    lax.remat_p: "jaxpr",
    lax.closed_call_p: "call_jaxpr",
    lax.custom_jvp_call_p: "call_jaxpr",
    lax.custom_vjp_call_p: "call_jaxpr",
}
"""Functions within the function, run where they are called: their name and their own derivative fall away."""

STRUCTURES = {lax.scan_p: _scan, lax.while_p: _while, lax.cond_p: _cond}
