"""Permutation importance of columns and of the elements of array columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import numpy as np

from modularml._arguments import at_least
from modularml._typing import Array, Columns
from modularml.data import FeatureSet, FeatureSetView
from modularml.data.schema import RAW, SampleSchema
from modularml.data.selectors import as_list, select_one
from modularml.errors import ConfigError, DataError
from modularml.experiment.evaluating import evaluate, split_rows
from modularml.graph.model_graph import ModelGraph
from modularml.results.scores import axis_of_score, name_of_score
from modularml.results.scores import greater_is_better as direction_of
from modularml.results.tables import ImportanceTable, ScoreTable

__all__ = ["importances"]


def importances(
    graph: ModelGraph,
    data: Any,
    metric: str | Callable[..., float],
    *,
    columns: Columns | Mapping[str, Columns],
    by: Literal["column", "element"],
    n_repeats: int,
    seed: int,
    greater_is_better: bool | None,
    **how: Any,
) -> ImportanceTable:
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

    def scored(values: Mapping[str, Array]) -> ScoreTable:
        table = evaluate(
            graph, values, metrics=[metric], group_by=None, batch_size=None, audit="off", **how
        )
        if len(table) != 1:
            raise ConfigError(f"one node must be scored, got {table['node'].tolist()}; pass node=")
        return table

    name = name_of_score(metric)
    random = np.random.RandomState(seed)
    start, table = random.randint(np.iinfo(np.int32).max + 1), []
    first = scored(raw)
    before = float(first[name][0])
    for column, element, parts in _parts(_keys(graph, view, columns, by), schema, by):
        shuffle, order = np.random.RandomState(start), np.arange(len(view))
        drops, values = [], {key: raw[key].copy() for key in parts}
        for _ in range(n_repeats):
            shuffle.shuffle(order)
            for key, place in parts.items():
                values[key][place] = values[key][order][place]
            after = float(scored({**raw, **values})[name][0])
            drops.append(before - after if known else after - before)
        table.append((column, element, np.mean(drops), np.std(drops), drops))
    frame = ImportanceTable(table, columns=["column", "element", "mean", "std", "values"])
    axis = axis_of_score(name, first._unit).partition(" (")
    label = f"{'decrease' if known else 'increase'} of {name}{''.join(axis[1:])} when permuted"
    frame.attrs |= {"score": before, "label": label}
    return frame


def _keys(
    graph: ModelGraph, view: FeatureSetView, columns: Columns | Mapping[str, Columns], by: str
) -> dict[str, list[str]]:
    """Return the keys of features to permute together, by name."""
    schema = view.collection.schema

    def keys_of(names: Columns) -> list[str]:
        return [schema[select_one(schema, name)].key for name in as_list(names)]

    if isinstance(columns, Mapping):
        if by != "column":
            raise ConfigError("groups of columns are permuted as a whole; omit by, or name columns")
        if empty := [name for name, names in columns.items() if not as_list(names)]:
            raise ConfigError(f"groups of columns must name at least one, got none for {empty}")
        return {name: keys_of(names) for name, names in columns.items()}
    if columns is not None:
        return {key: [key] for key in keys_of(columns)}
    refs = [ref for node in graph.nodes.values() for ref in node.feature_refs]
    read = [name for r in refs if r.resolve() is view.source for name in r.columns("features")]
    masks = set(schema.masks.values())
    keys = dict.fromkeys(schema[name].key for name in read)
    return {key: [key] for key in keys if key not in masks}


def _parts(
    keys: Mapping[str, list[str]], schema: SampleSchema, by: str
) -> Iterator[tuple[str, str | None, dict[str, Any]]]:
    """Yield the name of a column or group, that of an element, and places by key."""
    for name, together in keys.items():
        key = together[0]
        spec = schema[f"{schema.domain_of(key)}.{key}.{RAW}"]
        if by == "column" or len(spec.shape) != 1:
            yield name, None, dict.fromkeys(together, ...)
            continue
        for place, element in enumerate(spec.elements or map(str, range(spec.shape[0]))):
            yield name, element, {key: (slice(None), place)}
