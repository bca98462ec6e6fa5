"""``python -m benchmarks.picture``: the picture and the table of docs/explanation/speed.md.

Both show ``benchmarks/measured.json``, which holds the figures of one run: CPU times as ratios to
a loop written by hand.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent / "docs"
LOOKS: dict[str, dict[str, Any]] = {
    "modularml": {"marker": "o", "color": "#0b6e99", "markersize": 9, "zorder": 3},
    "fused Adam by hand": {"marker": "|", "color": "#222222", "markersize": 15},
    "best loop by hand": {"marker": "|", "color": "#222222", "markersize": 15},
    "Keras fit": {"marker": "s", "color": "#b5533c"},
    "Ignite": {"marker": "^", "color": "#7a5195"},
    "skorch": {"marker": "v", "color": "#c08a1e"},
    "Lightning": {"marker": "D", "color": "#4c8c4a"},
    "Keras on torch": {"marker": "s", "color": "#b5533c", "fillstyle": "none"},
    "another modularml": {"marker": "x", "color": "#777777"},
}


def values_of(row: dict[str, Any]) -> dict[str, float]:
    """Return the ratios of a row by name."""
    limit = dict([row["limit"]]) if "limit" in row else {}
    return {"modularml": row["ours"], **limit, **row.get("peers", {})}


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the ratios on a logarithmic axis, one line for each job."""
    figure = Figure(figsize=(8.2, 1.6 + 0.36 * len(rows)), layout="constrained")
    figure.patch.set_facecolor("white")
    axes = figure.add_subplot()
    shown: dict[str, Any] = {}
    for at, row in enumerate(rows):
        for name, value in values_of(row).items():
            look = {"markersize": 6.5, "linestyle": "none", **LOOKS[name]}
            (shown[name],) = axes.plot([value], [at], **look)
    axes.axvline(1.0, color="#222222", linewidth=1.0, linestyle=(0, (4, 3)))
    axes.set_xscale("log")
    ticks = [0.1, 0.2, 0.5, 1, 2, 5]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_yticks(range(len(rows)), [row["work"] for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(visible=True, color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel("CPU time, as a ratio to a loop by hand (dashed); smaller is faster")
    names = [name for name in LOOKS if name in shown]
    figure.legend(
        [shown[n] for n in names], names, loc="outside upper left", ncols=4, frameon=False
    )
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def table(rows: list[dict[str, Any]]) -> str:
    """Return the ratios as a Markdown table."""
    names = [n for n in LOOKS if any(n in values_of(row) for row in rows)]
    lines = [f"| work | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for row in rows:
        cells = [f"{values_of(row)[n]:.2f}" if n in values_of(row) else "" for n in names]
        lines.append(f"| {row['work']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the picture and the table."""
    rows = json.loads((HERE / "measured.json").read_text("utf-8"))["rows"]
    draw(rows, DOCS / "images" / "speed.svg")
    (DOCS / "explanation" / "speed_table.md").write_text(table(rows), "utf-8")


if __name__ == "__main__":
    main()
