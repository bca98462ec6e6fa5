"""CSV files and curves while a phase runs, and the bars beside it."""

import io
import sys

import IPython.display
import pandas as pd
import pytest

import modularml as mm
from modularml import progress
from modularml.callbacks import CSVLogger, LivePlot, MetricCallback
from modularml.errors import ConfigError
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

        monkeypatch.setattr("modularml.callbacks.live_plot.in_notebook", lambda: True)
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
        monkeypatch.setattr("modularml.experiment.loop._SOON", 0.0)
        text = self.run(monkeypatch, show_training_progress=True)
        assert "sampling" in text
        assert "epoch 3" in text
        assert "sampling" not in self.run(monkeypatch, show_sampler_progress=False)
        assert not self.run(monkeypatch, **QUIET)
        assert not self.run(monkeypatch, terminal=False, persist_progress=True)

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
