"""Display of FeatureSets and views as tables and trees."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from modularml._optional import require
from modularml._typing import Array
from modularml.data.formats import BLOCK
from modularml.data.mapping import release
from modularml.data.row_records import count_by_reason, described_drops
from modularml.data.schema import DOMAINS, ColumnSpec
from modularml.viz import Diagram, DiagramEdge, DiagramNode

if TYPE_CHECKING:
    import pandas as pd


__all__ = ["describe", "html", "split_tree"]


def describe(data: Any) -> pd.DataFrame:
    """Return one row per column: name, kind, unit, dtype, shape and statistics.

    Padding is excluded. If rows were dropped, ``n_dropped`` is their number, and
    ``attrs["dropped"]`` has the numbers by reason.
    """
    schema = data.collection.schema
    rows = [_summary(schema[name], _blocks(data, name)) for name in data.column_names]
    frame: pd.DataFrame = require("pandas").DataFrame(rows)
    if data.dropped:
        counts = count_by_reason(data.dropped)
        frame["n_dropped"] = sum(counts.values())
        frame.attrs["dropped"] = counts
    return frame


def _blocks(data: Any, name: str) -> Iterator[Array]:
    """Yield a column block by block, without padded steps."""
    values, rows = data.collection.numpy(name), data.row_indices
    mask = data.collection.mask(name)
    for at in range(0, data.n_samples, BLOCK):
        block = slice(at, at + BLOCK) if rows is None else rows[at : at + BLOCK]
        yield values[block] if mask is None else values[block][mask[block]]
        release(data.collection.maps.values())


def _summary(spec: ColumnSpec, blocks: Iterator[Array]) -> dict[str, Any]:
    numeric = spec.dtype.kind in "iuf"
    low, high, total, size, count = np.inf, -np.inf, 0.0, 0, 0
    for block in blocks if numeric else ():
        finite = block[np.isfinite(block)]
        size, count = size + block.size, count + finite.size
        if finite.size:
            with np.errstate(over="ignore"):
                total += float(finite.sum(dtype=np.float64))
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    return {
        "domain": spec.domain,
        "key": spec.key,
        "rep": spec.rep,
        "kind": spec.kind,
        "unit": spec.unit,
        "dtype": _dtype(spec),
        "shape": spec.shape,
        "not_finite": size - count,
        "min": low if count else None,
        "mean": total / count if count else None,
        "max": high if count else None,
    }


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


def split_tree(
    fs: Any,
    *,
    show_features: bool,
    show_targets: bool,
    show_tags: bool | str,
    show_overlaps: bool,
) -> Diagram:
    """Draw a FeatureSet and its splits as a tree with counts and overlaps."""
    wanted = {"features": show_features, "targets": show_targets, "tags": bool(show_tags)}
    on_splits = {**wanted, "tags": show_tags is True}
    root = DiagramNode(
        "root", fs.label, (f"{fs.n_samples} rows", *_columns(fs, wanted)), kind="featureset"
    )
    origins = {name: record.source for record in fs.split_records for name in record.names}
    nodes, edges = [root], []
    for name, view in fs.splits.items():
        lines = (f"{view.n_samples} rows", *_columns(fs, on_splits))
        nodes.append(DiagramNode(f"split:{name}", name, lines, kind="split"))
        origin = origins.get(name)
        edges.append(DiagramEdge(f"split:{origin}" if origin else "root", f"split:{name}"))
    if show_overlaps:
        edges.extend(_overlaps(fs, origins))
    return Diagram(fs.label, tuple(nodes), tuple(edges), direction="LR")


def _columns(fs: Any, wanted: dict[str, bool]) -> list[str]:
    schema = fs.collection.schema
    lines = []
    for domain in DOMAINS:
        keys = schema.keys(domain) if wanted[domain] else []
        shown = [f"{k} {schema[schema.newest(domain, k)].shape or ''}".strip() for k in keys[:6]]
        if shown:
            lines.append(f"{domain}: {', '.join(shown)}{', ...' if len(keys) > 6 else ''}")
    return lines


def _overlaps(fs: Any, origins: dict[str, str | None]) -> list[DiagramEdge]:
    views = list(fs.splits.items())
    edges = []
    for i, (a, first) in enumerate(views):
        for b, second in views[i + 1 :]:
            if a in _ancestors(b, origins) or b in _ancestors(a, origins):
                continue
            shared = len(np.intersect1d(first.indices, second.indices))
            if shared:
                edges.append(DiagramEdge(f"split:{a}", f"split:{b}", f"{shared} shared", "dashed"))
    return edges


def _ancestors(name: str, origins: dict[str, str | None]) -> set[str]:
    ancestors: set[str] = set()
    parent = origins.get(name)
    while parent and parent not in ancestors:
        ancestors.add(parent)
        parent = origins.get(parent)
    return ancestors
