"""The troubleshooting guide: each of its entries is provoked, and shows the error's own text."""

from __future__ import annotations

import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import Ridge
from torch import nn

import modularml as mml
from modularml.errors import ModularMLError
from tests import worlds
from tests.worlds import QUIET, experiment, graph_of, mlp, train, train_phase

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
ENTRY = re.compile(
    r"^\(mml-(?P<anchor>\d+)\)=\n### (?P<code>MML-\d+): [^\n]+\n\n```text\n(?P<text>.+?)\n```\n",
    re.MULTILINE | re.DOTALL,
)
ENTRIES = {m["code"]: m["text"] for m in ENTRY.finditer(PAGE)}


class Net(nn.Module):
    """A network that files know by name alone."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.layer = nn.Linear(width, 1)

    def forward(self, x):
        return self.layer(x)


def rows(n: int = 60, **tags) -> mml.FeatureSet:
    return worlds.featureset(*worlds.arrays(n), **tags)


def split() -> mml.FeatureSet:
    fs = rows()
    fs.split_random({"train": 0.8, "test": 0.2})
    return fs


def frame(**columns) -> mml.FeatureSet:
    table = pd.DataFrame({**columns, "y": [1.0, 2.0]})
    return mml.FeatureSet.from_pandas("data", table, list(columns), "y")


def curves() -> mml.FeatureSet:
    columns = {"curve": np.zeros((4, 10)), "mass": np.zeros(4), "y": np.zeros(4)}
    return mml.FeatureSet.from_dict("data", columns, ["curve", "mass"], "y")


def trained() -> mml.ModelGraph:
    graph = graph_of(rows(), mlp())
    train(graph)
    return graph


def text_targets() -> None:
    table = pd.DataFrame({"x": [1.0, 2.0, 3.0, 4.0], "grade": ["a", "b", "a", "b"]})
    graph = graph_of(mml.FeatureSet.from_pandas("data", table, "x", "grade"), mlp(1, 2))
    loss = mml.AppliedLoss(mml.Loss("cross_entropy"), on="net", inputs=["outputs", "targets"])
    train(graph, [loss])


def text_features() -> None:
    graph_of(frame(grade=["a", "b"]), mlp(1)).build()


def one_label_twice() -> None:
    fs = rows()
    for _ in range(2):
        mml.ModelNode("net", mlp(), fs)


def not_finite() -> None:
    x, y = worlds.arrays()
    x[3, 0] = np.nan
    graph = graph_of(worlds.featureset(x, y), mlp())
    experiment(audit="off").run_phase(train_phase(graph), **QUIET)


def copy_of_the_target() -> None:
    x, y = worlds.arrays()
    graph = graph_of(worlds.featureset(np.c_[x, y], y), mlp(7))
    experiment(audit="error").run_phase(train_phase(graph), **QUIET)


def large_batches() -> None:
    sampler = mml.SimpleSampler(batch_size=500, drop_last=True)
    sources = worlds.bindings(graph_of(rows(), mlp()), sampler)
    phase = mml.TrainPhase("train", input_sources=sources, losses=[worlds.mse()])
    experiment().run_phase(phase, **QUIET)


def unlogged_metric() -> None:
    stop = mml.EarlyStopping(monitor="val_loss", patience=2)
    train(graph_of(rows(), mlp()), callbacks=[stop], n_epochs=3)


def resumed_with_other_settings() -> None:
    graph, ex = graph_of(rows(), mlp()), experiment()
    for size in (16, 8):
        saving = mml.Checkpointing(mode="disk", directory="saved", overwrite=True)
        phase = train_phase(graph, batch_size=size, n_epochs=2, checkpointing=saving)
        ex.run_phase(phase, resume=None if size == 16 else "saved/epoch_0000.ckpt.mml", **QUIET)


def ambiguous_units() -> None:
    fs = rows()
    fs.fit_transform("StandardScaler", domain="targets")
    graph = graph_of(fs, mlp(out=2))
    graph.build()
    graph.predict(fs)


def no_xgboost() -> None:
    from modularml._optional import require

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "xgboost", None)  # as if it were not installed
        require("xgboost", purpose="to load boosted trees")


def damaged_file() -> None:
    path = Path(rows().save("rows"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    load(mml.FeatureSet, path)


def file_of_other_kind() -> None:
    load(mml.Experiment, rows().save("rows"))


def not_a_file_of_ours() -> None:
    Path("rows.fs.mml").write_text("cell,capacity\n", "utf-8")
    load(mml.FeatureSet, "rows.fs.mml")


def class_not_here() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Net, "__module__", "battery_models")
        patch.setitem(sys.modules, "battery_models", sys.modules[__name__])
        wrapped = mml.TorchModelWrapper(model_class=Net, model_kwargs={"width": 6})
        graph = graph_of(rows(), wrapped)
        graph.build()
        path = graph.save("graph")
    load(mml.ModelGraph, path)


def existing_file() -> None:
    fs = rows()
    for _ in range(2):
        fs.save("rows")


def model_as_object() -> None:
    graph = graph_of(rows(), Net())
    graph.build()
    graph.save("graph")


def load(cls: type, path) -> None:
    with mml.ExperimentContext().activate():
        cls.load(path)


MISTAKES: dict[str, list[Callable[[], object]]] = {
    "MML-101": [damaged_file],
    "MML-103": [not_a_file_of_ours],
    "MML-106": [file_of_other_kind],
    "MML-108": [class_not_here],
    "MML-110": [existing_file],
    "MML-112": [model_as_object],
    "MML-113": [lambda: mml.FeatureSet.load("rowz.fs.mml")],
    "MML-201": [
        lambda: rows().get_features(features="x9"),
        lambda: mml.FeatureSet.from_pandas("data", pd.DataFrame({"x": [1.0]}), "X1", "x"),
    ],
    "MML-202": [
        lambda: split()["trian"],
        lambda: train(graph_of(split(), mlp()), split="trian"),
    ],
    "MML-203": [lambda: split().split_random({"train": 0.5, "test": 0.5})],
    "MML-204": [lambda: rows().split_random({"train": 0.8, "test": 0.3})],
    "MML-205": [
        lambda: rows(cell=["a", "b"] * 30).split_random(
            {"train": 0.6, "val": 0.2, "test": 0.2}, group_by="cell"
        ),
        lambda: rows(3).split_random({"train": 0.9, "test": 0.1}),
        lambda: rows().split_by_condition({"hot": {"x0": lambda x: x > 1e9}}),
    ],
    "MML-206": [lambda: frame(grade=["a", None])],
    "MML-207": [lambda: frame(curve=[[1.0, 2.0], [1.0]])],
    "MML-208": [lambda: frame(**{"cell voltage": [1.0, 2.0]})],
    "MML-209": [lambda: curves().get_features("numpy")],
    "MML-301": [lambda: frame(grade=["a", "b"]).fit_transform("StandardScaler", domain="features")],
    "MML-302": [text_targets, text_features],
    "MML-303": [copy_of_the_target],
    "MML-401": [one_label_twice, lambda: (rows(), rows())],
    "MML-402": [lambda: graph_of(rows(), mlp(5)).build()],
    "MML-403": [lambda: graph_of(curves(), mlp()).build()],
    "MML-404": [lambda: train(graph_of(rows(), mlp(out=3)))],
    "MML-405": [
        lambda: mml.Loss("msee", backend="torch"),
        lambda: mml.Optimizer("addam", backend="torch"),
    ],
    "MML-406": [lambda: train(graph_of(rows(), mlp(), opt=None))],
    "MML-407": [lambda: train(graph_of(rows(), Ridge(), opt=None))],
    "MML-408": [lambda: train(graph_of(rows(), mlp(), learning_rate=0.1))],
    "MML-501": [not_finite],
    "MML-502": [large_batches],
    "MML-503": [unlogged_metric],
    "MML-504": [lambda: train(graph_of(rows(), mlp()), accelerator=mml.Accelerator("cuda:7"))],
    "MML-505": [resumed_with_other_settings],
    "MML-506": [lambda: trained().predict(pd.DataFrame({"x0": [1.0]}))],
    "MML-507": [
        lambda: graph_of(rows(), mlp()).predict(np.zeros((3, 6))),
        lambda: mml.Scaler("StandardScaler").transform(np.zeros((3, 1))),
    ],
    "MML-508": [ambiguous_units],
    "MML-601": [no_xgboost],
}


def as_pattern(text: str) -> str:
    """Read a message of the page: `...` stands for anything, line ends for blanks."""
    parts = " ".join(text.split()).split("...")
    return ".*?".join(map(re.escape, parts))


def test_the_page_and_the_list_of_mistakes_have_the_same_codes() -> None:
    assert sorted(ENTRIES) == sorted(MISTAKES)
    assert [m["anchor"] for m in ENTRY.finditer(PAGE)] == [code[4:] for code in ENTRIES]
    assert PAGE.count("\n### ") == len(ENTRIES)


def test_every_code_of_the_library_is_on_the_page() -> None:
    sources = [p.read_text("utf-8") for p in (ROOT / "modularml").rglob("*.py")]
    used = {code for text in sources for code in re.findall(r"\"(MML-\d{3})\"", text)}
    assert used >= set(ENTRIES)
    assert all(re.search(rf"\b{code}\b", PAGE) for code in used)


@pytest.mark.parametrize("code", sorted(MISTAKES))
def test_a_mistake_leads_to_its_entry(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    messages = []
    for mistake in MISTAKES[code]:
        context = mml.ExperimentContext(registration_policy="error")
        with context.activate(), pytest.raises(ModularMLError) as caught:
            mistake()
        error = caught.value
        assert error.code == code, error
        note = f"see {code} in the troubleshooting guide"
        assert error.__notes__.count(note) == 1
        sent = pickle.loads(pickle.dumps(error))  # as from a worker
        assert (sent.code, sent.__notes__) == (code, error.__notes__)
        messages.append(" ".join(str(error).split()))
    assert re.fullmatch(as_pattern(ENTRIES[code]), messages[0]), messages[0]


def test_an_error_without_an_entry_has_no_note() -> None:
    with pytest.raises(mml.errors.ConfigError) as caught:
        mml.SimpleSampler(batch_size="16")
    assert caught.value.code == ""
    assert not hasattr(caught.value, "__notes__")
