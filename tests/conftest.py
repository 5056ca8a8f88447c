"""One thread for each test process: bits are tested so, and two processes share the cores better."""

import os

os.environ["NPROC"] = "1"  # XLA takes it for the number of cores; its flags for threads do not reach a matrix product

import gc
import itertools
import pathlib

import jax
import pytest
from jaxtyping import config

MAPS = pathlib.Path("/proc/self/maps")
FINISHED = itertools.count(1)


@pytest.fixture(autouse=True)
def few_compiled():
    """Every program that is compiled maps memory, and a process may have some 65,000 maps: XLA crashes beyond."""
    yield
    if next(FINISHED) % 10 == 0 and MAPS.exists() and MAPS.read_bytes().count(b"\n") > 30_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def unchecked():
    """As users call: without the tests' own type checks, which answer a wrong type before the library can."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
