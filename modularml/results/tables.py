"""Tables that can draw what they were computed from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from modularml._arguments import at_least
from modularml.errors import ConfigError, UnknownNameError
from modularml.results.plots import ComparedRows, plot_rows
from modularml.viz.curves import bars
from modularml.viz.style import plain

__all__ = ["ImportanceTable", "ScoreTable"]


class ScoreTable(pd.DataFrame):
    """Scores of rows, with a plot of these rows.

    Selections and copies are ordinary frames, without it; the plots of pandas are those of
    ``pandas.DataFrame(table)``.
    """

    @classmethod
    def of(cls, table: pd.DataFrame, rows: Mapping[str, ComparedRows], **how: Any) -> ScoreTable:
        """Return a table with the rows of each node, and options of its plots."""
        new = cls(table)
        object.__setattr__(new, "_drawn", (dict(rows), how))
        return new

    @property
    def _rows(self) -> dict[str, ComparedRows]:
        """The rows of each node that was scored; empty if they are not here."""
        rows: dict[str, ComparedRows] = self.__dict__.get("_drawn", ({},))[0]
        return rows

    @property
    def _unit(self) -> str:
        """Unit of the targets; "" if they have several, or it is unknown."""
        units = {unit for part in self._rows.values() for unit in part.targets.values()}
        return units.pop() if len(units) == 1 else ""

    def plot(  # type: ignore[override]
        self, kind: str | None = None, *, node: Any = None, path: Any = None, **options: Any
    ) -> Any:
        """Draw outputs against targets of the evaluated rows, in original units.

        Parameters
        ----------
        kind : str, optional
            ``parity`` or ``residuals`` of numbers; ``confusion``, ``roc``, ``precision_recall`` or
            ``calibration`` of classes.
        node : GraphNode or str, optional
            Which node, if several were evaluated.
        path : path-like, optional
            Where to save the figure.
        **options
            See `EvalResults.plot`. Replicates are reduced as for the scores.

        Raises
        ------
        ConfigError
            If the table was computed from scaled values (``unscale=False``), or read from a file.
        UnknownNameError
            If there is no such kind, option, column or node.
        """
        rows, how = self.__dict__.get("_drawn", ({}, {}))
        if not rows:
            raise ConfigError(
                "this table has no rows to draw: they are drawn by the table that evaluate() "
                "returned, with unscale=True; call it again"
            )
        name = getattr(node, "label", node)
        if name is None and len(rows) > 1:
            raise ConfigError(f"several nodes were evaluated, pass node= one of {list(rows)}")
        if name is not None and name not in rows:
            raise UnknownNameError("node", name, rows)
        return plot_rows(rows[name or next(iter(rows))], kind, path=path, **(how | options))


class ImportanceTable(pd.DataFrame):
    """Importances of features, with a plot of them; see `ScoreTable`."""

    def plot(  # type: ignore[override]
        self, *, n_largest: int = 30, title: str = "", path: Any = None
    ) -> Any:
        """Draw the importances as bars, largest on top, with the value of each permutation.

        Parameters
        ----------
        n_largest : int
            How many are drawn.
        title : str
        path : path-like, optional
            Where to save the figure.
        """
        at_least(1, n_largest=n_largest)
        shown = self.sort_values("mean", ascending=False, kind="stable").head(n_largest)
        parts = zip(shown["column"], shown["element"], shown["values"], strict=True)
        values = {c if pd.isna(e) else f"{c}[{e}]": drops for c, e, drops in parts}
        label = plain(self.attrs["label"])
        if len(self) > len(shown):
            label += f"\n{len(shown)} largest of {len(self)}"
        return bars(values, x=label, title=title, path=path)
