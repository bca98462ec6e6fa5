"""Artifacts: one file that can be sent, trusted and read without running anything."""

from modularml.io.inspection import inspect, render

__all__ = ["inspect", "render"]
