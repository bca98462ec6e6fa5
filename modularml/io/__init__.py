"""Artifacts: files of data that are checked when read and run no code."""

from modularml.io.comparison import diff
from modularml.io.extraction import extract
from modularml.io.inspection import inspect, render
from modularml.io.packaged import inspect_packaged_code

__all__ = ["diff", "extract", "inspect", "inspect_packaged_code", "render"]
