"""Experiment contexts: nodes by id and label."""

from modularml.context.context import ExperimentContext, ExperimentNode
from modularml.context.registration import (
    RegistrationPolicy,
    RegistrationWarning,
    is_run_again,
)

__all__ = [
    "ExperimentContext",
    "ExperimentNode",
    "RegistrationPolicy",
    "RegistrationWarning",
    "is_run_again",
]
