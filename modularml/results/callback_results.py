"""Results of callbacks: metrics, artifacts and other values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

__all__ = ["ArtifactResult", "CallbackResult", "MetricResult", "PayloadResult"]


@dataclass
class CallbackResult:
    """Base class of callback results; the phase fills in epoch, batch and edge."""

    kind: ClassVar[str] = "callback"

    label: str = field(default="", kw_only=True)
    epoch: int | None = field(default=None, kw_only=True)
    batch: int | None = field(default=None, kw_only=True)
    edge: str = field(default="", kw_only=True)


@dataclass
class MetricResult(CallbackResult):
    """A number that is logged as a metric.

    Examples
    --------
    >>> MetricResult("mape", 0.12).value
    0.12
    """

    kind: ClassVar[str] = "metric"

    name: str
    value: float


@dataclass
class ArtifactResult(CallbackResult):
    """An object that is stored under a name."""

    kind: ClassVar[str] = "artifact"

    name: str
    value: Any


@dataclass
class PayloadResult(CallbackResult):
    """Anything else that a hook returned."""

    kind: ClassVar[str] = "payload"

    payload: Any
