"""One thread for each test process: bits are tested so, and two processes share the cores better."""

import os

os.environ["NPROC"] = "1"  # XLA takes it for the number of cores; its flags for threads do not reach a matrix product

import pytest
from jaxtyping import config


@pytest.fixture
def unchecked():
    """As users call: without the tests' own type checks, which answer a wrong type before the library can."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
