"""Reading CSV files into columns of one type without loss."""

from __future__ import annotations

import csv
import inspect
import warnings
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from modularml._optional import require
from modularml._warning import warn
from modularml.data.arrow_types import is_category
from modularml.data.collection import SampleCollection
from modularml.data.columns import to_arrow
from modularml.data.frames import Rename, Stack, TableColumns, column_name, column_names
from modularml.data.paths import FilePaths, check_file_names, files_of, readable, taken_error
from modularml.data.promotion import cast_column, common_type
from modularml.data.sources import from_columns
from modularml.errors import ConfigError, DataError, UnknownNameError, expect

__all__ = ["from_csv"]

ENDINGS = (".csv", ".tsv", ".txt", ".csv.gz", ".csv.bz2", ".csv.xz", ".csv.zst")
REPLACEMENTS = {
    "filepath_or_buffer": "paths=",
    "chunksize": "paths=",
    "iterator": "paths=",
    "dtype_backend": "read={'dtype': ...}",
}
"""Arguments of pandas.read_csv that are not supported, and their replacements."""

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
    _check_options(options)
    tag_keys = list(dict.fromkeys([*column_names(tags), *column_names(file_as)]))
    masks = [mask] if isinstance(mask, str) else (mask or {}).values()
    wanted = [*dict.fromkeys([*column_names(features), *column_names(targets), *tag_keys, *masks])]
    files: dict[str, Mapping[str, Any]] = {}
    for path in files_of(paths, ENDINGS):
        files[str(path)] = _columns_of(path, options, rename, stack, wanted, tag_keys, file_as)
    check_file_names(files, file_as)
    return from_columns(
        {key: _concatenated(key, files, missing) for key in wanted},
        features,
        targets,
        tag_keys,
        mask=mask,
        categories=[
            k for k in wanted if any(is_category(columns[k]) for columns in files.values())
        ],
    )


def _check_options(options: Mapping[str, Any]) -> None:
    known = inspect.signature(require("pandas").read_csv).parameters
    for name in options:
        if name in REPLACEMENTS:
            raise ConfigError(
                f"read={{{name!r}: ...}} is not supported; use {REPLACEMENTS[name]} instead"
            )
        if name not in known:
            raise UnknownNameError("option of pandas.read_csv", name, known)


def _columns_of(
    path: Path,
    options: Mapping[str, Any],
    rename: Rename,
    stack: Stack,
    wanted: Sequence[str],
    tags: Sequence[str],
    file_as: str | None,
) -> dict[str, Any]:
    """Return the requested columns of one file."""
    frame = _read_frame(path, options)
    names = _header(path, options, frame)
    _check_named_columns(options, names)
    dtypes = options.get("dtype", {})
    typed = set(dtypes) if isinstance(dtypes, Mapping) else set(names) if dtypes else set()

    def column(place: int) -> pa.Array:
        values = _arrow(frame.iloc[:, place])
        return values if names[place] in typed else _parse_times(values)

    table = TableColumns(names, column).renamed(rename)
    columns = table.stacked(stack)
    selected = dict[str, Any]()
    for key in wanted:
        if key == file_as:
            if key in columns:
                raise taken_error(path, file_as)
            selected[key] = pa.repeat(path.name.partition(".")[0], len(frame))
            continue
        if key not in columns:
            raise UnknownNameError("column", key, columns, _hint(names))
        selected[key] = columns[key]
        place = table.names.index(key) if key in table else -1
        if place < 0 or names[place] in typed:
            continue
        _check_integers(key, selected[key], path, options, place)
        if key in tags:
            selected[key] = _ids_as_text(key, selected[key], path, options, place)
        else:
            _warn_about_text(key, selected[key], path)
        if place == len(names) - 1 and selected[key].null_count:
            _check_row_lengths(path, options, len(names))
    return selected


def _read_frame(path: Path, options: Mapping[str, Any], **more: Any) -> Any:
    """Read a file into a DataFrame; errors of pandas become DataErrors with a hint."""
    pandas = require("pandas")
    whole = {} if "engine" in options else {"low_memory": False}  # infer types from whole columns
    arguments = {"index_col": False, **whole, "dtype_backend": "numpy_nullable", **options, **more}
    with readable(path, "CSV"), warnings.catch_warnings():
        warnings.simplefilter("error", pandas.errors.ParserWarning)
        try:
            frame = pandas.read_csv(path, **arguments)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{str(path)!r} is not UTF-8 ({error}); pass its encoding, as in "
                "read={'encoding': 'latin-1'}"
            ) from error
        except (ValueError, TypeError, pandas.errors.ParserWarning) as error:
            raise DataError(
                f"{str(path)!r} cannot be read as CSV: {str(error).strip(' .')}. read= takes the "
                "options of pandas.read_csv, such as {'sep': ';', 'decimal': ',', 'comment': '#', "
                "'skiprows': 6}"
            ) from error
    return frame.reset_index() if arguments["index_col"] is not False else frame


def _header(path: Path, options: Mapping[str, Any], frame: Any) -> list[str]:
    """Return the column names as in the file; pandas numbers repeated names."""
    names = [column_name(name) for name in frame.columns]
    if {"header", "names", "index_col", "usecols", "engine"}.isdisjoint(options) and names:
        first = _read_frame(path, options, header=None, nrows=1, dtype=str).iloc[0]
        raw = ["" if text is None or text != text else str(text) for text in first.tolist()]  # noqa: PLR0124
        if len(raw) == len(names):
            names = [text or name for text, name in zip(raw, names, strict=True)]
    return [name.strip() for name in names]


def _hint(names: Sequence[str]) -> str:
    """Return the most likely remedy if a file lacks a column."""
    separators = [sep for sep in ";\t|" if len(names) == 1 and sep in names[0]]
    if separators:
        return (
            f"The header is {names[0]!r}: pass read={{'sep': {separators[0]!r}}}, and 'decimal' "
            "if needed"
        )
    if names and names[0].startswith("#"):
        return "The file begins with a comment: pass read={'comment': '#'}"
    if names and all(name.replace(".", "").replace("-", "").isdigit() for name in names):
        return "The file has no header: pass read={'header': None, 'names': [...]}"
    return ""


def _arrow(values: Any) -> pa.Array:
    array = pa.array(values, from_pandas=True)
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _parse_times(values: pa.Array) -> pa.Array:
    """Parse text that holds only ISO dates or times; return other columns unchanged."""
    if not pa.types.is_string(values.type) and not pa.types.is_large_string(values.type):
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


def _ids_as_text(
    key: str, values: pa.Array, path: Path, options: Mapping[str, Any], place: int
) -> pa.Array:
    """Return identifiers as text if numbers would change how they are written."""
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        return values
    text = _arrow(_read_frame(path, options, dtype=str).iloc[:, place]).cast(pa.string())
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
            f"tag {key!r} of {str(path)!r} is read as numbers, in which {first!r} and {other!r} "
            f"are the same; read={{'dtype': {{{key!r}: str}}}} keeps them apart"
        )
    return values


def _check_integers(
    key: str, values: pa.Array, path: Path, options: Mapping[str, Any], place: int
) -> None:
    """Refuse integers that change because a column holds floats, too."""
    if not pa.types.is_floating(values.type):
        return
    large = pc.and_(pc.greater_equal(pc.abs(values), 2.0**53), pc.is_finite(values))
    if not pc.any(large).as_py():
        return
    text = _arrow(_read_frame(path, options, dtype=str).iloc[:, place]).cast(pa.string())
    for number, written in zip(
        values.filter(large).to_pylist(), text.filter(large).to_pylist(), strict=True
    ):
        if written.strip().lstrip("+-").isdigit() and int(written) != number:
            raise DataError(
                f"column {key!r} of {str(path)!r} holds the integer {written.strip()} beside "
                f"floats or missing values, and floats do not hold it; read={{'dtype': {{{key!r}: "
                "str}} keeps its digits"
            )


def _check_named_columns(options: Mapping[str, Any], names: Sequence[str]) -> None:
    """Refuse options for columns that the file does not have, which pandas passes over."""
    for option in ("dtype", "na_values", "converters"):
        given = options.get(option)
        for name in given if isinstance(given, Mapping) else ():
            if isinstance(name, str) and name.strip() not in names:
                raise UnknownNameError("column", name, names, f"read[{option!r}] asks for it")


def _warn_about_text(key: str, values: pa.Array, path: Path) -> None:
    """Warn about a column that is text only because of a few non-numeric values."""
    if not pa.types.is_string(values.type) and not pa.types.is_large_string(values.type):
        return
    texts = values.drop_null().to_pandas()
    to_numeric = require("pandas").to_numeric
    invalid = texts[to_numeric(texts, errors="coerce").isna()]
    commas = (
        len(invalid) and to_numeric(invalid.str.replace(",", "."), errors="coerce").notna().all()
    )
    if commas or 0 < len(invalid) <= len(texts) / 2:
        remedy = "'decimal': ','" if commas else f"'na_values': [{invalid.iloc[0]!r}]"
        if commas and invalid.str.fullmatch(r"\s*[+-]?[0-9]{1,3}(,[0-9]{3})+\s*").all():
            remedy = "'thousands': ','}, or for decimal commas {'decimal': ','"
        warn(
            f"column {key!r} of {str(path)!r} is text because of values such as "
            f"{invalid.iloc[0]!r} ({len(invalid)} of {len(texts)}); to read numbers, pass "
            f"read={{{remedy}}}",
        )


def _check_row_lengths(path: Path, options: Mapping[str, Any], n_columns: int) -> None:
    """Refuse rows with too few fields, which pandas fills silently."""
    sep, skipped = options.get("sep", ","), options.get("skiprows") or 0
    if not isinstance(sep, str) or len(sep) != 1 or not isinstance(skipped, int):
        return
    comment = options.get("comment") or "\0"
    with path.open(encoding=options.get("encoding", "utf-8"), newline="") as file:
        reader = csv.reader(file, delimiter=sep, quotechar=options.get("quotechar", '"'))
        for fields in islice(reader, skipped, None):
            if fields and not fields[0].startswith(comment) and len(fields) < n_columns:
                raise DataError(
                    f"{str(path)!r} cannot be read as CSV: line {reader.line_num} has "
                    f"{len(fields)} of {n_columns} fields; is the file truncated?"
                )


def _concatenated(key: str, files: Mapping[str, Mapping[str, Any]], missing: str) -> Any:
    """Concatenate a column of all files, with NaN for missing numbers."""
    parts = {
        path: columns[key] if isinstance(columns[key], pa.Array) else to_arrow(columns[key], key)
        for path, columns in files.items()
    }
    kind = common_type(key, {path: part.type for path, part in parts.items()})
    parts = {path: cast_column(part, kind, key, path) for path, part in parts.items()}
    column = pa.chunked_array(list(parts.values()), type=kind).combine_chunks()
    if column.null_count and missing == "error":
        path = next(path for path, part in parts.items() if part.null_count)
        row = pc.index(pc.is_null(parts[path]), value=True).as_py()
        raise DataError(
            f"column {key!r} of {path!r} has {column.null_count} missing value(s), the first in "
            f"row {row}; fill or drop them, or pass missing='nan'"
        )
    if column.null_count and pa.types.is_integer(kind):
        column = cast_column(column, pa.float64(), key, next(iter(files)))
    return column
