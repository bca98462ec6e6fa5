"""Model cards in Markdown, with the fields of Hugging Face."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from modularml._optional import require
from modularml.report.blocks import MISSING, Report, Section, Table
from modularml.report.write import render

__all__ = ["ABOUT", "card_of"]

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
    for table in _score_tables(report):
        cells = dict(zip(table.columns, table.rows[0], strict=True))
        metrics = []
        for name in table.columns[2:]:
            if name.endswith(" interval") or cells[name] == MISSING:
                continue
            bounds = cells[f"{name} interval"]
            shown = name if bounds == MISSING else f"{name} ({bounds})"
            metrics.append(
                {"type": name, "name": shown, "value": float(cells[name].replace(",", ""))}
            )
            names[name] = None
        if "accuracy" in cells:
            task = "tabular-classification"
        rows = table.caption.removeprefix("Scores of ")
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


def _score_tables(report: Report) -> list[Table]:
    blocks = [block for section in report.sections for block in section.blocks]
    return [b for b in blocks if isinstance(b, Table) and b.caption.startswith("Scores of ")]
