"""Code that travels with an artifact: text until somebody consents."""

from __future__ import annotations

import hashlib
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import modularml as mm
from modularml.config import config_registry
from modularml.errors import MMLError
from modularml.io import inspect_packaged_code
from modularml.models.torch import TorchModelWrapper
from modularml.splitters import BaseSplitter
from tests.io import things

MODULE = """
import numpy as np
from torch import nn
from modularml.splitters import BaseSplitter

class FirstHalf(BaseSplitter):
    def __init__(self, name="half"):
        self.name = name
    def assign(self, n, *, columns):
        return {self.name: np.arange(n // 2)}

class Net(nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.layer = nn.Linear(1, width)
    def forward(self, x):
        return self.layer(x)
"""


@pytest.fixture
def author(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of an author's, importable until it is forgotten."""
    (tmp_path / "authors_code.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return importlib.import_module("authors_code")


def forget(tmp_path: Path) -> None:
    (tmp_path / "authors_code.py").unlink(missing_ok=True)
    for name in [n for n in sys.modules if n == "authors_code" or n.startswith("packaged_")]:
        del sys.modules[name]
    config_registry._entries.pop("FirstHalf", None)


def test_it_runs_only_on_consent(author: Any, tmp_path: Path) -> None:
    path = author.FirstHalf("a").save(tmp_path / "s", package_code=True)
    forget(tmp_path)
    with pytest.raises(MMLError) as caught:
        BaseSplitter.load(path)
    for word in ("authors_code:FirstHalf", "sha256", "inspect_packaged_code", "custom_objects"):
        assert word in str(caught.value)
    assert not [n for n in sys.modules if n.startswith("packaged_")]
    shown = inspect_packaged_code(path)
    assert list(shown) == ["code/authors_code.py:FirstHalf"]
    assert next(iter(shown.values())).startswith("class FirstHalf")
    loaded: Any = BaseSplitter.load(path, allow_packaged_code=True)
    np.testing.assert_array_equal(loaded.split(6, columns={})["a"], [0, 1, 2])
    again: Any = BaseSplitter.load(loaded.save(tmp_path / "t", package_code=True))
    assert again == loaded
    assert list(inspect_packaged_code(tmp_path / "t.sp.mml").values()) == list(shown.values())


def test_consent_to_one_hash_is_for_that_source(author: Any, tmp_path: Path) -> None:
    path = author.FirstHalf().save(tmp_path / "s", package_code=True)
    forget(tmp_path)
    sha = hashlib.sha256(MODULE.encode()).hexdigest()
    with pytest.raises(MMLError):
        BaseSplitter.load(path, allow_packaged_code="0" * 64)
    assert BaseSplitter.load(path, allow_packaged_code=sha).name == "half"


def test_a_torch_module_in_an_experiment(author: Any, tmp_path: Path) -> None:
    with mm.ExperimentContext().activate():
        fs = things.featureset()
        model = TorchModelWrapper(model_class=author.Net, model_kwargs={"width": 2})
        node = mm.ModelNode("net", model, fs.reference(features="x"))
        graph = mm.ModelGraph([node])
        graph.build()
        wanted = graph.predict(fs, unscale=False)
        path = mm.Experiment.from_active_context("e").save(tmp_path / "e", package_code=True)
    forget(tmp_path)
    with pytest.raises(MMLError, match="authors_code"):
        mm.Experiment.load(path)
    loaded = mm.Experiment.load(path, allow_packaged_code=True)
    cells = loaded.ctx.get_node(label="cells")
    np.testing.assert_array_equal(loaded.predict(cells, unscale=False), wanted)


def test_a_script_packs_its_definitions_alone(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(MODULE + "FirstHalf('b').save('s', package_code=True)\nprint('trained')\n")
    run = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert run.stdout == "trained\n"
    loaded: Any = BaseSplitter.load(tmp_path / "s", allow_packaged_code=True)
    assert loaded.name == "b"
    config_registry._entries.pop("FirstHalf", None)


def test_broken_and_swapped_code_is_refused(author: Any, tmp_path: Path) -> None:
    path = author.FirstHalf().save(tmp_path / "s", package_code=True)
    forget(tmp_path)
    told = [{"name": "authors_code:FirstHalf", "role": "type", "code": "code/authors_code.py"}]
    edits = {
        "raises": lambda m: m.update({"code/authors_code.py": b"1 / 0"}),
        "no text": lambda m: m.update({"code/authors_code.py": b"\xff\xfe"}),
        "no class": lambda m: m.update({"code/authors_code.py": b"x = 1"}),
        "gone": lambda m: m.pop("code/authors_code.py"),
        "large": lambda m: m.update({"code/authors_code.py": b"#" * 2**21}),
    }
    for name, edit in edits.items():
        bad = things.resealed(path, tmp_path / "bad.sp.mml", edit, classes=told)
        with pytest.raises(MMLError):
            BaseSplitter.load(bad, allow_packaged_code=True)
        ran = [n for n in sys.modules if n.startswith("packaged_")]
        assert bool(ran) is (name == "no class")
        forget(tmp_path)


def test_what_cannot_be_read_is_not_packed(tmp_path: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "nowhere"}
    exec("def lossy(a, b):\n    return a - b", namespace)
    sys.modules["nowhere"] = type(sys)("nowhere")
    sys.modules["nowhere"].lossy = namespace["lossy"]  # type: ignore[attr-defined]
    try:
        with pytest.raises(MMLError, match="cannot be read"):
            mm.Loss(namespace["lossy"]).save(tmp_path / "l", package_code=True)
    finally:
        del sys.modules["nowhere"]
