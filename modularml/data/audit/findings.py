"""What an audit found, as a value that shows itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from html import escape
from typing import TYPE_CHECKING, Any

from modularml._optional import require

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["AuditReport", "AuditWarning", "Finding"]


class AuditWarning(UserWarning):
    """An audit found something in rows that are about to be trained on."""


@dataclass(frozen=True)
class Finding:
    """One thing that an audit found, on which rows, and what to do."""

    severity: str
    """``error`` (a figure is wrong because of it), ``warning`` (it may well be) or ``info``."""
    kind: str
    columns: tuple[str, ...]
    splits: tuple[str, ...]
    """The training side first."""
    count: int
    """How many rows it is about."""
    message: str
    sample_ids: tuple[str, ...]
    """The first of the rows, as UUID text."""


@dataclass(frozen=True, repr=False)
class AuditReport(Sequence[Finding]):
    """The findings of an audit, worst first; a sequence, empty where nothing was found."""

    label: str
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether no finding is an error or a warning."""
        return all(f.severity == "info" for f in self.findings)

    def to_pandas(self) -> pd.DataFrame:
        """Return one row a finding, with the fields of `Finding` as columns."""
        names = [field.name for field in fields(Finding)]
        frame: pd.DataFrame = require("pandas").DataFrame(map(astuple, self.findings), None, names)
        return frame

    def summary(self) -> str:
        """Say in one line how many findings there are of which kind and severity."""
        kinds = Counter(f"{f.kind} ({f.severity})" for f in self.findings)
        shown = ", ".join(f"{n} x {kind}" if n > 1 else kind for kind, n in kinds.items())
        return f"audit of {self.label!r}: {shown or 'nothing found'}"

    def __len__(self) -> int:
        return len(self.findings)

    def __getitem__(self, index: Any) -> Any:
        return self.findings[index]

    def __repr__(self) -> str:
        lines = (f"  {f.severity:<9}{f.kind:<19}{f.message}" for f in self.findings)
        return "\n".join([self.summary(), *lines])

    def _repr_html_(self) -> str:
        table = self.to_pandas()
        for name in ("columns", "splits"):
            table[name] = table[name].map(lambda names: ", ".join(names[:6]))
        table["sample_ids"] = table["sample_ids"].map(lambda ids: " ".join(i[:8] for i in ids))
        with require("pandas").option_context("display.max_colwidth", None):
            shown = table.to_html(index=False, border=0) if self.findings else ""
        return f"<div><b>{escape(self.summary())}</b>{shown}</div>"
