"""CSV and Parquet as instruments and other people write them, held against pandas."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from modularml.data import FeatureSet
from modularml.errors import ConfigError, DataError, UnknownNameError


@pytest.fixture
def write(tmp_path):
    def write(text, name="t.csv", encoding="utf-8"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode(encoding))
        return path

    return write


def csv(path, features="x", targets="y", tags=None, **options):
    return FeatureSet.from_csv("t", path, features, targets, tags, register=False, **options)


def values(fs, key="x"):
    return fs.get_data(columns=key, include_domain_prefix=False, include_rep_suffix=False)[
        key
    ].tolist()


@pytest.mark.parametrize(
    ("text", "encoding", "read"),
    [
        ("x;y\n1,5;2\n", "utf-8", {"sep": ";", "decimal": ","}),
        ("x\ty\n1.5\t2\n", "utf-8", {"sep": "\t"}),
        ("# device 7\nx,y\n1.5,2\n", "utf-8", {"comment": "#"}),
        ("made by;device 7\n" * 6 + "x,y\n1.5,2\n", "utf-8", {"skiprows": 6}),
        ("1.5,2\n", "utf-8", {"header": None, "names": ["x", "y"]}),
        ("x,y,T °C\n1.5,2,3\n", "latin-1", {"encoding": "latin-1"}),
        ("x,u,u,y\n1.5,0,0,2\n", "utf-8", {}),
        ("x, y\n1.5, 2\n", "utf-8", {}),
        ("﻿x,y\n1.5,2\n", "utf-8", {}),
        ("x,y\r\n1.5,2\r\n", "utf-8", {}),
        ("x,y,\n1.5,2,\n", "utf-8", {}),
        ("i,x,y\n7,1.5,2\n", "utf-8", {"index_col": "i"}),
    ],
)
def test_csv_habits(write, text, encoding, read):
    assert values(csv(write(text, encoding=encoding), read=read)) == [1.5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x;y\n1;2\n", "pass read={'sep': ';'}"),
        ("x;y\n1,5;2\n", "cannot be read as CSV.*'sep': ';'"),
        ("# device 7\nx,y\n1,2\n", "'comment': '#'"),
        ("note\n\nx,y\n1,2\n", "'skiprows'"),
        ("1.5,2\n2.5,3\n", "pass read={'header': None, 'names'"),
        ("", "it is empty: leave it out"),
        ("x,y\n1,2,3\n", "cannot be read as CSV"),
        ("x,y\n1,2\n3\n", "line 3 has 1 of 2 fields; is the file truncated"),
        ("x,x,y\n1,2,3\n", "'x' occurs 2 times"),
    ],
)
def test_csv_that_needs_a_word(write, text, message):
    with pytest.raises((DataError, UnknownNameError), match=message):
        csv(write(text))


def test_an_encoding_is_asked_for(write):
    with pytest.raises(DataError, match=r"not UTF-8.*'encoding': 'latin-1'"):
        csv(write("x,y,T °C\n1,2,3\n", encoding="latin-1"))


@pytest.mark.parametrize("name", ["sep", "fillna", "dtype"])
def test_an_unknown_argument_is_named_with_the_place_for_it(write, name):
    path = write("x,y\n1,2\n")
    with pytest.raises(ConfigError, match=rf"argument '{name}'; pass options of pandas.read_csv"):
        csv(path, **{name: 0})
    with pytest.raises(UnknownNameError, match=r"option 'seperator' of pandas.read_csv"):
        csv(path, read={"seperator": ";"})
    with pytest.raises(ConfigError, match=r"'chunksize'.*is not supported"):
        csv(path, read={"chunksize": 5})
    with pytest.raises(ConfigError, match=r"unknown argument 'sep'"):
        FeatureSet.from_parquet("t", path, "x", "y", sep=";")


def test_numbers_marked_as_missing_by_another_sign(write):
    path = write("x,y\n1.5,2\n?,3\n2.5,4\n")
    with pytest.warns(
        UserWarning, match=r"'x' .* is text because of values such as '\?'.*na_values"
    ):
        csv(path)
    np.testing.assert_array_equal(values(csv(path, read={"na_values": ["?"]})), [1.5, np.nan, 2.5])
    with pytest.warns(UserWarning, match=r"'decimal': ','"):
        csv(write("x;y\n1,5;2\n2,5;3\n"), read={"sep": ";"})


def test_missing_numbers_of_csv(write):
    path = write("x,n,y\n1.5,1,0\n,,1\n")
    np.testing.assert_array_equal(values(csv(path)), [1.5, np.nan])
    np.testing.assert_array_equal(values(csv(path, "n"), "n"), [1.0, np.nan])
    with pytest.raises(DataError, match=r"'n' of '.*' has 1 missing.*row 1.*missing='nan'"):
        csv(path, "n", missing="error")
    with pytest.raises(DataError, match=r"would change"):
        csv(write("x,y\n9007199254740993,0\n,1\n"))
    with pytest.raises(ConfigError, match=r"missing must be 'nan' or 'error'"):
        csv(path, missing="fill")


def test_floats_of_csv_are_read_to_the_last_bit(write):
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=500), 10.0 ** rng.uniform(-300, 300, 500)])
    path = write("x,y\n" + "".join(f"{v!r},0\n" for v in x.tolist()))
    assert values(csv(path)) == x.tolist()


def test_identifiers_keep_how_they_are_written(write):
    text = "x,y,id,plate,big,n,day,at\n"
    text += "1.0,0,007,1E5,12345678901234567890123,3,2024-01-31,2024-01-31T12:30:00\n"
    text += "2.0,1,012,2B3,7,4,2024-02-01,2024-02-01T00:00:00\n"
    fs = csv(write(text), tags=["id", "plate", "big", "n", "day", "at"])
    assert values(fs, "id") == ["007", "012"]
    assert values(fs, "plate") == ["1E5", "2B3"]
    assert values(fs, "big") == ["12345678901234567890123", "7"]
    assert values(fs, "n") == [3, 4]
    assert fs.get_tag_dtypes(False, False)["day"] == "M8[D]"
    assert fs.get_tag_dtypes(False, False)["at"].kind == "M"
    every = csv(write("x,y,plate\n1,0,1E5\n2,0,2E5\n"), tags="plate")
    assert values(every, "plate") == ["1E5", "2E5"]
    typed = csv(write("x,y,id\n1,0,007\n"), tags="id", read={"dtype": {"id": "int64"}})
    assert values(typed, "id") == [7]


def test_renaming_and_stacking(write):
    path = write("Test Time (s),v10,v2,v1,soh\n0,3.0,2.0,1.0,0.9\n")
    fs = csv(
        path,
        ["time", "voltage"],
        "soh",
        rename={"Test Time (s)": "time"},
        stack={"voltage": "v*"},
    )
    assert fs.get_feature_shapes(False, False) == {"time": (), "voltage": (3,)}
    assert values(fs, "voltage") == [[1.0, 2.0, 3.0]]
    upper = csv(path, "V1", "SOH", rename=lambda name: name.replace(" ", "_").upper())
    assert values(upper, "V1") == [1.0]
    with pytest.raises(UnknownNameError, match=r"'Time'.*key of rename="):
        csv(path, "v1", "soh", rename={"Time": "time"})
    with pytest.raises(UnknownNameError, match=r"'w\*'.*pattern in stack\['w'\]"):
        csv(path, "w", "soh", stack={"w": "w*"})
    with pytest.raises(DataError, match=r"rename it, for example with rename=.*Voltage"):
        csv(write("Voltage (V),y\n1,2\n"), "Voltage (V)")
    df = pd.DataFrame({"a.b": [1.0], "w0": [2.0], "w1": [3.0], "y": [4]})
    wide = FeatureSet.from_pandas(
        "w", df, ["a", "w"], "y", rename={"a.b": "a"}, stack={"w": ["w0", "w1"]}, register=False
    )
    assert values(wide, "w") == [[2.0, 3.0]]


def test_one_file_a_cell(write, tmp_path):
    for i in (10, 2, 1):
        write(f"x,y\n{i}.5,0\n", f"cells/cell{i}.csv")
    write("not a table", "cells/readme.md")
    for paths in (
        tmp_path / "cells",
        str(tmp_path / "cells" / "*.csv"),
        [tmp_path / "cells" / f"cell{i}.csv" for i in (1, 2, 10)],
    ):
        fs = csv(paths, file_as="cell")
        assert values(fs, "cell") == ["cell1", "cell2", "cell10"]
        assert values(fs) == [1.5, 2.5, 10.5]
    for wrong, message in (("none*.csv", "no file matches"), ("nope", "does not exist")):
        with pytest.raises(DataError, match=message):
            csv(tmp_path / wrong)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no file"):
        csv(tmp_path / "empty")
    write("x,z\n1,2\n", "cells/cell3.csv")
    with pytest.raises(UnknownNameError, match=r"unknown column 'y'"):
        csv(tmp_path / "cells")


def test_files_of_one_table_get_one_type(write, tmp_path):
    write("x,y\n1,0\n", "d/a.csv")
    write("x,y\n1.5,0\n", "d/b.csv")
    assert values(csv(tmp_path / "d")) == [1.0, 1.5]
    write("x,y\nhigh,0\n", "d/c.csv")
    with pytest.raises(DataError, match=r"'x' holds int64 in '.*a.csv' and string in '.*c.csv'"):
        csv(tmp_path / "d")


F32 = pa.array([1.5], pa.float32())


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (F32, pa.array([1e300])),
        (F32, pa.array([16777217.0])),
        (pa.array([np.float16(1.5)]), pa.array([70000.0], pa.float32())),
        (pa.array([1]), pa.array([1.5])),
        (pa.array([3], pa.int8()), pa.array([2**40])),
        (pa.array([[1.5]], pa.list_(pa.float32())), pa.array([[1e300]])),
        (pa.array([[1.5]], pa.list_(pa.float32(), 1)), pa.array([[1e300]])),
        (pa.array(["a"]), pa.array(["b"]).dictionary_encode()),
        (pa.array([1], pa.timestamp("s")), pa.array([1], pa.timestamp("ns"))),
        (pa.array([None], pa.null()), pa.array([2.5])),
        (pa.array([None], pa.float64()), pa.array([2], pa.int64())),
    ],
)
def test_parquet_files_are_widened(tmp_path, first, second, reverse, in_memory):
    parts = [second, first] if reverse else [first, second]
    for name, x in zip("ab", parts, strict=True):
        pq.write_table(pa.table({"x": x, "y": [0]}), tmp_path / f"{name}.parquet")
    fs = FeatureSet.from_parquet("p", tmp_path, "x", "y", in_memory=in_memory, register=False)
    exact = [np.nan if v is None else v for part in parts for v in part.to_pylist()]
    found = fs.get_features()["x"]
    if found.dtype.kind == "M":
        assert found.astype("M8[ns]").tolist() == [
            pd.Timestamp(v).value for part in parts for v in part.to_pylist()
        ]
    else:
        np.testing.assert_array_equal(found, np.ravel(exact))  # (n, 1) is a column of scalars


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (pa.array([True]), pa.array([5])),
        (pa.array([2**53 + 1]), pa.array([0.5])),
        (pa.array([2**63], pa.uint64()), pa.array([-1])),
        (pa.array(["a"]), pa.array([1])),
        (pa.array(["a"]), pa.array([b"a"])),
        (pa.array([1], pa.timestamp("s", "UTC")), pa.array([1], pa.timestamp("s"))),
        (pa.array([[1.5]], pa.list_(pa.float32(), 1)), pa.array([1.0])),
    ],
)
def test_parquet_files_without_a_common_type(tmp_path, first, second, reverse):
    parts = [second, first] if reverse else [first, second]
    for name, x in zip("ab", parts, strict=True):
        pq.write_table(pa.table({"x": x, "y": [0]}), tmp_path / f"{name}.parquet")
    for in_memory in (True, False):
        with pytest.raises(DataError, match=r"column 'x'"):
            FeatureSet.from_parquet("p", tmp_path, "x", "y", in_memory=in_memory)


def test_folders_of_parquet_keep_ids_as_written(tmp_path):
    for cell in ("007", "012"):
        for cycle in (1, 10):
            folder = tmp_path / f"cell={cell}" / f"cycle={cycle}"
            folder.mkdir(parents=True)
            pq.write_table(pa.table({"x": [1.0], "y": [cycle]}), folder / "part-0.parquet")
    fs = FeatureSet.from_parquet("p", tmp_path, "x", "y", ["cell", "cycle"], register=False)
    assert values(fs, "cell") == ["007", "007", "012", "012"]
    assert values(fs, "cycle") == [1, 10, 1, 10]
    again = FeatureSet.from_parquet(
        "p", tmp_path, "x", "y", "cell", file_as="part", in_memory=False, register=False
    )
    assert values(again, "part") == ["part-0"] * 4


def test_names_that_repeat_matter_only_where_they_are_asked_for(tmp_path):
    table = pa.table([[1.0], [2.0], [3.0], [0]], names=["x", "u", "u", "y"])
    pq.write_table(table, tmp_path / "t.parquet")
    for in_memory in (True, False):
        fs = FeatureSet.from_parquet(
            "p", tmp_path / "t.parquet", "x", "y", in_memory=in_memory, register=False
        )
        assert values(fs) == [1.0]
        with pytest.raises(DataError, match=r"'u' occurs 2 times"):
            FeatureSet.from_parquet("p", tmp_path / "t.parquet", "u", "y", in_memory=in_memory)


def test_stacked_columns_of_parquet(tmp_path):
    pq.write_table(pa.table({"v10": [3.0], "v2": [2.0], "y": [0]}), tmp_path / "t.parquet")
    fs = FeatureSet.from_parquet(
        "p", tmp_path / "t.parquet", "v", "y", stack={"v": "v*"}, register=False
    )
    assert values(fs, "v") == [[2.0, 3.0]]
    with pytest.raises(ConfigError, match=r"stack needs in_memory=True"):
        FeatureSet.from_parquet(
            "p", tmp_path / "t.parquet", "v", "y", stack={"v": "v*"}, in_memory=False
        )


def test_integers_that_floats_do_not_hold_are_refused_in_csv(write):
    for tags, text in (
        (None, "x,y\n9007199254740993,1\n0.5,2\n"),
        ("t", "x,y,t\n1,1,9007199254740993\n1,2,0.5\n"),
    ):
        with pytest.raises(DataError, match=r"9007199254740993.*'dtype'"):
            csv(write(text), tags=tags)
    assert values(csv(write("x,y\n9007199254740992,1\n0.5,2\n1e300,3\ninf,4\n")))[0] == 2.0**53


def test_tags_that_numbers_do_not_tell_apart_are_warned_of(write):
    with pytest.warns(UserWarning, match=r"'1.1' and '1.10' are the same.*str"):
        csv(write("x,y,t\n1,1,1.10\n1,2,1.1\n"), tags="t")
    fs = csv(write("x,y,t\n1,1,1.10\n1,2,1.1\n"), tags="t", read={"dtype": {"t": str}})
    assert values(fs, "t") == ["1.10", "1.1"]


@pytest.mark.parametrize("option", ["dtype", "na_values", "converters"])
def test_options_of_columns_that_are_not_there_are_refused(write, option):
    with pytest.raises(UnknownNameError, match="'z'"):
        csv(write("x,y\n1,2\n"), read={option: {"z": str}})


def test_thousands_are_not_advised_to_be_decimals(write):
    with pytest.warns(UserWarning, match="'thousands': ','"):
        csv(write('x,y\n"1,234",2\n"5,678",4\n'))
    assert values(csv(write('x,y\n"1,234",2\n'), read={"thousands": ","})) == [1234]


def test_a_name_of_files_is_no_column_and_two_files_of_one_name_are_warned_of(write, tmp_path):
    write("x,y,f\n1,2,3\n", "p/run.csv")
    with pytest.raises(DataError, match="file_as='f'"):
        csv(tmp_path / "p/run.csv", tags="f", file_as="f")
    write("x,y,f\n1,2,3\n", "q/run.csv")
    with pytest.warns(UserWarning, match="the same tag 'run'"):
        csv([tmp_path / "p/run.csv", tmp_path / "q/run.csv"], file_as="file")
    pq.write_table(pa.table({"x": [1.0], "y": [1.0], "f": [3]}), tmp_path / "p/a.parquet")
    with pytest.raises(DataError, match="file_as='f'"):
        FeatureSet.from_parquet("t", tmp_path / "p", "x", "y", file_as="f", register=False)


@pytest.mark.parametrize("in_memory", [True, False])
def test_missing_lists_and_partitions_are_named(tmp_path, in_memory):
    options = {"register": False, "in_memory": in_memory}
    pq.write_table(
        pa.table({"x": pa.array([[1.0, 2.0], None]), "y": [1.0, 2.0]}), tmp_path / "a.parquet"
    )
    with pytest.raises(DataError, match="'x' has 1 missing value"):
        FeatureSet.from_parquet("t", tmp_path / "a.parquet", "x", "y", **options)
    for cell in ("7", "__HIVE_DEFAULT_PARTITION__"):
        folder = tmp_path / "h" / f"cell={cell}"
        folder.mkdir(parents=True)
        pq.write_table(pa.table({"x": [1.0], "y": [1.0]}), folder / "a.parquet")
    with pytest.raises(DataError, match="'cell' has 1 missing value"):
        FeatureSet.from_parquet("t", tmp_path / "h", "x", "y", "cell", **options)
