"""Results of a phase: outputs, losses, metrics and callback results."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeVar

import numpy as np
import pandas as pd

from modularml._typing import Array
from modularml.data.batch import Batch, as_numpy
from modularml.data.execution_context import ExecutionContext, LossRecord
from modularml.data.formats import DataFormat, convert_array
from modularml.data.view import FeatureSetView
from modularml.errors import ConfigError, DataError, UnknownNameError
from modularml.graph.lineage import units_of
from modularml.graph.node import GraphNode
from modularml.graph.unscaling import unscale_outputs
from modularml.results.metric_store import ArtifactResult, CallbackResult, MetricResult, MetricStore
from modularml.results.scores import axis_of_score
from modularml.results.series import AxisSeries, Values
from modularml.results.step_log import StepLog
from modularml.viz.curves import panels
from modularml.viz.style import plain

T = TypeVar("T")
Domain = Literal["outputs", "targets", "tags", "sample_uuids", "mask"]


@dataclass(eq=False, repr=False)
class PhaseResults:
    """Results of one phase.

    Outputs are stored detached and on the host; inputs and targets as row numbers.

    Parameters
    ----------
    label : str
        The label of the phase.
    """

    label: str
    _execution: StepLog = field(default_factory=StepLog)
    _callbacks: list[CallbackResult] = field(default_factory=list)
    _metrics: MetricStore = field(default_factory=MetricStore)

    def __post_init__(self) -> None:
        if not isinstance(self._execution, StepLog):
            self._execution = StepLog(self._execution)

    # -- outputs ------------------------------------------------------------------------------

    def execution_contexts(self) -> AxisSeries[ExecutionContext]:
        """Return every recorded step over (epoch, batch)."""
        return self._per_step(lambda step: step, "steps")

    def batches(self, node: str | GraphNode) -> AxisSeries[Batch]:
        """Return a node's outputs, targets, tags and ids as batches over (epoch, batch)."""
        node_id = self._node_id(node)
        return self._per_step(lambda step: step.batch(node_id), "batches")

    def tensors(
        self,
        node: str | GraphNode,
        domain: Domain,
        *,
        role: str = "default",
        fmt: str | DataFormat | None = None,
        unscale: bool = False,
    ) -> AxisSeries[Any]:
        """Return one domain of a node over (epoch, batch).

        Parameters
        ----------
        node : str or GraphNode
            Label, id or the node itself.
        domain : {'outputs', 'targets', 'tags', 'sample_uuids', 'mask'}
            Outputs and targets include padding; ``mask`` is true for the elements of padded targets
            that are data.
        role : str
        fmt : DataFormat, optional
            The framework's own by default.
        unscale : bool
            Whether to convert targets, and outputs that predict them, to the original units.
        """
        node_id = self._node_id(node)
        read = partial(_read, node_id=node_id, domain=domain, role=role, fmt=fmt, unscale=unscale)
        for first in self._execution[:1]:
            read(first)  # raise errors now rather than on access
        return self._per_step(read, domain)

    # -- numbers ------------------------------------------------------------------------------

    def losses(self, node: str | GraphNode) -> AxisSeries[LossRecord]:
        """Return the losses applied on a node over (epoch, batch, label).

        A label may be selected by its name without the node, ``mse`` for ``mse_head``.
        """
        node_id = self._node_id(node)
        return self._execution.losses(node_id)

    def metrics(self) -> AxisSeries[float]:
        """Return metrics over (name, epoch, batch); batch is None for epoch metrics.

        Each is a `MetricEntry`, a float that knows its name and place.
        """
        return self._metrics.series()

    def metric_names(self) -> list[str]:
        """Return the names of all metrics."""
        return self._metrics.names

    # -- callbacks ----------------------------------------------------------------------------

    def callbacks(self, kind: str | None = None) -> AxisSeries[CallbackResult]:
        """Return callback results over (kind, label, epoch, batch, edge)."""
        results = [r for r in self._callbacks if kind in (None, r.kind)]
        data: dict[tuple[Any, ...], CallbackResult] = {}
        for result in results:
            key = (result.kind, result.label, result.epoch, result.batch, result.edge)
            while key in data:
                key = (*key[:-1], f"{key[-1]}'")
            data[key] = result
        return AxisSeries(("kind", "label", "epoch", "batch", "edge"), data, "callback results")

    def artifacts(self) -> AxisSeries[Any]:
        """Return the artifacts of callbacks over (name, epoch, batch)."""
        artifacts = [r for r in self._callbacks if isinstance(r, ArtifactResult)]
        data = {(r.name, r.epoch, r.batch): r.value for r in artifacts}
        return AxisSeries(("name", "epoch", "batch"), data, "artifacts")

    def artifact_names(self) -> list[str]:
        """Return the names of all artifacts."""
        return list(dict.fromkeys(r.name for r in self._callbacks if isinstance(r, ArtifactResult)))

    # -- sources ------------------------------------------------------------------------------

    def source_views(
        self, node: str | GraphNode, *, role: str = "default", batch: int | None = None
    ) -> dict[str, FeatureSetView]:
        """Return the rows that a node read, each once, by FeatureSet label.

        Raises
        ------
        DataError
            If no step was recorded.
        """
        node_id = self._node_id(node)
        rows: dict[FeatureSetView, list[Array]] = {}
        for ctx in self._recorded(batch):
            for source in ctx.sources(node_id):
                view = ctx._layout().views[source]
                same_set = next((v for v in rows if v.source is view.source), view)
                rows.setdefault(same_set, []).append(ctx.indices(source)[role])
        views = {}
        for view, parts in rows.items():
            numbers = pd.unique(np.concatenate(parts))
            names = view.source.column_names
            views[view.source.label] = FeatureSetView(view.source, numbers, names, view.label)
        return views

    def source_view(
        self, node: str | GraphNode, *, role: str = "default", batch: int | None = None
    ) -> FeatureSetView:
        """Return the rows that a node read, if they come from one FeatureSet.

        Raises
        ------
        DataError
            If they come from several.
        """
        views = self.source_views(node, role=role, batch=batch)
        if len(views) != 1:
            raise DataError(f"node {node!r} reads from {list(views)}; use source_views()")
        return next(iter(views.values()))

    # -- display ------------------------------------------------------------------------------

    def to_pandas(self) -> pd.DataFrame:
        """Return epoch metrics: one row per epoch, one column per metric."""
        return self._metrics.to_pandas()

    def plot(self, *, title: str | None = None, path: Any = None) -> Any:
        """Plot epoch metrics as curves and return the figure."""
        return self._metrics.plot(title=self.label if title is None else title, path=path)

    def __repr__(self) -> str:
        n, names = len(self._execution), ", ".join(self.metric_names())
        facts = f"{n} step{'s'[: n != 1]} recorded{names and ', metrics: ' + names}"
        return f"{type(self).__name__}({self.label!r}, {facts})"

    def _repr_html_(self) -> str:
        if not self.metric_names():
            return f"<pre>{html.escape(repr(self))}</pre>"
        table = self._metrics.to_pandas().to_html(float_format="{:.5g}".format)
        return f"<b>{html.escape(self.label)}</b>{table}"

    # -- internals ----------------------------------------------------------------------------

    def _per_step(self, read: Callable[[ExecutionContext], T], kind: str) -> AxisSeries[T]:
        steps = self._execution.view()
        values = Values(lambda rows: list(map(read, steps.take(rows))), np.arange(len(steps)))
        return AxisSeries.from_columns(steps.places(), values, kind)

    def _add_callback_results(self, results: Iterable[CallbackResult], epoch: int) -> None:
        """Store callback results, and log metrics."""
        for result in results:
            if isinstance(result, MetricResult):
                metric_epoch = result.epoch if result.epoch is not None else epoch
                self._metrics.log(result.name, result.value, epoch=metric_epoch, batch=result.batch)
            self._callbacks.append(result)

    def _recorded(self, batch: int | None = None) -> list[ExecutionContext]:
        if not self._execution:
            raise DataError(
                f"phase {self.label!r} recorded no outputs; run it with result_recording='all'"
            )
        return [c for c in self._execution if batch in (None, c.batch_idx)]

    def _node_id(self, node: str | GraphNode) -> str:
        first = next(iter(self._execution), None)
        labels = {} if first is None else dict(first._layout().labels)
        name = node.label if isinstance(node, GraphNode) else node
        for node_id, label in labels.items():
            if name in (node_id, label):
                return node_id
        self._recorded()
        raise UnknownNameError("node", name, labels.values())


class TrainResults(PhaseResults):
    """Results of a training phase.

    Examples
    --------
    >>> import numpy as np
    >>> import modularml as mml
    >>> from modularml.models.torch import SequentialMLP
    >>> experiment = mml.Experiment("demo", seed=0)
    >>> a, b, noise = np.random.default_rng(0).normal(size=(3, 60)).astype("float32")
    >>> rows = {"a": a, "b": b, "y": a + b + noise}
    >>> fs = mml.FeatureSet.from_dict("rows", rows, ["a", "b"], "y")
    >>> fs.split_random({"train": 0.8, "test": 0.2})
    >>> net = mml.ModelNode("net", SequentialMLP(), fs)
    >>> graph = mml.ModelGraph([net], mml.Optimizer("adam"))
    >>> mse = mml.AppliedLoss(mml.Loss("mse"), on="net", inputs=["outputs", "targets"])
    >>> phase = mml.TrainPhase.from_split(
    ...     "train", split="train", sampler=mml.SimpleSampler(batch_size=16), losses=[mse]
    ... )
    >>> results = experiment.run_phase(phase, show_training_progress=False)
    >>> results.metric_names()
    ['train_loss']
    """

    @property
    def epoch_indices(self) -> list[int]:
        """Numbers of the epochs that ran, ascending."""
        return sorted(self._metrics.epoch_values("train_loss"))

    @property
    def n_epochs(self) -> int:
        """Number of epochs that ran."""
        return len(self.epoch_indices)

    @property
    def best_epoch(self) -> int | None:
        """The best epoch according to an `EarlyStopping`; None without one."""
        stops = [r for r in self._callbacks if r.kind == "early_stopping"]
        best: int | None = stops[-1].best_epoch if stops else None  # type: ignore[attr-defined]
        return best

    @property
    def kept_epoch(self) -> int | None:
        """The epoch whose weights the graph had at the end; None if no epoch ran.

        The last one, unless an `EarlyStopping` restored the best.
        """
        restored = [r for r in self._callbacks if getattr(r, "restored", False)]
        kept: int | None = restored[-1].best_epoch if restored else None  # type: ignore[attr-defined]
        return max(self.epoch_indices, default=None) if kept is None else kept

    def figures(self, at: Literal["kept", "last", "best"] = "kept") -> dict[str, float]:
        """Return the metrics that were logged in one epoch, by name.

        Parameters
        ----------
        at : {'kept', 'last', 'best'}
            The epoch whose weights were kept, the last one, or the best according to an
            `EarlyStopping` (without one, the epoch that was kept).
        """
        if at not in ("kept", "last", "best"):
            raise ConfigError(f"at must be 'kept', 'last' or 'best', got {at!r}")
        epoch = self.kept_epoch
        if at == "last":
            epoch = max(self.epoch_indices, default=None)
        elif at == "best" and self.best_epoch is not None:
            epoch = self.best_epoch
        return {} if epoch is None else self._metrics.at_epoch(epoch)

    def plot(self, *, title: str | None = None, path: Any = None) -> Any:
        """Plot epoch metrics over epochs, and return the figure.

        Losses, errors in the unit of the targets, scores without a unit, learning rates, and each
        metric of another unit are drawn on axes of their own, which are logarithmic if the largest
        value is at least 100 times the smallest, and all are positive. The epoch whose weights were
        kept is marked. The unit is unknown if no step was recorded.

        Parameters
        ----------
        title : str, optional
            By default the label of the phase.
        path : path-like, optional
            Where to save the figure.

        Raises
        ------
        DataError
            If no metric of an epoch was logged.
        """
        units: set[str] = set()  # of the targets
        for first in self._execution[:1]:
            with first.context.activate():
                for node_id, _ in first._layout().outputs:
                    units |= set(units_of(first.compared_with(node_id)).values())
        unit = units.pop() if len(units) == 1 else ""
        drawn: dict[str, dict[str, Any]] = {"loss": {}}  # losses first, learning rates last
        rates = {}
        for name in self._metrics.names:
            values = dict(sorted(self._metrics.epoch_values(name).items()))
            curve = (list(values), list(values.values()))
            base = re.split(r"[\[/]", name)[0]
            if not values:
                continue
            if base == "lr" or base.startswith("lr_"):
                rates[name] = curve
            else:
                axis = "loss" if "loss" in base else plain(axis_of_score(base, unit))
                drawn.setdefault(axis, {})[name] = curve
        drawn["learning rate"] = drawn.pop("learning rate", {}) | rates
        kept = self.kept_epoch
        mark = {} if kept is None else {f"kept epoch {kept}": kept}
        ordered = {axis: curves for axis, curves in drawn.items() if curves}
        title = self.label if title is None else title
        return panels(ordered, x="epoch", title=title, mark=mark, path=path)

    def evaluations(self) -> AxisSeries[Any]:
        """Return the results of evaluations during training over (label, epoch)."""
        evaluations = [r for r in self._callbacks if r.kind == "evaluation"]
        return AxisSeries(
            ("label", "epoch"), {(r.label, r.epoch): r for r in evaluations}, "evaluations"
        )


def _read(
    ctx: ExecutionContext, node_id: str, domain: str, role: str, fmt: Any, unscale: bool
) -> Any:
    readers: dict[str, Callable[[], Any]] = {
        "outputs": lambda: ctx.output(node_id, role),
        "targets": lambda: ctx.domain(node_id, "targets", role),
        "tags": lambda: ctx.domain(node_id, "tags", role),
        "sample_uuids": lambda: ctx.sample_uuids(node_id, role),
        "mask": lambda: ctx.held(ctx.compared_with(node_id), role),
    }
    if domain not in readers:
        raise UnknownNameError("domain", domain, readers)
    value = readers[domain]()
    if value is None:
        if domain == "mask":
            raise DataError("the targets of the node are not padded, so they have no mask")
        raise DataError(f"the node has no {domain}; select them in its FeatureSet reference")
    if unscale:
        if domain not in ("outputs", "targets"):
            raise ConfigError(f"unscale is for outputs and targets, not for {domain}")
        value = unscale_outputs(ctx, node_id, domain, as_numpy(value), role)
    return value if fmt is None else convert_array(as_numpy(value), fmt)
