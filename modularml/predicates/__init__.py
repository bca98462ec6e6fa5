"""Predicates on columns."""

from modularml.predicates.base import And, Not, Or, Predicate
from modularml.predicates.conditions import (
    EQ,
    GT,
    GTE,
    LT,
    LTE,
    NE,
    Between,
    In,
    IsNull,
    NotIn,
    matches,
)
from modularml.predicates.grammar import Lambda

__all__ = [
    "EQ",
    "GT",
    "GTE",
    "LT",
    "LTE",
    "NE",
    "And",
    "Between",
    "In",
    "IsNull",
    "Lambda",
    "Not",
    "NotIn",
    "Or",
    "Predicate",
    "matches",
]
