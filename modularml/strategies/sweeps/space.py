"""Ranges and choices that a sweep draws settings from."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, TypeAlias

from modularml.errors import ConfigError

PLAIN = (bool, int, float, str, type(None))


class _Range:
    """Numbers between two bounds."""

    low: Any
    high: Any
    step: Any
    log: bool

    def draw(self, trial: Any, name: str) -> Any:
        """Let a trial suggest a value."""
        suggest = getattr(trial, f"suggest_{type(self).__name__.lower()}")
        return suggest(name, self.low, self.high, step=self.step, log=self.log)

    def value(self, drawn: Any) -> Any:
        """Return the setting for what was drawn."""
        return drawn


@dataclass(frozen=True)
class Float(_Range):
    """Numbers from `low` to `high`, both included; see `float_` and `log_float`.

    Examples
    --------
    >>> Float(0.0, 0.5).low
    0.0
    """

    low: float
    high: float
    step: float | None = None
    log: bool = False


@dataclass(frozen=True)
class Int(_Range):
    """Whole numbers from `low` to `high`, both included; see `int_`.

    Examples
    --------
    >>> Int(1, 8)
    Int(low=1, high=8, step=1, log=False)
    """

    low: int
    high: int
    step: int = 1
    log: bool = False


@dataclass(frozen=True)
class Choice:
    """One of several values; see `choice`.

    A storage holds plain values as they are, and other objects by the names in `names`.

    Examples
    --------
    >>> Choice(["relu", "tanh"])
    Choice(values=['relu', 'tanh'])
    """

    values: tuple[Any, ...]

    @property
    def names(self) -> tuple[Any, ...]:
        """What stands for each value in the study: the value itself, or its name."""
        names: list[Any] = []
        for value in self.values:
            name = value
            if not isinstance(value, PLAIN):  # the same in every process
                name = getattr(value, "__qualname__", None) or repr(value)
                name = re.sub(r" at 0x[0-9a-fA-F]+", "", str(name))
            n_before = names.count(name) if isinstance(name, str) else 0
            names.append(f"{name} #{n_before + 1}" if n_before else name)
        return tuple(names)

    def draw(self, trial: Any, name: str) -> Any:
        """Let a trial suggest the name of a value."""
        return trial.suggest_categorical(name, self.names)

    def value(self, drawn: Any) -> Any:
        """Return the value for a name."""
        return self.values[self.names.index(drawn)]


Dimension: TypeAlias = Float | Int | Choice


def float_(low: float, high: float, *, step: float | None = None) -> Float:
    """Draw numbers evenly between two bounds, which are included.

    Parameters
    ----------
    low, high : float
        Finite, ``low <= high``.
    step : float, optional
        Distance of the values; by default any number between the bounds.

    Raises
    ------
    ConfigError
        If a bound is not finite, or the bounds or the step are not in order.

    Examples
    --------
    >>> float_(0.0, 0.5)
    Float(low=0.0, high=0.5, step=None, log=False)
    """
    _check_bounds("float_", low, high, Real)
    if step is not None and not (isinstance(step, Real) and 0 < step < math.inf):
        raise ConfigError(f"step must be a positive number or None, got {step!r}")
    return Float(float(low), float(high), None if step is None else float(step))


def log_float(low: float, high: float) -> Float:
    """Draw numbers evenly on a logarithmic scale, for learning rates and the like.

    Parameters
    ----------
    low, high : float
        Positive and finite, ``low <= high``; both are included.

    Raises
    ------
    ConfigError
        If a bound is not as described.

    Examples
    --------
    >>> log_float(1e-4, 1e-1)
    Float(low=0.0001, high=0.1, step=None, log=True)
    """
    _check_bounds("log_float", low, high, Real)
    if low <= 0:
        raise ConfigError(f"log_float needs low above 0, got {low!r}; use float_ for other ranges")
    return Float(float(low), float(high), log=True)


def int_(low: int, high: int, *, step: int = 1, log: bool = False) -> Int:
    """Draw whole numbers between two bounds, which are included.

    Parameters
    ----------
    low, high : int
        ``low <= high``; at least 1 with `log`.
    step : int
        Distance of the values, at least 1; 1 with `log`.
    log : bool
        Whether to draw evenly on a logarithmic scale.

    Raises
    ------
    ConfigError
        If an argument is not as described.

    Examples
    --------
    >>> int_(8, 64, step=8)
    Int(low=8, high=64, step=8, log=False)
    """
    _check_bounds("int_", low, high, Integral)
    if not isinstance(step, Integral) or isinstance(step, bool) or step < 1:
        raise ConfigError(f"step must be an int of at least 1, got {step!r}")
    if log and (low < 1 or step != 1):
        raise ConfigError(f"log=True needs low of at least 1 and no step, got {low} and {step}")
    return Int(int(low), int(high), int(step), bool(log))


def choice(values: Sequence[Any]) -> Choice:
    """Choose one of several values; a plain list in a space means the same.

    Parameters
    ----------
    values : sequence
        At least one: numbers, texts, or objects such as models and optimizers. Objects are known
        to the study by their ``repr``.

    Raises
    ------
    ConfigError
        If there is no value, or one occurs twice.

    Examples
    --------
    >>> choice(["relu", "tanh"])
    Choice(values=('relu', 'tanh'))
    """
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise ConfigError(f"choice needs a list of values, got {values!r}")
    is_numpy = [hasattr(v, "dtype") and getattr(v, "ndim", 1) == 0 for v in values]
    made = Choice(
        tuple(v.item() if scalar else v for v, scalar in zip(values, is_numpy, strict=True))
    )
    if not made.values:
        raise ConfigError("choice needs at least one value, got none")
    names = list(made.names)
    if any(isinstance(name, float) and math.isnan(name) for name in names):
        raise ConfigError(f"choice cannot hold NaN, got {values!r:.80}")
    if twice := [name for i, name in enumerate(names) if names.index(name) < i]:
        raise ConfigError(f"choice has {twice[0]!r} twice; omit one")
    return made


def as_space(space: Any) -> dict[str, Dimension]:
    """Return a space with a range or choice for each path.

    Raises
    ------
    ConfigError
        If it is not a dict of paths to lists, ranges and choices, or is empty.
    """
    if not isinstance(space, Mapping) or not space:
        raise ConfigError(
            "space must be a dict of config paths to lists or ranges, such as "
            f"{{'graph.optimizer.lr': mml.space.log_float(1e-4, 1e-1)}}, got {space!r:.80}"
        )
    dimensions: dict[str, Dimension] = {}
    for path, values in space.items():
        if not isinstance(path, str):
            raise ConfigError(f"paths of a space must be strings, got {path!r}")
        if isinstance(values, Float | Int | Choice):
            dimensions[path] = values
        elif (
            isinstance(values, tuple)
            and len(values) == 2
            and all(isinstance(value, Real) and not isinstance(value, bool) for value in values)
        ):
            raise ConfigError(
                f"space[{path!r}] = {values!r} may be a range or two values: pass "
                f"mml.space.float_, int_ or log_float for a range, or the list {list(values)!r}"
            )
        elif isinstance(values, list | tuple):
            dimensions[path] = choice(values)
        else:
            raise ConfigError(
                f"space[{path!r}] must be a list of values, or one of mml.space.log_float, "
                f"float_, int_ and choice, got {values!r:.80}"
            )
    return dimensions


def _check_bounds(name: str, low: Any, high: Any, kind: type) -> None:
    for bound in (low, high):
        if not isinstance(bound, kind) or isinstance(bound, bool) or not math.isfinite(bound):  # type: ignore[arg-type]
            what = "ints" if kind is Integral else "finite numbers"
            raise ConfigError(f"the bounds of {name} must be {what}, got {low!r} and {high!r}")
    if low > high:
        raise ConfigError(f"{name} needs low <= high, got {low!r} and {high!r}")
