"""Auditing rows, splits and plans: what would make figures look better than they are."""

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
