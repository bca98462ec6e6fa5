"""Tables for a terminal, and the same numbers as JSON."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent / "results"


def show(heading: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table, the first column flush left."""
    lines = [list(columns), *([_text(cell) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    print(f"\n{heading}")
    for line in lines:
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        print("  " + "  ".join(cells).rstrip())


def verdict(row: dict[str, Any]) -> str:
    """Say whether a row holds its limit, and its aim where it has one."""
    if not row["ok"]:
        return "MISSED"
    aim = row.get("aim")
    return "ok, aim reached" if aim is not None and row["ours"] <= aim else "ok"


def save(found: dict[str, Any]) -> Path:
    """Write all numbers to ``benchmarks/results/`` and return the file."""
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.write_text(json.dumps({"versions": versions(), **found}, indent=2) + "\n")
    return path


def versions() -> dict[str, str]:
    """Return what the numbers were measured with."""
    found = {"python": platform.python_version(), "processor": platform.machine()}
    for name in ("torch", "numpy", "pyarrow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def _text(cell: Any) -> str:
    if isinstance(cell, float):
        return f"{cell:.2g}" if 0 < abs(cell) < 0.01 else f"{cell:.2f}"
    return "-" if cell is None else str(cell)
