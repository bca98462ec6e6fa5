"""Listeners of a runner on a phase hear what they would hear of a runner."""

from __future__ import annotations

import numpy as np
import pytest

import modularml as mml
from modularml.callbacks import Attached
from modularml.errors import ConfigError
from modularml.models.torch import SequentialMLP
from modularml.runner import Event, Runner
from modularml.runner.attachments import EpochTimer, LambdaReducer, ProgressBar


def run(
    attached: Attached, n_epochs: int = 3, sampler: mml.SimpleSampler | None = None
) -> tuple[mml.TrainPhase, mml.TrainResults]:
    x = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    fs = mml.FeatureSet.from_dict("rows", {"x": x, "y": x.sum(axis=1)}, "x", "y")
    fs.split_random({"train": 0.8, "rest": 0.2})
    net = mml.ModelNode("net", SequentialMLP(), fs)
    mml.ModelGraph([net], mml.Optimizer("adam"))
    phase = mml.TrainPhase.from_split(
        "train",
        split="train",
        sampler=sampler or mml.SimpleSampler(batch_size=16),
        losses=[mml.AppliedLoss(mml.Loss("mse"), on="net", inputs=["outputs", "targets"])],
        n_epochs=n_epochs,
        callbacks=[attached],
    )
    experiment = mml.Experiment.from_active_context("attached")
    return phase, experiment.run_phase(phase, show_training_progress=False)


def log_of(listeners) -> list[tuple]:
    log: list[tuple] = []
    for event in Event:
        listeners.on(
            event,
            lambda state, event=event: log.append((event.name, state["epoch"], state["n_iters"])),
        )
    return log


def test_events_come_as_from_a_runner() -> None:
    attached, runner = Attached(), Runner()
    mine, theirs = log_of(attached), log_of(runner)
    run(attached, n_epochs=2)
    runner.run(range(3), max_epoch=2)
    assert mine == theirs


def test_losses_of_batches_are_those_of_the_results() -> None:
    attached, losses = Attached(), []
    attached.on(Event.BATCH, lambda state: losses.append(state["loss"]))
    _, results = run(attached, n_epochs=1)
    logged = results.metrics().where(name="train_loss", epoch=0)
    assert losses == [v for (_, _, batch), v in logged.items() if batch is not None]


def test_attachments_work(capsys: pytest.CaptureFixture[str]) -> None:
    attached = Attached([EpochTimer(), ProgressBar(), LambdaReducer("most", max, value="loss")])
    seen = []
    attached.on(Event.EPOCH_FINISHED, lambda state: seen.append(state["most"]), rank=2)
    _, results = run(attached, n_epochs=1)
    logged = results.metrics().where(name="train_loss", epoch=0)
    assert seen == [max(v for (_, _, batch), v in logged.items() if batch is not None)]
    assert "3/3" in capsys.readouterr().err


def test_a_listener_can_end_the_phase() -> None:
    attached = Attached()

    @attached.on(Event.BATCH)
    def stop(state) -> None:
        state["running"] = state["n_iters"] < 2

    phase, results = run(attached)
    assert results.n_epochs == 1
    assert phase.position.epoch == 1


def test_phases_count_with_a_stream() -> None:
    phase, _ = run(Attached(), n_epochs=4)
    assert phase.position.state_dict()["epoch"] == 4
    assert phase.position.iteration == 4 * 3


def test_what_is_no_attachment_is_refused() -> None:
    with pytest.raises(ConfigError, match="Attachment"):
        Attached([print])


def test_listening_adds_no_sampling() -> None:
    class Counted(mml.SimpleSampler):
        times = 0

        def sample(self, view, epoch):
            Counted.times += 1
            return super().sample(view, epoch)

    attached, lengths = Attached([ProgressBar(disable=True)]), []
    attached.on(Event.STARTED, lambda state: lengths.append(len(state["batches"])))
    run(attached, n_epochs=3, sampler=Counted(batch_size=16))
    assert Counted.times == 3
    assert lengths == [3]
