"""What an experiment does about leaks before it trains: warn once, refuse, or look away."""

import time
import warnings

import numpy as np
import pytest

import modularml as mm
from modularml.audit import AuditWarning
from modularml.errors import AuditError, ConfigError
from tests.worlds import (
    QUIET,
    assert_equal_weights,
    eval_phase,
    experiment,
    featureset,
    graph_of,
    mlp,
    train_phase,
    weights,
)


def world(model=None, n=60, d=6):
    """Return a set whose column x0 repeats the target, and a graph on it."""
    x = np.random.default_rng(0).normal(size=(n, d)).astype(np.float32)
    fs = featureset(x, x[:, 0] * 2 + 1)
    fs.split_random({"train": 0.6, "val": 0.2, "test": 0.2})
    return fs, graph_of(fs, model or mlp(d))


def test_it_warns_once_for_each_version_of_the_data():
    fs, graph = world()
    exp = experiment()
    phase = train_phase(graph, split="train")
    with pytest.warns(AuditWarning, match="audit of 'data': target_copy.*'x0'.*'y'") as caught:
        exp.run_phase(phase, **QUIET)
    assert caught[0].filename == __file__
    exp.run_phase(phase, **QUIET)
    exp.run_phase(eval_phase(graph, split="test"))
    for change in (
        lambda: fs.fit_transform("StandardScaler", domain="features", fit_to_split="train"),
        lambda: (fs.clear_splits(), fs.split_random({"train": 0.5, "test": 0.5}, seed=1)),
    ):
        change()
        with pytest.warns(AuditWarning):
            exp.run_phase(phase, **QUIET)
        exp.run_phase(phase, **QUIET)


def test_evaluation_alone_is_not_audited():
    _, graph = world()
    experiment(audit="error").run_phase(eval_phase(graph, split="test"))


def test_error_raises_before_anything_runs():
    model = mlp()
    _, graph = world(model)
    exp = experiment(audit="error")
    exp.execution_plan.add_phase(eval_phase(graph, split="test"))
    exp.execution_plan.add_phase(train_phase(graph, split="train"))
    before = weights(model)
    for run in (
        lambda: exp.run(**QUIET),
        lambda: exp.run_phase(train_phase(graph, split="train"), **QUIET),
        lambda: list(exp.stream(train_phase(graph, split="train"))),
    ):
        with pytest.raises(AuditError, match="leave it out"):
            run()
        assert exp.last_run.status == "failed"
        assert not exp.last_run.results.labels
        assert isinstance(exp.last_run.execution_meta["error"], AuditError)
    assert_equal_weights(before, model)


def test_off_and_clean_data_are_silent():
    _, graph = world()
    experiment(audit="off").run_phase(train_phase(graph), **QUIET)
    x = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)
    with mm.ExperimentContext().activate():
        clean = graph_of(featureset(x, x[:, :2].sum(axis=1)), mlp())
        experiment(audit="error").run_phase(train_phase(clean), **QUIET)


def test_the_mode_is_config():
    with pytest.raises(ConfigError, match="audit must be one of 'warn', 'error', 'off', got 'no'"):
        mm.Experiment("exp", audit="no")
    assert mm.Experiment("exp").audit == "warn"
    exp = experiment(audit="error")
    config = exp.get_config()
    assert mm.Experiment.from_config(config).audit == "error"
    del config["audit"]
    assert mm.Experiment.from_config(config).audit == "warn"


def test_it_comes_back_from_a_file(tmp_path):
    path = experiment(audit="off").save(tmp_path / "exp")
    with mm.ExperimentContext().activate():
        assert mm.Experiment.load(path).audit == "off"


def test_it_costs_milliseconds():
    n = 20_000
    x = np.random.default_rng(0).normal(size=(n, 16)).astype(np.float32)
    fs = featureset(x, x.sum(axis=1))
    fs.split_random({"train": 0.6, "val": 0.2, "test": 0.2})
    graph = graph_of(fs, mlp(16))
    exp = experiment()
    times = []
    for _ in range(3):
        exp._audit._seen.clear()
        start = time.process_time()
        with warnings.catch_warnings():
            exp._audit.check(train_phase(graph, split="train"), exp.ctx)
        times.append(time.process_time() - start)
    assert min(times) < 0.03
    assert exp._audit._seen
