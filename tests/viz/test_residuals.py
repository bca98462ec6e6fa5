"""Plots of residuals, read back from the figure."""

import numpy as np
import pandas as pd
import pytest

from modularml.errors import ConfigError, DataError, ShapeError
from modularml.plotting import learning_curve, panels, residuals

matplotlib = pytest.importorskip("matplotlib")
RNG = np.random.default_rng(1)
TRUE = RNG.normal(size=40)
PRED = TRUE + RNG.normal(0, 0.2, 40)
CELL = RNG.choice(["b", "a", "_c$"], 40)


def points(figure):
    return np.asarray(figure.axes[0].collections[0].get_offsets())


def test_over_predictions():
    figure = residuals(TRUE, PRED, target="capacity", unit="Ah")
    np.testing.assert_allclose(points(figure), np.column_stack([PRED, TRUE - PRED]))
    axes = figure.axes[0]
    assert axes.get_xlabel() == "predicted capacity (Ah)"
    assert axes.get_ylabel() == "true \N{MINUS SIGN} predicted capacity (Ah)"
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [0, 0])


def test_over_numbers_and_times():
    heat = RNG.normal(size=40)
    figure = residuals(TRUE, PRED, over=heat, x="heat (K)")
    np.testing.assert_allclose(points(figure), np.column_stack([heat, TRUE - PRED]))
    assert figure.axes[0].get_xlabel() == "heat (K)"
    times = pd.date_range("2024-03-01", periods=40, freq="D")
    for column in (times.to_numpy(), times.astype(object), times):
        drawn = points(residuals(TRUE, PRED, over=column))[:, 0]
        np.testing.assert_allclose(drawn, matplotlib.dates.date2num(times))
    heat[[1, 4, 5]] = np.nan
    figure = residuals(TRUE, PRED, over=heat, x="heat (K)")
    assert len(points(figure)) == 37
    assert figure.axes[0].get_xlabel() == "heat (K)\n3 rows not finite"
    with pytest.raises(DataError, match="no row has a value"):
        residuals(TRUE, PRED, over=heat * np.nan)
    with pytest.raises(DataError, match="draw them by groups instead"):
        residuals(TRUE, PRED, over=CELL)


def test_boxes_are_the_quartiles_of_groups():
    figure = residuals(TRUE, PRED, groups=CELL, x="cell", unit="Ah")
    axes = figure.axes[0]
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert names == [f"{c} (n={(c == CELL).sum()})" for c in sorted(set(CELL))]
    for box, cell in zip(axes.patches, sorted(set(CELL)), strict=True):
        x = box.get_path().vertices[:, 0]
        quartiles = np.percentile((TRUE - PRED)[cell == CELL], [25, 75])
        np.testing.assert_allclose([x.min(), x.max()], quartiles)
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("cell", "true \N{MINUS SIGN} predicted (Ah)")


def test_rows_that_are_not_finite_are_counted():
    true = TRUE.copy()
    true[[2, 9]] = np.nan
    for options in ({}, {"groups": CELL}, {"over": PRED}):
        figure = residuals(true, PRED, **options)
        assert figure.axes[0].get_xlabel().endswith("2 rows not finite")
    assert len(points(residuals(true, PRED, over=PRED))) == 38


def test_many_points_are_pale():
    many = np.tile(TRUE, 100)
    assert residuals(many, many).axes[0].collections[0].get_alpha() < 0.5


@pytest.mark.parametrize(
    ("true", "options", "error", "words"),
    [
        (TRUE, {"groups": CELL, "over": PRED}, ConfigError, "not both"),
        (TRUE, {"groups": CELL[:3]}, ShapeError, r"each of the 40 rows, got shape \(3,\)"),
        (TRUE * np.nan, {}, DataError, "no row of y_true and y_pred is finite"),
        (CELL, {}, DataError, "must hold numbers"),
    ],
)
def test_what_cannot_be_drawn(true, options, error, words):
    with pytest.raises(error, match=words):
        residuals(true, PRED, **options)


def test_learning_curves_are_means_of_folds():
    train, test = RNG.random((3, 4)), RNG.random((3, 4))
    axes = learning_curve([10, 20, 40], train, test, y="r2").axes[0]
    for line, scores in zip(axes.lines, (train, test), strict=True):
        np.testing.assert_allclose(line.get_data(), [[10, 20, 40], scores.mean(axis=1)])
    band = axes.collections[1].get_paths()[0].vertices[:, 1]
    low = (test.mean(axis=1) - test.std(axis=1)).min()
    assert band.min() == pytest.approx(low)
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["training", "held out"]
    with pytest.raises(ShapeError, match="a row for each"):
        learning_curve([10, 20], train, test)
    with pytest.raises(DataError, match="two sizes or more"):
        learning_curve([10], train[:1], test[:1])


def test_panels_share_epochs_and_scale_alone():
    data = {"loss": {"train": [9.0, 0.01], "val": [8.0, 1.0]}, "error (Ah)": {"rmse": [2.0, 1.0]}}
    figure = panels(data, x="epoch", title="t", mark={"kept epoch 1": 1})
    first, second = figure.axes
    assert (first.get_ylabel(), second.get_ylabel()) == ("loss", "error (Ah)")
    assert (first.get_yscale(), second.get_yscale()) == ("log", "linear")
    assert (first.get_xlabel(), second.get_xlabel()) == ("", "epoch")
    assert [t.get_text() for t in second.get_legend().get_texts()] == ["rmse", "kept epoch 1"]
    np.testing.assert_array_equal(second.lines[0].get_ydata(), [2.0, 1.0])
    with pytest.raises(DataError, match="nothing to draw"):
        panels({})


def test_legends_of_panels_stay_beside_their_axes():
    many = {f"val_rmse[cell_{i}]": [1.0, i] for i in range(40)}
    figure = panels({"loss": {"a": [1.0, 2.0]}, "error": many, "score": many}, x="epoch")
    figure.draw_without_rendering()
    boxes = [axes.get_legend().get_window_extent() for axes in figure.axes]
    below = [axes.get_window_extent() for axes in figure.axes]
    for box, axes in zip(boxes[1:], below[1:], strict=True):
        assert box.x0 >= axes.x1, "beside"
        assert box.y0 >= 0
    assert boxes[1].y0 >= boxes[2].y1, "not on the legend below"
    assert boxes[1].x1 <= figure.bbox.x1 + 1
