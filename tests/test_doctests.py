"""Every example in a docstring runs and prints what it shows."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import modularml
from modularml import ExperimentContext

MODULES = sorted(
    found.name
    for found in pkgutil.walk_packages(modularml.__path__, "modularml.")
    if not found.name.endswith(("__main__", ".compat"))  # which changes classes for good
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    runner = doctest.DocTestRunner()
    for test in doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(name)):
        with ExperimentContext().activate():  # labels of other examples are free
            runner.run(test)
    assert runner.failures == 0


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder()
    found = [
        t for name in MODULES for t in finder.find(importlib.import_module(name)) if t.examples
    ]
    assert len(found) > 50
