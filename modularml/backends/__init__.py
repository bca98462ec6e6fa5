"""One adapter for each framework, imported when a model or tensor of it first appears."""

from modularml.backends.base import Backend, BackendAdapter, adapter_for, backend_of

__all__ = ["Backend", "BackendAdapter", "adapter_for", "backend_of"]
