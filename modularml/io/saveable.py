"""The mixin with `save` and `load`."""

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
        contents = read_artifact(
            filepath,
            cls.artifact_kind,
            allow_packaged_code=allow_packaged_code,
            custom_objects=custom_objects,
            allow_import=allow_import,
        )
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
