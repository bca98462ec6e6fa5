"""Draw ``concepts.svg``, the parts of an experiment: ``python docs/images/concepts.py``.

The picture is 344 wide, so that its text keeps its size on a phone, and has a background of its
own, so that it reads alike on light and dark pages.
"""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

WIDTH, LEFT, INNER = 344, 12, 320
FONT = "system-ui,-apple-system,'Segoe UI','DejaVu Sans',Helvetica,Arial,sans-serif"
INK, SOFT, LINE = "#1F2933", "#52606D", "#7B8794"

# title, lines below it, fill, and the words beside the arrow to the next box
BOXES = [
    ("files, data frames, arrays", ["CSV, Parquet, pandas, polars, numpy"], "#FFFFFF", "read once"),
    (
        "FeatureSet",
        [
            "columns: features, targets, tags",
            "splits: train, val, test, folds",
            "scalers: learn from training rows",
            "audit: looks for leaks",
        ],
        "#DCEBFA",
        "references to columns",
    ),
    (
        "ModelGraph",
        [
            "nodes: torch, Keras, scikit-learn",
            "merges where branches meet",
            "optimizer: Adam, SGD, ...",
        ],
        "#DDF3E4",
        "belongs to",
    ),
    (
        "Experiment",
        [
            "a plan of phases, and a history of runs",
            "FitPhase: fits scikit-learn nodes",
            "TrainPhase: sampler, losses, epochs,",
            "callbacks such as EarlyStopping",
            "EvalPhase: losses, metrics, outputs",
        ],
        "#FDEBD3",
        "each run gives",
    ),
    (
        "results",
        ["curves, scores by group, predictions", "report, one .mml file, ONNX"],
        "#FFFFFF",
        None,
    ),
]
MANY = [
    "CrossValidation: folds",
    "Ensemble: members (seeds, bootstrap)",
    "Sweep: trials (settings)",
    "ExperimentCollection: compares, tests",
]


def text(
    x: float, y: float, words: str, *, size: int = 13, fill: str = SOFT, bold: bool = False
) -> str:
    weight = ' font-weight="600"' if bold else ""
    return f'<text x="{x}" y="{y}" font-size="{size}" fill="{fill}"{weight}>{escape(words)}</text>'


def box(
    y: float, title: str, lines: list[str], fill: str, dash: str = ""
) -> tuple[list[str], float]:
    height = 30 + 18 * len(lines)
    shape = (
        f'<rect x="{LEFT}" y="{y}" width="{INNER}" height="{height}" rx="6" fill="{fill}" '
        f'stroke="{LINE}"{dash}/>'
    )
    words = [text(LEFT + 12, y + 21, title, size=15, fill=INK, bold=True)]
    words += [text(LEFT + 12, y + 40 + 18 * i, line) for i, line in enumerate(lines)]
    return [shape, *words], y + height


def picture() -> str:
    parts, y = [], 12.0
    for title, lines, fill, then in BOXES:
        drawn, y = box(y, title, lines, fill)
        parts += drawn
        if then:
            parts.append(
                f'<path d="M40,{y} V{y + 24} M35,{y + 18} L40,{y + 25} L45,{y + 18}" fill="none" '
                f'stroke="{INK}" stroke-width="1.5"/>'
            )
            parts.append(text(54, y + 18, then, size=12))
            y += 26
    drawn, y = box(
        y + 14, "many runs of one experiment", MANY, "#EEE6FA", ' stroke-dasharray="5 3"'
    )
    parts += drawn
    height = y + 12
    words = "From files to a FeatureSet, a ModelGraph, an Experiment and results"
    start = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:g}" '
        f'viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{words}" font-family="{FONT}">'
    )
    ground = f'<rect width="{WIDTH}" height="{height:g}" rx="8" fill="#F7F9FB"/>'
    return "\n".join([start, f"<title>{words}</title>", ground, *parts, "</svg>\n"])


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(picture(), encoding="utf-8")
