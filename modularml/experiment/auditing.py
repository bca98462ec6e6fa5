"""A look at the rows before they are trained on, once for each version of the data."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from modularml.context import ExperimentContext
from modularml.data import FeatureSet
from modularml.data.audit import AuditWarning
from modularml.errors import AuditError, ConfigError
from modularml.experiment.fit_phase import FitPhase
from modularml.experiment.phase import ExperimentPhase
from modularml.experiment.phases import TrainPhase

__all__ = ["Auditor"]

_MODES = ("warn", "error", "off")
_MAX_ROWS = 20_000


class Auditor:
    """Audits the FeatureSets that training phases read, and remembers which it has seen.

    It looks for exact copies only, in a part of the rows, so that it costs milliseconds.

    Parameters
    ----------
    mode : {'warn', 'error', 'off'}
    """

    def __init__(self, mode: str) -> None:
        if mode not in _MODES:
            raise ConfigError(f"audit must be one of {', '.join(map(repr, _MODES))}, got {mode!r}")
        self.mode = mode
        self._seen: dict[str, tuple[int, dict[str, Any]]] = {}

    def look(self, phases: Sequence[ExperimentPhase], ctx: ExperimentContext) -> None:
        """Audit what the training phases among some phases read.

        Raises
        ------
        AuditError
            If an audit is not ok and the mode is ``'error'``.
        """
        if self.mode == "off":
            return
        training = (phase for phase in phases if isinstance(phase, TrainPhase | FitPhase))
        sets = {b.upstream_ref.resolve(ctx) for phase in training for b in phase.input_sources}
        for fs in sorted(sets, key=lambda fs: fs.label):
            version = (fs.collection.version, fs.get_state()["splits"])
            if not _same(self._seen.get(fs.node_id), version):
                self._audit(fs)
                self._seen[fs.node_id] = version

    def _audit(self, fs: FeatureSet) -> None:
        report = fs.audit(tolerance=0.0, max_rows=_MAX_ROWS)
        if report.ok:
            return
        said = f"{report.summary()}. First: {report[0].message}. fs.audit() shows them all"
        if self.mode == "error":
            raise AuditError(f"{said}; Experiment(audit='warn') trains all the same")
        warnings.warn(f"{said}; Experiment(audit='off') does not look", AuditWarning, stacklevel=7)


def _same(known: tuple[int, dict[str, Any]] | None, now: tuple[int, dict[str, Any]]) -> bool:
    return (
        known is not None
        and known[0] == now[0]
        and known[1].keys() == now[1].keys()
        and all(rows is now[1][name] for name, rows in known[1].items())
    )
