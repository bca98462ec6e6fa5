"""Files as instruments write them: read as pandas reads them, or refused with advice that works."""

import bz2
import gzip
import io
import lzma
import zipfile

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from modularml.data import FeatureSet
from modularml.errors import ConfigError, DataError, UnknownNameError


def written(folder, content, name="t.csv"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def csv(path, features="x", targets="y", tags=None, **options):
    return FeatureSet.from_csv("t", path, features, targets, tags, register=False, **options)


def column(fs, key="x"):
    return fs.get_data(columns=key, include_domain_prefix=False, include_rep_suffix=False)[key]


def zipped(text):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("inner.csv", text)
    return buffer.getvalue()


def advised(message):
    """Return the options that a message advises to pass."""
    start = message.index("read={") + len("read=")
    ends = (i for i in range(start, len(message)) if message[i] == "}")
    end = next(
        i for i in ends if message[start : i + 1].count("{") == message[start : i + 1].count("}")
    )
    return eval(message[start : end + 1])


READ = [  # each is read by pandas with the same options
    ("T [°C],x,y\n20,1.5,2\n", "cp1252", {"encoding": "cp1252"}),
    ("x,y\n1.5,2\n", "utf-16", {"encoding": "utf-16"}),
    ("x,y\n1.5,2\n", "utf-8-sig", {}),
    ('x,y,note\n1.5,2,"a\nb"\n2.5,3,"c,d"\n', "utf-8", {}),
    ("x,y\n1.5,2\n-,3\nn/a,4\nNA,5\n", "utf-8", {"na_values": ["-"]}),
    ("x,y\n1.5,2\ninf,3\n-Infinity,4\n", "utf-8", {}),
    ("x,x,z,y\n9,8,1,2\n", "utf-8", {"header": 0, "names": ["u", "v", "x", "y"]}),
    ("x,y\n1,2,\n3,4,\n", "utf-8", {}),
    ("x,y,\n1,2\n3,4\n", "utf-8", {}),
    ("\n\nx,y\n\n1,2\n\n3,4\n", "utf-8", {}),
    ("x,y\n1,2\n,\n", "utf-8", {}),
    ("x,y\nV,A\n1.5,2\n2.5,3\n", "utf-8", {"skiprows": [1]}),
    ("x;y\n1.234,5;2\n2.345,5;3\n", "utf-8", {"sep": ";", "decimal": ",", "thousands": "."}),
    ("x,y\r1.5,2\r2.5,3\r", "utf-8", {}),
    ("x,y\n1,1\nja,2\n", "utf-8", {"na_values": {"x": ["ja"]}}),
    ("x,y,t\n12%,1,7\n", "utf-8", {"converters": {"x": lambda s: float(s[:-1])}}),
    ("x,y\n1,2 # ok\n#3,4\n", "utf-8", {"comment": "#"}),
    ("x,y\n1,1\nTotal,1\n", "utf-8", {"skipfooter": 1, "engine": "python"}),
    ("x,y\n1,1\n1,2,3\n4,5\n", "utf-8", {"on_bad_lines": "skip"}),
    ("t,y,x\n1,7,2\n", "utf-8", {"usecols": ["y", "x"]}),
]


@pytest.mark.parametrize(("text", "encoding", "read"), READ)
def test_what_pandas_reads_is_read_alike(tmp_path, text, encoding, read):
    path = written(tmp_path, text.encode(encoding))
    fs, frame = csv(path, read=read), pd.read_csv(path, **{"index_col": False, **read})
    for key in "xy":
        np.testing.assert_array_equal(column(fs, key), frame[key])


ADVISED = [  # text for which the options in the message read these numbers of x
    ("x;y\n1,5;2\n2,5;3\n", {"sep": ";"}, [1.5, 2.5]),
    ("x,y\n1.5,2\n-,3\n--,4\n3,5\n", {}, [1.5, np.nan, np.nan, 3]),
    ("x,y\n-,2\n-,3\n", {}, [np.nan, np.nan]),
    ("x,y\n1.5,2\n#DIV/0!,3\n2,3\n", {}, [1.5, np.nan, 2]),
    ("x,y\nTrue,2\n1,3\n0,3\n", {}, [1, 1, 0]),
    ("x,y\nV,2\n1.5,2\n2.5,3\n", {}, [1.5, 2.5]),
    ("x,y\n1'234.5,2\n2'345.5,3\n", {}, [1234.5, 2345.5]),
    ("x;y\n1 234,5;2\n2 345,5;3\n", {"sep": ";"}, [1234.5, 2345.5]),
    ("x;y\n1.234,5;2\n2.345,5;3\n", {"sep": ";"}, [1234.5, 2345.5]),
    ("x;y\n1.234;2\n2.345;3\n", {"sep": ";", "decimal": ","}, [1234, 2345]),
    ("x;y\n1\u00a0234,5;2\n2\u00a0345,5;3\n", {"sep": ";"}, [1234.5, 2345.5]),
    ('x,y\n"1,234",2\n', {}, [1234]),
    ("x,y\n\u22121.5,2\n2.5,3\n", {}, [-1.5, 2.5]),
    ("x,y\n1.5D+03,2\n2.5D+03,3\n", {}, [1500, 2500]),
    ("x,y\n12 %,2\n13 %,3\n", {}, [12, 13]),
    ("x,y\n12 V,2\n13.5V,3\n", {}, [12, 13.5]),
    ("x,y\n123456789012345678901234567890,2\n-1,3\n", {}, [123456789012345678901234567890.0, -1]),
]


@pytest.mark.parametrize(("text", "read", "expected"), ADVISED)
def test_the_advice_for_text_reads_numbers(tmp_path, text, read, expected):
    path = written(tmp_path, text)
    with pytest.warns(UserWarning, match=r"'x' .* is text because") as caught:
        as_text = csv(path, read=read)
    assert column(as_text).dtype == object
    options = advised(str(caught[0].message))
    np.testing.assert_array_equal(column(csv(path, read={**read, **options})), expected)


REFUSED = [  # no plain CSV: what the message says, and whether its advice reads the file
    ("x,y\n1.5,2\n".encode("utf-16"), "it is UTF-16", True),
    ("x,y\n1.5,2\n".encode("utf-16-le"), "It is UTF-16", True),
    ("x,y,d\n1.5,2,\xb0\n".encode("latin-1"), "it is not UTF-8", True),
    (gzip.compress(b"x,y\n1.5,2\n", mtime=0), "it is compressed", True),
    (bz2.compress(b"x,y\n1.5,2\n"), "it is compressed", True),
    (lzma.compress(b"x,y\n1.5,2\n"), "it is compressed", True),
    (b"sep=;\nx;y\n1.5;2\n", "ts first line names the separator", True),
    (b"x;y\n1,5;2\n", "';' separates its columns", True),
    (b"# of device 7\nx\ty\n1,5\t2\n", r"'.t' separates its columns", True),
    (b"x   y\n1.5  2\n", "if spaces separate columns", True),
    (b"'x','y'\n'1.5','2'\n", "single quotes", True),
    (b"", "it is empty: leave it out", False),
    (b"\xef\xbb\xbf\n\n", "it is empty: leave it out", False),
    (b"\x89PNG\r\n\x1a\n" + bytes(99), "bytes of zero", False),
    (zipped("x,y\n1,2\n"), "workbook or a zip archive", False),
    (b"<html><body>404</body></html>", "page of HTML", False),
    (b'[{"x": 1, "y": 2}]', "is JSON", False),
]


@pytest.mark.parametrize(("content", "message", "readable"), REFUSED)
def test_what_is_no_plain_csv_is_said(tmp_path, content, message, readable):
    path = written(tmp_path, content, "odd.csv")
    with pytest.raises((DataError, UnknownNameError), match=message) as caught:
        csv(path)
    assert "odd.csv" in str(caught.value)
    if readable:
        comment = {"comment": "#"} if content.startswith(b"#") else {}
        assert column(csv(path, read={**advised(str(caught.value)), **comment})).tolist() == [1.5]


@pytest.mark.parametrize(
    "text", ["31.01.2024|01.02.2024", "01/31/2024|02/01/2024", "3-Jan-2024|4-Feb-2024"]
)
def test_times_that_stay_text_are_warned_of(tmp_path, text):
    first, second = text.split("|")
    path = written(tmp_path, f"x,y,t\n1,2,{first}\n1,2,{second}\n")
    with pytest.warns(UserWarning, match=r"'t' .* sorts as text.*parse_dates") as caught:
        csv(path, tags="t")
    read = advised(str(caught[0].message))
    expected = pd.read_csv(path, **read)["t"].to_numpy()
    np.testing.assert_array_equal(column(csv(path, tags="t", read=read), "t"), expected)
    mixed = written(tmp_path, "x,y,t\n1,2,2024-01-01T00:00Z\n1,2,2024-01-01T00:00\n")
    with pytest.warns(UserWarning, match=r"some have a time zone"):
        csv(mixed, tags="t")
    versions = written(tmp_path, "x,y,t\n1,2,1.12.3\n1,2,2.1.4\n")
    assert column(csv(versions, tags="t"), "t").tolist() == ["1.12.3", "2.1.4"]


def test_leading_spaces_of_text_are_warned_of(tmp_path):
    path = written(tmp_path, "x, y, g\n1, 2, A\n3, 4,A\n")
    with pytest.warns(UserWarning, match="skipinitialspace"):
        csv(path, tags="g")
    read = {"skipinitialspace": True}
    assert column(csv(path, tags="g", read=read), "g").tolist() == ["A", "A"]


def test_options_name_columns_as_feature_keys_do(tmp_path):
    path = written(tmp_path, "x, id, day, y\n1, 007, 31.01.2024, -\n2, 012, 01.02.2024, 5\n")
    read = {
        "dtype": {"id": str},
        "parse_dates": ["day"],
        "date_format": "%d.%m.%Y",
        "na_values": {"y": ["-"]},
        "skipinitialspace": True,
    }
    fs = csv(path, tags=["id", "day"], read=read)
    assert column(fs, "id").tolist() == ["007", "012"]
    assert column(fs, "day").astype("M8[D]").astype(str).tolist() == ["2024-01-31", "2024-02-01"]
    np.testing.assert_array_equal(column(fs, "y"), [np.nan, 5])
    spaced = {"dtype": {"id": "int64"}, "converters": {"y": lambda s: 0.0}}
    again = csv(path, tags="id", read=spaced)
    assert column(again, "id").tolist() == [7, 12]
    assert column(again, "y").tolist() == [0, 0]


def test_tags_of_converters_are_not_read_again(tmp_path):
    path = written(tmp_path, "x,y,id\n1,2,007\n")
    assert column(csv(path, tags="id", read={"converters": {"id": int}}), "id").tolist() == [7]
    percent = {"converters": {"x": lambda s: float(s) / 100}}
    assert column(csv(path, tags="id", read=percent), "id").tolist() == ["007"]


def test_two_lines_of_header(tmp_path):
    path = written(tmp_path, "x,x,y\nV,A,h\n1.5,2,3\n")
    fs = csv(path, ["x_V", "x_A"], "y_h", read={"header": [0, 1]})
    frame = pd.read_csv(path, header=[0, 1])
    assert column(fs, "x_A").tolist() == frame["x", "A"].tolist()
    assert column(fs, "x_V").tolist() == frame["x", "V"].tolist()


@pytest.mark.parametrize(
    "name", ["t.csv", "t.csv.gz", "t.csv.bz2", "t.csv.xz", "t.csv.zip", "t.TSV"]
)
def test_rows_that_are_too_short_are_refused_however_they_are_packed(tmp_path, name):
    text = "x,y\n1,2\n3\n"
    pack = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
    raw = (
        zipped(text)
        if name.endswith("zip")
        else pack.get(f".{name.split('.')[-1]}", bytes)(text.encode())
    )
    with pytest.raises(DataError, match="line 3 has 1 of 2 fields"):
        csv(written(tmp_path, raw, name).parent)
    spaces = written(tmp_path, "x  y\n1  2\n3\n", "spaces.csv")
    with pytest.raises(DataError, match="line 3 has 1 of 2 fields"):
        csv(spaces, read={"sep": r"\s+"})
    with pytest.raises(DataError, match="line 3 has 1 of 3 fields"):  # the last is not selected
        csv(written(tmp_path, "x,y,note\n1,2,ok\n3\n", "note.csv"))
    notes = written(tmp_path, "x,y,note\n1,2\n3,4,ok\n", "notes.csv")
    assert column(csv(notes), "y").tolist() == [2, 4]


def test_curves_in_columns_follow_the_rules_of_columns(tmp_path):
    one = written(tmp_path, "v1,v2,y\n1,,0\n3,4,0\n", "d/a.csv")
    two = written(tmp_path, "v2,v1,y\n5,6,0\n", "d/b.csv")
    stack = {"v": "v*"}
    np.testing.assert_array_equal(
        column(csv([one, two], "v", stack=stack), "v"), [[1, np.nan], [3, 4], [6, 5]]
    )
    with pytest.raises(DataError, match=r"'v2' of .*a.csv' has 1 missing.*row 0"):
        csv(one, "v", stack=stack, missing="error")
    for header, message in (
        ("v2,v3", r"\['v3'\] instead of \['v1'\]"),
        ("v1,v2,v3", r"\(3 and 2 columns\)"),
        ("v1,u2", r"\(1 and 2 columns\)"),
    ):
        other = written(tmp_path, f"{header},y\n5,6{',7' * (header.count(',') - 1)},0\n", "c.csv")
        with pytest.raises(DataError, match=message):
            csv([one, other], "v", stack=stack)
    text = written(tmp_path, "v1,v2,y\n1,off,0\n3,4,0\n", "d.csv")
    with (
        pytest.warns(UserWarning, match=r"na_values': \['off'\]"),
        pytest.raises(DataError, match=r"'v2' of .* holds text, so it cannot be stacked"),
    ):
        csv(text, "v", stack=stack)
    taken = written(tmp_path, "voltage,v1,v2,y\n9,1,2,0\n", "e.csv")
    with pytest.raises(DataError, match=r"'voltage', but the table already has one"):
        csv(taken, "voltage", stack={"voltage": "v*"})


def test_stacks_of_parquet_files_that_differ_are_refused(tmp_path):
    for name, columns in (("a", ["v1", "v2"]), ("b", ["v1", "v2", "v3"])):
        table = pd.DataFrame({column: [1.0] for column in [*columns, "y"]})
        table.to_parquet(tmp_path / f"{name}.parquet")
    with pytest.raises(DataError, match=r"b.parquet' than in .*a.parquet': \['v3'\]"):
        FeatureSet.from_parquet("p", tmp_path, "v", "y", stack={"v": "v*"}, register=False)


def test_names_of_files(tmp_path):
    for name in ("run_0.5C.csv", "run_0.7C.CSV", "b.tsv.gz"):
        raw = b"x,y\n1,2\n"
        written(tmp_path, gzip.compress(raw, mtime=0) if name.endswith("gz") else raw, f"d/{name}")
    fs = csv(tmp_path / "d", file_as="run")
    assert column(fs, "run").tolist() == ["b", "run_0.5C", "run_0.7C"]
    (tmp_path / "d" / "older.csv").mkdir()
    assert len(csv(str(tmp_path / "d" / "*"), file_as="run")) == 3
    pq.write_table(pa.table({"x": [1.0], "y": [2]}), tmp_path / "p_1.5.parquet")
    parquet = FeatureSet.from_parquet(
        "p", tmp_path / "p_1.5.parquet", "x", "y", file_as="run", register=False
    )
    assert column(parquet, "run").tolist() == ["p_1.5"]


def test_files_that_differ(tmp_path):
    swapped = [written(tmp_path, "x,y\n1,2\n", "a.csv"), written(tmp_path, "y,x\n20,10\n", "b.csv")]
    assert column(csv(swapped)).tolist() == [1, 10]
    header_only = written(tmp_path, "x,y\n", "c.csv")
    assert column(csv([*swapped, header_only])).tolist() == [1, 10]
    day = written(tmp_path, "x,y,t\n1,2,2024-01-01\n", "d.csv")
    hour = written(tmp_path, "x,y,t\n1,2,2024-01-01T12:00:00\n", "e.csv")
    zoned = written(tmp_path, "x,y,t\n1,2,2024-01-01T12:00:00Z\n", "f.csv")
    expected = np.array(["2024-01-01T00", "2024-01-01T12"], "M8[us]")
    np.testing.assert_array_equal(column(csv([day, hour], tags="t"), "t"), expected)
    np.testing.assert_array_equal(column(csv([hour, day], tags="t"), "t"), expected[::-1])
    for other in (day, hour):
        with pytest.raises(DataError, match=r"f.csv'.*give the times of both files a time zone"):
            csv([other, zoned], tags="t")
    ids = [
        written(tmp_path, f"x,y,id\n1,2,{i}\n", f"{n}.csv") for n, i in (("g", "007"), ("h", "12"))
    ]
    with pytest.raises(DataError, match=r"'id' holds string .*g.csv.*int64 .*h.csv") as caught:
        csv(ids, tags="id")
    fs = csv(ids, tags="id", read=advised(str(caught.value)))
    assert column(fs, "id").tolist() == ["007", "12"]
    with pytest.raises(UnknownNameError, match=r"unknown column 't' of '.*a.csv'"):
        csv([day, swapped[0]], tags="t")


def test_missing_text_is_named_with_its_file(tmp_path):
    whole = written(tmp_path, "x,y,g\n1,2,EU\n", "a.csv")
    path = written(tmp_path, "x,y,g\n1,2,EU\n1,2,NA\n", "b.csv")
    with pytest.raises(DataError, match=r"'g' of '.*b.csv' has 1 missing.*row 1") as caught:
        csv([whole, path], tags="g")
    read = advised(str(caught.value))
    assert column(csv([whole, path], tags="g", read=read), "g").tolist() == ["EU", "EU", "NA"]
    flags = written(tmp_path, "x,y\nTrue,2\n,3\n", "c.csv")
    with pytest.raises(DataError, match=r"'x' of '.*c.csv' .*bool values cannot be missing"):
        csv(flags)


def test_kinds_units_and_names_of_elements(tmp_path):
    path = written(tmp_path, "v1,v2,lab,y\n1,2,3,0\n4,5,6,1\n")
    options = {
        "unit": {"v": "mV"},
        "kind": {"lab": "category"},
        "element_names": {"v": ["start", "end"]},
        "register": False,
    }
    keys = {"feature_keys": ["v", "lab"], "target_keys": "y"}
    stacked = FeatureSet.from_csv("t", path, **keys, stack={"v": "v?"}, **options)
    pq.write_table(pa.Table.from_pandas(pd.read_csv(path)), tmp_path / "t.parquet")
    for fs in (
        stacked,
        FeatureSet.from_parquet("t", tmp_path / "t.parquet", **keys, stack={"v": "v?"}, **options),
    ):
        summary = fs.summary().set_index("key")
        assert summary.loc["v", "unit"] == "mV"
        assert summary.loc["lab", "kind"] == "category"
        assert fs.get_element_names("v") == ["start", "end"]
    with pytest.raises(UnknownNameError, match="'w'"):
        csv(path, "lab", unit={"w": "V"})
    for wrong, error, message in (
        ({"unit": "V"}, ConfigError, "unit must be a mapping by key"),
        ({"unit": {"x": 3}}, ConfigError, "unit must be text for each key"),
        ({"kind": {"x": "categorie"}}, DataError, "cannot have kind 'categorie'"),
        ({"units": {"x": "V"}}, UnknownNameError, "argument 'units' of FeatureSet.*'unit'"),
    ):
        with pytest.raises(error, match=message):
            FeatureSet.from_dict("t", {"x": [1.0]}, "x", [], **wrong, register=False)


def test_stacked_columns_name_the_elements(tmp_path):
    frame = pd.DataFrame({"v10": [3.0, 6.0], "v2": [2.0, 5.0], "v1": [1.0, 4.0], "y": [0, 1]})
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_parquet(tmp_path / "t.parquet")
    keys = {"feature_cols": "v", "target_cols": "y", "stack": {"v": "v*"}, "register": False}
    for fs in (
        FeatureSet.from_pandas("a", frame, **keys),
        FeatureSet.from_csv("b", tmp_path / "t.csv", **keys),
        FeatureSet.from_parquet("c", tmp_path / "t.parquet", **keys),
    ):
        assert fs.get_element_names("v") == ["v1", "v2", "v10"]
        assert column(fs, "v").tolist() == [[1, 2, 3], [4, 5, 6]]
    renamed = FeatureSet.from_pandas("d", frame, **keys, element_names={"v": ["a", "b", "c"]})
    assert renamed.get_element_names("v") == ["a", "b", "c"]
