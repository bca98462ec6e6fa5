"""Inspection of files without building objects or importing frameworks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from modularml.errors import MMLError, MMLNotFoundError
from modularml.io import limits
from modularml.io.append_log import Segment, merged_runs, read_log
from modularml.io.archive import Archive, open_archive
from modularml.io.names import find_file
from modularml.io.tensors import load_table, load_tensors


def inspect(path: str | Path) -> dict[str, Any]:
    """Describe the contents of a file, after the first six steps of reading.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    dict
        ``kind``, ``library``, ``schema``, ``content_id``, ``backends``, ``classes`` (the author's
        own), ``type``, ``config`` (constructor arguments as plain data), ``label``, ``nodes``,
        ``featuresets`` (rows, columns and their types, fingerprint of the rows in the file, splits
        and scalers of each), ``runs`` (with duration, each metric of the epoch whose weights were
        saved, and the splits that were read), ``log`` (of a checkpoint: the file in the same
        folder with its history) and ``members`` (size in bytes of each).

    Raises
    ------
    MMLError
        If the file is damaged, newer or not an artifact.

    Examples
    --------
    >>> import tempfile
    >>> from modularml import FeatureSet
    >>> fs = FeatureSet.from_dict("rows", {"x": [1.0], "y": [2.0]}, "x", "y", register=False)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     facts = inspect(fs.save(f"{folder}/rows"))
    >>> facts["type"]
    'FeatureSet'
    """
    archive = open_archive(find_file(path, None))
    config, state = archive.json("config.json"), archive.json("state.json")
    manifest = archive.manifest
    manifest_facts = {key: manifest[key] for key in ("library", "schema", "content_id", "backends")}
    facts = {
        "path": str(archive.path),
        "kind": limits.KINDS[archive.kind],
        **manifest_facts,
        "requires": manifest["requires"],
        "classes": manifest["classes"],
        "members": {name: m["size"] for name, m in manifest["members"].items()},
    }
    try:
        params = config["params"]
        graph = params if config["type"] == "ModelGraph" else (params.get("model_graph") or {})
        nodes = graph.get("params", graph).get("nodes", [])
        sets = {"featuresets": {}, **(state if isinstance(state, dict) else {})}["featuresets"]
        if config["type"] == "FeatureSet":
            sets = {params["label"]: state}
        runs = state.get("history", []) if isinstance(state, dict) else []
        segment = Segment.from_json(params.get("log"), archive.path)
        with suppress(MMLNotFoundError):  # a checkpoint without its log file
            runs = runs or merged_runs(
                {
                    "runs": [
                        [n, {**run, "results": _read_metrics(run["results"], part)}]
                        for n, run in part.json("state.json")["runs"]
                    ]
                }
                for part in read_log(segment, archive.path)
            )
        return {
            **facts,
            "type": config["type"],
            "config": params,
            "log": None if segment is None else segment.file,
            "label": params.get("label"),
            "meta": params.get("meta"),
            "nodes": {
                n["params"]["label"]: str((n["params"].get("model") or {}).get("$type", n["$type"]))
                for n in nodes
            },
            "featuresets": {label: _of_set(data, archive) for label, data in sets.items()},
            "runs": [_of_run(run, archive) for run in runs],
        }
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        problem = f"deviates from the format: {type(error).__name__} {error}"[:200]
        raise MMLError(limits.MISFIT, archive.path, "state.json", problem) from None


def render(facts: dict[str, Any]) -> str:
    """Format what `inspect` returned as a text tree.

    Examples
    --------
    >>> import tempfile
    >>> from modularml import SimpleSampler
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     text = render(inspect(SimpleSampler().save(f"{folder}/sampler")))
    >>> text.splitlines()[0].split()[0]
    'sampler.sm.mml'
    """
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
        columns = ", ".join(f"{name} {data['types'][name]}" for name in data["columns"])
        place = "" if data["has_rows"] else " (not in this file)"
        title = f"rows {label!r}: {data['rows']}{place}, fingerprint {data['fingerprint'][:16]}"
        yield title, [f"columns {columns}", *splits, *scalers]
    if facts["runs"]:
        lines = []
        for run in facts["runs"]:
            lines.append(f"{run['label']}: {run['status']}, {', '.join(run['phases'])}")
            lines += [f"{name}: {value:.6g}" for name, value in run["metrics"].items()]
        yield "runs", lines
    if facts["log"]:
        yield f"history in {facts['log']}", []
    if facts["classes"]:
        yield "needs code of the author", [str(c.get("name")) for c in facts["classes"]]
    yield "members", [f"{name}: {size:,} bytes" for name, size in facts["members"].items()]


def _read_metrics(item: dict[str, Any], archive: Archive) -> dict[str, Any]:
    if "items" in item:
        return {**item, "items": [_read_metrics(inner, archive) for inner in item["items"]]}
    epochs = {
        name: {axis: _numbers(column, archive) for axis, column in series.items()}
        for name, series in item["metrics"]["epochs"].items()
    }
    return {**item, "metrics": {"epochs": epochs}, "steps": []}


def _of_set(data: dict[str, Any], archive: Archive) -> dict[str, Any]:
    scalers = []
    for record in data["scaler_records"]:
        name = record["scaler"]["params"]["scaler"]
        name = str(name["$code"] if isinstance(name, dict) else name)
        per = " and ".join(column.split(".")[1] for column in record.get("per", ()))
        scalers.append(
            f"{name} on {record['domain']} {', '.join(record['keys']['$tuple'])}, "
            f"{per and f'per {per}, '}fitted on {record['fit_to_split'] or 'all rows'}"
        )
    drops: dict[str, dict[str, int]] = {}  # dropped rows by split, "" for the whole set
    for split, parts in data.get("dropped", {}).items():
        counts = drops.setdefault(split, {})
        for part in parts:
            counts[part["reason"]] = counts.get(part["reason"], 0) + part["ids"]["shape"][0]
    member = data["table"]["$table"]
    table = load_table(archive.payloads[member], archive.path, member)
    return {
        "rows": data.get("absent", data["table"])["rows"],
        "columns": data["table"]["columns"],
        "types": {field.name: _shown_type(field.type) for field in table.schema},
        "fingerprint": data.get("absent", {}).get("fingerprint")
        or archive.manifest["members"][member]["sha256"],
        "has_rows": "absent" not in data,
        "splits": {name: rows["shape"][0] for name, rows in data["splits"].items()},
        "scalers": scalers,
        **({"dropped": drops} if drops else {}),
    }


def _shown_type(kind: Any) -> str:
    sizes = []
    while hasattr(kind, "list_size"):
        sizes.append(kind.list_size)
        kind = kind.value_type
    return f"{kind}{sizes or ''}"


def _of_run(run: dict[str, Any], archive: Archive) -> dict[str, Any]:
    started, ended = (
        None if run[name] is None else datetime.fromisoformat(run[name]["$time"])
        for name in ("started_at", "ended_at")
    )
    return {
        "label": run["label"],
        "status": run["status"],
        "started_at": started,
        "seconds": None if started is None or ended is None else (ended - started).total_seconds(),
        "phases": [item["label"] for item in run["results"]["items"]],
        "metrics": dict(_metrics_of_saved_epoch(run["results"], archive)),
        "rows_of": dict(_rows_of(run["results"])),
    }


def _rows_of(item: dict[str, Any]) -> Iterator[tuple[str, list[list[str]]]]:
    """Yield the FeatureSets and splits that phases and their evaluations read."""
    for inner in item.get("items", []):
        yield from _rows_of(inner)
    for name, steps in [(item["label"], item.get("steps")), *_evaluations(item)]:
        parts = [part for part in (steps if isinstance(steps, list) else [steps]) if part]
        layouts = [layout for part in parts if isinstance(layout := part.get("layout"), dict)]
        rows = [source[2] for layout in layouts for source in layout["sources"]]
        if rows:
            yield name, [[str(row["set"]), str(row["label"])] for row in rows]


def _evaluations(item: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the recorded steps of the first evaluation of each callback of a phase."""
    seen = set()
    for result in item.get("callbacks", []):
        fields = result.get("fields") or {  # of a table of results, those that all share
            name: {"phase": column["phases"]} if "phases" in column else column.get("value")
            for name, column in result["columns"].items()
        }
        phase = fields["results"].get("phase") if isinstance(fields.get("results"), dict) else None
        if isinstance(phase, dict) and fields["label"] not in seen:
            seen.add(fields["label"])
            yield f"{item['label']}.{fields['label']}", phase.get("steps")


def _losses_of(item: dict[str, Any], archive: Archive) -> Iterator[tuple[str, float]]:
    """Yield the losses over all rows of an evaluation or fit phase."""
    steps = item.get("steps")
    if item.get("class") == "TrainResults" or not isinstance(steps, dict) or "totals" not in steps:
        return
    names = [label for label, _ in steps["layout"]["losses"]]
    values, totals = (
        _numbers(steps[key], archive).reshape(-1, max(1, len(names)))
        for key in ("losses", "totals")
    )
    for i, name in enumerate(names):
        weight = totals[:, i].sum()
        yield name, float(totals[:, i] @ values[:, i] / weight) if weight else float("nan")


def _metrics_of_saved_epoch(item: dict[str, Any], archive: Archive) -> Iterator[tuple[str, float]]:
    """Yield the metrics of a phase or group in the epoch whose weights were saved."""
    for inner in item.get("items", []):
        yield from _metrics_of_saved_epoch(inner, archive)
    columns = {
        name: {axis: _numbers(series[axis], archive) for axis in ("epoch", "value")}
        for name, series in item.get("metrics", {}).get("epochs", {}).items()
    }
    ends = [result["fields"] for result in item.get("callbacks", []) if "fields" in result]
    saved_epoch = next((end["best_epoch"] for end in reversed(ends) if end.get("restored")), None)
    if saved_epoch is None:
        saved_epoch = max(
            (int(e) for column in columns.values() for e in column["epoch"]), default=None
        )
    for name, value in _losses_of(item, archive):
        yield f"{item['label']}.{name}", value
    for name, column in columns.items():
        values = column["value"][column["epoch"] == saved_epoch]
        if len(values):
            yield f"{item['label']}.{name}", float(values[-1])


def _numbers(stored: Any, archive: Archive) -> Any:
    if isinstance(stored, np.ndarray):
        return stored
    if "$array" in stored:
        return np.array(stored["$array"], dtype=np.float64).ravel()
    tensors = load_tensors(archive.payloads[stored["in"]], archive.path, stored["in"])
    return tensors[stored["$tensor"]].ravel()
