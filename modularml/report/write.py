"""Writing of reports and model cards."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from importlib import resources
from typing import Any

from modularml._optional import loaded, require
from modularml.report.blocks import MISSING, Report, Section, scores_in

__all__ = ["ABOUT", "card_of", "html_of", "render"]


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
