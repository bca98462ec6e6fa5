"""Reports of results as one HTML file, and model cards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modularml.errors import UnknownNameError
from modularml.experiment import Experiment
from modularml.report.many import loaded_source, report_of, with_card
from modularml.report.runs import Options
from modularml.report.write import ABOUT, card_of, html_of
from modularml.results.scores import Meaning
from modularml.viz.style import checked_path

__all__ = ["write_model_card", "write_report"]


def write_report(
    source: Any,
    path: str | Path,
    *,
    title: str | None = None,
    notes: str = "",
    group_by: str | None = None,
    metrics: Any = None,
    level: float = 0.95,
    outputs: Meaning = "auto",
    **load: Any,
) -> Path:
    """Write a report as one HTML file that needs no network and no script.

    Parameters
    ----------
    source : Experiment, CVResults, SweepResults, ExperimentCollection, FeatureSet or path
        What is reported. Files of an experiment or a FeatureSet are loaded.
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
    outputs : {'auto', 'values', 'logits', 'probabilities'}
        What the outputs of nodes are, for scores of classes; see `EvalResults.scores`.
    **load
        For files: ``custom_objects``, ``allow_import`` and ``allow_packaged_code``; see
        `Experiment.load`.

    Returns
    -------
    Path
        Path of the file.

    Raises
    ------
    TypeError
        If `source` is none of these.
    ConfigError
        If the path, the level or the kind of file is not as described.
    MMLError
        If a file cannot be loaded.

    Notes
    -----
    Scores are of recorded evaluations with their outputs. If there are none, each split is
    predicted with the present weights, and the report says which ones were learned from. Everything
    is counted and drawn with a fixed seed: the same source gives the same bytes, but for the date.

    Examples
    --------
    >>> import tempfile
    >>> from modularml import Experiment
    >>> experiment = Experiment("report-example")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = write_report(experiment, f"{folder}/report.html")
    >>> path.name
    'report.html'
    """
    target = checked_path(path, (".html",))
    options = Options(notes, group_by, metrics, level, outputs)
    result, options = loaded_source(source, options, load)
    report = report_of(result, options, title)
    if isinstance(result, Experiment):
        report = with_card(report, {}, _file(source))
    target.write_text(html_of(report), encoding="utf-8", newline="\n")
    return target


def write_model_card(
    source: Experiment | str | Path,
    path: str | Path,
    *,
    title: str | None = None,
    group_by: str | None = None,
    metrics: Any = None,
    level: float = 0.95,
    outputs: Meaning = "auto",
    load: dict[str, Any] | None = None,
    **about: str,
) -> Path:
    """Write a model card in Markdown, with the fields that Hugging Face reads.

    Parameters
    ----------
    source : Experiment or path
    path : path-like
        Ends in ``.md``; an existing file is replaced, and the folder must exist.
    title, group_by, metrics, level, outputs
        See `write_report`.
    load : dict, optional
        Options of `Experiment.load` for a file.
    **about
        What only you can say: ``description``, ``developers``, ``license``, ``contact``,
        ``intended_use``, ``out_of_scope`` and ``limitations``. What is missing is named as such.

    Returns
    -------
    Path
        Path of the file.

    Raises
    ------
    UnknownNameError
        If `about` has another field.
    TypeError
        If `source` is no experiment.

    Examples
    --------
    >>> import tempfile
    >>> from modularml import Experiment
    >>> experiment = Experiment("card-example")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = write_model_card(experiment, f"{folder}/card.md")
    >>> path.name
    'card.md'
    """
    target = checked_path(path, (".md",))
    for name in about:
        if name not in ABOUT:
            raise UnknownNameError("field of a model card", name, ABOUT)
    options = Options("", group_by, metrics, level, outputs)
    result, options = loaded_source(source, options, load or {})
    if not isinstance(result, Experiment):
        raise TypeError(f"a model card is of an experiment, got a {type(result).__name__}")
    text = card_of(report_of(result, options, title), about, _file(source))
    target.write_text(text, encoding="utf-8", newline="\n")
    return target


def _file(source: Any) -> str:
    return Path(source).name if isinstance(source, str | Path) else "experiment.exp.mml"
