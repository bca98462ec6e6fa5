"""Artifacts of one object: its config, its state, and the classes it needs.

`Saveable` and `YamlMixin` are the base classes of what can be saved and loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from operator import itemgetter
from pathlib import Path
from typing import Any, ClassVar, Self

from modularml._optional import require
from modularml.config import name_of, names_mean
from modularml.errors import (
    ConfigError,
    MissingDependencyError,
    MMLError,
    MMLKindError,
    ModularMLError,
)
from modularml.io import limits
from modularml.io.append_log import Segment, read_log
from modularml.io.archive import IDS, Archive, open_archive, write_archive
from modularml.io.atomic import check_free, write_file
from modularml.io.classes import Resolver, bare_name, described, names_in
from modularml.io.jsontext import dump_json, load_json, with_ids, with_labels
from modularml.io.names import file_path, find_file
from modularml.io.packaged import PackagedCode, sources_of
from modularml.io.randomness import unchanged_randomness
from modularml.io.values import Packer, Unpacker, object_state, set_object_state

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
        if not isinstance(self.ids, dict) or not all(
            isinstance(node_id, str) and 0 < len(node_id) <= 200 for node_id in self.ids.values()
        ):
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


def read_artifact(
    filepath: str | Path,
    kind: str,
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


class YamlMixin:
    """`to_yaml` and `from_yaml` of a class with a config."""

    makes_nodes: ClassVar[bool] = False
    """Whether building an object registers nodes in the active context."""

    def to_yaml(self, filepath: str | Path | None = None, *, overwrite: bool = False) -> str:
        """Return the config as YAML, and optionally write it to a file.

        Weights, rows and results are not included.

        Raises
        ------
        ConfigError
            If an argument cannot be found by name.
        MMLExistsError
            If the file exists and `overwrite` is false.
        """
        config: Any = self.get_config()  # type: ignore[attr-defined]
        tree = {"$type": name_of(type(self)), "params": config}
        yamltext = require("modularml.io.yamltext")
        labels, _, _ = self._yaml_scope(self)
        text: str = yamltext.dump_yaml(with_labels(tree, labels))
        if filepath is not None:
            data, verify = [text.encode()], yamltext.read_yaml
            write_file(Path(filepath), data, overwrite=overwrite, verify=verify)
        return text

    @classmethod
    def from_yaml(
        cls,
        source: str | Path,
        *,
        custom_objects: Mapping[str, Any] | None = None,
        allow_import: Iterable[str] = (),
    ) -> Self:
        """Build an object from `to_yaml` output, with new weights.

        Parameters
        ----------
        source : str or path-like
            A file, or the text itself if it has more than one line.
        custom_objects, allow_import
            How your own classes are found; see `BaseModel.load`.

        Raises
        ------
        MMLError
            If it is not YAML that we write, or names an unknown class. Nothing is changed then.
        """
        _, ids, context = cls._yaml_scope()
        path, tree = require("modularml.io.yamltext").read_yaml(source)
        tree = with_ids(tree, ids)
        if not isinstance(tree, dict) or tree.keys() != {"$type", "params"}:
            problem = f"does not describe a {cls.__name__}"
            raise MMLError(limits.MISFIT, path, "", problem, "Pass the output of to_yaml()")
        resolver = Resolver(path, [], custom_objects, allow_import)
        names = resolver.resolve(names_in(tree), nodes=cls.makes_nodes)
        file_class = names[tree["$type"]]
        if not issubclass(file_class, cls):
            problem = f"describes a {file_class.__name__}, not a {cls.__name__}"
            raise MMLKindError(limits.OTHER_KIND, path, "", problem)
        try:
            with names_mean(names), context:
                obj: Self = file_class.from_config(tree["params"])
        except ModularMLError:
            raise
        except Exception as error:
            reason = f"does not fit together: {type(error).__name__}: {error}"[:300]
            raise MMLError(limits.MISFIT, path, "", reason) from error
        return obj

    @classmethod
    def _yaml_scope(
        cls, obj: Any = None
    ) -> tuple[Mapping[str, str], Mapping[str, str], AbstractContextManager[Any]]:
        """Return labels and ids of nodes that may be referred to, and where objects are built."""
        return {}, {}, nullcontext()


class Saveable(YamlMixin):
    """A class with a config, and optionally a state, that can be saved.

    ``get_config`` and ``from_config`` rebuild the object; ``get_state`` and ``set_state`` (or, for
    another form in files, ``_file_state`` and ``_set_file_state``) restore its state.
    """

    artifact_kind: ClassVar[str]
    """Kind of artifact, as in its suffix."""

    def save(
        self, filepath: str | Path, *, overwrite: bool = False, package_code: bool = False
    ) -> Path:
        """Write this object to a file: its config and state, as data.

        Parameters
        ----------
        filepath : path-like
            The suffix of its kind is appended: ``name.<kind>.mml``.
        overwrite : bool
            Whether an existing file may be replaced.
        package_code : bool
            Whether to include the source of your own classes and functions, as text that runs only
            if the reader passes ``allow_packaged_code=True``.

        Returns
        -------
        Path
            Path of the file.

        Raises
        ------
        MMLExistsError
            If the file exists and `overwrite` is false.
        MMLError
            If it cannot be stored as data, or not be written. An existing file is unchanged then.
        """
        config: Any = self.get_config  # type: ignore[attr-defined]
        return write_artifact(
            filepath,
            self.artifact_kind,
            name_of(type(self)),
            config,
            lambda: object_state(self),
            overwrite=overwrite,
            facts=self._file_facts(),
            package_code=package_code,
        )

    @classmethod
    def load(
        cls,
        filepath: str | Path,
        *,
        allow_packaged_code: bool | str = False,
        custom_objects: Mapping[str, Any] | None = None,
        allow_import: Iterable[str] = (),
    ) -> Self:
        """Read an object back from a file; no code from the file is run.

        Parameters
        ----------
        filepath : path-like
            With or without its suffix.
        allow_packaged_code : bool or str
            Whether code that the author packaged may run, or the sha256 of the one source that
            may; see `modularml.io.inspect_packaged_code`.
        custom_objects : mapping of str to object, optional
            Your own classes and functions, by name.
        allow_import : iterable of str
            Prefixes of modules that may be imported to find classes.

        Raises
        ------
        MMLError
            If the file is damaged, newer, or names an unknown class. Nothing is changed then.
        """
        kind, trusted = cls.artifact_kind, (allow_packaged_code, custom_objects, allow_import)
        contents = read_artifact(filepath, kind, *trusted)
        file_class = contents.names[contents.type]
        if not issubclass(file_class, cls):
            problem = f"is of kind {file_class.__name__}, not {cls.__name__}"
            raise MMLKindError(limits.OTHER_KIND, contents.path, "", problem)
        with contents.building():
            obj: Self = file_class.from_config(contents.config)
            state = contents.state()
            if state:
                set_object_state(obj, state)
        return obj

    def _file_facts(self) -> dict[str, Any]:
        """Return entries of the manifest for this object, besides its classes."""
        return {}
