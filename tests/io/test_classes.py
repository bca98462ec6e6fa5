"""Classes of the user's own: found where the user put them, never fetched by a file."""

from __future__ import annotations

import enum
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import modularml as mm
from modularml.config import config_registry
from modularml.errors import MMLError
from modularml.models.torch import TorchModelWrapper
from modularml.splitters import BaseSplitter
from tests.io import things


def distance(outputs: Any, targets: Any) -> Any:
    """Return the absolute error: a loss of the user's own."""
    return (outputs - targets).abs()


class Doubler(torch.nn.Module):
    """A module of the user's own."""

    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(width, 1)

    def forward(self, x: Any) -> Any:
        return self.layer(x) * 2


class EveryOther(BaseSplitter):
    """A splitter of the user's own."""

    def __init__(self, step: int = 2) -> None:
        self.step = step

    def assign(self, n: int, *, columns: Any) -> Any:
        import numpy as np

        return {"a": np.arange(0, n, self.step)}


class Colour(enum.Enum):
    RED = 1


def test_code_of_the_user_that_is_imported(tmp_path: Path) -> None:
    loss = mm.Loss(distance)
    path = loss.save(tmp_path / "a")
    assert mm.Loss.load(path) == loss
    model = TorchModelWrapper(model_class=Doubler, model_kwargs={"width": 2})
    model.build((2,))
    assert mm.BaseModel.load(model.save(tmp_path / "b")).same_weights(model)


def test_custom_objects_stand_in(tmp_path: Path) -> None:
    def other(a: Any, b: Any) -> Any:
        return a

    path = mm.Loss(distance).save(tmp_path / "a")
    full = f"{__name__}:distance"
    for key in ("distance", full):
        assert mm.Loss.load(path, custom_objects={key: other}).loss is other
    with pytest.raises(MMLError, match="is no code"):
        mm.Loss.load(path, custom_objects={"distance": 3})


def test_a_class_that_is_gone(tmp_path: Path) -> None:
    path = EveryOther(3).save(tmp_path / "a")
    kept = config_registry._entries.pop("EveryOther")
    try:
        with pytest.raises(MMLError) as caught:
            BaseSplitter.load(path)
        assert caught.value.code == "MML-108"
        for word in ("EveryOther", "sha256", "custom_objects=", "allow_import="):
            assert word in str(caught.value)
        loaded = BaseSplitter.load(path, custom_objects={"EveryOther": EveryOther})
    finally:
        config_registry.register("EveryOther", kept)
    assert loaded == EveryOther(3)


def test_what_a_script_defined_is_not_to_be_imported(tmp_path, monkeypatch) -> None:
    def lossy(a: Any, b: Any) -> Any:
        return a - b

    lossy.__module__, lossy.__qualname__ = "__main__", "lossy"
    monkeypatch.setattr(sys.modules["__main__"], "lossy", lossy, raising=False)
    path = mm.Loss(lossy).save(tmp_path / "a")
    monkeypatch.delattr(sys.modules["__main__"], "lossy")
    with pytest.raises(MMLError, match=r"script that saved it.*custom_objects=") as caught:
        mm.Loss.load(path)
    assert "allow_import" not in str(caught.value)
    assert mm.Loss.load(path, custom_objects={"lossy": lossy}).loss is lossy


MODULE = """
import modularml.splitters as sp

class Imported(sp.BaseSplitter):
    def __init__(self, n=1):
        self.n = n
    def assign(self, n, *, columns):
        return {}

def lossy(a, b):
    return a - b{tail}
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module that is there to be imported, and files that need it."""
    (tmp_path / "mypkg_for_io.py").write_text(MODULE.replace("{tail}", ""))
    monkeypatch.syspath_prepend(str(tmp_path))
    import mypkg_for_io

    files = (
        mypkg_for_io.Imported(2).save(tmp_path / "a"),
        mm.Loss(mypkg_for_io.lossy).save(tmp_path / "b"),
    )
    del sys.modules["mypkg_for_io"]
    config_registry._entries.pop("Imported")
    yield files
    sys.modules.pop("mypkg_for_io", None)
    config_registry._entries.pop("Imported", None)


def test_nothing_is_imported_unasked(package: Any) -> None:
    for cls, path in zip((BaseSplitter, mm.Loss), package, strict=True):
        with pytest.raises(MMLError, match="mypkg_for_io"):
            cls.load(path)
        with pytest.raises(MMLError):
            cls.load(path, allow_import=["mypkg"])
        assert "mypkg_for_io" not in sys.modules


def test_imports_below_an_allowed_prefix(package: Any) -> None:
    assert mm.Loss.load(package[1], allow_import=["mypkg_for_io"]).name == "lossy"
    assert BaseSplitter.load(package[0], allow_import="mypkg_for_io").n == 2


def test_code_that_has_changed_is_told(package: Any, tmp_path: Path) -> None:
    (tmp_path / "mypkg_for_io.py").write_text(MODULE.replace("{tail}", " + 1  # longer"))
    with pytest.warns(UserWarning, match="lossy has changed since"):
        mm.Loss.load(package[1], allow_import=["mypkg_for_io"])


def test_numpy_functions_in_a_scaler(tmp_path: Path) -> None:
    import numpy as np
    from sklearn.preprocessing import FunctionTransformer

    scaler = mm.Scaler(FunctionTransformer, {"func": np.log1p, "inverse_func": np.expm1})
    rows = np.ones((3, 1))
    scaler.fit(rows)
    loaded = mm.Scaler.load(scaler.save(tmp_path / "a"))
    np.testing.assert_array_equal(loaded.transform(rows), scaler.transform(rows))


UNKNOWN = """
import sys
import modularml as mm
from modularml.errors import MMLError
try:
    mm.Loss.load(sys.argv[1])
except MMLError as error:
    heavy = {"torch", "tensorflow", "keras", "xgboost", "lightgbm"} & sys.modules.keys()
    print("NoSuchClass" in str(error), sorted(heavy))
"""


@pytest.mark.parametrize("at", [0, 3])
def test_an_unknown_name_is_refused_before_a_framework_is_imported(tmp_path, at):
    names = [
        {"$type": "SequentialMLP", "params": {}},
        {"$code": "torch.nn.functional:relu"},
        {"$estimator": "lightgbm.sklearn:LGBMRegressor", "params": {}},
    ]
    names.insert(at, {"$type": "NoSuchClass", "params": {}})

    def edit(found):
        tree = json.loads(found["config.json"])
        tree["params"]["loss_kwargs"] = {"x": names}
        found["config.json"] = json.dumps(tree).encode()

    path = things.resealed(mm.Loss("mse").save(tmp_path / "a"), tmp_path / "b.ls.mml", edit)
    args = [sys.executable, "-c", UNKNOWN, str(path)]
    run = subprocess.run(args, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "True []"
