"""Early stopping: its arithmetic, and what it does to a training."""

import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch

import modularml as mm
from modularml.callbacks import Callback, MetricCallback, MetricResult, ScoreMetric
from modularml.engine.monitoring import direction
from modularml.errors import ConfigError, MetricNotLoggedError
from modularml.io import inspect
from tests.training.test_optimizer import assert_same_state
from tests.worlds import (
    QUIET,
    arrays,
    assert_equal_weights,
    eval_phase,
    experiment,
    featureset,
    graph_of,
    mlp,
    mse,
    train_phase,
    weights,
)


class Script(Callback):
    """Logs prescribed values, one an epoch; None logs nothing."""

    logs = ("score",)

    def __init__(self, values, order=0):
        super().__init__("script", order)
        self.values = values

    def on_epoch_end(self, *, exec_ctx, **facts):
        value = self.values[exec_ctx.epoch_idx]
        return None if value is None else MetricResult("score", value)


def run(values, *, extra=(), **kwargs):
    x, y = arrays(n=20)
    with mm.ExperimentContext().activate():
        graph = graph_of(featureset(x, y), mlp())
        stop = mm.EarlyStopping(monitor="score", **kwargs)
        phase = train_phase(graph, n_epochs=len(values), callbacks=[Script(values), stop, *extra])
        return experiment().run_phase(phase, **QUIET), stop


@pytest.mark.filterwarnings("ignore:.* is NaN in epoch:UserWarning")
class TestArithmetic:
    @pytest.mark.parametrize(
        ("values", "kwargs", "epochs", "best"),
        [
            ([5, 4, 3, 2, 1], {"patience": 1}, 5, (4, 1)),
            ([5, 4, 4, 3, 2], {"patience": 1}, 3, (1, 4)),
            ([5, 6, 4, 6, 6, 1], {"patience": 2}, 5, (2, 4)),
            ([1, 2, 3, 3, 2], {"patience": 1, "mode": "max"}, 4, (2, 3)),
            ([5, 4.9, 4.8, 4.7, 1], {"patience": 2, "min_delta": 0.5}, 3, (0, 5)),
            ([5, 4.5, 4.0, 3.5], {"patience": 1, "min_delta": 0.4}, 4, (3, 3.5)),
            ([1, 2, 3], {"patience": 0}, 2, (0, 1)),
            ([math.nan, math.nan, 3, 2, 4], {"patience": 3}, 5, (3, 2)),
            ([3, math.nan, math.nan, 1], {"patience": 2}, 3, (0, 3)),
            ([math.nan] * 5, {"patience": 2}, 2, (None, None)),
            ([3, -math.inf, 1], {"patience": 2}, 3, (1, -math.inf)),
            ([3, None, 2, None, 2.5, None, 2.6, 1], {"patience": 2}, 7, (2, 2)),
        ],
    )
    def test_when_it_stops(self, values, kwargs, epochs, best):
        results, stop = run(values, **kwargs)
        assert results.n_epochs == epochs
        assert (stop.best_epoch, stop.best_value) == best
        stopped = epochs < len(values) or stop.stopped_epoch is not None
        assert stop.stopped_epoch == (epochs - 1 if stopped else None)
        said = results.callbacks(kind="early_stopping").one()
        assert (said.best_epoch, said.best_value) == best
        assert said.stopped_epoch == stop.stopped_epoch
        assert said.monitor == "score"

    @pytest.mark.parametrize(
        ("reducer", "best"), [("mean", 2.0), ("sum", 4.0), ("last", 3.0), ("first", 1.0)]
    )
    def test_several_values_an_epoch(self, reducer, best):
        class Twice(Callback):
            logs = ("score",)

            def on_epoch_end(self, **facts):
                return [MetricResult("score", 1.0), MetricResult("score", 3.0)]

        x, y = arrays(n=20)
        graph = graph_of(featureset(x, y), mlp())
        stop = mm.EarlyStopping(monitor="score", reducer=reducer)
        experiment().run_phase(train_phase(graph, callbacks=[Twice(), stop]), **QUIET)
        assert stop.best_value == best

    @pytest.mark.parametrize("reducer", ["mean", "sum", "last", "first"])
    def test_values_of_batches(self, reducer):
        class Batches(Callback):
            def on_batch_end(self, *, exec_ctx, **facts):
                return MetricResult("score", float(exec_ctx.batch_idx + 1))

        x, y = arrays(n=48)
        graph = graph_of(featureset(x, y), mlp())
        stop = mm.EarlyStopping(monitor="score", reducer=reducer)
        experiment().run_phase(train_phase(graph, callbacks=[Batches(), stop]), **QUIET)
        assert stop.best_value == {"mean": 2.0, "sum": 6.0, "last": 3.0, "first": 1.0}[reducer]

    def test_bad_arguments(self):
        for kwargs in (
            {"mode": "lowest"},
            {"patience": -1},
            {"patience": 1.5},
            {"min_delta": -0.1},
            {"min_delta": math.nan},
            {"reducer": "median"},
        ):
            with pytest.raises(ConfigError, match=next(iter(kwargs))):
                mm.EarlyStopping(**kwargs)

    def test_config_round_trip(self):
        made = mm.EarlyStopping(
            monitor="m", mode="max", patience=3, min_delta=0.1, restore_best=True, reducer="mean"
        )
        again = mm.EarlyStopping.from_config(made.get_config())
        assert again.get_config() == made.get_config()
        assert again.restore_best
        assert again.execution_order == 1


class TestDirection:
    """Whose greater values are better, by the metric and not by the mode."""

    @staticmethod
    def scripted(name, values, **kwargs):
        x, y = arrays(n=20)
        with mm.ExperimentContext().activate():
            graph = graph_of(featureset(x, y), mlp())

            def value(*, exec_ctx, **facts):
                return values[exec_ctx.epoch_idx]

            log = MetricCallback(name, value)
            stop = mm.EarlyStopping(monitor=name, patience=9, restore_best=True, **kwargs)
            phase = train_phase(graph, n_epochs=len(values), callbacks=[log, stop])
            results = experiment().run_phase(phase, **QUIET)
        return results, stop

    @pytest.mark.parametrize(
        "name", ["val_r2", "accuracy", "val_roc_auc", "t_neg_log_loss", "val_acc"]
    )
    def test_the_default_mode_gives_way_to_the_metric(self, name):
        with pytest.warns(
            UserWarning, match=f"mode='min', but '{name}' is better when it is greater"
        ):
            results, stop = self.scripted(name, [0.1, 0.9, 0.5])
        assert (stop.best_epoch, results.kept_epoch) == (1, 1)

    @pytest.mark.parametrize("name", ["val_loss", "val_rmse", "my_mean_absolute_error", "score"])
    def test_errors_and_unknown_names_are_minimised_without_a_word(self, name):
        assert self.scripted(name, [0.1, 0.9, 0.5])[1].best_epoch == 0

    def test_an_explicit_max_is_honoured_and_warned_of(self):
        with pytest.warns(
            UserWarning, match="'val_rmse' is better when it is lower.*used as given"
        ):
            assert self.scripted("val_rmse", [0.1, 0.9, 0.5], mode="max")[1].best_epoch == 1
        assert self.scripted("val_r2", [0.1, 0.9, 0.5], mode="max")[1].best_epoch == 1

    @pytest.mark.parametrize("score", ["r2", "named", "MeanAbsoluteError", "torch_r2"])
    def test_evaluations_know_their_metrics(self, score):
        def named(true, out):
            return -float(((true - out) ** 2).mean())

        named.greater_is_better = True
        score = {"named": named, "torch_r2": "R2Score"}.get(score, score)
        x, y = arrays(n=60)
        graph = graph_of(featureset(x, y), mlp(), lr=0.5)
        metric = ScoreMetric(score, name="watched")
        watch = mm.Evaluation(eval_phase=eval_phase(graph), metrics=[metric])
        stop = mm.EarlyStopping(monitor="watched", patience=9, restore_best=True)
        phase = train_phase(graph, n_epochs=6, callbacks=[watch, stop])
        greater = score != "MeanAbsoluteError"
        with pytest.warns(UserWarning, match="mode='max' is used") if greater else nullcontext():
            results = experiment().run_phase(phase, **QUIET)
        values = results.to_pandas()["watched"]
        best = values.max() if greater else values.min()
        assert stop.best_value == best
        assert results.figures()["watched"] == best

    def test_the_mode_outlives_an_interruption(self):
        one, other = (mm.EarlyStopping(monitor="val_r2") for _ in range(2))
        one._patience.mode = "max"
        one._patience.update(0.5, 0)
        other.set_state(one.get_state())
        assert other._patience.update(0.7, 1)


class TestFigures:
    def test_kept_last_and_best_are_those_of_their_epochs(self):
        results, _ = run([3, 1, 2], patience=9, restore_best=True)
        assert (results.kept_epoch, results.best_epoch) == (1, 1)
        assert [results.figures(at)["score"] for at in ("kept", "last", "best")] == [1, 2, 1]
        results, _ = run([3, 1, 2], patience=9)
        assert [results.figures(at)["score"] for at in ("kept", "last", "best")] == [2, 2, 1]
        with pytest.raises(ConfigError, match="at must be"):
            results.figures("first")

    def test_files_show_the_figures_of_the_weights_that_they_hold(self, tmp_path):
        x, y = arrays(n=20)
        graph = graph_of(featureset(x, y), mlp())
        stop = mm.EarlyStopping(monitor="score", restore_best=True)
        phase = train_phase(graph, n_epochs=3, callbacks=[Script([3, 1, 2]), stop])
        exp = experiment()
        results = exp.run_phase(phase, **QUIET)
        shown = inspect(exp.save(tmp_path / "e"))["runs"][0]["metrics"]
        assert shown == {f"train.{name}": value for name, value in results.figures().items()}
        assert shown["train.score"] == 1


class TestWhoLogs:
    def test_nan_is_told_of(self):
        x, y = arrays(n=20)
        log = MetricCallback("val_loss", lambda **facts: math.nan)
        phase = train_phase(
            graph_of(featureset(x, y), mlp()), n_epochs=1, callbacks=[log, mm.EarlyStopping()]
        )
        with pytest.warns(UserWarning, match="'val_loss' is NaN in epoch 0"):
            results = experiment().run_phase(phase, **QUIET)
        assert math.isnan(results.to_pandas()["val_loss"].iloc[0])

    def test_nobody(self):
        x, y = arrays(n=20)
        graph = graph_of(featureset(x, y), mlp())
        phase = train_phase(graph, n_epochs=5, callbacks=[mm.EarlyStopping(monitor="val_los")])
        exp = experiment()
        with pytest.raises(MetricNotLoggedError, match=r"val_los.*train_loss"):
            exp.run_phase(phase, **QUIET)
        assert (exp.last_run.status, exp.last_run.results.labels) == ("failed", [])

    def test_train_loss_is_always_there(self):
        x, y = arrays(n=20)
        graph = graph_of(featureset(x, y), mlp())
        stop = mm.EarlyStopping(monitor="train_loss", patience=2)
        results = experiment().run_phase(train_phase(graph, n_epochs=3, callbacks=[stop]), **QUIET)
        assert stop.best_value == results.metrics().at(
            name="train_loss", epoch=stop.best_epoch, batch=None
        )

    def test_an_evaluation_every_two_epochs(self):
        x, y = arrays(n=40)
        fs = featureset(x, y)
        fs.split_random({"train": 0.5, "val": 0.5})
        graph = graph_of(fs, mlp(), "sgd", lr=0.0)
        evaluation = mm.Evaluation.from_split(
            "val", split="val", every_n_epochs=2, metrics=[mm.EvalLossMetric(loss=mse())]
        )
        stop = mm.EarlyStopping(patience=1)
        phase = train_phase(graph, n_epochs=9, split="train", callbacks=[evaluation, stop])
        results = experiment().run_phase(phase, **QUIET)
        assert results.n_epochs == 4
        assert stop.best_epoch == 1
        assert results.metrics().where(name="val_loss").shape[1] == 2

    def test_a_callback_that_logs_too_late_is_named(self):
        x, y = arrays(n=20)
        graph = graph_of(featureset(x, y), mlp())
        late = Script([1.0] * 5, order=3)
        phase = train_phase(graph, n_epochs=5, callbacks=[late, mm.EarlyStopping(monitor="score")])
        with pytest.raises(ConfigError, match=r"score.*script.*execution_order"):
            experiment().run_phase(phase, **QUIET)

    def test_a_callback_that_logs_before_however_listed(self):
        x, y = arrays(n=20)
        graph = graph_of(featureset(x, y), mlp())
        stop = mm.EarlyStopping(monitor="loss2", patience=1)
        log = MetricCallback("loss2", lambda **facts: 1.0)
        phase = train_phase(graph, n_epochs=5, callbacks=[stop, log])
        assert experiment().run_phase(phase, **QUIET).n_epochs == 2


class TestRestoring:
    def run(self, values, *, restore=True, recording="all", checkpointing=None, patience=2):
        x, y = arrays(n=40)
        mine = mlp()
        graph = graph_of(featureset(x, y), mine, "adam", lr=0.01)
        states = []

        class Watch(Callback):
            def on_epoch_end(self, **facts):
                states.append((weights(mine), graph.get_state()))

        stop = mm.EarlyStopping(monitor="score", patience=patience, restore_best=restore)
        phase = train_phase(
            graph,
            n_epochs=len(values),
            callbacks=[Script(values), Watch(), stop],
            result_recording=recording,
            checkpointing=checkpointing,
        )
        results = experiment().run_phase(phase, **QUIET)
        return graph, mine, states, results, stop

    @pytest.mark.parametrize("values", [[3, 1, 2, 2, 0], [3, 1, 2], [1, 2, 3], [3, 2, 1]])
    def test_best_weights_and_moments_exactly(self, values):
        graph, mine, states, results, stop = self.run(values)
        best = int(np.argmin(values[: results.n_epochs]))
        assert stop.best_epoch == best
        assert_equal_weights(states[best][0], mine)
        assert_same_state(graph.get_state(), states[best][1])
        assert results.callbacks(kind="early_stopping").one().restored

    def test_not_asked(self):
        _, mine, states, results, _ = self.run([3, 1, 2, 2], restore=False)
        assert_equal_weights(states[-1][0], mine)
        assert not results.callbacks(kind="early_stopping").one().restored

    @pytest.mark.filterwarnings("ignore:.* is NaN in epoch:UserWarning")
    def test_nothing_was_ever_best(self):
        _, mine, states, results, _ = self.run([math.nan] * 4)
        assert_equal_weights(states[-1][0], mine)
        assert not results.callbacks(kind="early_stopping").one().restored

    def test_with_checkpointing(self):
        kept = mm.Checkpointing(save_on="epoch_end")
        graph, mine, states, _, _ = self.run([3, 1, 2, 2, 0], checkpointing=kept)
        assert kept.saved_keys == [0, 1, 2, 3]
        for epoch, (_, state) in enumerate(states):
            graph_state = {k: v for k, v in kept.get_state(epoch).items() if k != "run"}
            assert_same_state(graph_state, state)
        assert_equal_weights(states[1][0], mine)
        graph.set_state(kept.get_state(3))
        assert_equal_weights(states[3][0], mine)

    @pytest.mark.parametrize("recording", ["all", "last", "none"])
    def test_last_means_the_best_epoch(self, recording):
        _, _, _, results, _ = self.run([3, 1, 2, 2, 0], recording=recording)
        found = {c.epoch_idx for c in results.execution_contexts()}
        assert found == {"all": {0, 1, 2, 3}, "last": {1}, "none": set()}[recording]

    def test_last_without_restoring(self):
        _, _, _, results, _ = self.run([3, 1, 2, 2, 0], restore=False, recording="last")
        assert {c.epoch_idx for c in results.execution_contexts()} == {3}

    def test_used_again_it_starts_afresh(self):
        x, y = arrays(n=20)
        graph = graph_of(featureset(x, y), mlp())
        stop = mm.EarlyStopping(monitor="score", patience=1)
        phase = train_phase(graph, n_epochs=4, callbacks=[Script([1, 2, 3, 4]), stop])
        exp = experiment()
        assert exp.run_phase(phase, **QUIET).n_epochs == 2
        assert exp.run_phase(phase, **QUIET).n_epochs == 2
        assert stop.best_epoch == 0

    def test_a_state_dict_of_torch_agrees(self):
        graph, _, states, _, stop = self.run([3, 1, 2, 2, 0])
        moments = graph.optimizer.instance.state_dict()["state"]
        want = states[stop.best_epoch][1]["optimizer"]["moments"]["net.0.weight"]["exp_avg"]
        assert torch.equal(moments[0]["exp_avg"], torch.tensor(want))


@pytest.mark.parametrize("name", ["r2", "R2", "AUC", "c_index", "kappa", "neg_my_error", "dice"])
def test_metrics_that_are_better_when_greater_are_known_by_name(name):
    assert direction(f"val_{name}", []) is True


@pytest.mark.parametrize("name", ["nll", "my_error", "mape", "MAE", "MeanAbsoluteError", "loss"])
def test_metrics_that_are_better_when_lower_are_known_by_name(name):
    assert direction(f"val_{name}[cell-1]", []) is False


@pytest.mark.parametrize("name", ["score", "thing", "neg", "brier_score"])
def test_the_direction_of_other_names_is_not_guessed(name):
    assert direction(f"val_{name}", []) is None
