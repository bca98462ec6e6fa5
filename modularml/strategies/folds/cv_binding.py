"""What is split into folds, and checks of the plan before any fold runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from modularml._arguments import Checked
from modularml._typing import Columns
from modularml._warning import warn
from modularml.context import ExperimentContext
from modularml.data import FeatureSet, FeatureSetView
from modularml.data.scaling import LeakWarning
from modularml.data.selectors import as_list, select_one
from modularml.engine.monitoring import loggers_of, monitors_of
from modularml.errors import AuditError, ConfigError
from modularml.experiment import Experiment, FitPhase, TrainPhase
from modularml.experiment.run_audit import RunAudit
from modularml.io.randomness import unchanged_randomness
from modularml.splitters.base import check_bins, key_list
from modularml.strategies.variants.variant import Plan, Variant, reads_only, variant_experiment

__all__ = [
    "CVBinding",
    "SelectionWarning",
    "audit_variant",
    "learning_inputs",
    "selections",
    "warn_of_leaks",
    "warn_or_refuse",
]


class SelectionWarning(UserWarning):
    """An epoch or a learning rate is selected on the rows used for scores."""


def audit_variant(experiment: Experiment, plan: Plan, variant: Variant) -> None:
    """Audit the rows of one variant, as all are similar."""
    auditor = RunAudit(experiment.audit)
    if auditor.mode != "off":
        with unchanged_randomness():
            new = variant_experiment(experiment, plan, variant, variant.label)
        auditor.check(new.execution_plan, new.ctx, plan=False)
        experiment._audit.reports |= auditor.reports


def learning_inputs(plan: Plan) -> Iterator[tuple[TrainPhase | FitPhase, Any]]:
    """Yield the phases that learn, with each of their inputs."""
    for phase in plan.flatten():
        if isinstance(phase, TrainPhase | FitPhase):
            yield from ((phase, source) for source in phase.input_sources)


def selections(experiment: Experiment, plan: Plan, bindings: Sequence[CVBinding]) -> list[str]:
    """Describe what is selected on validation rows of folds, phase by phase."""
    bound = {b.featureset.label: b for b in bindings}
    stopped = {k: b.val_split_name for k, b in bound.items() if b.stop_size is not None}
    messages = []
    for phase in plan.flatten():
        for monitor, names in monitors_of(phase, experiment.model_graph).items():
            for logger in loggers_of(monitor, phase.callbacks):
                evaluation: Any = getattr(logger, "eval_phase", None)
                sources = [] if evaluation is None else evaluation.input_sources
                if reads_only(logger, stopped) or not any(_is_scored(bound, s) for s in sources):
                    continue
                messages.append(
                    f"{' and '.join(names)} of phase {phase.label!r} select by {monitor!r}, "
                    f"which {logger.label!r} computes on {sources[0].split or 'all rows'!r}"
                )
    return messages


def warn_or_refuse(experiment: Experiment, message: str, category: type[Warning]) -> None:
    """Warn of a plan whose scores would be too optimistic, or refuse it."""
    if experiment.audit == "error":
        raise AuditError(f"{message}; pass Experiment(audit='warn') to run anyway")
    warn(message, category)


def warn_of_leaks(experiment: Experiment, plan: Plan, bindings: Sequence[CVBinding]) -> None:
    """Warn of training phases that read validation rows of folds."""
    bound = {b.featureset.label: b for b in bindings}
    for phase, source in learning_inputs(plan):
        binding, name = bound.get(source.upstream_ref.node_label), source.split
        if binding is None or name == binding.train_split_name:
            continue
        fs = binding.featureset
        rows = fs if name is None else fs.splits.get(name)
        if rows is None or not rows.is_disjoint_with(binding.pool()):
            message = (
                f"phase {phase.label!r} learns from {name or 'all rows'!r} of {fs.label!r}, "
                "but folds validate on some of these rows; make it read "
                f"{binding.train_split_name!r}"
            )
            warn_or_refuse(experiment, message, LeakWarning)


def _is_scored(bound: dict[str, CVBinding], source: Any) -> bool:
    """Return whether an input reads rows that some fold validates on."""
    binding = bound.get(source.upstream_ref.node_label)
    if binding is None or source.split == binding.train_split_name:
        return False
    if source.split in (None, binding.val_split_name):
        return True
    if binding.stop_size is not None and source.split == binding.stop_split_name:
        return False
    return not binding.featureset.get_split(source.split).is_disjoint_with(binding.pool())


class CVBinding(Checked):
    """Which rows of a FeatureSet are split into folds, how, and the split names.

    Parameters
    ----------
    fs : FeatureSet or str
        The FeatureSet, its label or id.
    source_splits : list of str
        Splits whose rows form the pool; a row in several of them counts once.
    group_by : str or list of str, optional
        Rows with equal values in these columns are never on both sides of a fold; by default
        the windows of one series, if the rows are windows.
    stratify_by : str or list of str, optional
        Folds preserve the proportions of these columns, as far as groups allow.
    train_split_name, val_split_name : str
        Names of the two sides of each fold; splits with these names are replaced within the fold,
        others are unchanged.
    val_size : float, optional
        Share of the pool that each fold validates on; by default ``1 / n_folds``. Rows that no fold
        validates on are trained on in all folds.
    stop_size : float, optional
        Share of each fold's training rows that is held out, by the same groups and strata (the
        latest rows with a `TimeSeriesSplitter`), for early stopping and learning-rate schedules. If
        these monitor a metric of an `Evaluation` on the validation split, they monitor the same
        metric on the held-out rows instead, logged as ``stop_val_loss`` and so on. Scalers are not
        fitted on these rows.
    stop_split_name : str
        Name of the split of these rows in each fold.
    bins : int, optional
        Number of bins for `stratify_by`; see `KFoldSplitter`.

    Raises
    ------
    UnknownNameError
        If there is no such FeatureSet, split or column.
    ConfigError
        If another argument is not as described.

    Examples
    --------
    >>> from modularml import FeatureSet
    >>> rows = {"x": [1.0, 2.0], "y": [1.0, 2.0], "cell": ["a", "b"]}
    >>> fs = FeatureSet.from_dict("rows", rows, "x", "y", "cell", register=False)
    >>> fs.split_random({"train": 0.5, "val": 0.5})
    >>> CVBinding(fs, ["train", "val"], group_by="cell").group_by
    'cell'
    """

    def __init__(
        self,
        fs: str | FeatureSet,
        source_splits: str | list[str],
        *,
        group_by: Columns = None,
        stratify_by: Columns = None,
        train_split_name: str = "train",
        val_split_name: str = "val",
        val_size: float | None = None,
        stop_size: float | None = None,
        stop_split_name: str = "stop",
        bins: int | None = None,
    ) -> None:
        featureset: Any = fs
        if isinstance(fs, str):
            featureset = ExperimentContext.get_active().get_node(fs, enforce_type="FeatureSet")
        if not isinstance(featureset, FeatureSet):
            raise ConfigError(f"fs must be a FeatureSet, its label or id, got {fs!r}")
        names = [train_split_name, val_split_name, *[stop_split_name] * (stop_size is not None)]
        if len(set(names)) < len(names):
            raise ConfigError(f"the splits of a fold need distinct names, got {names}")
        for name, size in (("val_size", val_size), ("stop_size", stop_size)):
            if size is not None and not 0 < size < 1:
                raise ConfigError(f"{name} must be between 0 and 1, exclusive, got {size!r}")
        check_bins(bins, stratify_by, ConfigError)
        self.featureset, self.source_splits = featureset, as_list(source_splits)
        self.group_by, self.stratify_by, self.val_size = group_by, stratify_by, val_size
        self.train_split_name, self.val_split_name = train_split_name, val_split_name
        self.stop_size, self.stop_split_name, self.bins = stop_size, stop_split_name, bins
        if not len(self.pool()):
            raise ConfigError(
                f"source_splits {self.source_splits} of {featureset.label!r} hold no rows"
            )
        for key in key_list(group_by, stratify_by):
            select_one(featureset.collection.schema, key)

    @property
    def groups(self) -> Columns:
        """Columns of `group_by`; by default the series of windows."""
        return self.group_by or self.featureset.kept_together or None

    def pool(self) -> FeatureSetView:
        """Return the rows that are split into folds, in the order of the FeatureSet."""
        fs = self.featureset
        rows = [fs.get_split(name).valid_indices for name in self.source_splits]
        return fs.take(np.unique(np.concatenate([np.empty(0, dtype=np.int64), *rows])), "pool")

    def __repr__(self) -> str:
        names = ("group_by", "stratify_by", "stop_size")
        shown = {name: getattr(self, name) for name in names}
        options = "".join(f", {name}={keys!r}" for name, keys in shown.items() if keys is not None)
        return f"CVBinding({self.featureset.label!r}, {self.source_splits}{options})"
