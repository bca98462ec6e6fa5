"""An experiment comes back whole: rows, graph, plan, history; checkpoints take it back in time."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import modularml as mm
from modularml.errors import ConfigError, MMLError, MMLKindError, UnknownNameError
from modularml.io import inspect, render
from tests.io import things


def rows_of(experiment: mm.Experiment) -> Any:
    return experiment.ctx.get_node("cells")


def test_everything_comes_back(tmp_path: Path) -> None:
    made = things.experiment()
    path = made.save(tmp_path / "study")
    assert made.save(tmp_path / "twice").read_bytes() == path.read_bytes()
    with mm.ExperimentContext().activate() as ctx:
        loaded = mm.Experiment.load(path)
        assert loaded.ctx is ctx
        assert ctx.get_experiment() is loaded
        assert loaded.save(tmp_path / "again").read_bytes() == path.read_bytes()
    np.testing.assert_array_equal(loaded.predict(rows_of(loaded)), made.predict(rows_of(made)))
    old, new = made.history[0].results["train"], loaded.history[0].results["train"]
    assert new.to_pandas().equals(old.to_pandas())
    assert new.losses("head").to_pandas().equals(old.losses("head").to_pandas())
    for node in ("encoder", "head"):
        for name in ("outputs", "targets", "tags", "sample_uuids"):
            for key, value in old.tensors(node, name).items():
                other = new.tensors(node, name)[key]
                np.testing.assert_array_equal(np.asarray(other), np.asarray(value))
    assert [r.status for r in loaded.history] == ["completed"]
    evaluation, twin = (r.evaluations().values()[0] for r in (old, new))
    assert twin.results.aggregated_losses("head") == evaluation.results.aggregated_losses("head")


def test_it_trains_on_as_it_would_have(tmp_path: Path) -> None:
    made = things.experiment()
    path = made.save(tmp_path / "study")
    with mm.ExperimentContext().activate():
        loaded = mm.Experiment.load(path)
    for each in (made, loaded):
        torch.manual_seed(4)
        each.run(**things.QUIET)
    a, b = (e.last_run.results["train"].to_pandas() for e in (made, loaded))  # type: ignore[union-attr]
    assert a.equals(b)
    np.testing.assert_array_equal(loaded.predict(rows_of(loaded)), made.predict(rows_of(made)))


def test_loading_beside_and_in_place_of(tmp_path: Path) -> None:
    made = things.experiment()
    path, before = made.save(tmp_path / "study"), things.snapshot(made.ctx)
    beside = mm.Experiment.load(path)
    assert things.snapshot(made.ctx) == before
    assert beside.ctx is not made.ctx
    assert not set(beside.ctx.available_nodes) & set(made.ctx.available_nodes)
    beside.run(**things.QUIET)
    graph = made.model_graph
    instead = mm.Experiment.load(path, overwrite=True)
    assert instead.ctx is made.ctx
    assert made.ctx.model_graph is instead.model_graph is not graph


def test_a_failed_run_is_kept(tmp_path: Path) -> None:
    made = things.experiment()
    phase = things.train_phase()
    phase.add_callback(_Stop())
    with pytest.raises(ZeroDivisionError):
        made.run_phase(phase, **things.QUIET)
    path = made.save(tmp_path / "study")
    with mm.ExperimentContext().activate():
        last = mm.Experiment.load(path).last_run
    assert last is not None
    assert (last.status, last.execution_meta["error"]) == ("failed", "ZeroDivisionError: harm")


class _Stop(mm.callbacks.Callback):
    def on_epoch_end(self, **facts: Any) -> None:
        raise ZeroDivisionError("harm")


def test_inspect_needs_nothing(tmp_path: Path) -> None:
    path = things.experiment().save(tmp_path / "study")
    facts = mm.Experiment.inspect(path)
    assert facts == inspect(path)
    assert facts["nodes"] == {"encoder": "SequentialMLP", "head": "SequentialMLP"}
    assert facts["featuresets"]["cells"]["rows"] == 30
    text = render(facts)
    for word in (
        "study.exp.mml",
        "'study'",
        "encoder: SequentialMLP (torch)",
        "split train: ",
        "MinMaxScaler",
    ):
        assert word in text
    for kind in (mm.Loss("mse").save(tmp_path / "a"), things.featureset("b").save(tmp_path / "b")):
        assert render(inspect(kind))


def test_checkpoints_of_a_graph(tmp_path: Path) -> None:
    made = things.experiment()
    graph = made.model_graph
    assert graph is not None
    path = graph.save_checkpoint(tmp_path / "one", meta={"note": "first"})
    want = made.predict(rows_of(made))
    torch.manual_seed(0)
    made.run(**things.QUIET)
    after = made.predict(rows_of(made))
    assert graph.restore_checkpoint(path) is graph
    np.testing.assert_array_equal(made.predict(rows_of(made)), want)
    torch.manual_seed(0)
    made.run(**things.QUIET)
    np.testing.assert_array_equal(made.predict(rows_of(made)), after)
    assert inspect(path)["meta"] == {"note": "first"}


def test_a_checkpoint_of_another_graph_changes_nothing(tmp_path: Path) -> None:
    made = things.experiment()
    graph = made.model_graph
    assert graph is not None
    with mm.ExperimentContext().activate():
        fs = things.featureset()
        other = mm.ModelGraph([mm.ModelNode("other", _mlp(), fs.reference(features=["x"]))])
        other.build()
        path = other.save_checkpoint(tmp_path / "other")
    before = made.predict(rows_of(made))
    with pytest.raises(MMLError, match="MML-107"):
        graph.restore_checkpoint(path)
    np.testing.assert_array_equal(made.predict(rows_of(made)), before)
    with pytest.raises(MMLKindError):
        graph.restore_checkpoint(made.save(tmp_path / "study"))


def _mlp() -> Any:
    from modularml.models.torch import SequentialMLP

    return SequentialMLP(output_shape=(1,))


def test_checkpoints_of_an_experiment(tmp_path: Path) -> None:
    made = things.experiment()
    with pytest.raises(ConfigError, match="set_checkpoint_dir"):
        made.save_checkpoint("one")
    made.set_checkpoint_dir(tmp_path / "kept")
    path = made.save_checkpoint("one", meta={"a": 1})
    assert made.available_checkpoints == {"one": path}
    want = made.predict(rows_of(made))
    made.run(**things.QUIET)
    after, runs = made.predict(rows_of(made)), len(made.history)
    made.restore_checkpoint("one")
    assert len(made.history) == runs - 1
    np.testing.assert_array_equal(made.predict(rows_of(made)), want)
    made.run(**things.QUIET)  # dropout draws the same numbers: random states came back too
    np.testing.assert_array_equal(made.predict(rows_of(made)), after)
    made.restore_checkpoint(path)
    with pytest.raises(UnknownNameError, match="one"):
        made.restore_checkpoint("won")
    with pytest.raises(MMLKindError):
        made.restore_checkpoint(made.save(tmp_path / "study"))


@pytest.mark.parametrize("name", ["../a", "a/b", "", ".a", "{0}", "a b", "con", "x" * 130, "a\n"])
def test_names_of_checkpoints(name: str, tmp_path: Path) -> None:
    made = things.experiment()
    made.set_checkpoint_dir(tmp_path / "kept")
    with pytest.raises(MMLError, match="MML-105"):
        made.save_checkpoint(name)
    assert list(tmp_path.rglob("*.mml")) == []


def test_a_checkpoint_with_other_rows(tmp_path: Path) -> None:
    made = things.experiment()
    made.set_checkpoint_dir(tmp_path)
    path = made.save_checkpoint("one")
    with mm.ExperimentContext().activate():
        things.graph(things.featureset(n=29))
        other = mm.Experiment.from_active_context("study")
        with warnings.catch_warnings(), pytest.raises(MMLError, match="strict=False"):
            other.restore_checkpoint(path)
        assert other.history == []


def test_a_new_process_with_the_same_script_goes_on(tmp_path: Path) -> None:
    made = things.experiment()
    made.set_checkpoint_dir(tmp_path)
    made.save_checkpoint("one")
    made.run(**things.QUIET)
    with mm.ExperimentContext().activate():
        things.graph(things.featureset())
        twin = mm.Experiment.from_active_context("study")
        twin.execution_plan.add_phase(things.train_phase())
        twin.set_checkpoint_dir(tmp_path)
        twin.restore_checkpoint("one")
        twin.run(**things.QUIET)
    np.testing.assert_array_equal(twin.predict(rows_of(twin)), made.predict(rows_of(made)))
    assert len(twin.history) == 2


def test_a_phase_writes_checkpoints_to_disk(tmp_path: Path) -> None:
    made = things.experiment()
    made.set_checkpoint_dir(tmp_path)
    phase = made.execution_plan.get_train_phase("train")
    phase.set_checkpointing(mm.Checkpointing(mode="disk", max_to_keep=2))
    phase.n_epochs = 4
    made.run(**things.QUIET)
    kept = made.available_checkpoints
    assert sorted(kept) == ["epoch_0002", "epoch_0003"]
    (log,) = (tmp_path / "train").glob("history-*.log.mml")
    assert sorted(p.name for p in (tmp_path / "train").iterdir()) == sorted(
        [*(f"{name}.ckpt.mml" for name in kept), log.name]
    )
    want = made.predict(rows_of(made))
    made.restore_checkpoint("epoch_0002")
    assert not np.array_equal(made.predict(rows_of(made)), want)


def test_an_experiment_writes_checkpoints_to_disk(tmp_path: Path) -> None:
    made = things.experiment()
    made.set_checkpointing(
        mm.Checkpointing(mode="disk", save_on="phase_end", directory=tmp_path / "kept")
    )
    made.run(**things.QUIET)
    want = made.predict(rows_of(made))
    assert list(made.available_checkpoints) == ["train_phase_end"]
    with made.disable_checkpointing():
        made.run(**things.QUIET)
    made.restore_checkpoint("train_phase_end")
    np.testing.assert_array_equal(made.predict(rows_of(made)), want)


def test_disk_without_a_folder(tmp_path: Path) -> None:
    made = things.experiment()
    phase = made.execution_plan.get_train_phase("train")
    phase.set_checkpointing(mm.Checkpointing(mode="disk"))
    with pytest.raises(ConfigError, match="need a folder"):
        made.run(**things.QUIET)


def test_samplers_without_a_seed_keep_what_they_drew(tmp_path: Path) -> None:
    things.graph(things.featureset())
    made = mm.Experiment.from_active_context("study")
    phase = things.train_phase()
    sampler = mm.SimpleSampler(batch_size=5, shuffle=True)
    made.execution_plan.add_phase(
        mm.TrainPhase.from_split("free", split="train", sampler=sampler, losses=phase.losses)
    )
    made.model_graph.build()  # type: ignore[union-attr]
    path = made.save(tmp_path / "study")
    with mm.ExperimentContext().activate():
        loaded = mm.Experiment.load(path)
    for each in (made, loaded):
        torch.manual_seed(0)
        each.run(**things.QUIET)
    np.testing.assert_array_equal(loaded.predict(rows_of(loaded)), made.predict(rows_of(made)))
