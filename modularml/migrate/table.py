"""Names of ModularML 1.0, and what they are called here."""

from __future__ import annotations

import importlib
from functools import cache

__all__ = ["names", "place_of", "public_names"]

PACKAGES = ("core", "utils", "api", "transforms")
"""Packages of 1.0 below ``modularml`` that do not exist here."""

MODULES = (
    "modularml",
    "modularml.data",
    "modularml.splitters",
    "modularml.predicates",
    "modularml.scalers",
    "modularml.samplers",
    "modularml.models",
    "modularml.graph",
    "modularml.callbacks",
    "modularml.strategies",
    "modularml.results",
    "modularml.audit",
    "modularml.plotting",
    "modularml.io",
    "modularml.errors",
)
"""Modules with public names, in the order in which a name is looked up; none loads a framework."""

ATTRIBUTES = {
    "modularml.callbacks:EvaluationCallbackResult": {"eval_results": "results"},
    "modularml.callbacks:MetricResult": {"metric_name": "name", "metric_value": "value"},
    "modularml.callbacks:ArtifactResult": {"artifact_name": "name", "artifact": "value"},
    "modularml.results:MetricEntry": {"epoch_idx": "epoch"},
}
"""Attributes by class, and what they are called here."""

METHODS = {
    "modularml.graph:GraphNode": {"get_upstream_refs()": "upstream_refs"},
    "modularml.graph:ConcatNode": {"build(shapes)": "build_from(shapes, None)"},
    "modularml.samplers:BaseSampler": {"build_samples()": "materialize_batches()"},
    "modularml.predicates:Predicate": {"to_dict()": "get_config()"},
}
"""Methods by class, and what is called or read here."""

NO_EFFECT = "no effect: "
_PAIRS = {"n_workers": f"{NO_EFFECT}the search for pairs is vectorised, in one process"}
ARGUMENTS = {
    "modularml.callbacks:MetricResult": ATTRIBUTES["modularml.callbacks:MetricResult"],
    "modularml.callbacks:ArtifactResult": ATTRIBUTES["modularml.callbacks:ArtifactResult"],
    "modularml.samplers:PairedSampler": _PAIRS,
    "modularml.samplers:TripletSampler": _PAIRS,
    "modularml:ResultsConfig": {
        "save_*": f"{NO_EFFECT}phases record by result_recording=, save(results=) stores it"
    },
}
"""Keyword arguments by class, and what they are called here; ``*`` stands for any ending."""


def names() -> dict[str, str]:
    """Return the names of ModularML 1.0 that are called otherwise here, and the new names.

    Modules of its packages are not listed one by one: a class is looked up by its name alone, and
    ``*`` stands for any module.

    Examples
    --------
    >>> names()["modularml.core.*.PairedSampler"]
    'modularml.PairedSampler'
    >>> names()["EvaluationCallbackResult.eval_results"]
    'EvaluationCallbackResult.results'
    """
    table = {f"modularml.{p}.*.{name}": at for name, at in _places().items() for p in PACKAGES}
    for by_class in (ATTRIBUTES, METHODS):
        for where, renamed in by_class.items():
            cls = where.partition(":")[2]
            table |= {f"{cls}.{old}": f"{cls}.{new}" for old, new in renamed.items()}
    for where, renamed in ARGUMENTS.items():
        cls = where.partition(":")[2]
        table |= {
            f"{cls}({old}=)": new if new.startswith(NO_EFFECT) else f"{cls}({new}=)"
            for old, new in renamed.items()
        }
    return table


def place_of(name: str) -> str | None:
    """Return where a public name is to be imported from: ``modularml.samplers.BaseSampler``."""
    return _places().get(name)


def public_names() -> list[str]:
    """Return every public name, without its module."""
    return list(_places())


@cache
def _places() -> dict[str, str]:
    """Return the module that each public name is imported from, the first in `MODULES`."""
    places: dict[str, str] = {}
    for module in MODULES:
        for name in importlib.import_module(module).__all__:
            if name[:1].isupper() or "_" in name:
                places.setdefault(name, f"{module}.{name}")
    return places
