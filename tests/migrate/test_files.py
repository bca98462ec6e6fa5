"""FeatureSets of ModularML 1.0 become files of this library; their pickles stay shut.

The files are made here, after the description of what 1.0 wrote: a zip file with deflated members,
``state.pkl``, ``artifact.json``, ``config.json``, ``sample_collection.arrow``, and the configs of
splits.
"""

import io
import json
import pickle
import uuid
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import modularml as mml
from modularml import migrate
from modularml.cli import main
from modularml.errors import DataError, MMLError, MMLExistsError

N = 6
IDS = [str(uuid.UUID(int=i + 1)) for i in range(N)]
VOLTAGE = np.arange(N * 3, dtype=np.float32).reshape(N, 3)


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def rows(**more):
    columns = {
        "features.voltage.raw": pa.array(VOLTAGE.tolist(), pa.list_(pa.float32())),
        "features.voltage.transformed": pa.array(VOLTAGE.tolist(), pa.list_(pa.float32())),
        "targets.soh.raw": np.linspace(0.5, 1.0, N),
        "tags.cell.raw": list("aabbcc"),
        "sample_uuids": IDS,
    }
    return pa.table({**columns, **more})


def arrow(table, **options):
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=4)
    return sink.getvalue()


def view(label, indices):
    return {"label": label, "source": "node-1", "indices": indices, "columns": ["features.voltage"]}


def written(path, table=None, method=zipfile.ZIP_DEFLATED, **members):
    contents = {
        "state.pkl": pickle.dumps(Trap(path.with_name("trap"))),
        "artifact.json": json.dumps({"version": "1.0"}),
        "config.json": json.dumps({"label": "cycles"}),
        "sample_collection.arrow": arrow(rows() if table is None else table),
        "splits/train.json": json.dumps(view("train", [0, 1, 4])),
        "splits/others.json": json.dumps({"val": {"indices": [2]}, "test": view(None, [5, 3])}),
        **{name.replace("__", "."): content for name, content in members.items()},
    }
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in contents.items():
            if content is not None:
                file.writestr(name, content)
    return path


@pytest.fixture
def old(tmp_path):
    return tmp_path / "old.fs.mml"


def test_rows_ids_and_splits_come_over(old):
    done = migrate.convert(written(old))
    assert done.path.name == "old_converted.fs.mml"
    fs = mml.FeatureSet.load(done.path)
    assert fs.label == "cycles"
    assert fs.get_sample_uuids("list") == IDS
    voltage = fs.get_features("dict_numpy")["voltage"]
    assert voltage.dtype == np.float32
    np.testing.assert_array_equal(voltage, VOLTAGE)
    np.testing.assert_array_equal(fs.get_targets("dict_numpy")["soh"], np.linspace(0.5, 1.0, N))
    splits = {name: split.get_sample_uuids("list") for name, split in fs.splits.items()}
    assert splits == {
        "train": [IDS[0], IDS[1], IDS[4]],
        "val": [IDS[2]],
        "test": [IDS[5], IDS[3]],
    }
    assert done.kept[-3:] == ["split 'train'", "split 'val'", "split 'test'"]
    assert done.left_out == {
        "features.voltage.transformed": (
            "its scaler is in a pickle; fit it again with fit_transform"
        ),
        "artifact.json": "settings of 1.0",
        "config.json": "settings of 1.0",
        "state.pkl": "a pickle, which is never opened",
    }
    assert not old.with_name("trap").exists()
    pickle.loads(zipfile.ZipFile(old).read("state.pkl"))
    assert old.with_name("trap").exists()


def test_structs_and_other_members(old):
    table = rows()
    nested = pa.table(
        {
            "features": pa.StructArray.from_arrays(
                [pa.StructArray.from_arrays([pa.array(np.arange(N))], ["raw"])], ["x"]
            ),
            "targets.soh.raw": table["targets.soh.raw"],
            "notes": table["tags.cell.raw"],
        }
    )
    written(old, nested, config__json="{broken", weights__pt=b"x", readme__txt=b"x")
    done = migrate.convert(old, old.with_name("new"))
    fs = mml.FeatureSet.load(done.path)
    assert fs.label == "old"
    assert fs.get_features("dict_numpy")["x"].tolist() == list(range(N))
    assert done.left_out["notes"] == "no column of a FeatureSet"
    assert "not the JSON" in done.left_out["config.json"]
    assert done.left_out["readme.txt"] == "unknown"
    assert done.left_out["weights.pt"] == "a pickle, which is never opened"
    with pytest.raises(MMLExistsError):
        migrate.convert(old, old.with_name("new"))
    migrate.convert(old, old.with_name("new"), overwrite=True)


@pytest.mark.parametrize(
    ("indices", "problem"),
    [
        ([0, 0], "repeat"),
        ([0, N], f"not below {N}"),
        ([-1], "not below"),
        (["a"], "by number"),
        ([True, 2], "by number"),
        ([0.5], "by number"),
        ("012", "by number"),
        ([], "by number"),
        ({"$tensor": "x"}, "by number"),
    ],
)
def test_a_split_that_is_none_is_left_out_by_name(old, indices, problem):
    written(old, more__json=json.dumps([view("odd", indices), view("train", [1])]))
    done = migrate.convert(old)
    assert problem in done.left_out["more.json: split 'odd'"]
    assert "taken" in done.left_out["more.json: split 'train'"]
    assert mml.FeatureSet.load(done.path).available_splits == ["train", "val", "test"]


def break_table(data):
    return data[: len(data) // 2]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"sample_collection__arrow": None}, "no table 'sample_collection.arrow'"),
        ({"sample_collection__arrow": b"ARROW1"}, "no table"),
        ({"sample_collection__arrow": break_table(arrow(rows()))}, "no table"),
        ({"sample_collection__arrow": arrow(rows(), compression="zstd")}, "no table"),
        ({"..__x": b""}, "not a name"),
        ({"manifest__json": b"{}"}, "this library wrote it"),
        ({"STATE__PKL": b""}, "comes twice"),
        ({"big__json": b" " * (2**20) * 17}, None),
    ],
)
def test_what_cannot_be_read(old, members, message):
    written(old, **members)
    before = sorted(p.name for p in old.parent.iterdir())
    if message is None:
        assert "JSON of" in migrate.convert(old).left_out["big.json"]
        return
    with pytest.raises(MMLError, match=message):
        migrate.convert(old)
    assert sorted(p.name for p in old.parent.iterdir()) == before


def test_bombs_and_odd_zip_files(old):
    bomb = b"\0" * (2**28 + 1)
    written(old, sample_collection__arrow=bomb)
    with pytest.raises(MMLError, match=r"MML-104.*268435457 bytes"):
        migrate.convert(old)
    written(old, method=zipfile.ZIP_LZMA)
    with pytest.raises(MMLError, match="another packing"):
        migrate.convert(old)
    content = written(old).read_bytes()
    at = content.index(b"sample_collection.arrow") + 100
    flipped = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
    for damaged, code in ((content[:-30], 101), (flipped, 101), (b"", 103), (b"text", 103)):
        old.write_bytes(damaged)
        with pytest.raises(MMLError, match=rf"MML-{code} old\.fs\.mml"):
            migrate.convert(old)
    with pytest.raises(MMLError, match="no such file"):
        migrate.convert(old.with_name("none"))
    with pytest.raises(MMLError, match="folder"):
        migrate.convert(old.parent)


def test_rows_that_are_no_featureset(old):
    ragged = pa.array([[1.0]] * (N - 1) + [[1.0, 2.0]])
    written(old, rows(**{"features.voltage.raw": ragged}))
    with pytest.raises(DataError, match="voltage"):
        migrate.convert(old)
    written(old, pa.table({"x": [1, 2]}))
    with pytest.raises(DataError, match=r"no column named domain\.key\.raw"):
        migrate.convert(old)


def test_files_of_this_library_are_not_converted(tmp_path):
    fs = mml.FeatureSet.from_dict("a", {"x": [1.0], "y": [1.0]}, "x", "y", register=False)
    with pytest.raises(MMLError, match=r"this library wrote it.*FeatureSet\.load"):
        migrate.convert(fs.save(tmp_path / "a"))


def test_the_command(old, capsys):
    assert main(["convert", str(written(old)), "--out", str(old.with_name("new"))]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"wrote {old.with_name('new.fs.mml')}"
    assert "  split 'train'" in lines
    assert lines[-1] == "  state.pkl: a pickle, which is never opened"
    assert main(["convert", str(old), "--out", str(old.with_name("new"))]) == 1
    assert "MML-110" in capsys.readouterr().err
    command = ["convert", str(old), "-o", str(old.with_name("new")), "--overwrite", "--json"]
    assert main(command) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["path"] == str(old.with_name("new.fs.mml"))
    assert done["left_out"]["artifact.json"] == "settings of 1.0"
