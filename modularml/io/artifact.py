"""Artifacts of one object: its config, its state, and the classes it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

from modularml.config import names_mean
from modularml.errors import ConfigError, MissingDependencyError, MMLError, MMLKindError
from modularml.io import limits
from modularml.io.archive import IDS, Archive, open_archive, write_archive
from modularml.io.atomic import check_free
from modularml.io.classes import Resolver, bare_name, described, names_in
from modularml.io.jsontext import dump_json, load_json, with_ids, with_labels
from modularml.io.log import Segment, read_log
from modularml.io.names import file_path, find_file
from modularml.io.packaged import PackagedCode, sources_of
from modularml.io.randomness import unchanged_randomness
from modularml.io.values import Packer, Unpacker

__all__ = ["Contents", "read_artifact", "write_artifact"]

T = TypeVar("T")

CONFIG, STATE = "config.json", "state.json"

RUN = ("execution_plan", "callbacks", "checkpointing", "plan", "history")
"""Parts of the config and state of an experiment that are only needed to run phases."""


def write_artifact(
    filepath: str | Path,
    kind: str,
    name: str,
    config: Callable[[], Any],
    state: Callable[[], Any],
    *,
    overwrite: bool = False,
    ids: Mapping[str, str] | None = None,
    others: Mapping[str, str] | None = None,
    facts: Mapping[str, Any] | None = None,
    package_code: bool = False,
) -> Path:
    """Write an object to a file and return its path; see `Saveable.save`.

    `config` and `state` return the config of the object, of the class `name`, as plain data, and
    its state. `ids` and `others` are labels by id of nodes that these may refer to: those in the
    file, and others. `facts` are ``backends`` and ``classes``, for the manifest: the latter are
    entries of an older file for classes that are not in this process.

    Raises
    ------
    MMLError
        If it cannot be stored as data, or cannot be written; the old file is unchanged then.
    """
    path = file_path(filepath, kind)
    check_free(path, overwrite)
    packer, labels = Packer(), {**(others or {}), **(ids or {})}
    try:
        packed = with_labels(packer.pack(state()), labels)
        tree = {"type": name, "version": 1, "params": with_labels(config(), labels)}
    except ConfigError as error:
        raise MMLError(limits.NO_PLAIN_DATA, path, "", str(error)) from error
    except MMLError as error:
        raise MMLError(error.code, path, error.member, error.problem, error.hint) from error
    members = {CONFIG: dump_json(tree), STATE: dump_json(packed)}
    for member, data in members.items():
        load_json(data, path, member)  # checks that it can be read
    if ids:
        members[IDS] = dump_json({label: node_id for node_id, label in ids.items()})
    absent = {e["name"]: e for e in (facts or {}).get("classes", ())}
    from_elsewhere = {*absent, *map(bare_name, absent)}
    names = [("type", name), *names_in(tree), *names_in(packed)]
    classes = described(pair for pair in names if pair[1] not in from_elsewhere)
    if package_code:
        classes, code = sources_of(classes)
        members |= code
    classes = sorted([*classes, *absent.values()], key=itemgetter("name"))
    backends = dict((facts or {}).get("backends", {}))
    requires = sorted({b for b in backends.values() if b != "none"})
    manifest_facts = {**(facts or {}), "classes": classes, "requires": requires}
    write_archive(
        path, kind, {**members, **packer.members()}, overwrite=overwrite, facts=manifest_facts
    )
    return path


class Contents:
    """The contents of a file that passed all checks, as plain data.

    Parameters
    ----------
    archive : Archive
    names : mapping of str to object
        Classes and functions by name.
    missing : mapping of str to str, optional
        Unknown names, and how to resolve them; only names that are needed to run phases.
    """

    def __init__(
        self,
        archive: Archive,
        tree: Any,
        state: Any,
        names: Mapping[str, Any],
        missing: Mapping[str, str] | None = None,
    ) -> None:
        self.archive, self.path, self.names = archive, archive.path, names
        self.missing = missing or {}
        self.type, self.config, self._state = tree["type"], tree["params"], state
        self.ids: dict[str, str] = archive.json(IDS) if IDS in archive.payloads else {}
        if not isinstance(self.ids, dict) or not all(map(_is_id, self.ids.values())):
            raise MMLError(limits.MISFIT, self.path, IDS, "holds no ids by label")
        self._unpacker = Unpacker(archive.payloads, archive.path)
        self._segments: list[tuple[Any, Unpacker]] | None = None

    @property
    def absent(self) -> list[dict[str, Any]]:
        """Entries of the manifest for unknown classes and functions."""
        short = {*self.missing, *map(bare_name, self.missing)}
        entries = [e for e in self.archive.manifest["classes"] if isinstance(e, dict)]
        custom = [
            {"name": str(e.get("name")), "role": e.get("role"), "sha256": e.get("sha256")}
            for e in entries
        ]
        return [e for e in custom if short & {e["name"], bare_name(str(e["name"]))}]

    @property
    def segment(self) -> Segment | None:
        """Segment of the log with a checkpoint's history; None if the file has it."""
        return Segment.from_json(self.config.get("log"), self.path)

    def read_log(self) -> None:
        """Read and check the log that a checkpoint refers to; nothing is built.

        Raises
        ------
        MMLError
            If it is missing, or deviates from the format.
        """
        if self._segments is not None:
            return
        segments, names = [], dict(self.names)
        for archive in read_log(self.segment, self.path):
            tree = archive.json(STATE)
            entries = [e for e in archive.manifest["classes"] if isinstance(e, dict)]
            names |= Resolver(archive.path, entries).resolve(names_in(tree))
            segments.append((tree, Unpacker(archive.payloads, archive.path)))
        self._segments, self.names = segments, names

    def log(self) -> list[Any]:
        """Return the contents of the log's segments, oldest first; call within `building`."""
        return [unpacker.unpack(tree) for tree, unpacker in self._segments or ()]

    def use_ids(self, ids: Mapping[str, str]) -> None:
        """Assign ids to references by label."""
        self.config, self._state = with_ids(self.config, ids), with_ids(self._state, ids)

    def part(self, name: str) -> Mapping[str, Any]:
        """Return a part of the state as a packed tree; empty if there is none."""
        tree = self._state.get(name) if isinstance(self._state, dict) else None
        return tree if isinstance(tree, dict) else {}

    def state(self) -> Any:
        """Return the state; call within `building`."""
        return self._unpacker.unpack(_without(self._state, self.missing))

    @contextmanager
    def building(self) -> Iterator[None]:
        """Use the resolved names, and convert errors to errors of this file."""
        try:
            with names_mean(self.names), unchanged_randomness(wait=False):
                yield
        except (MMLError, MissingDependencyError):
            raise
        except Exception as error:
            reason = f"does not fit together: {type(error).__name__}: {error}"[:300]
            raise MMLError(limits.MISFIT, self.path, "", reason) from error


def _rest(tree: Any) -> Any:
    return {k: v for k, v in tree.items() if k not in RUN} if isinstance(tree, dict) else tree


def _without(tree: Any, missing: Mapping[str, str]) -> Any:
    """Return a tree with None for objects of unknown classes."""
    if not missing:
        return tree
    if isinstance(tree, list):
        return [_without(item, missing) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if any(isinstance(v, str) and v in missing for k, v in tree.items() if k.startswith("$")):
        return None
    return {key: _without(item, missing) for key, item in tree.items()}


def _is_id(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 200


def read_artifact(
    filepath: str | Path,
    kind: str,
    *,
    allow_packaged_code: bool | str = False,
    custom_objects: Mapping[str, Any] | None = None,
    allow_import: Iterable[str] = (),
    verify: bool = True,
) -> Contents:
    """Read a file up to step 8: check, decode and resolve names, without building.

    Raises
    ------
    MMLError
        If it deviates from the format, or a name in it is unknown.
    MMLKindError
        If it holds another kind of object.
    """
    path = find_file(filepath, kind)
    archive = open_archive(path, verify=verify)
    if archive.kind != kind:
        problem = f"is of kind {limits.KINDS[archive.kind]}, not {limits.KINDS[kind]}"
        raise MMLKindError(limits.OTHER_KIND, path, "", problem, "Load it with that class")
    packaged = PackagedCode(archive, allow_packaged_code)
    tree, state = archive.json(CONFIG), archive.json(STATE)
    if not isinstance(tree, dict) or tree.keys() != {"type", "version", "params"}:
        raise MMLError(limits.MISFIT, path, CONFIG, "is not type, version and params")
    if tree["version"] != 1:
        raise MMLError(limits.NEWER, path, CONFIG, f"version {tree['version']!r:.20} is not known")
    entries = [e for e in archive.manifest["classes"] if isinstance(e, dict)]
    resolver = Resolver(path, entries, custom_objects, allow_import, packaged.find)
    running = (
        [tree["params"].get(k) for k in RUN] + [state.get(k) for k in RUN] if kind == "exp" else []
    )
    needed = [tree, state] if kind != "exp" else [_rest(tree["params"]), _rest(state)]
    missing: dict[str, str] = {}
    resolved = resolver.resolve(names_in(needed), nodes=kind in ("mg", "exp", "en"))
    resolved |= resolver.resolve(names_in(running), missing=missing)
    names = {**resolved, **resolver.resolve([("type", tree["type"])])}
    if kind != "ckpt" and getattr(names[tree["type"]], "artifact_kind", "") != kind:
        problem = f"{tree['type']!r:.80} is not a {limits.KINDS[kind]}"
        raise MMLError(limits.MISFIT, path, CONFIG, problem)
    return Contents(archive, tree, state, names, missing)
