"""References: values that resolve late, in the context that runs."""

import subprocess
import sys

import numpy as np
import pytest

from modularml.config import decode, encode
from modularml.context import ExperimentContext
from modularml.data import FeatureSet, FeatureSetColumnReference, FeatureSetReference
from modularml.errors import ConfigError, UnknownNameError


def make(label="fs", **kwargs):
    data = {k: np.arange(4.0) + i for i, k in enumerate("abyzst")}
    return FeatureSet.from_dict(label, data, ["a", "b"], ["y", "z"], ["s", "t"], **kwargs)


def test_everything_unless_something_is_named():
    ref = make().reference()
    assert ref.features == ("features.a", "features.b")
    assert ref.targets == ("targets.y", "targets.z")
    assert ref.tags == ("tags.s", "tags.t")


@pytest.mark.parametrize(
    ("kwargs", "features", "targets", "tags"),
    [
        ({"features": "b"}, ("features.b",), "yz", "st"),
        ({"features": ["b", "a"], "targets": []}, ("features.b", "features.a"), "", "st"),
        ({"columns": ["z", "y.raw"], "tags": []}, "ab", ("targets.z", "targets.y.raw"), ""),
        ({"columns": "b"}, ("features.b",), "yz", "st"),
        ({"columns": ["features.b.raw"]}, ("features.b.raw",), "yz", "st"),
        ({"columns": ["b"], "features": "a"}, ("features.b", "features.a"), "yz", "st"),
        ({"features": ["b.raw", "a"]}, ("features.b.raw", "features.a"), "yz", "st"),
        ({"features": "features.a"}, ("features.a",), "yz", "st"),
        ({"features": "*"}, "ab", "yz", "st"),
    ],
)
@pytest.mark.parametrize("scaled", [False, True])
def test_what_is_named_and_in_which_order(kwargs, features, targets, tags, scaled):
    fs = make()
    if scaled:
        fs.fit_transform("MinMaxScaler", domain="features")
        fs.fit_transform("MinMaxScaler", domain="targets")
    ref = fs.reference(**kwargs)
    for domain, expected in (("features", features), ("targets", targets), ("tags", tags)):
        named = tuple(f"{domain}.{k}" for k in expected) if isinstance(expected, str) else expected
        assert getattr(ref, domain) == named


def test_a_representation_that_is_left_open_is_the_newest_when_it_is_used():
    fs = make()
    ref, raw = fs.reference(targets=[]), fs.reference(features=["b", "a"], rep="raw", tags=[])
    assert ref.columns("features") == ("features.a.raw", "features.b.raw")
    fs.fit_transform("MinMaxScaler", domain="features", keys="a")
    assert ref.columns("features") == ("features.a.transformed", "features.b.raw")
    assert raw.columns("features") == ("features.b.raw", "features.a.raw")
    assert raw.all_columns()[2:] == ["targets.y.raw", "targets.z.raw"]
    fs.undo_all_transforms()
    assert ref.columns("features") == ("features.a.raw", "features.b.raw")


def test_references_read_what_getters_give_without_a_note(caplog):
    fs = make("said")
    fs.fit_transform("MinMaxScaler", domain="features")
    columns = fs.reference().columns("features")
    given = fs.get_features("dict_numpy", include_domain_prefix=True, include_rep_suffix=True)
    assert columns == tuple(given) == ("features.a.transformed", "features.b.transformed")
    assert not caplog.messages


def test_a_representation_for_all():
    fs = make()
    fs.fit_transform("MinMaxScaler", domain="features")
    assert fs.reference(rep="raw").features == ("features.a.raw", "features.b.raw")
    scaled = fs.reference(rep="transformed")
    assert scaled.features == ("features.a.transformed", "features.b.transformed")
    assert scaled.tags == ("tags.s", "tags.t")  # which are not scaled
    assert fs.reference(features="a.*").features == ("features.a.raw", "features.a.transformed")


def test_names_that_are_unknown():
    fs = make()
    with pytest.raises(UnknownNameError, match="unknown column 'c' of features"):
        fs.reference(features="c")
    with pytest.raises(UnknownNameError, match=r"unknown column 'a\.transformed'"):
        fs.reference(["a.transformed"])
    with pytest.raises(UnknownNameError, match=r"'a.transformed' of features"):
        fs.reference(features="a", rep="transformed")
    gone = FeatureSetReference(fs.node_id, "fs", features=("features.gone",))
    with pytest.raises(UnknownNameError, match="unknown column 'gone' of features"):
        gone.columns("features")


def test_references_are_values():
    fs = make()
    assert fs.reference() == fs.reference()
    assert len({fs.reference(), fs.reference(), fs.reference(features="a")}) == 2
    with pytest.raises(AttributeError):
        fs.reference().features = ()
    assert str(fs.reference(features="a")) == "fs[features.a]"
    for ref in (fs.reference(), fs.column_reference("y"), fs.column_reference(tag="s.raw")):
        again = decode(encode(ref))
        assert again == ref
        assert hash(again) == hash(ref)


CODE = """
import sys
from tests.data.test_references import make
from modularml.config import decode
ref = decode(eval(sys.stdin.read()))
make()
print(*ref.all_columns(), ref.resolve().label)
"""


def test_a_new_process_finds_the_same_columns():
    ref = make().reference(features=["b", "a"], tags=[])
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        input=repr(encode(ref)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [
        "features.b.raw",
        "features.a.raw",
        "targets.y.raw",
        "targets.z.raw",
        "fs",
    ]


def test_references_resolve_in_the_context_that_runs(fresh_context):
    fs = make()
    ref = fs.reference()
    assert ref.resolve() is fs
    with ExperimentContext().activate() as other:
        with pytest.raises(UnknownNameError, match="unknown node 'fs'"):
            ref.resolve()
        twin = make()
        assert ref.resolve() is twin
        assert ref.resolve(fresh_context) is fs
    assert ref.resolve(other) is twin
    fs.label = "renamed"
    assert ref.resolve() is fs


@pytest.mark.parametrize(
    ("kwargs", "domain", "key", "rep"),
    [
        ({"column": "y"}, "targets", "y", None),
        ({"column": "targets.y.raw"}, "targets", "y", "raw"),
        ({"column": "targets.y"}, "targets", "y", None),
        ({"feature": "a"}, "features", "a", None),
        ({"feature": "a.transformed"}, "features", "a", "transformed"),
        ({"feature": "a", "rep": "raw"}, "features", "a", "raw"),
        ({"tag": "tags.s"}, "tags", "s", None),
        ({"target": "z.raw"}, "targets", "z", "raw"),
    ],
)
def test_one_column(kwargs, domain, key, rep):
    fs = make()
    fs.fit_transform("MinMaxScaler", domain="features")
    ref = fs.column_reference(**kwargs)
    assert ref == FeatureSetColumnReference(fs.node_id, "fs", domain, key, rep)
    assert ref.column == ".".join(part for part in (domain, key, rep) if part)
    assert ref.resolve() is fs


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({}, ConfigError, "exactly one of column, feature, target and tag"),
        ({"feature": "a", "tag": "s"}, ConfigError, "exactly one"),
        ({"column": "*"}, UnknownNameError, "single column '\\*'"),
        ({"feature": "features.*"}, UnknownNameError, "single column"),
        ({"feature": "y"}, UnknownNameError, "unknown column 'y' of features"),
        ({"column": "y", "rep": "transformed"}, UnknownNameError, "'y.transformed'"),
    ],
)
def test_columns_that_cannot_be_referred_to(kwargs, error, message):
    with pytest.raises(error, match=message):
        make().column_reference(**kwargs)
