"""The command ``predict``: rows in, predictions out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from modularml._optional import require
from modularml.cli.console import Reply, check_folder, is_parquet, unreadable
from modularml.context import ExperimentContext
from modularml.data.schema import RAW, ColumnSpec
from modularml.errors import ConfigError, DataError, UnknownNameError
from modularml.experiment import Experiment
from modularml.graph.model_graph import ModelGraph
from modularml.io.inspection import inspect


def run_predict(args: argparse.Namespace) -> Reply:
    """Predict, and write or show a table."""
    check_folder("--out", args.out)
    kind = inspect(args.model)["kind"]
    ensemble = require("modularml.strategies").Ensemble
    classes: dict[str, Any] = {c.__name__: c for c in (Experiment, ModelGraph, ensemble)}
    if kind not in classes:
        raise ConfigError(f"{args.model!r} holds no trained model; pass an .exp.mml or .mg.mml")
    model = classes[kind].load(args.model, allow_import=args.allow_import)
    reads = _reads(model)
    tables = _tables(args.tables, reads)
    options: dict[str, Any] = {"node": args.node, "fmt": "pandas", "tags": args.tags}
    options |= {"decode": args.decode} if args.decode else {}
    rows = args.calibration
    if rows is not None and Path(rows).is_file():
        rows = _read(rows, [spec for specs in reads.values() for spec in specs])
    bounds = {"interval": args.interval, "calibration": rows, "group_by": args.group_by}
    given = {name: value for name, value in bounds.items() if value is not None}
    if given and isinstance(model, ModelGraph):
        raise ConfigError(
            f"--{next(iter(given)).replace('_', '-')} needs the rows of an experiment; "
            "pass its .exp.mml file"
        )
    frame = _one_frame(model.predict(tables, **options, **given))
    if args.json and args.out is None:
        return Reply(data=frame.to_dict("records"))
    if args.out in (None, "-"):
        frame.to_csv(sys.stdout, index=False)
    elif is_parquet(args.out):
        frame.to_parquet(args.out, index=False)
    else:
        frame.to_csv(args.out, index=False)
    facts = {"rows": len(frame), "columns": [str(c) for c in frame], "file": args.out}
    return Reply("" if args.out in (None, "-") else f"{len(frame)} rows in {args.out}", facts)


def _reads(model: Any) -> dict[str, list[ColumnSpec]]:
    """Return the raw columns of each FeatureSet that a model reads, features first."""
    if not isinstance(model, ModelGraph | Experiment):
        model = next(iter(model.members.values()))  # of an ensemble; all read the same columns
    context = model.ctx if isinstance(model, Experiment) else ExperimentContext.get_active()
    graph = model.model_graph if isinstance(model, Experiment) else model
    if graph is None:
        raise ConfigError(f"experiment {model.label!r} has no model graph")
    columns: dict[str, list[ColumnSpec]] = {}
    for ref in [ref for node in graph.nodes.values() for ref in node.feature_refs]:
        fs: Any = context.get_node(label=ref.node_label)
        schema, keys = fs.collection.schema, [name.split(".")[1] for name in ref.features]
        read = [schema[f"{schema.domain_of(key)}.{key}.{RAW}"] for key in keys]
        others = [s for s in schema.columns.values() if s.rep == RAW and s.domain != "features"]
        known = columns.get(ref.node_label, [])
        columns[ref.node_label] = list(dict.fromkeys([*known, *read, *others]))
    return columns


def _tables(given: list[str], reads: Mapping[str, list[ColumnSpec]]) -> Any:
    """Read the tables, and name the columns that are missing in them."""
    frames: dict[str, pd.DataFrame] = {}
    for label, path in _by_label(given, list(reads)).items():
        specs = [s for name, specs in reads.items() if label in ("", name) for s in specs]
        frame = frames[label] = _read(path, specs)
        features = dict.fromkeys(s.key for s in specs if s.domain == "features")
        if missing := [key for key in features if key not in frame]:
            raise DataError(
                f"{path!r} lacks the columns {missing}, which the model reads; it has "
                f"{[str(c) for c in frame][:20]}"
            )
    return frames.get("", frames)


def _read(path: str, specs: list[ColumnSpec]) -> pd.DataFrame:
    """Read a table, with the types of a model's columns: ``007`` stays text; ``-`` is stdin."""
    if path != "-" and not Path(path).is_file():
        raise DataError(f"there is no file {path!r}; check the path")
    as_parquet = path != "-" and is_parquet(path)
    try:
        if as_parquet:
            return pd.read_parquet(path)
        types: dict[str, Any] = {s.key: str for s in specs if s.dtype == "object"}
        frame = pd.read_csv(sys.stdin if path == "-" else path, dtype=types)
        frame.columns = [str(name).strip() for name in frame.columns]
        for name in (s.key for s in specs if s.kind == "time" and s.key in frame):
            frame[name] = pd.to_datetime(frame[name], format="ISO8601")
    except (ValueError, OSError) as error:
        raise unreadable(path, as_parquet, error) from error
    return frame


def _by_label(given: list[str], labels: list[str]) -> dict[str, str]:
    """Return paths by the label of a FeatureSet; one path alone has none."""
    if len(given) == 1 and (given[0].partition("=")[0] not in labels or Path(given[0]).exists()):
        return {"": given[0]}
    paths: dict[str, str] = {}
    for item in given:
        label, equals, path = item.partition("=")
        if not equals:
            raise ConfigError(f"several tables need labels, as in {labels[:1]}=..., got {item!r}")
        if labels and label not in labels:
            raise UnknownNameError("table", label, labels)
        paths[label] = path
    return paths


def _one_frame(predicted: Any) -> Any:
    """Return one table; columns of several nodes begin with the node's label."""
    if not isinstance(predicted, dict):
        return predicted
    first = next(iter(predicted.values()))
    same = [c for c in first if all(c in f and f[c].equals(first[c]) for f in predicted.values())]
    joined = {c: first[c] for c in same}
    for label, part in predicted.items():
        joined |= {f"{label}.{c}": part[c] for c in part if c not in same}
    return pd.DataFrame(joined)
