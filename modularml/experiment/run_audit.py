"""Audits of the data and the plan of a run, before it trains."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np

from modularml._typing import IntArray
from modularml._warning import warn
from modularml.audit import AuditReport, AuditWarning, audit
from modularml.audit.audited_table import is_training
from modularml.audit.similarity import shared
from modularml.context import ExperimentContext
from modularml.data.audit_report import Finding
from modularml.data.featureset import FeatureSet
from modularml.data.ids import id_texts
from modularml.engine.monitoring import loggers_of, monitors_of
from modularml.errors import AuditError
from modularml.phases.fit import FitPhase
from modularml.phases.group import PhaseGroup
from modularml.phases.phase import ExperimentPhase
from modularml.phases.train_eval import EvalPhase, TrainPhase

if TYPE_CHECKING:
    from modularml.data.featureset import FeatureSet


_CHOOSING = re.compile("train|fit|val|dev|stop|tune|watch")
_WORDS = {
    "train": ("trains on", "train on other rows, or report on a split that nothing has seen"),
    "choose": (
        "stops or chooses by",
        "stop and choose by a validation split, and report on a third one",
    ),
}


@dataclass(frozen=True, eq=False)
class Use:
    """Rows that a phase of a plan uses.

    Parameters
    ----------
    phase : str
        Label.
    role : {'train', 'choose', 'test'}
        Whether weights move by them, something is chosen by them, or they are reported on.
    fs : FeatureSet
    split : str or None
        None for all rows.
    rows : ndarray of int64
    """

    phase: str
    role: str
    fs: FeatureSet
    split: str | None
    rows: IntArray


def plan_leaks(uses: Sequence[Use]) -> Iterator[Finding]:
    """Find rows that a plan reports on though it trained on them or chose by them.

    A split that is named for training or validation may be reported on beside one that is clean.
    All rows at once, without a split, are no test.
    """
    tests = [u for u in uses if u.role == "test" and u.split is not None]
    others = [u for u in uses if u.role != "test"]
    common = {
        (i, k): shared(test.fs, test.rows, other.fs, other.rows)
        for i, test in enumerate(tests)
        for k, other in enumerate(others)
    }
    clean = {i for i in range(len(tests)) if not any(len(common[i, k]) for k in range(len(others)))}
    seen = set()
    for (i, k), rows in common.items():
        test, other = tests[i], others[k]
        known_as = str(test.split)
        is_report = other.split == known_as and other.fs is test.fs
        if not len(rows) or (test.split, other.split, other.role) in seen:
            continue
        if is_report and (is_training(known_as) or (clean and _CHOOSING.search(known_as.lower()))):
            continue
        seen.add((test.split, other.split, other.role))
        does, remedy = _WORDS[other.role]
        ids = tuple(id_texts(test.fs.collection.ids[rows[:5]]).tolist())
        soft = other.role == "choose" and is_report and _CHOOSING.search(known_as.lower())
        kind, splits = f"plan_{other.role}s_on_test", (str(other.split), known_as)
        if kind in test.fs.audit_allowed:
            continue
        yield Finding(
            "warning" if soft else "error", kind, (), splits, len(rows),
            f"phase {other.phase!r} {does} {len(rows)} of the {len(test.rows)} rows of split "
            f"{known_as!r} that phase {test.phase!r} tests on; {remedy}", ids,
            measure=f"{len(rows)} rows are the same by their ids or by all that they hold",
            remedy=remedy, allow=kind,
        )  # fmt: skip


Mode: TypeAlias = Literal["warn", "error", "off"]
_MOST_VALUES = 400_000  # of a split


class RunAudit:
    """Audits the rows that training phases read, and how a plan uses them.

    Statistics are computed on 1,200 rows, so it is quick. FeatureSets whose columns stay in files
    are skipped, as reading them may take minutes; ``fs.audit()`` audits them on request.
    """

    def __init__(self, mode: Mode) -> None:
        self.mode: Mode = mode
        self._seen: dict[str, Any] = {}
        self.reports: dict[str, AuditReport] = {}
        """The newest report of each FeatureSet, by label."""

    def check(
        self, item: ExperimentPhase | PhaseGroup, ctx: ExperimentContext, *, plan: bool = True
    ) -> None:
        """Audit the FeatureSets of training phases, unless unchanged since last time.

        Parameters
        ----------
        item : phase or group
        ctx : ExperimentContext
        plan : bool
            Whether to audit how the phases use their rows, too.

        Raises
        ------
        AuditError
            If an audit fails and the mode is ``'error'``.
        """
        if self.mode == "off":
            return
        phases = item.flatten()
        training = [phase for phase in phases if isinstance(phase, TrainPhase | FitPhase)]
        if plan and training and len(phases) > 1:
            leaks = plan_audit(phases, ctx)
            found = tuple((f.kind, f.splits, f.count) for f in leaks)
            if self._seen.get("plan") != found:
                kinds = ", ".join(dict.fromkeys(f"{f.kind} ({f.severity})" for f in leaks))
                self._report_findings(f"audit of the plan: {kinds}", leaks, f"{len(leaks)} in all")
                self._seen["plan"] = found
        self._check_learned_rows(phases, ctx)
        sets = dict.fromkeys(
            b.upstream_ref.resolve(ctx) for phase in training for b in phase.input_sources
        )
        for fs in sets:
            if fs.collection.maps:
                continue
            version = _version(fs)
            if self._seen.get(fs.node_id) != version:
                self.reports[fs.label] = report = quick_audit(fs)
                shown = "fs.audit() shows them all"
                self._report_findings(report.summary(), report.findings, shown)
                self._seen[fs.node_id] = version

    def _check_learned_rows(self, phases: list[ExperimentPhase], ctx: ExperimentContext) -> None:
        """Find evaluation rows that weights have learned from before."""
        graph = ctx.model_graph
        monitored = [c.eval_phase for p in phases for c in p.callbacks if hasattr(c, "eval_phase")]
        evaluations = [*monitored, *(p for p in phases if isinstance(p, EvalPhase))]
        for phase in evaluations if graph is not None else ():
            for b in phase.input_sources:
                fs: FeatureSet = b.upstream_ref.resolve(ctx)
                if b.split is not None and b.split not in fs.available_splits:
                    continue
                message = graph.taken_for_unseen(fs, b.split, phase.active_nodes) if graph else ""
                if message and self._seen.get(f"unseen {fs.node_id} {b.split}") != message:
                    refuse_or_warn(message, self.mode, "evaluate")
                    self._seen[f"unseen {fs.node_id} {b.split}"] = message

    def _report_findings(self, summary: str, findings: Any, shown: str) -> None:
        serious: list[Finding] = [f for f in findings if f.severity != "info"]
        if serious:
            message = f"{summary}. First: {serious[0].message}. {shown}"
            refuse_or_warn(message, self.mode, "train")


def refuse_or_warn(message: str, mode: str, action: str) -> None:
    """Raise an AuditError if the mode is ``'error'``, else warn."""
    if mode == "error":
        raise AuditError(f"{message}; pass Experiment(audit='warn') to {action} anyway")
    warn(f"{message}; pass Experiment(audit='off') to skip this check", AuditWarning)


def plan_audit(phases: list[ExperimentPhase], ctx: ExperimentContext) -> list[Finding]:
    """Return rows that phases report on though they train on them or select by them."""
    trained, uses = False, list[Use]()
    for phase in phases:
        learns = isinstance(phase, TrainPhase | FitPhase)
        trained = trained or learns
        if learns:
            uses += _rows_of(phase, phase, "train", ctx)
            for monitor in monitors_of(phase, ctx.model_graph):
                for logger in loggers_of(monitor, phase.callbacks):
                    if hasattr(logger, "eval_phase"):
                        uses += _rows_of(logger.eval_phase, phase, "choose", ctx)
        elif trained and isinstance(phase, EvalPhase):
            uses += _rows_of(phase, phase, "test", ctx)
    return list(plan_leaks(uses))


def _rows_of(
    phase: ExperimentPhase, user: ExperimentPhase, role: str, ctx: ExperimentContext
) -> Iterator[Use]:
    seen = set()
    for b in phase.input_sources:
        fs: FeatureSet = b.upstream_ref.resolve(ctx)
        if (fs.node_id, b.split) in seen or (b.split and b.split not in fs.available_splits):
            continue
        seen.add((fs.node_id, b.split))
        rows = np.arange(len(fs)) if b.split is None else fs.get_split(b.split).valid_indices
        yield Use(user.label, role, fs, b.split, rows)


_reports: WeakKeyDictionary[FeatureSet, tuple[Any, AuditReport]] = WeakKeyDictionary()


def _version(fs: FeatureSet) -> tuple[Any, ...]:
    splits = tuple((name, id(rows)) for name, rows in fs._splits.items())
    records = fs.collection.version, fs.split_records, len(fs.scaler_records)
    return (*records, splits, fs.audit_allowed)


def quick_audit(fs: FeatureSet) -> AuditReport:
    """Audit a FeatureSet with few rows, or return the cached report of the same version."""
    cached, version = _reports.get(fs), _version(fs)
    if cached is None or cached[0] != version:
        values_per_row = sum(
            math.prod(spec.shape) for spec in fs.collection.schema.columns.values()
        )
        max_rows = max(100, min(20_000, _MOST_VALUES // values_per_row))
        report = audit(fs, max_rows=max_rows, allowed=fs.audit_allowed, quick=True)
        cached = _reports[fs] = version, report
    return cached[1]
