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

Plan = PhaseGroup | ExperimentPhase


class PlanState:
    """The states of samplers and callbacks in the phases of a plan.

    Parameters
    ----------
    plan : PhaseGroup or phase
    """

    def __init__(self, plan: Plan) -> None:
        items = plan.all if isinstance(plan, PhaseGroup) else [plan]
        paths = [entry for item in items for entry in item.paths()]
        self.phases = [phase for _, phase in paths]
        self.parts = [(path, phase.state_parts()) for path, phase in paths]

    @property
    def names(self) -> list[list[Any]]:
        """The path of each phase, with the names of its samplers and callbacks."""
        return [[path, list(parts)] for path, parts in self.parts]

    def get(self) -> list[list[IfPlain]]:
        """Return the states, phase by phase; omit those that are not plain data."""
        return [[IfPlain(p.get_state()) for p in parts.values()] for _, parts in self.parts]

    def check(self, names: Sequence[Any]) -> None:
        """Refuse states of other phases, samplers or callbacks.

        Raises
        ------
        ConfigError
            If names differ; the differing ones are listed.
        """
        current, saved = (
            [*_flat(names_of_phases), *(str(path) for path, _ in names_of_phases)]
            for names_of_phases in (self.names, names)
        )
        if differing := [name for name in saved if name not in current] + [
            name for name in current if name not in saved
        ]:
            raise ConfigError(
                f"the checkpoint is of another plan: {differing[:8]} "
                f"{'is' if len(differing) == 1 else 'are'} in one of them only. Define the plan "
                "as it was, or pass strict=False to restore what fits"
            )

    def set(
        self, states: Sequence[Sequence[Any]], names: Sequence[Any] | None, *, strict: bool
    ) -> None:
        """Restore states by phase and name: all of them, or none if one does not fit.

        Parameters
        ----------
        states : list of list
            As returned by `get`.
        names : list of list, optional
            As returned by `names`. Without them, as in older files, parts are matched by position.
        strict : bool
            Whether parts without a state, and states without a part, are an error. Otherwise
            states that do not fit are skipped with a warning.

        Raises
        ------
        ConfigError
            If the plan differs. Nothing has changed then.
        """
        if names is None:
            sizes = [len(phase) for phase in states]
            fits = sizes == [len(parts) for _, parts in self.parts]
            names = self.names if fits else [[str(i), [*range(n)]] for i, n in enumerate(sizes)]
        if strict:
            self.check(names)
        state_of = dict(zip(_flat(names), [s for phase in states for s in phase], strict=True))
        part_of = {(path, name): part for path, ps in self.parts for name, part in ps.items()}
        before = {name: part.get_state() for name, part in part_of.items() if state_of.get(name)}
        skipped = [name for name, state in state_of.items() if state and name not in part_of]
        for name in before:
            try:
                part_of[name].set_state(state_of[name])
            except Exception:
                if strict:
                    for restored, state in before.items():
                        part_of[restored].set_state(state)
                    raise
                skipped.append(name)
        for phase in self.phases:  # equal samplers of a phase become one object again
            samplers: list[Any] = []
            for i, binding in enumerate(phase.input_sources):
                own: Any = binding.sampler
                same = [s for s in samplers if s == own and s.seed_ == own.seed_]
                if same and same[0] is not own:
                    phase.input_sources[i] = replace(binding, sampler=same[0])
                elif own is not None and not same:
                    samplers.append(own)
        if skipped:
            shown = ", ".join(f"{name} of {path!r}" for path, name in skipped)
            warn(f"strict=False skips the states of {shown}, which do not fit this plan")


def _flat(names: Iterable[Any]) -> list[tuple[str, str]]:
    return [(path, name) for path, parts in names for name in parts]
