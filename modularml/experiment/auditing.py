"""A look at the rows before they are trained on, once for each version of the data."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias
from weakref import WeakKeyDictionary

from modularml._warning import warn
from modularml.context import ExperimentContext
from modularml.data import FeatureSet
from modularml.data.audit import AuditReport, AuditWarning
from modularml.errors import AuditError
from modularml.experiment.fit_phase import FitPhase
from modularml.experiment.group import PhaseGroup
from modularml.experiment.phase import ExperimentPhase
from modularml.experiment.phases import TrainPhase

__all__ = ["Auditor"]

Mode: TypeAlias = Literal["warn", "error", "off"]
_MOST_ROWS = 20_000
_MOST_VALUES = 400_000  # of a split


class Auditor:
    """Audits what training phases read; exact copies only, in some rows, so it is quick.

    Sets whose columns stay in files are not looked at: they may take minutes to read through.
    ``fs.audit()`` does it on request.
    """

    def __init__(self, mode: Mode) -> None:
        self.mode: Mode = mode
        self._seen: dict[str, tuple[Any, ...]] = {}

    def look(self, item: ExperimentPhase | PhaseGroup, ctx: ExperimentContext) -> None:
        """Audit the FeatureSets that training phases read, where they are not as last time.

        Raises
        ------
        AuditError
            If an audit is not ok and the mode is ``'error'``.
        """
        if self.mode == "off":
            return
        training = (phase for phase in item.flatten() if isinstance(phase, TrainPhase | FitPhase))
        sets = dict.fromkeys(
            b.upstream_ref.resolve(ctx) for phase in training for b in phase.input_sources
        )
        for fs in sets:
            if fs.collection.maps:
                continue
            splits = tuple((name, id(rows)) for name, rows in fs._splits.items())
            version = (fs.collection.version, fs.split_records, len(fs.scaler_records), splits)
            if self._seen.get(fs.node_id) != version:
                self._judge(fs, _report(fs, version))
                self._seen[fs.node_id] = version

    def _judge(self, fs: FeatureSet, report: AuditReport) -> None:
        if report.ok:
            return
        said = f"{report.summary()}. First: {report[0].message}. fs.audit() shows them all"
        if self.mode == "error":
            raise AuditError(f"{said}; Experiment(audit='warn') trains all the same")
        warn(f"{said}; Experiment(audit='off') does not look", AuditWarning)


_reports: WeakKeyDictionary[FeatureSet, tuple[Any, AuditReport]] = WeakKeyDictionary()


def _report(fs: FeatureSet, version: Any) -> AuditReport:
    """Audit a set, or return what an experiment before this one found in the same version."""
    known = _reports.get(fs)
    if known is None or known[0] != version:
        width = sum(math.prod(spec.shape) for spec in fs.collection.schema.columns.values())
        most = max(100, min(_MOST_ROWS, _MOST_VALUES // width))
        known = _reports[fs] = version, fs.audit(tolerance=0.0, max_rows=most)
    return known[1]
