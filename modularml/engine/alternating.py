"""Training steps that alternate between samplers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from modularml.backends.base import NotFiniteError
from modularml.data.lineage import Source
from modularml.errors import ConfigError
from modularml.graph.lineage import source_columns_of
from modularml.graph.model_graph import ModelGraph
from modularml.graph.plan import StepPlan
from modularml.training import AppliedLoss

__all__ = ["AlternatingBatches"]


class AlternatingBatches:
    """One plan per sampler; its results are padded to those of the full plan.

    An inactive branch gives outputs and losses of zero; its weights do not move.

    Parameters
    ----------
    full_plan : StepPlan
        The plan of all nodes and losses.
    make_plan : callable
        Returns the plan and the step for given losses and ``active_nodes``.
    losses : sequence of AppliedLoss
    groups : mapping of Source to int
        Index of the sampler that draws the rows of each source.
    graph : ModelGraph

    Raises
    ------
    ConfigError
        If a loss reads rows of several samplers, or a sampler has no loss.
    """

    def __init__(
        self,
        full_plan: StepPlan,
        make_plan: Callable[..., Any],
        losses: Sequence[AppliedLoss],
        groups: Mapping[Source, int],
        graph: ModelGraph,
    ) -> None:
        self.layout, self._graph = full_plan.layout, graph
        nodes_of_group: list[list[str]] = [[] for _ in set(groups.values())]
        for node_id in self.layout.labels:
            groups_read = {
                groups[leaf.source]
                for leaf in source_columns_of(self.layout.lineages[node_id, "features"])
            }
            if len(groups_read) == 1:
                nodes_of_group[groups_read.pop()].append(node_id)
        self.plans: list[StepPlan] = []
        self._parts: list[tuple[Any, list[int], dict[int, int]]] = []
        node_names = {*self.layout.labels, *self.layout.labels.values()}
        losses = [a for a in losses if a.on in node_names]
        remaining = list(range(len(losses)))
        for ids in nodes_of_group:
            names = {*ids, *(self.layout.labels[i] for i in ids)}
            read = {i: {item.node or losses[i].on for item in losses[i].parsed} for i in remaining}
            selected = [i for i in remaining if read[i] <= names]
            remaining = [i for i in remaining if i not in selected]
            if not selected:
                raise ConfigError(f"samplers alternate, but no loss is on {sorted(names)}")
            group_plan, step = make_plan([losses[i] for i in selected], active_nodes=ids)
            positions = {out: i for i, out in enumerate(group_plan.layout.outputs)}
            output_positions = {
                i: positions[o] for i, o in enumerate(self.layout.outputs) if o in positions
            }
            self.plans.append(group_plan)
            others = map(self.layout.losses.index, group_plan.layout.losses[len(selected) :])
            self._parts.append((step, [*selected, *others], output_positions))
        if remaining:
            labels = [losses[i].label for i in remaining]
            raise ConfigError(
                f"losses {labels} read rows of several samplers, which alternating never brings "
                "together; use batch_schedule='zip_strict' or 'zip_cycle'"
            )

    def step(self, batch: tuple[int, Sequence[Any]]) -> tuple[Sequence[Any], Sequence[Any]]:
        """Run the step of one sampler, given its index and its tensors."""
        group, tensors = batch
        run, loss_positions, output_positions = self._parts[group]
        try:
            losses, outputs = run(tensors)
        except NotFiniteError as error:
            raise NotFiniteError(loss_positions[error.place], error.value, error.of) from None
        all_losses = [losses[0] * 0.0] * len(self.layout.losses)
        for position, value in zip(loss_positions, losses, strict=True):
            all_losses[position] = value
        n = len(tensors[0])
        all_outputs = [
            outputs[output_positions[i]] if i in output_positions else self._zeros(i, n)
            for i in range(len(self.layout.outputs))
        ]
        return all_losses, all_outputs

    def _zeros(self, position: int, n: int) -> Any:
        node_id, _ = self.layout.outputs[position]
        shape = self._graph.get_node(node_id).output_shape or ()
        return self.layout.adapters[position].zeros((n, *shape), None)
