"""What callbacks return: metrics, artifacts and other values, with where and when."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

__all__ = ["ArtifactResult", "CallbackResult", "MetricResult", "PayloadResult"]


@dataclass
class CallbackResult:
    """Something a callback has to say; where and when is filled in by the phase."""

    kind: ClassVar[str] = "callback"

    label: str = field(default="", kw_only=True)
    epoch: int | None = field(default=None, kw_only=True)
    batch: int | None = field(default=None, kw_only=True)
    edge: str = field(default="", kw_only=True)


@dataclass
class MetricResult(CallbackResult):
    """A number that is logged as a metric."""

    kind: ClassVar[str] = "metric"

    name: str
    value: float


@dataclass
class ArtifactResult(CallbackResult):
    """An object that is kept under a name."""

    kind: ClassVar[str] = "artifact"

    name: str
    value: Any


@dataclass
class PayloadResult(CallbackResult):
    """Anything else that a hook returned."""

    kind: ClassVar[str] = "payload"

    payload: Any
