"""Inline plots of findings."""

from __future__ import annotations

import numpy as np

from modularml._typing import Array

__all__ = ["pair_of_rows", "scatter"]

WIDTH, HEIGHT, POINTS = 150, 70, 120


def scatter(x: Array, y: Array) -> str:
    """Draw y against x, 120 points at most.

    Parameters
    ----------
    x, y : ndarray, shape (n,)
    """
    some = np.linspace(0, len(x) - 1, min(len(x), POINTS)).astype(int)
    dots = "".join(
        f'<circle cx="{a:.0f}" cy="{b:.0f}" r="1.5"/>'
        for a, b in zip(_to(x[some], WIDTH), HEIGHT - _to(y[some], HEIGHT), strict=True)
    )
    return _svg(f'<g fill="#2a6f97">{dots}</g>')


def pair_of_rows(one: Array, other: Array) -> str:
    """Draw two rows over each other, each from its lowest to its highest value.

    Parameters
    ----------
    one, other : ndarray, shape (d,)
    """
    lines = ""
    for row, colour, width in ((one, "#e07a5f", 4), (other, "#2a6f97", 1.5)):
        some = np.linspace(0, len(row) - 1, min(len(row), POINTS)).astype(int)
        x = np.linspace(3, WIDTH - 3, len(some))
        points = " ".join(
            f"{a:.0f},{b:.0f}" for a, b in zip(x, HEIGHT - _to(row[some], HEIGHT), strict=True)
        )
        style = f'fill="none" stroke="{colour}" stroke-width="{width}"'
        lines += f'<polyline points="{points}" {style}/>'
    return _svg(lines)


def _to(values: Array, size: int) -> Array:
    """Return values from 3 to size - 3."""
    values = np.nan_to_num(values.astype(float))
    low, high = values.min(), values.max()
    scaled: Array = 3 + (values - low) / ((high - low) or 1.0) * (size - 6)
    return scaled


def _svg(content: str) -> str:
    return f'<svg width="{WIDTH}" height="{HEIGHT}" role="img">{content}</svg>'
