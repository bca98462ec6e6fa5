"""Export of a graph with its scalers to ONNX files and `torch.export` programs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from modularml._optional import require
from modularml._typing import Array
from modularml.backends import Backend
from modularml.backends.distribution_outputs import VARIANCE
from modularml.data.schema import RAW
from modularml.errors import (
    BackendNotSupportedError,
    ConfigError,
    DataError,
    DeviceError,
    ModularMLError,
    NotFittedError,
    ScalerError,
    UnknownNameError,
)
from modularml.graph.predict import Prediction, predictions
from modularml.graph.step_plan import StepPlan
from modularml.graph.unscaling import scaled_target
from modularml.io.atomic import check_free, write_file

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
ROWS = 256
"""Most rows of a FeatureSet that a file is compared with `predict` on."""
TOLERANCE = 1e-5
LINEAR = ("MaxAbsScaler", "MinMaxScaler", "RobustScaler", "StandardScaler")
Columns = dict[str, Any]


def export(
    graph: Any, path: str | Path, fmt: str, *, data: Any, node: Any, overwrite: bool
) -> Path:
    """Write a graph as a function from raw columns to predictions; see `ModelGraph.export`."""
    if fmt not in SUFFIXES:
        raise UnknownNameError("format", str(fmt), SUFFIXES)
    suffix = SUFFIXES[fmt]
    target = Path(path) if str(path).endswith(suffix) else Path(f"{path}{suffix}")
    check_free(target, overwrite)
    if not graph.is_built:
        raise NotFittedError("the graph has not been built; train it, or call graph.build()")
    nodes = list(graph.tail_nodes.values()) if node is None else [graph.get_node(node)]
    plan, _ = graph.plan((), training=False, active_nodes=nodes)
    running = graph._running(nodes)
    _check_nodes(running)
    torch_export = require("modularml.backends.torch_export")
    rows = _example_rows(plan) if data is None else data
    made = predictions(graph, rows, node=node)
    columns = _raw_columns(plan, made)
    outputs = _named_outputs(made)
    function = _function(plan, made, columns, outputs)
    inputs = {name: values for (_, _), (name, values) in columns.items()}
    example = {name: np.zeros((3, *v.shape[1:]), v.dtype) for name, v in inputs.items()}
    try:
        with plan.modes():
            program = torch_export.traced(
                [model for segment in plan.segments for model, _ in segment.modes],
                function,
                example,
            )
        if fmt == "torch":
            content = torch_export.program_bytes(program)
        else:
            # what a reader of the file needs to know beyond names and shapes
            facts = {
                p.label: {
                    "targets": p.target_keys,
                    "classes": None if (known := p.class_labels) is None else list(map(str, known)),
                }
                for p in made
            }
            content = torch_export.onnx_bytes(
                program, list(inputs), list(outputs), {"modularml.nodes": json.dumps(facts)}
            )
    except ModularMLError:
        raise
    except Exception as error:
        raise _not_exportable(plan, running, torch_export, error) from error
    run = torch_export.run_program if fmt == "torch" else torch_export.run_onnx
    expected = {name: pick(made[i].values()) for name, (i, pick) in outputs.items()}

    def verify(file: Path) -> None:
        n = made[0].n_rows
        for size in {n, min(n, 1)} - {0}:
            first = {name: np.ascontiguousarray(v[:size]) for name, v in inputs.items()}
            _compare(run(file, first), {name: v[:size] for name, v in expected.items()})

    write_file(target, [content], overwrite=overwrite, verify=verify)
    return target


def _check_nodes(nodes: Sequence[Any]) -> None:
    """Refuse nodes of other frameworks, and those that are not on the CPU."""
    for node in nodes:
        backend = getattr(node, "backend", Backend.TORCH)
        if backend is not Backend.TORCH:
            raise BackendNotSupportedError(
                f"node {node.label!r} is a model of {backend.value}, and export takes models of "
                "torch; save the graph with graph.save, which holds models of all frameworks"
            )
        devices = {str(p.device) for p in getattr(node, "parameters", dict)().values()}
        if devices - {"cpu"}:
            raise DeviceError(
                f"node {node.label!r} is on {sorted(devices)}, and export takes models on the "
                "CPU; call graph.move_to('cpu') first"
            )


def _example_rows(plan: StepPlan) -> Any:
    """Return rows of the FeatureSets that a plan reads, or none of their columns."""
    sets = {str(s.source.ref.node_label): s.source.ref.resolve() for s in plan.slots}
    if all(fs.has_rows for fs in sets.values()):
        if len(sets) > 1:
            return sets
        view = next(iter(sets.values())).to_view()
        return view.take(np.arange(min(len(view), ROWS)))
    tables = {}
    for label, fs in sets.items():
        specs = [s for s in fs.collection.schema.columns.values() if s.rep == RAW]
        tables[label] = {s.key: np.zeros((0, *s.shape), s.dtype) for s in specs}
    return tables if len(tables) > 1 else next(iter(tables.values()))


def _raw_columns(
    plan: StepPlan, made: Sequence[Prediction]
) -> dict[tuple[str, str], tuple[str, Array]]:
    """Return name and values of each raw column that the graph reads, by FeatureSet and key."""
    names: dict[str, dict[str, None]] = {}
    sets = {}
    for slot in plan.slots:
        label = slot.source.ref.node_label
        sets[label] = slot.source.ref.resolve()
        names.setdefault(label, {}).update(dict.fromkeys(slot.columns))
    found = {
        (label, key): values
        for label, own in names.items()
        for key, values in made[0].reader(label).raw_columns(sets[label], own).items()
    }
    for (label, key), values in found.items():
        if values.dtype.kind not in "biuf":
            raise DataError(
                f"column {key!r} of {label!r} holds {values.dtype}, and exported graphs take "
                "numbers and booleans; encode it before it enters the FeatureSet, or omit it"
            )
    counts = Counter(key for _, key in found)
    return {
        (label, key): (key if counts[key] == 1 else f"{label}.{key}", values)
        for (label, key), values in found.items()
    }


def _named_outputs(
    made: Sequence[Prediction],
) -> dict[str, tuple[int, Callable[[Any], Any]]]:
    """Return, by name, the prediction that an output is taken from, and how.

    Outputs have the name of their target, one for each of several targets of a node, or the label
    of the node.
    """
    parts: list[tuple[str, str, int, Callable[[Any], Any]]] = []
    for i, prediction in enumerate(made):
        keys, width = prediction.target_keys, prediction.width
        if len(keys) > 1 and width == len(keys):
            columns = (slice(at, at + 1) for at in range(width))
            parts += [
                (key, prediction.label, i, partial(_columns, part))
                for key, part in zip(keys, columns, strict=True)
            ]
        else:
            name = keys[0] if len(keys) == 1 else prediction.label
            parts.append((name, prediction.label, i, partial(_columns, slice(None))))
    counts = Counter(name for name, *_ in parts)
    return {
        (name if counts[name] == 1 else f"{label}.{name}"): (i, pick)
        for name, label, i, pick in parts
    }


def _columns(part: slice, values: Any) -> Any:
    return values[:, part]


def _function(
    plan: StepPlan,
    made: Sequence[Prediction],
    columns: Mapping[tuple[str, str], tuple[str, Array]],
    outputs: Mapping[str, tuple[int, Callable[[Any], Any]]],
) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Return the graph as a function of tensors by name."""
    scaling = require("modularml.backends.torch_scalers")
    transforms = {
        label: _transform(slot.source.ref.resolve(), {k for at, k in columns if at == label})
        for slot in plan.slots
        for label in [slot.source.ref.node_label]
    }
    places = {name: i for i, (name, _) in enumerate(plan.layout.outputs)}
    units = [(places[p.node.node_id], _unscaling(p)) for p in made]

    def function(inputs: Mapping[str, Any]) -> dict[str, Any]:
        raw: dict[str, Columns] = {label: {} for label in transforms}
        for (label, key), (name, _) in columns.items():
            raw[label][key] = inputs[name]
        newest = {label: transform(raw[label]) for label, transform in transforms.items()}
        tensors = []
        for slot in plan.slots:
            label = slot.source.ref.node_label
            parts = [
                (raw if name.endswith(f".{RAW}") else newest)[label][name.split(".")[1]]
                for name in slot.columns
            ]
            tensors.append(scaling.stacked(parts, slot.shape, slot.dtype))
        outs = plan.outputs(tensors)
        values = []
        for place, unscale in units:
            out = outs[place]
            values.append(unscale(out[:, None] if out.ndim == 1 else out))
        return {name: pick(values[i]) for name, (i, pick) in outputs.items()}

    return function


def _transform(fs: Any, keys: set[str]) -> Callable[[Columns], Columns]:
    """Return the recorded scalers of a FeatureSet as a function of raw tensors by key."""
    scaling = require("modularml.backends.torch_scalers")
    records = [r for r in fs.scaler_records if set(r.keys) & keys]
    steps = [_exportable(fs, r, scaling.record_transform, scaling) for r in records]
    mask_of = {key: mask for key, mask in fs.collection.schema.masks.items() if key in keys}

    def transform(raw: Columns) -> Columns:
        current, masks = dict(raw), {key: raw[mask] for key, mask in mask_of.items()}
        for step in steps:
            current.update(step(current, masks))
        return current

    return transform


def _unscaling(prediction: Prediction) -> Callable[[Any], Any]:
    """Return the conversion of outputs to the units of their targets."""
    scaling = require("modularml.backends.torch_scalers")
    leaf = scaled_target(prediction.predicted)
    if leaf is None:
        return lambda values: values
    fs = leaf.source.ref.resolve()
    schema, domain = fs.collection.schema, leaf.columns[0].split(".")[0]
    keys = [name.split(".")[1] for name in leaf.columns]
    chain = [
        r for r in reversed(fs.scaler_records) if r.domain == domain and set(r.keys) & set(keys)
    ]
    inverses = [
        _exportable(fs, r, scaling.record_inverse, scaling, "the inverse of ") for r in chain
    ]
    dtypes = [schema[f"{domain}.{key}.{RAW}"].dtype for key in keys]
    shape, squared = schema[leaf.columns[0]].shape, [name == VARIANCE for name in leaf.labels]
    others = [r.scaler.scaler_name for r in chain if r.scaler.scaler_name not in LINEAR]
    if leaf.labels and others:
        raise ScalerError(
            f"{', '.join(others)} on the targets {keys} cannot be exported with the outputs "
            f"{list(leaf.labels)}: only {', '.join(LINEAR)} keep variances and the order of "
            "quantiles"
        )
    unscale: Callable[[Any], Any] = scaling.unscaled(
        inverses, [r.keys for r in chain], keys, shape, dtypes, squared
    )
    return unscale


def _exportable(fs: Any, record: Any, make: Any, scaling: Any, of: str = "") -> Any:
    """Return a record as a function of tensors; name its scaler in errors."""
    try:
        return make(record)
    except scaling.NotExportableError as error:
        raise ScalerError(
            f"{of}{record.scaler.scaler_name} on {list(record.keys)} of {fs.label!r} cannot be "
            f"exported: {error}. Choose another scaler, or save the graph with graph.save"
        ) from None


def _compare(found: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
    """Refuse outputs that differ from predictions by more than `TOLERANCE`."""
    for name, wanted in expected.items():
        values = found[name]
        finite = np.abs(wanted[np.isfinite(wanted)])
        scale = float(finite.max()) if finite.size else 1.0
        if values.shape == wanted.shape and np.allclose(
            values, wanted, rtol=TOLERANCE, atol=TOLERANCE * scale, equal_nan=True
        ):
            continue
        gap = f"shape {values.shape} instead of {wanted.shape}"
        if values.shape == wanted.shape:
            gap = f"values that differ by up to {np.nanmax(np.abs(values - wanted)):.3g}"
        raise ConfigError(
            f"output {name!r} of the exported graph has {gap} from predict on {len(wanted)} "
            "row(s), so no file was written; a model may depend on the number of rows, or on "
            "values in Python code"
        )


def _not_exportable(
    plan: StepPlan, nodes: Sequence[Any], torch_export: Any, error: Exception
) -> ConfigError:
    """Return an error that names the nodes that cannot be exported by themselves."""
    models = [node for node in nodes if hasattr(node, "model") and not node.reads_several]
    alone = []
    with plan.modes():
        for node in models:
            module = node.model.module
            for dtype in (np.float32, np.int64):
                example = {"x": np.zeros((3, *node.input_shape), dtype)}
                try:
                    torch_export.traced(
                        [module], lambda columns, call=module: {"y": call(columns["x"])}, example
                    )
                except Exception:  # noqa: BLE001, S112 - whatever the framework raises
                    continue
                break
            else:
                alone.append(node.label)
    first = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return ConfigError(
        f"node(s) {alone or [node.label for node in nodes]} cannot be exported: {first}. Their "
        "forward must consist of tensor operations that do not depend on values; or save the "
        "graph with graph.save"
    )
