"""States of samplers and callbacks of a plan, by phase and name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from modularml._warning import warn
from modularml.errors import ConfigError
from modularml.io.values import IfPlain
from modularml.phases.group import PhaseGroup
from modularml.phases.phase import ExperimentPhase

__all__ = ["PlanState"]

Plan = PhaseGroup | ExperimentPhase


class PlanState:
    """What samplers have drawn and callbacks have learned in the phases of a plan.

    Parameters
    ----------
    plan : PhaseGroup or phase
    """

    def __init__(self, plan: Plan) -> None:
        items = plan.all if isinstance(plan, PhaseGroup) else [plan]
        found = [inner for item in items for inner in item.paths()]
        self.phases = [phase for _, phase in found]
        self.parts = [(path, phase.state_parts()) for path, phase in found]

    @property
    def names(self) -> list[list[Any]]:
        """The path of each phase, with the names of its samplers and callbacks."""
        return [[path, list(parts)] for path, parts in self.parts]

    def get(self) -> list[list[IfPlain]]:
        """Return the state of each part, phase by phase; one that is no plain data is omitted."""
        return [[IfPlain(p.get_state()) for p in parts.values()] for _, parts in self.parts]

    def check(self, names: Sequence[Any]) -> None:
        """Refuse states that were taken of other phases, samplers or callbacks.

        Raises
        ------
        ConfigError
            If names differ; those that do are listed.
        """
        mine, theirs = (
            [*_flat(found), *(str(path) for path, _ in found)] for found in (self.names, names)
        )
        if lost := [name for name in theirs if name not in mine] + [
            name for name in mine if name not in theirs
        ]:
            raise ConfigError(
                f"the checkpoint was taken of another plan: {lost[:8]} "
                f"{'is' if len(lost) == 1 else 'are'} in one of them only. Make the plan as it "
                "was, or pass strict=False to put back what fits"
            )

    def set(
        self, states: Sequence[Sequence[Any]], names: Sequence[Any] | None, *, strict: bool
    ) -> None:
        """Put states back, by phase and name; all of them, or none where one does not fit.

        Parameters
        ----------
        states : list of list
            As returned by `get`.
        names : list of list, optional
            As returned by `names`. Without them, as in older files, places count.
        strict : bool
            Whether parts without a state, and states without a part, are an error. Otherwise
            states that do not fit are passed over with a warning.

        Raises
        ------
        ConfigError
            If the plan is another one. Nothing has changed then.
        """
        if names is None:
            sizes = [len(own) for own in states]
            fits = sizes == [len(parts) for _, parts in self.parts]
            names = self.names if fits else [[str(i), [*range(n)]] for i, n in enumerate(sizes)]
        if strict:
            self.check(names)
        own = dict(zip(_flat(names), [s for phase in states for s in phase], strict=True))
        mine = {(path, name): part for path, ps in self.parts for name, part in ps.items()}
        before = {name: part.get_state() for name, part in mine.items() if own.get(name)}
        passed = [name for name, state in own.items() if state and name not in mine]
        for name in before:
            try:
                mine[name].set_state(own[name])
            except Exception:
                if strict:
                    for done, state in before.items():
                        mine[done].set_state(state)
                    raise
                passed.append(name)
        for phase in self.phases:
            _share_samplers(phase)
        if passed:
            shown = ", ".join(f"{name} of {path!r}" for path, name in passed)
            warn(f"strict=False passes over the states of {shown}, which do not fit this plan")


def _share_samplers(phase: ExperimentPhase) -> None:
    """Let what was one sampler be one again."""
    known: list[Any] = []
    for i, binding in enumerate(phase.input_sources):
        own = binding.sampler
        if own is None:
            continue
        sampler = next((s for s in known if s == own and s.seed_ == own.seed_), own)
        known.append(sampler)
        if sampler is not own:
            phase.input_sources[i] = replace(binding, sampler=sampler)


def _flat(names: Iterable[Any]) -> list[tuple[str, str]]:
    return [(path, name) for path, parts in names for name in parts]
