"""Write the page of one public name, with the members of a class in the order of their use."""

import enum
import inspect
from functools import cached_property
from typing import Any

from sphinx.pycode import ModuleAnalyzer

CONFIG = ("get_config", "from_config", "get_state", "set_state", "clone", "encoded")
FILES = (
    *("save", "load", "attach", "to_yaml", "from_yaml", "inspect"),
    *("save_checkpoint", "restore_checkpoint"),
)
BASES = {
    "Rows": "Rows and splits",
    "ColumnGetters": "Getters",
    "ExperimentCheckpoints": "Files",
    "ExperimentFiles": "Files",
    "Saveable": "Files",
    "YamlMixin": "Files",
    "ContextYaml": "Files",
    "NodeGraph": "Nodes and edits",
    "GraphSteps": "Building and steps",
}
"""Headings of methods by the class that they are inherited from; of all others, *Methods*."""

MODULES = {
    "modularml.data.featureset_scaling": "Scalers",
    "modularml.data.references": "References",
    "modularml.data.windowing": "Derived sets",
    "modularml.data.featureset_join": "Derived sets",
    "modularml.data.featureset_packing": "Files",
    "modularml.data.featureset_yaml": "Files",
    "modularml.data.table_join": "Rows and splits",
    "modularml.data.display": "Summaries and audits",
    "modularml.data.audit_report": "Summaries and audits",
}
"""Headings of methods by the module that they are defined in."""

ORDER = [
    "Constructors",
    "Methods",
    *dict.fromkeys([*BASES.values(), *MODULES.values()]),
    "Attributes",
    "Config and state",
]
PLUMBING = {"Checked"}


def page(path: str, value: Any, public: list[str]) -> str:
    """Return the RST of the page of an object."""
    module, _, key = path.rpartition(".")
    title = path.removeprefix("modularml.")
    parts = [title, "=" * len(title), "", f".. currentmodule:: {module}", ""]
    if not inspect.isclass(value):
        kind = "function" if inspect.isroutine(value) else "data"
        options = [] if kind == "function" else ["   :no-value:"]
        return "\n".join([*parts, f".. auto{kind}:: {key}", *options, ""])
    kind = "exception" if issubclass(value, BaseException) else "class"
    parts += [f".. auto{kind}:: {key}"]
    if issubclass(value, enum.Enum):
        return "\n".join([*parts, "   :members:", "   :undoc-members:", ""])
    parts += ["   :no-members:", "", *_bases(value, public)]
    for heading, members in sections(value).items():
        parts += [heading, "-" * len(heading), ""]
        for name, directive in members:
            parts += [f".. auto{directive}:: {key}.{name}", ""]
    return "\n".join([*parts, ""])


def _bases(cls: type, public: list[str]) -> list[str]:
    known = {path.rpartition(".")[2]: path for path in public}
    names = [known[base.__name__] for base in cls.__mro__[1:] if base.__name__ in known]
    if not names:
        return []
    return ["Bases: " + ", ".join(f":py:obj:`~{name}`" for name in names) + ".", ""]


def sections(cls: type) -> dict[str, list[tuple[str, str]]]:
    """Return the documented members under their headings, as names and kinds of directives."""
    found: dict[str, list[tuple[str, str]]] = {}
    seen: set[str] = set()
    for owner in cls.__mro__:
        if not owner.__module__.startswith("modularml") or owner.__name__ in PLUMBING:
            continue
        for name, raw in vars(owner).items():
            if name in seen or name.startswith("_"):
                continue
            seen.add(name)
            if directive := _directive(owner, name, raw):
                found.setdefault(_heading(owner, name, raw, directive), []).append(
                    (name, directive)
                )
    return {heading: found[heading] for heading in ORDER if heading in found}


def _directive(owner: type, name: str, raw: Any) -> str:
    """Return the kind of a documented member, or nothing."""
    if not _module(owner, name, raw).startswith("modularml"):
        return ""  # what a framework adds to a class has docs of its own
    if isinstance(raw, property | cached_property):
        return "property" if inspect.getdoc(raw) else ""
    if inspect.isroutine(raw) or isinstance(raw, classmethod | staticmethod):
        return "method" if inspect.getdoc(getattr(owner, name)) else ""
    comments = ModuleAnalyzer.for_module(owner.__module__).find_attr_docs()
    return "attribute" if (owner.__qualname__, name) in comments else ""


def _module(owner: type, name: str, raw: Any) -> str:
    value = getattr(raw, "fget", None) or getattr(raw, "func", None) or raw
    if not inspect.isfunction(value):
        value = getattr(owner, name, None)
    return getattr(value, "__module__", None) or "modularml"


def _heading(owner: type, name: str, raw: Any, directive: str) -> str:
    if name in CONFIG:
        return "Config and state"
    if directive != "method":
        return "Attributes"
    base = MODULES.get(getattr(raw, "__module__", ""), BASES.get(owner.__name__, "Methods"))
    if name in FILES or base == "Files":
        return "Files"
    return "Constructors" if isinstance(raw, classmethod) else base
