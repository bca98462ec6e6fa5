"""What every test starts from: a context of its own, and one thread of torch."""

import sys
from collections.abc import Iterator

import pytest

from modularml.context import ExperimentContext


@pytest.fixture(autouse=True)
def context() -> Iterator[ExperimentContext]:
    """Make a fresh context the active one for the length of a test."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    with ExperimentContext(registration_policy="error").activate() as ctx:
        yield ctx
