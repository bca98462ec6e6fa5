"""A damaged, hostile or newer file gives one error and changes nothing."""

from __future__ import annotations

import io
import json
import pickle
import re
import struct
import time
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import modularml as mm
from modularml import migrate
from modularml.errors import MMLError
from modularml.io import inspect
from modularml.io.archive import open_archive
from tests.io import things


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Good files: rows and a whole experiment."""
    folder = tmp_path_factory.mktemp("good")
    with mm.ExperimentContext().activate():
        made = things.experiment()
        fs: Any = made.ctx.get_node("cells")
        return {"fs": fs.save(folder / "rows"), "exp": made.save(folder / "study")}


def load(path: Path) -> Any:
    """Load a file in a context of its own, which an error must leave empty."""
    with mm.ExperimentContext().activate() as ctx:
        before = things.snapshot(ctx)
        try:
            return {"fs": mm.FeatureSet, "exp": mm.Experiment}[path.name.split(".")[-2]].load(path)
        except MMLError as error:
            check(things.snapshot(ctx) == before)
            check(len(str(error).splitlines()) <= 3)
            raise


def check(fits: bool) -> None:
    assert fits


def refused(path: Path, data: bytes, target: Path, match: str = "MML-") -> None:
    target.write_bytes(data)
    with pytest.raises(MMLError, match=match):
        load(target)
    with pytest.raises(MMLError, match=match):
        inspect(target)


# ------------------------------------------------------------------------------- damage


def test_every_cut_and_every_tail(files: dict[str, Path], tmp_path: Path) -> None:
    good = files["fs"].read_bytes()
    for size in [0, 1, 21, 22, 100, len(good) // 2, len(good) - 1]:
        refused(files["fs"], good[:size], tmp_path / "a.fs.mml")
    for tail in (b"\0", b"PK\5\6", good):
        refused(files["fs"], good + tail, tmp_path / "a.fs.mml")
        refused(files["fs"], tail + good, tmp_path / "a.fs.mml")


def test_one_flipped_bit_anywhere(files: dict[str, Path], tmp_path: Path) -> None:
    good = files["fs"].read_bytes()
    target = tmp_path / "a.fs.mml"
    for at in range(0, len(good), max(1, len(good) // 500)):
        bent = bytearray(good)
        bent[at] ^= 1 << (at % 8)
        target.write_bytes(bent)
        with pytest.raises(MMLError):
            open_archive(target)


# ---------------------------------------------------------- right hashes, wrong contents

Edit = Callable[[dict[str, bytes]], Any]


def json_edit(name: str, change: Callable[[Any], Any]) -> Edit:
    def edit(found: dict[str, bytes]) -> None:
        tree = json.loads(found[name])
        found[name] = json.dumps(change(tree) or tree).encode()

    return edit


def put(name: str, data: bytes) -> Edit:
    return lambda found: found.__setitem__(name, data)


def without(name: str) -> Edit:
    return lambda found: found.pop(name)


def arrow(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def splits(**values: Any) -> Edit:
    return json_edit("state.json", lambda tree: tree["splits"].update(values))


BIG = np.zeros(10_000)
MISFITS: dict[str, Edit] = {
    "no table": without("tables/table.arrow"),
    "no state": without("state.json"),
    "no config": without("config.json"),
    "not JSON": put("state.json", b"{"),
    "NaN": put("state.json", b'{"a":NaN}'),
    "infinite": put("state.json", b'{"a":1e999}'),
    "duplicate keys": put("state.json", b'{"a":1,"a":2}'),
    "deep": put("state.json", b"[" * 70 + b"]" * 70),
    "very deep": put("state.json", b"[" * 100_000),
    "many": put("state.json", b"[" + b"[]," * 600_000 + b"[]]"),
    "huge integer": put("state.json", b"[" + b"9" * 5000 + b"]"),
    "another type": json_edit("config.json", lambda t: t.update(type="ModelGraph")),
    "no such type": json_edit("config.json", lambda t: t.update(type="Nothing")),
    "type of another case": json_edit("config.json", lambda t: t.update(type="featureset")),
    "no label": json_edit("config.json", lambda t: t["params"].clear()),
    "newer config": json_edit("config.json", lambda t: t.update(version=2)),
    "unknown key": json_edit("config.json", lambda t: t.update(more=1)),
    "a list as state": put("state.json", b"[1]"),
    "split is a list": splits(train=[1, 2]),
    "split is text": splits(train="abc"),
    "split of an unknown tensor": splits(
        train={"$tensor": "no", "in": "tensors/splits.safetensors", "dtype": "<i8", "shape": [1]}
    ),
    "empty split name": splits(**{"": {"$scalar": 1, "dtype": "<i8"}}),
    "no tensors": put("tensors/splits.safetensors", b"\xff" * 100),
    "long header": put("tensors/splits.safetensors", struct.pack("<Q", 2**60) + b"{}"),
    "no arrow": put("tables/table.arrow", b"ARROW1" + b"\0" * 100 + b"ARROW1"),
    "compressed": put(
        "tables/table.arrow", arrow(pa.table({"features.x.raw": BIG}), compression="zstd")
    ),
    "dictionary": put(
        "tables/table.arrow",
        arrow(pa.table({"features.x.raw": pa.array(["a", "b"]).dictionary_encode()})),
    ),
    "nested": put(
        "tables/table.arrow", arrow(pa.table({"features.x.raw": pa.array([{"a": 1}])}))
    ),
    "other rows": put("tables/table.arrow", arrow(pa.table({"features.x.raw": BIG}))),
}  # fmt: skip


@pytest.mark.parametrize("name", MISFITS)
def test_misfits(name: str, files: dict[str, Path], tmp_path: Path) -> None:
    path = things.resealed(files["fs"], tmp_path / "a.fs.mml", MISFITS[name])
    start = time.perf_counter()
    with pytest.raises(MMLError):
        load(path)
    assert time.perf_counter() - start < 2


def test_rows_outside_the_table(files: dict[str, Path], tmp_path: Path) -> None:
    from modularml.io.tensors import dump_tensors, load_tensors

    def edit(found: dict[str, bytes]) -> None:
        name = "tensors/splits.safetensors"
        arrays = load_tensors(memoryview(found[name]), tmp_path, name)
        arrays["train"][0] = 10**9
        found[name] = dump_tensors(arrays)

    path = things.resealed(files["fs"], tmp_path / "a.fs.mml", edit)
    with pytest.raises(MMLError, match="row numbers are out of range"):
        load(path)


# ----------------------------------------------------------------------------- manifest


def rewritten(path: Path, target: Path, change: Callable[[Any], Any]) -> Path:
    """Change the manifest as `zipfile` would write it."""
    found = things.members(path)
    with zipfile.ZipFile(path) as file:
        manifest = json.loads(file.read("manifest.json"))
    change(manifest)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("manifest.json", json.dumps(manifest))
        for name, data in found.items():
            file.writestr(name, data)
    target.write_bytes(buffer.getvalue())
    return target


def test_a_newer_schema_says_what_to_install(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modularml.io import limits

    with monkeypatch.context() as patch:
        patch.setattr(limits, "SCHEMA", 2)
        path = things.resealed(files["fs"], tmp_path / "a.fs.mml", lambda found: None)
    with pytest.raises(MMLError, match=r"schema 2.*up to 1.*pip install") as caught:
        load(path)
    assert caught.value.code == "MML-102"


@pytest.mark.parametrize(
    ("key", "value"),
    [("more", 1), ("x-more", 1), ("schema", "1"), ("schema", True), ("kind", "zz")],
)
def test_manifest_keys(key: str, value: Any, files: dict[str, Path], tmp_path: Path) -> None:
    target = tmp_path / "a.fs.mml"

    def write() -> Path:
        return things.resealed(files["fs"], target, lambda found: None, **{key: value})

    if key == "x-more":
        load(write())
        return
    if key in ("schema", "kind"):  # these are always written right
        rewritten(files["fs"], target, lambda m: m.update({key: value}))
    with pytest.raises(MMLError):
        load(target if target.exists() else write())


def test_zip_files_of_others(files: dict[str, Path], tmp_path: Path) -> None:
    target = tmp_path / "a.fs.mml"
    with pytest.raises(MMLError, match="MML-101"):
        load(rewritten(files["fs"], target, lambda m: None))
    for content in (b"hello", b"\x80\x05" * 30, b"PK\5\6" + bytes(18), b"PK\3\4" + bytes(200)):
        refused(target, content, target)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_compressed_members(method: int, tmp_path: Path) -> None:
    target = tmp_path / "a.fs.mml"
    with zipfile.ZipFile(target, "w", method) as file:
        file.writestr("manifest.json", "{}" * 1000)
    with pytest.raises(MMLError, match="compressed"):
        load(target)


def test_too_many_members(tmp_path: Path) -> None:
    target = tmp_path / "a.fs.mml"
    with zipfile.ZipFile(target, "w") as file:
        for i in range(5000):
            file.writestr(f"m{i}", b"")
    with pytest.raises(MMLError, match="MML-104"):
        load(target)


HOSTILE_NAMES = [
    *("../evil", "/etc/passwd", "a/../../b", "a\\b", "C:evil", "a//b", "a/", ".hidden", "con"),
    *("a/NUL.txt", "x" * 81, "a/" * 9 + "b", "a b", "é", "a\0b", "a.", "$HOME", "{0.x}", ""),
]


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=range(len(HOSTILE_NAMES)))
def test_hostile_names_of_members(name: str, tmp_path: Path) -> None:
    from modularml.io.names import check_members

    with pytest.raises(MMLError, match="MML-105"):
        check_members(["manifest.json", name], tmp_path)


def test_names_that_some_file_systems_cannot_tell_apart(tmp_path: Path) -> None:
    from modularml.io.names import check_members

    for pair in (["a", "a"], ["a.json", "A.json"], ["a", "a/b"]):
        with pytest.raises(MMLError, match="MML-105"):
            check_members(pair, tmp_path)


def test_messages_are_short_and_say_what_to_do(files: dict[str, Path], tmp_path: Path) -> None:
    bent = bytearray(files["fs"].read_bytes())
    bent[bent.index(b"ARROW1") + 200] ^= 1
    target = tmp_path / "run.fs.mml"
    target.write_bytes(bent)
    with pytest.raises(MMLError) as caught:
        load(target)
    text = str(caught.value)
    assert re.fullmatch(r"MML-101 run\.fs\.mml: tables/\S+: sha256 differs .*\. Restore .*", text)
    assert (caught.value.member, caught.value.code) == ("tables/table.arrow", "MML-101")


@pytest.mark.parametrize(
    "load", [mm.FeatureSet.load, mm.Experiment.load, inspect], ids=["set", "experiment", "inspect"]
)
def test_a_file_of_modularml_1_is_known_and_its_rows_can_be_read(
    tmp_path: Path, load: Callable[[Path], Any]
) -> None:
    ids = [str(uuid.UUID(int=i)) for i in (1, 2)]
    table = pa.table({"features.v.raw": [1.0, 2.0], "targets.y.raw": [0, 1], "sample_uuids": ids})
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    path = tmp_path / "old.fs.mml"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("state.pkl", pickle.dumps({"weights": [1.0]}))
        file.writestr("artifact.json", "{}")
        file.writestr("config.json", "{}")
        file.writestr("sample_collection.arrow", sink.getvalue())
    with pytest.raises(MMLError, match=r"a file of ModularML 1.0.*migrate.convert"):
        load(path)
    fs = mm.FeatureSet.load(migrate.convert(path).path)
    assert fs.get_sample_uuids("list") == ids
