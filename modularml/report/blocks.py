"""Parts of a report: sections of text, facts, tables, figures and code."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from io import StringIO
from numbers import Integral, Real
from typing import Any, ClassVar, TypeAlias

import numpy as np
import pandas as pd

from modularml._optional import require
from modularml.viz import Diagram
from modularml.viz.style import GRID, INK, MUTED, PAPER, SERIES

MOST_ROWS, MOST_COLUMNS, LONGEST = 60, 24, 240
LONGEST_CODE = 60_000
MISSING = "–"


def shown(value: Any) -> str:
    """Return a value as text: four significant digits, a dash if missing, at most 240 letters."""
    if value is None or (isinstance(value, Real) and math.isnan(value)):
        return MISSING
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, Integral):
        return f"{int(value):,}"
    if isinstance(value, Real):
        return f"{float(value):.4g}"
    if isinstance(value, list | tuple | set):
        return _short(", ".join(map(shown, value)) or MISSING)
    return _short(" ".join(str(value).split()))


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    kind: ClassVar[str] = "facts"
    pairs: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, **facts: Any) -> Facts:
        """Return facts as text; ``_`` in names stands for a space, and None is left out."""
        pairs = ((k.replace("_", " "), shown(v)) for k, v in facts.items() if v is not None)
        return cls(tuple(pairs))


@dataclass(frozen=True)
class Table:
    """Cells as text; numbers are aligned to the right."""

    kind: ClassVar[str] = "table"
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: tuple[bool, ...]
    note: str = ""
    is_folded: bool = False

    @classmethod
    def of_lines(cls, caption: str, lines: list[dict[str, Any]], **options: Any) -> Table:
        """Return dicts as rows, without columns that are empty; see `of`."""
        return cls.of(caption, pd.DataFrame(lines).dropna(axis=1, how="all"), **options)

    @classmethod
    def of(
        cls,
        caption: str,
        frame: pd.DataFrame,
        note: str = "",
        *,
        most: int = MOST_ROWS,
        is_folded: bool = False,
    ) -> Table:
        """Return the first rows and columns of a frame; the note says how many others there are."""
        part = frame.iloc[:most, :MOST_COLUMNS]
        columns = [part.iloc[:, i].tolist() for i in range(part.shape[1])]
        numeric = tuple(_is_numeric(column) for column in columns)
        texts = [_aligned(column) for column in columns]
        notes = [note] if note else []
        limits = (frame.shape[0], most, "rows"), (frame.shape[1], MOST_COLUMNS, "columns")
        for n, limit, axis in limits:
            if n > limit:
                notes.append(f"The first {limit:,} of {n:,} {axis}.")
        names = tuple(_short(str(name)) for name in part.columns)
        rows = tuple(zip(*texts, strict=True))
        return cls(caption, names, rows, numeric, " ".join(notes), is_folded)


def scores_in(sections: Iterable[Section]) -> Iterator[tuple[str, dict[str, tuple[str, str]]]]:
    """Yield what each table of scores is of, and value and interval of all rows by metric."""
    for block in (block for section in sections for block in section.blocks):
        if isinstance(block, Table) and block.caption.startswith("Scores of "):
            cells = dict(zip(block.columns, block.rows[0], strict=True))
            names = [name for name in block.columns[2:] if not name.endswith(" interval")]
            scores = {name: (cells[name], cells[f"{name} interval"]) for name in names}
            yield block.caption.removeprefix("Scores of "), scores


def _is_numeric(column: Sequence[Any]) -> bool:
    known = [v for v in column if v is not None]
    return bool(known) and all(isinstance(v, Real) and not isinstance(v, bool) for v in known)


def decimals(values: Iterable[float]) -> int:
    """Return the decimals that show four significant digits of the largest value."""
    sizes = [abs(v) for v in values if math.isfinite(v) and v]
    return min(max(3 - math.floor(math.log10(max(sizes, default=1.0))), 0), 6)


def _aligned(column: Sequence[Any]) -> list[str]:
    """Return cells as text; decimals in the same number if the sizes are similar."""
    numbers = [float(v) for v in column if isinstance(v, Real) and not isinstance(v, bool)]
    sizes = [abs(v) for v in numbers if math.isfinite(v) and v]
    is_real = _is_numeric(column) and any(isinstance(v, float | np.floating) for v in column)
    if not is_real or not sizes or max(sizes) >= 1e5 * min(sizes) or max(sizes) >= 1e7:
        return [shown(v) for v in column]
    if all(v.is_integer() for v in numbers if math.isfinite(v)):
        return [MISSING if v is None or math.isnan(v) else f"{v:,.0f}" for v in column]
    digits = decimals(sizes)
    return [MISSING if v is None or math.isnan(v) else f"{v:,.{digits}f}" for v in column]


@dataclass(frozen=True)
class Figure:
    """An inline SVG with a title, and a description for screen readers.

    ``@@`` in it stands for a prefix that makes ids unique in a page.
    """

    kind: ClassVar[str] = "figure"
    title: str
    svg: str = field(repr=False)
    is_wide: bool = False
    is_white: bool = False


@dataclass(frozen=True)
class Notes:
    """Remarks, each with a severity: ``error``, ``warning``, ``info`` or ``ok``."""

    kind: ClassVar[str] = "notes"
    items: tuple[tuple[str, str, str], ...]
    """Severity, heading and text."""


@dataclass(frozen=True)
class Code:
    """Text in a fixed-width font that is folded; at most 60,000 letters."""

    kind: ClassVar[str] = "code"
    title: str
    text: str
    is_open: bool = False

    def __post_init__(self) -> None:
        if len(self.text) > LONGEST_CODE:
            cut = f"{self.text[:LONGEST_CODE]}\n… {len(self.text) - LONGEST_CODE:,} more letters"
            object.__setattr__(self, "text", cut)


Block: TypeAlias = Facts | Table | Figure | Notes | Code | str
"""A string is a paragraph."""


@dataclass(frozen=True)
class Section:
    """A heading and blocks; `level` 3 belongs to the section of level 2 before it."""

    title: str
    blocks: tuple[Block, ...]
    level: int = 2

    @property
    def slug(self) -> str:
        """The title as part of an address."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-") or "section"


@dataclass(frozen=True)
class Report:
    """A report before it is written.

    Parameters
    ----------
    title, kind : str
    headline : sequence of (str, str, str)
        The most important figures: name, value and interval.
    sections : sequence of Section
    """

    title: str
    kind: str
    headline: tuple[tuple[str, str, str], ...]
    sections: tuple[Section, ...]

    def figures(self) -> Iterable[Figure]:
        """Iterate over all figures."""
        return (b for s in self.sections for b in s.blocks if isinstance(b, Figure))


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

    def in_page(tag: re.Match[str]) -> str:  # its fonts and colours; no ids that nothing refers to
        text = tag[0].replace("'DejaVu Sans'", "var(--sans)")
        for colour, name in _THEME.items() if is_themed else ():
            text = re.sub(f": {colour}", f": var({name})", text, flags=re.IGNORECASE)
        text = _NAMED.sub(lambda m: f'id="@@{m[1]}"' if m[1] in used else "", text)
        return _USED.sub(r"\1@@\2", text).replace(" >", ">")

    svg = re.sub(r"<[^>]+>", in_page, svg)
    box, width = re.findall(r'(viewBox="[^"]*?([\d.]+) [\d.]+")', svg)[0]
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'{box} {_LABELLED} style="width: {float(width) * 1.25:.0f}px">'
    )
    svg = re.sub(r"<svg[^>]*>", opening, svg, count=1)
    svg = _with_texts(re.sub(r"\s*\n\s*", "\n", svg), title, description)
    return Figure(title, svg, is_white=not is_themed)


def from_diagram(diagram: Diagram, title: str) -> Figure:
    """Return a diagram as inline SVG, described by its listing."""
    svg = replace(diagram, title="").to_svg()
    width = re.findall(r'width="([\d.]+)"', svg)[0]
    named = f'{_LABELLED} style="min-width: min({width}px, 34rem)"'
    svg = re.sub(r'role="img" aria-label="[^"]*"', named, svg, count=1)
    return Figure(title, _with_texts(svg, title, diagram.to_text()), is_wide=True)


_LABELLED = 'role="img" aria-labelledby="@@title" aria-describedby="@@description"'


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
