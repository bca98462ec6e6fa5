"""Source code packaged with an artifact, which only runs with consent.

This is the only module that runs code from a file, and only with ``allow_packaged_code``. It runs
each source once per process, as a separate module.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import inspect
import linecache
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from modularml.errors import MMLError
from modularml.io import limits
from modularml.io.archive import Archive, open_archive
from modularml.io.names import find_file, member_stem

MAX_CODE = 2**20
_FOLDER = "code/"


def sources_of(classes: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """Return manifest entries of classes, and their sources as members.

    A module is packaged completely; of a script, its imports, definitions and plain constants.

    Raises
    ------
    MMLError
        If a source cannot be read, or is larger than 1 MiB.
    """
    members: dict[str, bytes] = {}
    by_module: dict[str, str] = {}
    taken: set[str] = set()
    for name in (entry["name"].partition(":")[0] for entry in classes):
        if name not in by_module:
            by_module[name] = f"{_FOLDER}{member_stem(name.rpartition('.')[2], taken)}.py"
            try:
                text = inspect.getsource(sys.modules[name])
            except (OSError, TypeError, KeyError):
                hint = "Define the class in a .py file and import it"
                problem = f"the source of module {name!r} cannot be read"
                raise MMLError(limits.NO_CODE, "", "", problem, hint) from None
            data = (_definitions(text) if name == "__main__" else text).encode()
            if len(data) > MAX_CODE:
                raise MMLError(
                    limits.TOO_LARGE, "", name, "more than 1 MiB of code", "Split the module"
                )
            members[by_module[name]] = data
    entries = [{**e, "code": by_module[e["name"].partition(":")[0]]} for e in classes]
    return entries, members


def inspect_packaged_code(path: str | Path) -> dict[str, str]:
    """Return the source of each packaged class or function; nothing is run.

    Returns
    -------
    dict of str to str
        ``{"code/file.py:Class": source}``; empty if no code is packaged.

    Raises
    ------
    MMLError
        If the file is damaged, newer or not an artifact.

    Examples
    --------
    >>> import tempfile
    >>> from modularml import SimpleSampler
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     inspect_packaged_code(SimpleSampler().save(f"{folder}/sampler"))
    {}
    """
    archive = open_archive(find_file(path, None))
    sources = {}
    for entry in archive.manifest["classes"]:
        if isinstance(entry, dict) and "code" in entry:
            name = str(entry.get("name")).rpartition(":")[2]
            member = str(entry["code"])
            # the source of the definition, or the whole text without such a definition
            text = _text(archive, member)
            body: Mapping[str, Any] = {}
            with contextlib.suppress(SyntaxError, ValueError, RecursionError):
                body = {getattr(node, "name", ""): node for node in ast.parse(text).body}
            node = body.get(name.split(".")[0])
            sources[f"{member}:{name}"] = (
                (ast.get_source_segment(text, node) or text) if node is not None else text
            )
    return sources


class PackagedCode:
    """Finds classes and functions in the code of a file, given consent.

    Parameters
    ----------
    archive : Archive
    consent : bool or str
        True for all code, or the sha256 of the one source that may run.

    Raises
    ------
    MMLError
        If there is consent but no code.
    """

    def __init__(self, archive: Archive, consent: bool | str) -> None:
        self.archive, self.consent = archive, consent
        entries = [e for e in archive.manifest["classes"] if isinstance(e, dict) and "code" in e]
        self.members = {str(entry.get("name")): str(entry["code"]) for entry in entries}
        if consent and not self.members:
            hint = "Omit allow_packaged_code"
            raise MMLError(limits.NO_CODE, archive.path, "", "no code is packaged in it", hint)

    def find(self, name: str) -> Any:
        """Return the author's ``module:qualname``; None without code or consent."""
        member = self.members.get(name)
        if member is None or not self.consent:
            return None
        text = _text(self.archive, member)
        sha = hashlib.sha256(text.encode()).hexdigest()
        if self.consent is not True and self.consent != sha:
            return None
        obj: Any = _run(text, sha, self.archive.path, member)
        for part in name.partition(":")[2].split("."):
            obj = getattr(obj, part, None)
        return obj


def _text(archive: Archive, member: str) -> str:
    data = archive.payloads.get(member)
    if data is None or not member.startswith(_FOLDER) or len(data) > MAX_CODE:
        raise MMLError(limits.MISFIT, archive.path, member[:120], "is missing or too large")
    try:
        return bytes(data).decode("utf-8")
    except UnicodeDecodeError:
        raise MMLError(limits.DAMAGED, archive.path, member, "is no text") from None


def _run(text: str, sha: str, path: Path, member: str) -> ModuleType:
    """Run a source as a module in `sys.modules` that `inspect` can read."""
    name = f"packaged_{sha[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    module = ModuleType(name)
    module.__file__ = f"<{member} of {path.name}>"
    linecache.cache[module.__file__] = (len(text), None, text.splitlines(True), module.__file__)
    sys.modules[name] = module
    try:
        exec(compile(text, module.__file__, "exec"), module.__dict__)  # noqa: S102 - on consent
    except BaseException as error:
        del sys.modules[name]
        problem = f"its code fails: {type(error).__name__}: {error}"[:300]
        raise MMLError(limits.NO_CODE, path, member, problem, "Ask its sender") from error
    return module


def _definitions(text: str) -> str:
    definitions: list[ast.stmt] = []
    for node in ast.parse(text).body:
        if isinstance(node, _DEFINES):
            definitions.append(node)
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            with contextlib.suppress(ValueError):  # of values that are no constants
                ast.literal_eval(node.value)
                definitions.append(node)
    return "\n\n".join(ast.unparse(node) for node in definitions) + "\n"


_DEFINES = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
