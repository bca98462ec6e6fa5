"""Making a FeatureSet of tables of any kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa

from modularml._typing import Array
from modularml.data import sources
from modularml.data.collection import SampleCollection
from modularml.data.csv_files import from_csv
from modularml.data.frames import Rename, Stack, as_columns
from modularml.data.parquet import from_parquet
from modularml.data.paths import FilePaths
from modularml.data.schema import SampleSchema
from modularml.errors import ConfigError, expect

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ConstructorsMixin"]


class ConstructorsMixin:
    """Constructors of a FeatureSet; each ends in ``cls(label, collection)``."""

    def __init__(self, label: str, collection: SampleCollection, **kwargs: Any) -> None:
        raise NotImplementedError

    @classmethod
    def from_dict(
        cls,
        label: str,
        data: dict[str, Sequence[Any]],
        feature_keys: str | list[str],
        target_keys: str | list[str],
        tag_keys: str | list[str] | None = None,
        *,
        mask: str | dict[str, str] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Make a set from columns by name: lists, arrays or series of equal length.

        Parameters
        ----------
        label : str
        data : dict
        feature_keys, target_keys, tag_keys : str or list of str
        mask : str or dict of str to str, optional
            A boolean column of shape ``(n, length)`` that is true where there is data and false
            where sequences are filled up: for all features and targets that have such steps, or
            by the key of each. Scalers, losses and scores pass over padding. It becomes a tag
            where it is in no domain.

        Raises
        ------
        UnknownNameError
            If a key is not in `data`; the closest are listed.
        DataError
            If columns differ in length, are ragged or have missing values, or a mask does not fit.
        """
        columns = as_columns(data)
        made = sources.from_columns(columns, feature_keys, target_keys, tag_keys, mask=mask)
        return cls(label, made, **kwargs)

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
        """Make a set from arrays.

        Parameters
        ----------
        label : str
        features, targets : ndarray, shape (n_samples, ...), or mapping of str to ndarray
            A bare array becomes one column, named ``features`` or ``targets`` in the singular
            (``x`` and ``y``); a mapping names its columns.
        tags : mapping of str to ndarray, optional
        mask : str or dict of str to str, optional
            As of `from_dict`.
        """
        expect("features", features, (Mapping, np.ndarray), "an array or a mapping of arrays")
        parts = [
            p if isinstance(p, Mapping) else {} if p is None else {name: p}
            for name, p in (("x", features), ("y", targets), ("tags", tags))
        ]
        data = {key: values for part in parts for key, values in part.items()}
        keys = [list(part) for part in parts]
        return cls(label, sources.from_columns(data, *keys, mask=mask), **kwargs)

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
        r"""Make a set from a DataFrame: one row a sample, or one group of rows a sample.

        Parameters
        ----------
        label : str
        df : DataFrame
            pandas, polars, or any other eager frame that narwhals understands.
        feature_cols, target_cols : str or list of str
        group_by : str or list of str, optional
            Rows that agree in these columns become one sample, whose features and targets are
            arrays of one length. The columns themselves become tags.
        tag_cols : str or list of str, optional
        sort_by : str or list of str, optional
            Order of the rows within a group.
        pad : scalar or mapping of str to scalar, optional
            What shorter groups are filled up with at their end, by column where it is a mapping.
            A boolean column ``mask`` of shape ``(length,)``, true where there is data, is added as
            a tag, and is the mask of all array columns; name ``mask`` in `feature_cols` to hand it
            to models. None refuses such groups.
        scalar_cols : str or list of str, optional
            Features and targets that have one value in each group, such as a label of a whole
            sequence: they stay scalars.
        mask : str or dict of str to str, optional
            As of `from_dict`, where the table itself has a column that tells what is padding.
        rename : mapping or callable, optional
            From a name of the frame to the key of the column, which holds no space, ``.``, ``:``,
            ``/`` and ``\``. All other arguments speak of the new names.
        stack : mapping of str to str or list of str, optional
            Columns that become one array column, as ``{"voltage": "v*"}`` makes of ``v0`` to
            ``v99``, in natural order (``v2`` before ``v10``).

        Raises
        ------
        UnknownNameError
            If a column is not there; the closest are listed.
        DataError
            If a column of integers, text or dates has missing values (NaN is data, and counted
            in `summary`), groups differ in length and there is no `pad`, or a tag or a column of
            `scalar_cols` changes within a group.
        """
        made = sources.from_frame(
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
        return cls(label, made, **kwargs)

    from_df = from_pandas

    @classmethod
    def from_pyarrow_table(
        cls, label: str, table: pa.Table, schema: SampleSchema | None = None, **kwargs: Any
    ) -> Self:
        """Make a set from an Arrow table whose columns are named ``domain.key.rep``.

        Other tables are taken with ``feature_cols=``, ``target_cols=`` and ``tag_cols=``. Padded
        columns have their ``mask=``, as of `from_dict`.
        """
        expect("table", table, pa.Table, "a pyarrow.Table; from_df takes other frames")
        chosen = [kwargs.pop(f"{name}_cols", None) for name in ("feature", "target", "tag")]
        mask = kwargs.pop("mask", None)
        if any(c is not None for c in chosen):
            return cls(label, sources.from_columns(as_columns(table), *chosen, mask=mask), **kwargs)
        made = SampleCollection(table, schema)
        masks = {} if mask is None else sources.masks_of(made, mask)
        return cls(label, SampleCollection(made.table, masks=masks) if masks else made, **kwargs)

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
        """Make a set from columns of CSV files.

        Parameters
        ----------
        label : str
        paths : path-like or sequence of path-like
            A file, a folder, a pattern such as ``"cells/*.csv"``, or a list of them; rows follow in
            the natural order of the names (``cell2`` before ``cell10``). Columns are brought to one
            type that holds the values of all files.
        feature_keys, target_keys, tag_keys : str or list of str
            Names in the header, without spaces around them, or the new ones of `rename`.
        read : mapping of str to object, optional
            Options of `pandas.read_csv`: ``sep``, ``decimal``, ``encoding``, ``comment``,
            ``skiprows``, ``header``, ``names``, ``na_values``, ``dtype`` and so on.
        rename, stack : mapping, optional
            As for `from_pandas`.
        file_as : str, optional
            Key of a tag that holds the name of each row's file, without folder and ending.
        missing : {'nan', 'error'}
            Whether an empty field in a column of numbers is NaN, or refused.
        mask : str or dict of str to str, optional
            As of `from_dict`, for columns that `stack` makes.
        **kwargs
            ``register=False`` for a set that the active experiment does not know; the keys may be
            given as ``feature_cols``, ``target_cols`` and ``tag_cols``, as to `from_pandas`.

        Raises
        ------
        UnknownNameError
            If a column or an option of pandas is not known; the closest are listed.
        DataError
            If a file is missing or cannot be read, its rows differ in length, text or flags are
            missing, or no type holds what two files have in a column.

        Notes
        -----
        Tags that would lose how they are written as numbers (``007``, ``1E5``) stay text. ISO dates
        and times become timestamps. ``read={"dtype": {"id": str}}`` decides otherwise.
        """
        made = from_csv(
            paths,
            *_keys(
                feature_keys,
                target_keys,
                tag_keys,
                kwargs,
                "options of pandas.read_csv go into read={...}",
            ),
            read=read,
            rename=rename,
            stack=stack,
            file_as=file_as,
            missing=missing,
            mask=mask,
        )
        return cls(label, made, **kwargs)

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
        """Make a set from columns of Parquet files.

        Parameters
        ----------
        label : str
        paths : path-like or sequence of path-like
            A file, a folder, a pattern, or a list of them, as for `from_csv`. Folders named
            ``key=value`` give a column each.
        feature_keys, target_keys, tag_keys : str or list of str
            Names of columns, or the new ones of `rename`.
        rename, stack : mapping, optional
            As for `from_pandas`.
        file_as : str, optional
            As for `from_csv`.
        mask : str or dict of str to str, optional
            As of `from_dict`.
        in_memory : bool, optional
            Whether the columns are read into memory. Else their numbers are unpacked into
            temporary files (in ``TMPDIR``, and gone with the set), and read from there batch by
            batch, so that data larger than memory can be trained on; `stack` needs memory. None:
            up to 512 MB unpacked.
        **kwargs
            ``register=False`` for a set that the active experiment does not know; the keys may be
            given as ``feature_cols``, ``target_cols`` and ``tag_cols``, as to `from_pandas`.

        Raises
        ------
        UnknownNameError
            If there is no such column; the closest are listed.
        DataError
            If a file is missing or cannot be read, integers, text or flags are missing, or no type
            holds what two files have in a column.
        """
        made = from_parquet(
            paths,
            *_keys(feature_keys, target_keys, tag_keys, kwargs),
            rename=rename,
            stack=stack,
            file_as=file_as,
            mask=mask,
            in_memory=in_memory,
        )
        return cls(label, made, **kwargs)


def _keys(
    features: Any, targets: Any, tags: Any, kwargs: dict[str, Any], hint: str = ""
) -> list[Any]:
    """Return the keys of each domain, by either name of the arguments; refuse other arguments."""
    names = ("feature_cols", "target_cols", "tag_cols")
    given = [kwargs.pop(name, None) for name in names]
    for name in kwargs:
        if name not in ("node_id", "register"):
            raise ConfigError(f"unknown argument {name!r}{hint and '; '}{hint}")
    return [
        key if key is not None else other
        for key, other in zip((features, targets, tags), given, strict=True)
    ]
