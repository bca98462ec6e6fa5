"""Every example in a docstring gives what it shows."""

import doctest
import importlib

import pytest

MODULES = ["averages", "batching", "events", "metrics", "printing", "sinks", "stages", "training"]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    found = doctest.testmod(importlib.import_module(f"modularml.streams.{name}"))
    assert found.attempted > 0
    assert found.failed == 0
