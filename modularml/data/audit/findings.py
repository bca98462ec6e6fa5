"""What an audit found, as a value that shows itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from modularml._optional import require
from modularml.data.display import html_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["AuditReport", "AuditWarning", "Finding"]

SEVERITIES = ("error", "warning", "info")


class AuditWarning(UserWarning):
    """An audit found something in rows that are about to be trained on."""


@dataclass(frozen=True)
class Finding:
    """One thing that an audit found.

    Parameters
    ----------
    severity : {'error', 'warning', 'info'}
        A figure is wrong because of it; it may well be; it is good to know.
    kind : str
        ``shared_rows``, ``shared_groups``, ``duplicate_rows``, ``similar_sequences``,
        ``scaler_fit``, ``target_copy``, ``time_order``, ``constant`` or ``not_finite``.
    message : str
        What it is and what to do.
    columns : tuple of str
        Full names.
    splits : tuple of str
        The training side first.
    count : int
        How many rows it concerns.
    sample_ids : tuple of str
        The first of them, as UUID text.
    """

    severity: str
    kind: str
    message: str
    columns: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    count: int = 0
    sample_ids: tuple[str, ...] = ()


@dataclass(frozen=True, repr=False)
class AuditReport(Sequence[Finding]):
    """The findings of an audit, worst first; a sequence, empty where nothing was found.

    Parameters
    ----------
    label : str
        Of the FeatureSet.
    findings : tuple of Finding
    """

    label: str
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether no finding is an error or a warning."""
        return all(f.severity == "info" for f in self.findings)

    def to_pandas(self) -> pd.DataFrame:
        """Return one row a finding, with the fields of `Finding` as columns."""
        names = [field.name for field in fields(Finding)]
        rows = [[getattr(f, name) for name in names] for f in self.findings]
        frame: pd.DataFrame = require("pandas").DataFrame(rows, columns=names)
        return frame

    def summary(self) -> str:
        """Say in one line how many findings there are of which severity and kind."""
        kinds = Counter(f"{f.kind} ({f.severity})" for f in self.findings)
        shown = ", ".join(f"{n} x {kind}" if n > 1 else kind for kind, n in kinds.items())
        return f"audit of {self.label!r}: {shown or 'nothing found'}"

    def __len__(self) -> int:
        return len(self.findings)

    def __getitem__(self, index: Any) -> Any:
        return self.findings[index]

    def __repr__(self) -> str:
        lines = [f"  {f.severity:<8}{f.kind:<18}{f.message}" for f in self.findings]
        return "\n".join([self.summary(), *lines])

    def _repr_html_(self) -> str:
        headings = ("severity", "kind", "columns", "splits", "rows", "message", "first ids")
        rows = [
            (
                f.severity,
                f.kind,
                _joined(f.columns),
                ", ".join(f.splits),
                str(f.count or ""),
                f.message,
                ", ".join(text[:8] for text in f.sample_ids),
            )
            for f in self.findings
        ]
        return html_table(self.summary(), headings, rows)


def _joined(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if names[most:] else "")
