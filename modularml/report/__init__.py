"""Reports of results as one HTML file, and model cards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modularml.errors import ConfigError
from modularml.report.collect import loaded_source, report_of
from modularml.report.runs import Options
from modularml.report.write import html_of
from modularml.viz.style import checked_path

__all__ = ["write_report"]


def write_report(
    source: Any,
    path: str | Path,
    *,
    title: str | None = None,
    notes: str = "",
    group_by: str | None = None,
    metrics: Any = None,
    level: float = 0.95,
    **load: Any,
) -> Path:
    """Write a report as one HTML file that needs no network and no script.

    Parameters
    ----------
    source : Experiment, FeatureSet or path
        What is reported. Files of these are loaded.
    path : path-like
        Ends in ``.html``; an existing file is replaced, and the folder must exist.
    title : str, optional
        By default the label of the source.
    notes : str
        Your own introduction.
    group_by : str, optional
        Column of groups, such as a patient: scores are also given for each, and intervals of all
        rows are clustered by it. By default the column that splits keep together.
    metrics : list of str or dict, optional
        See `Experiment.evaluate`.
    level : float
        Of bootstrap intervals, above 0 and below 1.
    **load
        For files: ``custom_objects``, ``allow_import`` and ``allow_packaged_code``; see
        `Experiment.load`.

    Returns
    -------
    Path
        Path of the file.
    """
    target = checked_path(path, (".html",))
    if not 0 < level < 1:
        raise ConfigError(f"level must be between 0 and 1, exclusive, got {level!r}")
    options = Options(notes, group_by, metrics, level)
    found, options = loaded_source(source, options, load)
    text = html_of(report_of(found, options, title))
    target.write_text(text, encoding="utf-8", newline="\n")
    return target
