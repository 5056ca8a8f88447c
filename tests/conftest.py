"""One thread for each test process: bits are promised for one, and two processes share the cores better."""

import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
).strip()

import pytest
from jaxtyping import config


@pytest.fixture
def unchecked():
    """As users call: without the tests' own type checks, which answer a wrong type before the library can."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
