"""Reading CSV files into columns of one type without loss."""

from __future__ import annotations

import csv
import inspect
import io
import lzma
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from modularml._optional import require
from modularml._warning import warn
from modularml.data.arrow_columns import to_arrow
from modularml.data.arrow_types import is_category, to_numpy
from modularml.data.collection import SampleCollection
from modularml.data.collection_building import from_columns
from modularml.data.csv_remedies import file_remedy, header_remedy, is_text, warn_about_text
from modularml.data.formats import stack as stack_columns
from modularml.data.input_tables import (
    Rename,
    Stack,
    TableColumns,
    check_stacks,
    column_name,
    column_names,
)
from modularml.data.table_files import (
    COMPRESSED,
    FilePaths,
    cast_column,
    check_file_names,
    common_type,
    file_stem,
    files_of,
    readable,
    taken_error,
)
from modularml.errors import ConfigError, DataError, UnknownNameError, expect

ENDINGS = tuple(
    f"{kind}{suffix}" for kind in (".csv", ".tsv", ".txt") for suffix in ("", *COMPRESSED)
)
"""Suffixes of the files that are read from a folder."""

VALUES = (
    "dtype",
    "converters",
    "parse_dates",
    "date_format",
    "dayfirst",
    "true_values",
    "false_values",
)
"""Arguments of pandas.read_csv that change values and not where they are."""

REPLACEMENTS = {
    "filepath_or_buffer": "paths=",
    "chunksize": "paths=",
    "iterator": "paths=",
    "dtype_backend": "read={'dtype': ...}",
}
"""Arguments of pandas.read_csv that are not supported, and their replacements."""

STREAMS = {".gz": "gzip", ".gzip": "gzip", ".bz2": "bz2", ".zst": "zstd", ".zstd": "zstd"}
"""Compressions that Arrow reads, by suffix."""

LOOKS_LIKE_ID = r"^\s*(?:[+-]?0[0-9]+|[0-9]+[eE][0-9]+)\s*$"
"""Identifiers that a number would change: ``007``, or ``1E5`` on a plate."""

ZONE = r"(?:Z|[+-][0-9]{2}:?[0-9]{2})$"
ISO_TIME = (
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}"
    r"(?:[T ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,9})?)?(?:Z|[+-][0-9]{2}:?[0-9]{2})?)?$"
)


def from_csv(
    paths: FilePaths,
    features: Any,
    targets: Any,
    tags: Any,
    *,
    read: Mapping[str, Any] | None = None,
    rename: Rename = None,
    stack: Stack = None,
    file_as: str | None = None,
    missing: str = "nan",
    mask: str | Mapping[str, str] | None = None,
) -> SampleCollection:
    """Build a collection from columns of CSV files; see `FeatureSet.from_csv`."""
    if missing not in ("nan", "error"):
        raise ConfigError(f"missing must be 'nan' or 'error', got {missing!r}")
    options = dict(expect("read", {} if read is None else read, Mapping, "a mapping"))
    known = inspect.signature(require("pandas").read_csv).parameters
    for name in options:
        if name in REPLACEMENTS:
            raise ConfigError(
                f"read={{{name!r}: ...}} is not supported; use {REPLACEMENTS[name]} instead"
            )
        if name not in known:
            raise UnknownNameError("option of pandas.read_csv", name, known)
    tag_keys = list(dict.fromkeys([*column_names(tags), *column_names(file_as)]))
    masks = [mask] if isinstance(mask, str) else (mask or {}).values()
    wanted = [*dict.fromkeys([*column_names(features), *column_names(targets), *tag_keys, *masks])]
    files, stacks = dict[str, dict[str, Any]](), dict[str, list[str]]()
    for path in files_of(paths, ENDINGS):
        file = _CsvFile(path, options)
        table = TableColumns(file.names, file.column).renamed(rename)
        own = table.stack_parts(stack)
        check_stacks(stacks := stacks or own, own, str(path), next(iter(files), ""))
        files[str(path)] = {
            key: file.name_column(key, table)
            if key == file_as
            else file.stacked(own[key], table, missing)
            if key in own
            else file.selected(key, table, [*table, *own], is_tag=key in tag_keys)
            for key in wanted
        }
    check_file_names(files, file_as)
    return from_columns(
        {key: _concatenated(key, files, missing) for key in wanted},
        features,
        targets,
        tag_keys,
        mask=mask,
        elements=stacks,
        categories=[
            k for k in wanted if any(is_category(columns[k]) for columns in files.values())
        ],
    )


class _CsvFile:
    """One file, as pandas reads it, and the names in its header."""

    def __init__(self, path: Path, options: Mapping[str, Any]) -> None:
        self.path, self.options = path, dict(options)
        self.frame = self._read(**self.options)
        names = [column_name(name) for name in self.frame.columns]  # repeated ones are numbered
        if {"header", "names", "index_col", "usecols", "engine"}.isdisjoint(self.options) and names:
            first = self._written(header=None, nrows=1).iloc[0]
            raw = ["" if text is None or text != text else str(text) for text in first.tolist()]  # noqa: PLR0124
            if len(raw) == len(names):
                names = [text or name for text, name in zip(raw, names, strict=True)]
        self.names = [name.strip() for name in names]
        self._use_exact_names()
        dtypes = self.options.get("dtype", {})
        dates = self.options.get("parse_dates", ())
        self.typed = {
            *(dtypes if isinstance(dtypes, Mapping) else self.names if dtypes else ()),
            *self.options.get("converters", ()),
            *(dates if isinstance(dates, list | tuple) else ()),
        }

    def column(self, place: int) -> pa.Array:
        """Return a column, with times for text that is ISO 8601."""
        values = _arrow(self.frame.iloc[:, place])
        if self._is_typed(place) or not is_text(values.type):
            return values
        present = values.drop_null()
        if not len(present) or not pc.all(pc.match_substring_regex(present, ISO_TIME)).as_py():
            return values
        zoned = pc.match_substring_regex(present, ZONE)
        if pc.any(zoned).as_py() and not pc.all(zoned).as_py():
            return values
        try:
            times = require("pandas").to_datetime(
                values.to_pandas(), format="ISO8601", utc=zoned[0].as_py()
            )
        except ValueError:
            return values  # for example the 31st of April
        dates = pc.max(pc.utf8_length(present)).as_py() == len("2024-01-31")
        return _arrow(times).cast(pa.date32()) if dates else _arrow(times)

    def name_column(self, file_as: str, table: TableColumns) -> pa.Array:
        """Return the name of this file, once for each row."""
        if file_as in table:
            raise taken_error(self.path, file_as)
        return pa.repeat(file_stem(self.path), len(self.frame))

    def selected(
        self, key: str, table: TableColumns, known: Iterable[str], *, is_tag: bool = False
    ) -> pa.Array:
        """Return a column of the renamed table; refuse or warn about what was not meant."""
        if key not in table:
            remedy = file_remedy(self.path, "") or header_remedy(self.names)
            remedy = remedy[:1].upper() + remedy[1:]
            raise UnknownNameError(f"column of {str(self.path)!r}", key, known, remedy)
        values, place = table[key], table.place(key)
        if self._is_typed(place):
            return values
        is_float = pa.types.is_floating(values.type)
        if is_float:
            self._check_integers(key, values, place)
        if is_tag and (is_float or pa.types.is_integer(values.type)):
            values = self._ids_as_text(key, values, place)
        decimal = str(self.options.get("decimal", "."))
        warn_about_text(self.names[place], values, self.path, is_tag=is_tag, decimal=decimal)
        if values.null_count:
            self._check_row_lengths(place + 1)
        return values

    def _check_integers(self, key: str, values: pa.Array, place: int) -> None:
        """Refuse integers that change because a column holds floats, too."""
        large = pc.and_(pc.greater_equal(pc.abs(values), 2.0**53), pc.is_finite(values))
        if not pc.any(large).as_py():
            return
        texts = self.text(place).filter(large).to_pylist()
        for number, text in zip(values.filter(large).to_pylist(), texts, strict=True):
            if text.strip().lstrip("+-").isdigit() and int(text) != number:
                raise DataError(
                    f"column {key!r} of {str(self.path)!r} holds the integer {text.strip()} beside "
                    "floats or missing values, and floats do not hold it; read={'dtype': "
                    f"{{{self.names[place]!r}: str}}}} keeps its digits"
                )

    def _ids_as_text(self, key: str, values: pa.Array, place: int) -> pa.Array:
        """Return identifiers as text if numbers would change how they are written."""
        text = self.text(place)
        if pc.any(pc.match_substring_regex(text, LOOKS_LIKE_ID)).as_py():
            return text
        pairs = (
            pa.table([values, text], ["number", "text"])
            .group_by("number")
            .aggregate([("text", "min"), ("text", "max")])
        )
        twice = pairs.filter(pc.not_equal(pairs["text_min"], pairs["text_max"]))
        if len(twice):
            first, other = twice["text_min"][0].as_py(), twice["text_max"][0].as_py()
            warn(
                f"tag {key!r} of {str(self.path)!r} is read as numbers, in which {first!r} and "
                f"{other!r} are the same; read={{'dtype': {{{self.names[place]!r}: str}}}} keeps "
                "them apart"
            )
        return values

    def stacked(self, parts: Sequence[str], table: TableColumns, missing: str) -> Any:
        """Return columns as one array column, with NaN for missing numbers."""
        arrays = dict[str, Any]()
        for name in parts:
            values = self.selected(name, table, table)
            if is_text(values.type):
                raise DataError(
                    f"column {name!r} of {str(self.path)!r} holds text, so it cannot be stacked; "
                    "signs of missing values go into read={'na_values': [...]}"
                )
            if values.null_count and missing == "error":
                raise _missing_error(name, str(self.path), values, "or pass missing='nan'")
            if values.null_count and pa.types.is_integer(values.type):
                values = cast_column(values, pa.float64(), name, str(self.path))
            arrays[name] = to_numpy(to_arrow(values, name))
        return stack_columns(arrays)

    def text(self, place: int) -> pa.Array:
        """Return a column as it is written."""
        return _arrow(self._written().iloc[:, place]).cast(pa.string())

    def _check_row_lengths(self, n_needed: int) -> None:
        """Refuse rows with too few fields, which pandas fills silently."""
        sep, skipped = self.options.get("sep", ","), self.options.get("skiprows") or 0
        if not isinstance(sep, str) or not isinstance(skipped, int):
            return
        comment, quote = self.options.get("comment") or "\0", self.options.get("quotechar", '"')
        with _opened(self.path, self.options.get("compression", "infer")) as raw:
            file = io.TextIOWrapper(raw, encoding=self.options.get("encoding", "utf-8"), newline="")
            rows: Any = (re.split(sep, line.strip()) for line in file if line.strip())
            if len(sep) == 1:
                rows = csv.reader(file, delimiter=sep, quotechar=quote)
            for number, fields in enumerate(islice(rows, skipped, None), skipped + 1):
                if fields and not fields[0].startswith(comment) and len(fields) < n_needed:
                    raise DataError(
                        f"{str(self.path)!r} cannot be read as CSV: line "
                        f"{getattr(rows, 'line_num', number)} has {len(fields)} of "
                        f"{len(self.names)} fields; is the file truncated?"
                    )

    def _written(self, **more: Any) -> Any:
        options = {key: value for key, value in self.options.items() if key not in VALUES}
        return self._read(**{**options, "dtype": str, **more})

    def _is_typed(self, place: int) -> bool:
        return bool({self.names[place], place} & self.typed)

    def _read(self, **options: Any) -> Any:
        """Read a DataFrame; errors of pandas become DataErrors with a hint."""
        pandas = require("pandas")
        # types are inferred from whole columns
        whole = {} if "engine" in options else {"low_memory": False}
        first = {} if isinstance(options.get("header"), list | tuple) else {"index_col": False}
        arguments = {**first, **whole, "dtype_backend": "numpy_nullable", **options}
        with readable(self.path, "CSV"), warnings.catch_warnings():
            warnings.simplefilter("error", pandas.errors.ParserWarning)
            try:
                frame = pandas.read_csv(self.path, **arguments)
            except UnicodeDecodeError as error:
                remedy = file_remedy(self.path) or (
                    f"it is not UTF-8 ({error}); pass its encoding, as in read={{'encoding': "
                    "'latin-1'}"
                )
                raise DataError(f"{str(self.path)!r} cannot be read: {remedy}") from error
            except (ValueError, TypeError, pandas.errors.ParserWarning) as error:
                sep = options.get("sep", ",")
                reason = file_remedy(self.path, sep if isinstance(sep, str) else "") or (
                    f"{' '.join(str(error).split()).strip(' .')}. read= takes the options of "
                    "pandas.read_csv, such as {'sep': ';', 'decimal': ',', 'comment': '#', "
                    "'skiprows': 6}"
                )
                raise DataError(f"{str(self.path)!r} cannot be read as CSV: {reason}") from error
        return frame.reset_index() if arguments.get("index_col", False) is not False else frame

    def _use_exact_names(self) -> None:
        """Refuse options for columns that are not there, and give pandas their names with spaces.

        pandas passes over both.
        """
        exact = dict(zip(self.names, self.frame.columns, strict=True))
        changed = False
        for option in ("dtype", "na_values", "converters", "date_format"):
            given = self.options.get(option)
            if not isinstance(given, Mapping):
                continue
            for name in given:
                if isinstance(name, str) and name.strip() not in exact:
                    reason = f"read[{option!r}] asks for it"
                    raise UnknownNameError("column", name, self.names, reason)
            own = {exact.get(n.strip(), n) if isinstance(n, str) else n: given[n] for n in given}
            changed = changed or list(own) != list(given)
            self.options[option] = own
        if changed:
            self.frame = self._read(**self.options)
            for option in ("dtype", "converters"):
                if isinstance(self.options.get(option), Mapping):
                    self.options[option] = {
                        n.strip() if isinstance(n, str) else n: v
                        for n, v in self.options[option].items()
                    }


def _opened(path: Path, compression: Any) -> Any:
    """Open a file that may be compressed, as bytes."""
    kind = path.suffix.lower() if compression == "infer" else f".{compression}"
    if kind == ".xz":
        return lzma.open(path)
    if kind == ".zip":
        archive = zipfile.ZipFile(path)
        return archive.open(archive.namelist()[0])
    return pa.input_stream(str(path), compression=STREAMS.get(kind))


def _arrow(values: Any) -> pa.Array:
    array = pa.array(values, from_pandas=True)
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _concatenated(key: str, files: Mapping[str, Mapping[str, Any]], missing: str) -> Any:
    """Concatenate a column of all files, with NaN for missing numbers."""
    parts = {
        path: columns[key] if isinstance(columns[key], pa.Array) else to_arrow(columns[key], key)
        for path, columns in files.items()
    }
    kind = common_type(key, {path: part.type for path, part in parts.items()})
    parts = {path: cast_column(part, kind, key, path) for path, part in parts.items()}
    column = pa.chunked_array(list(parts.values()), type=kind).combine_chunks()
    if column.null_count:
        path = next(path for path, part in parts.items() if part.null_count)
        if missing == "error":
            raise _missing_error(key, path, parts[path], "or pass missing='nan'")
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)):
            remedy = (  # only numbers can be missing, as NaN
                "as only numbers can be missing (as NaN), or pass read={'keep_default_na': False} "
                "if empty fields, 'NA' or 'None' are values; if numbers are meant, the signs of "
                "missing ones go into read={'na_values': [...]}"
                if is_text(kind)
                else f"as {kind} values cannot be missing: read the file with pandas, then use "
                "from_pandas"
            )
            raise _missing_error(key, path, parts[path], remedy)
    if column.null_count and pa.types.is_integer(kind):
        column = cast_column(column, pa.float64(), key, next(iter(files)))
    return column


def _missing_error(key: str, path: str, values: pa.Array, remedy: str) -> DataError:
    row = pc.index(pc.is_null(values), value=True).as_py()
    return DataError(
        f"column {key!r} of {path!r} has {values.null_count} missing value(s), the first in row "
        f"{row}; fill or drop them, {remedy}"
    )
