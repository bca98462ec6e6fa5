"""Audits of rows, splits and plans for data leakage."""

from modularml.audit.checks import CHECKS, KINDS, Check, audit, check_allowed
from modularml.data.audit_report import AuditReport, AuditWarning, Finding

__all__ = [
    "CHECKS",
    "KINDS",
    "AuditReport",
    "AuditWarning",
    "Check",
    "Finding",
    "audit",
    "check_allowed",
]
