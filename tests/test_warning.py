"""Warnings point at the user's line, however deep in the package they arise."""

from __future__ import annotations

import ast
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest

import modularml as mml
from modularml._warning import warn

PACKAGE = Path(mml.__file__).parent


def test_only_the_helper_warns() -> None:
    """Whoever calls `warnings.warn` must count frames, which change; `warn` counts for all."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = node.func.value
                if node.func.attr in ("warn", "warn_explicit") and isinstance(owner, ast.Name):
                    found += [path.name] if owner.id == "warnings" else []
    assert found == ["_warning.py"]


def rows(label: str = "rows") -> mml.FeatureSet:
    x = np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32)
    x[:, 1] = 1.0
    fs = mml.FeatureSet.from_dict(label, {"x": x, "c": x[:, 1], "y": x[:, 0]}, ["x", "c"], "y")
    fs.split_random({"train": 0.5, "test": 0.5})
    return fs


def overlapping() -> None:
    rows().split_by_condition({"a": {"y": lambda y: y > -9}, "b": {"y": lambda y: y > -1}})


def fitted_on_all() -> None:
    rows().fit_transform("StandardScaler", domain="targets")


def constant() -> None:
    rows().fit_transform("StandardScaler", domain="features", keys="c", fit_to_split="train")


def label_taken() -> None:
    with mml.ExperimentContext(registration_policy="overwrite_warn").activate():
        rows()
        rows()


def audited_run() -> None:
    experiment = mml.Experiment("e")
    fs = mml.FeatureSet.from_dict("d", {"x": np.ones((9, 2)), "y": np.ones(9)}, "x", "y")
    fs.split_random({"train": 0.5, "test": 0.5})
    nn = pytest.importorskip("torch.nn")
    mml.ModelGraph([mml.ModelNode("n", nn.Linear(2, 1), fs)], mml.Optimizer("sgd"))
    loss = mml.AppliedLoss(mml.Loss("mse"), on="n", inputs=["outputs", "targets"])
    phase = mml.TrainPhase.from_split(
        "t", split="train", sampler=mml.SimpleSampler(batch_size=3), losses=[loss]
    )
    experiment.run_phase(phase, show_training_progress=False)


@pytest.mark.parametrize(
    "trouble", [overlapping, fitted_on_all, constant, label_taken, audited_run]
)
def test_the_line_is_the_users(trouble) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trouble()
    ours = [w for w in caught if w.category.__module__.startswith(("modularml", "builtins"))]
    assert ours
    assert {w.filename for w in ours} == {__file__}


def test_where_nobody_else_is_there() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        thread = threading.Thread(target=warn, args=("nobody",))
        thread.start()
        thread.join()
    assert [str(w.message) for w in caught] == ["nobody"]
