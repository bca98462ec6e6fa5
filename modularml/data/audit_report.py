"""Audits of FeatureSets: reports and their findings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from html import escape
from typing import TYPE_CHECKING, Any

from modularml._optional import require
from modularml._typing import Columns
from modularml.errors import ConfigError, expect

if TYPE_CHECKING:
    import pandas as pd

SEVERITIES = ("error", "warning", "info")


class AuditWarning(UserWarning):
    """An audit reported findings in training or evaluation rows."""


@dataclass(frozen=True)
class Finding:
    """One finding of an audit: the rows it concerns and what to do."""

    severity: str
    """``error`` (it makes a score wrong), ``warning`` (it may do so) or ``info``."""
    kind: str
    columns: tuple[str, ...]
    splits: tuple[str, ...]
    """The training side first."""
    count: int
    """Number of rows concerned."""
    message: str
    sample_ids: tuple[str, ...]
    """Ids of the first rows, the most certain first, as UUID text."""
    measure: str = ""
    """The measured similarity in words."""
    p_value: float | None = None
    """Probability of a signal this strong in sound data, corrected for the number of tests."""
    remedy: str = ""
    """What to do."""
    allow: str = ""
    """What to pass in ``fs.audit(allow=[...])`` if the finding is intended."""
    picture: str = field(default="", repr=False, compare=False)
    """An inline SVG; empty if there is none."""


@dataclass(frozen=True, repr=False)
class AuditReport(Sequence[Finding]):
    """The findings of an audit as a sequence, worst first; empty without findings.

    Examples
    --------
    >>> import numpy as np
    >>> from modularml import FeatureSet
    >>> y = np.random.default_rng(0).normal(size=100)
    >>> fs = FeatureSet.from_dict("rows", {"x": 2 * y + 1, "y": y}, "x", "y", register=False)
    >>> [finding.kind for finding in fs.audit()]
    ['target_copy']
    """

    label: str
    findings: tuple[Finding, ...]
    allowed: tuple[str, ...] = ()
    """Findings that the user allowed; they are omitted."""
    notes: tuple[str, ...] = ()
    """How much of the data was examined, if not all of it."""

    @property
    def ok(self) -> bool:
        """Whether no finding is an error or a warning."""
        return all(f.severity == "info" for f in self.findings)

    def to_pandas(self) -> pd.DataFrame:
        """Return one row per finding, with the fields of `Finding` as columns."""
        names = [f.name for f in fields(Finding) if f.name != "picture"]
        rows = [[getattr(finding, name) for name in names] for finding in self.findings]
        frame: pd.DataFrame = require("pandas").DataFrame(rows, None, names)
        return frame

    def summary(self) -> str:
        """Return one line with the number of findings of each kind and severity."""
        kinds = Counter(f"{f.kind} ({f.severity})" for f in self.findings)
        shown = ", ".join(f"{n} x {kind}" if n > 1 else kind for kind, n in kinds.items())
        return f"audit of {self.label!r}: {shown or 'nothing found'}"

    def __len__(self) -> int:
        return len(self.findings)

    def __getitem__(self, index: Any) -> Any:
        return self.findings[index]

    def __repr__(self) -> str:
        lines = [f"  {f.severity:<9}{f.kind:<19}{f.message}" for f in self.findings]
        return "\n".join([self.summary(), *lines, *(f"  {note}" for note in self._footnotes())])

    def _footnotes(self) -> list[str]:
        allowed = [f"allowed: {', '.join(self.allowed)}"] if self.allowed else []
        return [*allowed, *self.notes]

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td><b>{f.severity}</b></td><td>{f.kind}</td><td>{escape(f.message)}<br>"
            f"<small>{escape(f.measure)}"
            f"{'' if f.p_value is None else f'; p = {f.p_value:.1g}'}<br>columns: "
            f"{escape(', '.join(f.columns[:6]) or '-')}; splits: {escape(', '.join(f.splits))}; "
            f"first rows: {' '.join(i[:8] for i in f.sample_ids) or '-'}<br>if this is fine: "
            f"<code>fs.audit(allow=[{escape(repr(f.allow))}])</code></small></td>"
            f"<td>{f.picture}</td></tr>"
            for f in self.findings
        )
        notes = "".join(f"<div><small>{escape(note)}</small></div>" for note in self._footnotes())
        table = f"<table>{rows}</table>" if rows else ""
        return f"<div><b>{escape(self.summary())}</b>{table}{notes}</div>"


def audit(
    self: Any,
    *,
    groups: Columns = None,
    time: Columns = None,
    tolerance: float | None = None,
    max_rows: int | None = None,
    allow: Iterable[str] = (),
) -> AuditReport:
    """Check for leaks between the splits and for columns that harm a model.

    Parameters
    ----------
    groups : str or list of str, optional
        Key of rows that belong together; several columns form one key, as in `group_by`. By
        default, any column whose rows are more similar within a value than across values. An
        empty list checks none.
    time : str or list of str, optional
        Columns by which training precedes testing. By default, any column that can be read as
        time and whose neighbours are similar. An empty list checks none.
    tolerance : float, optional
        Largest distance of near-duplicate sequences (root mean square) and largest residual of
        a target given a feature, in standard deviations; 0 finds exact copies only. By default
        a statistical test decides.
    max_rows : int, optional
        Maximum number of rows per split to examine, evenly spread; None means all, or 100,000
        for memory-mapped columns.
    allow : iterable of str
        Findings that are intended: ``"kind"`` or ``"kind:column"``, as shown in each finding.
        They are stored with the set and in its file, and listed in the report.

    Raises
    ------
    ConfigError
        If an argument is out of range.
    UnknownNameError
        If `allow` names a kind or column that there is not.

    Notes
    -----
    Statistics use at most 4,000 rows, sampled with a fixed seed; the report notes this.

    Examples
    --------
    >>> from modularml import FeatureSet
    >>> fs = FeatureSet.from_dict("cells", {"x": [1, 2], "y": [0, 1]}, "x", "y", register=False)
    >>> fs.audit()
    audit of 'cells': nothing found
    """
    if isinstance(allow, str):
        raise ConfigError(f"allow must be a list of kinds, got {allow!r}; pass [{allow!r}]")
    entries = [
        expect("allow", entry, str, "strings such as 'shared_groups:cell'") for entry in allow
    ]
    checks = require("modularml.audit")
    checks.check_allowed(self, entries)
    self.audit_allowed = tuple(dict.fromkeys((*self.audit_allowed, *entries)))
    report: AuditReport = checks.audit(self, groups, time, tolerance, max_rows, self.audit_allowed)
    return report
