"""`save` and `load` of every class whose config and state are plain data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from modularml.config import name_of
from modularml.errors import MMLKindError
from modularml.io import limits
from modularml.io.artifact import read_artifact, write_artifact
from modularml.io.values import object_state, set_object_state
from modularml.io.yamltext import YamlMixin

__all__ = ["Saveable"]


class Saveable(YamlMixin):
    """A class that can be saved: it has a config, and a state where it keeps one.

    ``get_config`` and ``from_config`` make the object; ``get_state`` and ``set_state`` (or, where
    a file needs another form of it, ``_file_state`` and ``_set_file_state``) bring it back.
    """

    artifact_kind: ClassVar[str]
    """Kind of artifact, as in its suffix."""

    def save(
        self, filepath: str | Path, *, overwrite: bool = False, package_code: bool = False
    ) -> Path:
        """Write this object to a file: its config and everything it has learned, as data.

        Parameters
        ----------
        filepath : path-like
            The suffix of its kind is appended: ``name.<kind>.mml``.
        overwrite : bool
            Whether a file that is there may be replaced.
        package_code : bool
            Whether the source of your own classes and functions goes in, as text that runs only
            where its reader says ``allow_packaged_code=True``.

        Returns
        -------
        Path
            Of the file.

        Raises
        ------
        MMLExistsError
            If there is a file and `overwrite` is false.
        MMLError
            If it cannot be stored as data, or not be written. The old file is unchanged then.
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
            Classes and functions of yours, by name.
        allow_import : iterable of str
            Prefixes of modules that may be imported to find classes.

        Raises
        ------
        MMLError
            If the file is damaged, newer, or names something that is not here. Nothing has
            changed then.
        """
        contents = read_artifact(
            filepath,
            cls.artifact_kind,
            allow_packaged_code=allow_packaged_code,
            custom_objects=custom_objects,
            allow_import=allow_import,
        )
        made_of = contents.names[contents.type]
        if not issubclass(made_of, cls):
            problem = f"holds a {made_of.__name__}, not a {cls.__name__}"
            raise MMLKindError(limits.OTHER_KIND, contents.path, "", problem)
        with contents.building():
            made: Self = made_of.from_config(contents.config)
            state = contents.state()
            if state:
                set_object_state(made, state)
        return made

    def _file_facts(self) -> dict[str, Any]:
        """Return what the manifest says of this object, beside its classes."""
        return {}
