"""Direct calls of a node on samples, batches or arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from modularml._typing import Array
from modularml.backends import Backend, BackendAdapter, adapter_for, backend_of
from modularml.backends.layouts import InputShape, arrangement
from modularml.context import ExperimentContext
from modularml.data.batch import Batch, RoleData, SampleData, as_numpy
from modularml.data.lineage import MergedColumns, Source
from modularml.data.references import FeatureSetReference
from modularml.data.schema import ColumnSpec
from modularml.errors import DataError, GraphError
from modularml.graph.node import ComputeNode
from modularml.graph.row_matching import Meeting, check_side_by_side


def call_directly(
    node: ComputeNode, given: Sequence[Any], compute: Callable[[list[Any]], Any]
) -> Any:
    """Return the outputs of a node for one value per input.

    Parameters
    ----------
    node : ComputeNode
    given : sequence of (Batch, RoleData, SampleData, tensor or ndarray)
        All of one kind; row ``i`` of each is the same sample.
    compute : callable
        Takes one tensor per input and returns the output of the node.

    Returns
    -------
    Batch, RoleData, SampleData or tensor
        Of the same kind as the inputs, with targets and tags propagated as in the graph.

    Raises
    ------
    DataError
        If the rows of two inputs are not the same samples and no key relates them, or the numbers
        of rows differ.
    """
    first = given[0]
    if any(isinstance(other, Batch | RoleData | SampleData) for other in given):
        if any(type(other) is not type(first) for other in given):
            raise TypeError(
                f"node {node.label!r} takes inputs of one kind, got "
                f"{[type(other).__name__ for other in given]}"
            )
    elif any(not hasattr(other, "shape") for other in given):
        raise TypeError(
            f"node {node.label!r} takes SampleData, RoleData, Batch, tensors or arrays, got "
            f"{[type(other).__name__ for other in given]}"
        )
    if isinstance(first, Batch):
        data = call_directly(node, [batch.role_data for batch in given], compute)
        weights, masks = (
            {role: np.prod([getattr(b, kind)(role) for b in given], axis=0) for role in own}
            for kind, own in (("weights", first.role_weights), ("mask", first.role_masks))
        )
        return Batch(data, weights, masks)
    if isinstance(first, RoleData):
        return RoleData({r: call_directly(node, [d[r] for d in given], compute) for r in first})
    if len({len(data) for data in given}) > 1:
        raise DataError(
            f"inputs of node {node.label!r} must have one row for each sample, got "
            f"{[len(data) for data in given]} rows"
        )
    if not isinstance(first, SampleData):
        return compute(list(given))
    _check_same(node, given)
    values = [g.features if g.features is not None else g.outputs for g in given]
    if any(value is None for value in values):
        raise GraphError(f"node {node.label!r} got samples without features")
    merged: dict[str, Any] = {}
    for domain in ("targets", "tags"):  # merged from the inputs' as in the graph
        flow: Any = node.flow(domain, [getattr(g, domain) for g in given])
        if isinstance(flow, MergedColumns):
            own = domain == "targets"
            flow = flow.merge(of_one_framework(node, flow.parts) if own else flow.parts)
        merged[domain] = flow
    ids = next((g.sample_uuids for g in given if g.sample_uuids is not None), None)
    return SampleData(outputs=compute(values), sample_uuids=ids, **merged)


def of_one_framework(node: ComputeNode, values: Sequence[Any]) -> list[Any]:
    """Return tensors of one framework and dtype: the node's, if a graph has built it."""
    frameworks = [b for v in values if (b := backend_of(v)) is not Backend.NONE]
    framework = node.framework or next(iter(frameworks), Backend.SCIKIT)
    if framework is Backend.SCIKIT:
        return [as_numpy(v) for v in values]
    adapter = adapter_for(framework)
    native = [v for v in values if backend_of(v) is framework]
    if len(native) == len(values) and len({v.dtype for v in native}) == 1:
        return native
    floats = [v.dtype for v in native if adapter.exact_integers(v.dtype) is not None]
    all_integer = all(as_numpy(v).dtype.kind in "biu" for v in values)
    dtype = None if all_integer else next(iter(floats), adapter.input_dtype(None))
    tensors = []
    for v in values:
        check_cast(adapter, dtype, as_numpy(v), f"input of {node.label}")
        if backend_of(v) is not framework:
            tensors.append(adapter.from_numpy(as_numpy(v), dtype=dtype))
        else:
            tensors.append(v if dtype is None else adapter.cast(v, dtype))
    return tensors


def _check_same(node: ComputeNode, values: Sequence[SampleData]) -> None:
    """Refuse inputs whose rows are different samples, unless a key relates them."""
    identified = {i: data for i, data in enumerate(values) if data.sample_uuids is not None}
    ids = [np.asarray(data.sample_uuids) for data in identified.values()]
    if all(np.array_equal(ids[0], other) for other in ids[1:]):
        return
    on, strict = getattr(node, "align_on", None), getattr(node, "strict", False)
    sets = ExperimentContext.get_active().available_featuresets.values()
    refs: list[FeatureSetReference | None] = []
    for i, sample_ids in zip(identified, ids, strict=True):
        ref: Any = node.upstream_refs[i]
        if not isinstance(ref, FeatureSetReference):  # then the FeatureSet that has the samples
            has = (fs for fs in sets if np.isin(sample_ids, fs.get_sample_uuids()).all())
            ref = next((fs.reference() for fs in has), None)
        refs.append(ref)
    if (on is None and all(ref.on is None for ref in node.feature_refs)) or None in refs:
        raise DataError(
            f"the inputs of node {node.label!r} hold different samples; pass rows of the same "
            "samples in the same order"
        )
    sources = [
        Source(str(i), ref) for i, ref in zip(identified, refs, strict=True) if ref is not None
    ]
    meeting = Meeting(f"node {node.label!r}", tuple((s,) for s in sources), on, strict)
    check_side_by_side([meeting], dict(zip(sources, identified.values(), strict=True)))


def call_model(node: Any, values: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return the output of a node's model for one tensor or array per input.

    Values become tensors of the model's framework and input dtypes; keyword arguments are passed.
    """
    adapter, module = adapter_for(node.backend), node.model.module
    is_native = [backend_of(value) is node.backend for value in values]
    if adapter.writes_input(module):
        pairs = zip(values, is_native, strict=True)
        values = [adapter.concat([v], 0) if native else v for v, native in pairs]
    traced = all(is_native) and not all(hasattr(v, "numpy") for v in values)
    tensors = list(values)
    if not traced:
        arrays = [as_numpy(value) for value in values]
        shape, target = node._arranged([a.shape[1:] for a in arrays]), node.model.input_shape
        if not node.reads_several and arrangement(shape, target, node.input_layout) is not None:
            shape = target
        # the dtypes in which the model reads arrays of samples, one per input
        whole = [(a.dtype.kind in "biu", False) for a in arrays]
        dtypes = adapter.input_dtypes(module, shape, whole)
        device = adapter.device_of(module)
        for i, (array, dtype) in enumerate(zip(arrays, dtypes, strict=True)):
            check_cast(adapter, dtype, array, f"input of {node.label}")
            if not is_native[i]:
                tensors[i] = adapter.from_numpy(array, dtype=dtype, device=device)
            elif dtype not in (None, values[i].dtype):
                tensors[i] = adapter.cast(values[i], dtype)
    call: Callable[..., Any] = partial(module, **kwargs)
    if node.reads_several:
        call = adapter.spread(call, node.input_names)
    call = node.arranged(adapter, call, tuple(tensors[0].shape[1:]))
    return call(tensors if node.reads_several else tensors[0])


def column_dtypes(
    adapter: BackendAdapter,
    model: Any,
    shape: InputShape | None,
    columns: Sequence[Sequence[ColumnSpec] | None],
) -> list[Any]:
    """Return the dtype in which a model reads each input of stacked columns.

    Parameters
    ----------
    adapter : BackendAdapter
        Of the model's framework.
    model : module
    shape : tuple of int, tuple or dict of such, or None
        Of one sample of each input; None if not known yet.
    columns : sequence of (sequence of ColumnSpec or None)
        Of each input; None if it is, or contains, an output of another model.
    """
    kinds = []
    for specs in columns:
        is_integer = bool(specs) and all(spec.dtype.kind in "biu" for spec in specs or ())
        kinds.append(
            (is_integer, is_integer and all(spec.kind == "category" for spec in specs or ()))
        )
    if shape is None:
        return [
            adapter.input_dtype(model, None, whole=is_integer, category=is_category)
            for is_integer, is_category in kinds
        ]
    return adapter.input_dtypes(model, shape, kinds)


_LARGEST = {2**24: float(np.finfo("f4").max), 2**11: float(np.finfo("f2").max)}
"""Largest number of float32 and float16, by the integers up to which they are exact."""


def may_change(adapter: BackendAdapter, dtype: Any, values: np.dtype[Any]) -> bool:
    """Return whether `check_cast` may refuse values of a numpy dtype."""
    if dtype is None or values.kind not in "iuf":
        return False
    limit = adapter.exact_integers(dtype)
    if values.kind != "f":
        return limit is not None
    return limit is None or np.finfo(values).max > _LARGEST.get(limit, np.inf)


def check_cast(adapter: BackendAdapter, dtype: Any, values: Array, name: str) -> None:
    """Refuse integers too large for a float dtype, and fractions cast to integers.

    Floats may be rounded to the precision of the model, and do not become infinite.

    Raises
    ------
    DataError
        If a value would change; the message names the column and the remedy.
    """
    if not values.size or not may_change(adapter, dtype, values.dtype):
        return
    limit = adapter.exact_integers(dtype)
    if values.dtype.kind in "iu" and limit is not None:
        if int(values.max()) > limit or int(values.min()) < -limit:
            raise DataError(
                f"column {name!r} holds integers beyond {limit:,}, which "
                f"{getattr(dtype, 'name', dtype)}, the model's input dtype, cannot represent "
                "exactly. If it is an id or a category, read it in a separate node "
                "(features=[...] of a reference) with an Embedding; if it is a quantity, scale "
                "it (fit_transform), or store it as floats"
            )
    elif limit is not None:
        beyond = (abs(values) > _LARGEST[limit]) & np.isfinite(values)
        if beyond.any():
            raise DataError(
                f"column {name!r} holds {values[beyond][0]}, which is infinite in "
                f"{getattr(dtype, 'name', dtype)}, as the model reads it; scale the column "
                "(fit_transform), or give the model weights of float64"
            )
    else:
        fractional = values != np.trunc(values)  # NaN too
        if fractional.any():
            raise DataError(
                f"column {name!r} holds {values[fractional][0]}, and the model reads it as "
                "integers (its first layer is an Embedding). Read the integer columns in a "
                "separate node with the Embedding, or slice them within the model"
            )
