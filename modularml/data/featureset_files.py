"""Files of a FeatureSet."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from modularml.context import ExperimentContext
from modularml.data import packing
from modularml.data.reference_methods import ReferencesMixin
from modularml.data.sections import write_section
from modularml.io.artifact import read_artifact, write_artifact

if TYPE_CHECKING:
    pass


__all__ = ["FeatureSetFiles"]


class FeatureSetFiles(ReferencesMixin):
    """`save`, `load` and `to_yaml` of a `FeatureSet`."""

    @abstractmethod
    def get_config(self) -> dict[str, Any]:
        """Return the label."""

    @abstractmethod
    def get_state(self) -> dict[str, Any]:
        """Return rows, splits and records."""

    @abstractmethod
    def set_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_state` returned."""

    def save(
        self, filepath: str | Path, *, overwrite: bool = False, package_code: bool = False
    ) -> Path:
        """Write rows, splits, scalers and their records to a file ``name.fs.mml``.

        Raises
        ------
        MMLExistsError
            If the file exists and `overwrite` is false.
        MMLError
            If a part cannot be stored as data or the file cannot be written.
        """
        return write_artifact(
            filepath,
            "fs",
            "FeatureSet",
            self.get_config,
            lambda: packing.packed(self.get_state()),
            overwrite=overwrite,
            ids={self.node_id: self.label},
            package_code=package_code,
        )

    @classmethod
    def load(
        cls,
        filepath: str | Path,
        *,
        allow_packaged_code: bool | str = False,
        overwrite: bool = False,
        custom_objects: Mapping[str, Any] | None = None,
        allow_import: Iterable[str] = (),
        verify: bool = True,
    ) -> Self:
        """Load a set from a file; columns stay in the file until they are used.

        Parameters
        ----------
        filepath : path-like
            With or without its suffix.
        allow_packaged_code : bool or str
            Whether packaged code may run; see `BaseModel.load`.
        overwrite : bool
            Whether to replace a node with the same id or label. Otherwise the set gets a new id
            and stays out of the active context.
        custom_objects, allow_import
            Sources of user-defined classes; see `Scaler.load`.
        verify : bool
            Whether to check the hash of the rows. Without it, a large file opens at once.

        Raises
        ------
        MMLError
            If the file is damaged, written by a newer version or holds something else. Nothing is
            changed in that case.
        """
        trusted = allow_packaged_code, custom_objects, allow_import
        contents = read_artifact(filepath, "fs", *trusted, verify)
        ctx = ExperimentContext.get_active()
        ids = ctx.free_ids(contents.ids, overwrite=overwrite)
        with contents.building(), ctx.beside(overwrite=overwrite):
            label, state = contents.config["label"], packing.unpacked(contents.state())
            make: Any = cls
            new: Self = make(label, state["collection"], node_id=ids.get(label))
            new.set_state(state)
        return new

    def to_yaml(
        self,
        filepath: str | Path | None = None,
        *,
        rows: str | Path | None = None,
        overwrite: bool = False,
    ) -> str:
        """Return this set's part of a plan file, and optionally write it to a file.

        It names the files that the rows were read from, their columns, the splits and the scalers;
        ``modularml run`` reads it. The set is built from it once, to be sure that it is the same.

        Parameters
        ----------
        filepath : path-like, optional
            File to write. Paths within it are relative to its folder, otherwise to the current one.
        rows : path-like, optional
            Save rows, splits and scalers to this ``.fs.mml`` file and name it instead, for rows
            that were not read from CSV or Parquet files.
        overwrite : bool
            Whether existing files may be replaced.

        Raises
        ------
        ConfigError
            If files do not give this set: rows, splits or random scalers from elsewhere.
        MMLExistsError
            If a file exists and `overwrite` is false.
        """
        return write_section(self, filepath, rows=rows, overwrite=overwrite)
