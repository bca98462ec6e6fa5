"""Events of streams, and sinks that collect them as rows, write them to a file or print them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO, TypeAlias, overload

from modularml._optional import loaded, require
from modularml.errors import ConfigError, DataError, UnknownNameError
from modularml.loops.checks import check_int
from modularml.progress import print_line

if TYPE_CHECKING:
    import pandas as pd


class Event(dict[str, Any]):
    """The result of an epoch: a dict with typed common keys.

    ======================  ======================================================
    ``step``                int, the epoch, 1-based unless offset
    ``epoch``               int, the epoch of a phase, 0-based
    ``train_loss``          float, the mean over the samples of the epoch
    ``val_loss``            float, if a stage added it
    ``model``               the model in training; no copy, so it changes
    ======================  ======================================================

    Examples
    --------
    >>> event = Event(step=1, train_loss=0.5)
    >>> event, event["step"]
    ({'step': 1, 'train_loss': 0.5}, 1)
    """

    if TYPE_CHECKING:

        @overload
        def __getitem__(self, key: Literal["step", "epoch"], /) -> int: ...
        @overload
        def __getitem__(self, key: Literal["train_loss", "val_loss"], /) -> float: ...
        @overload
        def __getitem__(self, key: str, /) -> Any: ...
        def __getitem__(self, key: str, /) -> Any: ...


Events: TypeAlias = Iterable[dict[str, Any]]
Stage: TypeAlias = Callable[[Events], Iterator[dict[str, Any]]]


class NotAnEventError(DataError, TypeError):
    """An element of a stream is not a dict."""

    def __init__(self, came: object) -> None:
        super().__init__(f"an event must be a dict with str keys, got {came!r:.200}")


@contextmanager
def source(events: Events) -> Iterator[Iterator[dict[str, Any]]]:
    """Iterate over events, and close their iterator at the end, on failure or when closed."""
    iterator = iter(events)
    try:
        yield iterator
    finally:
        close = getattr(iterator, "close", None)
        if close is not None:
            close()


def number(event: dict[str, Any], key: str) -> float:
    """Return a value of an event as a number.

    Raises
    ------
    UnknownNameError
        If the event has no such key; also a `KeyError`.
    NotAnEventError
        If the event is not a dict.
    TypeError, ValueError
        If ``float`` does not accept the value.
    """
    if not isinstance(event, Mapping):
        raise NotAnEventError(event)
    if key not in event:
        raise UnknownNameError("event key", key, event)
    value = event[key]
    detach = getattr(value, "detach", None)  # for tensors
    return float(value if detach is None else detach())


Row: TypeAlias = dict[str, Any]


def collect(
    events: Events, *, include: Sequence[str] | None = None, exclude: Sequence[str] | None = None
) -> list[Row]:
    """Collect a stream into a list of dicts.

    Parameters
    ----------
    events : iterable of dict
        Consumed.
    include : sequence of str, optional
        Keys to keep; missing ones are ignored.
    exclude : sequence of str, optional
        Keys to drop in addition to ``model``, which is dropped unless `include` names it.

    Returns
    -------
    list of dict
        Shallow copies.

    Raises
    ------
    ConfigError
        If both `include` and `exclude` are given. The stream is not consumed then.

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
    r"""Write a stream as JSON Lines, each line when its event arrives.

    Parameters
    ----------
    events : iterable of dict
        Consumed.
    dest : path-like or text file
        A file at a path is overwritten, and its folder created if missing. An open file is
        written to and left open.
    include, exclude : sequence of str, optional
        As in `collect`.

    Raises
    ------
    ConfigError
        If both `include` and `exclude` are given.
    TypeError
        If ``json.dumps`` does not accept a value.

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
    path = Path(dest) if isinstance(dest, str | Path) else None
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    file: Any
    with (
        nullcontext(dest) if path is None else path.open("w", encoding="utf-8", buffering=1)
    ) as file:
        for row in _rows(events, select):
            try:
                file.write(json.dumps(row) + "\n")
            except (TypeError, ValueError) as error:
                error.add_note(
                    f"event keys are {list(row)}; omit values that are not JSON with exclude="
                )
                raise


def collect_pd(
    events: Events, *, include: Sequence[str] | None = None, exclude: Sequence[str] | None = None
) -> pd.DataFrame:
    """Collect a stream into a pandas DataFrame, one row per event.

    Parameters
    ----------
    events : iterable of dict
        Consumed.
    include, exclude : sequence of str, optional
        As in `collect`.

    Raises
    ------
    ConfigError
        If both `include` and `exclude` are given.
    MissingDependencyError
        If pandas is not installed; also an `ImportError`. The stream is not consumed then.

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


def print_keys(
    *keys: str, precision: int = 4, include_step: bool = True, step_key: str = "step"
) -> Callable[[Event], None]:
    """Create a function for `tap` that prints keys of an event in one line.

    Parameters
    ----------
    *keys : str
        Keys to print, in this order.
    precision : int
        Digits after the decimal point, at least 0.
    include_step : bool
        Whether `step_key` comes first, if the event has it.
    step_key : str

    Raises
    ------
    ConfigError
        If `precision` is negative, or there is nothing to print: no `keys` and no step.

    Notes
    -----
    - A scalar tensor is printed as a number.
    - A bool is printed as ``True`` or ``False``, an int or float with `precision` digits, anything
      else with ``str``; a missing key as ``key=NA``.
    - The step is padded with zeros to 4 digits if ``int`` accepts it, and unchanged otherwise.

    Examples
    --------
    >>> from modularml.streams import pipe, tap
    >>> events = [
    ...     {"step": 1, "train_loss": 0.9, "lr": 0.01},
    ...     {"step": 2, "train_loss": 0.8, "lr": 0.01},
    ... ]
    >>> stream = pipe(events, tap(print_keys("train_loss", "lr", precision=3)))
    >>> list(stream)
    step=0001 train_loss=0.900 lr=0.010
    step=0002 train_loss=0.800 lr=0.010
    [{'step': 1, 'train_loss': 0.9, 'lr': 0.01}, {'step': 2, 'train_loss': 0.8, 'lr': 0.01}]
    """
    check_int("precision", precision, 0)
    if not keys and not include_step:
        raise ConfigError("keys must name at least one key to print if include_step=False")

    def shown(value: Any) -> str:
        torch = loaded("torch")
        if torch is not None and isinstance(value, torch.Tensor) and value.numel() == 1:
            value = float(value.detach().cpu())
        if isinstance(value, int | float) and not isinstance(value, bool):
            return f"{value:.{precision}f}"
        return str(value)

    def show(event: Mapping[str, Any]) -> None:
        words = [f"{key}={shown(event[key]) if key in event else 'NA'}" for key in keys]
        if include_step and step_key in event:
            step = event[step_key]
            with suppress(TypeError, ValueError, OverflowError):
                step = f"{int(step):04d}"
            words.insert(0, f"{step_key}={step}")
        print_line(" ".join(words))

    return show


def _selection(
    include: Sequence[str] | None, exclude: Sequence[str] | None
) -> Callable[[Row], Row]:
    if include is not None and exclude is not None:
        raise ConfigError("pass only one of include and exclude, got both")
    for name, keys in (("include", include), ("exclude", exclude)):
        if isinstance(keys, str):
            raise ConfigError(f"{name} must be a sequence of str, got {keys!r}; write [{keys!r}]")
    if include is not None:
        included = tuple(include)
        return lambda event: {key: event[key] for key in included if key in event}
    dropped = frozenset(("model", *(exclude or ())))
    return lambda event: {key: value for key, value in event.items() if key not in dropped}


def _rows(events: Events, select: Callable[[Row], Row]) -> Iterator[Row]:
    with source(events) as upstream:
        for event in upstream:
            if not isinstance(event, Mapping):
                raise NotAnEventError(event)
            yield select(event)
