"""Phases: orders of epochs, hooks, errors, devices, steps by hand."""

import inspect
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import modularml as mm
from modularml.callbacks import Callback
from modularml.engine.loop import phase_epochs as the_loop
from modularml.errors import (
    ConfigError,
    DeviceError,
    GraphError,
    LossError,
    NonFiniteLossError,
    SplitError,
    UnknownNameError,
)
from tests.training.test_optimizer import assert_same_state
from tests.worlds import (
    QUIET,
    arrays,
    assert_equal_weights,
    bindings,
    by_hand,
    eval_phase,
    experiment,
    featureset,
    graph_of,
    mlp,
    mse,
    train,
    train_phase,
    twin,
    weights,
)


def orders(results):
    found = {}
    for ctx in results.execution_contexts():
        rows = ctx.indices(next(iter(ctx.layout.views)))["default"]
        found.setdefault(ctx.epoch_idx, []).extend(rows.tolist())
    return found


class TestOrders:
    def run(self, seed=7, global_seed=0):
        x, y = arrays(n=30)
        with mm.ExperimentContext().activate():
            graph = graph_of(featureset(x, y), mlp())
            torch.manual_seed(global_seed)
            return orders(train(graph, shuffle=True, seed=seed, n_epochs=3))

    def test_every_epoch_has_its_own(self):
        found = self.run()
        assert all(sorted(rows) == list(range(30)) for rows in found.values())
        assert found[0] != found[1] != found[2] != found[0]

    def test_reproducible_from_the_seed(self):
        assert self.run() == self.run()
        assert self.run(8) != self.run()

    def test_the_same_in_another_process(self):
        code = (
            "import json, sys; sys.path.insert(0, '.')\n"
            "from tests.experiment.test_phases import TestOrders\n"
            "print(json.dumps(TestOrders().run()))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        there = {int(k): v for k, v in json.loads(done.stdout.splitlines()[-1]).items()}
        assert there == self.run()

    def test_without_a_seed_the_global_one_of_the_framework_decides(self):
        first = self.run(None)
        assert first[0] != first[1]
        assert first == self.run(None)
        assert first != self.run(None, global_seed=1)

    def test_whole_runs_are_reproducible(self):
        x, y = arrays(n=30)
        found = []
        for _ in range(2):
            with mm.ExperimentContext().activate():
                torch.manual_seed(3)
                net = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 1))
                train(graph_of(featureset(x, y), net), shuffle=True, n_epochs=2)
                found.append(weights(net))
        assert_equal_weights(*found)


class Recorder(Callback):
    def __init__(self, log, name="a", order=0):
        super().__init__(name, order)
        self.log, self.name = log, name

    def on_phase_start(self, *, experiment, phase, results=None):
        self.log.append((self.name, "phase_start"))

    def on_epoch_start(self, *, experiment, phase, exec_ctx, results=None):
        self.log.append((self.name, "epoch_start", exec_ctx.epoch_idx))

    def on_batch_start(self, *, experiment, phase, exec_ctx, results=None):
        assert not len(exec_ctx.outs)
        self.log.append((self.name, "batch_start", exec_ctx.epoch_idx, exec_ctx.batch_idx))

    def on_batch_end(self, *, experiment, phase, exec_ctx, results=None):
        assert exec_ctx.losses[0].value > 0
        self.log.append((self.name, "batch_end", exec_ctx.epoch_idx, exec_ctx.batch_idx))

    def on_epoch_end(self, *, experiment, phase, exec_ctx, results=None):
        if phase.training:
            assert results.metrics().at(name="train_loss", epoch=exec_ctx.epoch_idx, batch=None) > 0
        self.log.append((self.name, "epoch_end", exec_ctx.epoch_idx))

    def on_phase_end(self, *, experiment, phase, results=None):
        self.log.append((self.name, "phase_end"))

    def on_exception(self, *, experiment, phase, exception, results=None):
        self.log.append((self.name, "exception", type(exception)))


PSEUDOCODE = """\
notify phase start
for each epoch:
notify epoch start
for each batch of the epoch:
notify batch start
step
record
notify batch end
log the losses of the epoch
notify epoch end
stop if requested
notify phase end
(on an error: notify exception, then raise it)"""


class TestHooks:
    def test_the_loop_says_what_it_does(self):
        text = "\n".join(line.strip() for line in the_loop.__doc__.split("::")[1].splitlines())
        assert PSEUDOCODE in text.replace("\n\n", "\n")

    def test_order_of_a_training(self):
        x, y = arrays(n=20)
        log = []
        train(graph_of(featureset(x, y), mlp()), n_epochs=2, callbacks=[Recorder(log)])
        want = [("a", "phase_start")]
        for epoch in range(2):
            want.append(("a", "epoch_start", epoch))
            for batch in range(2):
                want += [("a", "batch_start", epoch, batch), ("a", "batch_end", epoch, batch)]
            want.append(("a", "epoch_end", epoch))
        assert log == [*want, ("a", "phase_end")]

    def test_order_of_an_evaluation(self):
        x, y = arrays(n=20)
        log = []
        graph = graph_of(featureset(x, y), mlp())
        experiment().run_phase(eval_phase(graph, batch_size=16, callbacks=[Recorder(log)]))
        assert [entry[1] for entry in log] == [
            "phase_start",
            "epoch_start",
            *["batch_start", "batch_end"] * 2,
            "epoch_end",
            "phase_end",
        ]

    def test_execution_order(self):
        x, y = arrays(n=20)
        log = []
        listeners = [Recorder(log, "late", 5), Recorder(log, "first"), Recorder(log, "second")]
        train(graph_of(featureset(x, y), mlp()), callbacks=listeners)
        starts = [name for name, hook, *_ in log if hook == "phase_start"]
        assert starts == ["first", "second", "late"]

    def test_what_hooks_return_is_kept(self):
        class Says(Callback):
            def on_phase_start(self, **facts):
                return mm.callbacks.ArtifactResult("plan", {"a": 1})

            def on_batch_end(self, *, exec_ctx, **facts):
                return mm.callbacks.MetricResult("batch", float(exec_ctx.batch_idx))

            def on_epoch_end(self, *, exec_ctx, **facts):
                return mm.callbacks.MetricResult("epoch", 10.0 * exec_ctx.epoch_idx)

            def on_phase_end(self, **facts):
                return "done"

        x, y = arrays(n=20)
        results = train(graph_of(featureset(x, y), mlp()), n_epochs=2, callbacks=[Says()])
        assert results.metric_names() == ["train_loss", "epoch", "batch"] or set(
            results.metric_names()
        ) == {"train_loss", "epoch", "batch"}
        assert results.metrics().where(name="epoch").values() == [0.0, 10.0]
        assert results.metrics().where(name="batch", epoch=1).keys() == [
            ("batch", 1, 0),
            ("batch", 1, 1),
        ]
        assert results.artifacts().where(name="plan").one() == {"a": 1}
        assert results.artifact_names() == ["plan"]
        said = results.callbacks(kind="payload").one()
        assert (said.payload, said.label, said.edge) == ("done", "Says", "phase_end")

    def test_stop_after_the_current_epoch(self):
        class Stop(Callback):
            def on_batch_end(self, *, phase, exec_ctx, **facts):
                if exec_ctx.epoch_idx == 1:
                    phase.request_stop()

        x, y = arrays(n=20)
        graph = graph_of(featureset(x, y), mlp())
        phase = train_phase(graph, n_epochs=5, callbacks=[Stop()])
        exp = experiment()
        assert exp.run_phase(phase, **QUIET).epoch_indices == [0, 1]
        phase.callbacks.clear()
        assert exp.run_phase(phase, **QUIET).n_epochs == 5

    def test_two_alike_are_refused(self):
        x, y = arrays(n=20)
        graph = graph_of(featureset(x, y), mlp())
        with pytest.raises(mm.errors.RegistrationError, match="label"):
            train_phase(graph, callbacks=[Recorder([]), Recorder([])])
        with pytest.raises(TypeError, match="Callback"):
            train_phase(graph, callbacks=["a"])


HOOKS = [
    "on_phase_start",
    "on_epoch_start",
    "on_batch_start",
    "on_batch_end",
    "on_epoch_end",
    "on_phase_end",
]


class TestErrorsInHooks:
    @pytest.mark.parametrize("hook", HOOKS)
    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    def test_arrive_whole_and_leave_everything_usable(self, hook, error):
        x, y = arrays(n=40)
        log = []
        raised = error("mine")

        class Breaks(Callback):
            on = True

        def break_off(self, **facts):
            if self.on:
                raise raised

        setattr(Breaks, hook, break_off)
        net = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        net[1].eval()
        graph = graph_of(featureset(x, y), net)
        graph.build()
        exp = experiment()
        breaking = Breaks()
        phase = train_phase(graph, n_epochs=2, callbacks=[breaking, Recorder(log, order=9)])
        outside = mm.ExperimentContext.get_active()
        with pytest.raises(error) as caught:
            exp.run_phase(phase, **QUIET)
        assert caught.value is raised
        assert mm.ExperimentContext.get_active() is outside
        assert [m.training for m in net.modules()] == [True, True, False, True]
        assert torch.is_grad_enabled()
        run = exp.last_run
        assert run.status == ("interrupted" if error is KeyboardInterrupt else "failed")
        assert run.execution_meta["error"] is raised
        assert run.ended_at is not None
        assert run.results.labels == ["train"]
        assert log[-1] == ("a", "exception", error)
        breaking.on = False
        results = exp.run_phase(phase, **QUIET)
        assert results.n_epochs == 2
        assert [r.status for r in exp.history][-1] == "completed"

    def test_the_next_run_equals_a_clean_one(self):
        x, y = arrays(n=40)
        found = []
        for fails in (True, False):
            with mm.ExperimentContext().activate():
                mine = mlp()
                graph = graph_of(featureset(x, y), mine, "adam", lr=0.01)
                graph.build()
                start = graph.get_state()
                exp = experiment()
                phase = train_phase(graph, n_epochs=2, shuffle=True)
                if fails:

                    class Breaks(Callback):
                        def on_batch_end(self, *, exec_ctx, **facts):
                            if exec_ctx.epoch_idx == 1:
                                raise KeyboardInterrupt

                    phase.add_callback(Breaks())
                    with pytest.raises(KeyboardInterrupt):
                        exp.run_phase(phase, **QUIET)
                    phase.callbacks.clear()
                    graph.set_state(start)
                exp.run_phase(phase, **QUIET)
                found.append(weights(mine))
        assert_equal_weights(*found)

    def test_error_in_the_exception_hook_keeps_the_first(self):
        class Breaks(Callback):
            def on_batch_end(self, **facts):
                raise ValueError("first")

            def on_exception(self, **facts):
                raise RuntimeError("second")

        x, y = arrays(n=20)
        exp = experiment()
        phase = train_phase(graph_of(featureset(x, y), mlp()), callbacks=[Breaks()])
        with pytest.raises(ValueError, match="first") as caught:
            exp.run_phase(phase, **QUIET)
        assert any("second" in note for note in caught.value.__notes__)
        assert exp.last_run.status == "failed"


class TestNonFinite:
    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_stops_with_its_place(self, value):
        x, y = arrays(n=40)
        x[20] = value
        mine = mlp()
        graph = graph_of(featureset(x, y), mine, "adam", lr=0.01)
        seen = []

        class Watch(Callback):
            def on_batch_end(self, **facts):
                seen.append(weights(mine))

        phase = train_phase(graph, callbacks=[Watch()])
        exp = experiment(audit="off")
        with pytest.raises(NonFiniteLossError) as caught:
            exp.run_phase(phase, **QUIET)
        error = caught.value
        assert (error.phase, error.epoch, error.batch, error.node, error.loss) == (
            "train",
            0,
            1,
            "net",
            "mse_net",
        )
        assert all(word in str(error) for word in ("'train'", "epoch 0", "batch 1", "'net'"))
        assert_equal_weights(seen[-1], mine)
        assert len(seen) == 1
        assert exp.last_run.status == "failed"

    @pytest.mark.parametrize("on_nonfinite", ["raise", "skip"])
    def test_names_columns_and_rows(self, on_nonfinite):
        x, y = arrays(n=40)
        x[[3, 20, 21, 33], 2] = np.nan
        order = np.random.default_rng(0).permutation(40)
        graph = graph_of(featureset(x[order], y[order]), mlp())
        bad = np.flatnonzero(np.isnan(x[order]).any(axis=1))
        phase = train_phase(graph, shuffle=True, batch_size=20, on_nonfinite=on_nonfinite)
        with pytest.raises(NonFiniteLossError, match=r"'features.x2.raw'\].*in rows \[") as caught:
            experiment(audit="off").run_phase(phase, **QUIET)
        batch = caught.value.batch
        view = phase.input_sources[0].resolve_input_view()
        rows = phase.input_sources[0].sampler.epoch(view, 0).batch(batch, "default")
        assert caught.value.columns == ("features.x2.raw",)
        assert caught.value.rows == tuple(sorted(set(rows.tolist()) & set(bad.tolist())))
        assert caught.value.rows

    def test_says_where_the_rows_of_the_batch_are_fine(self):
        x, y = arrays(n=40)
        x[39, 2] = np.nan
        graph = graph_of(featureset(x, 1e30 * y), mlp())
        with pytest.raises(NonFiniteLossError, match="in rows of other batches") as caught:
            experiment(audit="off").run_phase(train_phase(graph), **QUIET)
        assert (caught.value.batch, caught.value.rows) == (0, ())

    def test_names_the_right_loss(self):
        x, y = arrays(n=40)
        graph = graph_of(featureset(x, y), mlp())
        bad = mm.AppliedLoss(
            mm.Loss(lambda o, t: (o - t) / 0.0),
            on="net",
            inputs=["outputs", "targets"],
            label="bad",
        )
        with pytest.raises(NonFiniteLossError, match="'bad'"):
            train(graph, [mse(), bad])

    def test_an_evaluation_reports_nan(self):
        x, y = arrays(n=40)
        x[20] = np.nan
        graph = graph_of(featureset(x, y), mlp())
        with pytest.warns(UserWarning, match="mse_net"):
            found = experiment().run_phase(eval_phase(graph))
        assert np.isnan(found.aggregated_losses("net")["mse_net"])


class TestDevices:
    def test_a_device_that_is_not_there(self):
        x, y = arrays(n=40)
        mine = mlp()
        graph = graph_of(featureset(x, y), mine, "adam")
        exp = experiment()
        before = weights(mine)
        device = f"cuda:{torch.cuda.device_count()}"
        phase = train_phase(graph, accelerator=device)
        with pytest.raises(DeviceError, match=r"not available.*cpu"):
            exp.run_phase(phase, **QUIET)
        assert_equal_weights(before, mine)
        assert exp.last_run.status == "failed"
        assert exp.run_phase(train_phase(graph, label="cpu", accelerator="cpu"), **QUIET).n_epochs

    def test_names(self):
        for name in ("cuda:x", "tpu", "cpu:1", ""):
            with pytest.raises(ConfigError, match="device"):
                mm.Accelerator(name)
        assert mm.Accelerator("gpu:1").torch_device_str() == "cuda:1"
        assert mm.Accelerator("gpu").tf_device_str() == "/GPU:0"
        assert mm.Accelerator.cuda(2).device == "cuda:2"
        assert mm.Accelerator.cuda(pin_memory=True) == mm.Accelerator("cuda:0", pin_memory=True)
        assert mm.Accelerator.gpu(1, pin_memory=True).pin_memory
        assert mm.Accelerator.cpu().is_available()
        assert mm.Accelerator.from_config(mm.Accelerator("cuda:1").get_config()).device == "cuda:1"

    def test_moving_keeps_weights_and_moments(self):
        x, y = arrays(n=40)
        found = []
        for device in (None, "cpu"):
            with mm.ExperimentContext().activate():
                mine = mlp()
                graph = graph_of(featureset(x, y), mine, "adam", lr=0.01)
                exp = experiment()
                for label in ("one", "two"):
                    phase = train_phase(graph, label=label, accelerator=device)
                    exp.run_phase(phase, **QUIET)
                found.append(weights(mine))
        assert_equal_weights(*found)


class TestByHand:
    @pytest.mark.parametrize("frozen", [False, True])
    def test_training_equals_run_phase_bit_for_bit(self, frozen):
        x, y = arrays(n=40)
        found, kept = [], []
        for by_hand_ in (False, True):
            with mm.ExperimentContext().activate():
                enc = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(0.2))
                torch.manual_seed(0)
                for layer in enc:
                    if hasattr(layer, "reset_parameters"):
                        layer.reset_parameters()
                first = mm.ModelNode("enc", enc, featureset(x, y))
                net = mlp(d=4)
                second = mm.ModelNode("net", net, first)
                opt = mm.Optimizer("adam", opt_kwargs={"lr": 0.01})
                graph = mm.ModelGraph([first, second], opt)
                if frozen:
                    graph.freeze(["enc"])
                graph.build()
                phase = train_phase(graph, shuffle=True, n_epochs=2)
                torch.manual_seed(1)
                if by_hand_:
                    results = mm.TrainResults("train")
                    for ctx in phase.iter_execution(results=results, **QUIET):
                        graph.train_step(ctx, phase.losses)
                else:
                    results = experiment().run_phase(phase, **QUIET)
                found.append({**weights(enc), **{f"net.{k}": v for k, v in weights(net).items()}})
                kept.append((graph.get_state(), results))
        assert_equal_weights(*found)
        assert_same_state(kept[0][0], kept[1][0])
        one, two = (r.tensors("net", "outputs") for _, r in kept)
        assert one.keys() == two.keys()
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))

    def test_evaluation(self):
        x, y = arrays(n=40)
        graph = graph_of(featureset(x, y), mlp())
        phase = eval_phase(graph, batch_size=16)
        results = mm.EvalResults("eval")
        for ctx in phase.iter_execution(results=results):
            graph.eval_step(ctx, phase.losses)
        whole = experiment().run_phase(phase)
        assert torch.equal(
            results.stacked_tensors("net", "outputs"), whole.stacked_tensors("net", "outputs")
        )
        assert results.aggregated_losses("net") == whole.aggregated_losses("net")


class TestConstruction:
    def graph(self):
        x, y = arrays(n=20)
        fs = featureset(x, y)
        fs.split_random({"train": 0.5, "test": 0.5})
        return graph_of(fs, mlp())

    @pytest.mark.parametrize("kind", [mm.TrainPhase, mm.EvalPhase, mm.FitPhase])
    def test_from_split_names_every_option_of_the_constructor(self, kind):
        made = inspect.signature(kind).parameters
        shown = inspect.signature(kind.from_split).parameters
        assert made.keys() - shown.keys() == {"input_sources"}
        assert all(shown[name].default == made[name].default for name in made.keys() & shown.keys())

    def test_from_split(self):
        graph = self.graph()
        sampler = mm.SimpleSampler(batch_size=4)
        phase = mm.TrainPhase.from_split("t", split="train", sampler=sampler, losses=[mse()])
        assert [b.split for b in phase.input_sources] == ["train"]
        results = experiment().run_phase(phase, **QUIET)
        used = results.source_view("net").row_indices
        assert sorted(used) == sorted(graph.context.get_node("data")["train"].row_indices)
        with pytest.raises(UnknownNameError, match="train"):
            mm.TrainPhase.from_split("t", split="trian", sampler=sampler, losses=[mse()])
        with pytest.raises(UnknownNameError, match="test"):
            mm.EvalPhase.from_split("t", split="tset")

    def test_no_graph(self):
        with pytest.raises(GraphError, match="no ModelGraph"):
            mm.EvalPhase.from_split("t", split="test")

    def test_bad_arguments(self):
        graph = self.graph()
        for epochs in (0, -1, 1.5, True):
            with pytest.raises(ConfigError, match="n_epochs"):
                train_phase(graph, n_epochs=epochs)
        with pytest.raises(ConfigError, match="batch_size"):
            eval_phase(graph, batch_size=0)
        with pytest.raises(ConfigError, match="label"):
            eval_phase(graph, label="")
        with pytest.raises(UnknownNameError, match="last"):
            train_phase(graph, result_recording="lst")
        with pytest.raises(UnknownNameError, match="zip_strict"):
            train_phase(graph, batch_schedule="zip_strct")
        with pytest.raises(TypeError, match="InputBinding"):
            mm.EvalPhase("e", input_sources=["data"])
        with pytest.raises(TypeError, match="AppliedLoss"):
            eval_phase(graph, ["mse"])
        with pytest.raises(LossError, match="at least one loss"):
            mm.TrainPhase("t", input_sources=bindings(graph), losses=[])

    def test_bindings(self):
        graph = self.graph()
        fs = graph.context.get_node("data")
        sampler = mm.SimpleSampler(batch_size=4)
        for upstream in (fs, "data", None, fs.node_id):
            made = mm.InputBinding.for_training(node="net", sampler=sampler, upstream=upstream)
            assert made.split is None
            assert len(made.resolve_input_view()) == 20
        by_view = mm.InputBinding.for_evaluation(node="net", upstream=fs["train"])
        assert by_view.split == "train"
        assert len(by_view.materialize_batches(show_progress=False)) == 1
        with pytest.raises(SplitError, match="add_split"):
            mm.InputBinding.for_evaluation(node="net", upstream=fs.take([1, 2]))
        with pytest.raises(UnknownNameError, match="data"):
            mm.InputBinding.for_evaluation(node="net", upstream="dta")
        with pytest.raises(UnknownNameError, match="net"):
            mm.InputBinding.for_evaluation(node="nett", upstream=fs)
        with pytest.raises(UnknownNameError, match="train"):
            mm.InputBinding.for_evaluation(node="net", upstream=fs, split="trian")
        with pytest.raises(ConfigError, match="sampler"):
            mm.InputBinding.for_training(node="net", sampler=None, upstream=fs)
        with pytest.raises(GraphError, match="bind a head node"):
            mm.InputBinding.for_evaluation(node="data", upstream=fs)

    def test_an_edge_without_a_binding(self):
        self.graph()
        with pytest.raises(GraphError, match=r"'net'.*'data'"):
            experiment().run_phase(mm.EvalPhase("e", input_sources=[]))

    def test_config_round_trip(self):
        graph = self.graph()
        phase = train_phase(
            graph,
            n_epochs=3,
            split="train",
            shuffle=True,
            active_nodes=["net"],
            result_recording="last",
            accelerator="cpu",
            checkpointing=mm.Checkpointing(every_n=2),
        )
        again = mm.TrainPhase.from_config(phase.get_config())
        assert again.get_config() == phase.get_config()
        assert again.n_epochs == 3
        assert again.recording is phase.recording
        assert again.input_sources[0].sampler == phase.input_sources[0].sampler
        evaluation = eval_phase(graph, batch_size=3, split="test")
        assert (
            mm.EvalPhase.from_config(evaluation.get_config()).get_config()
            == evaluation.get_config()
        )

    def test_schedules(self):
        x, y = arrays(n=24)
        one, two = featureset(x, y, "one"), featureset(x[:8], y[:8], "two")
        nodes = [mm.ModelNode("a", mlp(), one), mm.ModelNode("b", mlp(), two)]
        graph = mm.ModelGraph(nodes, mm.Optimizer("sgd", opt_kwargs={"lr": 0.0}))
        sampler = mm.SimpleSampler(batch_size=4)
        for policy, n in (("zip_strict", 2), ("zip_cycle", 6)):
            phase = mm.TrainPhase(
                policy,
                input_sources=bindings(graph, sampler),
                losses=[mse("a"), mse("b")],
                batch_schedule=policy,
            )
            results = experiment(policy).run_phase(phase, **QUIET)
            assert len(results.execution_contexts()) == n


def test_absent_torch_says_what_to_install():
    code = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] == 'torch':
            raise ModuleNotFoundError("No module named 'torch'", name='torch')
sys.meta_path.insert(0, Block())
import modularml as mm
from modularml.errors import MissingDependencyError
mm.ModelGraph, mm.Experiment, mm.Loss("mse"), mm.Optimizer("adam")
for make in (lambda: mm.Loss("mse", backend="torch"), lambda: mm.Optimizer("adam", backend="torch"),
             lambda: mm.TorchBaseModel, lambda: mm.models.torch.SequentialMLP):
    try:
        make()
    except MissingDependencyError as error:
        assert "pip install '.[torch]' in the checkout" in str(error), error
    else:
        raise SystemExit("no error")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_data_scaled_after_the_first_phase_is_read_anew():
    x, y = arrays(n=20)
    fs = featureset(x, 5 * y)
    mine = mlp()
    graph = graph_of(fs, mine)
    exp = experiment()
    exp.run_phase(train_phase(graph, label="one"), **QUIET)
    hand = twin(mine)
    fs.fit_transform("StandardScaler", domain="targets")
    exp.run_phase(train_phase(graph, label="two"), **QUIET)
    scaled = fs.get_targets("numpy", rep="transformed").astype(np.float32)
    by_hand(hand, lambda p: torch.optim.SGD(p, lr=0.05), x, scaled, epochs=1)
    assert_equal_weights(mine, hand, atol=1e-5)


def test_a_phase_of_your_own_takes_what_it_passes_on():
    class Noisy(mm.EvalPhase):
        def __init__(self, label, *, noise=0.0, **options):
            super().__init__(label, **options)
            self.noise = noise

    names = list(inspect.signature(Noisy).parameters)
    assert names[:2] == ["label", "noise"]
    assert set(inspect.signature(mm.EvalPhase.__base__).parameters) <= set(names)
    assert "options" not in names
