"""Files made to do harm, one for each known way: no code runs, one clear refusal.

The ways are those of pickle (Python's own documentation warns of it), joblib, torch and Keras
files, ONNX external data, Arrow extension types, YAML tags, configs that name what to call, and
of zip files themselves.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import modularml as mm
from modularml.errors import MMLError
from modularml.io import extract, inspect, inspect_packaged_code
from modularml.io.classes import _homes
from tests.fuzz.harm import harm, watched
from tests.fuzz.share import dice, times
from tests.io import things

pytestmark = pytest.mark.slow

CALL = "builtins:eval"


class Bomb:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("echo harm > harm.txt",)


def pickled(protocol: int) -> bytes:
    return pickle.dumps(Bomb(), protocol=protocol)


def torch_file() -> bytes:
    buffer = io.BytesIO()
    torch.save({"w": torch.zeros(2), "b": Bomb()}, buffer)
    return buffer.getvalue()


def npy_objects() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Bomb()], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def zipped(members: dict[str, bytes], **info: Any) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in members.items():
            entry = zipfile.ZipInfo(name)
            for key, value in info.items():
                setattr(entry, key, value)
            file.writestr(entry, data)
    return buffer.getvalue()


KERAS_LAMBDA = json.dumps(
    {
        "class_name": "Sequential",
        "config": {
            "layers": [
                {
                    "class_name": "Lambda",
                    "config": {
                        "function": {"class_name": "__lambda__", "config": {"code": "4wEA"}}
                    },
                }
            ]
        },
    }
).encode()

FOREIGN: dict[str, bytes] = {
    **{f"pickle {p}": pickled(p) for p in range(6)},
    "pickle with a zip's mark": b"PK\3\4" + pickled(2),
    "pickle before a zip": pickled(4) + zipped({"manifest.json": b"{}"}),
    "joblib": b"\x80\x03" + pickled(3)[2:],
    "joblib zlib": b"ZF0x00000000000000ff" + pickled(3),
    "torch": torch_file(),
    "torch data.pkl": zipped({"archive/data.pkl": pickled(2), "archive/version": b"3"}),
    "keras 3": zipped({"config.json": KERAS_LAMBDA, "model.weights.h5": b"\x89HDF\r\n\x1a\n"}),
    "keras h5": b"\x89HDF\r\n\x1a\n" + b"\0" * 512,
    "saved model": b"\x08\x01\x12\x00saved_model",
    "onnx": b"\x08\x07\x12\x07pytorch:\x01../../secret",
    "npy of objects": npy_objects(),
    "npz of objects": zipped({"a.npy": npy_objects()}),
    "arrow": b"ARROW1\0\0" + b"\0" * 64 + b"ARROW1",
    "yaml": b"!!python/object/apply:os.system ['echo harm']",
    "hydra": b"_target_: os.system\ncommand: echo harm\n",
    "skops": zipped({"schema.json": b'{"__class__": "system", "__module__": "os"}'}),
    "symlink": zipped({"manifest.json": b"../../secret"}, external_attr=0o120777 << 16),
    "traversal": zipped({"manifest.json": b"{}", "../../harm.txt": b"x"}),
    "absolute": zipped({"/harm.txt": b"x"}),
    "backslash": zipped({"..\\harm.txt": b"x"}),
    "device": zipped({"manifest.json": b"{}", "con": b"x"}),
    "encrypted": zipped({"manifest.json": b"{}"}, flag_bits=1),
    "deflated": zipped({"manifest.json": b"{}" * 99}, compress_type=zipfile.ZIP_DEFLATED),
    "old zip comment": zipped({"manifest.json": b"{}"})[:-2] + b"\x05\0hello",
    "script before a zip": b"#!/bin/sh\necho harm\n" + zipped({"manifest.json": b"{}"}),
    "empty": b"",
    "a shell script": b"#!/bin/sh\necho harm\n",
}

NAMES = [
    *("os:system", "posix:system", "builtins:eval", "builtins:exec", "builtins:__import__"),
    *("subprocess:Popen", "pickle:loads", "shutil:rmtree", "importlib:import_module"),
    *("torch:load", "torch.serialization:load", "torch.hub:load", "joblib.numpy_pickle:load"),
    *("numpy:load", "numpy.lib.npyio:load", "pandas.io.pickle:read_pickle", "runpy:run_path"),
    *("modularml._optional:require", "modularml.config:decode", "modularml.io.packaged:_run"),
    *("sklearn.utils.fixes:parse_version", "webbrowser:open", "ctypes:CDLL"),
    *("modularml.io.atomic:write_file", "torch.nn.modules.module:Module.load_state_dict"),
]


def named(name: str) -> list[Any]:
    """Return the ways to put a name where it might be called."""
    args = {"args": ["echo harm"]}
    return [
        {"$code": name},
        {"$estimator": name, "params": args},
        {"$enum": name, "value": "echo harm"},
        {"$fitted": name, "params": args, "state": {}},
        {"$dict": [["$code", name]]},
        {"$type": name, "params": args},
        {"$type": name.rpartition(":")[2], "params": args},
        {"_target_": name.replace(":", "."), "_args_": ["echo harm"]},
    ]


@pytest.fixture(scope="module")
def optimizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    for module in set(_homes().values()):  # what the library loads when a name is looked for
        if not module.startswith("modularml.models.tensorflow"):
            importlib.import_module(module)
    return mm.Optimizer("adam", opt_kwargs={"lr": 0.1}, backend="torch").save(folder / "a")


@pytest.mark.parametrize("name", FOREIGN)
def test_files_of_others_are_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for kind, cls in (("exp", mm.Experiment), ("fs", mm.FeatureSet), ("op", mm.Optimizer)):
        path = tmp_path / f"a.{kind}.mml"
        path.write_bytes(FOREIGN[name])
        for read in (cls.load, inspect, inspect_packaged_code):
            with watched() as events, pytest.raises(MMLError) as caught:
                read(path)
            assert harm(events) == []
            assert len(str(caught.value).splitlines()) <= 3
        with pytest.raises(MMLError):
            extract(path, tmp_path / "out")
    assert not (tmp_path / "harm.txt").exists()


@pytest.mark.parametrize("place", ["config", "state", "class"])
@pytest.mark.parametrize("name", NAMES)
def test_no_file_says_what_is_called(
    name: str, place: str, optimizer: Path, tmp_path: Path
) -> None:
    for i, harmful in enumerate(named(name)):

        def edit(found: dict[str, bytes], harmful: Any = harmful) -> None:
            config, state = json.loads(found["config.json"]), json.loads(found["state.json"])
            if place == "config":
                config["params"]["opt_kwargs"]["lr"] = harmful
            elif place == "class":
                config["params"]["opt"] = harmful
            else:
                state.update(is_built=True, moments={}, groups=[harmful])
            found["config.json"] = json.dumps(config).encode()
            found["state.json"] = json.dumps(state).encode()

        bent = things.resealed(optimizer, tmp_path / f"{i}.op.mml", edit)
        modules = set(sys.modules)
        with watched() as events:
            try:
                made = mm.Optimizer.load(bent)
            except MMLError:
                pass
            else:  # plain data that means nothing to us
                assert "_target_" in harmful
                assert isinstance(made, mm.Optimizer)
        assert harm(events) == []
        new = {m.split(".")[0] for m in set(sys.modules) - modules}
        assert new <= {"modularml", "sklearn", "torch", "scipy", "joblib", "threadpoolctl"}


# --------------------------------------------------------------------------------- bombs


def arrow_of(rows: int) -> bytes:
    sink = pa.BufferOutputStream()
    table = pa.table({"features.x.raw": np.zeros(8)})
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    data = bytearray(sink.getvalue().to_pybytes())
    at = data.index(struct.pack("<q", 8))
    data[at : at + 8] = struct.pack("<q", rows)
    return bytes(data)


def tensors(told: dict[str, tuple[str, list[int], list[int]]]) -> bytes:
    """Return the header of a file of tensors that says anything."""
    keys = ("dtype", "shape", "data_offsets")
    raw = json.dumps({n: dict(zip(keys, v, strict=True)) for n, v in told.items()}).encode()
    return struct.pack("<Q", len(raw)) + raw


def put(name: str, data: bytes) -> Callable[[dict[str, bytes]], Any]:
    return lambda found: found.__setitem__(name, data)


def config(change: Callable[[dict[str, Any]], Any], member: str = "config.json") -> Any:
    def edit(found: dict[str, bytes]) -> None:
        tree = json.loads(found[member])
        change(tree)
        found[member] = json.dumps(tree).encode()

    return edit


def label(value: Any) -> Any:
    return config(lambda tree: tree["params"].update(label=value))


def splits(value: Any) -> Any:
    return config(lambda tree: tree["splits"].update(train=value), "state.json")


def nested(depth: int) -> Any:
    tree: Any = 1
    for _ in range(depth):
        tree = {"$tuple": [tree]}
    return tree


TABLE, SPLITS = "tables/table.arrow", "tensors/splits.safetensors"
HUGE = {"$tensor": "train", "in": SPLITS, "dtype": "<i8", "shape": [2**50]}
BOMBS: dict[str, Callable[[dict[str, bytes]], Any]] = {
    "deep JSON": put("state.json", b"[" * 10**6),
    "deep dicts": put("state.json", b'{"a":' * 10**5),
    "many parts": put("state.json", b"[" + b"0," * 2_000_000 + b"0]"),
    "many nests": put("state.json", b"[" + b"[]," * 600_000 + b"[]]"),
    "many keys": put("state.json", b"{" + b'"":0,' * 1_000_001 + b'"":0}'),
    "large integer": put("state.json", b"9" * 10**6),
    "large exponent": put("state.json", b'{"a":1e999999999}'),
    "long text": put("state.json", b'"' + b"a" * 17 * 2**20 + b'"'),
    "huge tensor": splits(HUGE),
    "tensor header": put(SPLITS, struct.pack("<Q", 2**62)),
    "tensor shape": put(SPLITS, tensors({"a": ("F64", [9999999999], [0, 8])})),
    "tensor overlap": put(SPLITS, tensors({n: ("U8", [8], [0, 8]) for n in "ab"}) + b"\0" * 8),
    "tensor overflow": put(SPLITS, tensors({"a": ("F64", [2**32, 2**32], [0, 0])})),
    "many tensors": put(SPLITS, tensors({str(i): ("U8", [0], [0, 0]) for i in range(10**5)})),
    "arrow rows": put(TABLE, arrow_of(2**40)),
    "arrow negative": put(TABLE, arrow_of(-1)),
    "arrow footer": put(TABLE, b"ARROW1\0\0" + struct.pack("<i", 2**31 - 1) + b"ARROW1"),
    "text array": splits({"$text": ["x"], "dtype": "<U1000000000", "shape": [1]}),
    "text shape": splits({"$text": [], "dtype": "<U1", "shape": [10**12, 0]}),
    "array in a config": label({"$array": "", "dtype": "<f8", "shape": [10**12]}),
    "base64": label({"$bytes": "A" * 10**7}),
    "deep types": label(nested(60)),
    "many classes": label([{"$type": "Loss"}] * 300_000),
    "almost too many classes": label([{"$type": "Loss"}] * 190_000),
}


def zip_bombs() -> dict[str, bytes]:
    many = io.BytesIO()
    with zipfile.ZipFile(many, "w") as file:
        for i in range(70_000):
            file.writestr(f"m{i}", b"")
    five = io.BytesIO()
    with zipfile.ZipFile(five, "w") as file:
        for i in range(5_000):
            file.writestr(f"m{i}", b"")
    one = zipped({"manifest.json": b"{}" * 1000})
    claims = bytearray(one)
    at = claims.index(b"PK\1\2")
    claims[at + 24 : at + 28] = struct.pack("<I", 2**32 - 1)
    return {
        "members": many.getvalue(),
        "five thousand": five.getvalue(),
        "size": bytes(claims),
        "overlap": one[:30] + one,
    }


RACE = """
import resource, sys, time
import modularml as mm
from modularml.errors import MMLError

def counted():  # seconds of counting to fifty million, of which a busy machine takes more as well
    start = time.process_time()
    for _ in range(2_000_000):
        pass
    return 25 * (time.process_time() - start)

def most():
    if not sys.platform.startswith("linux"):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith("VmHWM")).split()[1])

def forget():
    if sys.platform.startswith("linux"):  # or what imports took hides what a file takes
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")

good, *paths = sys.argv[1:]
mm.FeatureSet.load(good)
for path in paths:
    unit = counted()
    forget()
    before, start = most(), time.process_time()
    try:
        mm.FeatureSet.load(path)
        print("loaded")
    except MMLError:
        taken = time.process_time() - start
        print(taken / max(unit, counted()), (most() - before) / 1024)
"""


def test_bombs_are_refused_within_a_second_and_64_mib(tmp_path: Path) -> None:
    with mm.ExperimentContext().activate():
        good = things.featureset().save(tmp_path / "good")
    paths = {}
    for i, (name, edit) in enumerate(BOMBS.items()):
        try:
            paths[name] = things.resealed(good, tmp_path / f"{i}.fs.mml", edit)
        except MMLError:
            assert name == "long text"  # not even the writer takes it
    for name, data in zip_bombs().items():
        paths[name] = tmp_path / f"{name}.fs.mml"
        paths[name].write_bytes(data)
    assert len(paths) >= 25
    args = [sys.executable, "-c", RACE, str(good), *map(str, paths.values())]
    run = subprocess.run(args, capture_output=True, text=True, timeout=600, check=True)
    found = dict(zip(paths, map(str.split, run.stdout.splitlines()), strict=True))
    bad = {n: v for n, v in found.items() if v == ["loaded"] or float(v[0]) > 1 or float(v[1]) > 64}
    assert bad == {}


# --------------------------------------------------------------------------------- names

PIECES = [
    *("..", "/", "\\", ":", "\0", "\n", " ", "~", "$HOME", "%s", "{0}", "{label.__class__}"),
    *("{epoch!r}", "{x[0]}", "{epoch:>999999}", "con", "NUL", ".", "-", "a", "é", "ﬁ", "\u202e"),
    *("A" * 130, "a.", ".a", "a/b", "C:", "{}", "{phase}", "{epoch:04d}", "{batch:03d}"),
]


def test_no_name_leaves_its_folder(tmp_path: Path) -> None:
    rng = dice("names")
    folder = tmp_path / "checkpoints"
    with mm.ExperimentContext().activate():
        things.graph(things.featureset())
        made = mm.Experiment.from_active_context("e")
    made.set_checkpoint_dir(folder)
    outside = sorted(tmp_path.rglob("*"))
    for _ in range(times(300)):
        name = "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 3)))
        try:
            path = made.save_checkpoint(name)
            assert path.parent == folder
            assert made.available_checkpoints[name] == path
            path.unlink()
        except MMLError:
            pass
        with_template(name, folder)
        assert sorted(tmp_path.rglob("*")) == outside


def with_template(template: str, folder: Path) -> None:
    try:
        kept = mm.Checkpointing(mode="disk", directory=folder, name_template=template)
        made = kept.format_name(phase="p", epoch=1, batch=2)
    except (ValueError, MMLError):
        return
    assert "__" not in made
    assert "<" not in made
    assert len(made) < 200
