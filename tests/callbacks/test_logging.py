"""CSV files and curves while a phase runs, and the bars beside it."""

import io
import subprocess
import sys
from pathlib import Path

import IPython.display
import pandas as pd
import pytest
import tqdm.std

import modularml as mm
from modularml import progress
from modularml.callbacks import CSVLogger, LivePlot, MetricCallback
from modularml.errors import ConfigError, ModularMLError
from tests.worlds import (
    QUIET,
    arrays,
    eval_phase,
    experiment,
    featureset,
    graph_of,
    mlp,
    train_phase,
)


def run(*callbacks, n_epochs=4, **flags):
    late = MetricCallback("late", lambda exec_ctx, **_: [None, None, 2, 3][exec_ctx.epoch_idx])
    with mm.ExperimentContext().activate():
        graph = graph_of(featureset(*arrays(n=40)), mlp())
        phase = train_phase(graph, n_epochs=n_epochs, callbacks=[late, *callbacks])
        return experiment().run_phase(phase, **(flags or QUIET))


class TestCSV:
    def test_holds_what_the_results_hold(self, tmp_path):
        path = tmp_path / "deep" / "log.csv"
        results = run(CSVLogger(path))
        frame = pd.read_csv(path)
        assert frame["phase"].tolist() == ["train"] * 4
        want = results.to_pandas()
        for name in want.columns:
            pd.testing.assert_series_equal(
                frame.set_index("epoch")[name], want[name], check_names=False, check_dtype=False
            )

    def test_replaced_or_continued(self, tmp_path):
        path = tmp_path / "log.csv"
        for append, n in ((False, 4), (False, 4), (True, 8)):
            run(CSVLogger(path, append=append))
            assert len(pd.read_csv(path)) == n

    def test_is_whole_after_each_epoch(self, tmp_path):
        path, seen = tmp_path / "log.csv", []

        class Reads(mm.callbacks.Callback):
            def on_epoch_end(self, **facts):
                seen.append(len(pd.read_csv(path)))

        run(CSVLogger(path), Reads(execution_order=101))
        assert seen == [1, 2, 3, 4]


class TestLivePlot:
    def test_one_picture_is_replaced_in_its_place(self, monkeypatch):
        shown, updated = [], []

        class Handle:
            update = staticmethod(updated.append)

        def display(figure, display_id):
            assert display_id is True
            shown.append(figure)
            return Handle

        monkeypatch.setattr("modularml.callbacks.loggers.in_notebook", lambda: True)
        monkeypatch.setattr(IPython.display, "display", display)
        run(LivePlot(["train_loss"], every_n_epochs=2, min_seconds=0))
        assert len(shown) == 1
        assert len(updated) == 2  # after epoch 3, and at the end
        (line,) = updated[-1].axes[0].get_lines()
        assert line.get_xdata().tolist() == [0, 1, 2, 3]

    def test_text_elsewhere(self, capsys):
        results = run(LivePlot(min_seconds=0))
        lines = capsys.readouterr().out.splitlines()
        loss = results.metrics().at(name="train_loss", epoch=3, batch=None)
        assert len(lines) == 4
        assert lines[3] == f"train, epoch 3: train_loss {loss:.5g}, late 3"

    def test_arguments(self):
        with pytest.raises(ConfigError, match="every_n_epochs"):
            LivePlot(every_n_epochs=0)
        assert LivePlot.from_config(LivePlot(["a"]).get_config()) == LivePlot(["a"])


class TestBars:
    def run(self, monkeypatch, work=run, terminal=True, **flags):
        drawn = io.StringIO()
        monkeypatch.setattr(sys, "stderr", drawn)
        monkeypatch.setattr(drawn, "isatty", lambda: terminal)
        tqdm = progress.tqdm_class()
        monkeypatch.setattr(
            progress,
            "tqdm_class",
            lambda: lambda **kw: tqdm(**{**kw, "file": drawn, "ascii": True}),
        )
        work(**flags)
        return drawn.getvalue()

    def test_nested_bars_stay_where_asked(self, monkeypatch):
        text = self.run(monkeypatch, persist_progress=True, persist_epoch_progress=True)
        assert text.count("train: 100%") >= 1
        assert "train_loss=" in text
        for epoch in range(4):
            assert f"epoch {epoch}: 100%" in text

    def test_short_epochs_draw_none_of_their_own(self, monkeypatch):
        text = self.run(monkeypatch, persist_progress=True)
        assert "train: 100%" in text
        assert "epoch 0" not in text

    def test_slow_samplers_and_epochs_do(self, monkeypatch):
        monkeypatch.setattr("modularml.engine.display._SOON", 0.0)
        text = self.run(monkeypatch, show_training_progress=True)
        assert "sampling" in text
        assert "epoch 3" in text
        assert "sampling" not in self.run(monkeypatch, show_sampler_progress=False)
        assert not self.run(monkeypatch, **QUIET)
        assert not self.run(monkeypatch, terminal=False, persist_progress=True)

    @pytest.mark.parametrize("widgets", [True, False])
    def test_a_notebook_gets_one_bar_for_the_batches_of_all_epochs(self, widgets, monkeypatch):
        made = []

        class Counted(tqdm.std.tqdm):
            def __init__(self, **options):
                made.append(options["desc"])
                super().__init__(**options, file=io.StringIO())

        monkeypatch.setattr(progress, "IN_NOTEBOOK", True)
        monkeypatch.setattr(progress, "has", lambda name: widgets)
        monkeypatch.setattr(progress, "tqdm_class", lambda: Counted)
        monkeypatch.setattr("modularml.engine.display._SOON", 1e-9)
        run(n_epochs=4, show_sampler_progress=False)
        assert made == (["train", "epoch 0"] if widgets else ["train"])
        assert not progress._drawn

    @pytest.mark.parametrize("n_writes", [0, 3, 9, 14])
    def test_a_terminal_that_is_gone_ends_no_run(self, n_writes, monkeypatch):
        class Gone(io.StringIO):
            left = n_writes

            def isatty(self):
                return True

            def write(self, text):
                self.left -= 1
                if self.left < 0:
                    raise OSError("Input/output error")
                return super().write(text)

        monkeypatch.setattr(sys, "stderr", Gone())
        results = run(persist_progress=True, persist_epoch_progress=True)
        assert sys.stderr.left < 0
        assert len(results.to_pandas()) == 4
        assert not progress._drawn  # which would hide later bars in a notebook

    def test_driven_by_hand(self, monkeypatch):
        def by_hand():
            graph = graph_of(featureset(*arrays(n=40)), mlp())
            phase = train_phase(graph, n_epochs=2)
            results = mm.TrainResults("train")
            flags = {"persist_progress": True, "persist_epoch_progress": True}
            for ctx in phase.iter_execution(results=results, **flags):
                graph.train_step(ctx, phase.losses)
            assert len(results.execution_contexts()) == 6
            flags = {"persist_progress": True, "show_eval_progress": True}
            for ctx in eval_phase(graph).iter_execution(**flags):
                graph.eval_step(ctx, [])

        text = self.run(monkeypatch, by_hand)
        assert text.count("epoch 0: 100%") >= 2
        assert "train: 100%" in text


LINES = """
import sys
from modularml.callbacks import LivePlot
from modularml.progress import print_line
from tests.callbacks.test_logging import run
for _ in range(20):
    print_line("pr\u00fcfung")
    run(LivePlot(min_seconds=0), show_training_progress=False)
print("complete", file=sys.stderr)
"""


def test_lines_that_nobody_reads_or_that_cannot_be_encoded(monkeypatch):
    """As in ``PYTHONIOENCODING=ascii python script.py | head -n 2``."""
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    root = Path(mm.__file__).parents[1]
    command = [sys.executable, "-c", LINES]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=root, **pipes) as process:
        assert process.stdout.readline() == "pr\\xfcfung\n"
        assert process.stdout.readline().startswith("train, epoch 0: train_loss ")
        process.stdout.close()
        assert process.stderr.read().splitlines()[-1:] == ["complete"]
    assert process.returncode == 0


JOB = """
import sys, time, numpy as np, modularml as mml
from modularml.models.torch import SequentialMLP
x = np.random.default_rng(0).normal(size=(40, 3)).astype("float32")
fs = mml.FeatureSet.from_dict("rows", {"x": x, "y": x[:, 0]}, "x", "y")
fs.add_split(fs.take(range(40), label="train"))
mml.ModelGraph([mml.ModelNode("net", SequentialMLP(), fs)], mml.Optimizer("adam"))
e = mml.Experiment.from_active_context("e", audit="off")
class Slow(mml.callbacks.Callback):
    def on_epoch_end(self, **facts):
        print("epoch", flush=True); time.sleep(0.3)
loss = mml.AppliedLoss(mml.Loss("mse"), on="net", inputs=["outputs", "targets"])
own = {}
if sys.argv[2] == "csv":
    own["callbacks"] = [mml.callbacks.CSVLogger(sys.argv[1]), Slow("slow")]
else:
    own["callbacks"] = [Slow("slow")]
    own["checkpointing"] = mml.Checkpointing(mode="disk", directory=sys.argv[1])
e.run_phase(mml.TrainPhase.from_split("t", split="train", sampler=mml.SimpleSampler(batch_size=20),
    losses=[loss], n_epochs=int(sys.argv[3]), **own), show_training_progress=False)
"""


def job(path, what, n_epochs):
    command = [sys.executable, "-c", JOB, str(path), what, str(n_epochs)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )


@pytest.mark.parametrize("what", ["csv", "checkpoints"])
def test_a_path_has_one_owner(what, tmp_path):
    path = tmp_path / "log.csv" if what == "csv" else tmp_path
    first = job(path, what, 200)
    assert first.stdout.readline() == "epoch\n"  # it is under way
    before = sorted(tmp_path.iterdir())
    second = job(path, what, 1)
    _, error = second.communicate()
    assert second.returncode == 1
    assert f"is being written by process {first.pid}" in error
    assert sorted(tmp_path.iterdir())[: len(before)] == before
    first.kill()  # nobody tidies up, and the path is free all the same
    first.communicate()
    third = job(path, what, 2)
    assert third.communicate()[0] == "epoch\nepoch\n"
    if what == "csv":
        assert len(pd.read_csv(path)) == 2
    assert not list(tmp_path.glob("*.lock"))


def test_phases_of_one_run_share_a_log(tmp_path):
    path = tmp_path / "log.csv"
    with mm.ExperimentContext().activate():
        graph = graph_of(featureset(*arrays(n=40)), mlp())
        made, log = experiment(), CSVLogger(path)
        for label in ("a", "b"):
            phase = train_phase(graph, n_epochs=2, callbacks=[log], label=label)
            made.execution_plan.add_phase(phase)
        made.run(**QUIET)
        assert pd.read_csv(path)["phase"].tolist() == ["a", "a", "b", "b"]
        made.run(**QUIET)  # the next run replaces it
        assert len(pd.read_csv(path)) == 4


def test_two_loggers_of_one_phase_need_paths_of_their_own(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    paths = [tmp_path / folder / "log.csv" for folder in ("real", "link")]
    with pytest.raises(ConfigError, match="'a' and 'b', would write to"):
        run(*(CSVLogger(path, label=label) for path, label in zip(paths, "ba", strict=True)))
    assert not paths[0].exists()


def test_the_whole_plan_is_checked_before_anything_trains(tmp_path):
    def with_label(graph):
        return train_phase(graph, label="fine tune", checkpointing=mm.Checkpointing(mode="disk"))

    def with_template(graph):
        kept = mm.Checkpointing(mode="disk", directory=tmp_path, name_template="{phase}-x")
        return train_phase(graph, label="größe", checkpointing=kept)

    def without_folder(graph):
        kept = mm.Checkpointing(mode="disk", directory=tmp_path / "file")
        return train_phase(graph, label="b", checkpointing=kept)

    def with_monitor(graph):
        return train_phase(graph, label="b", callbacks=[mm.EarlyStopping(monitor="val_loss")])

    def plain(graph):
        return train_phase(graph, label="b", n_epochs=2)

    def one_cycle(every, **kwargs):
        kwargs = {"max_lr": 0.1, **kwargs}
        return mm.LRSchedule("OneCycleLR", schedule_kwargs=kwargs, every=every)

    plateau = mm.LRSchedule("ReduceLROnPlateau", monitor="val_loss")
    nine_batches = one_cycle("batch", epochs=3, steps_per_epoch=3)
    three_epochs = one_cycle("epoch", total_steps=3)
    (tmp_path / "file").write_text("")
    for trouble, schedule, match in (
        (with_label, None, "'fine tune'"),
        (with_template, None, "größe"),
        (without_folder, None, "file"),
        (with_monitor, None, "EarlyStopping monitors the metric 'val_loss', which is not logged"),
        (plain, plateau, "schedule of .* monitors the metric 'val_loss', which is not logged"),
        (plain, nine_batches, "phase 'b': .* has 3 steps left, and the training needs 6"),
        (plain, three_epochs, "phase 'b': .* has 1 steps left, and the training needs 2"),
    ):
        with mm.ExperimentContext().activate():
            module = mlp()
            before = module.state_dict()["0.weight"].clone()
            optimizer = mm.Optimizer("sgd", opt_kwargs={"lr": 0.05}, schedule=schedule)
            node = mm.ModelNode("net", module, featureset(*arrays(n=40)))
            graph = mm.ModelGraph([node], optimizer)
            made = experiment()
            made.set_checkpoint_dir(tmp_path)
            made.execution_plan.add_phase(train_phase(graph, label="warm-up", n_epochs=2))
            made.execution_plan.add_phase(trouble(graph))
            with pytest.raises(ModularMLError, match=match) as raised:
                made.run(**QUIET)
            (failed,) = made.history
            assert (failed.status, failed.results.labels) == ("failed", [])
            assert failed.execution_meta["error"] is raised.value
            assert (module.state_dict()["0.weight"] == before).all()
            assert not list(tmp_path.rglob("*.ckpt.mml"))
            assert not list(tmp_path.rglob(".*.lock"))
            if schedule is not plateau:
                made.run_phase(made.execution_plan.get_phase("warm-up"), **QUIET)


class TestWithoutTerminal:
    @pytest.mark.parametrize("every", [1, 3])
    def test_the_last_line_is_always_printed(self, every, capsys):
        results = run(LivePlot(every_n_epochs=every, min_seconds=60))
        lines = capsys.readouterr().out.splitlines()
        last = results.to_pandas()["train_loss"].iloc[-1]
        assert lines[-1].startswith(f"train, epoch 3: train_loss {last:.5g}")
        assert len({line.partition(":")[0] for line in lines}) == len(lines)

    def test_epochs_and_phases_are_logged(self, caplog):
        with caplog.at_level("INFO", logger="modularml"):
            results = run(n_epochs=4)
        first = results.to_pandas()["train_loss"].iloc[0]
        assert caplog.messages[0] == f"phase 'train', epoch 0 of 4: train_loss {first:.5g}"
        assert caplog.messages[-1] == "phase 'train' is complete"
        assert len(caplog.messages) == 5


def test_a_directory_is_for_files():
    with pytest.raises(ConfigError, match=r"mode='memory' writes none.*mode='disk'"):
        mm.Checkpointing(mode="memory", directory="folder")
