"""Figures as inline SVG, in the colours of the page and with text for screen readers."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from html import escape
from io import StringIO
from typing import Any

import numpy as np

from modularml._optional import require
from modularml.report.blocks import Figure, shown
from modularml.viz import Diagram
from modularml.viz.style import GRID, INK, MUTED, PAPER, SERIES

__all__ = ["from_diagram", "from_matplotlib", "in_words"]

_NAMED = re.compile(r'\bid="([^"]+)"')
_USED = re.compile(r'(url\(#|href="#)([^")]+)')
_THEME = {
    INK: "--fig-ink",
    PAPER: "--fig-paper",
    MUTED: "--fig-muted",
    GRID: "--fig-grid",
    **{colour: f"--series-{i}" for i, colour in enumerate(SERIES)},
}
"""Custom properties of the page by colour."""


def from_matplotlib(figure: Any, title: str, description: str, *, is_themed: bool = True) -> Figure:
    """Return a matplotlib figure as inline SVG.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
    title, description : str
        For the caption, and for screen readers.
    is_themed : bool
        Whether the colours follow the page, which may be dark; else the figure stays white.
    """
    buffer = StringIO()
    options = {"svg.fonttype": "none", "svg.hashsalt": "modularml"}
    with require("matplotlib", purpose="to draw figures").rc_context(options):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, facecolor=PAPER)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    used = {name for _, name in _USED.findall(svg)}
    svg = re.sub(r"<[^>]+>", lambda tag: _rewritten(tag[0], used, is_themed), svg)
    box, width = re.findall(r'(viewBox="[^"]*?([\d.]+) [\d.]+")', svg)[0]
    svg = re.sub(r"<svg[^>]*>", _opening(box, float(width) * 1.25), svg, count=1)
    svg = _with_texts(re.sub(r"\s*\n\s*", "\n", svg), title, description)
    return Figure(title, svg, is_white=not is_themed)


def _rewritten(tag: str, used: Collection[str], is_themed: bool) -> str:
    """Return a tag with fonts and colours of the page, and without ids that nothing refers to."""
    tag = tag.replace("'DejaVu Sans'", "var(--sans)")
    for colour, name in _THEME.items() if is_themed else ():
        tag = re.sub(f": {colour}", f": var({name})", tag, flags=re.IGNORECASE)
    tag = _NAMED.sub(lambda m: f'id="@@{m[1]}"' if m[1] in used else "", tag)
    return _USED.sub(r"\1@@\2", tag).replace(" >", ">")


def from_diagram(diagram: Diagram, title: str) -> Figure:
    """Return a diagram as inline SVG, described by its listing."""
    svg = replace(diagram, title="").to_svg()
    width = re.findall(r'width="([\d.]+)"', svg)[0]
    named = f'{_LABELLED} style="min-width: min({width}px, 34rem)"'
    svg = re.sub(r'role="img" aria-label="[^"]*"', named, svg, count=1)
    return Figure(title, _with_texts(svg, title, diagram.to_text()), is_wide=True)


_LABELLED = 'role="img" aria-labelledby="@@title" aria-describedby="@@description"'


def _opening(box: str, width: float) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'{box} {_LABELLED} style="width: {width:.0f}px">'
    )


def _with_texts(svg: str, title: str, description: str) -> str:
    texts = (
        f'<title id="@@title">{escape(title)}</title>'
        f'<desc id="@@description">{escape(description)}</desc>'
    )
    head, bracket, rest = svg.partition(">")
    return head + bracket + texts + rest


def in_words(curves: Mapping[str, tuple[Any, Any]], axis: str) -> str:
    """Return where each curve starts, ends and is lowest and highest; of ten curves at most."""
    lines = []
    for name, (places, values) in list(curves.items())[:10]:
        numbers = np.asarray(values, dtype=float)
        finite = np.flatnonzero(np.isfinite(numbers))
        if not len(finite):
            lines.append(f"{name}: no finite value")
            continue
        ends = {
            "first": finite[0],
            "lowest": finite[numbers[finite].argmin()],
            "highest": finite[numbers[finite].argmax()],
            "last": finite[-1],
        }
        facts = [f"{k} {shown(numbers[i])} at {axis} {shown(places[i])}" for k, i in ends.items()]
        lines.append(f"{name}: {', '.join(facts)}")
    rest = len(curves) - len(lines)
    return "; ".join(lines) + (f"; and {rest} more curves" if rest > 0 else "") + "."
