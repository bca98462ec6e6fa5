"""Groups of phases, and placeholders where classes are missing."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, Unpack

from modularml.config import Configurable, decode, encode
from modularml.context import is_run_again
from modularml.engine.binding import InputBinding
from modularml.engine.callback import ExperimentCallback
from modularml.errors import ConfigError, RegistrationError, UnknownNameError, expect
from modularml.graph.files import ContextYaml
from modularml.io.artifact import Contents
from modularml.io.classes import names_in
from modularml.phases.fit import FitOptions, FitPhase
from modularml.phases.phase import ExperimentPhase
from modularml.phases.train_eval import EvalOptions, EvalPhase, TrainOptions, TrainPhase
from modularml.training import AppliedLoss

T = TypeVar("T")


class PhaseGroup(Configurable, ContextYaml):
    """Phases and groups of phases under one label.

    Parameters
    ----------
    label : str
    phases : list of phase or PhaseGroup, optional
        In order of execution; labels must be unique.

    Examples
    --------
    >>> group = PhaseGroup("workflow")
    >>> len(group)
    0

    Items are found by position or label, ``group[0]`` or ``group["train"]``, and iterated over in
    order.
    """

    def __init__(
        self, label: str, phases: list[ExperimentPhase | PhaseGroup] | None = None
    ) -> None:
        self.label = label
        self._items: list[ExperimentPhase | PhaseGroup] = []
        items = [] if phases is None else phases
        self.add_items(expect("phases", items, (list, tuple), "a list of phases and groups"))

    # -- adding -------------------------------------------------------------------------------

    def add_item(self, item: ExperimentPhase | PhaseGroup) -> None:
        """Append a phase or group.

        Raises
        ------
        TypeError
            If it is neither.
        RegistrationError
            If its label is taken in this group.
        """
        if not isinstance(item, ExperimentPhase | PhaseGroup):
            raise TypeError(f"item must be a phase or a PhaseGroup, got a {type(item).__name__}")
        if item is self or (isinstance(item, PhaseGroup) and self in item._groups_within()):
            raise RegistrationError(f"group {self.label!r} cannot contain itself")
        places = [i for i, other in enumerate(self._items) if other.label == item.label]
        if places and is_run_again(f"{item.label!r} of group {self.label!r}"):
            self._items[places[0]] = item
            return
        if places:
            raise RegistrationError(
                f"group {self.label!r} has an item {item.label!r} already; choose another label"
            )
        self._items.append(item)

    def add_items(self, items: Iterable[ExperimentPhase | PhaseGroup]) -> None:
        """Append phases and groups; if one is refused, none are added."""
        before, added = list(self._items), list(items)
        labels = [getattr(item, "label", None) for item in added]
        if twice := [label for i, label in enumerate(labels) if label in labels[:i]]:
            raise RegistrationError(
                f"several items for group {self.label!r} are labelled {twice[0]!r}; choose others"
            )
        try:
            for item in added:
                self.add_item(item)
        except Exception:
            self._items = before
            raise

    def add_phase(self, phase: ExperimentPhase) -> PhaseGroup:
        """Append a phase and return this group."""
        self.add_item(phase)
        return self

    def add_group(self, group: PhaseGroup) -> PhaseGroup:
        """Append a group and return this group."""
        self.add_item(group)
        return self

    def add_train_phase(
        self,
        label: str,
        *,
        input_sources: list[InputBinding],
        losses: list[AppliedLoss],
        **options: Unpack[TrainOptions],
    ) -> PhaseGroup:
        """Create a `TrainPhase`, append it and return this group; takes its options."""
        phase = TrainPhase(label, input_sources=input_sources, losses=losses, **options)
        return self.add_phase(phase)

    def add_eval_phase(
        self,
        label: str,
        *,
        input_sources: list[InputBinding],
        losses: list[AppliedLoss] | None = None,
        **options: Unpack[EvalOptions],
    ) -> PhaseGroup:
        """Create an `EvalPhase`, append it and return this group."""
        phase = EvalPhase(label, input_sources=input_sources, losses=losses, **options)
        return self.add_phase(phase)

    def add_fit_phase(
        self,
        label: str,
        *,
        input_sources: list[InputBinding],
        losses: list[AppliedLoss] | None = None,
        **options: Unpack[FitOptions],
    ) -> PhaseGroup:
        """Create a `FitPhase`, append it and return this group."""
        phase = FitPhase(label, input_sources=input_sources, losses=losses, **options)
        return self.add_phase(phase)

    add_fit = add_fitting = add_fit_phase
    add_train = add_training = add_train_phase
    add_eval = add_evaluation = add_eval_phase

    # -- reading ------------------------------------------------------------------------------

    @property
    def all(self) -> list[ExperimentPhase | PhaseGroup]:
        """Phases and groups of this level, in order."""
        return list(self._items)

    @property
    def phases(self) -> dict[str, ExperimentPhase]:
        """Phases of this level by label."""
        return {i.label: i for i in self._items if isinstance(i, ExperimentPhase)}

    @property
    def phase_groups(self) -> dict[str, PhaseGroup]:
        """Groups of this level by label."""
        return {i.label: i for i in self._items if isinstance(i, PhaseGroup)}

    def items(self) -> Iterable[tuple[str, ExperimentPhase | PhaseGroup]]:
        """Iterate over label and item of this level."""
        return ((item.label, item) for item in self._items)

    def paths(self, above: str = "") -> list[tuple[str, ExperimentPhase]]:
        """Return every phase, nested ones too, with its path: ``group/phase``."""
        inner = f"{above}{self.label}/"
        return [path for item in self._items for path in item.paths(inner)]

    def flatten(self) -> list[ExperimentPhase]:
        """Return all phases, of nested groups too, in order of execution."""
        flat: list[ExperimentPhase] = []
        for item in self._items:
            flat += item.flatten() if isinstance(item, PhaseGroup) else [item]
        return flat

    def get_phase(self, key: int | str) -> ExperimentPhase:
        """Return a phase by label or position.

        Raises
        ------
        UnknownNameError
            If there is none; the closest labels are listed.
        TypeError
            If it is a group.
        """
        return self._get(key, ExperimentPhase)

    def get_train_phase(self, key: int | str) -> TrainPhase:
        """Return a training phase by label or position."""
        return self._get(key, TrainPhase)

    def get_eval_phase(self, key: int | str) -> EvalPhase:
        """Return an evaluation phase by label or position."""
        return self._get(key, EvalPhase)

    def get_fit_phase(self, key: int | str) -> FitPhase:
        """Return a fit phase by label or position."""
        return self._get(key, FitPhase)

    def get_group(self, key: int | str) -> PhaseGroup:
        """Return a group by label or position."""
        return self._get(key, PhaseGroup)

    # -- removing -----------------------------------------------------------------------------

    def remove_item(self, item: int | str | ExperimentPhase | PhaseGroup) -> None:
        """Remove a phase or group by label, position or itself."""
        self._items.remove(self._find(item))

    def remove_items(self, items: list[int | str | ExperimentPhase | PhaseGroup]) -> None:
        """Remove phases and groups; if one is missing, none are removed."""
        for item in [self._find(key) for key in items]:
            self._items.remove(item)

    def remove_phase(self, phase: int | str | ExperimentPhase) -> PhaseGroup:
        """Remove a phase and return this group."""
        self._items.remove(self._get(phase, ExperimentPhase))
        return self

    def remove_group(self, group: int | str | PhaseGroup) -> PhaseGroup:
        """Remove a group and return this group."""
        self._items.remove(self._get(group, PhaseGroup))
        return self

    def clear(self) -> PhaseGroup:
        """Remove everything and return this group."""
        self._items.clear()
        return self

    # -- config -------------------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        """Return label and items as plain data."""
        return {"label": self.label, "phases": [encode(item) for item in self._items]}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> PhaseGroup:
        """Create a group from its config."""
        return cls(config["label"], [decode(item) for item in config["phases"]])

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[ExperimentPhase | PhaseGroup]:
        return iter(list(self._items))

    def __contains__(self, key: object) -> bool:
        return any(key is item or key == item.label for item in self._items)

    def __getitem__(self, key: int | str) -> ExperimentPhase | PhaseGroup:
        return self._find(key)

    def __repr__(self) -> str:
        inner = "\n".join(f"  {line}" for item in self._items for line in repr(item).split("\n"))
        return f"PhaseGroup({self.label!r})" + (f"\n{inner}" if inner else "")

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def _groups_within(self) -> list[PhaseGroup]:
        groups = [i for i in self._items if isinstance(i, PhaseGroup)]
        return groups + [g for group in groups for g in group._groups_within()]

    def _find(self, key: Any) -> ExperimentPhase | PhaseGroup:
        if isinstance(key, int) and -len(self._items) <= key < len(self._items):
            return self._items[key]
        for item in self._items:
            if item is key or item.label == key:
                return item
        shown = getattr(key, "label", key)
        raise UnknownNameError(
            f"item of group {self.label!r}", shown, [i.label for i in self._items]
        )

    def _get(self, key: Any, cls: type[T]) -> T:
        item: Any = self._find(key)
        if not isinstance(item, cls):
            raise TypeError(f"{item.label!r} is a {type(item).__name__}, not a {cls.__name__}")
        return item


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
