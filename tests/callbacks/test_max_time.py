"""Phases that stop after a time, on a clock of the tests' own."""

from __future__ import annotations

import copy
import logging
import pickle

import pytest

import modularml as mm
from modularml.callbacks import Callback, MaxTime, stopping
from modularml.errors import ConfigError
from tests.worlds import (
    QUIET,
    arrays,
    experiment,
    featureset,
    graph_of,
    mlp,
    mse,
    train_phase,
)

pytestmark = pytest.mark.filterwarnings("ignore::modularml.strategies.SelectionWarning")


class Clock(Callback):
    """A second passes with each batch, of which there are three in an epoch."""

    logs = ()
    now = 0.0

    def __init__(self):
        super().__init__("clock", execution_order=-5)
        self.n_, self.fails_at = 0, -1

    def on_batch_end(self, **facts):
        Clock.now += 1.0
        self.n_ += 1
        if self.n_ == self.fails_at:
            raise ValueError("mine")


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    Clock.now = 100.0
    monkeypatch.setattr(stopping, "monotonic", lambda: Clock.now)


def phase_of(budget, n_epochs=9, fails_at=-1, **kwargs):
    how = {k: kwargs.pop(k) for k in ("every",) if k in kwargs}
    graph = graph_of(featureset(*arrays(n=48)), mlp())
    stop, clock = MaxTime(budget, **how), Clock()
    clock.fails_at = fails_at
    return train_phase(graph, n_epochs=n_epochs, callbacks=[clock, stop], **kwargs), stop


@pytest.mark.parametrize("budget", [7, "7s", 7.0])
def test_it_ends_after_the_epoch(budget):
    phase, stop = phase_of(budget)
    results = experiment().run_phase(phase, **QUIET)
    assert (results.n_epochs, stop.stopped_epoch, stop.elapsed) == (3, 2, 9.0)
    (record,) = results.callbacks().where(label="MaxTime").values()
    assert record.payload == {"stopped_epoch": 2, "budget": 7.0}
    with mm.ExperimentContext().activate():
        phase, stop = phase_of("1h")
        assert experiment("b").run_phase(phase, **QUIET).n_epochs == 9
    assert stop.stopped_epoch is None


@pytest.mark.parametrize(("accumulate", "steps"), [(1, 7), (2, 8)])
def test_it_ends_within_the_epoch(accumulate, steps):
    phase, _ = phase_of("7s", every="batch", accumulate=accumulate)
    results = experiment().run_phase(phase, **QUIET)
    assert len(results.execution_contexts()) == steps  # weights have moved with each
    assert results.n_epochs == 3


def test_the_time_before_a_resumption_counts(tmp_path):
    def run(fails_at, resume=None):
        with mm.ExperimentContext().activate():
            saving = mm.Checkpointing(mode="disk", save_on="batch_end", directory=tmp_path)
            phase, stop = phase_of("10s", fails_at=fails_at, checkpointing=saving)
            exp = experiment()
            if fails_at > 0:
                with pytest.raises(ValueError, match="mine"):
                    exp.run_phase(phase, **QUIET)
                return None
            return exp.run_phase(phase, resume=resume, **QUIET), stop

    run(6)
    Clock.now += 1000.0  # nobody trains
    results, stop = run(-1, "auto")
    assert (results.n_epochs, stop.stopped_epoch, stop.elapsed) == (4, 3, 12.0)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2h", 7200),
        ("90s", 90),
        ("1h30m", 5400),
        ("30 min", 1800),
        ("0.5d", 43200),
        ("1h 5m 2s", 3902),
    ],
)
def test_budgets(text, seconds):
    assert MaxTime(text).seconds == seconds
    assert MaxTime.from_config(MaxTime(text).get_config()).budget == text


@pytest.mark.parametrize(
    "bad", [0, -3, "2 weeks", "h", "5x", "1h30", float("nan"), float("inf"), None]
)
def test_what_is_no_budget(bad):
    with pytest.raises(ConfigError, match="budget"):
        MaxTime(bad)


def test_copies_have_hooks_of_their_own():
    stop = MaxTime("1s", every="batch")
    for twin in (copy.deepcopy(stop), pickle.loads(pickle.dumps(stop))):
        assert twin.on_batch_end.__self__ is twin


def test_folds_are_trained_one_after_another(caplog):
    caplog.set_level(logging.INFO)
    fs = featureset(*arrays(n=60))
    fs.split_random({"train": 0.75, "val": 0.25}, seed=0)
    graph_of(fs, mm.models.torch.SequentialMLP(hidden_dim=4)).build()
    exp, clock = experiment(audit="off"), Clock()
    exp.execution_plan.add_phase(
        mm.TrainPhase.from_split(
            "train", split="train", sampler=mm.SimpleSampler(batch_size=16, seed=0), losses=[mse()],
            n_epochs=9, callbacks=[clock, MaxTime("7s")],
        )
    )  # fmt: skip
    binding = mm.CVBinding("data", ["train", "val"])
    cv = mm.CrossValidation(bindings=binding, experiment=exp, n_folds=2, stacked=True)
    results = cv.run(show_fold_progress=False, **QUIET)
    assert "'MaxTime' measures the time of each" in caplog.text
    n = [results.get_fold(i).get_train_result("train").n_epochs for i in range(2)]
    assert n == [4, 4]  # two batches an epoch
