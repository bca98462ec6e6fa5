"""Curves of class scores, held against scikit-learn."""

import numpy as np
import pytest
from sklearn import metrics
from sklearn.calibration import calibration_curve

from modularml.errors import ConfigError, DataError, ShapeError, UnknownNameError
from modularml.plotting import calibration, precision_recall, roc

pytest.importorskip("matplotlib")
RNG = np.random.default_rng(5)
N = 120
NAMES = ["ok", "worn", "failed"]
CODES = RNG.integers(0, 3, N)
TRUE = np.array(NAMES)[CODES]
SCORES = RNG.dirichlet([1.0, 1.0, 1.0], N) + 0.3 * np.eye(3)[CODES]
SCORES /= SCORES.sum(axis=1, keepdims=True)
WEIGHTS = RNG.random(N)
CELLS = RNG.choice(["a", "b"], N)


def legend_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def curve(figure, i=0):
    return figure.axes[0].lines[i].get_data()


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_a_curve_per_class_equals_scikit_learn(weights):
    options = {"labels": NAMES, "weights": weights}
    rocs, precisions = (draw(TRUE, SCORES, **options) for draw in (roc, precision_recall))
    for i, name in enumerate(NAMES):
        true, score = name == TRUE, SCORES[:, i]
        fpr, tpr, _ = metrics.roc_curve(true, score, sample_weight=weights)
        np.testing.assert_allclose(curve(rocs, i), [fpr, tpr])
        auc = metrics.roc_auc_score(true, score, sample_weight=weights)
        assert legend_of(rocs)[i] == f"{name}: AUC {auc:.3f}"
        precision, recall, _ = metrics.precision_recall_curve(
            true, score, sample_weight=weights, drop_intermediate=True
        )
        np.testing.assert_allclose(curve(precisions, i), [recall, precision])
        ap = metrics.average_precision_score(true, score, sample_weight=weights)
        share = np.average(true, weights=weights)
        assert legend_of(precisions)[i] == f"{name}: AP {ap:.3f}, share {share:.3f}"
    assert legend_of(rocs)[3:] == ["chance"]
    assert rocs.axes[0].get_xlabel() == f"false positive rate\n{N} rows"


@pytest.mark.parametrize("strategy", ["quantile", "uniform"])
def test_calibration_equals_scikit_learn(strategy):
    figure = calibration(TRUE, SCORES, labels=NAMES, positive="failed", n_bins=4, strategy=strategy)
    share, mean = calibration_curve(TRUE == "failed", SCORES[:, 2], n_bins=4, strategy=strategy)
    np.testing.assert_allclose(curve(figure), [mean, share])
    brier = metrics.brier_score_loss(TRUE == "failed", SCORES[:, 2])
    assert legend_of(figure) == [f"failed: Brier score {brier:.3f}", "calibrated"]


def test_of_two_classes_the_second_is_drawn_and_either_can_be():
    true, score = TRUE == "ok", SCORES[:, 0]
    kinds = np.where(true, "good", "bad")
    assert legend_of(roc(kinds, score))[0].startswith("good: AUC")
    auc = metrics.roc_auc_score(true, score)
    for two in (roc(kinds, score, positive="bad"), roc(kinds, -score, labels=["good", "bad"])):
        assert legend_of(two)[0] == f"bad: AUC {auc:.3f}"
    figure = precision_recall(kinds, np.column_stack([1 - score, score]))
    chance = figure.axes[0].lines[1].get_ydata()
    np.testing.assert_allclose(chance, true.mean())


def test_a_curve_per_group():
    figure = roc(TRUE, SCORES, labels=NAMES, positive="worn", groups=CELLS)
    for i, cell in enumerate("ab"):
        rows = cell == CELLS
        auc = metrics.roc_auc_score(TRUE[rows] == "worn", SCORES[rows, 1])
        assert legend_of(figure)[i] == f"{cell}: AUC {auc:.3f}"
    assert figure.axes[0].get_xlabel().endswith(f"{N} rows; class worn against the others")
    single = np.where(TRUE == "ok", "c", CELLS)
    with pytest.warns(UserWarning, match=r"no curve is drawn for \['c'\]"):
        figure = roc(TRUE, SCORES, labels=NAMES, positive="worn", groups=single)
    assert len(legend_of(figure)) == 3
    with pytest.raises(ConfigError, match="pass positive="):
        roc(TRUE, SCORES, labels=NAMES, groups=CELLS)


def test_rows_that_lack_a_class_or_score_are_counted():
    true, scores = TRUE.astype(object), SCORES.copy()
    true[3], scores[8, 1] = None, np.nan
    figure = roc(true, scores, labels=NAMES)
    assert figure.axes[0].get_xlabel().endswith(f"{N - 2} rows, 2 without class or score")
    keep = np.setdiff1d(np.arange(N), [3, 8])
    auc = metrics.roc_auc_score(TRUE[keep] == "ok", SCORES[keep, 0])
    assert legend_of(figure)[0] == f"ok: AUC {auc:.3f}"


@pytest.mark.parametrize(
    ("true", "score", "options", "error", "words"),
    [
        (["a"] * 3, [0.1, 0.2, 0.3], {}, DataError, "all 3 rows are of 'a'"),
        (TRUE, SCORES, {"labels": ["ok", "worn"]}, DataError, "lacks 'failed'"),
        (TRUE, SCORES[:, :2], {}, ShapeError, r"a column for each class .*\(120, 2\)"),
        (TRUE, SCORES[:, 0], {}, ShapeError, r"the second of two classes"),
        (TRUE, SCORES[:9], {}, ShapeError, r"\(120,\) and \(9, 3\)"),
        (TRUE, SCORES, {"positive": "wron"}, UnknownNameError, "mean 'worn'"),
        (TRUE, np.full((N, 3), np.nan), {}, DataError, "nothing to draw"),
        (TRUE, TRUE, {}, DataError, "y_score must hold numbers"),
        (TRUE, SCORES, {"labels": NAMES, "weights": -WEIGHTS}, DataError, "not negative"),
        (TRUE, SCORES, {"weights": WEIGHTS[:4]}, ShapeError, "weights must have one value"),
        (TRUE, SCORES, {"positive": "ok", "groups": CELLS[:4]}, ShapeError, "groups must have"),
    ],
)
def test_scores_that_cannot_be_drawn(true, score, options, error, words):
    with pytest.raises(error, match=words):
        roc(true, score, **options)


def test_calibration_needs_probabilities():
    with pytest.raises(DataError, match="probabilities from 0 to 1, got -3 to 2"):
        calibration([0, 1, 1], [-3.0, 2.0, 1.0])
    with pytest.raises(ConfigError, match="n_bins must be an int of at least 1, got 0"):
        calibration([0, 1, 1], [0.1, 0.2, 1.0], n_bins=0)
    with pytest.raises(ConfigError, match="strategy must be"):
        calibration([0, 1, 1], [0.1, 0.2, 1.0], strategy="equal")


@pytest.mark.parametrize("n_classes", [2, 5, 8, 14, 30])
def test_title_axes_and_legend_do_not_overlap(n_classes):
    true = np.arange(300) % n_classes
    figure = roc(true, RNG.dirichlet(np.ones(n_classes), 300), title="many")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert axes._left_title.get_window_extent().y1 <= figure.bbox.y1
    legend, below = figure.legends[0].get_window_extent(), axes.xaxis.label.get_window_extent()
    assert 0 <= legend.y0 < legend.y1 <= below.y0
