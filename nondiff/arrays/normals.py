"""Standard normals, bit by bit those of `jax.random.normal`, in one fused operation.

On CPU JAX lowers its generator to a loop whose turns each write and read the whole array, because that compiles
faster. A search that draws a number for every parameter of every member pays for it: written out, the same rounds are
fused with what makes the numbers normal, and with what uses them; 16 M numbers took a third of the time.
"""

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key, UInt

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def normals(key: Key[Array, ""], n: int) -> Float[Array, " n"]:
    """`n` standard normals in float32: `jax.random.normal(key, (n,), jnp.float32)`.

    >>> key = jr.key(0)
    >>> bool(jnp.all(normals(key, 1000) == jr.normal(key, (1000,), jnp.float32)))
    True
    """
    usual = jax.config.jax_threefry_partitionable  # pyright: ignore[reportAttributeAccessIssue]
    usual = usual and str(jr.key_impl(key)) == "threefry2x32"
    if jax.default_backend() != "cpu" or n >= 2**32 or not usual:
        return jr.normal(key, (n,), jnp.float32)
    low, high = _threefry(jr.key_data(key), jax.lax.iota(jnp.uint32, n))
    bits = low ^ high
    # As `jax.random.uniform` does: 23 random bits as the mantissa of a number in 1 .. 2, and from there to -1 .. 1.
    unit = jax.lax.bitcast_convert_type((bits >> 9) | jnp.uint32(0x3F800000), jnp.float32) - 1.0
    least = jnp.nextafter(jnp.float32(-1.0), jnp.float32(0.0))
    uniform = jnp.maximum(least, unit * (1.0 - least) + least)
    return jnp.float32(2**0.5) * jax.lax.erf_inv(uniform)


def _threefry(key: UInt[Array, " 2"], count: UInt[Array, " n"]) -> tuple[UInt[Array, " n"], UInt[Array, " n"]]:
    """20 rounds of Threefry-2x32 (Salmon, Moraes, Dror & Shaw, 2011, "Parallel Random Numbers: As Easy as 1, 2, 3")."""
    keys = (key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(0x1BD11BDA))
    x, y = jnp.zeros_like(count) + keys[0], count + keys[1]
    for i in range(5):
        for bits in ROTATIONS[i % 2]:
            x = x + y
            y = x ^ ((y << bits) | (y >> (32 - bits)))
        x, y = x + keys[(i + 1) % 3], y + keys[(i + 2) % 3] + jnp.uint32(i + 1)
    return x, y
