"""Phases that run a part of their batches, held against those of fewer rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import modularml as mm
from modularml.engine.batch_schedule import limited
from modularml.errors import ConfigError
from tests.worlds import (
    QUIET,
    arrays,
    assert_equal_weights,
    by_hand,
    eval_phase,
    experiment,
    featureset,
    graph_of,
    mlp,
    mse,
    train_phase,
    twin,
)

X, Y = arrays(n=60)


@pytest.mark.parametrize(("limit", "n"), [(2, 2), (0.5, 2), (0.01, 1), (4, 4), (99, 4), (None, 4)])
def test_the_first_batches_alone_run(limit, n):
    net = mlp()
    hand = twin(net)
    exp = experiment()
    phase = train_phase(graph_of(featureset(X, Y), net), n_epochs=2, limit_batches=limit)
    assert limited(4, limit) == n == phase.count_batches()
    results = exp.run_phase(phase, **QUIET)
    losses = by_hand(hand, lambda p: torch.optim.SGD(p, lr=0.05), X[: n * 16], Y[: n * 16])
    assert_equal_weights(net, hand, atol=1e-6)
    frame = results.to_pandas()
    np.testing.assert_allclose(frame["train_loss"], losses, rtol=1e-5)
    assert list(frame.get("share_of_batches", [1.0])) == ([n / 4] * 2 if n < 4 else [1.0])
    meta = exp.last_run.execution_meta
    assert meta.get("limit_batches") == (None if limit is None else {"train": limit})


def test_with_accumulation_and_a_schedule():
    net = mlp()
    hand = twin(net)
    optimizer = mm.Optimizer("sgd", opt_kwargs={"lr": 0.05}, schedule=mm.LRSchedule(
        "cosine", every="batch"
    ))  # fmt: skip
    graph = mm.ModelGraph([mm.ModelNode("net", net, featureset(X, Y))], optimizer)
    phase = train_phase(graph, n_epochs=2, limit_batches=3, accumulate=2)
    experiment().run_phase(phase, **QUIET)
    own = torch.optim.SGD(hand.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(own, 4)
    x, y = torch.tensor(X), torch.tensor(Y)
    for _ in range(2):
        for rows in (slice(0, 32), slice(32, 48)):
            own.zero_grad()
            torch.nn.functional.mse_loss(hand(x[rows]), y[rows]).backward()
            own.step()
            schedule.step()
    assert_equal_weights(net, hand, atol=1e-6)


def test_evaluations_say_so():
    net = mlp()
    fs = featureset(X, Y)
    fs.add_split(fs.take(np.arange(60), label="all"))
    graph = graph_of(fs, net)
    scored = eval_phase(graph, batch_size=16, limit_batches=2, metrics=["mae"])
    results = experiment().run_phase(scored, **QUIET)
    with torch.no_grad():
        out = net(torch.tensor(X[:32])).numpy()
    assert results.aggregated_losses("net")["mse_net"] == pytest.approx(
        ((out - Y[:32]) ** 2).mean()
    )
    figures = results.metrics().where(epoch=0)
    assert figures.where(name="share_of_batches").one() == 0.5
    val = mm.Evaluation(eval_phase=eval_phase(graph, label="val", batch_size=16, limit_batches=2))
    results = experiment("b").run_phase(train_phase(graph, callbacks=[val]), **QUIET)
    assert results.to_pandas()["val_share_of_batches"].tolist() == [0.5]


def test_keras_and_two_samplers():
    from tests.keras_worlds import net

    x, y = arrays(n=48)
    own, rest = net(), net()
    results = []
    for module, rows, limit in ((own, 48, 2), (rest, 32, None)):
        with mm.ExperimentContext().activate():
            graph = graph_of(featureset(x[:rows], y[:rows]), module, "SGD")
            experiment().run_phase(train_phase(graph, limit_batches=limit), **QUIET)
            results.append([v.numpy() for v in module.trainable_variables])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_config_files_and_refusals(tmp_path):
    graph = graph_of(featureset(X, Y), mlp())
    phase = train_phase(graph, limit_batches=0.5)
    assert mm.TrainPhase.from_config(phase.get_config()).limit_batches == 0.5
    exp = experiment()
    exp.run_phase(phase, **QUIET)
    path = exp.save(tmp_path / "e")
    with mm.ExperimentContext().activate():
        again = mm.Experiment.load(path).last_run
    assert again.execution_meta["limit_batches"] == {"train": 0.5}
    assert again.results["train"].to_pandas()["share_of_batches"].tolist() == [0.5]
    for bad in (0, -1, 1.5, 0.0, float("nan"), "2"):
        with pytest.raises(ConfigError, match="limit_batches"):
            train_phase(graph, limit_batches=bad)
    with pytest.raises(ConfigError, match="pass batch_size"):
        eval_phase(graph, limit_batches=2)
    over = mm.AppliedLoss(
        mm.Loss(lambda a, b: (a - b).sum(), over="batch", backend="torch"), "net",
        ["outputs", "targets"], label="sum",
    )  # fmt: skip
    with pytest.raises(ConfigError, match="sum"):
        eval_phase(graph, [mse(), over], batch_size=4, limit_batches=2)
