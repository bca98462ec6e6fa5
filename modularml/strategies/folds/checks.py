"""Checks that the rows held out by folds are neither learned from nor selected by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from modularml._warning import warn
from modularml.data.scaling import LeakWarning
from modularml.engine.monitoring import loggers_of, monitors_of
from modularml.errors import AuditError
from modularml.experiment import Experiment, FitPhase, TrainPhase
from modularml.experiment.run_audit import RunAudit
from modularml.io.randomness import unchanged_randomness
from modularml.strategies.folds.cv_binding import CVBinding
from modularml.strategies.variants.variant import Plan, Variant, reads_only, variant_experiment

__all__ = [
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
