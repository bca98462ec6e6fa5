"""Training and evaluation phases."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from operator import attrgetter
from typing import Any, Literal, Unpack

from modularml._warning import warn
from modularml.backends import StepOptions
from modularml.data.execution_context import ExecutionContext
from modularml.data.lineage import column_named
from modularml.engine.batch_feed import BatchFeed
from modularml.engine.batch_schedule import (
    BatchSchedulingPolicy,
    check_limit,
    check_over_batch,
    limited,
)
from modularml.engine.binding import InputBinding
from modularml.engine.callback import Callback
from modularml.engine.checkpoint_callback import (
    CheckpointCallback,
    is_greater_better,
    reserve_folder,
)
from modularml.engine.checkpointing import PHASE_SAVE_ON, Checkpointing, checked_checkpointing
from modularml.engine.loop import EpochOverError
from modularml.engine.monitoring import check_logged, check_monitors, lr_scheduler_callbacks
from modularml.errors import ConfigError, LossError, NonFiniteLossError, UnknownNameError
from modularml.graph.model_graph import ModelGraph
from modularml.graph.model_node import ModelNode
from modularml.phases.phase import (
    ExperimentPhase,
    PhaseOptions,
    all_of,
    bindings_from_split,
    labels_of,
)
from modularml.results.eval_results import EvalResults
from modularml.results.phase_results import PhaseResults, TrainResults
from modularml.results.recording import ResultRecording
from modularml.results.scores import Metrics, Score, find_scores, scores_by_name
from modularml.results.scoring import Reduce, check_reduce
from modularml.samplers import BaseSampler
from modularml.training import AppliedLoss


class TrainOptions(PhaseOptions, total=False):
    """Arguments of a `TrainPhase` that may be omitted."""

    n_epochs: int
    batch_schedule: BatchSchedulingPolicy | str
    checkpointing: Checkpointing | None
    result_recording: ResultRecording | str
    accumulate: int
    precision: Literal["float32", "bf16", "fp16"]
    compile: bool
    on_nonfinite: Literal["raise", "skip", "stop"]
    freeze: list[Any] | None
    limit_batches: float | None


class EvalOptions(PhaseOptions, total=False):
    """Arguments of an `EvalPhase` that may be omitted."""

    batch_size: int | None
    metrics: Metrics | None
    group_by: str | None
    per: str | None
    reduce: Reduce
    limit_batches: float | None


class TrainPhase(ExperimentPhase):
    """Train nodes for one or more epochs.

    Parameters
    ----------
    label : str
    input_sources : list of InputBinding
        One for each input of each head node.
    losses : list of AppliedLoss
        Their weighted sum is minimised.
    n_epochs : int
        At least 1.
    active_nodes : list of node or label, optional
        Nodes that run; their upstream nodes run too. None runs all.
    batch_schedule : BatchSchedulingPolicy or str
        How the batches of several samplers are combined.
    callbacks : list of Callback, optional
    checkpointing : Checkpointing, optional
        Saves the graph's state while the phase runs.
    result_recording : ResultRecording or str
        Which steps the results record.
    accelerator : Accelerator or str, optional
        Device and processes the phase runs on.
    accumulate : int
        Batches whose gradients are accumulated before each optimizer step: the gradient is that of
        the mean over their samples. The last step of an epoch may use fewer batches.
    precision : {'float32', 'bf16', 'fp16'}
        Precision of the forward pass where it is safe; weights keep theirs.
    compile : bool
        Whether the step is compiled. In torch, on the CPU, losses and gradients of a batch become
        one function, compiled at the first batch of each phase graph: that takes seconds to a
        minute, less where torch has it in its cache. Numbers are the same within rounding, also
        the draws of dropout. Batches smaller than the largest of the epoch run plainly; all do
        where a callback looks at each batch, and where a step cannot be compiled, which the log
        says with the reason. On other devices, models are compiled one by one. Keras' steps are
        compiled by XLA.
    on_nonfinite : {'raise', 'skip', 'stop'}
        What happens when a loss or gradient is NaN or infinite: the phase fails with an error,
        the batch is skipped, or the phase ends normally. Gradients are checked only if they are
        clipped or this is not ``raise``.
    freeze : list of node or label, optional
        Nodes that are frozen during this phase alone, besides those that are frozen anyway.
    limit_batches : int or float, optional
        Only the first so many batches of each epoch run, or this share of them. The metric
        ``share_of_batches`` says so in the results.

    Raises
    ------
    LossError
        If there is no loss.
    UnknownNameError
        If the graph has no node of a label in `freeze`.
    ConfigError
        If another argument is not as described.

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
    ...     "train",
    ...     split="train",
    ...     sampler=mml.SimpleSampler(batch_size=16, shuffle=True),
    ...     losses=[mse],
    ...     n_epochs=3,
    ... )
    >>> results = experiment.run_phase(phase, show_training_progress=False)
    >>> results.n_epochs
    3
    """

    results_class = TrainResults
    training = True
    logs_losses = True

    def __init__(
        self,
        label: str,
        *,
        input_sources: list[InputBinding],
        losses: list[AppliedLoss],
        n_epochs: int = 1,
        batch_schedule: BatchSchedulingPolicy | str = BatchSchedulingPolicy.ZIP_STRICT,
        checkpointing: Checkpointing | None = None,
        result_recording: ResultRecording | str = ResultRecording.ALL,
        accumulate: int = 1,
        precision: Literal["float32", "bf16", "fp16"] = "float32",
        compile: bool = False,
        on_nonfinite: Literal["raise", "skip", "stop"] = "raise",
        freeze: list[Any] | None = None,
        limit_batches: float | None = None,
        **options: Unpack[PhaseOptions],
    ) -> None:
        value: Any = n_epochs
        if not isinstance(value, Integral) or isinstance(value, bool) or n_epochs < 1:
            raise ConfigError(f"n_epochs must be an int of at least 1, got {n_epochs!r}")
        if not losses:
            raise LossError(
                f"phase {label!r} needs at least one loss; pass losses=[AppliedLoss(...)]"
            )
        check_limit(limit_batches)
        self.freeze, self.limit_batches = labels_of("freeze", freeze), limit_batches
        super().__init__(label, input_sources=input_sources, losses=losses, **options)
        self.accumulate, self.precision, self.compile = accumulate, precision, compile
        self.n_epochs, self.on_nonfinite = n_epochs, on_nonfinite
        check_over_batch(label, self.losses, self.step_options(), None)
        self.policy = BatchSchedulingPolicy.from_value(batch_schedule)
        self.recording = ResultRecording.from_value(result_recording)
        self.set_checkpointing(checkpointing)

    @classmethod
    def from_split(
        cls,
        label: str,
        *,
        split: str,
        sampler: BaseSampler,
        losses: list[AppliedLoss],
        **options: Unpack[TrainOptions],
    ) -> TrainPhase:
        """Create a phase whose head nodes all read one split through one sampler.

        Other options are those of the constructor.

        Raises
        ------
        UnknownNameError
            If a FeatureSet has no such split.
        GraphError
            If the active context has no graph.
        """
        if not isinstance(sampler, BaseSampler):
            raise ConfigError(f"sampler must be a sampler such as SimpleSampler, got {sampler!r}")
        bindings = bindings_from_split(label, split, sampler, options.get("active_nodes"))
        return cls(label, input_sources=bindings, losses=losses, **options)

    batch_schedule = property(
        attrgetter("policy"), doc="How the batches of several samplers are combined."
    )
    result_recording = property(attrgetter("recording"), doc="Which steps are recorded.")

    @property
    def checkpointing(self) -> Checkpointing | None:
        """When the graph's state is saved; None for never."""
        return self._checkpointing

    def set_checkpointing(self, checkpointing: Checkpointing | None) -> None:
        """Set when the graph's state is saved during the phase; None for never.

        Raises
        ------
        ConfigError
            If it names hooks or template fields that a training phase lacks.
        """
        self._checkpointing = checked_checkpointing(
            checkpointing, "a TrainPhase", PHASE_SAVE_ON, ("phase", "epoch", "batch")
        )

    def check(self, graph: ModelGraph) -> None:
        """Check the phase against the graph, and that nodes to freeze are models."""
        super().check(graph)
        for name in self.freeze or ():
            if not isinstance(node := graph.get_node(name), ModelNode):
                raise ConfigError(
                    f"freeze of phase {self.label!r} must name nodes with models, and {name!r} is "
                    f"a {type(node).__name__}"
                )

    def check_ready(self, experiment: Any) -> None:
        """Check callbacks, monitored metrics and the checkpoint folder before a run."""
        super().check_ready(experiment)
        if experiment.model_graph is not None:
            check_monitors(self, experiment.model_graph)
        checkpointing = self._checkpointing
        if checkpointing is not None and checkpointing.monitor is not None:
            check_logged(checkpointing.monitor, self, "Checkpointing")
            is_greater_better(checkpointing, self.callbacks)
        if checkpointing is not None and checkpointing.mode == "disk" and self.is_main:
            reserve_folder(checkpointing, experiment, self.label)

    def count_batches(self) -> int | None:
        """Return the number of batches per epoch; None if several samplers decide it."""
        views = {(id(b.sampler), b.upstream_ref.node_id, b.split) for b in self.input_sources}
        first = self.input_sources[0]
        if len(views) > 1 or first.sampler is None:
            return None
        batches = first.sampler.epoch(first.resolve_input_view(), 0)
        return limited(batches.n_batches, self.limit_batches)

    def all_callbacks(self) -> list[Callback]:
        """Return the callbacks, with those for learning rates and checkpoints."""
        savers = [] if self._checkpointing is None else [CheckpointCallback(self._checkpointing)]
        return [*self.callbacks, *lr_scheduler_callbacks(self.graph()), *savers]

    def step_options(self) -> StepOptions:
        """Return the options of a training step."""
        return StepOptions(
            self.accumulate,
            self.precision,
            self.compile,
            self.on_nonfinite,
            squares=next((c.gradient_squares for c in self.callbacks if c.gradient_squares), None),
        )

    def step_of(self, feed: BatchFeed) -> Callable[[ExecutionContext], None]:
        """Return the function that runs one batch."""
        step = super().step_of(feed)

        def step_or_stop(ctx: ExecutionContext) -> None:
            try:
                step(ctx)
            except NonFiniteLossError as error:
                warn(f"training stopped: {error}")
                self.request_stop()
                raise EpochOverError from error

        return step if self.on_nonfinite != "stop" else step_or_stop


class EvalPhase(ExperimentPhase):
    """Compute outputs and losses of every row once, without changing anything.

    Parameters
    ----------
    label : str
    input_sources : list of InputBinding
        One for each input of each head node, without samplers.
    losses : list of AppliedLoss, optional
    active_nodes : list of node or label, optional
        Nodes that run; their upstream nodes run too. None runs all.
    batch_size : int, optional
        Rows per forward pass; all at once by default. Losses do not depend on it.
    callbacks : list of Callback, optional
    accelerator : Accelerator or str, optional
        Device and processes the phase runs on.
    metrics : list of str or callable, or dict of str to callable, optional
        Scores of all rows in the target's original units, by name (``"r2"``, see
        `EvalResults.scores`) or as functions of targets and outputs. They are logged with the
        results when the phase runs, and by an `Evaluation` of this phase, and need targets. If
        several nodes end the graph, their labels come first: ``head.r2``.
    group_by : str, optional
        Column of a FeatureSet: metrics are also logged for each of its values, as
        ``r2[cell_1]``.
    per, reduce : str, optional
        Column whose equal values are replicates of one sample, and how these are reduced to one
        row before metrics are computed; see `EvalResults.scores`. Losses are over all rows.
    limit_batches : int or float, optional
        Only the first so many batches of `batch_size` rows run, or this share of them. The metric
        ``share_of_batches`` says so in the results.

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
    >>> graph.build()
    >>> phase = mml.EvalPhase.from_split("test", split="test", losses=[mse], metrics=["rmse"])
    >>> results = experiment.run_phase(phase)
    >>> results.metric_names()
    ['rmse']
    """

    results_class = EvalResults

    def __init__(
        self,
        label: str,
        *,
        input_sources: list[InputBinding],
        losses: list[AppliedLoss] | None = None,
        batch_size: int | None = None,
        metrics: Metrics | None = None,
        group_by: str | None = None,
        per: str | None = None,
        reduce: Reduce = "mean",
        limit_batches: float | None = None,
        **options: Unpack[PhaseOptions],
    ) -> None:
        check_limit(limit_batches)
        checked = all_of(AppliedLoss, "losses", [] if losses is None else losses)
        over_batch = [applied.label for applied in checked if applied.loss.over == "batch"]
        if limit_batches is not None and (batch_size is None or over_batch):
            raise ConfigError(
                f"limit_batches={limit_batches!r} needs several batches, and {over_batch or label} "
                "is evaluated on all rows at once; pass batch_size=, and losses over samples alone"
            )
        value: Any = batch_size
        if value is not None and (not isinstance(value, Integral) or value < 1):
            raise ConfigError(
                f"batch_size must be an int of at least 1 or None, got {batch_size!r}"
            )
        if metrics is not None and not metrics:
            raise ConfigError(f"metrics must name at least one, got {metrics!r}; omit it")
        check_reduce(reduce, per)
        self.metrics, self.group_by, self.batch_size = metrics, group_by, batch_size
        self.per, self.reduce, self.limit_batches = per, reduce, limit_batches
        find_scores(self.scores)
        for name, column in {"group_by": group_by, "per": per}.items():
            if column is not None and not self.scores:
                raise ConfigError(
                    f"{name}={column!r} is for metrics, and there are none; pass metrics=['rmse']"
                )
        super().__init__(label, input_sources=input_sources, losses=losses, **options)

    def check(self, graph: ModelGraph) -> None:
        """Check the phase against the graph, and that some FeatureSet has the columns it names."""
        super().check(graph)
        schemas = [b.upstream_ref.resolve().collection.schema for b in self.input_sources]
        for argument, column in {"group_by": self.group_by, "per": self.per}.items():
            if column is not None and not any(column_named(column, s) for s in schemas):
                names = [name for schema in schemas for name in schema.columns]
                raise UnknownNameError(f"{argument} column", column, names)

    @property
    def scores(self) -> dict[str, str | Score]:
        """Its metrics by name."""
        return {} if self.metrics is None else scores_by_name(self.metrics)

    def log_scores(self, results: PhaseResults) -> None:
        """Log the metrics of all rows and groups."""
        if self.scores and isinstance(results, EvalResults):
            how = {"per": self.per, "reduce": self.reduce}
            results.log_scores(find_scores(self.scores), self.group_by, **how)

    @classmethod
    def from_split(
        cls,
        label: str,
        *,
        split: str,
        losses: list[AppliedLoss] | None = None,
        **options: Unpack[EvalOptions],
    ) -> EvalPhase:
        """Create a phase that reads one split; see `TrainPhase.from_split`."""
        bindings = bindings_from_split(label, split, None, options.get("active_nodes"))
        return cls(label, input_sources=bindings, losses=losses, **options)
