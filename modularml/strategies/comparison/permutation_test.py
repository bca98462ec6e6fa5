"""Permutation tests, and evaluations on shared rows."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from modularml._arguments import at_least
from modularml._typing import Array, Columns, IntArray
from modularml._warning import warn
from modularml.audit import AuditWarning
from modularml.data import FeatureSet
from modularml.data.collection import SampleCollection
from modularml.data.schema import RAW
from modularml.data.selectors import as_list, select_one
from modularml.errors import ConfigError, DataError, ExecutionError, expect
from modularml.experiment import Experiment
from modularml.experiment.evaluating import evaluate
from modularml.results.scores import greater_is_better as direction_of
from modularml.results.scores import name_of_score
from modularml.splitters.dealing import factorise
from modularml.strategies.comparison.members import Member
from modularml.strategies.comparison.run_facts import row_key
from modularml.strategies.ensembles.ensemble import Ensemble
from modularml.strategies.folds.cross_validation import CrossValidation
from modularml.strategies.folds.cv_binding import CVBinding
from modularml.strategies.folds.cv_results import CVResults

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["PermutationTest", "check_split", "evaluated", "mean_table", "permutation_test_score"]


def check_split(split: str, experiments: Mapping[str, Sequence[Experiment]]) -> None:
    """Refuse a split that holds other rows in some experiments."""
    first: tuple[str, Any] | None = None
    for name, of_member in experiments.items():
        for experiment in of_member:
            sets = experiment.ctx.available_featuresets.values()
            views = [fs.get_split(split) for fs in sets if split in fs.splits]
            keys = frozenset(row_key(v.collection, v.valid_indices) for v in views)
            first = first or (name, keys)
            if keys != first[1]:
                raise ConfigError(
                    f"split {split!r} holds other rows in {name!r} than in {first[0]!r}, so scores "
                    "on it do not compare them; pass rows instead, such as a FeatureSet or a frame"
                )


def evaluated(member: Member, name: str, data: Any, **options: Any) -> list[pd.DataFrame]:
    """Return the scores of a member, of each fold; report rows that were learned from once.

    An ensemble is scored by its mean prediction.
    """
    loaded = member.load()
    tables: list[pd.DataFrame] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if isinstance(loaded, Ensemble):
            if not options.pop("unscale"):
                raise ConfigError(
                    f"unscale=False is not supported for the ensemble {name!r}, whose members have "
                    "scalers of their own; pass unscale=True"
                )
            return [loaded.evaluate(data, **options)]
        for experiment in member.experiments(name):
            audit = "warn" if isinstance(loaded, CVResults) else experiment.audit
            graph: Any = experiment.model_graph
            if graph is None:
                raise ConfigError(f"{name!r} has no graph to evaluate; add a ModelGraph")
            with experiment.ctx.activate():
                tables.append(
                    evaluate(graph, data, node=None, batch_size=None, audit=audit, **options)
                )
    learned = [w for w in caught if issubclass(w.category, AuditWarning)]
    if learned:
        others = f" (and {len(learned) - 1} other folds)" if len(learned) > 1 else ""
        warn(f"{learned[0].message}{others}", AuditWarning)
    others_once = dict.fromkeys((str(w.message), w.category) for w in caught if w not in learned)
    for message, category in others_once:
        warn(message, category)
    return tables


def mean_table(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return the mean of equally shaped tables, with standard deviations if there are several."""
    first = tables[0].copy()
    keys = {"node", "group", "n", "n_missing"}
    if len(tables) == 1:
        return first
    for name in [c for c in first if c not in keys]:
        values = np.stack([table[name].to_numpy() for table in tables])
        first[name] = values.mean(axis=0)
        first.insert(list(first).index(name) + 1, f"{name}_std", values.std(axis=0, ddof=1))
    return first


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
    sign = _sign(metric, greater_is_better)
    binding = _with_targets(cv)
    fs, pool = binding.featureset, binding.pool().valid_indices
    codes = None
    if groups is not None:
        names = [select_one(fs.collection.schema, key) for key in as_list(groups)]
        codes = factorise(names, {n: fs.collection.numpy(n)[pool] for n in names}).codes
    score, original = _score(cv, metric, flags), fs.collection
    random, scores = np.random.RandomState(seed), []
    with warnings.catch_warnings():  # those of the unpermuted targets were shown
        warnings.simplefilter("ignore")
        for _ in range(n_permutations):
            rows = np.arange(len(original.table))
            rows[pool] = pool[_permuted(len(pool), codes, random)]
            fs._collection = _with_rows_of_targets(original, rows)
            try:
                scores.append(_score(cv, metric, flags))
            finally:
                fs._collection = original
    permuted = np.array(scores)
    n_better = int((sign * permuted >= sign * score).sum())
    return PermutationTest(score, permuted, (n_better + 1) / (n_permutations + 1))


def _sign(metric: Any, greater_is_better: bool | None) -> int:
    known = direction_of(metric) if greater_is_better is None else greater_is_better
    if known is None:
        raise ConfigError(
            f"it is unknown whether greater values of {name_of_score(metric)!r} are better; pass "
            "greater_is_better="
        )
    return 1 if known else -1


def _with_targets(cv: CrossValidation) -> CVBinding:
    """Return the binding of the only FeatureSet with targets."""
    bindings = [b for b in cv.bindings if b.featureset.get_target_keys()]
    if len(bindings) != 1:
        labels = [b.featureset.label for b in bindings]
        raise ConfigError(f"one FeatureSet of the folds must have targets to permute, got {labels}")
    fs: FeatureSet = bindings[0].featureset
    schema = fs.collection.schema
    if padded := [key for key in schema.keys("targets") if key in schema.masks]:
        raise DataError(f"targets {padded} are padded, so they cannot be permuted between rows")
    return bindings[0]


def _permuted(n: int, groups: IntArray | None, random: np.random.RandomState) -> IntArray:
    """Return permuted positions, within groups if given."""
    if groups is None:
        return np.asarray(random.permutation(n), dtype=np.int64)
    positions = np.arange(n)
    for group in np.unique(groups):
        own = groups == group
        positions[own] = random.permutation(positions[own])
    return positions


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
