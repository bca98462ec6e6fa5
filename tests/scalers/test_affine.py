"""Scaling without the import of scikit-learn, against scikit-learn bit for bit."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
import sklearn.preprocessing
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from modularml.errors import ScalerError
from modularml.scalers import Negate, Scaler, scaler_registry
from modularml.scalers.affine import AFFINE

ARGUMENTS = {
    "StandardScaler": [
        {},
        {"with_mean": False},
        {"with_std": False},
        {"with_mean": False, "with_std": False},
    ],
    "MinMaxScaler": [{}, {"feature_range": (-1, 0.5)}, {"clip": True}],
}
CASES = [(name, kwargs) for name, found in ARGUMENTS.items() for kwargs in found]


def rows(dtype):
    width = 8 * np.dtype(dtype).itemsize
    shapes = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12)
    numbers = st.floats(-1e6, 1e6, width=width) | st.just(np.nan) | st.sampled_from([0.0, 1.0])
    return hnp.arrays(dtype, shapes, elements=numbers, fill=st.nothing())


def assert_same(ours, theirs):
    assert vars(ours).keys() == vars(theirs).keys()
    for name, value in vars(theirs).items():
        mine = getattr(ours, name)
        assert type(mine) is type(value), name
        np.testing.assert_array_equal(mine, value, name)
        assert np.asarray(mine).dtype == np.asarray(value).dtype, name


@pytest.mark.parametrize(("name", "kwargs"), CASES)
@settings(max_examples=40)
@given(st.sampled_from([np.float32, np.float64]).flatmap(rows), st.booleans(), st.integers(1, 3))
def test_equals_sklearn_in_every_bit(name, kwargs, data, fortran, n_parts):
    data = np.asfortranarray(data) if fortran else data
    ours, theirs = AFFINE[name](**kwargs), getattr(sklearn.preprocessing, name)(**kwargs)
    parts = np.array_split(data, min(n_parts, len(data)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both warn of columns without values
        theirs.fit(parts[0])
        ours.fit(parts[0])
        for part in parts[1:]:
            ours.partial_fit(part)
            theirs.partial_fit(part)
        methods = ("transform", "inverse_transform")
        pairs = [(getattr(ours, method)(data), getattr(theirs, method)(data)) for method in methods]
    assert_same(ours, theirs)
    assert_same(ours.of_sklearn(), theirs)
    for found, expected in pairs:
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", AFFINE)
@pytest.mark.parametrize(
    "data",
    [
        np.arange(6).reshape(3, 2),
        np.ones((3, 2), np.float16),
        [[1, 2], [4, 3]],
        np.ma.masked_less(np.arange(6.0).reshape(3, 2), 2),  # scikit-learn ignores the mask
    ],
)
def test_leaves_other_types_to_sklearn(name, data):
    theirs = getattr(sklearn.preprocessing, name)().fit(data)
    assert_same(AFFINE[name]().fit(data), theirs)
    np.testing.assert_array_equal(AFFINE[name]().fit(data).transform(data), theirs.transform(data))


@pytest.mark.parametrize(
    ("scaler", "kwargs", "data", "text"),
    [
        ("StandardScaler", {}, [[np.inf], [1.0]], "infinity"),
        ("StandardScaler", {"with_mean": "yes"}, [[0.0], [1.0]], "with_mean"),
        ("MinMaxScaler", {"feature_range": (1, 0)}, [[0.0], [1.0]], "Minimum of desired"),
        ("MinMaxScaler", {"feature_range": [0, 1]}, [[0.0], [1.0]], "feature_range"),
        ("MinMaxScaler", {"clip": None}, [[0.0], [1.0]], "clip"),
    ],
)
def test_refuses_what_sklearn_refuses(scaler, kwargs, data, text):
    with pytest.raises(ScalerError, match=text):
        Scaler(scaler, kwargs).fit(np.array(data))


def test_transform_refuses_infinity_and_other_columns():
    ours = AFFINE["StandardScaler"]().fit(np.array([[0.0], [1.0]]))
    with pytest.raises(ValueError, match="infinity"):
        ours.transform(np.array([[np.inf]]))
    with pytest.raises(ValueError, match="2 features"):
        ours.transform(np.ones((1, 2)))
    with pytest.raises(sklearn.exceptions.NotFittedError):
        AFFINE["StandardScaler"]().transform(np.ones((1, 2)))


@pytest.mark.parametrize("given_as", ["name", "class", "instance"])
def test_the_wrapped_object_is_of_sklearn(given_as):
    data = np.random.default_rng(0).normal(size=(20, 3))
    cls = sklearn.preprocessing.StandardScaler
    scaler = Scaler({"name": "standardscaler", "class": cls, "instance": cls()}[given_as]).fit(data)
    assert scaler.scaler == "StandardScaler"
    before = scaler.transform(data)
    assert type(scaler.inner) is AFFINE["StandardScaler"]
    assert type(scaler.wrapped) is cls
    np.testing.assert_array_equal(scaler.transform(data), before)
    scaler.wrapped.mean_ = scaler.wrapped.mean_ + 1  # what is changed there counts
    assert not np.array_equal(scaler.transform(data), before)


def test_a_class_registered_under_the_name_does_the_work(monkeypatch):
    assert scaler_registry["StandardScaler"] is sklearn.preprocessing.StandardScaler
    monkeypatch.setitem(scaler_registry._entries, "StandardScaler", Negate)
    assert isinstance(Scaler("StandardScaler").inner, Negate)


def test_state_with_other_attributes_is_refused():
    scaler = Scaler("StandardScaler").fit(np.eye(2))
    for odd in ({"mean_": "text"}, {"other_": 1.0}):
        with pytest.raises(Exception, match="StandardScaler"):
            Scaler("StandardScaler").set_state({**scaler.get_state(), **odd})


def test_scaling_a_set_imports_no_sklearn(tmp_path):
    code = f"""
import sys
import numpy as np
import modularml as mml
rows = np.random.default_rng(0).normal(size=(30, 2))
fs = mml.FeatureSet.from_dict("a", {{"x": rows[:, 0], "y": rows[:, 1]}}, "x", "y")
fs.split_random({{"train": 0.5, "test": 0.5}}, seed=0)
fs.fit_transform("StandardScaler", domain="features", fit_to_split="train")
fs.fit_transform("MinMaxScaler", domain="targets", fit_to_split="train")
fs.save({str(tmp_path / "a.fs.mml")!r})
again = mml.FeatureSet.load({str(tmp_path / "a.fs.mml")!r})
assert (again.get_features("numpy") == fs.get_features("numpy")).all()
print([name for name in ("sklearn", "scipy") if name in sys.modules])
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
