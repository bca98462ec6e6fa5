"""Runs in MLflow, TensorBoard and Weights & Biases, held against results."""

import random
import socket
import sqlite3
import time
import warnings

import numpy as np
import pytest

import modularml as mm
from modularml.callbacks import ExperimentCallback
from modularml.errors import ConfigError, MissingDependencyError
from modularml.tracking import MLflowTracker, TensorBoardTracker, TrackingWarning, WandbTracker
from modularml.tracking.tracked_run import Session
from tests.stores import STORES, assert_logged, by_step
from tests.worlds import QUIET, arrays, eval_phase, featureset, graph_of, mlp, mse, train_phase

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*loader strategy is deprecated"),  # SQLAlchemy in MLflow
    pytest.mark.filterwarnings("ignore::DeprecationWarning:wandb"),
]


@pytest.fixture(params=STORES)
def each_store(request, tmp_path):
    return STORES[request.param](tmp_path / "runs")


@pytest.fixture
def store(tmp_path):
    return STORES["tensorboard"](tmp_path / "runs")


def planned(*callbacks, n_epochs=4, label="cells", checkpoints=None, late=None):
    """Return an experiment that trains within a group, monitors and evaluates."""
    with mm.ExperimentContext().activate():
        fs = featureset(*arrays(n=60))
        fs.split_random({"train": 0.7, "val": 0.3}, seed=0)
        graph = graph_of(fs, mlp())
        new = mm.Experiment.from_active_context(label, callbacks=list(callbacks), seed=1)
        options = {}
        if checkpoints is not None:
            new.set_checkpoint_dir(checkpoints)
            options["checkpointing"] = mm.Checkpointing(mode="disk", save_on="epoch_end")
        held_out = eval_phase(graph, label="val", split="val")
        monitor = mm.Evaluation(
            eval_phase=held_out, every_n_epochs=2, metrics=[mm.EvalLossMetric(loss=mse())]
        )
        more = [] if late is None else [late]
        train = train_phase(
            graph, split="train", n_epochs=n_epochs, callbacks=[monitor, *more], **options
        )
        test = eval_phase(graph, label="test", split="val")
        new.execution_plan.add_items([mm.PhaseGroup("first", [train]), test])
    return new


def cross_validation(experiment, **options):
    (fs,) = experiment.ctx.available_featuresets.values()
    return mm.CrossValidation(
        bindings=mm.CVBinding(fs, "train"), n_folds=3, experiment=experiment, **options
    )


class Dies(mm.callbacks.Callback):
    """Ends the process, as far as the run can tell, in one epoch."""

    def __init__(self, epoch: int = 2, execution_order: int = 500) -> None:
        super().__init__(None, execution_order)
        self.epoch = epoch

    def on_epoch_end(self, *, exec_ctx, **facts):
        if exec_ctx.epoch_idx == self.epoch:
            raise KeyboardInterrupt


class TestRun:
    def test_holds_what_the_results_hold(self, each_store):
        experiment = planned(each_store.tracker())
        results = experiment.run(**QUIET)
        (run,) = each_store.runs().values()
        train = results.get_group_result("first")["train"].to_pandas()
        test = results["test"]._metrics.to_pandas()
        assert len(train["val_loss"].dropna()) == 2
        assert len(train) == 4
        assert_logged(run.metrics, by_step(train, "first/train") | by_step(test, "test"))
        assert (run.name, run.parent, run.status) == ("cells", None, "completed")
        assert run.run_id == experiment.exp_callbacks[0].run_id_
        assert float(run.params["graph.optimizer.lr"]) == 0.05
        assert run.params["phases.first/train.n_epochs"] == "4"
        assert not [name for name in run.params if "racker" in name]
        assert {"experiment.exp.mml", "graph.svg", "audit.txt"} <= run.files

    def test_leaves_the_run_as_it_is(self, store):
        alone, tracked = planned(), planned(store.tracker(every_seconds=0))
        want = alone.run(**QUIET).to_pandas()
        random.seed(3)
        state = random.getstate()
        tracked.run(**QUIET)
        np.testing.assert_array_equal(tracked.last_run.to_pandas(), want)
        assert random.getstate() == state

    def test_a_phase_alone_and_a_second_run(self, store):
        experiment = planned(store.tracker(artifacts=False))
        phase = experiment.execution_plan.flatten()[0]
        experiment.run_phase(phase, **QUIET)
        experiment.run(**QUIET)
        runs = store.runs()
        assert set(runs) == {"cells_train", "cells"}
        assert set(runs["cells_train"].metrics) == {"train/train_loss", "train/val_loss"}
        assert runs["cells"].files == set()

    def test_previews_log_nothing(self, store):
        planned(store.tracker()).preview_run(**QUIET)
        assert store.runs() == {}

    def test_a_failure_and_an_interruption_show(self, store):
        class Fails(mm.callbacks.Callback):
            def on_epoch_end(self, **facts):
                raise ZeroDivisionError

        for label, callback, status in (("a", Fails(), "failed"), ("b", Dies(), "interrupted")):
            experiment = planned(store.tracker(), label=label, late=callback)
            with pytest.raises((ZeroDivisionError, KeyboardInterrupt)):
                experiment.run(**QUIET)
            run = store.runs()[label]
            assert run.status == status
            assert not any(name.endswith(".mml") for name in run.files)
            epochs = {"failed": 1, "interrupted": 3}[status]
            assert [step for step, _ in run.metrics["first/train/train_loss"]] == [*range(epochs)]

    def test_the_file_predicts_and_has_rows_on_request(self, tmp_path):
        for rows in (False, True):
            store = STORES["tensorboard"](tmp_path / str(rows))
            experiment = planned(store.tracker(rows=rows))
            experiment.run(**QUIET)
            x, _ = arrays(n=5, seed=9)
            data = {f"x{i}": x[:, i] for i in range(6)}
            want = experiment.predict(data)
            with mm.ExperimentContext().activate():
                loaded = mm.Experiment.load(tmp_path / str(rows) / "cells" / "experiment.exp.mml")
            np.testing.assert_array_equal(loaded.predict(data), want)
            assert loaded.exp_callbacks == experiment.exp_callbacks
            (fs,) = loaded.ctx.available_featuresets.values()
            assert (len(fs) == 60) is rows


class TestChildren:
    @pytest.mark.parametrize("stacked", [False, True])
    def test_folds_are_runs_below_one(self, store, stacked):
        self.check(store, stacked=stacked)

    @pytest.mark.parametrize("name", ["mlflow", "wandb"])
    def test_folds_in_other_stores(self, tmp_path, name):
        self.check(STORES[name](tmp_path), stacked=False)

    @pytest.mark.slow
    def test_folds_in_two_processes(self, each_store):
        self.check(each_store, n_jobs=2, stacked=False)

    def check(self, store, **options):
        tracker = store.tracker(name="mine", artifacts=False)
        cv = cross_validation(planned(tracker, label="cells"), **options)
        cv.run(show_fold_progress=False, **QUIET)
        runs = store.runs()
        parent = runs.pop("CV")
        assert set(runs) == {f"CV_fold_{i}" for i in range(3)}
        assert tracker.parent is None
        assert tracker.run_id_ == parent.run_id
        for label, fold in cv._runs.done.items():
            run, last = runs[f"CV_{label}"], fold.last_run.results
            train = by_step(last.get_group_result("first")["train"].to_pandas(), "first/train")
            test = by_step(last["test"]._metrics.to_pandas(), "test")
            assert_logged(run.metrics, train | test)
            assert run.parent in {parent.run_id, f"CV-{parent.run_id}"}
            assert run.status == "completed"
        kept = [runs[f"CV_fold_{i}"].metrics["first/train/train_loss"][-1][1] for i in range(3)]
        ((_, mean),), ((_, std),) = (
            parent.metrics[f"{stat}/train/train_loss"] for stat in ("mean", "std")
        )
        np.testing.assert_allclose([mean, std], [np.mean(kept), np.std(kept, ddof=1)], rtol=1e-6)

    def test_members_of_an_ensemble(self, store):
        experiment = planned(store.tracker(artifacts=False), n_epochs=2)
        ensemble = mm.Ensemble(experiment, n=2, label="pair", stacked=False)
        ensemble.run(show_progress=False)
        runs = store.runs()
        assert {name: run.parent for name, run in runs.items()} == {
            "pair": None,
            "pair_member_0": "pair",
            "pair_member_1": "pair",
        }
        losses = [runs[f"pair_member_{i}"].metrics["first/train/train_loss"] for i in range(2)]
        assert losses[0] != losses[1]

    def test_trials_have_their_settings(self, each_store):
        experiment = planned(each_store.tracker(artifacts=False))
        sweep = mm.Sweep(experiment, {"graph.optimizer.lr": [0.01, 0.1]}, label="lrs", seed=0)
        found = sweep.run(show_progress=False)
        runs = each_store.runs()
        parent = runs.pop("lrs")
        assert {float(run.params["graph.optimizer.lr"]) for run in runs.values()} == {0.01, 0.1}
        assert set(runs) == {"lrs_trial_0", "lrs_trial_1"}
        ((_, best),) = parent.metrics["best/train/val_loss"]
        assert best == pytest.approx(found.best.value, rel=1e-6)

    def test_a_search_within_a_fold_is_below_it(self, tmp_path):
        store = STORES["tensorboard"](tmp_path)
        experiment = planned(store.tracker(artifacts=False), n_epochs=2)
        (fs,) = experiment.ctx.available_featuresets.values()
        cv, space = mm.CVBinding(fs, "train"), {"graph.optimizer.lr": [0.01, 0.1]}
        search = mm.Sweep(experiment, space, label="lr", seed=0, cv=cv, stacked=False)
        cross_validation(experiment, search=search).run(show_fold_progress=False, **QUIET)
        for run_id in ("CV_fold_1", "lr/lr_trial_1_fold_0", "lr_3/lr_trial_0_fold_4"):
            assert list((store.folder / "CV" / run_id).glob("events.out.tfevents.*"))


class TestResume:
    def test_is_the_same_run_with_each_step_once(self, each_store, tmp_path):
        places = {"checkpoints": tmp_path / "checkpoints", "n_epochs": 5}
        want = planned(n_epochs=5).run(**QUIET)
        with pytest.raises(KeyboardInterrupt):
            planned(each_store.tracker(every_seconds=0), late=Dies(), **places).run(**QUIET)
        before = each_store.runs()["cells"]
        assert before.metrics["first/train/train_loss"][-1][0] == 2  # its checkpoint has epoch 1
        resumed = planned(each_store.tracker(), late=Dies(99), **places)
        resumed.run(resume="auto", strict=False, **QUIET)
        (run,) = each_store.runs().values()
        assert (run.run_id, run.status) == (before.run_id, "completed")
        train = by_step(want.get_group_result("first")["train"].to_pandas(), "first/train")
        assert_logged(run.metrics, train | by_step(want["test"]._metrics.to_pandas(), "test"))

    def test_what_was_not_sent_before_is_sent_after(self, store, tmp_path, monkeypatch):
        places = {"checkpoints": tmp_path / "checkpoints", "n_epochs": 4}
        with monkeypatch.context() as lost:  # a process that is killed sends nothing
            lost.setattr(Session, "flush", lambda self: None)
            with pytest.raises(KeyboardInterrupt):
                planned(store.tracker(), late=Dies(), **places).run(**QUIET)
        assert store.runs()["cells"].metrics == {}
        planned(store.tracker(), late=Dies(99), **places).run(resume="auto", strict=False, **QUIET)
        (run,) = store.runs().values()
        assert [step for step, _ in run.metrics["first/train/train_loss"]] == [0, 1, 2, 3]

    def test_folds_resume_below_the_same_run(self, store, tmp_path):
        def new(last):
            experiment = planned(
                store.tracker(artifacts=False), late=Dies(last), checkpoints=tmp_path / "saved"
            )
            return cross_validation(experiment, stacked=False)

        with pytest.raises(KeyboardInterrupt):
            new(2).run(resume="auto", show_fold_progress=False, **QUIET)
        before = store.runs()
        assert set(before) == {"CV", "CV_fold_0"}
        assert before["CV"].status == "interrupted"
        # another epoch of the callback is another config
        Dies.on_epoch_end, saved = (lambda self, **facts: None), Dies.on_epoch_end
        try:
            new(2).run(resume="auto", show_fold_progress=False, **QUIET)
        finally:
            Dies.on_epoch_end = saved
        runs = store.runs()
        assert {n: r.run_id for n, r in before.items()}.items() <= {
            n: r.run_id for n, r in runs.items()
        }.items()
        assert {run.status for run in runs.values()} == {"completed"}
        for i in range(3):
            steps = runs[f"CV_fold_{i}"].metrics["first/train/train_loss"]
            assert [step for step, _ in steps] == [0, 1, 2, 3]


class TestFailures:
    def quiet_run(self, experiment, match):
        want = planned().run(**QUIET).to_pandas()
        with pytest.warns(TrackingWarning, match=match) as caught:
            results = experiment.run(**QUIET)
        assert len(caught) == 1
        np.testing.assert_array_equal(results.to_pandas(), want)

    def test_a_folder_that_cannot_be_written(self, each_store, tmp_path):
        each_store.folder.write_text("a file")
        self.quiet_run(planned(each_store.tracker()), "stopped logging, and the run goes on")

    def test_folds_warn_once(self, store):
        store.folder.write_text("a file")
        cv = cross_validation(planned(store.tracker()), stacked=False)
        with pytest.warns(TrackingWarning) as caught:
            cv.run(show_fold_progress=False, **QUIET)
        assert len(caught) == 1

    def test_nothing_listens(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        started = time.monotonic()
        tracker = MLflowTracker(f"http://127.0.0.1:{port}")
        self.quiet_run(planned(tracker), "refused")
        assert time.monotonic() - started < 10

    @pytest.mark.parametrize("in_folds", [False, pytest.param(True, marks=pytest.mark.slow)])
    def test_a_database_that_breaks_in_the_middle(self, tmp_path, in_folds):
        class Breaks(mm.callbacks.Callback):
            def on_epoch_end(self, *, exec_ctx, **facts):
                if exec_ctx.epoch_idx == 1:
                    connection = sqlite3.connect(tmp_path / "mlflow.db")
                    connection.execute("drop table if exists latest_metrics")
                    connection.commit()
                    connection.close()

        experiment = planned(MLflowTracker(tmp_path, every_seconds=0), late=Breaks())
        if not in_folds:
            self.quiet_run(experiment, "latest_metrics")
            return
        with pytest.warns(TrackingWarning, match="latest_metrics") as caught:
            cross_validation(experiment, stacked=False).run(show_fold_progress=False, **QUIET)
        assert len(caught) == 1

    def test_a_store_that_does_not_answer(self, tmp_path, monkeypatch):
        tracker = TensorBoardTracker(tmp_path, timeout=0.2)
        monkeypatch.setattr(TensorBoardTracker, "open_store", lambda *args: time.sleep(2))
        self.quiet_run(planned(tracker), "no answer within timeout=0.2 seconds")

    @pytest.mark.parametrize("name", ["config_of", "Session.add_all", "logged_figures"])
    def test_a_mistake_of_its_own(self, store, monkeypatch, name):
        def fails(*args):
            raise ZeroDivisionError("of its own")

        for module in ("tracker", "tracked_run"):
            monkeypatch.setattr(f"modularml.tracking.{module}.{name}", fails, raising=False)
        cv = cross_validation(planned(store.tracker()), stacked=False)
        with pytest.warns(TrackingWarning, match="ZeroDivisionError: of its own") as caught:
            cv.run(show_fold_progress=False, **QUIET)
        assert len(caught) == 1

    def test_a_file_that_cannot_be_written_is_left_out(self, store, monkeypatch):
        def fails(self, *args, **kwargs):
            raise OSError("disk is full")

        experiment = planned(store.tracker())
        monkeypatch.setattr(mm.Experiment, "save", fails)
        self.quiet_run(experiment, "logs no experiment .OSError: disk is full")
        (run,) = store.runs().values()
        assert run.status == "completed"
        assert "graph.svg" in run.files


class TestBadInput:
    @pytest.mark.parametrize("name", ["timeout", "every_seconds"])
    def test_times_are_not_negative(self, store, name):
        with pytest.raises(ConfigError, match=name):
            store.tracker(**{name: -1})

    def test_mode_is_checked(self):
        with pytest.raises(ConfigError, match="mode"):
            WandbTracker(mode="disabled")

    def test_two_of_one_label(self, store):
        experiment = planned(store.tracker(), store.tracker())
        with pytest.raises(ConfigError, match="pass label= to one"):
            experiment.run(**QUIET)
        planned(store.tracker(), store.tracker(label="other")).run(**QUIET)
        assert len({run.run_id for run in store.runs().values()}) >= 1

    def test_a_missing_package_is_said_before_the_run(self, store, monkeypatch):
        tracker = store.tracker()
        monkeypatch.setattr(type(tracker), "package", "tensorboard_that_is_missing")
        experiment = planned(tracker)
        with pytest.raises(MissingDependencyError, match="is needed to track runs"):
            experiment.run(**QUIET)
        assert experiment.last_run.status == "failed"

    def test_switched_off(self, store):
        planned(store.tracker(parent="")).run(**QUIET)
        assert store.runs() == {}


def test_names_that_mlflow_refuses():
    assert MLflowTracker.as_key("first/train/score[a=b]") == "first/train/score_a_b_"


def test_a_file_store_of_mlflow(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "mlruns").as_uri()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MLflow's, of its file store
        experiment = planned(MLflowTracker(uri))
        results = experiment.run(**QUIET)
        (run,) = STORES["mlflow"](tmp_path, uri).runs().values()
    train = results.get_group_result("first")["train"].to_pandas()
    test = results["test"]._metrics.to_pandas()
    assert_logged(run.metrics, by_step(train, "first/train") | by_step(test, "test"))
    assert "experiment.exp.mml" in run.files


def test_hooks_of_an_experiment_see_every_run_and_epoch():
    seen = []

    class Sees(ExperimentCallback):
        def on_run_start(self, *, experiment, run):
            seen.append(("start", run.label, run.status))

        def on_epoch_end(self, *, experiment, path, results, epoch):
            seen.append((path, epoch, "train_loss" in results.metric_names()))

        def on_run_end(self, *, experiment, run):
            seen.append(("end", run.label, run.status))

    experiment = planned(Sees(), n_epochs=2)
    experiment.run(**QUIET)
    assert seen == [
        ("start", "cells", "running"),
        ("first/train", 0, True),
        ("first/train", 1, True),
        ("test", 0, False),
        ("end", "cells", "completed"),
    ]
