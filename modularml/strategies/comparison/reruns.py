"""Cross-validations that run again on other rows: learning curves and permutation tests."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from modularml._arguments import at_least
from modularml._optional import require
from modularml._typing import Array, Columns, IntArray
from modularml.data.collection import SampleCollection
from modularml.data.schema import RAW
from modularml.data.selectors import as_list, select_one
from modularml.errors import ConfigError, DataError, ExecutionError, expect
from modularml.results.scores import axis_of_score, find_scores, name_of_score
from modularml.results.scores import greater_is_better as direction_of
from modularml.results.scoring import Reduce, check_reduce
from modularml.splitters.base import key_list
from modularml.splitters.dealing import factorise, stratify
from modularml.strategies.cross_validation import CrossValidation
from modularml.strategies.folds import CVBinding
from modularml.strategies.held_out_checks import held_out_scores
from modularml.strategies.variants.variant import Variant
from modularml.viz.curves import learning_curve as draw

if TYPE_CHECKING:
    import pandas as pd


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
    wanted = list(shares)
    is_number = all(isinstance(s, Real) and not isinstance(s, bool) for s in wanted)
    if not is_number or len(wanted) < 2 or not all(0 < s <= 1 for s in wanted):
        raise ConfigError(f"shares must be two or more numbers above 0 and up to 1, got {shares!r}")
    if sorted(set(wanted)) != wanted:
        raise ConfigError(f"shares must be ascending, and each once, got {shares!r}")
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
    how, scores = {"per": per, "reduce": reduce}, dict[str, list[float]](train=[], val=[])
    for fold in folds:
        experiment = results.get_experiment(fold.label)
        sides = {k: replace(side, val_name=side.train_name) for k, side in fold.sides.items()}
        for part, scored in (("train", replace(fold, sides=sides)), ("val", fold)):
            rows = held_out_scores(experiment, scored, [metric], None, how)
            if len(rows) != 1:
                raise ConfigError(f"one node must be scored, and {len(rows)} end the graph")
            if not np.isfinite(rows[0][2]):
                raise ExecutionError(f"{name!r} of {fold.label} is {rows[0][2]}")
            scores[part].append(rows[0][2])
    specs = binding.featureset.collection.schema.columns.values()
    units = {s.unit or "" for s in specs if s.domain == "targets" and s.rep == RAW}
    unit = axis_of_score(name, units.pop() if len(units) == 1 else "").partition(" (")
    return LearningCurve(
        metric=name,
        label=name + "".join(unit[1:]),
        counted=counted if binding.groups else "training rows",
        sizes=sizes.reshape(shape).mean(axis=1),
        train_scores=np.array(scores["train"]).reshape(shape),
        test_scores=np.array(scores["val"]).reshape(shape),
        n_rows=n_rows.reshape(shape),
    )


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


# -- permutation tests ------------------------------------------------------------


@dataclass(frozen=True)
class PermutationTest:
    """A score, those of permuted targets, and the p-value.

    Parameters
    ----------
    score : float
        Mean over folds.
    permutation_scores : ndarray of float64, shape (n_permutations,)
        Means over folds with permuted targets.
    p_value : float
        Share of permutations, the unpermuted targets included, whose score is as good or better.
    """

    score: float
    permutation_scores: Array = field(repr=False)
    p_value: float


def permutation_test_score(
    cv: CrossValidation,
    metric: str | Callable[..., float],
    *,
    n_permutations: int = 100,
    groups: Columns = None,
    seed: int = 0,
    greater_is_better: bool | None = None,
    **flags: Any,
) -> PermutationTest:
    """Test whether a cross-validated score may be due to chance.

    The cross-validation is run again with permuted targets, including scalers, selection of
    features and splits by strata, as often as `n_permutations`.

    Parameters
    ----------
    cv : CrossValidation
        Not changed. One of its FeatureSets has targets.
    metric : str or callable
        A score of the held-out rows; see `EvalResults.scores`.
    n_permutations : int
        At least 1.
    groups : str or list of str, optional
        Columns within whose values targets are permuted, if rows of one value are dependent.
    seed : int
        Seed of the permutations.
    greater_is_better : bool, optional
        Direction of a user-defined metric.
    **flags
        Passed to `CrossValidation.run`.

    Returns
    -------
    PermutationTest

    Raises
    ------
    ConfigError
        If the direction of the metric is unknown, several nodes are scored, or not exactly one
        FeatureSet has targets.
    DataError
        If the targets are padded.
    ExecutionError
        If a fold fails.

    Notes
    -----
    ``p = (n_better + 1) / (n_permutations + 1)`` (Ojala & Garriga 2010, *Permutation tests for
    studying classifier performance*, JMLR 11), with the permutations of
    `sklearn.model_selection.permutation_test_score` for the same seed.

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
    >>> test = mml.permutation_test_score(
    ...     cv, "rmse", n_permutations=3, show_training_progress=False
    ... )
    >>> 0 < test.p_value <= 1
    True
    """
    expect("cv", cv, CrossValidation, "a CrossValidation")
    at_least(1, n_permutations=n_permutations)
    known = direction_of(metric) if greater_is_better is None else greater_is_better
    if known is None:
        raise ConfigError(
            f"it is unknown whether greater values of {name_of_score(metric)!r} are better; pass "
            "greater_is_better="
        )
    bindings = [b for b in cv.bindings if b.featureset.get_target_keys()]
    if len(bindings) != 1:
        labels = [b.featureset.label for b in bindings]
        raise ConfigError(f"one FeatureSet of the folds must have targets to permute, got {labels}")
    fs, pool = bindings[0].featureset, bindings[0].pool().valid_indices
    schema = fs.collection.schema
    if padded := [key for key in schema.keys("targets") if key in schema.masks]:
        raise DataError(f"targets {padded} are padded, so they cannot be permuted between rows")
    codes = np.zeros(len(pool), dtype=np.int64)
    if groups is not None:
        names = [select_one(schema, key) for key in as_list(groups)]
        codes = factorise(names, {n: fs.collection.numpy(n)[pool] for n in names}).codes
    score, original = _score(cv, metric, flags), fs.collection
    random, scores = np.random.RandomState(seed), []
    with warnings.catch_warnings():  # those of the unpermuted targets were shown
        warnings.simplefilter("ignore")
        for _ in range(n_permutations):
            rows = np.arange(len(original.table))
            for code in np.unique(codes):
                own = pool[codes == code]
                rows[own] = random.permutation(own)
            fs._collection = _with_rows_of_targets(original, rows)
            try:
                scores.append(_score(cv, metric, flags))
            finally:
                fs._collection = original
    permuted = np.array(scores)
    n_better = int((permuted >= score if known else permuted <= score).sum())
    return PermutationTest(score, permuted, (n_better + 1) / (n_permutations + 1))


def _with_rows_of_targets(collection: SampleCollection, rows: IntArray) -> SampleCollection:
    """Return a collection whose raw targets are those of other rows; ids and features stay."""
    names = [s.name for s in collection.schema.columns.values() if s.rep == RAW]
    table = collection.take(np.arange(collection.n_samples), names)
    for place, column in enumerate(table.schema):
        if column.name.startswith("targets."):
            values = collection.array(column.name).take(pa.array(rows))
            table = table.set_column(place, column, values)
    scaled = [n for n in collection.names if n not in names]
    for name in scaled:  # fitted anew in each fold
        values = collection.table.column(name)
        table = table.append_column(collection.table.schema.field(name), values)
    return SampleCollection(table, masks=collection.schema.masks)


def _score(cv: CrossValidation, metric: Any, flags: dict[str, Any]) -> float:
    """Run the folds anew and return the mean of a score over them."""
    quiet = {"show_fold_progress": False, "show_training_progress": False, **flags}
    results = cv.fresh().run(**quiet)
    name = name_of_score(metric)
    table = results.to_pandas(metrics=[metric])
    columns = [column for column in map(str, table) if column.split(".")[-1] == name]
    if len(columns) != 1:
        raise ConfigError(f"one node must be scored by {name!r}, got {columns}")
    values = table[columns[0]].to_numpy(dtype=np.float64)
    if np.isnan(values).any():
        raise ExecutionError(
            f"{name!r} is undefined in {int(np.isnan(values).sum())} of {len(values)} folds, as "
            "they failed or lack rows"
        )
    return float(values.mean())
