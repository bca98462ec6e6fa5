"""Splits by conditions."""

import numpy as np
import pytest

from modularml.config import encode
from modularml.errors import ConfigError, DataError, SplitError
from modularml.predicates import GT, Lambda
from modularml.splitters import ConditionSplitter, SplitOverlapWarning
from tests.contracts.splitter import SplitterContract

COLUMNS = {"x": np.arange(8), "cell": np.array(list("aaaabbbb"))}


class TestContract(SplitterContract):
    def make(self):
        return ConditionSplitter({"low": {"x": Lambda("lambda x: x < 20")}, "b": {"cell": ["b"]}})

    def columns(self):
        return {
            "x": np.arange(self.n),
            "cell": np.where(np.arange(self.n) < 40, "a", "b"),
            "y": np.arange(self.n),
        }


def split(**conditions):
    parts = ConditionSplitter(**conditions).split(8, columns=COLUMNS)
    return {name: rows.tolist() for name, rows in parts.items()}


def test_conditions_of_every_kind():
    found = split(
        value={"x": 0},
        members={"x": {1, 2}},
        predicate={"x": GT(2) & ~GT(4)},
        function={"x": lambda v: v > 4},
    )
    assert found == {"value": [0], "members": [1, 2], "predicate": [3, 4], "function": [5, 6, 7]}


def test_conditions_of_one_split_are_anded():
    assert split(part={"x": GT(2), "cell": "a"}) == {"part": [3]}


def test_dict_and_keywords_are_one():
    assert ConditionSplitter({"a": {"x": 1}}, b={"x": 2}) == ConditionSplitter(
        a={"x": 1}, b={"x": 2}
    )


def test_overlap_is_warned_of_with_counts():
    with pytest.warns(SplitOverlapWarning, match=r"'a' and 'b' share 2 \(of 5 and 5\)"):
        split(a={"x": GT(2)}, b={"x": [0, 1, 2, 3, 4]})


def test_empty_split_is_named():
    with pytest.raises(SplitError, match=r"'b' would be empty: none of 8 rows"):
        split(a={"x": 1}, b={"x": 99})


def test_bad_condition_names_the_column():
    with pytest.raises(DataError, match=r"column 'cell'.*text"):
        split(a={"cell": GT(3)})


@pytest.mark.parametrize("bad", [{}, {"a": {}}, {"a": 3}, {1: {"x": 1}}])
def test_bad_arguments(bad):
    with pytest.raises(SplitError, match="conditions must"):
        ConditionSplitter(bad)


def test_a_lambda_works_but_cannot_be_stored():
    splitter = ConditionSplitter(a={"x": lambda v: v > 3})
    assert len(splitter.split(8, columns=COLUMNS)["a"]) == 4
    with pytest.raises(ConfigError):
        encode(splitter)
