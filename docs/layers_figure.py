"""Draw the layers of the package, from pyproject.toml, and the way of data through them."""

import html
import tomllib
from pathlib import Path

STEPS = {
    "data": "1",
    "graph": "2",
    "phases": "3",
    "engine": "4",
    "results": "5",
    "experiment": "6",
}
"""Numbers of the steps that the text below the picture explains."""

WIDTH, LINE, PAD = 340, 17, 7
CHARACTERS = 36
STYLE = (
    ".layers text{font:12px system-ui,sans-serif;fill:var(--pst-color-text-base,#222)}"
    ".layers rect{fill:var(--pst-color-surface,#f3f4f5);stroke:var(--pst-color-border,#888)}"
    ".layers circle{fill:var(--pst-color-primary,#0a6c78)}"
    ".layers .step{fill:var(--pst-color-background,#fff);font-weight:700;text-anchor:middle}"
    ".layers path{stroke:var(--pst-color-primary,#0a6c78);fill:none;stroke-width:1.5}"
    ".layers .small{font-size:11px}.layers .end{text-anchor:end}"
)


def layers(pyproject: Path) -> list[list[str]]:
    """Return the public names of each layer, the highest first."""
    contracts = tomllib.loads(pyproject.read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    rows = next(contract["layers"] for contract in contracts if contract["id"] == "layers")
    bare = [[name.strip(" ()") for name in row.replace("|", ":").split(":")] for row in rows]
    return [shown for row in bare if (shown := [name for name in row if name[:1] != "_"])]


def write(pyproject: Path, path: Path) -> None:
    """Write the picture as SVG that takes its colours from the page."""
    parts, y, marks = [], 22, []
    for names in layers(pyproject):
        lines = _wrapped(names)
        height = LINE * len(lines) + PAD
        parts.append(f'<rect x="24" y="{y}" width="{WIDTH - 64}" height="{height}" rx="4"/>')
        parts += [
            f'<text x="34" y="{y + 15 + LINE * i}">{html.escape(line)}</text>'
            for i, line in enumerate(lines)
        ]
        number = next((STEPS[name] for name in names if name in STEPS), None)
        if number:
            marks.append((number, y + height / 2))
        y += height + 5
    x = WIDTH - 20
    parts.append(f'<path d="M{x},{marks[-1][1]:.0f} V{marks[0][1]:.0f}"/>')
    for number, at in marks:
        parts.append(f'<circle cx="{x}" cy="{at:.0f}" r="10"/>')
        parts.append(f'<text class="step" x="{x}" y="{at + 4:.0f}">{number}</text>')
    parts.append(f'<path d="M10,26 V{y - 8} M5,{y - 15} L10,{y - 8} L15,{y - 15}"/>')
    parts.append('<text class="small" x="4" y="14">imports go down</text>')
    parts.append(
        f'<text class="small" x="{WIDTH - 4}" y="14" text-anchor="end">data goes 1 to 6</text>'
    )
    title = "The layers of the package, the highest first, with the way of data from 1 to 6"
    path.write_text(
        f'<svg class="layers" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" '
        f'role="img" aria-label="{title}" style="width:100%;max-width:30rem;height:auto">'
        f"<style>{STYLE}</style>{''.join(parts)}</svg>\n",
        "utf-8",
    )


def _wrapped(names: list[str]) -> list[str]:
    lines = [""]
    for name in names:
        joined = f"{lines[-1]}, {name}" if lines[-1] else name
        if len(joined) > CHARACTERS:
            lines.append(name)
        else:
            lines[-1] = joined
    return lines
