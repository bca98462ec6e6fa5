"""Losses by learning rate, held against a loop by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import modularml as mm
from modularml.callbacks import LearningRateFinder
from modularml.errors import ConfigError
from modularml.io.randomness import random_states
from tests.worlds import (
    arrays,
    eval_phase,
    experiment,
    featureset,
    graph_of,
    mlp,
    train_phase,
    twin,
)

X, Y = arrays(n=48)
RATES = np.geomspace(1e-4, 10.0, 40)


def by_hand(net, rates, accumulate=1):
    optimizer, found, x, y = (
        torch.optim.SGD(net.parameters(), lr=1.0),
        [],
        *map(torch.tensor, (X, Y)),
    )
    batches = [slice(at, at + 16) for at in (0, 16, 32)]
    groups = [batches[i : i + accumulate] for i in range(0, 3, accumulate)]
    for i, rate in enumerate(rates):
        optimizer.param_groups[0]["lr"] = rate
        values = []
        optimizer.zero_grad()
        parts = groups[i % len(groups)]
        for rows in parts:
            value = nn.functional.mse_loss(net(x[rows]), y[rows])
            (value / len(parts)).backward()
            values.append(value.item())
        optimizer.step()
        found.append(np.mean(values))
    return found


@pytest.mark.parametrize("accumulate", [1, 2])
def test_losses_are_those_of_a_loop(accumulate):
    net = mlp()
    hand = twin(net)
    phase = train_phase(graph_of(featureset(X, Y), net), accumulate=accumulate)
    found = LearningRateFinder(1e-4, 10.0, 40, stop_factor=1e9).find(experiment(), phase)
    n = len(found.rates)
    np.testing.assert_allclose(found.losses, by_hand(hand, RATES[:n], accumulate), rtol=1e-4)
    np.testing.assert_allclose(found.rates, RATES[:n])
    smooth, mean = [], 0.0
    for i, loss in enumerate(found.losses, 1):
        mean = 0.9 * mean + 0.1 * loss
        smooth.append(mean / (1 - 0.9**i))
    np.testing.assert_allclose(found.smoothed, smooth)
    slopes = np.gradient(found.smoothed, np.log(found.rates))
    assert found.suggestion == found.rates[slopes.argmin()]


CYCLE = {"max_lr": 0.1, "total_steps": 9}
SCHEDULES = {
    "none": None,
    "cosine": "cosine",
    "step": mm.LRSchedule("step", schedule_kwargs={"step_size": 1}, every="batch"),
    "cycle": mm.LRSchedule("OneCycleLR", schedule_kwargs=CYCLE, every="batch"),
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=list(SCHEDULES))
def test_nothing_changes(schedule):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 1))
    optimizer = mm.Optimizer("adam", opt_kwargs={"lr": 0.01}, schedule=schedule)
    graph = mm.ModelGraph([mm.ModelNode("net", net, featureset(X, Y))], optimizer)
    exp, phase = experiment(), train_phase(graph, n_epochs=2, shuffle=True)
    exp.run_phase(phase, show_training_progress=False)
    state, random = graph.get_state(), random_states()
    sampler = phase.input_sources[0].sampler.get_state()
    found = LearningRateFinder(n_steps=30).find(exp, train_phase(graph, label="b", shuffle=True))
    assert len(found.rates) > 9
    after = graph.get_state()
    assert repr(state) == repr(after)
    for name, weights in state["nodes"]["net"]["model"]["weights"].items():
        np.testing.assert_array_equal(weights, after["nodes"]["net"]["model"]["weights"][name])
    assert repr(random) == repr(random_states())
    assert sampler == phase.input_sources[0].sampler.get_state()
    assert len(exp.history) == 1


def test_it_ends_where_the_loss_diverges_and_draws():
    exp = experiment()
    phase = train_phase(graph_of(featureset(X, Y), mlp()))
    found = LearningRateFinder(1e-4, 1e3, 60).find(exp, phase)
    assert 9 < len(found.rates) < 60
    assert found.rates[0] <= found.suggestion < found.rates[-1]
    figure = found.plot()
    assert figure.axes[0].get_xscale() == "log"
    assert list(found.to_pandas()) == ["rates", "losses", "smoothed"]
    assert "suggestion=" in repr(found)


def test_groups_keep_their_ratio_and_keras():
    from tests.keras_worlds import net

    exp = experiment()
    graph = graph_of(featureset(X, Y), net(), "SGD")
    before = [v.numpy() for v in graph.get_node("net").model.module.variables().values()]
    found = LearningRateFinder(1e-4, 1.0, 20).find(exp, train_phase(graph))
    assert found.suggestion is not None
    for old, v in zip(before, graph.get_node("net").model.module.variables().values(), strict=True):
        np.testing.assert_array_equal(old, v.numpy())
    assert graph.optimizer.learning_rates["default"] == pytest.approx(0.05)


def test_refusals():
    for bad in ({"lowest": 0.0}, {"lowest": 1.0, "highest": 0.1}, {"n_steps": 3},
                {"smoothing": 1.0}, {"stop_factor": 1.0}, {"lowest": float("nan")}):  # fmt: skip
        with pytest.raises(ConfigError):
            LearningRateFinder(**bad)
    graph = graph_of(featureset(X, Y), mlp())
    with pytest.raises(ConfigError, match="phase must be a TrainPhase"):
        LearningRateFinder().find(experiment(), eval_phase(graph))
