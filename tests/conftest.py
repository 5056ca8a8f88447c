"""What several tests use."""

import pytest
from jaxtyping import config


@pytest.fixture
def unchecked():
    """As users call: without the tests' own type checks, which answer a wrong type before the library can."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
