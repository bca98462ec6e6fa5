"""Auditing rows, splits and plans: what would make figures look better than they are."""

from modularml.audit.checks import CHECKS, Check, audit
from modularml.data.audit_report import AuditReport, AuditWarning, Finding

__all__ = ["CHECKS", "AuditReport", "AuditWarning", "Check", "Finding", "audit"]
