"""Constructors of FeatureSets from tables of any kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa

from modularml._typing import Array
from modularml.data import collection_building
from modularml.data.collection import SampleCollection
from modularml.data.csv_files import from_csv
from modularml.data.featureset_yaml import DESCRIPTIONS, DOMAIN_KEYS, ReadFrom
from modularml.data.input_tables import Rename, Stack, as_columns
from modularml.data.parquet import from_parquet
from modularml.data.schema import SampleSchema
from modularml.data.table_files import FilePaths
from modularml.errors import ConfigError, expect

if TYPE_CHECKING:
    import pandas as pd


class Constructors:
    """Constructors of a FeatureSet; each returns ``cls(label, collection)``."""

    read_from: ReadFrom | None = None
    """Files the rows were read from, and how; None for rows from elsewhere."""

    def __init__(self, label: str, collection: SampleCollection, **kwargs: Any) -> None:
        raise NotImplementedError

    @classmethod
    def from_dict(
        cls,
        label: str,
        data: Mapping[str, Sequence[Any] | Array],
        feature_keys: str | list[str],
        target_keys: str | list[str],
        tag_keys: str | list[str] | None = None,
        *,
        mask: str | dict[str, str] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Create a FeatureSet from named lists, arrays or series of equal length.

        Parameters
        ----------
        label : str
        data : dict
        feature_keys, target_keys, tag_keys : str or list of str
        mask : str or dict of str to str, optional
            A boolean column of shape ``(n, length)``, true for data and false for padding: one
            for all features and targets that have these steps, or one by the key of each. Scalers,
            losses and scores ignore padding. A mask in no domain becomes a tag.

        Raises
        ------
        UnknownNameError
            If a key is not in `data`; the message lists the closest.
        DataError
            If columns differ in length, are ragged or have missing values, or if a mask does not
            match.
        """
        columns = as_columns(data)
        collection = collection_building.from_columns(
            columns, feature_keys, target_keys, tag_keys, mask=mask
        )
        return cls(label, collection, **kwargs)

    @classmethod
    def from_numpy(
        cls,
        label: str,
        features: Array | Mapping[str, Array],
        targets: Array | Mapping[str, Array] | None = None,
        tags: Mapping[str, Array] | None = None,
        *,
        mask: str | dict[str, str] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Create a FeatureSet from arrays.

        Parameters
        ----------
        label : str
        features, targets : ndarray, shape (n_samples, ...), or mapping of str to ndarray
            A single array becomes one column, named ``x`` (features) or ``y`` (targets); a mapping
            names its columns.
        tags : mapping of str to ndarray, optional
        mask : str or dict of str to str, optional
            As for `from_dict`.
        """
        expect("features", features, (Mapping, np.ndarray), "an array or a mapping of arrays")
        parts = [
            p if isinstance(p, Mapping) else {} if p is None else {name: p}
            for name, p in (("x", features), ("y", targets), ("tags", tags))
        ]
        data = {key: values for part in parts for key, values in part.items()}
        keys = [list(part) for part in parts]
        return cls(label, collection_building.from_columns(data, *keys, mask=mask), **kwargs)

    @classmethod
    def from_pandas(
        cls,
        label: str,
        df: pd.DataFrame,
        feature_cols: str | list[str],
        target_cols: str | list[str],
        group_by: str | list[str] | None = None,
        tag_cols: str | list[str] | None = None,
        sort_by: str | list[str] | None = None,
        *,
        pad: Any = None,
        scalar_cols: str | list[str] | None = None,
        mask: str | dict[str, str] | None = None,
        rename: Rename = None,
        stack: Stack = None,
        **kwargs: Any,
    ) -> Self:
        r"""Create a FeatureSet from a DataFrame, one sample per row or group of rows.

        Parameters
        ----------
        label : str
        df : DataFrame
            pandas, polars, or any other eager frame that narwhals understands.
        feature_cols, target_cols : str or list of str
        group_by : str or list of str, optional
            Rows with equal values in these columns become one sample, whose features and targets
            are arrays of one length. The columns themselves become tags.
        tag_cols : str or list of str, optional
        sort_by : str or list of str, optional
            Order of the rows within a group.
        pad : scalar or mapping of str to scalar, optional
            Fill value at the end of shorter groups; a mapping gives one for each column.
            A boolean column ``mask`` of shape ``(length,)``, true for data, is added as a tag and
            is the mask of all array columns; list ``mask`` in `feature_cols` to pass it to models.
            None refuses groups of different lengths.
        scalar_cols : str or list of str, optional
            Features and targets with one value per group, such as the label of a whole sequence;
            they stay scalars.
        mask : str or dict of str to str, optional
            As for `from_dict`, if the table itself has a column that marks padding.
        rename : mapping or callable, optional
            Maps a name in the frame to the key of the column, which must not contain a space,
            ``.``, ``:``, ``/`` or ``\``. All other arguments use the new names.
        stack : mapping of str to str or list of str, optional
            Columns to combine into one array column: ``{"voltage": "v*"}`` combines ``v0`` to
            ``v99`` in natural order (``v2`` before ``v10``). Their names become the names of the
            elements, unless `element_names` gives others.

        Raises
        ------
        UnknownNameError
            If a column does not exist; the message lists the closest.
        DataError
            If a column of integers, text or dates has missing values (NaN is valid and counted
            in `summary`), groups differ in length without `pad`, or a tag or a column of
            `scalar_cols` changes within a group.
        """
        collection = collection_building.from_frame(
            df,
            feature_cols,
            target_cols,
            tag_cols,
            group_by=group_by,
            sort_by=sort_by,
            pad=pad,
            scalars=scalar_cols,
            mask=mask,
            rename=rename,
            stack=stack,
        )
        return cls(label, collection, **kwargs)

    from_df = from_pandas

    @classmethod
    def from_pyarrow_table(
        cls, label: str, table: pa.Table, schema: SampleSchema | None = None, **kwargs: Any
    ) -> Self:
        """Create a FeatureSet from an Arrow table with columns ``domain.key.rep``.

        For other tables, pass ``feature_cols=``, ``target_cols=`` and ``tag_cols=``. For padded
        columns, pass ``mask=`` as for `from_dict`.
        """
        expect("table", table, pa.Table, "a pyarrow.Table; use from_df for other frames")
        chosen = [kwargs.pop(f"{name}_cols", None) for name in ("feature", "target", "tag")]
        mask = kwargs.pop("mask", None)
        if any(c is not None for c in chosen):
            return cls(
                label,
                collection_building.from_columns(as_columns(table), *chosen, mask=mask),
                **kwargs,
            )
        collection = SampleCollection(table, schema)
        masks = {} if mask is None else collection_building.masks_of(collection, mask)
        if masks:
            collection = SampleCollection(collection.table, masks=masks)
        return cls(label, collection, **kwargs)

    @classmethod
    def from_csv(
        cls,
        label: str,
        paths: FilePaths,
        feature_keys: str | list[str] | None = None,
        target_keys: str | list[str] | None = None,
        tag_keys: str | list[str] | None = None,
        *,
        read: Mapping[str, Any] | None = None,
        rename: Rename = None,
        stack: Stack = None,
        file_as: str | None = None,
        missing: str = "nan",
        mask: str | dict[str, str] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Create a FeatureSet from columns of CSV files.

        Parameters
        ----------
        label : str
        paths : path-like or sequence of path-like
            A file, a folder, a pattern such as ``"cells/*.csv"``, or a list of them. Rows are
            in the natural order of the names (``cell2`` before ``cell10``). Each column is cast to
            one type that holds the values of all files.
        feature_keys, target_keys, tag_keys : str or list of str
            Names in the header, without surrounding spaces, or the new names given by `rename`.
        read : mapping of str to object, optional
            Options of `pandas.read_csv`: ``sep``, ``decimal``, ``encoding``, ``comment``,
            ``skiprows``, ``header``, ``names``, ``na_values``, ``dtype`` etc.
        rename, stack : mapping, optional
            As for `from_pandas`.
        file_as : str, optional
            Key of a tag that holds the name of each row's file, without folder and suffix:
            ``run_0.5C`` of ``runs/run_0.5C.csv.gz``.
        missing : {'nan', 'error'}
            Whether an empty field in a numeric column becomes NaN or raises an error.
        mask : str or dict of str to str, optional
            As of `from_dict`, for columns that `stack` makes.
        **kwargs
            `kind`, `unit` and `element_names` by key, as for `FeatureSet`; ``register=False`` keeps
            the set out of the active experiment. The keys may also be passed as ``feature_cols``,
            ``target_cols`` and ``tag_cols``, as in `from_pandas`.

        Raises
        ------
        UnknownNameError
            If a column or an option of pandas is unknown; the message lists the closest.
        DataError
            If a file is missing or cannot be read, its rows differ in length, text or booleans are
            missing, no type holds the values of a column in two files, or `stack` finds other
            columns in one of them. The message says what the file is, if it is no CSV.

        Notes
        -----
        Tags that a number would change (``007``, ``1E5``) stay text. ISO dates and times become
        timestamps. Override this with ``read={"dtype": {"id": str}}``. Text that is likely to be
        numbers or times (``1'234``, ``12 V``, ``-``, ``31.01.2024``) is warned of, with the option
        that reads it.
        """
        options: dict[str, Any] = {"read": read, "rename": rename, "stack": stack}
        options |= {"file_as": file_as, "missing": missing, "mask": mask}
        keys = feature_keys, target_keys, tag_keys
        return cls._from_files("csv", label, paths, keys, options, kwargs)

    @classmethod
    def from_parquet(
        cls,
        label: str,
        paths: FilePaths,
        feature_keys: str | list[str] | None = None,
        target_keys: str | list[str] | None = None,
        tag_keys: str | list[str] | None = None,
        *,
        rename: Rename = None,
        stack: Stack = None,
        file_as: str | None = None,
        mask: str | dict[str, str] | None = None,
        in_memory: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """Create a FeatureSet from columns of Parquet files.

        Parameters
        ----------
        label : str
        paths : path-like or sequence of path-like
            A file, a folder, a pattern, or a list of them, as for `from_csv`. Each folder
            named ``key=value`` adds a column.
        feature_keys, target_keys, tag_keys : str or list of str
            Names of columns, or the new names given by `rename`.
        rename, stack : mapping, optional
            As for `from_pandas`.
        file_as : str, optional
            As for `from_csv`.
        mask : str or dict of str to str, optional
            As for `from_dict`.
        in_memory : bool, optional
            Whether to read the columns into memory. Otherwise numbers are unpacked into temporary
            files (in ``TMPDIR``, deleted with the set) and read from there batch by batch, which
            allows training on data larger than memory; `stack` requires memory. None means up to
            512 MB unpacked.
        **kwargs
            `kind`, `unit` and `element_names` by key, as for `FeatureSet`; ``register=False`` keeps
            the set out of the active experiment. The keys may also be passed as ``feature_cols``,
            ``target_cols`` and ``tag_cols``, as in `from_pandas`.

        Raises
        ------
        UnknownNameError
            If a column does not exist; the message lists the closest.
        DataError
            If a file is missing or cannot be read, integers, text or booleans are missing, or no
            type holds the values of a column in two files.
        """
        options: dict[str, Any] = {"rename": rename, "stack": stack, "file_as": file_as}
        options |= {"mask": mask, "in_memory": in_memory}
        keys = feature_keys, target_keys, tag_keys
        return cls._from_files("parquet", label, paths, keys, options, kwargs)

    @classmethod
    def _from_files(
        cls,
        kind: str,
        label: str,
        paths: FilePaths,
        keys: Sequence[Any],
        options: Mapping[str, Any],
        kwargs: dict[str, Any],
    ) -> Self:
        """Read files, with the keys of each domain by either name of their argument."""
        names = ("feature_cols", "target_cols", "tag_cols")
        aliases = [kwargs.pop(name, None) for name in names]
        keys = [a if key is None else key for key, a in zip(keys, aliases, strict=True)]
        hint = "; pass options of pandas.read_csv in read={...}" if kind == "csv" else ""
        for name in kwargs:
            if name not in ("node_id", "register", *DESCRIPTIONS):
                raise ConfigError(f"unknown argument {name!r}{hint}")
        read = from_csv if kind == "csv" else from_parquet
        made = cls(label, read(paths, *keys, **options), **kwargs)
        passed = {**dict(zip(DOMAIN_KEYS, keys, strict=True)), **options}
        passed |= {name: kwargs.get(name) for name in DESCRIPTIONS}
        kept = {k: v for k, v in passed.items() if v is not None and (k, v) != ("missing", "nan")}
        made.read_from = {kind: paths, **kept}
        return made
