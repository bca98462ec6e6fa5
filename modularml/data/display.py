"""Display of FeatureSets and views as tables and trees."""

from __future__ import annotations

from html import escape
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from modularml._optional import require
from modularml.data.formats import BLOCK
from modularml.data.memory_map import release
from modularml.data.schema import DOMAINS, ColumnSpec
from modularml.data.split_records import count_by_reason, described_drops
from modularml.errors import ConfigError
from modularml.viz import Diagram, DiagramEdge, DiagramNode

if TYPE_CHECKING:
    import pandas as pd


def summary(self: Any) -> pd.DataFrame:
    """Return one row per column: kind, unit, dtype, shape, non-finite count, range.

    Padding is excluded. If rows were dropped, ``n_dropped`` is their number, and
    ``attrs["dropped"]`` has the numbers by reason.
    """
    collection, rows = self.collection, self.row_indices
    collection.check_rows()
    columns = []
    for name in self.column_names:
        spec, mask = collection.schema[name], collection.mask(name)
        low, high, total, size, count = np.inf, -np.inf, 0.0, 0, 0
        for at in range(0, self.n_samples, BLOCK) if spec.dtype.kind in "iuf" else ():
            part = slice(at, at + BLOCK) if rows is None else rows[at : at + BLOCK]
            values = collection.numpy(name)[part]  # not of text, which would be unpacked
            block = values if mask is None else values[mask[part]]
            finite = block[np.isfinite(block)]
            size, count = size + block.size, count + finite.size
            if finite.size:
                with np.errstate(over="ignore"):
                    total += float(finite.sum(dtype=np.float64))
                low, high = min(low, float(finite.min())), max(high, float(finite.max()))
            release(collection.maps.values())
        described = {
            "domain": spec.domain,
            "key": spec.key,
            "rep": spec.rep,
            "kind": spec.kind,
            "unit": spec.unit,
            "dtype": _dtype(spec),
            "shape": spec.shape,
            "not_finite": size - count,
        }
        found = (low, total / count, high) if count else (None, None, None)
        columns.append(described | dict(zip(("min", "mean", "max"), found, strict=True)))
    frame: pd.DataFrame = require("pandas").DataFrame(columns)
    if self.dropped:
        counts = count_by_reason(self.dropped)
        frame["n_dropped"] = sum(counts.values())
        frame.attrs["dropped"] = counts
    return frame


def _dtype(spec: ColumnSpec) -> str:
    return "text" if spec.dtype.kind == "O" else str(spec.dtype)


def html(data: Any, title: str, splits: dict[str, int] | None = None) -> str:
    """Return an HTML table of the columns by domain for notebooks."""
    schema = data.collection.schema
    body = "".join(
        f"<tr><td>{spec.domain}</td><td>{escape(spec.key)}</td><td>{escape(spec.rep)}</td>"
        f"<td>{escape(str(spec.shape or 'scalar'))}</td><td>{_dtype(spec)}</td>"
        f"<td>{spec.kind}</td><td>{escape(spec.unit or '')}</td></tr>"
        for spec in (schema[name] for name in data.column_names)
    )
    parts = ", ".join(f"{escape(name)}: {n}" for name, n in (splits or {}).items())
    drops = escape(described_drops(data.dropped))
    return (
        f"<div><b>{escape(title)}</b> &middot; {data.n_samples} rows"
        f"{' &middot; splits ' + parts if parts else ''}{' &middot; ' + drops if drops else ''}"
        "<table><thead><tr><th>domain</th><th>key</th><th>rep</th><th>shape</th><th>dtype</th>"
        "<th>kind</th><th>unit</th>"
        f"</tr></thead><tbody>{body}</tbody></table></div>"
    )


def visualize(
    self: Any,
    *,
    show_features: bool = True,
    show_targets: bool = True,
    show_tags: bool | str = "root",
    show_overlaps: bool = True,
) -> Diagram:
    """Draw this set and its splits as a tree with counts."""
    if show_tags not in (True, False, "root"):
        raise ConfigError(f"show_tags must be True, False or 'root', got {show_tags!r}")
    wanted = {"features": show_features, "targets": show_targets, "tags": bool(show_tags)}
    on_splits = {**wanted, "tags": show_tags is True}
    lines: tuple[str, ...] = (f"{self.n_samples} rows", *_columns(self, wanted))
    nodes, edges = [DiagramNode("root", self.label, lines, kind="featureset")], []
    origins = {name: record.source for record in self.split_records for name in record.names}
    for name, view in self.splits.items():
        lines = (f"{view.n_samples} rows", *_columns(self, on_splits))
        nodes.append(DiagramNode(f"split:{name}", name, lines, kind="split"))
        origin = origins.get(name)
        edges.append(DiagramEdge(f"split:{origin}" if origin else "root", f"split:{name}"))
    for (a, first), (b, second) in combinations(self.splits.items(), 2) if show_overlaps else ():
        shared = len(np.intersect1d(first.indices, second.indices))
        if shared and a not in _ancestors(b, origins) and b not in _ancestors(a, origins):
            edges.append(DiagramEdge(f"split:{a}", f"split:{b}", f"{shared} shared", "dashed"))
    return Diagram(self.label, tuple(nodes), tuple(edges), direction="LR")


def _columns(fs: Any, wanted: dict[str, bool]) -> list[str]:
    schema = fs.collection.schema
    lines = []
    for domain in DOMAINS:
        keys = schema.keys(domain) if wanted[domain] else []
        shown = [f"{k} {schema[schema.newest(domain, k)].shape or ''}".strip() for k in keys[:6]]
        if shown:
            lines.append(f"{domain}: {', '.join(shown)}{', ...' if len(keys) > 6 else ''}")
    return lines


def _ancestors(name: str, origins: dict[str, str | None]) -> set[str]:
    ancestors: set[str] = set()
    parent = origins.get(name)
    while parent and parent not in ancestors:
        ancestors.add(parent)
        parent = origins.get(parent)
    return ancestors
