"""Draw the small benchmark figure of the front pages from ``benchmarks/measured.json``.

``python docs/speed_figure.py`` writes it anew when those figures have changed.
"""

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MEASURED = ROOT / "benchmarks" / "measured.json"
FIGURE = ROOT / "docs" / "images" / "ratios.svg"
WORK = "torch MLP, batch 64"
LEFT, ROW, SCALE = 132, 26, 50
"""Where bars begin, the height of a row, and the pixels of a ratio of one."""

STYLE = (
    "svg:root{color:#24292f}"
    "@media (prefers-color-scheme:dark){svg:root{color:#e6edf3}}"  # a picture sees no page
)


def ratios() -> dict[str, float]:
    """Return CPU time as a multiple of the hand-written loop's, by name, smallest first."""
    rows = json.loads(MEASURED.read_text("utf-8"))["rows"]
    (row,) = [row for row in rows if row["work"] == WORK]
    others = {name: value for name, value in row["peers"].items() if "modularml" not in name}
    fused = {"by hand, fused": row["limit"][1]}
    values = {"modularml": row["ours"], "by hand": 1.0, **fused, **others}
    return dict(sorted(values.items(), key=lambda pair: pair[1]))


def svg() -> str:
    """Return the figure: one bar for each way to train the same model."""
    rows = ratios()
    height = 30 + ROW * len(rows)
    label = "CPU time relative to a hand-written loop: " + ", ".join(
        f"{name} {value:.2f}" for name, value in rows.items()
    )
    bars = [_bar(i, name, value) for i, (name, value) in enumerate(rows.items())]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 400 {height}" role="img" '
        f"aria-label=\"{label}\" font-family=\"system-ui,'Segoe UI','DejaVu Sans',sans-serif\" "
        f'font-size="13" fill="currentColor"><style>{STYLE}</style>\n'
        '<text x="0" y="15">CPU time of training, times a hand-written torch loop</text>'
    )
    return "\n".join([head, *bars, "</svg>", ""])


def _bar(row: int, name: str, value: float) -> str:
    top = 28 + ROW * row
    colour, weight = ("#0b7285", "bold") if name == "modularml" else ("#8a919b", "normal")
    return (
        f'<text x="{LEFT - 8}" y="{top + 14}" text-anchor="end" font-weight="{weight}">'
        f'{name}</text><rect x="{LEFT}" y="{top}" width="{value * SCALE:.1f}" height="18" '
        f'rx="2" fill="{colour}"/>'
        f'<text x="{LEFT + value * SCALE + 6:.1f}" y="{top + 14}" '
        f'font-weight="{weight}">{value:.2f}</text>'
    )


if __name__ == "__main__":
    FIGURE.write_text(svg(), "utf-8")
