"""What phases leave behind, and how it is asked for."""

import copy
import gc
import pickle
import weakref

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

import modularml as mm
from modularml.config import encode
from modularml.errors import ConfigError, DataError, RegistrationError, UnknownNameError
from modularml.results.series import AxisSeries
from tests.worlds import (
    QUIET,
    arrays,
    bindings,
    eval_phase,
    experiment,
    featureset,
    graph_of,
    mlp,
    mse,
    train,
    train_phase,
)


def evaluated(n=20, batch_size=8, **tags):
    x, y = arrays(n=n)
    fs = featureset(x, 5 * y + 2, **tags)
    fs.fit_transform("StandardScaler", domain="targets")
    graph = graph_of(fs, mlp())
    results = experiment().run_phase(eval_phase(graph, batch_size=batch_size))
    return x, 5 * y + 2, fs, graph, results


class TestEvalResults:
    def test_counts(self):
        *_, results = evaluated()
        assert results.n_batches == 3
        assert results.batch_indices == [0, 1, 2]
        assert len(results.execution_contexts()) == 3
        assert "3 steps" in repr(results)

    def test_stacked_tensors(self):
        x, y, fs, graph, results = evaluated()
        with torch.no_grad():
            want = graph.get_node("net").model.inner(torch.tensor(x))
        for node in ("net", graph.get_node("net"), graph.get_node("net").node_id):
            torch.testing.assert_close(results.stacked_tensors(node, "outputs"), want)
        array = results.stacked_tensors("net", "outputs", fmt="np")
        assert isinstance(array, np.ndarray)
        assert isinstance(results.stacked_tensors("net", "outputs", fmt="list"), list)
        scaled = fs.get_targets("numpy", rep="transformed")
        np.testing.assert_array_equal(results.stacked_tensors("net", "targets"), scaled)
        own = results.stacked_tensors("net", "targets", unscale=True)
        np.testing.assert_allclose(own, y, rtol=1e-5)
        back = results.stacked_tensors("net", "outputs", unscale=True, fmt="np")
        scale, mean = y.std(), y.mean()
        np.testing.assert_allclose(back, want.numpy() * scale + mean, rtol=1e-4)
        ids = results.stacked_tensors("net", "sample_uuids")
        np.testing.assert_array_equal(ids, fs.get_sample_uuids())

    def test_tags(self):
        names = np.array(["a", "b"] * 10)
        *_, results = evaluated(name=names)
        np.testing.assert_array_equal(results.stacked_tensors("net", "tags")[:, 0], names)

    def test_what_is_not_there(self):
        *_, results = evaluated()
        with pytest.raises(DataError, match="no tags"):
            results.stacked_tensors("net", "tags")
        with pytest.raises(UnknownNameError, match="outputs"):
            results.stacked_tensors("net", "output")
        with pytest.raises(UnknownNameError, match="net"):
            results.stacked_tensors("nett", "outputs")
        with pytest.raises(UnknownNameError, match="role"):
            results.stacked_tensors("net", "outputs", role="anchor")
        with pytest.raises(ConfigError, match="reducer"):
            results.aggregated_losses("net", reducer="max")
        with pytest.raises(ConfigError, match="unscale"):
            results.tensors("net", "sample_uuids", unscale=True)

    def test_losses(self):
        *_, results = evaluated()
        losses = results.losses("net")
        assert losses.axes == ("epoch", "batch", "label")
        assert losses.shape == (1, 3, 1)
        each = [r.value for r in losses]
        assert all(r.trainable == 0 and r.auxiliary == r.value for r in losses)
        mean = results.aggregated_losses("net")["mse_net"]
        assert mean == pytest.approx((8 * each[0] + 8 * each[1] + 4 * each[2]) / 20)
        assert results.aggregated_losses("net", reducer="sum")["mse_net"] == pytest.approx(
            sum(each)
        )

    def test_batches(self):
        *_, fs, _, results = evaluated()
        batch = results.stacked_batches("net")
        assert batch.batch_size == 20
        np.testing.assert_array_equal(batch.sample_uuids, fs.get_sample_uuids())
        assert isinstance(results.stacked_batches("net", fmt="np").outputs, np.ndarray)
        assert [b.batch_size for b in results.batches("net")] == [8, 8, 4]

    def test_source_views(self):
        *_, graph, results = evaluated()
        view = results.source_view("net")
        np.testing.assert_array_equal(view.row_indices, np.arange(20))
        assert results.source_view("net", batch=2).n_samples == 4
        assert list(results.source_views(graph.get_node("net"))) == ["data"]

    def test_two_sources(self):
        x, y = arrays(n=10)
        one, two = featureset(x, y, "one"), featureset(x, y, "two")
        nodes = [mm.ModelNode("a", mlp(), one), mm.ModelNode("b", mlp(), two)]
        both = mm.ConcatNode("both", nodes, concat_axis_targets="first")
        graph = mm.ModelGraph([*nodes, both, mm.ModelNode("net", mlp(d=2), both)])
        results = experiment().run_phase(eval_phase(graph))
        assert set(results.source_views("net")) == {"one", "two"}
        with pytest.raises(DataError, match="source_views"):
            results.source_view("net")
        assert results.source_view("a").source is one


class TestTrainResults:
    def test_metrics(self):
        x, y = arrays(n=40)
        results = train(graph_of(featureset(x, y), mlp()), n_epochs=3)
        assert results.epoch_indices == [0, 1, 2]
        assert results.n_epochs == 3
        assert results.metric_names() == ["train_loss"]
        frame = results.to_pandas()
        assert frame.shape == (3, 1)
        epochs = results.metrics().where(name="train_loss", batch=None)
        np.testing.assert_array_equal(frame["train_loss"], epochs.values())
        assert len(results.metrics().where(name="train_loss", epoch=1, batch=[0, 1, 2])) == 3
        assert "<table" in results._repr_html_()

    def test_losses_are_trainable(self):
        x, y = arrays(n=40)
        results = train(graph_of(featureset(x, y), mlp()), [mse(weight=0.5)])
        record = results.losses("net").first()
        assert record.trainable > 0
        assert record.auxiliary == 0
        logged = results.metrics().at(name="train_loss", epoch=0, batch=0)
        assert record.value == pytest.approx(logged, rel=1e-6)

    def test_numbers_know_what_they_are_of(self):
        x, y = arrays(n=40)
        results = train(graph_of(featureset(x, y), mlp()), [mse(weight=0.5)], n_epochs=2)
        entry = results.metrics().where(name="train_loss", batch=None).last()
        assert isinstance(entry, float)
        assert (entry.name, entry.epoch, entry.batch) == ("train_loss", 1, None)
        assert entry.value == entry == results.to_pandas()["train_loss"][1]
        for again in (pickle.loads(pickle.dumps(entry)), copy.deepcopy(entry)):
            assert (again, again.name, again.epoch) == (entry, "train_loss", 1)
        assert type(encode(entry)) is float
        losses = results.losses("net").where(epoch=0)
        records = losses.values()
        mean = losses.collapse("batch").one()
        assert mean.value == mean == pytest.approx(np.mean([r.value for r in records]))
        assert mean.trainable == pytest.approx(np.mean([r.trainable for r in records]))
        assert mean.auxiliary == 0
        worst = losses.collapse("batch", "max").collapse("label", "sum").one()
        assert worst.trainable == worst.value == max(r.value for r in records)
        assert losses.collapse("batch", "first").one() == records[0]
        assert losses.collapse("batch", len).one() == len(records)

    def test_losses_by_their_name(self):
        x, y = arrays(n=40)
        graph = graph_of(featureset(x, y), mlp())
        losses = [mse(), mse(label="mae_net"), mse(label="mae")]
        found = train(graph, losses, n_epochs=2).losses("net")
        assert found.axis_values("label") == ["mse_net", "mae_net", "mae"]
        assert found.where(label="mse").values() == found.where(label="mse_net").values()
        assert found[0, 1, "mse"] == found.at(epoch=0, batch=1, label="mse_net")
        assert found.collapse("batch").at(epoch=1, label="mse").value > 0
        assert found.select(epoch=0, label=["mse"]).axes == ("batch",)
        assert {r.label for r in found.where(label="mae")} == {"mae"}
        assert not len(found.where(label="huber"))

    def test_outputs_are_detached(self):
        x, y = arrays(n=40)
        results = train(graph_of(featureset(x, y), mlp()), n_epochs=2)
        series = results.tensors("net", "outputs")
        assert series.shape == (2, 3)
        assert not any(t.requires_grad for t in series)
        targets = results.tensors("net", "targets").at(epoch=1, batch=2)
        np.testing.assert_array_equal(targets, y[32:])

    @pytest.mark.parametrize(("recording", "steps"), [("all", 9), ("last", 3), ("none", 0)])
    def test_recording(self, recording, steps):
        x, y = arrays(n=40)
        graph = graph_of(featureset(x, y), mlp())
        results = train(graph, n_epochs=3, result_recording=recording)
        assert len(results.execution_contexts()) == steps
        assert {c.epoch_idx for c in results.execution_contexts()} == (
            {"all": {0, 1, 2}, "last": {2}, "none": set()}[recording]
        )
        assert results.n_epochs == 3
        assert len(results.metrics().where(name="train_loss", batch=None)) == 3
        if recording == "none":
            with pytest.raises(DataError, match="result_recording"):
                results.tensors("net", "outputs")
            with pytest.raises(DataError, match="recorded no outputs"):
                results.source_views("net")

    def test_recording_nothing_keeps_nothing(self):
        x, y = arrays(n=40)
        kept = []

        class Tells(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = mlp()

            def forward(self, x):
                out = self.inner(x)
                kept.append(weakref.ref(out))
                return out

        graph = graph_of(featureset(x, y), Tells())
        graph.build()
        kept.clear()
        results = train(graph, n_epochs=3, result_recording="none")
        gc.collect()
        assert sum(ref() is not None for ref in kept) <= 1
        assert not results._execution

    def test_recording_all_keeps_no_inputs(self):
        x, y = arrays(n=40)
        results = train(graph_of(featureset(x, y), mlp()))
        for ctx in results.execution_contexts():
            assert ctx.tensors is None
            assert ctx.plan is None


class TestSeries:
    def series(self):
        data = {(e, n): 10.0 * e + i for e in range(3) for i, n in enumerate("ab")}
        return AxisSeries(("epoch", "name"), data, "numbers")

    def test_queries(self):
        s = self.series()
        assert s.axes == ("epoch", "name")
        assert s.shape == (3, 2)
        assert s.axes_values() == {"epoch": [0, 1, 2], "name": ["a", "b"]}
        assert s.where(epoch=1).values() == [10.0, 11.0]
        assert s.where(epoch=[0, 2], name="b").values() == [1.0, 21.0]
        assert s.at(epoch=2, name="a") == 20.0
        assert s[2, "a"] == 20.0
        assert s.select(epoch=1).axes == ("name",)
        assert s.where(epoch=1, name="a").squeeze().axes == ()
        assert s.where(name="a").one if False else True
        assert s.first() == 0.0
        assert s.last() == 21.0
        assert s.first(sort_by="name") == 0.0
        assert s.last(sort_by="name") == 21.0
        assert len(s) == 6
        assert list(s) == s.values()
        assert s.items()[0] == ((0, "a"), 0.0)
        assert type(s.where(epoch=0)) is AxisSeries
        assert s.to_pandas().columns.tolist() == ["epoch", "name", "value"]
        assert "epoch: 3" in repr(s)
        assert "<table" in s._repr_html_()

    @pytest.mark.parametrize(
        ("how", "want"),
        [
            ("mean", [10.0, 11.0]),
            ("sum", [30.0, 33.0]),
            ("min", [0.0, 1.0]),
            ("max", [20.0, 21.0]),
            ("first", [0.0, 1.0]),
            ("last", [20.0, 21.0]),
            (len, [3, 3]),
        ],
    )
    def test_collapse(self, how, want):
        found = self.series().collapse("epoch", how)
        assert found.axes == ("name",)
        assert found.values() == want

    def test_errors(self):
        s = self.series()
        empty = s.where(epoch=9)
        assert len(empty) == 0
        with pytest.raises(DataError, match="nothing matched"):
            empty.one()
        for ask in (empty.one, empty.first, empty.last, s.one):
            with pytest.raises(DataError):
                ask()
        with pytest.raises(UnknownNameError, match="epoch"):
            s.where(epok=1)
        with pytest.raises(UnknownNameError, match="mean"):
            s.collapse("epoch", "men")
        with pytest.raises(DataError, match="3 values"):
            s.squeeze("epoch")
        with pytest.raises(UnknownNameError):
            _ = s[7, "a"]

    def test_plot(self, tmp_path):
        pytest.importorskip("matplotlib")
        path = tmp_path / "plot.png"
        self.series().plot(x="epoch", path=path)
        assert path.stat().st_size > 0


class TestGroups:
    def plan(self):
        x, y = arrays(n=40)
        fs = featureset(x, y)
        fs.split_random({"train": 0.5, "test": 0.5})
        graph = graph_of(fs, mlp())
        inner = mm.PhaseGroup("inner", [eval_phase(graph, label="again", split="test")])
        group = mm.PhaseGroup(
            "outer",
            [
                train_phase(graph, split="train"),
                inner,
                eval_phase(graph, label="test", split="test"),
            ],
        )
        return graph, group

    def test_run_group(self):
        _, group = self.plan()
        exp = experiment()
        results = exp.run_group(group, **QUIET)
        assert results.labels == ["train", "inner", "test"]
        assert list(results.flatten()) == ["train", "again", "test"]
        assert results.get_train_result().n_epochs == 1
        assert results.get_eval_result("test").n_batches == 1
        assert results.get_group_result().labels == ["again"]
        assert results["inner"].get_eval_result() is results.flatten()["again"]
        assert set(results.phase_results) == {"train", "test"}
        assert set(results.group_results) == {"inner"}
        assert len(exp.history) == 1
        assert exp.last_run.results is results
        assert set(exp.last_run.execution_meta["durations"]) == {"train", "again", "test"}
        with pytest.raises(UnknownNameError, match="train"):
            results.get_phase_result("trian")
        with pytest.raises(TypeError, match="EvalResults"):
            results.get_train_result("test")
        with pytest.raises(RegistrationError):
            results.add_result(results["test"])
        assert "outer" in repr(results)

    def test_run_the_plan(self):
        _, group = self.plan()
        exp = experiment("all")
        with pytest.raises(ConfigError, match="empty"):
            exp.run()
        exp.execution_plan.add_group(group)
        results = exp.run(**QUIET)
        assert results.label == "all"
        assert results.get_group_result("outer").labels == ["train", "inner", "test"]
        assert len(exp.history) == 1
        exp.run(**QUIET)
        assert [r.status for r in exp.history] == ["completed"] * 2
        with pytest.raises(UnknownNameError, match=r"display flag 'epochs'.*TrainPhase\(n_epochs="):
            exp.run(epochs=2)

    def test_editing(self):
        graph, group = self.plan()
        assert len(group) == 3
        assert [p.label for p in group.flatten()] == ["train", "again", "test"]
        assert group.get_phase(0) is group.get_train_phase("train")
        assert group.get_eval_phase(-1).label == "test"
        assert group.get_group("inner").label == "inner"
        with pytest.raises(RegistrationError, match="train"):
            group.add_phase(train_phase(graph))
        with pytest.raises(RegistrationError, match="itself"):
            group.get_group("inner").add_group(group)
        with pytest.raises(TypeError, match="phase"):
            group.add_item("train")
        before = group.all
        with pytest.raises(RegistrationError):
            group.add_items([eval_phase(graph, label="new"), train_phase(graph)])
        assert group.all == before
        with pytest.raises(UnknownNameError, match="train"):
            group.get_phase("trian")
        with pytest.raises(TypeError, match="TrainPhase"):
            group.get_eval_phase("train")
        with pytest.raises(UnknownNameError):
            group.remove_items(["train", "nobody"])
        assert group.all == before
        group.add_train("more", input_sources=bindings(graph), losses=[mse()])
        group.add_evaluation("last", input_sources=bindings(graph))
        assert [label for label, _ in group.items()][-2:] == ["more", "last"]
        assert group[0] is group["train"] is next(iter(group))
        assert list(group) == group.all
        assert group[-1].label == "last"
        assert ("more" in group, group[-1] in group, "mroe" in group) == (True, True, False)
        for place in ("mroe", 5, slice(0, 1)):
            with pytest.raises(UnknownNameError, match="of group 'outer'"):
                group[place]
        group.remove_items(["more", "last"])
        group.remove_phase("train").remove_group("inner")
        group.remove_item(0)
        assert len(group.clear()) == 0

    def test_config_round_trip(self):
        _, group = self.plan()
        again = mm.PhaseGroup.from_config(group.get_config())
        assert again.get_config() == group.get_config()
        assert [p.label for p in again.flatten()] == ["train", "again", "test"]

    def test_a_failing_phase_leaves_what_came_before(self):
        graph, group = self.plan()
        graph.context.get_node("net")

        class Breaks(mm.callbacks.Callback):
            def on_phase_start(self, **facts):
                raise ValueError("mine")

        group.get_phase("test").add_callback(Breaks())
        exp = experiment()
        with pytest.raises(ValueError, match="mine"):
            exp.run_group(group, **QUIET)
        run = exp.last_run
        assert run.status == "failed"
        assert run.results.get_train_result("train").n_epochs == 1
        assert run.results.labels == ["train", "inner", "test"]


# -- labels, with another experiment active ------------------------------------------------------


@pytest.mark.parametrize("labels", [("cold", "hot"), (3, 7)], ids=["text", "numbers"])
def test_labels_are_known_while_another_experiment_is_active(labels, tmp_path):
    x = np.random.default_rng(0).normal(size=(80, 3))
    noise = np.random.default_rng(1).normal(size=80)
    columns = {"x": x, "state": np.array(labels)[(x[:, 0] + noise > 0).astype(int)]}
    exp = mm.Experiment("mine", audit="off")
    with exp.ctx.activate():
        fs = mm.FeatureSet.from_dict("fs", {**columns, "g": np.arange(80) % 2}, "x", "state", "g")
        fs.split_random({"train": 0.5, "test": 0.5}, seed=1)
        mm.ModelGraph([mm.ModelNode("head", LogisticRegression(), fs)])
        exp.execution_plan.add_phase(mm.FitPhase.from_split("fit", split="train"))
        exp.execution_plan.add_phase(mm.EvalPhase.from_split("ev", split="test", losses=[]))
    mm.Experiment("another")
    rows, test = columns["x"], fs["test"].indices
    train, truth = fs["train"].indices, columns["state"]
    by_hand = LogisticRegression().fit(rows[train], truth[train])
    hits = by_hand.predict(rows[test]) == truth[test]
    exp.run(**QUIET)
    exp.save(tmp_path / "mine")
    loaded = mm.Experiment.load(tmp_path / "mine")
    mm.Experiment("a third")
    for results in (exp.last_run.results["ev"], loaded.history[0].results["ev"]):
        scores = results.scores(["accuracy"], group_by="g")["value"]
        groups = [hits[np.arange(80)[test] % 2 == g].mean() for g in (0, 1)]
        np.testing.assert_allclose(scores, [hits.mean(), *groups])
        assert f"{hits.mean():.1%} correct" in results.plot().axes[0].get_xlabel()
        assert results.to_pandas("head")["target"].tolist() == truth[test].tolist()
    cv = mm.CrossValidation(bindings=mm.CVBinding(fs, ["train"]), n_folds=2, experiment=exp)
    mm.Experiment("a fourth")
    assert len(cv.run(show_fold_progress=False, **QUIET).out_of_fold("head")) == 40
