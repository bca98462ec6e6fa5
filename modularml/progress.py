"""Progress bars by tqdm, in a notebook and in a terminal, and lines on standard output."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Any

from modularml._optional import has, require

__all__ = [
    "IN_NOTEBOOK",
    "NO_BAR",
    "Bar",
    "bar",
    "in_ipython",
    "in_notebook",
    "leave_stdout",
    "print_line",
    "tqdm_class",
]


def _shell() -> Any:
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython is not None else None


def in_ipython() -> bool:
    """Tell whether this runs in IPython: in a notebook or a terminal."""
    return _shell() is not None


def in_notebook() -> bool:
    """Tell whether this runs in a notebook."""
    return type(_shell()).__name__ == "ZMQInteractiveShell"


IN_NOTEBOOK: bool = in_notebook()


PACE = 0.1  # seconds between two drawings


class Bar:
    """A bar that may be absent: every method is safe to call.

    Parameters
    ----------
    make : callable, optional
        Makes the bar of tqdm; None for no bar.
    total : int, optional
        Number of steps, None where unknown.
    label : str
        Text in front of the bar.
    delay : float
        Seconds before the bar is made; what is done by then makes none.
    """

    __slots__ = ("_behind", "_delay", "_due", "_label", "_make", "_total", "_tqdm")

    def __init__(
        self,
        make: Callable[..., Any] | None = None,
        total: int | None = None,
        label: str = "",
        delay: float = 0.0,
    ) -> None:
        self._make, self._delay, self._behind = make, delay, 0
        self._tqdm: Any = None
        self.restart(total, label)

    def __bool__(self) -> bool:
        return self._make is not None

    def update(self, n: int = 1) -> None:
        """Advance by `n`; redrawn at most ten times a second."""
        if self._make is None:
            return
        self._behind += n
        if monotonic() >= self._due:
            self._draw()

    def _draw(self) -> None:
        try:
            if self._tqdm is None and self._make is not None:
                self._tqdm = self._make(self._behind, total=self._total, desc=self._label)
                self._behind = 0
            if self._tqdm is not None:
                self._tqdm.update(self._behind)
        except OSError:  # the terminal is gone, and the run goes on
            if self._tqdm is not None:
                self._tqdm.disable = True
            self._make = self._tqdm = None
        self._behind, self._due = 0, monotonic() + PACE

    def show(self, **values: float | None) -> None:
        """Show numbers beside the bar at its next drawing; None is left out."""
        if self._tqdm is not None:
            shown = {name: f"{value:.4g}" for name, value in values.items() if value is not None}
            self._tqdm.set_postfix(shown, refresh=False)

    def restart(self, total: int | None = None, label: str = "") -> None:
        """Start again from zero; a bar that was made is used again."""
        self._total, self._label, self._behind = total, label, 0
        self._due = monotonic() + (PACE if self._tqdm is not None else self._delay)
        if self._tqdm is not None:
            self._tqdm.set_description(label, refresh=False)
            with suppress(OSError):
                self._tqdm.reset(total=total)
        elif not self._delay:
            self._draw()

    def finish(self) -> None:
        """Draw the bar as far as it has come, where it was made."""
        if self._tqdm is not None:
            self._draw()

    def close(self) -> None:
        """End the bar."""
        self.finish()
        if self._tqdm is not None:
            with suppress(OSError):
                self._tqdm.close()


NO_BAR = Bar()
"""Draws nothing."""


def tqdm_class() -> Any:
    """Return the class of bars that draws best here; tqdm is imported now."""
    return require("tqdm.auto" if not IN_NOTEBOOK or has("ipywidgets") else "tqdm.std").tqdm


def print_line(line: str) -> None:
    """Print a line now; characters that cannot be encoded are escaped.

    A pipe that nobody reads any more, as after ``| head``, is no error.
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        print(line.encode(encoding, "backslashreplace").decode(encoding), flush=True)  # noqa: T201
    except BrokenPipeError:
        leave_stdout()


def leave_stdout() -> None:
    """Write nothing more to a pipe that is closed, not even when Python exits."""
    with suppress(OSError, ValueError):  # no real stream, as in tests
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def bar(
    total: int | None,
    label: str,
    *,
    show: bool,
    persist: bool = False,
    unit: str = "it",
    initial: int = 0,
    delay: float = 0.0,
) -> Iterator[Bar]:
    """Open a progress bar for a ``with`` block.

    Parameters
    ----------
    total : int or None
        Number of steps, None where unknown.
    label : str
        Text in front of the bar.
    show : bool
        Whether to draw at all; tqdm is not imported otherwise. Nothing is drawn where errors go to
        neither a terminal nor a notebook.
    persist : bool
        Whether the bar stays on the screen when it is done.
    unit : str
        What is counted.
    initial : int
        Steps that were done before.
    delay : float
        Seconds before the bar appears; what is done by then draws none.

    Notes
    -----
    A notebook without ipywidgets cannot draw one bar below another: only the outermost is drawn.
    """
    if not show or not (IN_NOTEBOOK or getattr(sys.stderr, "isatty", bool)()):
        yield NO_BAR
        return
    plain = IN_NOTEBOOK and not has("ipywidgets")
    own: list[Any] = []

    def make(done: int, **facts: Any) -> Any:
        if plain and _drawn:
            return None
        pace = {"mininterval": 0, "miniters": 1}  # ours
        made = tqdm_class()(leave=persist, unit=unit, **pace, **facts, initial=initial + done)
        _drawn.append(made)
        own.append(made)
        return made

    drawn = Bar(make, total, label, delay)
    try:
        yield drawn
    finally:
        drawn.close()
        _drawn[:] = [made for made in _drawn if all(made is not one for one in own)]


_drawn: list[Any] = []
"""Bars that are on the screen now, the outermost first."""
