"""Auditing a FeatureSet: what would make figures look better than they are."""

from modularml.data.audit.checks import audit
from modularml.data.audit.findings import AuditReport, AuditWarning, Finding

__all__ = ["AuditReport", "AuditWarning", "Finding", "audit"]
