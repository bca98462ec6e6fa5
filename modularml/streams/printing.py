"""Events as lines of text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from modularml._optional import loaded
from modularml.errors import ConfigError
from modularml.streams.checks import check_int
from modularml.streams.events import Event

__all__ = ["print_keys"]


def print_keys(
    *keys: str, precision: int = 4, include_step: bool = True, step_key: str = "step"
) -> Callable[[Event], None]:
    """Create a function for `tap` that prints some keys of an event in one line.

    Parameters
    ----------
    *keys : str
        What is printed, in this order.
    precision : int
        Digits after the decimal point, at least 0.
    include_step : bool
        Whether `step_key` comes first, where the event has it.
    step_key : str

    Raises
    ------
    ConfigError
        If `precision` is negative, or there is nothing to print: no `keys` and no step.

    Notes
    -----
    - A scalar tensor is taken off its graph and device and printed as a number.
    - A bool is printed as ``True`` or ``False``, an int or float with `precision` digits, anything
      else with ``str``; a key that is missing as ``key=NA``.
    - The step is padded with zeros to 4 digits where ``int`` takes it, and left as it is otherwise.

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
        raise ConfigError("keys must name at least one key to print where include_step=False")

    def show(event: Mapping[str, Any]) -> None:
        words = [f"{key}={_value(event, key, precision)}" for key in keys]
        if include_step and step_key in event:
            words.insert(0, f"{step_key}={_step(event[step_key])}")
        print(" ".join(words))  # noqa: T201 - this is what it is for

    return show


def _value(event: Mapping[str, Any], key: str, digits: int) -> str:
    if key not in event:
        return "NA"
    value = _plain(event[key])
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:.{digits}f}"
    return str(value)


def _plain(value: Any) -> Any:
    torch = loaded("torch")
    if torch is not None and isinstance(value, torch.Tensor) and value.numel() == 1:
        return float(value.detach().cpu())
    return value


def _step(value: Any) -> str:
    try:
        return f"{int(value):04d}"
    except (TypeError, ValueError, OverflowError):
        return str(value)
