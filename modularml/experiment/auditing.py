"""A look at rows and plan before they are trained on, once for each version of the data."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np

from modularml._warning import warn
from modularml.audit import AuditReport, AuditWarning, Finding, audit
from modularml.audit.plans import Use, plan_leaks
from modularml.context import ExperimentContext
from modularml.data import FeatureSet
from modularml.engine.monitoring import loggers_of, monitors_of
from modularml.errors import AuditError
from modularml.phases.fit import FitPhase
from modularml.phases.group import PhaseGroup
from modularml.phases.phase import ExperimentPhase
from modularml.phases.train_eval import EvalPhase, TrainPhase

__all__ = ["RunAudit"]

Mode: TypeAlias = Literal["warn", "error", "off"]
_MOST_VALUES = 400_000  # of a split


class RunAudit:
    """Audits what training phases read, and what a plan does with it.

    Statistics are computed on 1,200 rows, so it is quick. Sets whose columns stay in files are not
    looked at: they may take minutes to read through. ``fs.audit()`` does it on request.
    """

    def __init__(self, mode: Mode) -> None:
        self.mode: Mode = mode
        self._seen: dict[str, Any] = {}

    def look(
        self, item: ExperimentPhase | PhaseGroup, ctx: ExperimentContext, *, plan: bool = True
    ) -> None:
        """Audit the FeatureSets that training phases read, where they are not as last time.

        Parameters
        ----------
        item : phase or group
        ctx : ExperimentContext
        plan : bool
            Whether to look at what the phases do with their rows too.

        Raises
        ------
        AuditError
            If an audit is not ok and the mode is ``'error'``.
        """
        if self.mode == "off":
            return
        phases = item.flatten()
        training = [phase for phase in phases if isinstance(phase, TrainPhase | FitPhase)]
        if plan and training and len(phases) > 1:
            self._look_at_plan(phases, ctx)
        self._look_at_weights(phases, ctx)
        sets = dict.fromkeys(
            b.upstream_ref.resolve(ctx) for phase in training for b in phase.input_sources
        )
        for fs in sets:
            if fs.collection.maps:
                continue
            splits = tuple((name, id(rows)) for name, rows in fs._splits.items())
            version = (
                *(fs.collection.version, fs.split_records, len(fs.scaler_records)),
                *(splits, fs.audit_allowed),
            )
            if self._seen.get(fs.node_id) != version:
                report = _report(fs, version)
                shown = "fs.audit() shows them all"
                self._judge(report.summary(), report.findings, shown)
                self._seen[fs.node_id] = version

    def _look_at_plan(self, phases: list[ExperimentPhase], ctx: ExperimentContext) -> None:
        found = list(plan_leaks(list(_uses(phases, ctx))))
        version = tuple((f.kind, f.splits, f.count) for f in found)
        if self._seen.get("plan") != version:
            kinds = ", ".join(dict.fromkeys(f"{f.kind} ({f.severity})" for f in found))
            self._judge(f"audit of the plan: {kinds}", found, f"{len(found)} in all")
            self._seen["plan"] = version

    def _look_at_weights(self, phases: list[ExperimentPhase], ctx: ExperimentContext) -> None:
        """Look for rows that are evaluated as unseen though weights learned from them before."""
        graph = ctx.model_graph
        watched = [c.eval_phase for p in phases for c in p.callbacks if hasattr(c, "eval_phase")]
        evaluations = [*watched, *(p for p in phases if isinstance(p, EvalPhase))]
        for phase in evaluations if graph is not None else ():
            for b in phase.input_sources:
                fs: FeatureSet = b.upstream_ref.resolve(ctx)
                if b.split is not None and b.split not in fs.available_splits:
                    continue
                said = graph.taken_for_unseen(fs, b.split, phase.active_nodes) if graph else ""
                if said and self._seen.get(f"unseen {fs.node_id} {b.split}") != said:
                    if self.mode == "error":
                        raise AuditError(f"{said}; Experiment(audit='warn') evaluates all the same")
                    self._seen[f"unseen {fs.node_id} {b.split}"] = said
                    warn(f"{said}; Experiment(audit='off') does not look", AuditWarning)

    def _judge(self, summary: str, findings: Any, shown: str) -> None:
        serious: list[Finding] = [f for f in findings if f.severity != "info"]
        if not serious:
            return
        said = f"{summary}. First: {serious[0].message}. {shown}"
        if self.mode == "error":
            raise AuditError(f"{said}; Experiment(audit='warn') trains all the same")
        warn(f"{said}; Experiment(audit='off') does not look", AuditWarning)


def _uses(phases: list[ExperimentPhase], ctx: ExperimentContext) -> Iterator[Use]:
    """Yield which rows the phases train on, choose by and, after a training, report on."""
    trained = False
    for phase in phases:
        learns = isinstance(phase, TrainPhase | FitPhase)
        trained = trained or learns
        if learns:
            yield from _rows_of(phase, phase, "train", ctx)
            for watched in _chosen_by(phase, ctx.model_graph):
                yield from _rows_of(watched, phase, "choose", ctx)
        elif trained and isinstance(phase, EvalPhase):
            yield from _rows_of(phase, phase, "test", ctx)


def _chosen_by(phase: ExperimentPhase, graph: Any) -> Iterator[ExperimentPhase]:
    """Yield the evaluations whose figures callbacks, checkpoints and schedules go by."""
    for monitor in monitors_of(phase, graph):
        for logger in loggers_of(monitor, phase.callbacks):
            if hasattr(logger, "eval_phase"):
                yield logger.eval_phase


def _rows_of(
    phase: ExperimentPhase, at: ExperimentPhase, role: str, ctx: ExperimentContext
) -> Iterator[Use]:
    seen = set()
    for b in phase.input_sources:
        fs: FeatureSet = b.upstream_ref.resolve(ctx)
        if (fs.node_id, b.split) in seen or (b.split and b.split not in fs.available_splits):
            continue
        seen.add((fs.node_id, b.split))
        rows = np.arange(len(fs)) if b.split is None else fs.get_split(b.split).valid_indices
        yield Use(at.label, role, fs, b.split, rows)


_reports: WeakKeyDictionary[FeatureSet, tuple[Any, AuditReport]] = WeakKeyDictionary()


def _report(fs: FeatureSet, version: Any) -> AuditReport:
    """Audit a set, or return what an experiment before this one found in the same version."""
    known = _reports.get(fs)
    if known is None or known[0] != version:
        width = sum(math.prod(spec.shape) for spec in fs.collection.schema.columns.values())
        most = max(100, min(20_000, _MOST_VALUES // width))
        report = audit(fs, max_rows=most, allowed=fs.audit_allowed, quick=True)
        known = _reports[fs] = version, report
    return known[1]
