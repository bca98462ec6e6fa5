"""The table that compares runs: what differs, and metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

from modularml._optional import require
from modularml._warning import warn
from modularml.engine.monitoring import direction
from modularml.errors import ConfigError
from modularml.strategies.run_facts import RunFacts

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["comparison_table", "greater_is_better", "metric_names", "warn_of_other_rows"]


def comparison_table(facts: Mapping[str, RunFacts], *, differences_only: bool) -> pd.DataFrame:
    """Return one row per run; see `ExperimentCollection.compare`."""
    rows = []
    for f in facts.values():
        row = {f"config.{path}": value for path, value in f.config.items()}
        row |= {f"data.{label}": print_ for label, print_ in f.fingerprints.items()}
        row |= {f"rows.{label}{f'.{s}' if s else ''}": n for (label, s), n in f.sizes.items()}
        rows.append(row)
    paths = list(dict.fromkeys(path for row in rows for path in row))
    if differences_only:
        absent = object()
        paths = [p for p in paths if len({_hashable(row.get(p, absent)) for row in rows}) > 1]
    for row, f in zip(rows, facts.values(), strict=True):
        for name, value in f.metrics.items():
            row[name] = value
            if name in f.spread:
                row[f"{name}_std"] = f.spread[name]
        row |= {"n_folds": f.n_folds, "seconds": f.seconds, "status": f.status}
    metrics = metric_names(facts)
    spreads = {f"{name}_std" for f in facts.values() for name in f.spread}
    columns = [c for name in metrics for c in (name, f"{name}_std") if c in {*metrics, *spreads}]
    folds = ["n_folds"] if any(f.n_folds for f in facts.values()) else []
    frame: pd.DataFrame = require("pandas").DataFrame(
        rows, index=list(facts), columns=[*paths, *columns, *folds, "seconds", "status"]
    )
    return frame.rename_axis("run")


def _hashable(value: Any) -> Any:
    return value if isinstance(value, int | float | str | None) else repr(value)


def metric_names(facts: Mapping[str, RunFacts]) -> list[str]:
    """Return the names of all metrics."""
    return list(dict.fromkeys(name for f in facts.values() for name in f.metrics))


def greater_is_better(metric: str, mode: str | None) -> bool:
    """Return whether greater values of a metric are better, by `mode` or its name."""
    if mode not in (None, "min", "max"):
        raise ConfigError(f"mode must be 'min', 'max' or None, got {mode!r}")
    known = direction(metric.rpartition(".")[2], ()) if mode is None else mode == "max"
    if known is None:
        raise ConfigError(
            f"it is unknown whether greater values of {metric!r} are better; pass mode='min' or "
            "'max'"
        )
    return known


def warn_of_other_rows(facts: Mapping[str, RunFacts], metrics: Sequence[str] = ()) -> None:
    """Warn of metrics that were computed on other rows in some runs."""
    others: dict[tuple[str, str], list[str]] = {}
    for metric in metrics or metric_names(facts):
        rows = {n: f.rows_of(metric) for n, f in facts.items() if metric in f.metrics}
        known = {name: keys for name, keys in rows.items() if keys is not None}
        for one, other in combinations(known, 2):
            if known[one] != known[other]:
                others.setdefault((one, other), []).append(metric)
                break
    for (one, other), names in others.items():
        warn(
            f"{names} of {one!r} and {other!r} were computed on different rows, so their values do "
            "not compare the models; evaluate(data) scores all on the same rows"
        )
