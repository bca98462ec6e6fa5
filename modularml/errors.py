"""Every exception that this library raises on purpose.

::

    ModularMLError
    ├── ConfigError             (ValueError)            an argument or config that cannot be used
    ├── UnknownNameError        (KeyError, ValueError)  a name nobody registered; lists the closest
    ├── RegistrationError       (ValueError)            a label or id that is taken
    ├── MissingDependencyError  (ImportError)           an optional package that is not installed
    ├── DataError               (ValueError)            rows or columns that cannot be used
    │   ├── AuditError                                  rows that an audit has found unfit
    │   ├── SplitError                                  a split that cannot be made or read
    │   └── ScalerError                                 a scaler that cannot be fitted or undone
    ├── NotFittedError          (RuntimeError)          asked to transform or predict before fitting
    ├── ShapeError              (ValueError)            shapes that do not fit
    ├── GraphError              (ValueError)            nodes that cannot be wired
    ├── BackendNotSupportedError (RuntimeError)         a backend that cannot do what was asked
    ├── DeviceError             (RuntimeError)          a device that is not there
    ├── LossError               (RuntimeError)          a loss that cannot be built or computed
    ├── OptimizerNotSetError    (RuntimeError)          an optimizer that is missing or not built
    ├── ExecutionError          (RuntimeError)          a phase that cannot run
    │   ├── NonFiniteLossError                          a loss that is NaN or infinite
    │   └── MetricNotLoggedError                        a metric that nobody logs
    └── MMLError                (RuntimeError)          a file that cannot be read or written
        ├── MMLExistsError      (FileExistsError)       there is one already
        ├── MMLNotFoundError    (FileNotFoundError)     there is none
        └── MMLKindError        (TypeError)             it holds something else
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

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
    "RegistrationError",
    "ScalerError",
    "ShapeError",
    "SplitError",
    "UnknownNameError",
    "closest",
]


class ModularMLError(Exception):
    """The root of the tree: catch it to catch everything raised on purpose."""

    def __reduce__(self) -> Any:
        """Let an error of any constructor arrive in another process as it is."""
        return _made_again, (type(self), self.args, {**vars(self)})


def _made_again(cls: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> Any:
    makes: Any = OSError if issubclass(cls, OSError) else cls
    error = makes.__new__(cls, *args)
    error.args = args
    vars(error).update(state)
    return error


class ConfigError(ModularMLError, ValueError):
    """An argument or a configuration cannot be used."""


class UnknownNameError(ModularMLError, KeyError, ValueError):
    """A name is not known; the message lists the closest ones that are.

    Parameters
    ----------
    kind : str
        What the name should have named, such as ``"column"``.
    name : object
        What came.
    known : iterable of str
        Every name that would have been accepted.
    hint : str
        What to do next, added at the end.
    """

    def __init__(self, kind: str, name: object, known: Iterable[str], hint: str = "") -> None:
        self.kind, self.name, self.known = kind, name, [str(k) for k in known]
        what, of, whose = kind.partition(" of ")
        near = closest(name, self.known)
        super().__init__(f"unknown {what} {name!r}{of}{whose}; {near}{hint and '. ' + hint}")

    def __str__(self) -> str:  # KeyError would show the message in quotes
        return str(self.args[0])


class RegistrationError(ModularMLError, ValueError):
    """A label or an id is taken."""


class MissingDependencyError(ModularMLError, ImportError):
    """An optional package is not installed."""


class DataError(ModularMLError, ValueError):
    """Rows or columns cannot be used."""


class AuditError(DataError):
    """An audit found something in rows that were about to be trained on."""


class SplitError(DataError):
    """A split cannot be made or read."""


class ScalerError(DataError):
    """A scaler cannot be fitted, applied or undone."""


class NotFittedError(ModularMLError, RuntimeError):
    """Something was asked to transform or predict before it was fitted."""


class ShapeError(ModularMLError, ValueError):
    """Shapes do not fit each other."""


class GraphError(ModularMLError, ValueError):
    """Nodes cannot be wired as asked."""


class BackendNotSupportedError(ModularMLError, RuntimeError):
    """A backend cannot do what was asked of it."""


class DeviceError(ModularMLError, RuntimeError):
    """A device is not there."""


class LossError(ModularMLError, RuntimeError):
    """A loss cannot be built or computed."""


class OptimizerNotSetError(ModularMLError, RuntimeError):
    """An optimizer is missing, or was used before it was built."""


class ExecutionError(ModularMLError, RuntimeError):
    """A phase cannot run, or cannot run on."""


class NonFiniteLossError(ExecutionError):
    """A loss is NaN or infinite; where it happened stands in the attributes.

    Attributes
    ----------
    phase, node, loss : str
        Labels of the phase, of the node the loss is applied on, and of the loss.
    epoch, batch : int
        Position in the phase, both 0-based.
    value : float
        The value that came.
    columns : tuple of str
        Columns that the graph reads and that hold NaN or infinity in some row.
    rows : tuple of int
        Rows of their FeatureSet that do, in this batch.
    """

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
        look = f"The columns {list(columns)} hold NaN or infinity {shown}: fill them "
        look = f"{look}(SimpleImputer)" if columns else "Look for NaN in the columns (fs.summary())"
        self.phase, self.epoch, self.batch = phase, epoch, batch
        self.node, self.loss, self.value, self.columns = node, loss, value, tuple(columns)
        self.rows = tuple(rows)
        super().__init__(
            f"loss {loss!r} on node {node!r} is {value} in phase {phase!r}, epoch {epoch}, batch "
            f"{batch}. Weights are as before this batch. {look}, scale the inputs, or lower the "
            "learning rate. Where this batch holds "
            "nothing to average, such as no event or pair, draw larger batches, with "
            "stratify_by= or drop_last=True"
        )


class MetricNotLoggedError(ExecutionError):
    """A callback waits for a metric that nobody logs."""


class MMLError(ModularMLError, RuntimeError):
    """A file cannot be read or written: which, where in it, why, and what to do next.

    Parameters
    ----------
    code : str
        ``MML-101`` and the like; the same for the same kind of problem.
    path : str or path
        The file.
    member : str
        Where in the file; empty for the file as a whole.
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
    """There is a file already, and overwriting was not asked for."""


class MMLNotFoundError(MMLError, FileNotFoundError):
    """There is no such file."""


class MMLKindError(MMLError, TypeError):
    """A file holds something else than what was asked for."""


def expect(name: str, value: Any, kind: type | tuple[type, ...], allowed: str) -> Any:
    """Return an argument of the kind that is allowed; refuse any other with a ConfigError."""
    if not isinstance(value, kind):
        raise ConfigError(f"{name} must be {allowed}, got a {type(value).__name__} ({value!r:.60})")
    return value


def closest(name: object, known: Iterable[str], *, n: int = 3) -> str:
    """Say which known names are closest to a wrong one.

    Parameters
    ----------
    name : object
        What came.
    known : iterable of str
        Names that would have been accepted.
    n : int
        How many to offer at most.

    Returns
    -------
    str
        ``"did you mean 'a', 'b'?"``, or the list of all names where none is close.
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
