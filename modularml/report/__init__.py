"""Reports of results as one HTML file, and model cards."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from modularml._optional import loaded, require
from modularml.errors import UnknownNameError
from modularml.experiment import Experiment
from modularml.report.blocks import MISSING, Code, Report, Section, scores_in
from modularml.report.many_runs import loaded_source, report_of
from modularml.report.one_run import Options
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
        card = Code("The model card as Markdown", card_of(report, {}, _file(source)))
        report = replace(report, sections=(*report.sections, Section("Model card", (card,))))
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


ABOUT = (
    "description",
    "developers",
    "license",
    "contact",
    "intended_use",
    "out_of_scope",
    "limitations",
)
"""What only the author can say."""


def card_of(report: Report, about: Mapping[str, str], file: str = "experiment.exp.mml") -> str:
    """Return a model card of the sections of an experiment's report."""

    def chosen(titles: Sequence[str]) -> Iterator[Section]:
        inside = False
        for section in report.sections:
            inside = section.title in titles if section.level == 2 else inside
            if inside:
                yield section

    front = require("yaml").safe_dump(
        _front_matter(report, about), sort_keys=False, allow_unicode=True, width=1000
    )
    stated = {name: about.get(name, "") for name in ABOUT}
    return render(
        "card.md", report=report, about=stated, front=front, chosen=chosen, file=repr(file)
    )


def _front_matter(report: Report, about: Mapping[str, str]) -> dict[str, Any]:
    """Return what the hub reads; see https://huggingface.co/docs/hub/model-cards."""
    results, names = [], dict[str, None]()
    task = "tabular-regression"
    for rows, scores in scores_in(report.sections):
        known = {name: pair for name, pair in scores.items() if pair[0] != MISSING}
        metrics = []
        for name, (value, bounds) in known.items():
            shown = name if bounds == MISSING else f"{name} ({bounds})"
            metrics.append({"type": name, "name": shown, "value": float(value.replace(",", ""))})
        names |= dict.fromkeys(known)
        if "accuracy" in scores:
            task = "tabular-classification"
        data = {"type": "modularml", "name": rows}
        results.append({"task": {"type": task}, "dataset": data, "metrics": metrics})
    front: dict[str, Any] = {"library_name": "modularml", "model_name": report.title}
    if about.get("license"):
        front["license"] = about["license"]
    front["tags"] = ["modularml", task]
    if results:
        front["metrics"] = list(names)
        front["model-index"] = [{"name": report.title, "results": results}]
    return front


@functools.cache
def _environment() -> Any:
    jinja2 = require("jinja2", purpose="to write reports")
    made = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        autoescape=lambda name: not str(name).endswith(".md"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["md"] = in_markdown
    return made


def in_markdown(text: str) -> str:
    """Return a text with the marks of Markdown and HTML escaped, in one line."""
    plain = " ".join(escape(str(text), quote=False).split())
    return re.sub(r"([\\`*_\[\]|~#$])", r"\\\1", plain)


def _template(name: str) -> str:
    return resources.files("modularml.report").joinpath("templates", name).read_text("utf-8")


def render(template: str, **values: Any) -> str:
    """Fill a template; values are escaped for HTML, in Markdown by the filter ``md``."""
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    version = getattr(loaded("modularml"), "__version__", "")
    text: str = _environment().get_template(template).render(date=today, version=version, **values)
    return text


def html_of(report: Report) -> str:
    """Return a report as one HTML page."""
    markup = require("markupsafe").Markup
    drawings: Mapping[Any, Any] = {
        figure: markup(figure.svg.replace("@@", f"f{i}-"))
        for i, figure in enumerate(report.figures())
    }
    slugs: list[str] = []
    for section in report.sections:
        n = sum(s.partition("--")[0] == section.slug for s in slugs)
        slugs.append(f"{section.slug}--{n + 1}" if n else section.slug)
    style = markup(_template("style.css"))
    return render("report.html", report=report, drawings=drawings, slugs=slugs, style=style)
