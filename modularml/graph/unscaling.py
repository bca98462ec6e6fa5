"""Inverse scaling of outputs to the units of their targets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from modularml._optional import require
from modularml._typing import Array
from modularml.backends.distribution_outputs import VARIANCE
from modularml.data.execution_context import ExecutionContext
from modularml.data.lineage import ColumnLineage, SourceColumns
from modularml.data.schema import RAW, TRANSFORMED
from modularml.errors import ConfigError, ScalerError, UnknownNameError
from modularml.graph.lineage import lineages_of, loss_inputs, pick_column, source_columns_of
from modularml.graph.model_node import ModelNode, Pairing
from modularml.graph.node import ComputeNode
from modularml.graph.topology import backends_of
from modularml.training import AppliedLoss
from modularml.training.loss_kinds import CLASS_INDEX, CLASS_SET, MARGINS, SHARES


def unscaled_block(undo: Callable[..., Array], parts: Array, label: tuple[int, str]) -> Array:
    """Undo the scaling of one block of outputs.

    Parameters
    ----------
    undo : callable
        Undoes the scaling of values, shape (n, n_columns).
    parts : ndarray, shape (n, n_blocks, n_columns)
    label : (int, str)
        The block, and what it is: ``mean``, ``variance`` or a quantile.

    Raises
    ------
    ScalerError
        If a variance has no inverse because a scaler is not linear, or a scaler reverses the order
        of values, so that quantiles change places.
    """
    place, name = label
    values = parts[:, place]
    if not values.size:
        return values
    if name == VARIANCE:
        # the factor of a linear inverse for each value, shape (n, n_columns)
        means = parts[:, 0]
        zeros = np.zeros(means.shape, dtype=np.float64)
        base = undo(data=zeros).astype(np.float64)
        slopes = np.empty_like(base)
        linear = True
        for column in range(means.shape[1]):
            unit = zeros.copy()
            unit[:, column] = 1.0
            change = undo(data=unit) - base
            slopes[:, column] = change[:, column]
            others = np.delete(change, column, axis=1)
            linear &= bool(np.allclose(others, 0.0, atol=1e-9 * (1.0 + np.abs(change).max())))
        expected = base + means * slopes
        error = np.abs(undo(data=means.astype(np.float64)) - expected)
        allowed = 1e-5 * (np.abs(means * slopes) + np.abs(slopes)) + 1e-12 * np.abs(base)
        linear &= not (error > allowed).any()  # NaN is no error
        if not linear:
            raise ScalerError(
                "a variance cannot be unscaled: the scaler of its target is not linear, or mixes "
                "columns; scale with StandardScaler or MinMaxScaler, predict quantiles "
                "(Loss('pinball')), or pass unscale=False"
            )
        variance: Array = (values * slopes**2).astype(values.dtype)
        return variance
    if name != "mean" and (undo(data=values + np.abs(values) + 1.0) < undo(data=values)).any():
        raise ScalerError(
            f"quantile {name!r} cannot be unscaled: the scaler of the target reverses the order of "
            "values, so that quantiles change places; pass unscale=False"
        )
    return undo(data=values)


@contextmanager
def paired(
    nodes: Sequence[ComputeNode],
    losses: Sequence[AppliedLoss],
    roles: Sequence[str],
    *,
    training: bool,
) -> Iterator[None]:
    """Record the columns that losses compare nodes with, unless the block fails.

    Training overrides the record; evaluation only sets it if there is none.
    """
    models = {n.node_id: n for n in nodes if isinstance(n, ModelNode)}
    before = [(n, n.paired) for n in models.values()]
    for node_id, pairing in pairings(nodes, losses, roles).items():
        node = models.get(node_id)
        if node is not None and (training or node.paired is None):
            node.paired = pairing
    try:
        yield
    except BaseException:
        for node, pairing in before:
            node.paired = pairing
        raise


def pairings(
    nodes: Sequence[ComputeNode], losses: Iterable[AppliedLoss], roles: Sequence[str]
) -> dict[str, Pairing | None]:
    """Return the columns that losses compare outputs with, by node id; None on conflict."""
    lineages, pairs = lineages_of(nodes), dict[str, Pairing | None]()
    frameworks = backends_of(nodes)
    by_name = {name: n for n in nodes for name in (n.label, n.node_id)}
    for applied in losses:
        inputs = loss_inputs(applied, roles, by_name, lineages)
        outputs = [i for i in inputs if i.domain == "outputs" and i.column is None]
        others = [i for i in inputs if i not in outputs and i.domain != "tags"]
        if len(outputs) != 1 or len(others) != 1 or applied.on not in by_name:
            continue
        on = by_name[applied.on]
        node, asked = by_name.get(outputs[0].node or "", on), by_name.get(others[0].node or "", on)
        flow = lineages[asked.node_id, others[0].domain]
        if others[0].column is not None:
            try:
                flow = pick_column(applied, others[0], lineages, asked)
            except UnknownNameError:  # a scaler may make it yet
                continue
        columns = _keys_of(flow)
        applied.loss.resolve(frameworks[on.node_id])
        scores = CLASS_INDEX | SHARES | CLASS_SET | MARGINS
        pairing = columns, applied.loss.kind in scores, applied.loss.labels
        previous = pairs.setdefault(node.node_id, pairing)
        pairs[node.node_id] = pairing if previous == pairing else None
    return pairs


def unit_flows(
    node: ComputeNode, lineages: Mapping[tuple[str, str], ColumnLineage]
) -> dict[tuple[str, str], ColumnLineage]:
    """Return the columns that a node's outputs predict.

    ``outputs`` are the target columns whose units the outputs have, ``truth`` those that the
    outputs are compared with, and ``unclear`` scaled ones whose units the outputs may or may not
    have.
    """
    node_id, targets = node.node_id, lineages.get((node.node_id, "targets"))
    model, paired = getattr(node, "model", None), getattr(node, "paired", None)
    flow = targets if paired is None else _columns_of(paired[0], targets, node, lineages)
    names = [column for leaf in source_columns_of(flow) for column in leaf.columns]
    compared = flow is not targets and all(name.startswith("targets.") for name in names)
    truth = {(node_id, "truth"): flow} if compared else {}
    scores = not getattr(model, "predicts_targets", True) or (paired is not None and paired[1])
    scores = scores or any(map(is_encoded, source_columns_of(flow)))
    nodes = node.context.available_computenodes.values()
    if (
        scores
        or not names
        or (
            # whether another node of the context reads this one
            paired is None
            and any(ref.node_label == node.label for other in nodes for ref in other.node_refs)
        )
    ):
        return {**truth, (node_id, "outputs"): None}
    leaves = [(i, i.source.ref.resolve().collection.schema) for i in source_columns_of(flow)]
    sizes = [len(i.columns) * math.prod(schema[i.columns[0]].shape) for i, schema in leaves]
    width, one = math.prod(node.output_shape or ()), len(set(names)) == 1
    fits = width in {*sizes, sum(sizes)}
    if paired is not None and paired[2]:
        if isinstance(flow, SourceColumns) and width == len(paired[2]) * sum(sizes):
            return {**truth, (node_id, "outputs"): replace(flow, labels=paired[2])}
        return {**truth, (node_id, "outputs"): None}
    each = one and getattr(node, "targets", None) is not None and width % sizes[0] == 0
    if each or (fits and (one or paired is not None or hasattr(model, "fit"))):
        return {**truth, (node_id, "outputs"): flow}
    if any(name.endswith(f".{TRANSFORMED}") for name in names):
        truth[node_id, "unclear"] = flow
    return {**truth, (node_id, "outputs"): None}


def _keys_of(flow: ColumnLineage) -> tuple[str, ...]:
    """Return the columns of a lineage as ``domain.key``."""
    return tuple(c.rpartition(".")[0] for leaf in source_columns_of(flow) for c in leaf.columns)


def _columns_of(
    names: Sequence[str],
    default: ColumnLineage,
    node: ComputeNode,
    lineages: Mapping[tuple[str, str], ColumnLineage],
) -> ColumnLineage:
    """Return columns named ``domain.key``, in the representation of the node's inputs."""
    if _keys_of(default) == tuple(names):
        return default
    for leaf in source_columns_of(lineages[node.node_id, "features"]):
        schema = leaf.source.ref.resolve().collection.schema
        if all(schema.reps(*name.split(".")) for name in names):
            return SourceColumns(
                leaf.source, tuple(schema.newest(*name.split(".")) for name in names)
            )
    return default


def scaled_target(flow: ColumnLineage) -> SourceColumns | None:
    """Return the scaled target columns that a node's output predicts; None if unscaled.

    Raises
    ------
    ScalerError
        If scaled targets are merged with other columns.
    """
    names = [name for leaf in source_columns_of(flow) for name in leaf.columns]
    if not any(name.endswith(".transformed") for name in names):
        return None
    if not isinstance(flow, SourceColumns):
        raise ScalerError(
            f"scaled targets {names} are merged and cannot be unscaled together; merge them with "
            "'first', or pass unscale=False"
        )
    return flow


def unscale_outputs(
    ctx: ExecutionContext, node_id: str, domain: str, values: Array, role: str = "default"
) -> Array:
    """Undo the scaling of a node's targets, or of outputs that predict targets.

    Raises
    ------
    ScalerError
        If scaled targets are merged with others, or a scaler cannot be inverted.
    """
    layout = ctx.layout
    if layout is None:
        return values
    targets = ctx.compared_with(node_id)
    if domain == "targets":
        leaf = scaled_target(targets)
    else:
        check_clear(layout.lineages, node_id, layout.labels[node_id])
        leaf = scaled_target(layout.lineages.get((node_id, domain), targets))
    if leaf is None:
        return values
    if domain == "targets" and leaf.source in layout.views:  # no inverse is as exact
        raw = tuple(f"{name.rpartition('.')[0]}.{RAW}" for name in leaf.columns)
        if (raw_values := ctx.column_values(SourceColumns(leaf.source, raw), role)) is not None:
            return raw_values
    fs = layout.views[leaf.source].source  # independent of the active context
    by_row = needs_rows(leaf, fs) or group_columns(leaf, fs)
    ids = ctx.sample_uuids(node_id, role) if by_row else None
    unscaled = invert_leaf(leaf, values, ids, fs)
    mask = ctx.held(leaf, role) if domain == "targets" else None
    return unscaled if mask is None else np.where(mask, unscaled, values)


def check_clear(
    lineages: Mapping[tuple[str, str], ColumnLineage], node_id: str, label: str
) -> None:
    """Refuse to unscale outputs whose units are ambiguous."""
    for leaf in source_columns_of(lineages.get((node_id, "unclear"))):
        keys = [name.split(".")[1] for name in leaf.columns]
        raise ScalerError(
            f"it is ambiguous whether outputs of node {label!r} have the units of the scaled "
            f"targets {keys}; name the target, ModelNode({label!r}, ..., targets={keys[0]!r}) "
            "(several outputs of one target, such as quantiles, are then each unscaled), or pass "
            "unscale=False"
        ).with_code("MML-508")


def invert_leaf(
    leaf: SourceColumns,
    values: Array,
    sample_uuids: Any = None,
    fs: Any = None,
    groups: Mapping[str, Array] | None = None,
) -> Array:
    """Undo the scaling of columns with the scalers of `fs`, by default the leaf's FeatureSet.

    Several values of one column, such as quantiles, are each unscaled. They have at least the
    precision of the raw column, as float32 cannot represent a date in seconds.
    """
    fs = fs or leaf.source.ref.resolve()
    domain = leaf.columns[0].split(".")[0]
    keys = [name.split(".")[1] for name in leaf.columns]
    width = len(keys) * math.prod(fs.collection.schema[leaf.columns[0]].shape)
    kinds = [fs.collection.schema[f"{domain}.{key}.{RAW}"].dtype for key in keys]
    values = values.astype(np.result_type(values, *(k for k in kinds if k.kind in "iuf")))
    rows: dict[str, Any] = {"sample_uuids": sample_uuids, "groups": groups}
    undo = partial(fs.unscale_data_for_cols, domain=domain, columns=keys, **rows)
    if values[:1].size in (0, width):
        return undo(data=values)  # type: ignore[no-any-return]
    parts = values.reshape(len(values), -1, width)
    if len(leaf.labels) == parts.shape[1]:
        unscaled = [unscaled_block(undo, parts, label) for label in enumerate(leaf.labels)]
    else:
        unscaled = [undo(data=parts[:, i]) for i in range(parts.shape[1])]
    return np.stack(unscaled, axis=1).reshape(values.shape)


def needs_rows(leaf: SourceColumns, fs: Any = None) -> bool:
    """Return whether inverting a scaler on these columns needs other values of each row."""
    return any(record.scaler.needs_rows for record in _records(leaf, fs))


def group_columns(leaf: SourceColumns, fs: Any = None) -> list[str]:
    """Return the columns of groups that scalers on these columns were fitted by."""
    return list(dict.fromkeys(name for record in _records(leaf, fs) for name in record.per))


def _records(leaf: SourceColumns, fs: Any) -> list[Any]:
    fs = fs or leaf.source.ref.resolve()
    keys, domain = {name.split(".")[1] for name in leaf.columns}, leaf.columns[0].split(".")[0]
    return [r for r in fs.scaler_records if r.domain == domain and set(r.keys) & keys]


_CODES = ("LabelEncoder", "OneHotEncoder", "OrdinalEncoder")


def is_encoded(leaf: SourceColumns) -> bool:
    """Return whether a target is encoded as class numbers, so outputs are class scores."""
    return any(_encoder(leaf.source.ref.resolve(), name) for name in leaf.columns)


def gives_labels(node: Any) -> bool:
    """Return whether a node's outputs are labels predicted by a classifier of scikit-learn."""
    model = getattr(node, "model", None)
    estimator = getattr(model, "inner", None)
    if getattr(model, "method", "") != "predict" or not hasattr(estimator, "get_params"):
        return False
    return bool(require("sklearn.base").is_classifier(estimator))


def class_labels(flow: ColumnLineage) -> Array | None:
    """Return the labels of one target column, in the order of the score columns.

    The order is the encoder's if the column was encoded, else sorted, as in scikit-learn. None
    unless there is exactly one column of scalars.
    """
    sources = source_columns_of(flow)
    if len(sources) != 1 or len(sources[0].columns) != 1:
        return None
    fs, name = sources[0].source.ref.resolve(), sources[0].columns[0]
    if (encoder := _encoder(fs, name)) is not None:
        has_classes = hasattr(encoder, "classes_")
        return np.asarray(encoder.classes_ if has_classes else encoder.categories_[0])
    values = fs.collection.numpy(name)
    return np.unique(values) if values.ndim == 1 else None


def learned_classes(node: Any, flow: ColumnLineage) -> Array | None:
    """Return the class labels of a node's score columns, also if the rows are not here.

    They are the encoder's, those of a fitted estimator, or else as in `class_labels`; None if they
    are unknown.
    """
    known = getattr(getattr(getattr(node, "model", None), "inner", None), "classes_", None)
    encoded = any(map(is_encoded, source_columns_of(flow)))
    if not encoded and isinstance(known, np.ndarray) and known.ndim == 1:
        return known
    sets = [leaf.source.ref.resolve() for leaf in source_columns_of(flow)]
    if not encoded and any(fs.collection.n_absent for fs in sets):
        return None
    return class_labels(flow)


def score_names(flow: ColumnLineage | None, width: int, *, method: str = "") -> list[str] | None:
    """Return the class names of score columns; None if the columns are not scores.

    They are scores if the target was encoded, or if `method` of an estimator returns them.
    """
    scores = method in ("predict_proba", "decision_function")
    if flow is None or not (scores or any(map(is_encoded, source_columns_of(flow)))):
        return None
    labels = class_labels(flow)
    return None if labels is None or len(labels) != width else [str(label) for label in labels]


def decoded(label: str, flow: ColumnLineage, values: Array) -> Array:
    """Return the most likely class of each row, shape (n,); missing where scores are NaN.

    Parameters
    ----------
    label : str
        Of the node.
    flow : ColumnLineage
        Its targets.
    values : ndarray, shape (n, n_classes), or (n,) or (n, 1)
        Scores, or class numbers, which are returned as their labels.

    Raises
    ------
    ConfigError
        If the outputs are neither.
    """
    labels = class_labels(flow)
    flat = values.reshape(len(values), -1)
    if flat.dtype.kind == "f" and (lacks := np.isnan(flat).any(axis=1)).any():
        is_number = labels is not None and labels.dtype.kind in "biuf"
        filled = np.full(len(flat), np.nan if is_number else None, float if is_number else object)
        filled[~lacks] = decoded(label, flow, flat[~lacks])
        return filled
    if labels is None:
        raise ConfigError(
            f"decode needs one target column of classes, and node {label!r} has none; pass "
            "decode=False"
        )
    if flat.shape[1] == len(labels) > 1:
        predicted: Array = labels[flat.argmax(axis=1)]
        return predicted
    column = flat[:, 0]
    if flat.shape[1] == 1 and np.isin(column, labels).all():
        return column
    if flat.shape[1] == 1 and any(map(is_encoded, source_columns_of(flow))):
        codes = column.astype(np.int64)
        if np.array_equal(codes, column) and np.isin(codes, np.arange(len(labels))).all():
            return np.asarray(labels[codes])
    raise ConfigError(
        f"decode needs {len(labels)} class scores or one class per row, and node {label!r} gives "
        f"{flat.shape[1]} value(s); pass decode=False"
    )


def _encoder(fs: Any, name: str) -> Any:
    """Return the encoder of a target column; None if it was not encoded."""
    _, key, rep = name.split(".")
    scalers = [r.scaler for r in fs.scaler_records if r.domain == "targets" and key in r.keys]
    encoded = rep != "raw" and scalers and scalers[0].scaler_name in _CODES
    return scalers[0].wrapped if encoded else None
