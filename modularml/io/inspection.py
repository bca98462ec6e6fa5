"""What is in a file, told without making anything of it; no framework is needed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modularml.errors import MMLError
from modularml.io import limits
from modularml.io.archive import open_archive
from modularml.io.names import find_file

__all__ = ["inspect", "render"]


def inspect(path: str | Path) -> dict[str, Any]:
    """Tell what is in a file, after the first six steps of reading.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    dict
        ``kind``, ``library``, ``schema``, ``content_id``, ``backends``, ``classes`` (of the
        author's own), ``type``, ``label``, ``nodes``, ``featuresets`` (rows, columns, splits and
        scalers of each), ``runs`` and ``members`` (size in bytes of each).

    Raises
    ------
    MMLError
        If the file is damaged, newer or no artifact.
    """
    archive = open_archive(find_file(path, None))
    config, state = archive.json("config.json"), archive.json("state.json")
    manifest = archive.manifest
    told = {key: manifest[key] for key in ("library", "schema", "content_id", "backends")}
    facts = {
        "path": str(archive.path),
        "kind": limits.KINDS[archive.kind],
        **told,
        "requires": manifest["requires"],
        "classes": manifest["classes"],
        "members": {name: m["size"] for name, m in manifest["members"].items()},
    }
    try:
        return {**facts, **_of_config(config, state)}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        problem = f"is not laid out as we write it: {type(error).__name__} {error}"[:200]
        raise MMLError(limits.MISFIT, archive.path, "state.json", problem) from None


def render(facts: dict[str, Any]) -> str:
    """Draw what `inspect` returned as a tree of text."""
    name = facts["path"].replace("\\", "/").rpartition("/")[2]
    lines = [f"{name}  ({facts['kind']}, {sum(facts['members'].values()):,} bytes)"]
    branches = list(_branches(facts))
    for i, (title, inner) in enumerate(branches):
        last = i == len(branches) - 1
        lines.append(f"{'└─' if last else '├─'} {title}")
        for j, line in enumerate(inner):
            mark = "└─" if j == len(inner) - 1 else "├─"
            lines.append(f"{'   ' if last else '│  '}{mark} {line}")
    return "\n".join(lines)


def _branches(facts: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    shown = f" {facts['label']!r}" if facts.get("label") else ""
    yield f"{facts['type']}{shown}", []
    yield f"modularml {facts['library']}, schema {facts['schema']}", []
    yield f"content id {facts['content_id'][:16]}", []
    if facts["nodes"]:
        backends = facts["backends"]
        nodes = [f"{n}: {t} ({backends.get(n, 'no backend')})" for n, t in facts["nodes"].items()]
        yield "nodes", nodes
    for label, data in facts["featuresets"].items():
        splits = [f"split {name}: {n} rows" for name, n in data["splits"].items()]
        scalers = [f"scaler {text}" for text in data["scalers"]]
        columns = f"columns {', '.join(data['columns'])}"
        yield f"rows {label!r}: {data['rows']}", [columns, *splits, *scalers]
    if facts["runs"]:
        runs = facts["runs"]
        yield "runs", [f"{r['label']}: {r['status']}, {', '.join(r['phases'])}" for r in runs]
    if facts["classes"]:
        yield "needs code of the author's", [str(c.get("name")) for c in facts["classes"]]
    yield "members", [f"{name}: {size:,} bytes" for name, size in facts["members"].items()]


def _of_config(config: Any, state: Any) -> dict[str, Any]:
    params = config["params"]
    graph = params if config["type"] == "ModelGraph" else (params.get("model_graph") or {})
    nodes = graph.get("params", graph).get("nodes", [])
    sets = {"featuresets": {}, **(state if isinstance(state, dict) else {})}["featuresets"]
    if config["type"] == "FeatureSet":
        sets = {params["label"]: state}
    runs = state.get("history", []) if isinstance(state, dict) else []
    return {
        "type": config["type"],
        "label": params.get("label"),
        "meta": params.get("meta"),
        "nodes": {n["params"]["label"]: _node_type(n) for n in nodes},
        "featuresets": {label: _of_set(data) for label, data in sets.items()},
        "runs": [_of_run(run) for run in runs],
    }


def _node_type(node: dict[str, Any]) -> str:
    model = node["params"].get("model") or {}
    return str(model.get("$type", node["$type"]))


def _of_set(data: dict[str, Any]) -> dict[str, Any]:
    scalers = [
        f"{_scaler_name(r['scaler'])} on {r['domain']} {', '.join(r['keys']['$tuple'])}, fitted on "
        f"{r['fit_to_split'] or 'all rows'}"
        for r in data["scaler_records"]
    ]
    return {
        "rows": data["table"]["rows"],
        "columns": data["table"]["columns"],
        "splits": {name: rows["shape"][0] for name, rows in data["splits"].items()},
        "scalers": scalers,
    }


def _scaler_name(scaler: dict[str, Any]) -> str:
    name = scaler["params"]["scaler"]
    return str(name["$code"] if isinstance(name, dict) else name)


def _of_run(run: dict[str, Any]) -> dict[str, Any]:
    phases = [item["label"] for item in run["results"]["items"]]
    return {"label": run["label"], "status": run["status"], "phases": phases}
