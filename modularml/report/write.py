"""Writing of reports and model cards."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from html import escape
from importlib import resources
from typing import Any

from modularml._optional import loaded, require
from modularml.report.blocks import Report

__all__ = ["html_of", "render"]


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
