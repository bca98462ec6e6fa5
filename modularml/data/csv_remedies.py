"""What to pass for CSV files and columns that pandas would read otherwise than meant."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from modularml._optional import require
from modularml._warning import warn

MAGIC = {
    b"\xff\xfe": "it is UTF-16; pass read={'encoding': 'utf-16'}",
    b"\xfe\xff": "it is UTF-16; pass read={'encoding': 'utf-16'}",
    b"\x1f\x8b": "it is compressed; pass read={'compression': 'gzip'}",
    b"BZh": "it is compressed; pass read={'compression': 'bz2'}",
    b"\xfd7zXZ": "it is compressed; pass read={'compression': 'xz'}",
    b"\x28\xb5\x2f\xfd": "it is compressed; pass read={'compression': 'zstd'}",
    b"PK\x03\x04": "it is a workbook or a zip archive: read it with pandas.read_excel, and pass "
    "the frame to from_pandas",
    b"\xd0\xcf\x11\xe0": "it is a workbook: read it with pandas.read_excel, and pass the frame to "
    "from_pandas",
    b"PAR1": "it is a Parquet file: use from_parquet",
    b"<": "it is a page of HTML or XML, not a table",
    b'{"': "it is JSON: read it with pandas.read_json, and pass the frame to from_pandas",
    b"[{": "it is JSON: read it with pandas.read_json, and pass the frame to from_pandas",
}
"""First bytes of files that are no plain CSV."""

MISSING = {"-", "--", "---", "?", ".", "*", "na", "n.a.", "none", "missing", "nil", "#value!"}
"""Signs of missing values that pandas reads as text, in lower case."""

DATE = (
    r"\s*(?:\d{4}([./-])\d{1,2}\1\d{1,2}|\d{1,2}([./-])(?:\d{1,2}|[A-Za-z]{3})\2\d{4})"
    r"(?:[T ,;]+\d{1,2}:\d{2}.*)?\s*"
)
QUANTITY = r"^[+-]?\d+(?:[.,]\d+)?\s*([^\W\d_]{1,4}|[%°‰]\w?)$"
"""A number with a unit."""

GROUPED = r"[+-]?[0-9]{1,3}(?:[',. \u00a0\u202f][0-9]{3})+(?:[.,][0-9]+)?"
"""A number with marks between thousands."""


def file_remedy(path: Path, given: str = ",") -> str:
    """Return what a file is that is no plain CSV, and what to do; else an empty text.

    `given` is the separator with which it was read.
    """
    with path.open("rb") as file:
        start = file.read(4096)
    if not start.strip(b"\xef\xbb\xbf \t\r\n"):
        return "it is empty: leave it out of paths, or delete it"
    for magic, remedy in MAGIC.items():
        if start.startswith(magic):
            return remedy
    if b"\0" in start:
        halves = start[::2].count(0), start[1::2].count(0)
        if max(halves) > len(start) / 3 and not min(halves):
            order = "be" if halves[0] else "le"
            return f"it is UTF-16; pass read={{'encoding': 'utf-16-{order}'}}"
        return "it holds bytes of zero, as text does not"
    text = start.lstrip(b"\xef\xbb\xbf").decode("latin-1")
    if text.lower().startswith("sep="):
        sep = text[4:5]
        return f"its first line names the separator; pass read={{'sep': {sep!r}, 'skiprows': 1}}"
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for sep in ";\t|":
        if lines and sep != given and lines[0].count(sep) > lines[0].count(given):
            decimal = ", 'decimal': ','" if "," in "".join(lines[1:3]) and given == "," else ""
            return f"{sep!r} separates its columns; pass read={{'sep': {sep!r}{decimal}}}"
    return ""


def header_remedy(names: Sequence[str]) -> str:
    """Return the most likely remedy if a file lacks a column."""
    first = names[0] if names else ""
    separators = [sep for sep in ";\t|" if len(names) == 1 and sep in first]
    if separators:
        return (
            f"The header is {first!r}: pass read={{'sep': {separators[0]!r}}}, and 'decimal' if "
            "needed"
        )
    if len(names) == 1 and len(first.split()) > 1:
        return f"The header is {first!r}: pass read={{'sep': r'\\s+'}} if spaces separate columns"
    if first.startswith("#"):
        return "The file begins with a comment: pass read={'comment': '#'}"
    if len(first) > 1 and first[0] == first[-1] == "'":
        return "The file has single quotes: pass read={'quotechar': \"'\"}"
    if names and all(name.replace(".", "").replace("-", "").isdigit() for name in names):
        return "The file has no header: pass read={'header': None, 'names': [...]}"
    return ""


def is_text(kind: pa.DataType) -> bool:
    """Check whether an Arrow type holds text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def warn_about_text(
    name: str, values: pa.Array, path: Path, *, is_tag: bool, decimal: str = "."
) -> None:
    """Warn about a column of text that is likely to be numbers or times.

    Parameters
    ----------
    name : str
        In the header of the file.
    values : pyarrow.Array
        Other types pass.
    path : Path
    is_tag : bool
        Identifiers may look like numbers.
    decimal : str
        Decimal mark of the file.
    """
    if not is_text(values.type) or values.null_count == len(values):
        return
    different = values.drop_null().value_counts()  # in the order of their first rows
    texts, counts = (different.field(i).to_pandas() for i in range(2))
    where = f"column {name!r} of {str(path)!r}"
    spaced = texts.str.startswith(" ")
    if re.fullmatch(DATE, texts.iloc[0]) and texts.str.fullmatch(DATE).all():
        warn(f"{where} is text, which sorts as text, although {_time_remedy(name, texts)}")
    elif spaced.any() and (is_tag or not spaced.all()):
        warn(f"{where} has values that begin with spaces; pass read={{'skipinitialspace': True}}")
    elif not is_tag:
        _warn_about_numbers(where, name, texts, counts, decimal)


def _time_remedy(name: str, texts: Any) -> str:
    """Return what pandas needs to read dates or times that are not ISO 8601."""
    pandas = require("pandas")
    example = texts.iloc[0]
    formats = dict[str, None]()
    for day_first in (True, False):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a format puts the month first
            guess = pandas.tseries.api.guess_datetime_format(example.strip(), dayfirst=day_first)
        if guess and pandas.to_datetime(texts, format=guess, errors="coerce").notna().all():
            formats[guess] = None
    if not formats:
        return (
            f"values such as {example!r} look like times; they differ in form, or some have a "
            "time zone: bring them to one form"
        )
    shown = " or ".join(map(repr, formats))
    return (
        f"values such as {example!r} are times; to read them, pass read={{'parse_dates': "
        f"[{name!r}], 'date_format': {shown}}}"
    )


def _warn_about_numbers(where: str, name: str, texts: Any, counts: Any, decimal: str) -> None:
    to_numeric = require("pandas").to_numeric
    invalid = texts[to_numeric(texts.str.replace(decimal, "."), errors="coerce").isna()]
    if decimal != ".":
        invalid = texts[texts.str.contains(".", regex=False) | texts.isin(invalid)]
    if not len(invalid):
        warn(
            f"{where} is text because it holds integers of more than 64 bits; to read numbers, "
            f"pass read={{'dtype': {{{name!r}: float}}}}"
        )
        return
    n_invalid, n = int(counts[invalid.index].sum()), int(counts.sum())
    if (remedy := _number_remedy(name, invalid, n_invalid, n)) is not None:
        warn(
            f"{where} is text because of values such as {invalid.iloc[0]!r} ({n_invalid} of {n}); "
            f"to read numbers, pass read={{{remedy}}}"
        )


def _number_remedy(name: str, invalid: Any, n_invalid: int, n: int) -> str | None:
    """Return the option with which pandas reads numbers; None if they are likely to be text.

    `n_invalid` of `n` rows hold one of the `invalid` texts, which are different.
    """

    def are_numbers(values: Any) -> bool:
        return bool(require("pandas").to_numeric(values, errors="coerce").notna().all())

    written = invalid.str.strip()
    if written.str.fullmatch(GROUPED).all():
        return _thousands(name, written)
    if are_numbers(written.str.replace(",", ".")):
        return "'decimal': ','"
    if written.str.lower().isin(["true", "false"]).all() and n_invalid < n:
        return "'true_values': ['True', '1'], 'false_values': ['False', '0']"
    for mark, sign in (("\u2212", "-"), ("D", "e"), ("d", "e")):
        if are_numbers(written.str.replace(mark, sign)):
            return _converter(name, f"s.replace({mark!r}, {sign!r})")
    units = written.str.extract(QUANTITY)[0].unique()
    if n_invalid == n and len(units) == 1 and isinstance(units[0], str):
        return _converter(name, f"s.strip().removesuffix({units[0]!r})")
    if n_invalid == 1 < n - 1 and invalid.index[0] == 0:
        return "'skiprows': [1]}, if it is a line of units, or {'na_values': [...]"
    if n_invalid <= n / 2 or written.str.lower().isin(MISSING).all():
        return f"'na_values': {written.unique()[:4].tolist()!r}"
    return None


def _thousands(name: str, written: Any) -> str:
    mark = next(character for character in written.iloc[0] if character not in "+-0123456789")
    comma = bool(mark != "," and written.str.contains(",").any())
    if not mark.isascii():  # pandas takes one byte
        return _converter(name, f"s.replace({mark!r}, '')" + ".replace(',', '.')" * comma)
    if mark == ",":
        return "'thousands': ','}, or for decimal commas {'decimal': ','"
    return f"'thousands': {mark!r}" + ", 'decimal': ','" * (comma or mark == ".")


def _converter(name: str, expression: str) -> str:
    return f"'converters': {{{name!r}: lambda s: float({expression})}}"
