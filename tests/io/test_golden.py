"""A file of each schema stays readable, with the numbers that it was written with.

``python -m tests.io.test_golden`` writes files of the newest schema where there are none yet.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.tree import DecisionTreeRegressor

import modularml as mm
from modularml.io import inspect, limits
from modularml.models.torch import SequentialMLP
from modularml.samplers import BaseSampler
from modularml.splitters import BaseSplitter, RandomSplitter

FOLDER = Path(__file__).parents[1] / "golden"
ROWS = 12


def study() -> mm.Experiment:
    """Return an experiment whose numbers can be worked out by hand: 2 x + 1, scaled."""
    x = np.arange(ROWS, dtype=np.float32)
    fs = mm.FeatureSet.from_dict("line", {"x": x, "y": 2 * x + 1}, "x", "y")
    fs.split_by_condition({"low": {"x": list(range(6))}, "high": {"x": list(range(6, 12))}})
    fs.fit_transform("MinMaxScaler", domain="targets", fit_to_split="low")
    node = mm.ModelNode("linear", SequentialMLP(n_layers=1), fs)
    graph = mm.ModelGraph([node], optimizer=mm.Optimizer("sgd", opt_kwargs={"lr": 0.1}))
    graph.build()
    weights = {"layers.0.weight": np.array([[0.2]], "f4"), "layers.0.bias": np.zeros(1, "f4")}
    node.model.set_weights(weights)
    made = mm.Experiment.from_active_context("golden")
    loss = mm.AppliedLoss(mm.Loss("mse"), on="linear", inputs=["outputs", "targets"])
    made.run_phase(mm.EvalPhase.from_split("high", split="high", losses=[loss]))
    return made


@pytest.mark.parametrize("schema", range(1, limits.SCHEMA + 1))
def test_files_of_every_schema(schema: int) -> None:
    path = FOLDER / f"schema{schema}.exp.mml"
    assert inspect(path)["schema"] == schema
    loaded = mm.Experiment.load(path)
    fs = loaded.ctx.get_node("line")
    assert isinstance(fs, mm.FeatureSet)
    x = np.arange(ROWS, dtype=np.float32)
    np.testing.assert_array_equal(fs.get_features("numpy").reshape(-1), x)
    np.testing.assert_allclose(
        fs.get_targets("numpy", rep="transformed").reshape(-1), (2 * x) / 10, rtol=1e-6
    )
    np.testing.assert_allclose(loaded.predict(fs).reshape(-1), 2 * x + 1, rtol=1e-6)
    result = loaded.history[0].results.get_eval_result()
    assert result.aggregated_losses("linear")["mse_linear"] == pytest.approx(0, abs=1e-12)
    assert fs.available_splits == ["low", "high"]


def test_the_newest_schema_is_written_as_it_was(tmp_path: Path) -> None:
    """The same study written today is laid out as the golden file is."""
    path = study().save(tmp_path / "a")
    old, new = inspect(FOLDER / f"schema{limits.SCHEMA}.exp.mml"), inspect(path)
    assert list(old["members"]) == list(new["members"])
    for key in ("kind", "schema", "type", "nodes", "featuresets", "backends"):
        assert old[key] == new[key]


def ensemble() -> mm.Ensemble:
    """Return an ensemble whose members have the weights of the study."""
    made = study()
    loss = mm.AppliedLoss(mm.Loss("mse"), on="linear", inputs=["outputs", "targets"])
    sampler = mm.SimpleSampler(batch_size=4)
    made.execution_plan.add_phase(
        mm.TrainPhase.from_split("train", split="low", sampler=sampler, losses=[loss])
    )
    members = mm.Ensemble(made, n=2).run(show_progress=False)
    weights = made.model_graph.get_node("linear").model.get_weights()
    for member in members.members.values():
        member.model_graph.get_node("linear").model.set_weights(weights)
    return members


def of_each_kind() -> dict[str, Any]:
    """Return an object of every other kind, whose numbers can be worked out by hand."""
    made = study()
    x = np.arange(4.0)[:, None]
    tree = mm.ScikitModelWrapper(DecisionTreeRegressor().fit(x, x[:, 0]))
    tree.build((1,))
    with mm.ExperimentContext().activate():
        members = ensemble()
    return {
        "en": members,
        "fs": made.ctx.get_node("line"),
        "mg": made.model_graph,
        "md": tree,
        "sc": mm.Scaler("MinMaxScaler").fit(np.array([[0.0], [10.0]])),
        "op": mm.Optimizer("sgd", opt_kwargs={"lr": 0.1}),
        "ls": mm.Loss("mse"),
        "sm": mm.SimpleSampler(batch_size=4, seed=5),
        "sp": RandomSplitter({"a": 0.5, "b": 0.5}, seed=3),
    }


def _predicts_the_line(members: mm.Ensemble) -> bool:
    with pytest.warns(UserWarning, match="all 2 members predict the same"):
        predicted = members.predict({"x": [0.0, 3.0]})
    return list(members.members) == ["member_0", "member_1"] and np.allclose(predicted["y"], [1, 7])


LOADS: dict[str, Any] = {
    "en": (mm.Ensemble, _predicts_the_line),
    "fs": (mm.FeatureSet, lambda o: o.get_features("numpy").sum() == 66),
    "mg": (mm.ModelGraph, lambda o: o.get_node("linear").model.is_built),
    "md": (mm.BaseModel, lambda o: o(np.array([[2.2]])).tolist() == [[2.0]]),
    "sc": (mm.Scaler, lambda o: o.transform(np.array([[5.0]])).tolist() == [[0.5]]),
    "op": (mm.Optimizer, lambda o: o == mm.Optimizer("sgd", opt_kwargs={"lr": 0.1})),
    "ls": (mm.Loss, lambda o: o == mm.Loss("mse")),
    "sm": (BaseSampler, lambda o: o == mm.SimpleSampler(batch_size=4, seed=5)),
    "sp": (BaseSplitter, lambda o: o == RandomSplitter({"a": 0.5, "b": 0.5}, seed=3)),
}


@pytest.mark.parametrize("kind", LOADS)
@pytest.mark.parametrize("schema", range(1, limits.SCHEMA + 1))
@pytest.mark.filterwarnings("ignore:this DecisionTreeRegressor was saved with scikit-learn")
def test_every_kind_of_every_schema(schema: int, kind: str) -> None:
    path = FOLDER / f"schema{schema}.{kind}.mml"
    assert inspect(path)["schema"] == schema
    cls, holds = LOADS[kind]
    assert holds(cls.load(path))


if __name__ == "__main__":
    for kind, thing in of_each_kind().items():
        if not (FOLDER / f"schema{limits.SCHEMA}.{kind}.mml").exists():
            thing.save(FOLDER / f"schema{limits.SCHEMA}")
