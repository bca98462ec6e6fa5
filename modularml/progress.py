"""Progress bars by tqdm, in a notebook and in a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

from modularml._optional import has, require

__all__ = ["IN_NOTEBOOK", "Bar", "bar", "in_notebook", "tqdm_class"]


def in_notebook() -> bool:
    """Tell whether this runs in a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and shell.__class__.__name__ == "ZMQInteractiveShell"


IN_NOTEBOOK: bool = in_notebook()


PACE = 0.1  # seconds between two drawings


class Bar:
    """A bar that may be absent: every method is safe to call.

    Parameters
    ----------
    tqdm : tqdm.tqdm or None
        The bar behind, or None for no bar.
    """

    __slots__ = ("_behind", "_due", "_tqdm")

    def __init__(self, tqdm: Any | None) -> None:
        self._tqdm = tqdm
        self._behind, self._due = 0, monotonic() + PACE

    def __bool__(self) -> bool:
        return self._tqdm is not None

    def update(self, n: int = 1) -> None:
        """Advance by `n`; redrawn at most ten times a second."""
        if self._tqdm is None:
            return
        self._behind += n
        if monotonic() >= self._due:
            self.catch_up()

    def catch_up(self) -> None:
        """Draw the bar as far as it has come."""
        if self._tqdm is not None:
            self._tqdm.update(self._behind)
            self._behind, self._due = 0, monotonic() + PACE

    def show(self, **values: float | None) -> None:
        """Show numbers beside the bar at its next drawing; None is left out."""
        if self._tqdm is not None:
            shown = {name: f"{value:.4g}" for name, value in values.items() if value is not None}
            self._tqdm.set_postfix(shown, refresh=False)

    def restart(self, total: int | None = None) -> None:
        """Start again from zero."""
        if self._tqdm is not None:
            self._behind = 0
            self._tqdm.reset(total=total)


def tqdm_class() -> Any:
    """Return the class of bars that draws best here; tqdm is imported now."""
    return require("tqdm.auto" if not IN_NOTEBOOK or has("ipywidgets") else "tqdm.std").tqdm


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
    """
    if not show or not (IN_NOTEBOOK or getattr(sys.stderr, "isatty", bool)()):
        yield Bar(None)
        return
    options = {"total": total, "desc": label, "leave": persist, "unit": unit, "initial": initial}
    pace = {"mininterval": 0, "miniters": 1, "delay": delay}  # ours
    with tqdm_class()(**options, **pace) as tqdm:
        drawn = Bar(tqdm)
        try:
            yield drawn
        finally:
            drawn.catch_up()
