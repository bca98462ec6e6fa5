"""Write one reference page for each public module, from the module's own ``__all__``.

An object is described once, where it is shortest to import: names that ``modularml`` itself
offers stand on its page, and the other modules list only what is theirs alone.
"""

import importlib
import importlib.util
import inspect
import shutil
from pathlib import Path
from types import ModuleType

MODULES = [
    "modularml",
    "modularml.data",
    "modularml.audit",
    "modularml.splitters",
    "modularml.predicates",
    "modularml.scalers",
    "modularml.samplers",
    "modularml.models",
    "modularml.models.torch",
    "modularml.models.tensorflow",
    "modularml.graph",
    "modularml.callbacks",
    "modularml.strategies",
    "modularml.tracking",
    "modularml.space",
    "modularml.sklearn",
    "modularml.results",
    "modularml.io",
    "modularml.plotting",
    "modularml.report",
    "modularml.streams",
    "modularml.loop",
    "modularml.runner",
    "modularml.migrate",
    "modularml.errors",
]

HEADINGS = {"classes": inspect.isclass, "functions": inspect.isroutine}


def write(folder: Path) -> None:
    """Write the pages of all public modules that exist, and the list of them."""
    shutil.rmtree(folder, ignore_errors=True)  # pages of names that are gone must go too
    folder.mkdir(parents=True)
    seen: set[int] = set()
    names = [name for name in MODULES if _page(name, folder, seen)]
    toc = "\n".join(f"   {name}" for name in names)
    (folder / "index.rst").write_text(f"Modules\n=======\n\n.. toctree::\n\n{toc}\n", "utf-8")


def _page(name: str, folder: Path, seen: set[int]) -> bool:
    if not _exists(name):
        return False
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        if error.name and error.name.split(".")[0] != "modularml":
            return False  # the framework that this module is about is not installed
        raise
    members = {key: getattr(module, key) for key in getattr(module, "__all__", [])}
    members = {k: v for k, v in members.items() if not inspect.ismodule(v) and _is_ours(v)}
    own = [key for key, value in members.items() if id(value) not in seen]
    seen.update(id(value) for value in members.values())
    also = sorted(set(members) - set(own))
    (folder / f"{name}.rst").write_text(_text(module, own, also), "utf-8")
    return True


def _exists(name: str) -> bool:
    parent, _, _ = name.rpartition(".")
    return (not parent or _exists(parent)) and importlib.util.find_spec(name) is not None


def _is_ours(value: object) -> bool:
    """Leave out what is only passed through, such as the scalers of scikit-learn."""
    return getattr(value, "__module__", "modularml").startswith("modularml")


def _text(module: ModuleType, own: list[str], also: list[str]) -> str:
    name = module.__name__
    parts = [name, "=" * len(name), "", f".. automodule:: {name}", "   :no-members:", ""]
    parts += [f".. currentmodule:: {name}", ""]
    left = list(own)
    for heading, is_kind in HEADINGS.items():
        rows = [key for key in left if is_kind(getattr(module, key))]
        left = [key for key in left if key not in rows]
        parts += _table(heading.capitalize(), rows)
    parts += _table("Other names", left)
    if also:
        parts += ["", "Also here: " + ", ".join(f"``{key}``" for key in also) + ".", ""]
    return "\n".join(parts)


def _table(heading: str, rows: list[str]) -> list[str]:
    if not rows:
        return []
    lines = [f"   {row}" for row in rows]
    options = ["   :toctree: generated", "   :nosignatures:"]
    return ["", f".. rubric:: {heading}", "", ".. autosummary::", *options, "", *lines, ""]
