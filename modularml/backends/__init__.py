"""Framework adapters, each imported when a model or tensor of it is first used."""

from modularml.backends.base import Backend, BackendAdapter, adapter_for, backend_of
from modularml.backends.step_options import PLAIN, StepOptions

__all__ = ["PLAIN", "Backend", "BackendAdapter", "StepOptions", "adapter_for", "backend_of"]
