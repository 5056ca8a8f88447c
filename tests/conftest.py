"""One thread for each test process, since bits are tested so and two processes share the cores better; and what is
compiled is kept, for the other tests and for the next run.
"""

import os
import pathlib

os.environ["NPROC"] = "1"  # XLA takes it for the number of cores; its flags for threads do not reach a matrix product
# Most of the time is compilation, and half of that is of programs that another test has, too.
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(
    pathlib.Path(__file__).parents[1] / ".pytest_cache" / "compiled"
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.03"

import signal

import jax
import pytest
from jaxtyping import config

# A shell has what it starts with `&` ignore Ctrl-C, `nohup` a terminal that closes; tests of these would see nothing.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="module")
def compiled_quickly():
    """For tests that spend most of their time in the compiler, and do not depend on how well it optimises."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()


@pytest.fixture
def unchecked():
    """As users call: without the tests' own type checks, which answer a wrong type before the library can."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
