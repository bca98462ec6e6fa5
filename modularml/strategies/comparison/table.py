"""The table that compares runs: what differs, and metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

from modularml._optional import require
from modularml._warning import warn
from modularml.engine.monitoring import direction
from modularml.errors import ConfigError
from modularml.strategies.comparison.run_facts import RunFacts

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
        paths = _different(rows, paths)
    for row, f in zip(rows, facts.values(), strict=True):
        for name, value in f.metrics.items():
            row[name] = value
            if name in f.spread:
                row[f"{name}_std"] = f.spread[name]
        row |= {"n_members": f.n_members, "seconds": f.seconds, "status": f.status}
    metrics = metric_names(facts)
    spreads = {f"{name}_std" for f in facts.values() for name in f.spread}
    columns = [c for name in metrics for c in (name, f"{name}_std") if c in {*metrics, *spreads}]
    members = ["n_members"] if any(f.n_members for f in facts.values()) else []
    frame: pd.DataFrame = require("pandas").DataFrame(
        rows, index=list(facts), columns=[*paths, *columns, *members, "seconds", "status"]
    )
    return frame.rename_axis("run")


def _different(rows: Sequence[Mapping[str, Any]], paths: Sequence[str]) -> list[str]:
    """Return the paths whose values differ; of a part that some runs lack, only the part."""
    absent = object()
    differing = [p for p in paths if len({_hashable(row.get(p, absent)) for row in rows}) > 1]
    having = {p: tuple(p in row for row in rows) for p in differing}
    kept: list[str] = []
    for path in differing:
        parts = path.split(".")
        above = (".".join(parts[:i]) for i in range(1, len(parts)))
        if all(having[path]) or not any(having.get(part) == having[path] for part in above):
            kept.append(path)
    return kept


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
    """Warn of metrics that were computed on other rows in some runs.

    By default of all but the losses of training, which may have other rows.
    """
    others: dict[tuple[str, str], list[str]] = {}
    evaluated = [name for name in metric_names(facts) if not name.endswith(".train_loss")]
    for metric in metrics or evaluated:
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
