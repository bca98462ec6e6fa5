"""Permutation importance of columns and of the elements of array columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from modularml._arguments import at_least
from modularml._optional import require
from modularml._typing import Array, Columns
from modularml.data import FeatureSet, FeatureSetView
from modularml.data.schema import RAW, SampleSchema
from modularml.data.selectors import as_list, select_one
from modularml.errors import ConfigError, DataError
from modularml.experiment.evaluating import evaluate, split_rows
from modularml.graph.model_graph import ModelGraph
from modularml.results.scores import greater_is_better as direction_of
from modularml.results.scores import name_of_score

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["importances"]


def importances(
    graph: ModelGraph,
    data: Any,
    metric: str | Callable[..., float],
    *,
    columns: Columns,
    by: Literal["column", "element"],
    n_repeats: int,
    seed: int,
    greater_is_better: bool | None,
    **how: Any,
) -> pd.DataFrame:
    """Score a graph on rows with permuted features; see `Experiment.importances`."""
    at_least(1, n_repeats=n_repeats)
    if by not in ("column", "element"):
        raise ConfigError(f"by must be 'column' or 'element', got {by!r}")
    known = direction_of(metric) if greater_is_better is None else greater_is_better
    if known is None:
        raise ConfigError(
            f"it is unknown whether greater values of {name_of_score(metric)!r} are better; pass "
            "greater_is_better="
        )
    rows = split_rows(graph, data) if isinstance(data, str) else data
    if not isinstance(rows, FeatureSet | FeatureSetView):
        raise DataError("data must be rows of one FeatureSet: a split, a view or a set")
    view = rows.to_view()
    schema = view.collection.schema
    raw = {s.key: view.column(s.name) for s in schema.columns.values() if s.rep == RAW}

    def score(values: dict[str, Array]) -> float:
        table = evaluate(
            graph, values, metrics=[metric], group_by=None, batch_size=None, audit="off", **how
        )
        if len(table) != 1:
            raise ConfigError(f"one node must be scored, got {table['node'].tolist()}; pass node=")
        return float(table[name_of_score(metric)][0])

    random = np.random.RandomState(seed)
    start, table = random.randint(np.iinfo(np.int32).max + 1), []
    before = score(raw)
    for key, place, name in _parts(_keys(graph, view, columns), schema, by):
        shuffle, order = np.random.RandomState(start), np.arange(len(view))
        drops, values = [], raw[key].copy()
        for _ in range(n_repeats):
            shuffle.shuffle(order)
            values[place] = values[order][place]
            after = score({**raw, key: values})
            drops.append(before - after if known else after - before)
        table.append((key, name, np.mean(drops), np.std(drops), drops))
    names = ["column", "element", "mean", "std", "values"]
    frame: pd.DataFrame = require("pandas").DataFrame(table, columns=names)
    frame.attrs["score"] = before
    return frame


def _keys(graph: ModelGraph, view: FeatureSetView, columns: Columns) -> list[str]:
    """Return the keys of features to permute, by default those that the graph reads."""
    schema = view.collection.schema
    if columns is not None:
        return [schema[select_one(schema, name)].key for name in as_list(columns)]
    refs = [ref for node in graph.nodes.values() for ref in node.feature_refs]
    read = [name for r in refs if r.resolve() is view.source for name in r.columns("features")]
    masks = set(schema.masks.values())
    keys = dict.fromkeys(schema[name].key for name in read)
    return [key for key in keys if key not in masks]


def _parts(keys: list[str], schema: SampleSchema, by: str) -> Iterator[tuple[str, Any, str | None]]:
    """Yield key, place and name of what is permuted together."""
    for key in keys:
        spec = schema[f"{schema.domain_of(key)}.{key}.{RAW}"]
        if by == "column" or len(spec.shape) != 1:
            yield key, ..., None
            continue
        for place, name in enumerate(spec.elements or map(str, range(spec.shape[0]))):
            yield key, (slice(None), place), name
