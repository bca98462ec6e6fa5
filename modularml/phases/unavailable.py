"""Placeholders for phases and callbacks of a file whose classes are missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from modularml.config import decode
from modularml.engine.callback import ExperimentCallback
from modularml.errors import ConfigError
from modularml.io.artifact import Contents
from modularml.io.classes import names_in
from modularml.phases.group import PhaseGroup
from modularml.phases.phase import ExperimentPhase

__all__ = [
    "UnavailableCallback",
    "UnavailablePhase",
    "absent_classes",
    "callback_from",
    "plan_from",
]


class UnavailablePhase(ExperimentPhase):
    """A phase with missing classes or functions; it is saved unchanged.

    Parameters
    ----------
    label : str
    tree : dict
        The phase as stored in a file.
    reason : str
        What is missing, and what to do.
    classes : list of dict
        The entries of the file's manifest for it.
    """

    def __init__(
        self, label: str, tree: Mapping[str, Any], reason: str, classes: list[Any]
    ) -> None:
        super().__init__(label, input_sources=[])
        self.tree, self.reason, self.classes = tree, reason, classes
        self.states: dict[str, _State] = {}

    def check(self, graph: Any) -> None:
        """Check nothing, as it cannot run."""

    def encoded(self) -> dict[str, Any]:
        """Return the phase as stored in its file."""
        return dict(self.tree)

    def state_parts(self) -> dict[str, Any]:
        """Return holders of the states of samplers and callbacks, to be saved again."""
        return dict(self.states)

    def check_ready(self, experiment: Any) -> None:
        """Refuse to run, naming what is missing."""
        raise ConfigError(f"phase {self.label!r} cannot run: {self.reason}")

    def feed(self, **options: Any) -> Any:
        """Refuse to run."""
        self.check_ready(None)


class UnavailableCallback(ExperimentCallback):
    """A callback whose class is missing; it is saved unchanged.

    Parameters
    ----------
    label : str
    tree : dict
        The callback as stored in a file.
    reason : str
        What is missing, and what to do.
    classes : list of dict
        The entries of the file's manifest for it.
    """

    def __init__(
        self, label: str, tree: Mapping[str, Any], reason: str, classes: list[Any]
    ) -> None:
        super().__init__(label)
        self.tree, self.reason, self.classes = tree, reason, classes

    def encoded(self) -> dict[str, Any]:
        """Return the callback as stored in its file."""
        return dict(self.tree)

    def check_ready(self, experiment: Any, phase: Any = None) -> None:
        """Refuse to run, naming what is missing."""
        raise ConfigError(f"the experiment's callback {self.label!r} cannot run: {self.reason}")


class _State:
    def __init__(self) -> None:
        self.state: Any = {}

    def get_state(self) -> Any:
        return self.state

    def set_state(self, state: Any) -> None:
        self.state = state


def plan_from(
    tree: Mapping[str, Any], contents: Contents, parts: Sequence[Sequence[Any]]
) -> PhaseGroup:
    """Create a plan, with an `UnavailablePhase` where classes are missing.

    `parts` lists the names of the stored states, phase by phase.
    """
    names_of_phases = iter(parts)

    def item(inner: Mapping[str, Any]) -> Any:
        params = inner["params"]
        if "phases" in params:
            return PhaseGroup(params["label"], [item(phase) for phase in params["phases"]])
        state_names, reason = next(names_of_phases, []), _reason(inner, contents)
        if not reason:
            return decode(inner)
        phase = UnavailablePhase(params["label"], inner, reason, contents.absent)
        phase.states = {str(name): _State() for name in state_names}
        return phase

    plan: PhaseGroup = item(tree)
    return plan


def callback_from(tree: Mapping[str, Any], contents: Contents) -> Any:
    """Create a callback, or an `UnavailableCallback` if its class is missing."""
    reason = _reason(tree, contents)
    label = tree["params"].get("label") or tree["$type"]
    return UnavailableCallback(label, tree, reason, contents.absent) if reason else decode(tree)


def absent_classes(parts: Iterable[Any]) -> list[dict[str, Any]]:
    """Return the manifest entries of missing classes of phases and callbacks."""
    unavailable = [p for p in parts if isinstance(p, UnavailablePhase | UnavailableCallback)]
    return list({e["name"]: e for part in unavailable for e in part.classes}.values())


def _reason(tree: Any, contents: Contents) -> str:
    return "; ".join({contents.missing[n]: 0 for _, n in names_in(tree) if n in contents.missing})
