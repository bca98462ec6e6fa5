"""Steps that alternate between samplers: the nodes of one run, all others rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from modularml._typing import Shape
from modularml.backends.base import NotFiniteError
from modularml.data.lineage import Source
from modularml.errors import ConfigError
from modularml.graph.lineage import source_columns_of
from modularml.graph.plan import StepPlan
from modularml.training import AppliedLoss

__all__ = ["AlternatingBatches"]


class AlternatingBatches:
    """One plan for the rows of each sampler, whose results are filled up to those of the whole.

    An inactive branch gives outputs and losses of zero; its weights do not move.

    Parameters
    ----------
    whole : StepPlan
        Of all nodes and losses.
    plan : callable
        Makes the plan and the step of some losses and ``active_nodes``.
    losses : sequence of AppliedLoss
    groups : mapping of Source to int
        Which sampler gives the rows of a source.
    shape_of : callable
        From a node's id to the shape of its output.

    Raises
    ------
    ConfigError
        If a loss reads rows of several samplers, or no loss those of one.
    """

    def __init__(
        self,
        whole: StepPlan,
        plan: Callable[..., Any],
        losses: Sequence[AppliedLoss],
        groups: Mapping[Source, int],
        shape_of: Callable[[str], Shape],
    ) -> None:
        self.layout, self._shape_of = whole.layout, shape_of
        own: list[list[str]] = [[] for _ in set(groups.values())]
        for node_id in self.layout.labels:
            read = {
                groups[leaf.source]
                for leaf in source_columns_of(self.layout.lineages[node_id, "features"])
            }
            if len(read) == 1:
                own[read.pop()].append(node_id)
        self.plans: list[StepPlan] = []
        self._parts: list[tuple[Any, list[int], dict[int, int]]] = []
        known = {*self.layout.labels, *self.layout.labels.values()}
        losses = [a for a in losses if a.on in known]
        left = list(range(len(losses)))
        for ids in own:
            names = {*ids, *(self.layout.labels[i] for i in ids)}
            mine = [i for i in left if _read(losses[i]) <= names]
            left = [i for i in left if i not in mine]
            if not mine:
                raise ConfigError(f"samplers alternate, but no loss is on {sorted(names)}")
            made, step = plan([losses[i] for i in mine], active_nodes=ids)
            places = {out: i for i, out in enumerate(made.layout.outputs)}
            outs = {i: places[o] for i, o in enumerate(self.layout.outputs) if o in places}
            self.plans.append(made)
            others = map(self.layout.losses.index, made.layout.losses[len(mine) :])
            self._parts.append((step, [*mine, *others], outs))
        if left:
            labels = [losses[i].label for i in left]
            raise ConfigError(
                f"losses {labels} read rows of several samplers, which alternating never brings "
                "together; use batch_schedule='zip_strict' or 'zip_cycle'"
            )

    def step(self, given: tuple[int, Sequence[Any]]) -> tuple[Sequence[Any], Sequence[Any]]:
        """Run the step of one sampler on its tensors."""
        turn, tensors = given
        run, losses, places = self._parts[turn]
        try:
            found, own = run(tensors)
        except NotFiniteError as error:
            raise NotFiniteError(losses[error.place], error.value, error.of) from None
        values = [found[0] * 0.0] * len(self.layout.losses)
        for place, value in zip(losses, found, strict=True):
            values[place] = value
        n = len(tensors[0])
        outs = [
            own[places[i]] if i in places else self._rest(i, n)
            for i in range(len(self.layout.outputs))
        ]
        return values, outs

    def _rest(self, place: int, n: int) -> Any:
        node_id, _ = self.layout.outputs[place]
        return self.layout.adapters[place].zeros((n, *self._shape_of(node_id)), None)


def _read(applied: AppliedLoss) -> set[str]:
    return {item.node or applied.on for item in applied.parsed}
