"""Evaluation of several experiments on the same rows."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from modularml._warning import warn
from modularml.audit import AuditWarning
from modularml.errors import ConfigError
from modularml.experiment import Experiment
from modularml.experiment.evaluating import evaluate
from modularml.strategies.comparison.members import Member
from modularml.strategies.comparison.run_facts import row_key
from modularml.strategies.ensembles.ensemble import Ensemble
from modularml.strategies.folds.cv_results import CVResults

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["check_split", "evaluated", "mean_table"]


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
