"""What a plan does with rows: training, stopping or choosing by rows that it reports on."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

import modularml as mm
from modularml.audit import AuditWarning
from modularml.errors import AuditError
from modularml.experiment.run_audit import Use, plan_leaks
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

N = 80


@pytest.fixture
def world():
    """Return a sound set of three splits, a graph and its module."""
    fs = featureset(*arrays(N))
    fs.split_random({"train": 0.5, "val": 0.25, "test": 0.25}, seed=0)
    module = mlp()
    return fs, graph_of(fs, module), module


def watching(split, name="val_loss"):
    metric = mm.EvalLossMetric(loss=mse(), name=name)
    return mm.Evaluation.from_split(f"watch {split}", split=split, metrics=[metric])


def plan_of(exp, *phases):
    for phase in phases:
        exp.execution_plan.add_phase(phase)
    return exp


def refused(exp, module, match):
    """Check that a plan is refused before anything moves; return what was said."""
    before = weights(module)
    with pytest.raises(AuditError, match=match) as caught:
        exp.run(**QUIET)
    assert_equal_weights(before, module)
    assert not exp.last_run.results.labels
    return str(caught.value)


def test_training_on_the_tested_split_is_an_error(world):
    fs, graph, module = world
    exp = plan_of(
        experiment(audit="error"),
        train_phase(graph, split="test"),
        eval_phase(graph, split="test", label="final"),
    )
    said = refused(exp, module, r"plan_trains_on_test \(error\)")
    n = len(fs["test"])
    assert f"phase 'train' trains on {n} of the {n} rows of split 'test' that phase 'final'" in said


def test_a_warning_says_it_once_and_the_plan_runs(world):
    _, graph, module = world
    before = weights(module)["0.weight"]
    exp = plan_of(experiment(), train_phase(graph, split="test"), eval_phase(graph, split="test"))
    with pytest.warns(AuditWarning, match="plan_trains_on_test"):
        exp.run(**QUIET)
    assert not np.array_equal(before, weights(module)["0.weight"])


@pytest.mark.parametrize("how", ["another name", "a part", "all rows"])
def test_the_same_rows_under_another_name(world, how):
    fs, graph, module = world
    rows = fs["test"].indices
    split, n = "fresh", len(rows)
    if how == "another name":
        fs.add_split(fs.take(rows, label="fresh"))
    elif how == "a part":
        n = 5
        fs.add_split(fs.take(np.r_[rows[:5], fs["train"].indices], label="fresh"))
    else:
        split = None
    training = train_phase(graph, split=split)
    exp = plan_of(experiment(audit="error"), training, eval_phase(graph, split="test"))
    said = refused(exp, module, "plan_trains_on_test")
    assert f"trains on {n} of the {len(rows)} rows" in said


@pytest.mark.parametrize("known_by", ["id", "content", "nothing"])
def test_the_same_rows_in_another_set_are_known_by_id_or_content(known_by):
    x, y = arrays(N)
    one = featureset(x, y)
    if known_by == "id":
        other = one.take(np.arange(50, 80)).to_featureset("other", register=False)
        other.fit_transform("StandardScaler", domain="features")
    else:
        other_y = y[50:] + (known_by == "nothing")
        other = featureset(x[50:].astype(np.float64), other_y.astype(np.float64), label="other")
    train = Use("fit", "train", other, "train", np.arange(20))
    test = Use("final", "test", one, "test", np.arange(40, 60))
    found = list(plan_leaks([train, test]))
    if known_by == "nothing":
        assert not found
        return
    assert [(f.kind, f.severity, f.count) for f in found] == [("plan_trains_on_test", "error", 10)]
    assert found[0].sample_ids == tuple(str(i) for i in one.get_sample_uuids()[50:55])


@pytest.mark.parametrize("name", ["test", "renamed"])
def test_stopping_by_the_tested_split_is_an_error(world, name):
    fs, graph, module = world
    if name == "renamed":
        fs.add_split(fs.take(fs["test"].indices, label="renamed"))
    stop = mm.EarlyStopping(monitor="val_loss", patience=2)
    exp = plan_of(
        experiment(audit="error"),
        train_phase(graph, split="train", callbacks=[watching(name), stop]),
        eval_phase(graph, split="test"),
    )
    assert "stops or chooses by" in refused(exp, module, r"plan_chooses_on_test \(error\)")


def test_a_learning_rate_that_goes_by_the_tested_split_is_an_error():
    plateau = mm.LRSchedule("plateau", monitor="val_loss")
    optimizer = mm.Optimizer("sgd", opt_kwargs={"lr": 0.1}, schedule=plateau)
    module = mlp()
    with mm.ExperimentContext().activate():
        fs = featureset(*arrays(N))
        fs.split_random({"train": 0.5, "test": 0.5}, seed=0)
        graph = mm.ModelGraph([mm.ModelNode("net", module, fs)], optimizer)
        exp = plan_of(
            experiment(audit="error"),
            train_phase(graph, split="train", callbacks=[watching("test")]),
            eval_phase(graph, split="test"),
        )
        refused(exp, module, "plan_chooses_on_test")


@pytest.mark.parametrize("does", ["stops by", "trains on"])
def test_folds_that_choose_by_or_learn_from_rows_they_are_scored_on_are_refused(does):
    fs = featureset(*arrays(N))
    fs.split_random({"train": 0.5, "val": 0.25, "pool": 0.25}, seed=0)
    module = mlp()
    graph = graph_of(fs, module)
    stop = [watching("val"), mm.EarlyStopping(monitor="val_loss", patience=2)]
    split, callbacks = ("train", stop) if does == "stops by" else ("val", [])
    phase = train_phase(graph, split=split, callbacks=callbacks)
    exp = plan_of(experiment(audit="error"), phase)
    cv = mm.CrossValidation(bindings=mm.CVBinding(fs, ["train", "val"]), n_folds=2, experiment=exp)
    before = weights(module)
    with pytest.raises(AuditError, match="select by" if stop is callbacks else "learns from"):
        cv.run()
    assert_equal_weights(before, module)


def test_watching_is_not_choosing_and_a_third_split_is_sound(world):
    _, graph, _ = world
    callbacks = [
        watching("val"),
        watching("test", "curve"),
        mm.EarlyStopping(monitor="val_loss", patience=2),
    ]
    exp = plan_of(
        experiment(audit="error"),
        eval_phase(graph, split="test", label="before"),
        train_phase(graph, split="train", callbacks=callbacks),
        eval_phase(graph, split="train", label="on train"),
        eval_phase(graph, split="val", label="on val"),
        eval_phase(graph, split="test", label="after"),
    )
    exp.run(**QUIET)
    assert exp.last_run.status == "completed"


def test_a_validation_split_alone_is_no_clean_test(world):
    _, graph, _ = world
    stop = [watching("val"), mm.EarlyStopping(monitor="val_loss", patience=2)]
    exp = plan_of(
        experiment(),
        train_phase(graph, split="train", callbacks=stop),
        eval_phase(graph, split="val", label="final"),
    )
    with pytest.warns(AuditWarning, match=r"plan_chooses_on_test \(warning\)"):
        exp.run(**QUIET)


def test_an_estimator_that_is_fitted_on_the_tested_split():
    fs = featureset(*arrays(N))
    fs.split_random({"train": 0.5, "test": 0.5}, seed=0)
    graph = mm.ModelGraph([mm.ModelNode("net", Ridge(), fs)])
    exp = plan_of(
        experiment(audit="error"),
        mm.FitPhase.from_split("fit", split="test"),
        eval_phase(graph, split="test"),
    )
    with pytest.raises(AuditError, match="phase 'fit' trains on"):
        exp.run(**QUIET)


def test_phases_of_a_group_count(world):
    _, graph, module = world
    group = mm.PhaseGroup("both")
    group.add_phase(train_phase(graph, split="test"))
    exp = experiment(audit="error")
    exp.execution_plan.add_group(group)
    exp.execution_plan.add_phase(eval_phase(graph, split="test"))
    refused(exp, module, "plan_trains_on_test")


def test_what_is_allowed_runs(world):
    fs, graph, _ = world
    fs.audit(allow=["plan_trains_on_test"])
    exp = plan_of(
        experiment(audit="error"), train_phase(graph, split="test"), eval_phase(graph, split="test")
    )
    exp.run(**QUIET)
    assert exp.last_run.status == "completed"
