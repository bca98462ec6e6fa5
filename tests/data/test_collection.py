"""Ids of rows, fingerprints, codes: the same in every process, and quick."""

import subprocess
import sys
import time
import uuid

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings

from modularml.data import FeatureSet
from modularml.data.collection import SampleCollection
from modularml.data.ids import id_texts, ids_from_texts
from modularml.errors import DataError, UnknownNameError
from tests.random_tables import featureset, tables

CODE = """
import numpy as np
from modularml.data import FeatureSet
fs = FeatureSet.from_dict("other label", {data}, "x", "y", "t")
print(*fs.get_sample_uuids("list"))
"""
DATA = (
    "{'x': np.arange(6.0).reshape(3, 2), 'y': [True, False, True], 't': ['a', 'ü', ''],"
    " 'u': ['unused'] * 3}"
)


def test_ids_are_the_same_in_every_process():
    fs = FeatureSet.from_dict("fs", eval(DATA), "x", "y", "t")
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(data=DATA)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == fs.get_sample_uuids("list")


def test_a_million_ids_are_unique_and_quick():
    fs = FeatureSet.from_dict("fs", {"x": np.arange(1_000_000)}, "x", [])
    start = time.process_time()
    ids = fs.collection.ids
    made = time.process_time() - start
    texts = fs.get_sample_uuids()
    shown = time.process_time() - start - made
    assert (made < 0.5, shown < 2.0) == (True, True), (made, shown)
    assert pd.Series(texts).is_unique
    assert (ids.dtype, ids.shape) == (np.dtype("V16"), (1_000_000,))
    start = time.process_time()
    found = fs.take_sample_uuids(texts[::-1])
    assert time.process_time() - start < 3.0
    np.testing.assert_array_equal(found.indices, np.arange(1_000_000)[::-1])


def test_ids_are_uuids():
    fs = FeatureSet.from_dict("fs", {"x": np.arange(50)}, "x", [])
    for text, raw in zip(fs.get_sample_uuids(), fs.collection.ids, strict=True):
        found = uuid.UUID(text)
        assert str(found) == text
        assert found.bytes == raw.tobytes()
        assert (found.version, found.variant) == (8, uuid.RFC_4122)


def test_ids_depend_on_values_names_and_types():
    def ids(**data):
        return FeatureSet.from_dict("fs", data, list(data), [], register=False).get_sample_uuids()[
            0
        ]

    found = [
        ids(x=[1, 2]),
        ids(x=[1, 3]),
        ids(z=[1, 2]),
        ids(x=[1.0, 2.0]),
        ids(x=[1, 2, 3]),
        ids(x=["ab", "c"]),
        ids(x=["a", "bc"]),
        ids(x=[True, False]),
        ids(x=[[1, 2]]),
        ids(x=[1, 2], y=[3, 4]),
    ]
    assert len(set(found)) == len(found)


@settings(max_examples=60, deadline=None)
@given(tables(min_rows=1))
def test_ids_do_not_depend_on_the_layout_in_memory(table):
    data, domains = table
    fs = featureset(data, domains)
    n = len(fs)
    arrow = fs.to_arrow().drop_columns(["sample_uuids"])
    padded = pa.concat_tables([arrow, arrow, arrow])
    chunked = FeatureSet.from_pyarrow_table("a", padded.slice(n, n), register=False)
    halves = pa.concat_tables([arrow.slice(0, n // 2), arrow.slice(n // 2)])
    joined = FeatureSet.from_pyarrow_table("b", halves, register=False)
    assert chunked.get_sample_uuids("list") == fs.get_sample_uuids("list")
    assert joined.get_sample_uuids("list") == fs.get_sample_uuids("list")


def test_ids_are_kept_by_everything_that_keeps_rows():
    data = {"x": np.arange(10.0), "y": np.arange(10), "g": ["a", "b"] * 5}
    fs = FeatureSet.from_dict("fs", data, "x", "y", "g")
    ids = fs.get_sample_uuids()
    fs.split_random({"a": 0.5, "b": 0.5})
    fs.fit_transform("StandardScaler", domain="features", fit_to_split="a")
    assert (fs.get_sample_uuids() == ids).all()
    rows = fs["a"].indices
    for kept in (fs["a"], fs["a"].select(features="x"), fs["a"].to_featureset("own")):
        assert (kept.get_sample_uuids() == ids[rows]).all()
    for shared in (True, False):
        copy = fs.copy(share_raw_data_buffer=shared)
        assert (copy.get_sample_uuids() == ids).all()
    own = fs["a"].to_featureset("second")
    own.fit_transform("MinMaxScaler", domain="targets")
    assert (own.take([1]).to_featureset("third").get_sample_uuids() == ids[rows[1:2]]).all()


def test_texts_and_back():
    ids = ids_from_texts([uuid.UUID(int=i) for i in range(20)])
    texts = id_texts(ids)
    assert texts.tolist() == [str(uuid.UUID(int=i)) for i in range(20)]
    for form in (
        texts,
        texts.tolist(),
        [t.upper() for t in texts],
        [t.replace("-", "") for t in texts],
    ):
        assert (ids_from_texts(form) == ids).all()
    assert (ids_from_texts([i.tobytes() for i in ids]) == ids).all()
    assert ids_from_texts([]).shape == (0,)


@pytest.mark.parametrize("bad", ["no", 3, None, b"short", "z" * 36, "-" * 36])
def test_what_is_no_id(bad):
    good = str(uuid.UUID(int=1))
    with pytest.raises(DataError, match="must be UUID text, got"):
        ids_from_texts([good, bad])


def test_an_edit_gives_a_new_collection():
    first = SampleCollection(pa.table({"features.x.raw": [1, 2]}))
    assert first.ids.shape == (2,)
    second = first.with_columns({"features.x.transformed": np.array([0.0, 1.0])})
    assert first.names == ["features.x.raw"]
    assert second.names == ["features.x.raw", "features.x.transformed"]
    assert second.ids is first.ids
    assert second.version != first.version
    assert second.without_columns(["features.x.transformed"]).names == first.names
    assert second.without_columns([]) is second
    with pytest.raises(UnknownNameError, match=r"did you mean 'features\.x\.raw'"):
        first.numpy("features.x.row")


def test_codes_follow_the_sorted_values():
    values = {"t": ["b", "a", "b"], "n": [np.nan, 1.0, np.nan], "d": np.array([3, 1, 2], "M8[s]")}
    fs = FeatureSet.from_dict("fs", values, [], [], ["t", "n", "d"])
    codes = {k: fs.collection.codes(f"tags.{k}.raw").tolist() for k in values}
    assert codes == {"t": [1, 0, 1], "n": [1, 0, 1], "d": [2, 0, 1]}
    arrays = FeatureSet.from_dict("arrays", {"x": np.zeros((2, 2))}, "x", [])
    with pytest.raises(DataError, match="holds arrays of shape"):
        arrays.collection.codes("features.x.raw")


def test_a_columns_type_is_a_part_of_the_fingerprint():
    """Bytes are equal: int32 and uint32, and a date that counts in another unit."""
    numbers = np.arange(4)
    columns = [
        numbers.astype(np.int32),
        numbers.astype(np.uint32),
        numbers.astype("datetime64[s]"),
        numbers.astype("datetime64[ms]"),
        numbers.astype(np.int64),
    ]
    prints = {
        FeatureSet.from_dict(
            "t", {"x": x, "y": numbers}, "x", "y", register=False
        ).collection.fingerprint
        for x in columns
    }
    assert len(prints) == len(columns)
