"""Plots: what is drawn is read back from the figure and held against scikit-learn."""

import io
import pickle
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from modularml.errors import ConfigError, DataError, ShapeError
from modularml.plotting import (
    bars,
    calibration,
    confusion_matrix,
    learning_curve,
    loss_curves,
    panels,
    parity,
    precision_recall,
    residuals,
    roc,
    series,
)
from modularml.viz.style import SERIES

matplotlib = pytest.importorskip("matplotlib")
RNG = np.random.default_rng(3)


def legend_of(figure):
    """Return the legend's texts, inside the axes or beside them."""
    legends = [axes.get_legend() for axes in figure.axes if axes.get_legend()] + figure.legends
    return [text.get_text() for text in legends[0].get_texts()]


def line(figure, i=0):
    """Return positions and values of the i-th line."""
    return figure.axes[0].lines[i].get_data()


def cells(figure):
    """Return the lines of text in each cell of a confusion matrix, row by row."""
    texts = sorted(figure.axes[0].texts, key=lambda t: t.get_position()[::-1])
    size = round(len(texts) ** 0.5)
    return [[texts[r * size + c].get_text().split("\n") for c in range(size)] for r in range(size)]


# ---- every plot

PLOTS = {
    "bars": lambda **kw: bars({"a": [1.0, 2.0], "b": [3.0]}, **kw),
    "loss": lambda **kw: loss_curves({"train": [3.0, 2.0, 1.0]}, **kw),
    "series": lambda **kw: series({"rmse": [3.0, 2.0, 1.0]}, **kw),
    "confusion": lambda **kw: confusion_matrix([0, 1, 1], [0, 1, 0], **kw),
    "parity": lambda **kw: parity([1.0, 2.0, 3.0], [1.1, 2.1, 2.9], **kw),
    "residuals": lambda **kw: residuals([1.0, 2.0, 3.0], [1.1, 2.1, 2.9], **kw),
    "boxes": lambda **kw: residuals([1.0, 2.0, 9.0], [1.1, 2.1, 2.9], groups=[1, 1, 2], **kw),
    "over": lambda **kw: residuals([1.0, 2.0, 3.0], [1.1, 2.1, 2.9], over=[5, 6, 7], **kw),
    "roc": lambda **kw: roc([0, 1, 1, 0], [0.1, 0.7, 0.4, 0.5], **kw),
    "precision_recall": lambda **kw: precision_recall([0, 1, 1, 0], [0.1, 0.7, 0.4, 0.5], **kw),
    "calibration": lambda **kw: calibration([0, 1, 1, 0], [0.1, 0.7, 0.4, 0.5], n_bins=2, **kw),
    "learning": lambda **kw: learning_curve([5, 9], [[1, 2], [2, 3]], [[0, 1], [1, 1]], **kw),
}


@pytest.fixture(params=sorted(PLOTS))
def plot(request):
    return PLOTS[request.param]


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg", ".PNG"])
def test_plots_are_saved(plot, tmp_path, suffix):
    path = tmp_path / f"plot{suffix}"
    plot(path=path)
    start = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}[suffix.lower()]
    assert path.read_bytes().startswith(start)
    if suffix == ".png":
        from matplotlib.image import imread

        assert len(np.unique(imread(path)[..., 0])) > 20, "not blank"


def test_paths_are_checked(plot, tmp_path):
    with pytest.raises(ConfigError, match=r"\.png, \.pdf, \.svg"):
        plot(path=tmp_path / "plot.gif")
    with pytest.raises(ConfigError, match=r"'.*nowhere' does not exist"):
        plot(path=tmp_path / "nowhere" / "plot.png")


def test_plots_leave_nothing_behind(plot):
    from matplotlib._pylab_helpers import Gcf

    before = dict(matplotlib.rcParams)
    plot(title="t")
    assert not Gcf.figs, "pyplot knows of no figure"
    assert dict(matplotlib.rcParams) == before


def test_plots_look_the_same_in_a_dark_style(plot):
    from matplotlib import style

    plain = plot(title="t")._repr_png_()
    with style.context(["dark_background", {"lines.linewidth": 9, "font.family": "serif"}]):
        dark = plot(title="t")
        assert dark._repr_png_() == plain
        assert dark.get_facecolor() == (1.0, 1.0, 1.0, 1.0)


def test_panels_look_the_same_in_a_dark_style():
    from matplotlib import style

    def draw():
        data = {"loss": {"a": [1.0, 0.001]}, "many": {f"m{i}": [1.0, i] for i in range(9)}}
        return panels(data, x="epoch", title="t", mark={"kept epoch 1": 1})._repr_png_()

    plain = draw()
    with style.context(["dark_background", {"lines.linewidth": 9, "font.family": "serif"}]):
        assert draw() == plain


def test_figures_show_themselves_in_notebooks_and_can_be_pickled(plot):
    figure = plot(title="A title")
    assert isinstance(figure, matplotlib.figure.Figure)
    assert figure.axes[0].get_title(loc="left") == "A title"
    assert pickle.loads(pickle.dumps(figure))._repr_png_() == figure._repr_png_()


def test_importing_the_plots_does_not_import_matplotlib():
    script = "import sys, modularml.plotting; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


# ---- curves


def test_loss_curves_draw_what_they_are_given():
    figure = loss_curves({"train": [3.0, 2.0, 1.5], "val": ([1, 2], [2.5, 2.2])})
    np.testing.assert_array_equal(line(figure), [[0, 1, 2], [3.0, 2.0, 1.5]])
    np.testing.assert_array_equal(line(figure, 1), [[1, 2], [2.5, 2.2]])
    assert [li.get_color() for li in figure.axes[0].lines] == list(SERIES[:2])
    assert legend_of(figure) == ["train", "val"]
    assert figure.axes[0].get_xlabel() == "epoch"


def test_two_losses_are_not_taken_for_epochs_and_losses():
    np.testing.assert_array_equal(line(loss_curves({"a": (5.0, 4.0)})), [[0, 1], [5.0, 4.0]])


@pytest.mark.parametrize(
    ("values", "log", "scale"),
    [
        ([1.0, 0.5], None, "linear"),
        ([1.0, 0.01], None, "log"),
        ([1.0, 0.01, np.nan], None, "log"),
        ([1.0, 0.0], None, "linear"),
        ([-1.0, 500.0], None, "linear"),
        ([1.0, 0.01], False, "linear"),
        ([1.0, 0.5], True, "log"),
    ],
)
def test_the_scale_follows_the_range_unless_asked_for(values, log, scale):
    assert loss_curves({"a": values}, log=log).axes[0].get_yscale() == scale


def test_log_needs_positive_losses():
    with pytest.raises(DataError, match=r"got -2 in series 'val' at epoch 1"):
        loss_curves({"train": [1.0, 2.0], "val": [1.0, -2.0]}, log=True)


def test_losses_that_are_not_finite_leave_a_gap_and_are_marked():
    figure = loss_curves({"a": [3.0, np.nan, 1.0, np.inf, 1.0]})
    np.testing.assert_array_equal(line(figure)[1], [3.0, np.nan, 1.0, np.nan, 1.0])
    np.testing.assert_array_equal(line(figure, 1), [[1, 3], [0, 0]])
    assert legend_of(figure) == ["a (2 not finite)"]
    assert loss_curves({"a": [np.nan, np.nan]})._repr_png_()


def test_a_single_finite_loss_among_nans_is_seen():
    values = np.full(100, np.nan)
    values[50] = 1.0
    curve = loss_curves({"a": values}).axes[0].lines[0]
    assert (curve.get_marker(), curve.get_markevery()) == ("o", [50])


def test_the_best_epoch_is_marked():
    figure = loss_curves({"a": [3.0, 2.0, 2.5]}, best_epoch=1)
    assert line(figure, 1)[0] == [1, 1]
    assert legend_of(figure)[-1] == "best epoch 1"
    with pytest.raises(ConfigError, match="0 to 2, got 3"):
        loss_curves({"a": [3.0, 2.0, 2.5]}, best_epoch=3)


def test_many_curves_are_told_apart_and_explained_beside_the_axes():
    figure = loss_curves({f"_fold ${i}": [1.0, 2.0] for i in range(28)})
    looks = {(li.get_color(), li.get_linestyle()) for li in figure.axes[0].lines}
    assert len(looks) == 28
    assert legend_of(figure) == [f"_fold ${i}" for i in range(28)]
    assert figure.axes[0].get_legend() is None


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        ({}, DataError, "nothing to draw"),
        ({"a": []}, DataError, "'a' is empty"),
        ({"a": ["x", "y"]}, DataError, "'a' must hold numbers"),
        ([1.0, 2.0], DataError, "mapping of names to values or a frame, got list"),
        ({"a": 3.0}, ShapeError, r"values \(\)"),
        ({"a": ([1, 2, 3], [1.0, 2.0])}, ShapeError, r"\(3,\), values \(2,\)"),
        ({"a": np.ones((2, 3))}, ShapeError, r"values \(2, 3\)"),
    ],
)
def test_curves_that_cannot_be_drawn(data, error, words):
    for draw in (loss_curves, series):
        with pytest.raises(error, match=words):
            draw(data)


def test_series_of_a_frame():
    index = pd.MultiIndex.from_tuples([("fold_0", 0), ("fold_0", 1), ("fold_1", 0)])
    frame = pd.DataFrame({"rmse": [3.0, 1.0, 2.0], ("mae", "val"): [1.0, 2.0, 3.0]}, index=index)
    figure = series(frame, y="error (Ah)")
    ticks = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert ticks == ["fold_0 / 0", "fold_0 / 1", "fold_1 / 0"]
    np.testing.assert_array_equal(line(figure), [[0, 1, 2], [3.0, 1.0, 2.0]])
    assert legend_of(figure) == ["rmse", "mae / val"]
    assert figure.axes[0].get_ylabel() == "error (Ah)"


def test_series_over_numbers_and_times():
    one = pd.Series([1.0, 2.0], index=[0.5, 1.5], name="drift")
    np.testing.assert_array_equal(line(series(one)), [[0.5, 1.5], [1.0, 2.0]])
    times = pd.date_range("2024-01-01", periods=3)
    np.testing.assert_array_equal(line(series({"a": (times, [1.0, 2.0, 3.0])}))[0], times)


def test_texts_of_several_series_share_their_places():
    figure = series({"a": (["x", "y"], [1.0, 2.0]), "b": (["y", "z"], [3.0, 4.0])})
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["x", "y", "z"]
    np.testing.assert_array_equal(line(figure, 1), [[1, 2], [3.0, 4.0]])


# ---- confusion matrix


@pytest.mark.filterwarnings("ignore:A single label")
@given(
    st.lists(st.tuples(st.integers(-2, 4), st.integers(-2, 4)), min_size=1, max_size=40),
    st.booleans(),
)
@settings(deadline=None, max_examples=15)
def test_cells_equal_those_of_scikit_learn(pairs, as_text):
    true, pred = (
        [f"c{v}" if as_text else v for v in column] for column in zip(*pairs, strict=True)
    )
    classes = sorted({*true, *pred})
    counts = metrics.confusion_matrix(true, pred, labels=classes)
    figure = confusion_matrix(true, pred)
    np.testing.assert_array_equal([[int(c[0]) for c in row] for row in cells(figure)], counts)
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert names == [str(name) for name in classes]
    assert f"{len(true)} samples, {metrics.accuracy_score(true, pred):.1%} correct" in (
        figure.axes[0].get_xlabel()
    )


def test_normalized_cells_equal_those_of_scikit_learn():
    true, pred = RNG.integers(0, 4, 200), RNG.integers(0, 4, 200)
    labels = [3, 1, 0, 2, 9]
    drawn = cells(confusion_matrix(true, pred, labels=labels, normalize=True))
    shares = metrics.confusion_matrix(true, pred, labels=labels[:4], normalize="true")
    counts = metrics.confusion_matrix(true, pred, labels=labels)
    np.testing.assert_array_equal([[int(c[1]) for c in row] for row in drawn], counts)
    assert [[c[0] for c in row[:4]] for row in drawn[:4]] == [
        [f"{s:.2f}" for s in r] for r in shares
    ]
    assert {c[0] for c in drawn[4]} == {"–"}, "no fraction of no samples"


@pytest.mark.parametrize(("size", "scale"), [(2, 1), (12, 10), (25, 40_000)])
def test_cells_are_readable_and_hold_their_text(size, scale):
    true, pred = RNG.integers(0, size, 50 * scale), RNG.integers(0, 2, 50 * scale)
    figure = confusion_matrix([*true, *range(size)], [*pred, *range(size)])
    figure.draw_without_rendering()
    axes = figure.axes[0]
    image = axes.images[0]
    width = axes.get_window_extent().width / size
    for text in axes.texts[:: max(len(axes.texts) // 60, 1)]:
        assert text.get_window_extent().width < width
        column, row = text.get_position()
        ground = luminance(image.to_rgba(image.get_array()[row, column]))
        ink = luminance(matplotlib.colors.to_rgb(text.get_color()))
        high, low = max(ground, ink), min(ground, ink)
        assert (high + 0.05) / (low + 0.05) > 3.9


def luminance(colour):
    """Relative luminance after WCAG 2.1."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return np.dot((0.2126, 0.7152, 0.0722), linear)


@pytest.mark.parametrize(
    ("true", "pred", "options", "error", "words"),
    [
        ([], [], {}, DataError, "are empty"),
        ([0, 1], [0, 1, 1], {}, ShapeError, r"\(2,\) and \(3,\)"),
        (np.zeros((2, 2)), np.zeros((2, 2)), {}, ShapeError, r"\(2, 2\)"),
        ([0, 1], ["0", "1"], {}, DataError, "all numbers or all texts, got int and str"),
        (["a", None], ["a", "b"], {}, DataError, "missing, but are in row 1"),
        ([0.0, 1.0], [np.nan, 1.0], {}, DataError, "missing, but are in row 0"),
        ([0, 1], [0, 2], {"labels": [0, 1]}, DataError, "lacks 2"),
    ],
)
def test_classes_that_cannot_be_counted(true, pred, options, error, words):
    with pytest.raises(error, match=words):
        confusion_matrix(true, pred, **options)


def test_axes_of_length_one_are_dropped():
    column = np.array([[0], [1], [1]])
    assert cells(confusion_matrix(column, [0, 1, 0])) == cells(
        confusion_matrix([0, 1, 1], [0, 1, 0])
    )


# ---- parity


def test_parity_gives_errors_as_scikit_learn_does():
    true = RNG.normal(size=200)
    close, far = true + RNG.normal(0, 0.1, 200), RNG.normal(size=200)
    figure = parity(true, close[:, None], unit="Ah", name="graph", other={"baseline": far})
    for text, pred, name in zip(
        legend_of(figure), (close, far), ("graph", "baseline"), strict=False
    ):
        rmse, r2 = metrics.root_mean_squared_error(true, pred), metrics.r2_score(true, pred)
        assert text == f"{name}: RMSE {rmse:#.3g} Ah, R² {r2:.3f}"
    assert legend_of(figure)[-1] == "equal"
    assert figure.axes[0].get_xlabel() == "true (Ah)"


def test_parity_draws_points_and_the_line_of_equality():
    figure = parity([1.0, 2.0, 4.0], [1.5, 2.0, 3.0])
    axes = figure.axes[0]
    drawn = [li.get_data() for li in axes.lines if len(li.get_xdata()) == 3]
    np.testing.assert_array_equal(drawn, [[[1.0, 2.0, 4.0], [1.5, 2.0, 3.0]]])
    low, high = axes.get_xlim()
    assert axes.get_ylim() == (low, high)
    assert low < 1.0 < 4.0 < high
    np.testing.assert_array_equal(axes.lines[-1].get_data(), [(low, high), (low, high)])
    assert axes.get_aspect() == 1.0


def test_parity_leaves_out_rows_that_are_not_finite():
    figure = parity([1.0, 2.0, np.nan, 4.0], [1.0, np.inf, 3.0, 4.0])
    assert legend_of(figure)[0] == "prediction: RMSE 0.00, R² 1.000, 2 rows not finite"


def test_parity_of_one_value_has_no_r2():
    figure = parity([2.0, 2.0], [2.0, 2.0])
    assert legend_of(figure)[0] == "prediction: RMSE 0.00"
    assert figure.axes[0].get_xlim() == (1.5, 2.5)


@pytest.mark.parametrize(
    ("true", "pred", "other", "error", "words"),
    [
        ([], [], {}, DataError, "y_true and prediction are empty"),
        ([np.nan], [1.0], {}, DataError, "no row of y_true and prediction is finite"),
        (["a"], [1.0], {}, DataError, "must hold numbers"),
        ([1.0, 2.0], [1.0], {}, ShapeError, r"\(2,\) and \(1,\)"),
        ([1.0], [1.0], {"ridge": [1.0, 2.0]}, ShapeError, r"y_true and ridge .*\(1,\) and \(2,\)"),
        (np.ones((3, 2)), np.ones((3, 2)), {}, ShapeError, "one target at a time"),
    ],
)
def test_predictions_that_cannot_be_compared(true, pred, other, error, words):
    with pytest.raises(error, match=words):
        parity(true, pred, other=other)


@pytest.mark.parametrize("index", [["C04", "C09", "C15"], [10, 20, 30]])
def test_a_mapping_of_series_keeps_their_index(index):
    curve = pd.Series([0.1, 0.3, 0.2], index=index)

    def places(data):
        figure = series(data, x="cell")
        figure.canvas.draw()
        axes = figure.axes[0]
        return axes.lines[0].get_xdata().tolist(), [t.get_text() for t in axes.get_xticklabels()]

    assert places({"mae": curve}) == places(curve) == places(curve.to_frame("mae"))
    if index == [10, 20, 30]:
        assert loss_curves({"mae": curve}).axes[0].lines[0].get_xdata().tolist() == index


# ---- bars


def test_bars_are_means_with_their_spread_and_values():
    figure = bars({"_a$": [1.0, 2.0, np.nan, 4.0], "b": [5.0], "none": [np.inf]}, x="rmse / h")
    axes = figure.axes[0]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([7 / 3, 5.0])
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["_a$ (1 not finite)", "b", "none (1 not finite)"]
    (spread,) = axes.collections[0].get_segments()
    std = np.std([1.0, 2.0, 4.0], ddof=1)
    np.testing.assert_allclose(spread[:, 0], [7 / 3 - std, 7 / 3 + std])
    assert axes.get_xlabel() == "rmse / h"
    with pytest.raises(DataError, match="no finite value"):
        bars({"a": [np.nan]})


@pytest.mark.parametrize("n", [0, 1, 4, 9])
@pytest.mark.parametrize("scale", [1, 1000, 1e-5])
def test_the_title_of_parity_is_not_cut_off(n, scale):
    true = RNG.normal(size=9) * scale
    other = {f"m{i}": true for i in range(n)}
    figure = parity(true, true, other=other, target="capacity", unit="Ah", title="A longer title")
    image = matplotlib.image.imread(io.BytesIO(figure._repr_png_()))[..., :3]
    inked = np.flatnonzero((image < 0.98).any(axis=(1, 2)))
    assert inked[0] >= 4
    assert inked[-1] <= len(image) - 4
