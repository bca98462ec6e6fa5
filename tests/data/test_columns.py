"""Anything to a column and back, held against numpy; what cannot be one is refused by name."""

import datetime as dt
import decimal

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modularml.data.arrow_columns import to_arrow
from modularml.data.arrow_types import leaf_type, numpy_dtype, sample_shape, to_numpy
from modularml.errors import DataError
from tests.random_tables import columns


def same(found, expected):
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found, expected)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 9).flatmap(columns))
def test_arrays_come_back(values):
    array = to_arrow(values, "x")
    found = to_numpy(array)
    assert len(array) == len(values)
    assert sample_shape(array.type) == values.shape[1:]
    assert numpy_dtype(array.type) == found.dtype
    if len(values) or values.dtype != object:  # of no objects the type is not known
        assert found.dtype == values.dtype.newbyteorder("=")
    assert not found.flags.writeable
    same(found, values)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "u4", "i8", "M8[ns]", "m8[us]"])
@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 2, 3)])
def test_numbers_are_read_without_a_copy(dtype, shape):
    array = to_arrow(np.arange(np.prod(shape)).reshape(shape).astype(dtype), "x")
    flat = array
    for _ in shape[1:]:
        flat = flat.flatten()
    memory = np.frombuffer(flat.buffers()[1], dtype=np.uint8)
    assert np.shares_memory(to_numpy(array), memory)


def test_a_slice_is_read_right():
    array = to_arrow(np.arange(24.0).reshape(6, 2, 2), "x")
    same(to_numpy(array.slice(2, 3)), np.arange(24.0).reshape(6, 2, 2)[2:5])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2.5], np.array([1, 2.5])),
        ([[1, 2], [3, 4.5]], np.array([[1, 2], [3, 4.5]])),
        ([(1, 2), (3, 4)], np.array([[1, 2], [3, 4]])),
        ([np.arange(3), np.arange(3)], np.array([[0, 1, 2]] * 2)),
        ([np.eye(2), np.ones((2, 2))], np.array([np.eye(2), np.ones((2, 2))])),
        ([[np.eye(2)], [np.eye(2)]], np.array([[np.eye(2)]] * 2)),
        ([[[1, 2]], [[3, 4]]], np.array([[[1, 2]], [[3, 4]]])),
        ([True, False], np.array([True, False])),
        ([[True], [False]], np.array([[True], [False]])),
        (["a", "ü漢"], np.array(["a", "ü漢"], dtype=object)),
        ([["a", "b"], ["c", "d"]], np.array([["a", "b"], ["c", "d"]], dtype=object)),
        (np.array(["a", "bc"]), np.array(["a", "bc"], dtype=object)),
        (np.array([["a"], ["bc"]]), np.array([["a"], ["bc"]], dtype=object)),
        (np.array([[1, 2], [3, 4]], dtype=object), np.array([[1, 2], [3, 4]])),
        ([b"a", b"b"], np.array([b"a", b"b"], dtype=object)),
        ([float("nan"), 1.0], np.array([np.nan, 1.0])),
        (range(3), np.arange(3)),
        ([], np.array([], dtype=float)),
        ([dt.date(2020, 1, 2)], np.array(["2020-01-02"], dtype="M8[D]")),
        ([dt.datetime(2020, 1, 2, 3)], np.array(["2020-01-02T03"], dtype="M8[us]")),  # noqa: DTZ001
        (np.array(["2020-01"], dtype="M8[M]"), np.array(["2020-01-01"], dtype="M8[D]")),
        (np.array([3], dtype="m8[h]"), np.array([3 * 3600], dtype="m8[s]")),
        (np.array([2], dtype="m8[D]"), np.array([2 * 86400], dtype="m8[s]")),
        ([decimal.Decimal("1.5")], np.array([1.5])),
        (np.float32([1, 2]), np.float32([1, 2])),
        (pd.Series([1, 2], dtype="Int64"), np.array([1, 2])),
        (pd.Series(["b", "a"], dtype="category"), np.array(["b", "a"], dtype=object)),
        (pd.Series([3, 1, 3]).astype("category"), np.array([3, 1, 3])),
        (pd.Series(["x", "y"]), np.array(["x", "y"], dtype=object)),
        (pd.Series([np.zeros(2), np.ones(2)]), np.array([[0.0, 0], [1, 1]])),
        (pd.Index([1, 2]), np.array([1, 2])),
        (pd.DataFrame({"a": [1, 2], "b": [3, 4]}), np.array([[1, 3], [2, 4]])),
        (pd.Series(pd.to_datetime(["2020-01-01"])), np.array(["2020-01-01"], dtype="M8[us]")),
        (pl.Series([1.5, 2.5]), np.array([1.5, 2.5])),
        (pl.Series(["a", "b"]), np.array(["a", "b"], dtype=object)),
        (pl.Series(["a", "b"], dtype=pl.Categorical), np.array(["a", "b"], dtype=object)),
        (pl.Series([[1, 2], [3, 4]]), np.array([[1, 2], [3, 4]])),
        (pl.Series([[1, 2]], dtype=pl.Array(pl.Int8, 2)), np.array([[1, 2]], dtype="i1")),
        (pa.array([[1, 2], [3, 4]]), np.array([[1, 2], [3, 4]])),
        (pa.array([["a"], ["b"]], pa.large_list(pa.large_string())), np.array([["a"], ["b"]])),
        (pa.chunked_array([[1], [2, 3]]), np.array([1, 2, 3])),
        (pa.chunked_array([], pa.int32()), np.array([], dtype="i4")),
        (pa.array([1, 2], pa.int8()).dictionary_encode(), np.array([1, 2], dtype="i1")),
    ],
)
def test_what_people_have(values, expected):
    found = to_numpy(to_arrow(values, "x"))
    assert found.dtype == (expected.dtype if expected.dtype.kind != "U" else object)
    same(found, expected)


def test_tensors_of_arrow_keep_their_shape():
    values = np.arange(12.0).reshape(2, 3, 2)
    plain = pa.FixedShapeTensorArray.from_numpy_ndarray(values)
    same(to_numpy(to_arrow(plain, "x")), values)
    turned = pa.FixedShapeTensorArray.from_numpy_ndarray(values.transpose(0, 2, 1))
    same(to_numpy(to_arrow(turned, "x")), values.transpose(0, 2, 1))


def test_torch_tensors():
    torch = pytest.importorskip("torch")
    tensor = torch.arange(6.0, requires_grad=True).reshape(3, 2)
    array = to_arrow(tensor, "x")
    same(to_numpy(array), np.arange(6.0, dtype="f4").reshape(3, 2))
    with torch.no_grad():
        tensor += 1
    assert to_numpy(array)[0, 0] == 0
    same(to_numpy(to_arrow([torch.zeros(2), torch.ones(2)], "x")), np.float32([[0, 0], [1, 1]]))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, None, 3], r"'x' has 1 missing value\(s\), the first in row 1"),
        ([None, None], r"2 missing value\(s\), the first in row 0"),
        ([[1, 2], None], "the first in row 1"),
        ([[1, 2], [3, None]], "the first in row 1"),
        ([[[1, 2], [3, 4]], [[5, 6], [None, 7]]], "the first in row 1"),
        ([[[1, 2], [3, 4]], [[5, 6], None]], "the first in row 1"),
        ([np.zeros(2), None], "the first in row 1"),
        (["a", float("nan")], "the first in row 1"),
        (pd.Series([1, pd.NA], dtype="Int64"), "row 1.*convert the column to float"),
        (pd.Series(["a", None]), "the first in row 1"),
        (pd.Series(["a", None], dtype="category"), "the first in row 1"),
        (pd.Series(pd.to_datetime(["2020-01-01", None])), "the first in row 1"),
        (np.array(["2020", "NaT"], dtype="M8[s]"), "the first in row 1"),
        (np.ma.array([1, 2, 3], mask=[0, 1, 0]), "the first in row 1"),
        (np.ma.array([[1, 2], [3, 4]], mask=[[0, 0], [0, 1]]), "the first in row 1"),
        (np.array([[1, 2], [3, None]], dtype=object), "the first in row 1"),
        (pa.array([[1.0], None], pa.list_(pa.float64(), 1)), "the first in row 1"),
        (pa.array([[1, 2], [1, None]], pa.list_(pa.int64(), 2)), "the first in row 1"),
        (pl.Series([1, None]), "the first in row 1"),
        ([[1, 2], [3]], r"'x' is ragged: row 0 has shape \(2,\), row 1 is of shape \(1,\)"),
        ([np.zeros(2), np.zeros(2), np.zeros(3)], r"row 2 is of shape \(3,\).*group_by"),
        ([np.zeros(2), 3.0], r"row 1 is of shape \(\)"),
        ([[[1, 2], [3, 4]], [[1, 2], [3]]], "'x' is ragged.*row 1"),
        (pd.Series([[1, 2], [3]]), "'x' is ragged.*row 1"),
        (pl.Series([[1, 2], [3]]), "'x' is ragged.*row 1"),
        ([1, 2.5, "a"], "row 2 is str 'a', row 0 is int '1'"),
        (["a", "b", 3], "row 2 is int '3'"),
        ([[1, 2], [1, "a"]], "mixes types.*row 1"),
        ([[1, 2], 3], "row 1"),
        ([object()], "row 0 is object"),
        ([1, 2**70], "row 1"),
        (np.array([1j]), "'x' is complex; pass its real and imaginary parts"),
        ([1j], "row 0 is complex"),
        (np.array([(1, 2.0)], dtype=[("a", int), ("b", float)]), "one column for each"),
        ([{"a": 1}], "one column for each field"),
        (np.array(3.0), "'x' must hold one value per sample, got a single 3.0"),
        ("text", "one value per sample.*str"),
        (3.0, "one value per sample.*float"),
        ({0: 1.0, 1: 2.0}, "one value per sample.*dict"),
        ({1, 2}, "one value per sample.*set"),
        ((i for i in range(3)), "one value per sample.*generator"),
        (np.zeros((3, 0)), "'x' holds arrays of shape .0,., which are empty"),
        ([[], []], "'x' holds empty lists"),
        (np.zeros(2, dtype=np.longdouble), "'x' holds .*convert it"),
        (np.array([0, 2**40], dtype="M8[D]"), "'x' holds a date that is out of range in row 1"),
        (pd.Series(pd.period_range("2020", "2021", freq="Y")), "'x' holds periods"),
        (pd.Series([1.0, 0], dtype="Sparse[float64]"), "'x' holds Sparse"),
        (pa.array([{"a": 1}]), "one column for each field"),
    ],
)
def test_what_cannot_be_a_column_is_named(values, message):
    with pytest.raises(DataError, match=message) as caught:
        to_arrow(values, "x")
    assert "Arrow" not in type(caught.value).__name__


def test_writing_to_the_source_changes_nothing():
    values = np.arange(6.0).reshape(3, 2)
    array = to_arrow(values, "x")
    values[:] = -1
    same(to_numpy(array), np.arange(6.0).reshape(3, 2))
    with pytest.raises(ValueError, match="read-only"):
        to_numpy(array)[0, 0] = 1
    with pytest.raises(ValueError, match="cannot set"):
        to_numpy(array).flags.writeable = True


@pytest.mark.parametrize("how", ["iloc", "inplace", "augmented", "whole"])
def test_a_loan_from_pandas_is_not_written_to(how):
    frame = pd.DataFrame({"a": np.arange(4.0), "b": np.arange(4.0)})
    alone = pd.Series(np.arange(4.0))
    arrays = [to_arrow(frame["a"], "a"), to_arrow(alone, "s")]
    for target in (frame, alone):
        if how == "iloc":
            target.iloc[0] = 99.0
        elif how == "inplace":
            target.replace(0.0, 99.0, inplace=True)
        elif how == "augmented":
            target.__iadd__(1)
        else:
            target[:] = 99.0
    for array in arrays:
        same(to_numpy(array), np.arange(4.0))
    del frame, alone, target
    same(to_numpy(arrays[0]), np.arange(4.0))


def test_pandas_numbers_are_lent_where_pandas_copies_on_write():
    if int(pd.__version__.split(".")[0]) < 3:
        pytest.skip("pandas 2 writes in place")
    frame = pd.DataFrame({"a": np.arange(4.0), "b": np.arange(4.0)})
    assert np.shares_memory(to_numpy(to_arrow(frame["a"], "a")), frame["a"].to_numpy())


def test_leaf_type():
    assert leaf_type(pa.list_(pa.list_(pa.int8(), 2), 3)) == pa.int8()


BIG = 2**60 + 1  # no float64 holds it


@pytest.mark.parametrize(
    "values",
    [
        pa.array([decimal.Decimal("12345678901234567.89"), None], pa.decimal128(20, 2)),
        [decimal.Decimal("0.1234567890123456789")],
        [[decimal.Decimal("12345678901234567.89")], [decimal.Decimal("1.5")]],
        pl.Series([decimal.Decimal("12345678901234567890.12")]),
        [[BIG, 2], [0.5, 1.0]],
        [np.array([BIG, 2]), np.array([0.5, 1.0])],
        [np.array([2**63 + 1], np.uint64), np.array([-1])],
        pl.Series([[1], [2]], dtype=pl.List(pl.Int128)),
        pa.array([1, 2], pa.time64("ns")),
        [dt.time(1, tzinfo=dt.UTC), dt.time(2)],
        [np.array(["2024-01-01"], "M8[D]"), np.array([3])],
        [pd.Series([1, 2], index=["a", "b"]), pd.Series([3, 4], index=["b", "a"])],
    ],
)
def test_what_would_lose_digits_zones_or_labels_is_refused(values):
    with pytest.raises(DataError, match=r"column 'x'.*(cast|convert|Convert|give)"):
        to_arrow(values, "x")


@pytest.mark.parametrize("scale", [1, 5, 17])
def test_decimals_that_floats_hold_come_in(scale):
    rng = np.random.default_rng(scale)
    texts = [f"{n}e-{scale}" for n in rng.integers(-(10**14), 10**14, 50)]
    array = pa.array([decimal.Decimal(t) for t in texts], pa.decimal128(38, scale))
    same(to_numpy(to_arrow(array, "x")), np.array([float(t) for t in texts]))


def test_large_numbers_beside_each_other_that_floats_hold_come_in():
    same(to_numpy(to_arrow([[2**60, 1], [0.5, 2.0]], "x")), np.array([[2.0**60, 1], [0.5, 2]]))


def test_pandas_objects_keep_nanoseconds():
    stamps = [pd.Timestamp("2024-01-01 00:00:00.123456789"), pd.Timestamp("2024-01-02")]
    same(to_numpy(to_arrow(stamps, "x")), pd.DatetimeIndex(stamps).to_numpy())
    zoned = [stamp.tz_localize("Europe/Paris") for stamp in stamps]
    same(to_numpy(to_arrow(zoned, "x")), pd.DatetimeIndex(zoned).tz_convert(None).to_numpy())
    spans = [pd.Timedelta(5, "ns"), pd.Timedelta(1, "s")]
    same(to_numpy(to_arrow(spans, "x")), np.array([5, 10**9], "m8[ns]"))


def test_lists_of_tensors_and_arrays_are_stacked():
    torch = pytest.importorskip("torch")
    given = [torch.ones(2, requires_grad=True), torch.zeros(2)]
    same(to_numpy(to_arrow(given, "x")), np.array([[1, 1], [0, 0]], "f4"))
    halves = [torch.tensor([1.5]).bfloat16(), torch.tensor([2.5]).bfloat16()]
    same(to_numpy(to_arrow(halves, "x")), np.array([[1.5], [2.5]], "f4"))
    same(to_numpy(to_arrow([torch.tensor(1.5), torch.tensor(2.0)], "x")), np.array([1.5, 2], "f4"))
    same(to_numpy(to_arrow([np.array(1.5), np.array(2)], "x")), np.array([1.5, 2]))
