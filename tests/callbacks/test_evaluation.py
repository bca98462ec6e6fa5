"""Evaluations in the course of a training."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import modularml as mm
from modularml.callbacks import EvaluationMetric, MetricCallback, MetricResult
from modularml.errors import ConfigError
from tests.worlds import (
    QUIET,
    arrays,
    assert_equal_weights,
    eval_phase,
    experiment,
    featureset,
    graph_of,
    mlp,
    mse,
    train_phase,
    weights,
)


def world(net=None, **opt):
    x, y = arrays(n=50)
    fs = featureset(x, y)
    fs.split_random({"train": 0.6, "val": 0.4})
    return fs, graph_of(fs, net or mlp(), **opt)


def test_logs_the_loss_of_all_rows():
    fs, graph = world()
    loss = mse(weight=0.5)
    evaluation = mm.Evaluation.from_split(
        "val", split="val", batch_size=7, metrics=[mm.EvalLossMetric(loss=loss)]
    )
    phase = train_phase(graph, [loss], n_epochs=3, split="train", callbacks=[evaluation])
    results = experiment().run_phase(phase, **QUIET)
    assert results.to_pandas().columns.tolist() == ["train_loss", "val_loss"]
    x = torch.tensor(fs["val"].get_features("numpy"))
    y = torch.tensor(fs["val"].get_targets("numpy"))
    with torch.no_grad():
        want = 0.5 * F.mse_loss(graph.get_node("net").model.inner(x), y).item()
    last = results.metrics().at(name="val_loss", epoch=2, batch=None)
    assert last == pytest.approx(want, rel=1e-5)
    found = results.evaluations().at(label="val", epoch=2)
    assert found.aggregated_losses("net")["mse_net"] == pytest.approx(want, rel=1e-5)
    assert found.stacked_tensors("net", "outputs").shape == (20, 1)
    assert found.source_view("net").n_samples == 20


def test_changes_nothing():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
    found = []
    for watched in (True, False):
        with mm.ExperimentContext().activate():
            import copy

            mine = copy.deepcopy(net)
            _, graph = world(mine, opt="adam", lr=0.01)
            graph.build()
            callbacks = [mm.Evaluation.from_split("val", split="val", losses=[mse()])]
            phase = train_phase(
                graph, n_epochs=3, split="train", callbacks=callbacks if watched else []
            )
            torch.manual_seed(1)
            experiment().run_phase(phase, **QUIET)
            found.append(weights(mine))
    assert_equal_weights(*found)


def test_when_it_runs():
    _, graph = world()
    evaluation = mm.Evaluation.from_split(
        "val",
        split="val",
        every_n_epochs=2,
        run_on_start=True,
        metrics=[mm.EvalLossMetric(loss=mse(), name="v", reducer="sum")],
    )
    phase = train_phase(graph, n_epochs=5, split="train", callbacks=[evaluation])
    results = experiment().run_phase(phase, **QUIET)
    assert results.evaluations().axis_values("epoch") == [None, 1, 3]
    assert results.metrics().where(name="v").axis_values("epoch") == [1, 3]


def test_own_metrics():
    class Worst(EvaluationMetric):
        def extract(self, *, eval_result, exec_ctx=None):
            out = eval_result.stacked_tensors("net", "outputs", fmt="np")
            target = eval_result.stacked_tensors("net", "targets", fmt="np")
            return MetricResult(self.name, float(abs(out - target).max()))

    _, graph = world()
    evaluation = mm.Evaluation.from_split("val", split="val", metrics=[Worst("worst")])
    phase = train_phase(graph, n_epochs=2, split="train", callbacks=[evaluation])
    results = experiment().run_phase(phase, **QUIET)
    assert len(results.metrics().where(name="worst")) == 2


def test_two_evaluations_side_by_side():
    _, graph = world()
    callbacks = [
        mm.Evaluation.from_split(
            name, split=name, metrics=[mm.EvalLossMetric(loss=mse(), name=name)]
        )
        for name in ("train", "val")
    ]
    phase = train_phase(graph, n_epochs=2, split="train", callbacks=callbacks)
    results = experiment().run_phase(phase, **QUIET)
    assert results.metric_names() == ["train_loss", "train", "val"]
    assert len(results.evaluations()) == 4


def test_metric_callback():
    _, graph = world()
    rate = MetricCallback("epoch_twice", lambda *, exec_ctx, **facts: 2.0 * exec_ctx.epoch_idx)
    sometimes = MetricCallback("never", lambda **facts: None)
    phase = train_phase(graph, n_epochs=3, split="train", callbacks=[rate, sometimes])
    results = experiment().run_phase(phase, **QUIET)
    assert results.metrics().where(name="epoch_twice").values() == [0.0, 2.0, 4.0]
    assert "never" not in results.metric_names()


def test_bad_arguments():
    _, graph = world()
    with pytest.raises(TypeError, match="EvalPhase"):
        mm.Evaluation(eval_phase=train_phase(graph))
    with pytest.raises(ConfigError, match="every_n_epochs"):
        mm.Evaluation(eval_phase=eval_phase(graph), every_n_epochs=0)
    with pytest.raises(ConfigError, match="reducer"):
        mm.EvalLossMetric(loss=mse(), reducer="max")
    with pytest.raises(TypeError, match="AppliedLoss"):
        mm.EvalLossMetric(loss=mm.Loss("mse"))
    with pytest.raises(ConfigError, match="another loss"):
        mm.Evaluation(
            eval_phase=eval_phase(graph), metrics=[mm.EvalLossMetric(loss=mse(weight=2.0))]
        )


def test_config_round_trip():
    _, graph = world()
    made = mm.Evaluation.from_split(
        "val", split="val", every_n_epochs=2, metrics=[mm.EvalLossMetric(loss=mse())]
    )
    callbacks = [made, mm.EarlyStopping()]
    phase = train_phase(graph, n_epochs=2, split="train", callbacks=callbacks)
    again = mm.TrainPhase.from_config(phase.get_config())
    assert again.get_config() == phase.get_config()
    assert experiment().run_phase(again, **QUIET).metric_names() == ["train_loss", "val_loss"]
