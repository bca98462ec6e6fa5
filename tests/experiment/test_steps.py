"""Recorded epochs: in memory, in files, best ones, and queries over many."""

import gc
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from torch import nn

import modularml as mm
from modularml.errors import ConfigError
from modularml.results.metric_store import MetricStore
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
    train_phase,
)


def run(config=None, net=None, **kwargs):
    with mm.ExperimentContext().activate():
        graph = graph_of(featureset(*arrays(n=40)), net or mlp())
        exp = experiment(results_config=config)
        phase = train_phase(graph, [mse(), mse(label="again", weight=0.5)], n_epochs=4, **kwargs)
        return exp, exp.run_phase(phase, **QUIET)


def answers(results):
    return {
        "outputs": [t.numpy().tolist() for t in results.tensors("net", "outputs")],
        "targets": [np.asarray(t).tolist() for t in results.tensors("net", "targets")],
        "keys": results.execution_contexts().keys(),
        "losses": results.losses("net").to_pandas().to_dict(),
        "metrics": results.metrics().items(),
        "rows": results.source_view("net", batch=1).row_indices.tolist(),
        "frame": results.to_pandas().to_dict(),
    }


class TestSpilling:
    def test_files_answer_every_query(self, tmp_path):
        _, held = run()
        config = mm.ResultsConfig(results_dir=tmp_path, memory_budget=0)
        _, moved = run(config)
        assert len(list(tmp_path.glob("*.safetensors"))) == len(list(tmp_path.glob("*.arrow"))) == 4
        assert answers(moved) == answers(held)
        part = moved._execution.parts[0]
        assert part.nbytes == 0
        assert part._whole[0][0] is None

    def test_the_oldest_go_first_over_all_runs(self, tmp_path):
        n_bytes = 40 * 4
        exp, first = run(mm.ResultsConfig(results_dir=tmp_path, memory_budget=5 * n_bytes))
        assert not list(tmp_path.iterdir())
        with exp.ctx.activate():
            second = exp.run_phase(train_phase(exp.model_graph, n_epochs=3, label="b"), **QUIET)
        parts = first._execution.parts + second._execution.parts
        assert [part.nbytes for part in parts] == [0, 0, *[n_bytes] * 5]

    def test_evaluations_count_too(self, tmp_path):
        fs = featureset(*arrays(n=40))
        fs.split_random({"train": 0.5, "val": 0.5})
        graph = graph_of(fs, mlp())
        exp = experiment(results_config=mm.ResultsConfig(results_dir=tmp_path, memory_budget=0))
        evaluation = mm.Evaluation.from_split("val", split="val", metrics=["r2"])
        phase = train_phase(graph, split="train", n_epochs=2, callbacks=[evaluation])
        results = exp.run_phase(phase, **QUIET)
        found = results.evaluations().at(epoch=0)
        assert found.stacked_tensors("net", "outputs").shape == (20, 1)
        assert len(list(tmp_path.glob("*.safetensors"))) == 4

    def test_a_temporary_folder_lives_as_long_as_the_results(self):
        exp, results = run(mm.ResultsConfig(memory_budget=0))
        folder = exp.results_storage.folder()
        exp.results_storage = None
        gc.collect()
        assert results.tensors("net", "outputs").first().shape == (16, 1)
        assert folder.is_dir()
        exp._history.clear()
        del results
        gc.collect()
        assert not folder.exists()

    def test_arguments(self):
        for budget in (-1, 1.5, True, "1GB"):
            with pytest.raises(ConfigError, match="memory_budget"):
                mm.ResultsConfig(memory_budget=budget)
        config = mm.ResultsConfig(results_dir=Path("x"), memory_budget=5)
        assert mm.ResultsConfig.from_config(config.get_config()) == config


def test_outputs_that_alias_inputs_are_kept_as_they_were():
    x, y = arrays(n=40, d=1)
    fs = featureset(x, y)
    nodes = [mm.ModelNode("same", nn.Flatten(), fs)]
    graph = mm.ModelGraph(
        [*nodes, mm.ModelNode("net", nn.Linear(1, 1), nodes[0])],
        optimizer=mm.Optimizer("sgd", opt_kwargs={"lr": 0.1}),
    )
    phase = train_phase(graph, shuffle=True, n_epochs=3)
    results = experiment().run_phase(phase, **QUIET)
    for ctx in results.execution_contexts():
        node = graph.get_node("same").node_id
        rows = ctx.indices(ctx.sources(node)[0])["default"]
        np.testing.assert_array_equal(ctx.output(node).numpy(), x[rows])


class Filled(nn.Module):
    """Writes every output into one buffer."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.linear = nn.Linear(6, 1, dtype=dtype)
        self.register_buffer("room", torch.zeros(40, 1, dtype=dtype), persistent=False)

    def forward(self, x):
        return torch.add(self.linear(x), 1.0, out=self.room[: len(x)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch_size", [8, 16, None])
def test_outputs_written_over_each_other_are_kept_as_they_were(batch_size, dtype):
    x, y = arrays(n=40)
    net = Filled(dtype)
    graph = graph_of(featureset(x, y), net, opt=None)
    exp, phase = experiment(), eval_phase(graph, [], batch_size=batch_size)
    kept = []
    for shift in (0.0, 1.0, 2.0, 3.0):
        net.linear.bias.data.fill_(shift)
        with torch.no_grad():
            want = net(torch.tensor(x, dtype=dtype)).clone()
        kept.append((exp.run_phase(phase), want))
    for results, want in kept:
        torch.testing.assert_close(results.stacked_tensors("net", "outputs"), want)


@pytest.mark.parametrize("n_batches", [1, 3])
def test_inputs_passed_on_are_kept_though_the_next_evaluation_takes_their_room(n_batches):
    x, y = arrays(n=30, d=1)
    fs = featureset(x, y)
    same = mm.ModelNode("same", nn.Flatten(), fs)
    graph = mm.ModelGraph([same, mm.ModelNode("net", nn.Linear(1, 1), same)])
    for label, rows in (("a", np.arange(15)), ("b", np.arange(15, 30))):
        fs.add_split(fs.take(rows, label=label))
    exp = experiment()
    phases = [
        eval_phase(graph, [], label=s, split=s, batch_size=15 // n_batches) for s in ("a", "b")
    ]
    found = [exp.run_phase(phase).stacked_tensors("same", "outputs") for phase in phases * 2]
    np.testing.assert_array_equal(np.concatenate(found), np.concatenate([x, x]))


@pytest.mark.parametrize("budget", [None, 0])
def test_outputs_in_files_have_the_dtype_that_they_had(budget):
    graph = graph_of(featureset(*arrays(n=40)), mlp().to(torch.bfloat16), opt=None)
    exp = experiment(results_config=mm.ResultsConfig(memory_budget=budget))
    results = exp.run_phase(eval_phase(graph, []))
    assert results.tensors("net", "outputs").last().dtype is torch.bfloat16


@pytest.mark.parametrize("recording", ["all", "none"])
def test_steps_that_a_callback_keeps_stay_as_they_were(recording):
    kept = []

    class Keeps(mm.callbacks.Callback):
        def on_batch_end(self, *, exec_ctx, **facts):
            kept.append((exec_ctx, [out.clone() for out in exec_ctx.outs]))

    fs = featureset(*arrays(n=40))
    same = mm.ModelNode("same", nn.Flatten(), fs)
    nodes, sgd = [same, mm.ModelNode("net", mlp(), same)], mm.Optimizer("sgd")
    graph = mm.ModelGraph(nodes, optimizer=sgd)
    how = {"n_epochs": 3, "shuffle": True, "result_recording": recording, "callbacks": [Keeps()]}
    experiment().run_phase(train_phase(graph, **how), **QUIET)
    assert len(kept) == 9
    assert all(all(map(torch.equal, ctx.outs, outs)) for ctx, outs in kept)


class Doubles(TransformerMixin, BaseEstimator):
    """Fills one array at each call."""

    def fit(self, x, y=None):
        self.room_ = np.zeros((100, x.shape[1]))
        return self

    def transform(self, x):
        return np.multiply(x, 2, out=self.room_[: len(x)])


def test_outputs_of_an_estimator_that_fills_one_array_are_kept():
    x, y = arrays(n=40)
    node = mm.ModelNode("net", Doubles(), featureset(x, y))
    graph, exp = mm.ModelGraph([node]), experiment()
    exp.run_phase(mm.FitPhase("fit", input_sources=bindings(graph)), **QUIET)
    results = exp.run_phase(eval_phase(graph, [], batch_size=8))
    np.testing.assert_allclose(results.stacked_tensors("net", "outputs"), 2 * x, rtol=1e-6)


class Wavers(nn.Module):
    """Returns its input, in double precision every other time."""

    def __init__(self):
        super().__init__()
        self.n_calls, self.seen = 0, []

    def forward(self, x):
        self.n_calls += 1
        out = x.double() if self.n_calls % 2 else x
        self.seen.append(out.clone())
        return out


def test_inputs_passed_on_in_several_dtypes_are_kept_over_epochs():
    fs, wavers = featureset(*arrays(n=40)), Wavers()
    nodes = [mm.ModelNode("same", wavers, fs), mm.ModelNode("net", mlp(), fs)]
    graph = mm.ModelGraph(nodes, optimizer=mm.Optimizer("sgd", opt_kwargs={"lr": 0.1}))
    results = experiment().run_phase(train_phase(graph, n_epochs=3, shuffle=True), **QUIET)
    kept = list(results.tensors("same", "outputs").values())
    assert len(kept) == 9
    assert all(map(torch.equal, kept, wavers.seen[-9:]))


def test_a_callback_sees_the_epoch_that_is_under_way():
    seen = []

    class Looks(mm.callbacks.Callback):
        def on_batch_end(self, *, exec_ctx, results, **facts):
            last = results.losses("net").where(label="mse_net").last()
            seen.append(last.value == exec_ctx.losses[0].value)
            output = results.tensors("net", "outputs").last()
            seen.append(torch.equal(output, exec_ctx.outs[0]))

    run(callbacks=[Looks()])
    assert seen == [True] * (2 * 4 * 3)


def test_last_means_the_best_epoch_where_it_is_restored():
    scores = [3.0, 1.0, 2.0, 2.5]
    script = mm.callbacks.MetricCallback("score", lambda exec_ctx, **_: scores[exec_ctx.epoch_idx])
    stop = mm.EarlyStopping(monitor="score", restore_best=True)
    _, every = run()
    _, last = run(callbacks=[script, stop], result_recording="last")
    assert last.execution_contexts().axis_values("epoch") == [1]
    want = every.tensors("net", "outputs").where(epoch=1)
    assert all(map(torch.equal, last.tensors("net", "outputs"), want))


class TestSeries:
    def test_collapse_against_pandas(self):
        rng = np.random.default_rng(0)
        keys = {(int(e), "ab"[n], int(b)) for e, n, b in rng.integers(0, [9, 2, 9], (200, 3))}
        data = {key: float(rng.normal()) for key in keys}
        series = AxisSeries(("epoch", "name", "batch"), data)
        frame = series.to_pandas()
        for reducer in ("mean", "sum", "min", "max", "first", "last"):
            found = series.collapse("batch", reducer)
            want = frame.groupby(["epoch", "name"], sort=False)["value"].agg(reducer)
            assert found.keys() == want.index.tolist()
            np.testing.assert_allclose(found.values(), want)
        assert series.collapse("epoch", len).collapse("name", sum).axes == ("batch",)

    def test_nan_is_not_skipped(self):
        series = AxisSeries(("epoch",), {(0,): 1.0, (1,): float("nan")})
        assert np.isnan(series.collapse("epoch").one())

    def test_losses_reduce_as_numbers(self):
        _, results = run()
        losses = results.losses("net").where(epoch=2)
        mean = losses.collapse("label", "sum").collapse("batch", "mean").select(epoch=2).one()
        logged = results.metrics().where(name="train_loss", epoch=2, batch=[0, 1, 2])
        assert mean == pytest.approx(logged.collapse("batch").one())

    def test_a_hundred_thousand_records(self):
        net = nn.Linear(1, 1)
        fs = featureset(*arrays(n=500, d=1))
        graph = graph_of(fs, net)
        results = experiment().run_phase(train_phase(graph, batch_size=1, n_epochs=1), **QUIET)
        part = results._execution.parts[0]
        results._execution.parts = [part] * 200
        queries = [
            lambda losses: losses.where(epoch=0, batch=7).values(),
            lambda losses: losses.collapse("batch"),
            lambda losses: losses.last(),
        ]
        for query in queries:
            taken = []
            for _ in range(5):
                start = time.process_time()
                query(results.losses("net"))
                taken.append(time.process_time() - start)
            assert len(results.losses("net")) == 100_000
            assert min(taken) < 0.05


def test_metrics_logged_twice_count_once():
    store = MetricStore()
    store.log("a", 1.0, epoch=0)
    store.log("a", 2.0, epoch=0)
    store.log("a", 3.0, epoch=0, batch=1)
    store.log("a", 4.0, epoch=0, batch=1)
    store.log_batches("b", [5.0, 6.0], epoch=2)
    assert store.series().items() == [
        (("a", 0, None), 2.0),
        (("a", 0, 1), 4.0),
        (("b", 2, 0), 5.0),
        (("b", 2, 1), 6.0),
    ]
    assert store.at_epoch(0) == {"a": 2.0}
    assert [(e.name, e.batch, e.value) for e in store.entries()][-1] == ("b", 1, 6.0)


def test_views_for_people():
    fs = featureset(*arrays(n=40))
    graph = graph_of(fs, mlp())
    exp = experiment()
    group = mm.PhaseGroup("g")
    inputs = train_phase(graph).input_sources
    group.clear().add_train("t", input_sources=inputs, losses=[mse()], result_recording="last")
    group.add_phase(eval_phase(graph))
    exp.execution_plan.add_group(group)
    results = exp.run(**QUIET)
    assert results.to_pandas().loc["g/t", "train_loss"].tolist() == (
        results["g"].get_train_result().to_pandas()["train_loss"].tolist()
    )
    assert exp.last_run.to_pandas().equals(results.to_pandas())
    for shown in (exp, group, results, results["g"]["t"], results["g"]["eval"]):
        assert "t" in shown._repr_html_()
    assert "completed" in exp._repr_html_()
    for drawn in (
        results,
        results["g"]["t"],
        results["g"]["eval"],
        results["g"]["t"].losses("net"),
    ):
        assert drawn.plot(**({"x": "batch"} if isinstance(drawn, AxisSeries) else {})).axes
    frame = results["g"]["eval"].to_pandas()
    np.testing.assert_allclose(frame["target"], arrays(n=40)[1].ravel())


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}])
def test_a_phase_that_has_ended_holds_no_rows(options):
    class Chunks(mm.callbacks.Callback):
        """Keeps weak references to the memory of batches."""

        def on_batch_start(self, *, exec_ctx, **facts):
            refs.extend(weakref.ref(t._base) for t in exec_ctx.tensors)

    refs = []
    graph = graph_of(featureset(*arrays(n=60)), mlp())
    recording = "none"
    phase = train_phase(graph, callbacks=[Chunks()], result_recording=recording, **options)
    experiment().run_phase(phase, **QUIET)
    gc.collect()
    assert refs
    assert all(ref() is None for ref in refs)
    assert phase.position.iteration == 4
