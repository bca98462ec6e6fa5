"""Sinks: what uses a stream up."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeAlias

from modularml._optional import require
from modularml.errors import ConfigError
from modularml.streams.events import Events, NotAnEventError, Supply

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["collect", "collect_jsonl", "collect_pd"]

Row: TypeAlias = dict[str, Any]


def collect(
    events: Events, *, include: Sequence[str] | None = None, exclude: Sequence[str] | None = None
) -> list[Row]:
    """Collect a stream into a list of dicts.

    Parameters
    ----------
    events : iterable of dict
        Used up.
    include : sequence of str, optional
        Keys to keep; those that an event lacks are passed over.
    exclude : sequence of str, optional
        Keys to drop beside ``model``, which no row holds unless `include` names it.

    Returns
    -------
    list of dict
        Shallow copies.

    Raises
    ------
    ConfigError
        If both `include` and `exclude` are given. Nothing has been drawn from the stream then.

    Examples
    --------
    >>> events = [
    ...     {"step": 1, "train_loss": 0.5, "model": object()},
    ...     {"step": 2, "train_loss": 0.4, "model": object()},
    ... ]
    >>> collect(events)
    [{'step': 1, 'train_loss': 0.5}, {'step': 2, 'train_loss': 0.4}]
    >>> collect(events, include=["step"])
    [{'step': 1}, {'step': 2}]
    """
    return list(_rows(events, _selection(include, exclude)))


def collect_jsonl(
    events: Events,
    dest: str | Path | TextIO,
    *,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
) -> None:
    r"""Write a stream as JSON Lines, each line when its event comes.

    Parameters
    ----------
    events : iterable of dict
        Used up.
    dest : path-like or text file
        A file at a path is overwritten, and its folder made where there is none. An open file is
        written to and left open.
    include, exclude : sequence of str, optional
        As in `collect`.

    Raises
    ------
    ConfigError
        If both `include` and `exclude` are given.
    TypeError
        If ``json.dumps`` does not take a value.

    Examples
    --------
    >>> import io
    >>> buffer = io.StringIO()
    >>> events = [{"step": 1, "train_loss": 0.5, "model": object()}]
    >>> collect_jsonl(events, buffer)
    >>> buffer.getvalue()
    '{"step": 1, "train_loss": 0.5}\n'
    """
    select = _selection(include, exclude)
    with _opened(dest) as file:
        for row in _rows(events, select):
            file.write(_line(row))


def collect_pd(
    events: Events, *, include: Sequence[str] | None = None, exclude: Sequence[str] | None = None
) -> pd.DataFrame:
    """Collect a stream into a pandas DataFrame, one row an event.

    Parameters
    ----------
    events : iterable of dict
        Used up.
    include, exclude : sequence of str, optional
        As in `collect`.

    Raises
    ------
    ConfigError
        If both `include` and `exclude` are given.
    MissingDependencyError
        If pandas is not installed; it is an `ImportError`. Nothing has been drawn then.

    Examples
    --------
    >>> df = collect_pd(
    ...     [{"step": 1, "train_loss": 0.5, "model": object()}],
    ...     include=["step", "train_loss"],
    ... )
    >>> list(df.columns)
    ['step', 'train_loss']
    """
    select = _selection(include, exclude)
    pandas = require("pandas", purpose="to collect events into a DataFrame")
    rows = list(_rows(events, select))
    frame: pd.DataFrame = pandas.DataFrame(rows, columns=None if rows else include)
    return frame


def _selection(
    include: Sequence[str] | None, exclude: Sequence[str] | None
) -> Callable[[Row], Row]:
    if include is not None and exclude is not None:
        raise ConfigError("give only one of include and exclude, got both")
    for name, keys in (("include", include), ("exclude", exclude)):
        if isinstance(keys, str):
            raise ConfigError(f"{name} must be a sequence of str, got {keys!r}; write [{keys!r}]")
    if include is not None:
        kept = tuple(include)
        return lambda event: {key: event[key] for key in kept if key in event}
    dropped = frozenset(("model", *(exclude or ())))
    return lambda event: {key: value for key, value in event.items() if key not in dropped}


def _rows(events: Events, select: Callable[[Row], Row]) -> Iterator[Row]:
    with Supply(events) as source:
        for event in source:
            if not isinstance(event, Mapping):
                raise NotAnEventError(event)
            yield select(event)


def _opened(dest: str | Path | TextIO) -> Any:
    if not isinstance(dest, str | Path):
        return nullcontext(dest)
    path = Path(dest)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("w", encoding="utf-8", buffering=1)


def _line(row: Row) -> str:
    try:
        return json.dumps(row) + "\n"
    except (TypeError, ValueError) as error:
        error.add_note(f"event keys are {list(row)}; leave out what is no JSON with exclude=")
        raise
