"""Every constructor of what runs, walked with what none can mean."""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import KFold

import modularml as mm
from modularml import callbacks, predicates, samplers, scalers, splitters
from modularml.errors import ModularMLError
from modularml.models.torch import SequentialMLP
from modularml.samplers import SimilarityCondition
from tests.worlds import arrays, eval_phase, experiment, featureset, graph_of, mlp, mse, train_phase


def phase() -> dict[str, Any]:
    graph = mm.ExperimentContext.get_active().model_graph
    (node,) = graph.nodes.values()
    ref = node.feature_refs[0]
    return {"label": "p", "input_sources": [mm.InputBinding("net", ref, "val", None, "default")]}


def fitting() -> dict[str, Any]:
    graph = mm.ExperimentContext.get_active().model_graph
    graph.replace_node("net", mm.ModelNode("fit", LinearRegression(), graph.get_node("net")))
    ref = graph.get_node("fit").feature_refs[0]
    return {"label": "p", "input_sources": [mm.InputBinding("fit", ref, "val", None, "default")]}


HOSTILE = [None, 3, -1, "", [], {}, math.nan, object()]
SAME = {"cell": SimilarityCondition()}
SOUND: dict[type, Any] = {
    callbacks.Attached: {},
    callbacks.CSVLogger: {"path": "log.csv"},
    callbacks.Callback: {},
    callbacks.EarlyStopping: {},
    callbacks.EvalLossMetric: lambda: {"loss": mse()},
    callbacks.Evaluation: lambda: {"eval_phase": mm.EvalPhase(**phase())},
    callbacks.ExperimentCallback: {},
    callbacks.LearningRateMonitor: {},
    callbacks.LivePlot: {},
    callbacks.MetricCallback: {"name": "a", "fn": len},
    callbacks.ProgressiveUnfreezing: {"at": {1: "net"}},
    callbacks.ScoreMetric: {"score": "r2"},
    mm.Checkpointing: {},
    mm.CrossValidation: lambda: {"bindings": mm.CVBinding("data", ["train"])},
    mm.CVBinding: {"fs": "data", "source_splits": ["train"]},
    mm.EvalPhase: phase,
    mm.Experiment: {"label": "x"},
    mm.FitPhase: fitting,
    mm.InputBinding: lambda: vars(phase()["input_sources"][0]),
    mm.PhaseGroup: {"label": "g"},
    mm.ResultsConfig: {},
    mm.TrainPhase: lambda: {**phase(), "losses": [mse()]},
    predicates.Between: {"low": 0, "high": 1},
    predicates.In: {"values": [1]},
    predicates.Lambda: {"source": "lambda x: x > 1"},
    predicates.Not: {"condition": predicates.GT(1)},
    samplers.NSampler: {"condition_mapping": {"twin": SAME}},
    samplers.PairedSampler: {"conditions": SAME},
    samplers.SimpleSampler: {},
    samplers.TripletSampler: {"pos_conditions": SAME, "neg_conditions": SAME},
    SimilarityCondition: {},
    scalers.PerSampleMinMaxScaler: {},
    scalers.Scaler: {"scaler": "StandardScaler"},
    scalers.SegmentedScaler: {"boundaries": [0, 2], "scaler": "StandardScaler"},
    splitters.ConditionSplitter: {"conditions": {"a": {"x": 1}}},
    splitters.KFoldSplitter: {},
    splitters.LeaveOneGroupOutSplitter: {"group_by": "cell"},
    splitters.RandomSplitter: {"ratios": {"a": 0.5, "b": 0.5}},
    splitters.ScikitSplitter: {"splitter": KFold()},
    splitters.TimeSeriesSplitter: {},
}
COUNTS = """
    accumulate batch_size bins every_n every_n_epochs gap limit_batches max_pairs_per_anchor
    max_samples_per_anchor max_to_keep max_train_size max_weight memory_budget min_delta
    min_seconds n_epochs n_folds n_repeats patience seed test_size tolerance
"""
MEANT = [
    ([3], COUNTS),
    ([3, -1], "execution_order n_jobs"),
    ([[]], "attachments callbacks input_sources losses metrics phases sources"),
    ([{}], "options scaler_kwargs"),
    (["", [], {}], "values"),
    (HOSTILE, "high low"),  # compared with whatever a column holds
]
"""What arguments of these names may be after all, beside what they are when not given."""


@pytest.fixture
def _world():
    fs = featureset(*arrays(20), cell=[i // 5 for i in range(20)])
    fs.split_random({"train": 0.5, "val": 0.5})
    graph_of(fs, mlp())
    experiment()


@pytest.mark.usefixtures("_world")
@pytest.mark.parametrize("cls", SOUND, ids=lambda cls: cls.__name__)
def test_what_cannot_be_meant_is_refused_by_name(cls):
    made = SOUND[cls]() if callable(SOUND[cls]) else SOUND[cls]
    cls(**made)
    for name, parameter in inspect.signature(cls).parameters.items():
        for value in HOSTILE if parameter.kind is not parameter.VAR_KEYWORD else ():
            meant = [v for some, names in MEANT if name in names.split() for v in some]
            if value is parameter.default or any(value is v or value == v for v in meant):
                continue
            with pytest.raises((ModularMLError, TypeError), match=rf"got|{name}|unknown"):
                print(f"{cls.__name__}({name}={value!r}) is taken:", cls(**{**made, name: value}))


class Own(callbacks.Callback):
    """Annotated as its author likes."""

    def __init__(self, label: "in words", n: int = 3, flag: str = "x"):  # noqa: F722
        super().__init__(str(label))
        self.n, self.flag = n, flag


def test_constructors_of_a_users_own_are_their_own_matter():
    assert Own(3, n=2.5, flag="").label == "3"
    assert Own.from_config({"label": 1, "flag": ""}).n == 3
    with pytest.raises(TypeError, match=r"Negate\(\) too many positional arguments"):
        scalers.Negate(3)
    assert not inspect.signature(scalers.Negate).parameters
    with pytest.raises(
        TypeError, match=r"EarlyStopping\(\) got an unexpected keyword argument 'wait'"
    ):
        callbacks.EarlyStopping(wait=3)


def test_a_seed_of_numpy_is_the_same_seed():
    drawn = []
    for seed in (7, np.int64(7)):
        mm.Experiment("x", registration_policy="error", seed=seed)
        drawn.append(np.random.random())  # noqa: NPY002
    assert drawn[0] == drawn[1]


def test_numbers_of_numpy_are_numbers_everywhere():
    x, y = arrays()
    graph = graph_of(featureset(x, y), mlp())
    two, no = np.int64(2), np.bool_(False)
    phase = train_phase(graph, n_epochs=two, accumulate=two, compile=no)
    evaluation = eval_phase(graph, batch_size=two)
    exp = experiment()
    assert len(exp.run_phase(phase).execution_contexts()) == 2 * 4
    exp.run_phase(evaluation)
    assert len(graph.predict(x[:5], batch_size=two)) == 5
    callbacks.ProgressiveUnfreezing({two: "net"})
    SequentialMLP(n_layers=two, hidden_dim=two)
    assert type(phase).from_config(phase.get_config()).n_epochs == 2
