"""Learning curves: scores of folds that are trained on growing shares of their rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from modularml._optional import require
from modularml._typing import Array, IntArray
from modularml.data.schema import RAW
from modularml.data.selectors import as_list, select_one
from modularml.errors import ConfigError, ExecutionError, expect
from modularml.results.scores import axis_of_score, find_scores, name_of_score
from modularml.results.scoring import Reduce, check_reduce
from modularml.splitters.base import key_list
from modularml.splitters.dealing import factorise, stratify
from modularml.strategies.folds.cross_validation import CrossValidation
from modularml.strategies.folds.cv_binding import CVBinding
from modularml.strategies.folds.cv_results import CVResults
from modularml.strategies.folds.folds import held_out_scores
from modularml.strategies.variants.variant import Variant
from modularml.viz.curves import learning_curve as draw

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["LearningCurve", "learning_curve"]


@dataclass(frozen=True)
class LearningCurve:
    """Scores on trained and on held-out rows, by the number of training rows.

    Parameters
    ----------
    metric : str
    label : str
        Of the axis of scores, with the unit.
    counted : str
        What ``sizes`` counts: rows, or groups.
    sizes : ndarray, shape (n_sizes,)
        Mean over folds.
    train_scores, test_scores : ndarray, shape (n_sizes, n_folds)
    n_rows : ndarray of int64, shape (n_sizes, n_folds)
        Training rows.
    """

    metric: str
    label: str
    counted: str
    sizes: Array
    train_scores: Array = field(repr=False)
    test_scores: Array = field(repr=False)
    n_rows: IntArray = field(repr=False)

    def to_pandas(self) -> pd.DataFrame:
        """Return one row per size and fold: ``size``, ``fold``, ``n_rows``, both scores."""
        n_sizes, n_folds = self.test_scores.shape
        columns = {
            "size": np.repeat(self.sizes, n_folds),
            "fold": np.tile(np.arange(n_folds), n_sizes),
            "n_rows": self.n_rows.ravel(),
            "train": self.train_scores.ravel(),
            "held_out": self.test_scores.ravel(),
        }
        frame: pd.DataFrame = require("pandas").DataFrame(columns)
        return frame

    def plot(self, *, title: str = "", path: Any = None) -> Any:
        """Draw means over folds, and one standard deviation to each side; return the figure."""
        scores = self.train_scores, self.test_scores
        return draw(self.sizes, *scores, x=self.counted, y=self.label, title=title, path=path)


def learning_curve(
    cv: CrossValidation,
    metric: str | Callable[..., float],
    *,
    shares: Sequence[float] = (0.1, 0.325, 0.55, 0.775, 1.0),
    seed: int = 0,
    per: str | None = None,
    reduce: Reduce = "mean",
    **flags: Any,
) -> LearningCurve:
    """Train each fold anew on growing shares of its training rows, and score it.

    Parameters
    ----------
    cv : CrossValidation
        Of one FeatureSet; not changed. Shares are of whole groups if its binding has `group_by`,
        else each share has the proportions of `stratify_by`. A larger share holds the smaller ones.
        Scalers are fitted on the share, and rows for early stopping (`stop_size`) stay.
    metric : str or callable
        A score of the final weights; see `EvalResults.scores`.
    shares : sequence of float
        Ascending, above 0 and up to 1, at least two.
    seed : int
        Seed of the order in which rows or groups are added.
    per, reduce : str, optional
        Column of replicates that are reduced to one row before scoring.
    **flags
        Passed to `CrossValidation.run`.

    Returns
    -------
    LearningCurve

    Raises
    ------
    ConfigError
        If `shares` are not as described, one holds no row or group of a fold, the folds are of
        several FeatureSets, or several nodes are scored.
    ExecutionError
        If a fold fails, or a score is undefined.

    Notes
    -----
    Without groups and strata, rows and scores are those of `sklearn.model_selection.learning_curve`
    with ``shuffle=True`` for the same seed.

    Examples
    --------
    ``learning_curve(cv, "rmse", shares=[0.25, 0.5, 1.0]).plot()``

    Examples
    --------
    >>> import numpy as np
    >>> import modularml as mml
    >>> from modularml.models.torch import SequentialMLP
    >>> experiment = mml.Experiment("demo", seed=0)
    >>> a, b, noise = np.random.default_rng(0).normal(size=(3, 60)).astype("float32")
    >>> rows = {"a": a, "b": b, "y": a + b + noise}
    >>> fs = mml.FeatureSet.from_dict("rows", rows, ["a", "b"], "y")
    >>> fs.split_random({"train": 0.8, "test": 0.2})
    >>> net = mml.ModelNode("net", SequentialMLP(), fs)
    >>> graph = mml.ModelGraph([net], mml.Optimizer("adam"))
    >>> mse = mml.AppliedLoss(mml.Loss("mse"), on="net", inputs=["outputs", "targets"])
    >>> phase = mml.TrainPhase.from_split(
    ...     "train", split="train", sampler=mml.SimpleSampler(batch_size=16), losses=[mse]
    ... )
    >>> cv = mml.CrossValidation(
    ...     bindings=mml.CVBinding("rows", "train"), n_folds=2, phase=phase, experiment=experiment
    ... )
    >>> curve = mml.learning_curve(cv, "rmse", shares=(0.5, 1.0), show_training_progress=False)
    >>> type(curve).__name__
    'LearningCurve'
    """
    expect("cv", cv, CrossValidation, "a CrossValidation")
    check_reduce(reduce, per)
    name = name_of_score(metric)
    find_scores([metric])
    wanted = _checked(shares)
    if len(cv.bindings) != 1 or any(len(fold.sides) != 1 for fold in cv.folds):
        raise ConfigError(
            "a learning curve is of folds of one FeatureSet, as it is not known which rows of "
            "others belong to a share; pass one CVBinding"
        )
    (binding,) = cv.bindings
    counted = f"training groups ({', '.join(as_list(binding.groups))})"
    folds, sizes, n_rows = _cut_folds(cv.folds, binding, wanted, seed)
    results = cv.fresh(folds).run(**{"show_training_progress": False, **flags})
    if results.failed_folds:
        label, error = next(iter(results.failed_folds.items()))
        raise ExecutionError(f"{label} of the learning curve failed: {error}") from error
    shape = (len(wanted), len(cv.folds))
    train, test = (
        np.array([_score(results, fold, metric, part, per, reduce) for fold in folds])
        for part in ("train", "val")
    )
    return LearningCurve(
        metric=name,
        label=_label(binding, name),
        counted=counted if binding.groups else "training rows",
        sizes=sizes.reshape(shape).mean(axis=1),
        train_scores=train.reshape(shape),
        test_scores=test.reshape(shape),
        n_rows=n_rows.reshape(shape),
    )


def _checked(shares: Sequence[float]) -> list[float]:
    """Return the shares; refuse those that are no ascending shares."""
    wanted = list(shares)
    is_number = all(isinstance(s, Real) and not isinstance(s, bool) for s in wanted)
    if not is_number or len(wanted) < 2 or not all(0 < s <= 1 for s in wanted):
        raise ConfigError(f"shares must be two or more numbers above 0 and up to 1, got {shares!r}")
    if sorted(set(wanted)) != wanted:
        raise ConfigError(f"shares must be ascending, and each once, got {shares!r}")
    return wanted


def _cut_folds(
    folds: Sequence[Variant], binding: CVBinding, shares: Sequence[float], seed: int
) -> tuple[list[Variant], Array, IntArray]:
    """Return the folds of each share, and how many groups (or rows) and rows each trains on."""
    label = str(binding.featureset.label)
    random, orders = np.random.RandomState(seed), []
    for fold in folds:
        rows = fold.sides[label].train
        orders.append((rows, *_order(rows, binding, random)))
    cut, sizes, n_rows = [], [], []
    for i, share in enumerate(shares):
        for fold, (rows, units, order) in zip(folds, orders, strict=True):
            n = int(share * len(order) + 1e-9)
            if not n:
                raise ConfigError(
                    f"share {share} of the {len(order)} training groups or rows of {fold.label} is "
                    "none; pass larger shares"
                )
            train = np.sort(rows[np.isin(units, order[:n])])
            sides = {label: replace(fold.sides[label], train=train)}
            cut.append(replace(fold, label=f"{fold.label}_share_{i}", sides=sides))
            sizes.append(n)
            n_rows.append(len(train))
    return cut, np.array(sizes, dtype=np.float64), np.array(n_rows)


def _order(
    rows: IntArray, binding: CVBinding, random: np.random.RandomState
) -> tuple[IntArray, IntArray]:
    """Return the group of each row (by default its own), and the groups in order of addition."""
    collection = binding.featureset.collection
    groups, strata = as_list(binding.groups), key_list(binding.stratify_by)
    keys = groups or strata
    columns = {k: collection.numpy(select_one(collection.schema, k))[rows] for k in keys}
    if groups:
        units = factorise(groups, columns).codes
        return units, random.permutation(units.max() + 1)
    units = np.arange(len(rows))
    order = random.permutation(len(rows))
    if strata:
        codes = stratify(strata, columns, binding.bins).codes[order]
        rank = np.zeros(len(order))
        for code in np.unique(codes):
            own = np.flatnonzero(codes == code)
            rank[own] = (np.arange(len(own)) + 0.5) / len(own)
        order = order[np.argsort(rank, kind="stable")]
    return units, order


def _score(
    results: CVResults, fold: Variant, metric: Any, part: str, per: str | None, reduce: Reduce
) -> float:
    """Return the score of the held-out or trained rows of a fold."""
    if part == "train":
        sides = {k: replace(side, val_name=side.train_name) for k, side in fold.sides.items()}
        fold = replace(fold, sides=sides)
    experiment = results.get_experiment(fold.label)
    how = {"per": per, "reduce": reduce}
    values = [value for *_, value in held_out_scores(experiment, fold, [metric], None, how)]
    if len(values) != 1:
        raise ConfigError(f"one node must be scored, and {len(values)} end the graph")
    if not np.isfinite(values[0]):
        raise ExecutionError(f"{name_of_score(metric)!r} of {fold.label} is {values[0]}")
    return values[0]


def _label(binding: CVBinding, name: str) -> str:
    """Return the label of the axis of scores, with the unit of the targets."""
    specs = binding.featureset.collection.schema.columns.values()
    units = {s.unit or "" for s in specs if s.domain == "targets" and s.rep == RAW}
    unit = axis_of_score(name, units.pop() if len(units) == 1 else "").partition(" (")
    return name + "".join(unit[1:])
