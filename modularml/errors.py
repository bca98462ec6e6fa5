"""Exceptions of the library.

::

    ModularMLError
    ├── ConfigError             (ValueError)            an argument or config that cannot be used
    │   └── PlanError                                   a plan file with a mistake, and where it is
    ├── UnknownNameError        (KeyError, ValueError)  an unknown name; lists the closest
    ├── RegistrationError       (ValueError)            a label or id that is taken
    ├── MissingDependencyError  (ImportError)           an optional package that is not installed
    ├── DataError               (ValueError)            rows or columns that cannot be used
    │   ├── AuditError                                  rows that failed an audit
    │   ├── SplitError                                  a split that cannot be made or read
    │   └── ScalerError                                 a scaler that cannot be fitted or undone
    ├── NotFittedError          (RuntimeError)          asked to transform or predict before fitting
    ├── ShapeError              (ValueError)            shapes that do not fit
    ├── GraphError              (ValueError)            nodes that cannot be connected
    ├── BackendNotSupportedError (RuntimeError)         an operation that a backend lacks
    ├── DeviceError             (RuntimeError)          a device that does not exist
    ├── LossError               (RuntimeError)          a loss that cannot be built or computed
    ├── OptimizerNotSetError    (RuntimeError)          an optimizer that is missing or not built
    ├── ExecutionError          (RuntimeError)          a phase that cannot run
    │   ├── NonFiniteLossError                          a loss that is NaN or infinite
    │   └── MetricNotLoggedError                        a metric that is never logged
    └── MMLError                (RuntimeError)          a file that cannot be read or written
        ├── MMLExistsError      (FileExistsError)       the file exists already
        ├── MMLNotFoundError    (FileNotFoundError)     the file does not exist
        └── MMLKindError        (TypeError)             the file holds something else
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, Self

__all__ = [
    "AuditError",
    "BackendNotSupportedError",
    "ConfigError",
    "DataError",
    "DeviceError",
    "ExecutionError",
    "GraphError",
    "LossError",
    "MMLError",
    "MMLExistsError",
    "MMLKindError",
    "MMLNotFoundError",
    "MetricNotLoggedError",
    "MissingDependencyError",
    "ModularMLError",
    "NonFiniteLossError",
    "NotFittedError",
    "OptimizerNotSetError",
    "PlanError",
    "RegistrationError",
    "ScalerError",
    "ShapeError",
    "SplitError",
    "UnknownNameError",
    "closest",
]


class ModularMLError(Exception):
    """Base class of all exceptions of the library.

    Attributes
    ----------
    code : str
        Entry of the troubleshooting guide, such as ``MML-201``, which a note of the error names
        too; empty for errors whose message says all there is to say.

    Examples
    --------
    >>> from modularml.splitters import RandomSplitter
    >>> try:
    ...     RandomSplitter({"train": 0.8, "test": 0.3})
    ... except ModularMLError as error:
    ...     error.code
    'MML-204'
    """

    code: str = ""

    def __init__(self, *args: object, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.code:
            self.with_code(self.code)

    def with_code(self, code: str) -> Self:
        """Name the error's entry in the troubleshooting guide, and return the error."""
        self.code = code
        self.add_note(f"see {code} in the troubleshooting guide")
        return self

    def __reduce__(self) -> Any:
        """Pickle an error without calling its constructor."""
        return _rebuild, (type(self), self.args, {**vars(self)})


def _rebuild(cls: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> Any:
    base: Any = OSError if issubclass(cls, OSError) else cls
    error = base.__new__(cls, *args)
    error.args = args
    vars(error).update(state)
    return error


class ConfigError(ModularMLError, ValueError):
    """An argument or a configuration cannot be used."""


class PlanError(ConfigError):
    """A plan file has a mistake; the message begins with ``file:line:column``."""


CODES = {"column": "MML-201", "split": "MML-202", "loss": "MML-405", "optimizer": "MML-405"}
"""Entries of the troubleshooting guide about unknown names, by what they name."""


class UnknownNameError(ModularMLError, KeyError, ValueError):
    """A name is unknown; the message lists the closest known names.

    Parameters
    ----------
    kind : str
        Kind of object that the name refers to, such as ``"column"``.
    name : object
        The unknown name.
    known : iterable of str
        All accepted names.
    hint : str
        Next step, appended to the message.
    meant : iterable of str
        Names that are listed instead of the closest ones, where there are any.

    Examples
    --------
    >>> str(UnknownNameError("split", "trainn", ["train", "test"]))
    "unknown split 'trainn'; did you mean 'train'?"
    """

    def __init__(
        self,
        kind: str,
        name: object,
        known: Iterable[str],
        hint: str = "",
        *,
        meant: Iterable[str] = (),
    ) -> None:
        self.kind, self.name, self.known = kind, name, [str(k) for k in known]
        what, of, whose = kind.partition(" of ")
        shown = ", ".join(map(repr, meant))
        near = f"did you mean {shown}?" if shown else closest(name, self.known)
        end = " " if near.endswith("?") else ". "
        self.code = CODES.get(what.rpartition(" ")[2], "")
        super().__init__(f"unknown {what} {name!r}{of}{whose}; {near}{hint and end + hint}")

    def __str__(self) -> str:  # KeyError would show the message in quotes
        return str(self.args[0])


class RegistrationError(ModularMLError, ValueError):
    """A label or an id is taken."""


class MissingDependencyError(ModularMLError, ImportError):
    """An optional package is not installed."""

    code = "MML-601"


class DataError(ModularMLError, ValueError):
    """Rows or columns cannot be used."""


class AuditError(DataError):
    """An audit found problems in rows that are about to be used for training."""

    code = "MML-303"


class SplitError(DataError):
    """A split cannot be made or read."""


class ScalerError(DataError):
    """A scaler cannot be fitted, applied or undone."""


class NotFittedError(ModularMLError, RuntimeError):
    """A transform or prediction was requested before fitting."""

    code = "MML-507"


class ShapeError(ModularMLError, ValueError):
    """Shapes do not fit each other."""


class GraphError(ModularMLError, ValueError):
    """Nodes cannot be connected as requested."""


class BackendNotSupportedError(ModularMLError, RuntimeError):
    """A backend does not support an operation."""


class DeviceError(ModularMLError, RuntimeError):
    """A device does not exist."""


class LossError(ModularMLError, RuntimeError):
    """A loss cannot be built or computed."""


class OptimizerNotSetError(ModularMLError, RuntimeError):
    """An optimizer is missing, or was used before it was built."""


class ExecutionError(ModularMLError, RuntimeError):
    """A phase cannot run or continue."""


class NonFiniteLossError(ExecutionError):
    """A loss is NaN or infinite; the attributes tell where.

    Attributes
    ----------
    phase, node, loss : str
        Labels of the phase, of the node that the loss applies to, and of the loss.
    epoch, batch : int
        Position in the phase, both 0-based.
    value : float
        The value of the loss.
    columns : tuple of str
        Columns read by the graph that hold NaN or infinity in some row.
    rows : tuple of int
        Rows of their FeatureSet with NaN or infinity in this batch.
    """

    code = "MML-501"

    def __init__(
        self,
        *,
        phase: str,
        epoch: int,
        batch: int,
        node: str,
        loss: str,
        value: float,
        columns: Sequence[str] = (),
        rows: Sequence[int] = (),
    ) -> None:
        shown = f"rows {list(rows[:5])}{' and more' if len(rows) > 5 else ''}"
        shown = f"in {shown} of this batch" if len(rows) else "in rows of other batches"
        hint = f"The columns {list(columns)} hold NaN or infinity {shown}: fill them "
        hint = f"{hint}(SimpleImputer)" if columns else "Look for NaN in the columns (fs.summary())"
        self.phase, self.epoch, self.batch = phase, epoch, batch
        self.node, self.loss, self.value, self.columns = node, loss, value, tuple(columns)
        self.rows = tuple(rows)
        super().__init__(
            f"loss {loss!r} on node {node!r} is {value} in phase {phase!r}, epoch {epoch}, batch "
            f"{batch}. Weights are as before this batch. {hint}, scale the inputs, or lower the "
            "learning rate. If this batch has "
            "nothing to average, such as no event or pair, use larger batches, "
            "stratify_by= or drop_last=True"
        )


class MetricNotLoggedError(ExecutionError):
    """A callback monitors a metric that is never logged."""

    code = "MML-503"


class MMLError(ModularMLError, RuntimeError):
    """A file cannot be read or written: which, where in it, why, and what to do next.

    Parameters
    ----------
    code : str
        Code of the kind of problem, such as ``MML-101``.
    path : str or path
        The file.
    member : str
        Member of the file; empty for the file as a whole.
    problem, hint : str
    """

    def __init__(
        self, code: str, path: object = "", member: str = "", problem: str = "", hint: str = ""
    ) -> None:
        self.code, self.path, self.member = code, str(path), member
        self.problem, self.hint = problem, hint
        name = self.path.replace("\\", "/").rstrip("/").rpartition("/")[2]
        where = ": ".join(part for part in (name, member, problem) if part)
        super().__init__(f"{code} {where}{'. ' + hint if hint else ''}")

    def __str__(self) -> str:
        return str(self.args[0])


class MMLExistsError(MMLError, FileExistsError):
    """The file exists already and overwriting was not requested."""


class MMLNotFoundError(MMLError, FileNotFoundError):
    """The file does not exist."""


class MMLKindError(MMLError, TypeError):
    """The file holds another kind of artifact than requested."""


def expect(name: str, value: Any, kind: type | tuple[type, ...], allowed: str) -> Any:
    """Return an argument of an allowed type; raise a ConfigError for any other."""
    if not isinstance(value, kind):
        raise ConfigError(f"{name} must be {allowed}, got a {type(value).__name__} ({value!r:.60})")
    return value


def closest(name: object, known: Iterable[str], *, n: int = 3) -> str:
    """Return a hint with the known names closest to an unknown one.

    Parameters
    ----------
    name : object
        The unknown name.
    known : iterable of str
        All accepted names.
    n : int
        Maximum number of names.

    Returns
    -------
    str
        ``"did you mean 'a', 'b'?"``, or a list of known names if none is close.

    Examples
    --------
    >>> closest("trainn", ["train", "test"])
    "did you mean 'train'?"
    """
    names = sorted(set(known))
    if not names:
        return "there are none"
    folded = {k.casefold(): k for k in names}
    near = difflib.get_close_matches(str(name).casefold(), folded, n=n, cutoff=0.5)
    if near:
        return f"did you mean {', '.join(repr(folded[k]) for k in near)}?"
    shown = ", ".join(repr(k) for k in names[:12])
    return f"known: {shown}{', ...' if len(names) > 12 else ''}"
