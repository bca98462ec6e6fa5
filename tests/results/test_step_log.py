"""Queries of recorded steps, held against a loop over them."""

from __future__ import annotations

import numpy as np
import pytest

import modularml as mm
from modularml.callbacks import Callback
from modularml.results.step_log import StepLog
from tests.worlds import (
    QUIET,
    arrays,
    eval_phase,
    experiment,
    featureset,
    graph_of,
    mlp,
    train_phase,
)


@pytest.fixture(scope="module")
def made():
    """Return an experiment whose training and evaluation were recorded."""
    with mm.ExperimentContext().activate():
        fs = featureset(*arrays(n=50, d=4))
        phase = train_phase(graph_of(fs, mlp(4, width=4), "adam", lr=0.01), n_epochs=3)
        made = experiment(seed=0, audit="off")
        made.run_phase(phase, **QUIET)
        return made


@pytest.fixture
def log(made):
    """Return three epochs as they were recorded, and between them steps that were run by hand."""
    parts = made.last_run.results.get_train_result()._execution.parts
    mixed = StepLog()
    mixed.parts = [parts[0], list(parts[1])[2:5], parts[2], []]
    return mixed


def named(steps):
    return [(step.epoch_idx, step.batch_idx, float(step.losses[0].value)) for step in steps]


def test_steps_by_position(log):
    steps = [step for part in log.parts for step in part]
    assert named(log) == named(steps)
    for place in range(-len(steps), len(steps)):
        assert named([log[place]]) == named([steps[place]])
    for part in (slice(None), slice(5, 9), slice(-3, None), slice(None, None, -2), slice(9, 3)):
        assert named(log[part]) == named(steps[part])
    order = np.random.default_rng(0).permutation(len(steps))
    assert named(log.take(order)) == named([steps[i] for i in order])
    assert list(log.take(order[:0])) == []
    with pytest.raises(IndexError):
        log[len(steps)]


def test_positions(log):
    places = log.places()
    assert list(zip(*(places[name].tolist() for name in ("epoch", "batch")), strict=True)) == [
        step[:2] for step in named(log)
    ]
    assert {name: column.tolist() for name, column in StepLog().places().items()} == {
        "epoch": [],
        "batch": [],
    }


def test_queries_equal_a_loop(made):
    results = made.last_run.results.get_train_result()
    by_place = {(s.epoch_idx, s.batch_idx): s for s in results._execution}
    outputs, contexts = results.tensors("net", "outputs"), results.execution_contexts()
    assert outputs.keys() == list(by_place)
    for (epoch, batch), step in by_place.items():
        out = outputs.at(epoch=epoch, batch=batch)
        assert np.array_equal(out, step.output(results._node_id("net")))
        assert named([contexts.at(epoch=epoch, batch=batch)]) == named([step])
    assert len(outputs.where(epoch=[0, 2])) == 2 * len(outputs.where(epoch=1))
    assert len(outputs.where(epoch=True)) == len(outputs.where(epoch=1))
    assert not len(outputs.where(epoch="1"))
    assert not len(outputs.where(epoch=float("nan")))


def test_a_series_holds_what_was_recorded_when_it_was_made(made):
    results = made.last_run.results.get_train_result()
    log = StepLog(list(results._execution)[:3])
    before, view = list(log), log.view()
    log.append(results._execution[3])
    assert named(view) == named(before)
    assert len(log) == 4


class Reads(Callback):
    """Notes an output of each batch so far, in the middle of epochs."""

    changes_weights = False

    def __init__(self):
        super().__init__("reads")
        self.read = []

    def on_batch_end(self, *, results, exec_ctx, **facts):
        log = results._execution
        if log.parts:
            part = log.parts[-1]
            self.read.append([float(np.asarray(step.outs[0])[0, 0]) for step in part])
            assert part.totals().shape == (len(part), 1)


@pytest.mark.parametrize("n", [31, 32, 33, 64, 70])
def test_outputs_of_many_batches(n):
    """Each batch's outputs are those of the model then, however many are recorded."""
    with mm.ExperimentContext().activate():
        fs = featureset(*arrays(n=2 * n - 1, d=4))
        reads = Reads()
        phase = train_phase(
            graph_of(fs, mlp(4, width=4)), batch_size=2, n_epochs=2, callbacks=[reads]
        )
        results = experiment(seed=0, audit="off").run_phase(phase, **QUIET)
        outs = [np.asarray(step.outs[0]) for step in results._execution]
    assert [len(out) for out in outs] == [*[2] * (n - 1), 1] * 2
    first = [float(out[0, 0]) for out in outs]
    assert reads.read == [
        first[epoch * n : epoch * n + i + 1] for epoch in range(2) for i in range(n)
    ]
    assert len(results._execution.parts[0]._whole[0][0]) == 2 * n - 1


@pytest.mark.parametrize("at", [0, 5, 31, 32, 40, 99])
def test_outputs_whose_dtype_changes(at):
    """Batches keep the dtype that their outputs had."""
    import torch

    class Changes(torch.nn.Linear):
        def forward(self, x):
            self.n = getattr(self, "n", -1) + 1
            out = super().forward(x)
            return out.double() if self.n >= at else out

    with mm.ExperimentContext().activate():
        fs = featureset(*arrays(n=100, d=4))
        graph = graph_of(fs, mlp(4, width=4), "sgd")
        phase = eval_phase(graph, batch_size=2)
        graph.build()
        torch.manual_seed(0)
        graph.get_node("net").model.module[-1] = Changes(4, 1)
        results = experiment(seed=0, audit="off").run_phase(phase, **QUIET)
        dtypes = [str(step.outs[0].dtype)[6:] for step in results._execution]
    assert dtypes.count("float64") == max(0, 50 - at)
    assert dtypes == sorted(dtypes)
