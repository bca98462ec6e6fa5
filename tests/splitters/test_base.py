"""What a splitter of one's own may give, and the registry."""

import subprocess
import sys

import numpy as np
import pytest

from modularml.errors import SplitError, UnknownNameError
from modularml.splitters import BaseSplitter, RandomSplitter, splitter_registry
from tests.contracts.splitter import SplitterContract


class FirstRows(BaseSplitter):
    def __init__(self, n_first):
        self.n_first = n_first

    def assign(self, n, *, columns):
        return {"first": np.arange(self.n_first), "rest": np.arange(self.n_first, n)}


class Anything(BaseSplitter):
    def __init__(self, parts):
        self.parts = parts

    def assign(self, n, *, columns):
        return self.parts


class TestContract(SplitterContract):
    def make(self):
        return FirstRows(7)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"a": [0, 5]}, "position 5, but there are 3 rows"),
        ({"a": [-1, 0]}, "position -1"),
        ({"a": [1, 0]}, "ascending"),
        ({"a": [1, 1]}, "each position once"),
        ({"a": [0.5]}, "row positions"),
        ({"a": [[0]]}, "row positions"),
        ({1: [0]}, "must be a non-empty string"),
    ],
)
def test_bad_positions_are_refused(parts, message):
    with pytest.raises(SplitError, match=message):
        Anything(parts).split(3)


def test_a_list_is_fine():
    found = Anything({"a": [0, 2]}).split(3)["a"]
    assert found.dtype == np.int64


def test_columns_must_have_as_many_rows():
    with pytest.raises(SplitError, match="'g' has 2 rows, expected 3"):
        RandomSplitter({"a": 1.0}, group_by="g").split(3, columns={"g": np.arange(2)})


def test_registry_finds_in_any_case_and_helps():
    assert splitter_registry["randomsplitter"] is RandomSplitter
    with pytest.raises(UnknownNameError, match="RandomSplitter"):
        splitter_registry["RandmSplitter"]


def test_rooms_are_light_to_import():
    code = (
        "import sys, modularml.splitters, modularml.scalers, modularml.predicates;"
        "print(sorted({'sklearn', 'pandas', 'torch', 'tensorflow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
