"""Artifacts: files of data that are checked when read and run no code."""

from modularml.io.inspection import inspect, render
from modularml.io.packaged import inspect_packaged_code
from modularml.io.two_files import diff, extract

__all__ = ["diff", "extract", "inspect", "inspect_packaged_code", "render"]
