"""One phase, seen as a stream of events."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import modularml as mml
from modularml.callbacks import Callback
from modularml.context import ExperimentContext
from modularml.models.torch import SequentialMLP
from modularml.streams import collect, early_stop, ema, pipe, take


class Moments(Callback):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def on_phase_start(self, **facts) -> None:
        self.seen.append("start")

    def on_epoch_end(self, *, exec_ctx, **facts) -> None:
        self.seen.append(f"epoch {exec_ctx.epoch_idx}")

    def on_phase_end(self, **facts) -> None:
        self.seen.append("end")


def made(callbacks=(), n_epochs: int = 6) -> tuple[mml.Experiment, mml.TrainPhase]:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    experiment = mml.Experiment("streamed")
    x = rng.normal(size=(120, 4)).astype(np.float32)
    fs = mml.FeatureSet.from_dict("rows", {"x": x, "y": x.sum(axis=1)}, "x", "y")
    fs.split_random({"train": 0.7, "val": 0.3})
    net = mml.ModelNode("net", SequentialMLP(), fs)
    mml.ModelGraph([net], mml.Optimizer("adam", opt_kwargs={"lr": 1e-2})).build()
    loss = mml.AppliedLoss(mml.Loss("mse"), on="net", inputs=["outputs", "targets"])
    validate = mml.Evaluation.from_split(
        "val", split="val", metrics=[mml.EvalLossMetric(loss=loss)]
    )
    phase = mml.TrainPhase.from_split(
        "train",
        split="train",
        sampler=mml.SimpleSampler(batch_size=16, shuffle=True, seed=1),
        losses=[loss],
        n_epochs=n_epochs,
        callbacks=[validate, *callbacks],
    )
    return experiment, phase


def weights(experiment: mml.Experiment) -> dict[str, np.ndarray]:
    return experiment.model_graph.get_node("net").model.get_weights()


def test_a_stream_is_the_same_run() -> None:
    ran, phase = made()
    results = ran.run_phase(phase, show_training_progress=False)
    streamed, phase = made()
    events = list(streamed.stream(phase))
    frame = results.to_pandas()
    assert [e["epoch"] for e in events] == list(range(6))
    assert [e["step"] for e in events] == list(range(1, 7))
    assert [e["train_loss"] for e in events] == frame["train_loss"].tolist()
    assert [e["val_loss"] for e in events] == frame["val_loss"].tolist()
    assert all(e["model"] is streamed.model_graph for e in events)
    mine, theirs = weights(streamed), weights(ran)
    assert all(np.array_equal(mine[k], theirs[k]) for k in mine)
    assert streamed.last_run.status == "completed"
    assert streamed.last_run.results.get_train_result("train").n_epochs == 6


def test_stages_of_the_streams_room_work_on_it() -> None:
    experiment, phase = made()
    rows = collect(
        pipe(
            experiment.stream(phase),
            ema("train_loss", half_life=2),
            early_stop("val_loss", patience=10),
            take(3),
        ),
        exclude=["model"],
    )
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert experiment.last_run.results.get_train_result().n_epochs == 3


def test_to_stop_iterating_ends_the_phase_cleanly() -> None:
    moments = Moments()
    experiment, phase = made([moments])
    stream = experiment.stream(phase)
    list(itertools.islice(stream, 2))
    stream.close()
    assert moments.seen == ["start", "epoch 0", "epoch 1", "end"]
    assert experiment.last_run.status == "completed"
    assert experiment.last_run.ended_at is not None
    assert "train" in experiment.last_run.execution_meta["durations"]


def test_nothing_runs_before_it_is_asked_for() -> None:
    experiment, phase = made()
    before = weights(experiment)
    stream = experiment.stream(phase)
    stream.close()
    assert experiment.history == []
    assert all(np.array_equal(before[k], v) for k, v in weights(experiment).items())


def test_the_context_is_not_left_active_between_events() -> None:
    experiment, phase = made()
    other = ExperimentContext()
    with other.activate():
        for _ in experiment.stream(phase):
            assert ExperimentContext.get_active() is other
    assert experiment.last_run.status == "completed"


def test_an_error_in_the_phase_reaches_the_reader() -> None:
    class Boom(Callback):
        def on_epoch_end(self, *, exec_ctx, **facts) -> None:
            if exec_ctx.epoch_idx == 1:
                raise ValueError("boom")

    experiment, phase = made([Boom()])
    stream = experiment.stream(phase)
    assert next(stream)["epoch"] == 0
    with pytest.raises(ValueError, match="boom"):
        next(stream)
    assert experiment.last_run.status == "failed"


def test_two_streams_take_turns() -> None:
    alone, phase = made()
    expected = [e["train_loss"] for e in alone.stream(phase)]
    first, one = made()
    second, two = made()
    pairs = zip(first.stream(one), second.stream(two), strict=True)
    losses = [(a["train_loss"], b["train_loss"]) for a, b in pairs]
    assert [b for _, b in losses] == expected


def test_only_phases_can_be_streamed() -> None:
    experiment, _ = made()
    with pytest.raises(TypeError, match="ExperimentPhase"):
        experiment.stream("train")
