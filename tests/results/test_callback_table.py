"""Callback results in files: as columns where they can be, each with what it was."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import partial

import numpy as np
import pytest

import modularml as mm
from modularml.callbacks import Callback, MetricCallback
from modularml.errors import MMLError
from modularml.experiment.history_files import _made_result, _unpacked_result, packed_result
from modularml.models.torch import SequentialMLP
from modularml.results import packed_results
from modularml.results.metric_store import ArtifactResult, CallbackResult, MetricResult
from modularml.results.packed_results import packed_callbacks, unpacked_callbacks
from modularml.results.phase_results import PhaseResults
from tests.worlds import QUIET, arrays, experiment, featureset, mlp, mse


class Remarks(Callback):
    """Returns values of several kinds."""

    changes_weights = False

    def on_epoch_end(self, *, exec_ctx, **facts):
        epoch = exec_ctx.epoch_idx
        return [{"epoch": epoch}, "text", None, epoch, np.float32(epoch), (epoch, 1.5)][epoch % 6]


class Freezes(Callback):
    """Freezes the first node in the middle."""

    def on_epoch_start(self, *, experiment, exec_ctx, **facts):
        if exec_ctx.epoch_idx == 3:
            experiment.model_graph.freeze(["first"])


def half(**facts):
    return 0.5


def world(n_epochs=7, *, batch_size=None, group_by=None, weights=False, freezes=False, **kwargs):
    """Return an experiment with two evaluations in each epoch, and other callbacks."""
    with mm.ExperimentContext().activate():
        x, y = arrays(n=60, d=4)
        site = np.array(["a", "b", "c"])[np.arange(60) % 3]
        fs = featureset(x, y, site=site, w=np.linspace(1, 2, 60))
        fs.split_random({"train": 0.6, "val": 0.4}, seed=1)
        first = mm.ModelNode("first", SequentialMLP(output_shape=(3,), n_layers=1), fs)
        mm.ModelGraph([first, mm.ModelNode("net", mlp(3), first)], mm.Optimizer("adam"))
        loss = mse(sample_weight="w") if weights else mse()
        metrics = [mm.EvalLossMetric(loss=loss), "r2"]
        options = {"metrics": metrics, "batch_size": batch_size, "run_on_start": True}
        val = mm.Evaluation.from_split("val", split="val", **options, group_by=group_by)
        two = mm.Evaluation.from_split("two", split="train", every_n_epochs=2)
        made = experiment(seed=0, audit="off")
        phase = mm.TrainPhase.from_split(
            "train",
            split="train",
            sampler=mm.SimpleSampler(batch_size=8, shuffle=True, seed=0),
            losses=[loss],
            n_epochs=n_epochs,
            callbacks=[
                *([Freezes()] if freezes else []),
                *(val, Remarks("says"), two, MetricCallback("half", half)),
            ],
            **kwargs,
        )
        made.execution_plan.add_phase(phase)
        return made


def facts_of(results):
    """Return everything that results of a phase hold, as plain data."""
    steps = [
        {
            "place": (s.epoch_idx, s.batch_idx, s.phase_label),
            "losses": list(s.losses),
            "totals": s.loss_totals(),
            "outs": [np.asarray(out) for out in s.outs],
            "rows": [
                {role: rows.tolist() for role, rows in s.indices(source).items()}
                for source in s._layout().views
            ],
            "ids": [s.sample_uuids(node_id).tolist() for node_id, _ in s._layout().outputs],
        }
        for s in results._execution
    ]
    names = {i: label for s in results._execution for i, label in s._layout().labels.items()}
    said = [
        {f.name: plain(getattr(c, f.name)) for f in fields(c)} | {"type": type(c).__name__}
        for c in results._callbacks
    ]
    losses = [
        record._replace(node_id=names[record.node_id]) for s in steps for record in s.pop("losses")
    ]
    return {
        "label": results.label,
        "steps": steps,
        "losses": losses,
        "said": said,
        "metrics": [(e.name, float(e), e.epoch, e.batch) for e in results._metrics.entries()],
    }


def plain(value):
    return facts_of(value) if isinstance(value, PhaseResults) else (type(value).__name__, value)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_size": 7},
        {"batch_size": 7, "weights": True},
        {"group_by": "site"},
        {"freezes": True},
        {"result_recording": "last"},
        {"n_epochs": 1},
        {"n_epochs": 2},
    ],
    ids=str,
)
def test_everything_comes_back(tmp_path, options):
    made = world(**options)
    made.run(**QUIET)
    path = made.save(tmp_path / "a")
    with mm.ExperimentContext().activate():
        loaded = mm.Experiment.load(path)
        again = mm.Experiment.load(loaded.save(tmp_path / "b"))
    before = facts_of(made.last_run.results["train"])
    assert len(before["said"]) > 3
    for copy in (loaded, again):
        np.testing.assert_equal(facts_of(copy.last_run.results["train"]), before)
    scores = made.last_run.results["train"].evaluations().last().scores(["mse"])
    assert scores.equals(loaded.last_run.results["train"].evaluations().last().scores(["mse"]))


def test_a_table_grows_by_what_is_new(tmp_path):
    sizes = []
    for n in (10, 40):
        made = world(n, result_recording="last")
        made.run(**QUIET)
        sizes.append(made.save(tmp_path / str(n)).stat().st_size)
    assert (sizes[1] - sizes[0]) / 30 < 1_500  # 24 + 18 outputs, 5 batches, 6 results, by the epoch


def round_trip(results):
    packed = packed_callbacks(results, packed_result, type, lambda layout: None)
    return packed, unpacked(packed)


def unpacked(packed):
    unpack = partial(_unpacked_result, layouts=())
    return unpacked_callbacks(packed, unpack, _made_result, {}, ())


def test_numbers_come_back_bit_by_bit():
    values = [0.1, -0.0, math.inf, math.nan, 5e-324, 1e308]
    results = [MetricResult("m", v, label="l", epoch=i, edge="e") for i, v in enumerate(values)]
    packed, back = round_trip(results)
    assert len(packed) == 1
    assert [np.float64(r.value).tobytes() for r in back] == [
        np.float64(v).tobytes() for v in values
    ]
    assert [type(r.epoch) for r in back] == [int] * 6


def test_results_of_other_types_stay_in_their_place():
    results = [
        MetricResult("a", 1.0, epoch=0),
        ArtifactResult("x", {"k": [1, 2]}, epoch=0),
        MetricResult("a", np.float64(2.0), epoch=1),
        MetricResult("b", 3.0, epoch=2**40),
        MetricResult("a", True, epoch=3),
        MetricResult("a", 4.0, epoch=None),
        MetricResult("a", 2**70, epoch=4),
        MetricResult("a", 5.0, epoch=5),
        ArtifactResult("x", {"k": [1, 2]}, epoch=1),
        MetricResult("a", False, epoch=6),
    ]
    packed, back = round_trip(results)
    assert back == results
    assert [type(r.value) for r in back] == [type(r.value) for r in results]
    assert sum("columns" in item for item in packed) == 2


def test_a_result_of_a_missing_class_keeps_its_values():
    @dataclass
    class Mine(CallbackResult):
        n: int = 0

    packed, _ = round_trip([Mine(1, label="a"), Mine(2, label="b")])
    packed[0]["class"] = "Gone"
    back = unpacked(packed)
    assert [(r.payload, r.label) for r in back] == [({"n": 1}, "a"), ({"n": 2}, "b")]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda table: table.update(at=table["at"][:-1]),
        lambda table: table.update(at=table["at"] + 100),
        lambda table: table.update(at=table["at"] * 0),
        lambda table: table["columns"].update(epoch={"numbers": np.arange(1)}),
        lambda table: table["columns"].update(epoch={"values": []}),
        lambda table: table["columns"].update(epoch={}),
        lambda table: table["columns"].pop("name"),
    ],
    ids=range(7),
)
def test_a_table_that_contradicts_itself_is_refused(spoil):
    packed, _ = round_trip([MetricResult("m", float(i), epoch=i) for i in range(4)])
    spoil(packed[0])
    with pytest.raises((ValueError, TypeError, StopIteration, KeyError)):
        unpacked(packed)


def test_counts_that_contradict_the_steps_are_refused(tmp_path, monkeypatch):
    made = world(4)
    made.run(**QUIET)
    packed = packed_results.packed_logs
    for counts in ([1, 1], [-1, 9], [5], [0, 0, 0, 0]):
        wrong = np.array(counts)
        monkeypatch.setattr(
            "modularml.results.packed_results.packed_logs",
            lambda logs, layout, wrong=wrong: {**packed(logs, layout), "counts": wrong},
        )
        path = made.save(tmp_path / "a", overwrite=True)
        with mm.ExperimentContext().activate(), pytest.raises(MMLError, match="MML-107"):
            mm.Experiment.load(path)
