"""Sweeps, held against Optuna by hand, trainings by hand, and sweeps that were never stopped."""

from __future__ import annotations

import itertools
import math
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import modularml as mml
from modularml.engine.stacked import SideBySide
from modularml.errors import (
    AuditError,
    ConfigError,
    ExecutionError,
    MetricNotLoggedError,
    UnknownNameError,
)
from modularml.io.randomness import derived_seed, random_states
from modularml.models.torch import SequentialMLP
from modularml.space import choice, float_, log_float
from modularml.strategies import SelectionWarning, TrialFailedWarning
from modularml.strategies.sweeps.studies import TrialQueue, register_study, report
from modularml.strategies.variants.variant import Variant, variant_experiment
from tests.clusters import NAMES, cluster
from tests.sweep_worlds import world
from tests.worlds import QUIET, arrays, featureset, mse

optuna = pytest.importorskip("optuna")

LR = "graph.optimizer.lr"
WIDTH = "nodes.net.hidden_dim"
RANGES = {LR: mml.space.log_float(1e-3, 1e-1), WIDTH: [2, 4, 8]}
GRID = {LR: [0.001, 0.01, 0.1], WIDTH: [2, 4]}


def sweep(own=None, space=None, **kwargs) -> mml.Sweep:
    kwargs = {"seed": 3, **kwargs}
    return mml.Sweep(own or world(stops=False), GRID if space is None else space, **kwargs)


def run(*args, **kwargs) -> mml.SweepResults:
    return sweep(*args, **kwargs).run(show_progress=False)


def by_hand(own: mml.Experiment, number: int, changes: dict) -> mml.Experiment:
    """Train what a trial of a sweep trains."""
    seed = derived_seed(3, "trial", number) % 2**32
    new = variant_experiment(own, own.execution_plan, Variant("t", seed, changes=changes), "t")
    new.run(**QUIET)
    return new


def last(own: mml.Experiment, name: str = "val_loss", phase: str = "train") -> float:
    return float(own.history[-1].results[phase].to_pandas()[name].iloc[-1])


def values(results: mml.SweepResults) -> list[float]:
    return results.to_pandas()["value"].tolist()


# ------------------------------------------------------------------------------- values and space


def test_a_grid_is_every_combination_trained_as_by_hand():
    own = world(stops=False)
    results = run(own)
    frame = results.to_pandas()
    pairs = list(itertools.product(*GRID.values()))
    assert list(zip(frame[LR], frame[WIDTH], strict=True)) == pairs
    expected = [
        last(by_hand(own, i, {LR: lr, WIDTH: width})) for i, (lr, width) in enumerate(pairs)
    ]
    assert frame["value"].tolist() == expected
    best = int(np.argmin(expected))
    assert results.best.number == best
    assert results.best.value == expected[best]
    assert results.best.params == dict(zip(GRID, pairs[best], strict=True))
    assert (frame["state"] == "complete").all()
    assert (frame["seconds"] > 0).all()


def test_a_given_sampler_proposes_what_it_proposes_to_optuna():
    results = run(space=RANGES, n_trials=6, sampler=optuna.samplers.RandomSampler(seed=5))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=5))
    for _ in range(6):
        trial = study.ask()
        trial.suggest_float(LR, 1e-3, 1e-1, log=True)
        trial.suggest_categorical(WIDTH, [2, 4, 8])
        study.tell(trial, 0.0)
    assert [t.params for t in results.study.trials] == [t.params for t in study.trials]


def test_the_same_seed_gives_the_same_sweep_and_another_one_another():
    own = world(stops=False)
    frames = [
        run(own, RANGES, n_trials=12, seed=seed).to_pandas().drop(columns="seconds")
        for seed in (1, 1, 2)
    ]
    pd.testing.assert_frame_equal(frames[0], frames[1], check_exact=True)
    assert frames[0][LR].nunique() == 12
    assert not set(frames[0][LR]) & set(frames[2][LR])


def test_fewer_trials_than_combinations_are_proposed_by_tpe():
    own = world(stops=False)
    assert len(run(own, n_trials=4)) == 4
    assert len(run(own, n_trials=100)) == 6


def test_the_experiment_its_rows_and_random_states_are_unchanged():
    own = world(stops=False)
    weights, states = own.model_graph.get_node("net").model.get_weights(), random_states()
    run(own)
    for name, value in own.model_graph.get_node("net").model.get_weights().items():
        np.testing.assert_array_equal(value, weights[name])
    assert repr(random_states()) == repr(states)
    assert own.history == []
    assert len(own.execution_plan.phases["train"].callbacks) == 1


def test_the_seed_is_a_setting_and_weights_differ_between_trials():
    own = world(stops=False)
    frame = run(own, {"seed": [7, 8], LR: [0.01, 0.1]}).to_pandas()
    expected = [
        last(by_hand(own, 0, {LR: lr, "seed": seed})) for seed in (7, 8) for lr in (0.01, 0.1)
    ]
    assert frame["value"].tolist() == expected
    alike = run(own, {LR: [0.01], "phases.train.on_nonfinite": ["raise", "stop"]})
    assert len(set(values(alike))) == 2


def test_choices_of_objects_are_named_in_the_study_and_given_as_they_are():
    models = [SequentialMLP(hidden_dim=3), SequentialMLP(hidden_dim=9, n_layers=3)]
    results = run(space={"nodes.net.model": models, "graph.optimizer": ["adam", "sgd"]})
    assert {type(t.params["nodes.net.model"]) for t in results.study.trials} == {str}
    assert results.best.params["nodes.net.model"] in models
    assert results.best_experiment().model_graph.get_node("net").model.hidden_dim in (3, 9)


# ------------------------------------------------------------------------------------- objective


@pytest.mark.parametrize(
    ("objective", "direction", "phase", "name"),
    [
        ("val_loss", "minimize", "train", "val_loss"),
        ("train_loss", "minimize", "train", "train_loss"),
        ("train.val_loss", "minimize", "train", "val_loss"),
        ("watch_r2", "maximize", "train", "watch_r2"),
    ],
)
def test_the_objective_is_a_logged_metric(objective, direction, phase, name):
    own = world(stops=False)
    results = run(own, {LR: [0.1, 0.01]}, objective=objective, direction=direction)
    expected = [last(by_hand(own, i, {LR: lr}), name, phase) for i, lr in enumerate((0.1, 0.01))]
    assert values(results) == expected
    best = max if direction == "maximize" else min
    assert results.best.value == best(expected)


def test_the_objective_is_a_loss_of_an_evaluation_phase_or_a_function():
    own = world(stops=False)
    of_phase = run(own, objective="eval.mse_net")

    def mean_error(experiment: mml.Experiment) -> float:
        fs = experiment.ctx.get_node(label="data")
        rows = fs.get_split("val")
        error = experiment.predict(rows).ravel() - rows.get_targets(fmt="numpy").ravel()
        return float(np.mean(error**2))

    by_function = run(own, objective=mean_error)
    np.testing.assert_allclose(values(of_phase), values(run(own)), rtol=1e-6)
    np.testing.assert_allclose(values(by_function), values(of_phase), rtol=1e-5)


def test_the_objective_is_a_metric_of_a_group(caplog):
    fs = featureset(*arrays(60), cell=np.arange(60) % 2)
    fs.split_random({"train": 0.8, "val": 0.2}, seed=0)
    mml.ModelGraph([mml.ModelNode("net", SequentialMLP(), fs)], mml.Optimizer("adam"))
    own = mml.Experiment.from_active_context("groups", audit="off")
    own.model_graph.build()
    watch = mml.Evaluation.from_split("watch", split="val", metrics=["mse"], group_by="cell")
    sampler = mml.SimpleSampler(batch_size=16, shuffle=True, seed=3)
    own.execution_plan.add_phase(
        mml.TrainPhase.from_split(
            "v1.0", split="train", sampler=sampler, losses=[mse()], callbacks=[watch]
        )
    )
    with caplog.at_level("INFO", "modularml.strategies.sweeps.sweep"):
        results = run(own, {LR: [0.1, 0.01]}, objective="watch_mse[1]")
    expected = [
        last(by_hand(own, i, {LR: lr}), "watch_mse[1]", "v1.0") for i, lr in enumerate((0.1, 0.01))
    ]
    assert values(results) == expected
    assert f"trial 1 of 2: watch_mse[1] {expected[1]:.5g}, best {min(expected):.5g}" in caplog.text


def test_the_objective_is_a_metric_of_an_evaluation_phase():
    own = world(stops=False)
    own.execution_plan.add_phase(mml.EvalPhase.from_split("last", split="val", metrics=["r2"]))
    results = run(own, objective="last.r2", direction="maximize")
    np.testing.assert_allclose(
        values(results), values(run(own, objective="watch_r2", direction="maximize")), rtol=1e-6
    )
    with pytest.raises(ConfigError, match="direction='maximize'"):
        sweep(own, objective="last.r2")


def test_the_value_is_that_of_the_weights_that_were_kept():
    own = world(n_epochs=30)
    plan = own.execution_plan.phases["train"]
    plan.callbacks[1] = mml.EarlyStopping(patience=1, restore_best=True)
    results = run(own, {LR: [0.9]})
    curve = results.best_experiment().history[-1].results["train"].to_pandas()["val_loss"]
    assert results.best.value == curve.min() < curve.iloc[-1]


def test_trials_that_are_not_finite_fail_with_a_warning_that_counts_and_are_never_the_best():
    def objective(experiment: mml.Experiment) -> float:
        rate = experiment.model_graph.optimizer.kwargs["lr"]
        return {0.01: math.nan, 0.02: -math.inf}.get(rate, rate)

    with pytest.warns(TrialFailedWarning, match=r"2 trials .*trial 0: the objective is not finite"):
        results = run(space={LR: [0.01, 0.2, 0.02, 0.1]}, objective=objective)
    assert results.best.number == 3
    frame = results.to_pandas()
    assert frame["state"].tolist() == ["failed", "complete", "failed", "complete"]
    assert frame["error"].tolist() == ["the objective is NaN", "", "the objective is -inf", ""]
    assert "2 failed" in repr(results)


def test_a_trial_that_fails_loses_itself_only():
    with pytest.warns(TrialFailedWarning, match="1 trials .*n_epochs must be an int"):
        results = run(space={"phases.train.n_epochs": [2, 0, 1]})
    assert results.to_pandas()["state"].tolist() == ["complete", "failed", "complete"]
    with pytest.raises(ExecutionError, match="all trials of 'sweep' failed") as caught:
        run(space={"phases.train.n_epochs": [0, -1]}, own=world_again())
    assert isinstance(caught.value.__cause__, ConfigError)


def world_again(**kwargs) -> mml.Experiment:
    with mml.ExperimentContext(registration_policy="error").activate():
        return world(stops=False, **kwargs)


# --------------------------------------------------------------------------------------- pruning


class Every(optuna.pruners.BasePruner):
    """Prunes trials of these numbers once they have reported a step, and notes all steps."""

    def __init__(self, numbers, step: int) -> None:
        self.numbers, self.step, self.steps = numbers, step, []

    def prune(self, study, trial) -> bool:
        self.steps.append((trial.number, trial.last_step))
        return trial.number in self.numbers and trial.last_step >= self.step


def test_pruning_by_epoch_reports_the_metric_and_ends_the_phase():
    own, pruner = world(n_epochs=5, stops=False), Every({1, 2}, 2)
    results = run(own, {LR: [0.01, 0.02, 0.03]}, pruner=pruner)
    assert results.to_pandas()["state"].tolist() == ["complete", "pruned", "pruned"]
    assert pruner.steps == [(0, e) for e in range(5)] + [(n, e) for n in (1, 2) for e in range(3)]
    for number, lr in enumerate((0.01, 0.02, 0.03)):
        curve = by_hand(own, number, {LR: lr}).history[-1].results["train"].to_pandas()
        reported = results.study.trials[number].intermediate_values
        assert list(reported.values()) == curve["val_loss"].tolist()[: len(reported)]
        assert results.study.trials[number].value == curve["val_loss"].iloc[len(reported) - 1]
    assert results.best.number == 0
    assert results.get_experiment(1).history[-1].results["train"].n_epochs == 5


def test_pruning_by_fold_reports_the_mean_so_far():
    own, pruner = world(stops=False), Every({1}, 1)
    cv = {"bindings": mml.CVBinding("data", ["train", "val"]), "n_folds": 3}
    results = run(own, {LR: [0.01, 0.1]}, pruner=pruner, cv=cv)
    assert results.to_pandas()["state"].tolist() == ["complete", "pruned"]
    assert pruner.steps == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    reported = list(results.study.trials[0].intermediate_values.values())
    assert reported[-1] == pytest.approx(results.best.value)
    unpruned = run(own, {LR: [0.01, 0.1]}, cv=cv)
    assert unpruned.best.value == pytest.approx(min(values(unpruned)))
    assert values(unpruned)[0] == results.best.value


def test_the_median_pruner_prunes_and_finds_the_same_best():
    own = world(n_epochs=8, stops=False)
    space = {LR: [0.1, 0.05, 0.001, 0.0001, 0.08]}
    pruner = optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=1)
    pruned, all_run = run(own, space, pruner=pruner), run(own, space)
    assert (pruned.to_pandas()["state"] == "pruned").sum() >= 2
    assert pruned.best == all_run.best


@pytest.mark.parametrize("objective", ["eval.mse_net", lambda experiment: 1.0])
def test_a_pruner_without_values_before_the_end_names_the_remedy(objective):
    with pytest.raises(ConfigError, match=r"pass cv= to prune by fold, or omit pruner"):
        run(objective=objective, pruner=optuna.pruners.MedianPruner())


def test_pruning_by_epoch_in_workers_needs_a_shared_storage():
    with pytest.raises(ConfigError, match=r"storage='sweep.db', or n_jobs=1"):
        sweep(pruner=optuna.pruners.MedianPruner(), n_jobs=2)


# ----------------------------------------------------------------------------------------- folds


def test_trials_in_folds_have_the_mean_that_a_cross_validation_has():
    own = world(stops=False)
    binding = mml.CVBinding("data", ["train", "val"])
    results = run(own, {LR: [0.01, 0.1]}, cv={"bindings": binding, "n_folds": 3, "seed": 5})
    cv = mml.CrossValidation(bindings=binding, n_folds=3, seed=5, experiment=own)
    expected = []
    for number, lr in enumerate((0.01, 0.1)):
        losses = []
        for fold in cv.folds:
            seed = derived_seed(3, "trial", number) % 2**32
            seed = derived_seed(seed, fold.label) % 2**32
            variant = Variant(fold.label, seed, sides=fold.sides, changes={LR: lr})
            new = variant_experiment(own, own.execution_plan, variant, fold.label)
            new.run(**QUIET)
            losses.append(last(new))
        expected.append(np.mean(losses))
    np.testing.assert_allclose(values(results), expected, rtol=1e-12)
    given = run(own, {LR: [0.01, 0.1]}, cv=cv)
    assert values(given) == values(results)
    trained = results.best_experiment()
    assert len(trained.ctx.get_node(label="data").get_split("train")) == 48


def test_held_out_scores_are_those_of_the_folds():
    own = world(stops=False)
    cv = mml.CVBinding("data", ["train", "val"])
    by_score = run(own, objective="val.r2", direction="maximize", cv=cv)
    logged = run(own, objective="watch_r2", direction="maximize", cv=cv)
    np.testing.assert_allclose(values(by_score), values(logged), rtol=1e-5)


def test_early_stopping_on_the_rows_that_judge_is_warned_of():
    own = world()
    cv = mml.CVBinding("data", ["train", "val"])
    with pytest.warns(SelectionWarning, match="Trials are judged by these rows"):
        run(own, {LR: [0.01]}, cv=cv)


def test_a_fold_that_fails_fails_its_trial():
    own = world(stops=False)
    cv = {"bindings": mml.CVBinding("data", ["train", "val"]), "n_folds": 2}

    def objective(experiment: mml.Experiment) -> float:
        is_wide = experiment.model_graph.get_node("net").model.hidden_dim == 4
        return math.nan if is_wide and "fold_1" in experiment.label else 1.0

    with pytest.warns(TrialFailedWarning, match="1 trials"):
        results = run(own, {WIDTH: [2, 4]}, objective=objective, cv=cv)
    assert results.to_pandas()["state"].tolist() == ["complete", "failed"]


# ------------------------------------------------------------------------------- other frameworks


def test_estimators_are_swept_as_a_grid_search_of_scikit_learn_does():
    x, y = arrays(80)
    fs = featureset(x, y)
    fs.split_random({"train": 0.8, "val": 0.2}, seed=0)
    pipe = make_pipeline(StandardScaler(), Ridge())
    mml.ModelGraph([mml.ModelNode("pipe", pipe, fs)])
    own = mml.Experiment.from_active_context("ridge", audit="off")
    own.execution_plan.add_phase(mml.FitPhase.from_split("fit", split="train"))
    alphas = [0.1, 10.0, 1000.0]
    results = run(
        own,
        {"nodes.pipe.ridge__alpha": alphas},
        objective="val.mse",
        cv={"bindings": mml.CVBinding(fs, ["train", "val"]), "n_folds": 4, "seed": 1},
    )
    cv = mml.CrossValidation(bindings=mml.CVBinding(fs, ["train", "val"]), n_folds=4, seed=1)
    splits = [(f.sides["data"].train, f.sides["data"].val) for f in cv.folds]
    search = GridSearchCV(
        pipe, {"ridge__alpha": alphas}, scoring="neg_mean_squared_error", cv=splits
    ).fit(x, y.ravel())
    np.testing.assert_allclose(values(results), -search.cv_results_["mean_test_score"], rtol=1e-4)
    assert results.best.params == {"nodes.pipe.ridge__alpha": search.best_params_["ridge__alpha"]}


def test_models_of_keras_are_swept_too():
    pytest.importorskip("tensorflow")
    from modularml.models.tensorflow import SequentialMLP

    own = world(model=SequentialMLP(hidden_dim=4), stops=False)
    results = run(own, {LR: [0.001, 0.1], WIDTH: [2, 5]})
    assert len(set(values(results))) == 4
    frame = results.to_pandas()
    for number in (0, 3):
        new = results.get_experiment(number)
        rates = new.model_graph.optimizer.learning_rates["default"]
        assert rates == pytest.approx(frame[LR][number])
        assert new.model_graph.get_node("net").model.hidden_dim == frame[WIDTH][number]
        assert last(new) == pytest.approx(frame["value"][number], rel=1e-5)


# --------------------------------------------------------------------------------- best experiment


def test_the_best_experiment_is_returned_and_retrained_bit_for_bit():
    own = world(stops=False)
    results = run(own, RANGES, n_trials=5)
    kept = results.best_experiment()
    assert results.best_experiment() is kept
    results._best = None
    again = results.best_experiment()
    assert again is not kept
    for name in ("val_loss", "train_loss", "watch_r2"):
        assert last(again, name) == last(kept, name)
    assert last(again) == results.best.value
    one, other = (e.model_graph.get_node("net").model.get_weights() for e in (kept, again))
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])
    worst = int(np.argmax(values(results)))
    assert last(results.get_experiment(worst)) == max(values(results))
    with pytest.raises(UnknownNameError, match="trial"):
        results.get_experiment(99)


# ----------------------------------------------------------------------------------------- build


def build(trial):
    with mml.ExperimentContext(registration_policy="error").activate():
        rate = trial.suggest_float("lr", 1e-3, 1e-1, log=True)
        width = trial.suggest_int("width", 2, 8)
        optimizer = mml.Optimizer("adam", opt_kwargs={"lr": rate})
        return world(model=SequentialMLP(hidden_dim=width), optimizer=optimizer, stops=False)


def test_a_function_builds_the_experiment_of_each_trial():
    results = mml.Sweep(build, n_trials=5, seed=3).run(show_progress=False)
    kept = results.best_experiment()
    assert results.best.params == results.study.best_params
    assert kept.model_graph.optimizer.kwargs == {"lr": results.best.params["lr"]}
    results._best = None
    again = results.best_experiment()
    assert last(again) == last(kept) == results.best.value
    assert again is not kept
    assert len(set(values(results))) == 5
    once_more = mml.Sweep(build, n_trials=5, seed=3).run(show_progress=False)
    assert values(once_more) == values(results)


def test_a_function_may_prune_run_folds_and_report_errors():
    def pruned(trial):
        trial.suggest_float("x", 0, 1)
        if trial.number == 1:
            raise optuna.TrialPruned
        return world_again()

    results = mml.Sweep(pruned, n_trials=3, seed=1).run(show_progress=False)
    assert results.to_pandas()["state"].tolist() == ["complete", "pruned", "complete"]
    own = world()
    cv = {"bindings": mml.CVBinding("data", ["train", "val"]), "n_folds": 2}
    results = mml.Sweep(build, n_trials=2, seed=1, cv=cv).run(show_progress=False)
    assert (results.to_pandas()["state"] == "complete").all()
    pruner = Every({1}, 0)
    results = mml.Sweep(build, n_trials=2, seed=1, pruner=pruner).run(show_progress=False)
    assert results.to_pandas()["state"].tolist() == ["complete", "pruned"]
    assert pruner.steps == [(0, 0), (0, 1), (1, 0)]
    with pytest.raises(ExecutionError, match="must return an Experiment"):
        mml.Sweep(lambda trial: None, n_trials=1).run(show_progress=False)
    own.run(**QUIET)
    with pytest.raises(ExecutionError, match="has run already"):
        mml.Sweep(lambda trial: own, n_trials=1).run(show_progress=False)
    with pytest.raises(MetricNotLoggedError, match="val_los"):
        mml.Sweep(build, n_trials=1, objective="val_los").run(show_progress=False)


# --------------------------------------------------------------------------------------- storage


def test_a_finished_sweep_is_read_back_and_more_trials_are_added(tmp_path):
    own, storage = world(stops=False), tmp_path / "sweep.db"
    first = run(own, RANGES, n_trials=3, storage=storage)
    frame, times = first.to_pandas(), [t.datetime_complete for t in first.study.trials]
    with pytest.raises(ConfigError, match=r"3 trials of this sweep; run\(resume=True\)"):
        run(own, RANGES, n_trials=3, storage=storage)
    again = sweep(own, RANGES, n_trials=3, storage=str(storage)).run(
        resume=True, show_progress=False
    )
    pd.testing.assert_frame_equal(frame, again.to_pandas())
    assert last(again.best_experiment()) == first.best.value
    more = sweep(own, RANGES, n_trials=5, storage=storage).run(resume=True, show_progress=False)
    assert values(more)[:3] == frame["value"].tolist()
    assert values(more) == values(run(own, RANGES, n_trials=5))
    assert [t.datetime_complete for t in more.study.trials][:3] == times


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"space": {LR: [0.001, 0.01], WIDTH: [2, 4]}}, "space"),
        ({"seed": 4}, "seed"),
        ({"objective": "train_loss"}, "objective"),
        ({"objective": "watch_r2", "direction": "maximize"}, "direction, objective"),
        ({"own": "n_epochs"}, "experiment"),
        ({"own": "rows"}, "rows"),
    ],
)
def test_a_storage_that_holds_another_sweep_is_refused(tmp_path, change, named):
    storage = tmp_path / "sweep.db"
    run(world(stops=False), storage=storage)
    if "own" in change:
        more = {"n_epochs": 3} if change["own"] == "n_epochs" else {"rows": arrays(60, seed=9)}
        change = {"own": world_again(**more)}
    else:
        change = {"own": world_again(), **change}
    with pytest.raises(
        ConfigError, match=rf"another sweep: its {named} differs?; choose another label="
    ):
        sweep(**change, storage=storage).run(resume=True, show_progress=False)
    other = sweep(**change, storage=storage, label="other").run(show_progress=False)
    assert len(other) == len(other.study.trials)


def test_a_study_that_no_sweep_made_is_refused(tmp_path):
    url = f"sqlite:///{tmp_path / 'sweep.db'}"
    study = optuna.create_study(storage=url, study_name="sweep")
    study.tell(study.ask(), 1.0)
    with pytest.raises(ConfigError, match=r"not of a modularml\.Sweep"):
        run(storage=url)


def test_a_given_sampler_proposes_other_values_when_resumed(tmp_path):
    own, storage = world(stops=False), tmp_path / "sweep.db"
    for n_trials in (3, 6):
        sampler = optuna.samplers.RandomSampler(seed=1)
        results = sweep(own, RANGES, n_trials=n_trials, storage=storage, sampler=sampler).run(
            resume=True, show_progress=False
        )
    assert results.to_pandas()[LR].nunique() == 6


def test_a_study_without_trials_is_nobodys(tmp_path):
    url = f"sqlite:///{tmp_path / 'sweep.db'}"
    optuna.create_study(storage=url, study_name="sweep", direction="maximize")
    results = run(space={LR: [0.01]}, storage=url)
    assert results.study.direction.name == "MINIMIZE"
    assert len(results) == 1


def test_each_trial_has_a_folder_for_its_checkpoints(tmp_path):
    own = world(stops=False)
    own.set_checkpoint_dir(tmp_path)
    own.execution_plan.phases["train"].set_checkpointing(mml.Checkpointing(mode="disk"))
    run(own, {LR: [0.01, 0.1]})
    assert {path.name for path in tmp_path.iterdir()} == {"sweep_trial_0", "sweep_trial_1"}
    assert all(list(path.rglob("*.ckpt.mml")) for path in tmp_path.iterdir())


def test_the_rows_are_audited_before_the_first_trial():
    own = world(stops=False, audit="error")
    fs = own.ctx.get_node(label="data")
    state = fs.get_state()
    state["splits"]["val"] = state["splits"]["train"][:5]
    fs.set_state(state)
    with pytest.raises(AuditError):
        run(own, {LR: [0.01]})


def test_an_unseeded_sweep_resumes_with_its_own_seed(tmp_path):
    own, storage = world(stops=False), tmp_path / "sweep.db"
    options = {"n_trials": 2, "storage": storage, "seed": None}
    first = run(own, RANGES, **options)
    again = sweep(own, RANGES, **{**options, "n_trials": 3}).run(resume=True, show_progress=False)
    assert last(again.get_experiment(0)) == values(first)[0]


def test_a_stopped_sweep_in_memory_goes_on(caplog):
    class Stop(mml.callbacks.Callback):
        n = 0

        def on_phase_end(self, **facts) -> None:
            Stop.n += 1
            if Stop.n == 3:
                raise KeyboardInterrupt

    own, plain = world(stops=False), world_again()
    own.execution_plan.phases["train"].add_callback(Stop())
    stopped = sweep(own)
    with pytest.raises(KeyboardInterrupt):
        stopped.run(show_progress=False)
    assert "stopped with 2 of 6 trials complete; run(resume=True)" in caplog.text
    with pytest.raises(ConfigError, match="resume=True"):
        stopped.run(show_progress=False)
    results = stopped.run(resume=True, show_progress=False)
    assert len(results) == 6
    assert values(results) == values(run(plain))
    frame = results.to_pandas()
    assert set(zip(frame[LR], frame[WIDTH], strict=True)) == set(itertools.product(*GRID.values()))


JOB = """
import sys, time
sys.path.insert(0, sys.argv[1])
import modularml as mml
from tests.sweep_worlds import world
class Slow(mml.callbacks.Callback):
    def on_epoch_end(self, **facts):
        time.sleep(float(sys.argv[3]))
own = world(stops=False)
own.execution_plan.phases["train"].add_callback(Slow("slow"))
space = {"graph.optimizer.lr": mml.space.log_float(1e-3, 1e-1), "nodes.net.hidden_dim": [2, 4, 8]}
sweep = mml.Sweep(own, space, n_trials=14, storage=sys.argv[2], seed=3)
results = sweep.run(resume=True, show_progress=False)
results.to_pandas().drop(columns="seconds").to_json(sys.argv[2] + ".json")
figures = results.best_experiment().history[-1].results["train"].figures()
assert figures["val_loss"] == results.best.value
"""


def job(path: Path, pause: float, **kwargs):
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", JOB, root, str(path), str(pause)]
    return subprocess.Popen(command, start_new_session=True, cwd=path.parent, **kwargs)


def finished(path: Path) -> list[tuple]:
    with sqlite3.connect(path) as database:
        return database.execute(
            "select number, datetime_complete from trials where state = 'COMPLETE' order by number"
        ).fetchall()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kills a process group")
def test_a_killed_sweep_loses_and_repeats_no_finished_trial(tmp_path):
    path, deadline = tmp_path / "sweep.db", time.monotonic() + 300
    for n_before in (3, 6):
        process = job(path, 0.15)
        while not path.exists() or not has_trials(path) or len(finished(path)) < n_before:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    before = finished(path)
    assert len(before) < 14
    assert job(path, 0).wait() == 0
    assert finished(path)[: len(before)] == before
    assert len(finished(path)) == 14
    whole = tmp_path / "whole.db"
    assert job(whole, 0).wait() == 0
    found, expected = (pd.read_json(f"{p}.json") for p in (path, whole))
    pd.testing.assert_frame_equal(found, expected, check_exact=True)


@pytest.mark.parametrize("n_drawn", [1, 2, 3])
def test_a_trial_that_was_killed_between_two_draws_gets_the_same_settings(n_drawn):
    space = {"lr": log_float(1e-3, 1.0), "width": choice([2, 4, 8]), "decay": float_(0, 1)}

    def started():
        study = optuna.create_study()
        for _ in range(3):
            trial = TrialQueue(study, 3, 4, space, None).ask()
            study.tell(trial, trial.params["lr"])
        return study

    killed = started()
    TrialQueue(killed, 3, 4, dict(list(space.items())[:n_drawn]), None).ask()
    found = TrialQueue(killed, 3, 4, space, None).ask().params
    assert found == TrialQueue(started(), 3, 4, space, None).ask().params
    assert set(found) == set(space)


def test_a_trial_that_is_run_again_is_judged_at_the_epochs_at_which_it_was_before():
    """What it had reported before it was cut off is not known at its first epochs."""
    study = optuna.create_study(pruner=optuna.pruners.MedianPruner(n_startup_trials=1))
    study.add_trial(
        optuna.trial.create_trial(value=1.0, intermediate_values=dict.fromkeys(range(5), 1.0))
    )
    cut_off = study.ask()
    for epoch, value in enumerate([3.0, 3.0, 3.0]):
        cut_off.report(value, epoch)
    register_study(study, None)
    ends = [
        report(study.study_name, None, cut_off._trial_id, value, epoch)
        for epoch, value in enumerate([3.0, 3.0, 3.0])
    ]
    assert ends == [False, False, True]


def has_trials(path: Path) -> bool:
    with sqlite3.connect(path) as database:
        tables = database.execute("select name from sqlite_master").fetchall()
    return ("trials",) in tables


# --------------------------------------------------------------------------------------- workers


@pytest.mark.slow
def test_trials_in_processes_equal_those_in_one(tmp_path):
    own = world(stops=False, n_epochs=4)
    serial, workers = run(own), run(own, n_jobs=2)
    columns = ["value", "state", LR, WIDTH, "error"]
    pd.testing.assert_frame_equal(
        serial.to_pandas()[columns], workers.to_pandas()[columns], check_exact=True
    )
    assert last(workers.best_experiment()) == serial.best.value
    assert values(run(own, n_jobs="auto")) == values(serial)
    storage = tmp_path / "sweep.db"
    pruner = optuna.pruners.ThresholdPruner(upper=1e-6, n_warmup_steps=1)
    pruned = run(own, n_jobs=2, pruner=pruner, storage=storage)
    assert (pruned.to_pandas()["state"] == "pruned").all()
    assert {t.last_step for t in pruned.study.trials} == {1}
    cv = {"bindings": mml.CVBinding("data", ["train", "val"]), "n_folds": 2}
    assert values(run(own, n_jobs=2, cv=cv)) == values(run(own, cv=cv))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("default")  # of the clusters' own
def test_trials_on_a_cluster_equal_those_in_one_process(name):
    own = world(stops=False)
    serial = run(own)
    with cluster(name):
        on_cluster = run(own, n_jobs=None)
    assert values(on_cluster) == values(serial)
    assert last(on_cluster.best_experiment()) == serial.best.value


# ------------------------------------------------------------------------------ trained as one


@pytest.fixture
def together(monkeypatch) -> list[int]:
    """Numbers of trials whose batches were trained as one."""
    found, original = [], SideBySide._train_together

    def spy(self, members, key):
        is_trained = original(self, members, key)
        found.extend([len(members)] * is_trained)
        return is_trained

    monkeypatch.setattr(SideBySide, "_train_together", spy)
    return found


@pytest.mark.parametrize("with_folds", [False, True])
def test_trials_trained_as_one_equal_those_trained_alone(with_folds, together):
    own = world(stops=False, n_epochs=4, rows=arrays(400))
    space = {LR: [0.001, 0.01, 0.05], "graph.optimizer.weight_decay": [0.0, 0.1]}
    cv = {"bindings": mml.CVBinding("data", ["train", "val"]), "n_folds": 2} if with_folds else None
    alone = run(own, space, stacked=False, cv=cv)
    assert not together
    as_one = run(own, space, stacked=True, cv=cv)
    assert max(together) == 12 if with_folds else 6
    np.testing.assert_allclose(values(as_one), values(alone), rtol=1e-4)
    assert as_one.best.params == alone.best.params
    assert as_one.to_pandas()["seconds"].notna().all()


def test_trials_of_other_shapes_are_grouped_by_shape(together):
    own = world(stops=False, n_epochs=4, rows=arrays(400))
    space = {WIDTH: [2, 8], LR: [0.01, 0.02, 0.05]}
    np.testing.assert_allclose(
        values(run(own, space, stacked=True)), values(run(own, space, stacked=False)), rtol=1e-4
    )
    assert set(together) == {3}


def test_trials_trained_as_one_are_pruned_by_epoch(together):
    own, pruner = world(n_epochs=5, stops=False, rows=arrays(400)), Every({1, 3}, 1)
    results = run(own, {LR: [0.01, 0.02, 0.03, 0.04]}, pruner=pruner, stacked=True)
    frame = results.to_pandas()
    assert frame["state"].tolist() == ["complete", "pruned", "complete", "pruned"]
    assert max(together) == 4
    plain = run(own, {LR: [0.01, 0.02, 0.03, 0.04]}, stacked=False).to_pandas()["value"]
    np.testing.assert_allclose(frame["value"][[0, 2]], plain[[0, 2]], rtol=1e-4)


def test_proposals_are_asked_for_in_batches_only_where_trials_are_trained_as_one(together):
    own = world(stops=False, n_epochs=4, rows=arrays(400))
    by_default, alone = (
        run(own, RANGES, n_trials=11, stacked=stacked).to_pandas() for stacked in ("auto", False)
    )
    pd.testing.assert_series_equal(by_default[LR], alone[LR])
    assert not together
    as_one = run(own, {LR: RANGES[LR]}, n_trials=13, stacked=True)
    assert max(together) == 10
    assert len(as_one) == 13


# ---------------------------------------------------------------------------------------- nested


def nested(own: mml.Experiment, search, **kwargs) -> mml.strategies.CVResults:
    bindings = kwargs.pop("bindings", None) or mml.CVBinding("data", ["train", "val"])
    cv = mml.CrossValidation(
        bindings=bindings, n_folds=3, experiment=own, search=search, seed=2, **kwargs
    )
    return cv.run(show_fold_progress=False, **QUIET)


def chosen(results) -> list[tuple]:
    found = []
    for label in results.fold_labels:
        graph = results.get_experiment(label).model_graph
        found.append((graph.optimizer.kwargs["lr"], graph.get_node("net").model.hidden_dim))
    return found


@pytest.mark.parametrize("as_factory", [False, True])
def test_a_sweep_searches_within_folds_of_training_rows(as_factory):
    own = world(stops=False)
    inner = sweep(own, cv={"bindings": mml.CVBinding("data", ["train"]), "n_folds": 2})
    search = (lambda experiment: inner) if as_factory else inner
    results = nested(own, search)
    cv = mml.CrossValidation(
        bindings=mml.CVBinding("data", ["train", "val"]), n_folds=3, experiment=own, seed=2
    )
    for fold, found in zip(cv.folds, chosen(results), strict=True):
        alone = variant_experiment(own, own.execution_plan, fold, f"CV_{fold.label}")
        binding = {"bindings": mml.CVBinding(alone.ctx.get_node(label="data"), ["train"])}
        by_sweep = run(alone, cv={**binding, "n_folds": 2})
        assert found == tuple(by_sweep.best.params.values())
    frame = results.to_pandas()
    assert frame["train.val_loss"].notna().all()


@pytest.mark.parametrize("source_splits", [["train"], ["train", "val"]])
def test_no_row_that_a_fold_is_scored_on_reaches_the_search(source_splits):
    x, y = arrays(60)
    own = world(stops=False, rows=(x, y))
    binding = mml.CVBinding("data", ["train", "val"])
    cv = mml.CrossValidation(bindings=binding, n_folds=3, experiment=own, seed=2)
    held_out = cv.folds[0].sides["data"].val
    seen = []

    class Look(mml.callbacks.Callback):
        def on_phase_end(self, *, experiment, phase, results=None) -> None:
            fs = experiment.ctx.get_node(label="data")
            rows = [fs.get_split(b.split).valid_indices for b in phase.input_sources]
            watch = next(c for c in phase.callbacks if isinstance(c, mml.Evaluation))
            rows += [fs.get_split(b.split).valid_indices for b in watch.eval_phase.input_sources]
            seen.append((experiment.label, np.unique(np.concatenate(rows))))

    own.execution_plan.phases["train"].add_callback(Look("look"))
    search = sweep(own, cv={"bindings": mml.CVBinding("data", source_splits), "n_folds": 2})
    nested(own, search)
    of_trials = [rows for label, rows in seen if label.startswith("sweep")][: 6 * 2]
    assert len(of_trials) == 12
    assert not any(np.isin(rows, held_out).any() for rows in of_trials)
    used = np.unique(np.concatenate(of_trials))
    np.testing.assert_array_equal(used, np.setdiff1d(np.arange(60), held_out))
    damaged = y.copy()
    damaged[held_out] = 1e6
    with mml.ExperimentContext(registration_policy="error").activate():
        other = world(stops=False, rows=(x, damaged))
        space_search = sweep(
            other, cv={"bindings": mml.CVBinding("data", source_splits), "n_folds": 2}
        )
        with_damage = chosen(nested(other, space_search))[0]
    assert with_damage == chosen(nested(own, search))[0]


def test_a_search_without_folds_judges_by_the_rows_held_out_for_stopping():
    own = world(stops=False)
    with pytest.raises(ExecutionError, match=r"a search must not use them.*stop_size="):
        nested(own, sweep(own))
    binding = mml.CVBinding("data", ["train", "val"], stop_size=0.3)
    results = nested(own, sweep(own), bindings=binding)
    cv = mml.CrossValidation(bindings=binding, n_folds=3, experiment=own, seed=2)
    fold = cv.folds[0]
    alone = variant_experiment(own, own.execution_plan, fold, "CV_fold_0")
    state = alone.ctx.get_node(label="data").get_state()
    state["splits"]["val"] = fold.sides["data"].stop
    alone.ctx.get_node(label="data").set_state(state)
    assert chosen(results)[0] == tuple(run(alone).best.params.values())


@pytest.mark.slow
def test_a_search_in_processes_equals_one_in_this_process():
    own = world(stops=False)
    search = sweep(own, cv={"bindings": mml.CVBinding("data", ["train"]), "n_folds": 2})
    serial, workers = nested(own, search), nested(own, search, n_jobs=2)
    assert chosen(serial) == chosen(workers)
    pd.testing.assert_frame_equal(serial.to_pandas(), workers.to_pandas(), check_exact=True)


# ---------------------------------------------------------------------------------------- display


@pytest.mark.parametrize("kind", ["history", "importance", "parallel", "slice"])
def test_plots_draw_every_trial(kind, tmp_path):
    results = run(space={**RANGES, "nodes.net.activation": ["relu", "tanh"]}, n_trials=8)
    figure = results.plot(kind, path=tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5_000
    axes = figure.axes
    if kind == "history":
        np.testing.assert_array_equal(axes[0].collections[0].get_offsets()[:, 1], values(results))
        steps = axes[0].lines[0].get_ydata()
        np.testing.assert_array_equal(steps, np.minimum.accumulate(values(results)))
    elif kind == "importance":
        widths = sorted((bar.get_width() for bar in axes[0].patches), reverse=True)
        np.testing.assert_allclose(widths, list(results.importances().values()))
        assert sum(widths) == pytest.approx(1)
    elif kind == "parallel":
        assert len([line for line in axes[0].lines if len(line.get_xdata()) == 4]) == 8
    else:
        assert len(axes) == 3
        points = axes[0].collections[0].get_offsets()
        np.testing.assert_allclose(points[:, 0], results.to_pandas()[LR])


def test_importances_are_optunas():
    results = run(space=RANGES, n_trials=10)
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=3)
    expected = optuna.importance.get_param_importances(results.study, evaluator=evaluator)
    assert results.importances() == pytest.approx(expected)


def test_results_show_themselves():
    results = run()
    assert repr(results) == f"SweepResults('sweep', 6 trials, best {results.best.value:.6g})"
    html = results._repr_html_()
    assert html.count("<tr") == 6 + 2  # two of the header
    assert LR in html
    assert repr(sweep(world_again())).startswith("Sweep('sweep' of 'exp', ['graph.optimizer.lr'")


# -------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"space": {"graph.optimizer.rl": [1]}}, UnknownNameError, "graph.optimizer.lr"),
        (
            {"space": {"optimizer.learning_rate": [1]}},
            UnknownNameError,
            r"unknown setting 'optimizer.learning_rate'; did you mean 'graph.optimizer.lr'\?",
        ),
        ({"space": {"lr": [1]}}, UnknownNameError, r"did you mean 'graph.optimizer.lr'\?"),
        ({"space": {LR: (1e-4, 1e-1)}}, ConfigError, r"log_float for a range, or the list \["),
        ({"space": {"seed": [1, "a"]}}, ConfigError, "seed must be an int of at least 0, got 'a'"),
        ({"space": {"seed": [-1]}}, ConfigError, "seed must be an int of at least 0"),
        ({"space": {}}, ConfigError, "dict of config paths"),
        ({"space": {LR: 0.1}}, ConfigError, "must be a list"),
        ({"space": {LR: []}}, ConfigError, "at least one value"),
        ({"space": {LR: [0.1, 0.1]}}, ConfigError, "twice"),
        ({"space": {WIDTH: [1, True]}}, ConfigError, "twice"),
        ({"space": {LR: [0.1, math.nan]}}, ConfigError, "NaN"),
        ({"space": RANGES}, ConfigError, "n_trials is needed"),
        ({"sampler": "tpe", "n_trials": 2}, ConfigError, "sampler must be one of optuna.samplers"),
        ({"pruner": "median"}, ConfigError, "pruner must be one of optuna.pruners"),
        (
            {"sampler": optuna.samplers.GridSampler({LR: [1]}), "n_trials": 2},
            ConfigError,
            "grid by itself",
        ),
        ({"objective": "val_los"}, MetricNotLoggedError, "'val_loss'"),
        ({"objective": "watch_r2"}, ConfigError, "direction='maximize'"),
        ({"direction": "maximize"}, ConfigError, "direction='minimize'"),
        ({"direction": "up"}, ConfigError, "direction"),
        ({"objective": "val.r2", "direction": "maximize"}, MetricNotLoggedError, "val.r2"),
        ({"n_trials": 0}, ConfigError, "n_trials"),
        ({"n_jobs": 0}, ConfigError, "n_jobs"),
        ({"stacked": "yes"}, ConfigError, "stacked"),
        ({"stacked": True, "n_jobs": 2}, ConfigError, "stacked=True trains all in this process"),
        ({"seed": -1}, ConfigError, "seed"),
        ({"cv": 5}, ConfigError, "cv must be a CVBinding"),
        ({"storage": 5}, ConfigError, "storage must be"),
        ({"storage": "no/such/folder/sweep.db"}, ConfigError, "does not exist"),
    ],
)
def test_bad_arguments_are_refused_before_the_first_trial(kwargs, error, match):
    own = world(stops=False)
    with pytest.raises(error, match=match):
        sweep(own, **kwargs)


@pytest.mark.parametrize("value", [None, "high", np.ones(3)])
def test_an_objective_must_be_a_number(value):
    with pytest.raises(ExecutionError, match=f"must return a number, got a {type(value).__name__}"):
        run(space={LR: [0.01]}, objective=lambda experiment: value)


def test_an_experiment_needs_a_space_and_a_function_none():
    own = world(stops=False)
    with pytest.raises(ConfigError, match="space is needed"):
        mml.Sweep(own)
    with pytest.raises(ConfigError, match="Got a function and a space"):
        mml.Sweep(build, GRID)
    with pytest.raises(ConfigError, match="omit n_jobs"):
        mml.Sweep(build, n_trials=2, n_jobs=2)
    with pytest.raises(ConfigError, match="an Experiment or a function"):
        mml.Sweep(5)
    with pytest.raises(ConfigError, match="cannot search within folds"):
        mml.Sweep(build, n_trials=2)(own)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: mml.space.log_float(0, 1), "above 0"),
        (lambda: mml.space.float_(1, 0), "low <= high"),
        (lambda: mml.space.float_(0, math.inf), "finite"),
        (lambda: mml.space.float_(0, 1, step=0), "step"),
        (lambda: mml.space.int_(1.5, 3), "ints"),
        (lambda: mml.space.int_(0, 3, log=True), "log=True"),
        (lambda: mml.space.int_(1, 3, step=0), "step must be an int"),
        (lambda: mml.space.choice("ab"), "list of values"),
    ],
)
def test_ranges_without_sense_are_refused(make, match):
    with pytest.raises(ConfigError, match=match):
        make()
