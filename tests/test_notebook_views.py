"""Notebooks: views of objects, and cells that are run again."""

from __future__ import annotations

import warnings
from typing import Any

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

import modularml as mm
from modularml.context import RegistrationWarning
from modularml.errors import ConfigError, RegistrationError, SplitError
from tests.report.test_experiment import Page
from tests.report.worlds import EVIL, trained
from tests.worlds import arrays, experiment, featureset, graph_of, mlp, train_phase


@pytest.fixture
def interactive(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("modularml.context.registration.in_ipython", "modularml.progress.in_ipython"):
        monkeypatch.setattr(place, lambda: True)


@pytest.fixture(scope="module")
def run() -> mm.Experiment:
    return trained(EVIL, name=EVIL, n_epochs=2)


def shown(value: Any, tmp_path: Any) -> Page:
    path = tmp_path / "view.html"
    path.write_text(value._repr_html_(), "utf-8")
    return Page(path)


@pytest.mark.parametrize("what", ["history", "run", "node", "phase", "plan", "experiment"])
def test_views_escape_and_name_what_they_show(what: str, run: mm.Experiment, tmp_path: Any) -> None:
    assert run.model_graph is not None
    values = {
        "history": run.history,
        "run": run.last_run,
        "node": run.model_graph.get_node("net"),
        "phase": run.execution_plan["train"],
        "plan": run.execution_plan,
        "experiment": run,
    }
    words = {"history": "completed", "run": "rmse", "node": "65, 65 trainable", "phase": "train"}
    with run.ctx.activate():
        page = shown(values[what], tmp_path)
    assert "script" not in page.tags
    assert words.get(what, EVIL) in page.words


def test_results_escape_labels(tmp_path: Any) -> None:
    with mm.ExperimentContext().activate():
        fs = featureset(*arrays(12))
        graph = graph_of(fs, mlp(), "sgd", lr=0.1)
        own, train = experiment(audit="off"), train_phase(graph, label=EVIL)
        results = own.run_phase(train, show_training_progress=False)
        fs.split_random({"train": 0.5, "val": 0.5}, seed=0)
        phase = mm.EvalPhase.from_split("val", split="val", metrics=["rmse"])
        binding = mm.CVBinding(fs, source_splits=["train", "val"])
        folds = mm.CrossValidation(label=EVIL, bindings=binding, n_folds=2, phase=phase).run()
    for value in (results, folds):
        page = shown(value, tmp_path)
        assert "script" not in page.tags
        assert EVIL in page.words


def test_history_is_still_a_list(run: mm.Experiment) -> None:
    assert run.history == list(run.history)
    assert len(run.history[-1:]) == 1
    assert mm.Experiment.from_active_context("new").history == []


def test_head_and_shape_are_those_of_the_frame() -> None:
    fs = featureset(*arrays(12), "rows")
    fs.split_random({"train": 0.5, "test": 0.5}, seed=0)
    assert fs.shape == fs.to_pandas().shape == (12, 7)
    assert fs["train"].shape == (6, 7)
    assert fs.head().equals(fs.to_pandas().iloc[:5])
    assert fs["test"].head(2).equals(fs["test"].to_pandas().iloc[:2])
    assert len(fs.head(99)) == 12
    assert fs.head(0).shape == (0, 7)
    for n in (-1, 2.5, True, "3"):
        with pytest.raises(ConfigError, match="n must be an int of at least 0"):
            fs.head(n)


def test_a_script_refuses_what_is_defined_again() -> None:
    fs = featureset(*arrays(12))
    fs.split_random({"train": 0.5, "test": 0.5}, seed=0)
    with pytest.raises(SplitError, match="taken"):
        fs.split_random({"train": 0.5, "test": 0.5}, seed=0)
    with pytest.raises(RegistrationError, match="'data'"):
        featureset(*arrays(12))


@pytest.mark.usefixtures("interactive")
def test_in_ipython_equal_splits_may_be_made_again_and_others_not() -> None:
    with mm.ExperimentContext().activate():
        fs = featureset(*arrays(12))
        fs.split_random({"train": 0.5, "test": 0.5}, seed=0)
        rows = fs["train"].indices
        with pytest.warns(RegistrationWarning, match="equal splits of 'data', train, test"):
            fs.split_random({"train": 0.5, "test": 0.5}, seed=0)
        assert np.array_equal(fs["train"].indices, rows)
        assert len(fs.split_records) == 1
        with pytest.raises(SplitError, match="clear_splits"):
            fs.split_random({"train": 0.5, "test": 0.5}, seed=1)
        with pytest.warns(RegistrationWarning, match="'data' replaces"):
            featureset(*arrays(12))


@pytest.mark.usefixtures("interactive")
def test_in_ipython_a_scaler_is_fitted_once_on_the_same_rows() -> None:
    with mm.ExperimentContext().activate():
        fs = featureset(*arrays(12))
        fs.split_random({"train": 0.5, "test": 0.5}, seed=0)
        fs.fit_transform("MinMaxScaler", domain="features", fit_to_split="train")
        values = fs.get_features("numpy", rep="transformed")
        with pytest.warns(RegistrationWarning, match="fitted on the same rows"):
            fs.fit_transform("MinMaxScaler", domain="features", fit_to_split="train")
        assert len(fs.scaler_records) == 1
        assert np.array_equal(fs.get_features("numpy", rep="transformed"), values)
        fs.fit_transform("StandardScaler", domain="features", fit_to_split="train")
        fs.fit_transform("MinMaxScaler", domain="features", fit_to_split="train")
        assert len(fs.scaler_records) == 3


@pytest.mark.usefixtures("interactive")
def test_in_ipython_phases_and_callbacks_are_replaced_in_place() -> None:
    with mm.ExperimentContext().activate():
        fs = featureset(*arrays(12))
        graph = graph_of(fs, mlp(), "sgd", lr=0.1)
        own = experiment()
        first, second, third = (train_phase(graph, label=name) for name in ("a", "b", "a"))
        own.execution_plan.add_items([first, second])
        with pytest.warns(RegistrationWarning, match="'a' of group"):
            own.execution_plan.add_phase(third)
        assert own.execution_plan.all == [third, second]
        with pytest.raises(RegistrationError, match="labelled 'a'"):
            own.execution_plan.add_items([first, third])
        stop, again = (mm.EarlyStopping(monitor="train_loss", patience=n) for n in (1, 2))
        first.add_callback(stop)
        with pytest.warns(RegistrationWarning, match="of phase 'a'"):
            first.add_callback(again)
        assert first.callbacks == [again]
        with pytest.raises(RegistrationError, match="already"):
            train_phase(graph, callbacks=[stop, again])


CELLS = """
import numpy as np, modularml as mm
x = np.random.default_rng(0).normal(size=(40, 3)).astype('float32')

fs = mm.FeatureSet.from_dict('d', {'x': x, 'y': np.arange(40.0)}, 'x', 'y')

fs.split_random({'train': 0.5, 'test': 0.5}, seed=0)

fs.fit_transform('MinMaxScaler', domain='features', fit_to_split='train')

node = mm.ModelNode('net', mm.models.torch.SequentialMLP(hidden_dim=4), fs)

optimizer = mm.Optimizer('adam', opt_kwargs={'lr': 0.01}, backend='torch')
graph = mm.ModelGraph([node], optimizer=optimizer)

experiment = mm.Experiment.from_active_context('e', audit='off')

loss = mm.AppliedLoss(mm.Loss('mse'), on='net', inputs=['outputs', 'targets'])
sampler = mm.SimpleSampler(batch_size=8)
train = mm.TrainPhase.from_split('train', split='train', sampler=sampler, losses=[loss])
experiment.execution_plan.add_phase(train)

experiment.run(show_training_progress=False)

assert len(fs.scaler_records) == 1
experiment.history
""".strip().split("\n\n")


@pytest.mark.slow
def test_a_notebook_may_be_run_cell_by_cell_twice_and_again_from_the_start() -> None:
    twice = [cell for cell in CELLS for _ in range(2)]
    cells = [nbformat.v4.new_code_cell(text) for text in (*twice, *CELLS[1:])]
    notebook = nbformat.v4.new_notebook(cells=cells)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    text = "".join(o.get("text", "") for cell in cells for o in cell.outputs)
    assert text.count("RegistrationWarning") >= 8
    assert "text/html" in cells[-1].outputs[0]["data"]
