"""The contract of a problem, as a test."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np

from nondiff.core.domain import complete, is_domain
from nondiff.core.problem import AbstractProblem
from nondiff.testing.common import named, same_shapes


def check_problem(problem: AbstractProblem) -> None:
    """Does a problem keep the contract?

    - `init` gives arrays only, `domain` is a prefix of them and holds them, `differentiable` is a tree like them;
    - the loss is one float, or one per case; the same key gives the same loss;
    - `losses` on a chunk agrees with its members one by one;
    - `absorb` keeps the state's structure, shapes and dtypes.

    >>> import nondiff
    >>> check_problem(nondiff.BlackBox(lambda x: jnp.sum(x**2), jnp.ones(3)))
    """
    k_params, k_state, k_batch, k_loss = jr.split(jr.key(0), 4)
    params = problem.init(key=k_params)
    bad = [name for name, leaf in named(params) if not eqx.is_array_like(leaf)]
    assert not bad, f"`init` returned something else than arrays: {bad}"
    domain = complete(problem.domain(params), params)
    outside = jtu.tree_map(lambda d, x: bool(jnp.any(d.clip(x) != x)), domain, params, is_leaf=is_domain)
    assert not any(jtu.tree_leaves(outside)), f"`init` lies outside of `domain`: {outside}"
    assert jtu.tree_structure(problem.differentiable(params)) == jtu.tree_structure(params), (
        "`differentiable` is not a tree like the parameters"
    )
    state = problem.init_state(key=k_state)
    source = problem.batches()
    batch = (
        problem.batch(state, key=k_batch) if source is None else source(0) if callable(source) else next(iter(source))
    )
    loss, aux = problem.loss(params, batch, key=k_loss)
    value = np.asarray(loss)
    assert value.ndim <= 1 and np.issubdtype(value.dtype, np.floating), (
        f"`loss` returned {value.dtype}{list(value.shape)}; expected one float, or one per case"
    )
    np.testing.assert_array_equal(value, problem.loss(params, batch, key=k_loss)[0], "the same key, another loss")
    keys = jr.split(k_loss, 3)
    members = jtu.tree_map(lambda x: jnp.stack([jnp.asarray(x)] * 3), params)
    many, _ = problem.losses(members, batch, keys=keys)
    single = np.stack([np.asarray(problem.loss(params, batch, key=k)[0]) for k in keys])
    np.testing.assert_allclose(many, single, rtol=1e-4, atol=1e-6, err_msg="`losses` disagrees with `loss`")
    stacked = jtu.tree_map(lambda x: jnp.stack([jnp.asarray(x)] * 3), aux)
    same_shapes(state, problem.absorb(state, stacked, batch), "`absorb` changes the shape of the problem's state")
