"""Fit phases: nodes that are fitted on all rows at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

from modularml.data.execution_context import ExecutionContext
from modularml.engine.batch_feed import BatchFeed
from modularml.engine.binding import InputBinding
from modularml.graph.model_graph import ModelGraph
from modularml.graph.weighted_node import learners, to_fit
from modularml.phases.phase import ExperimentPhase, PhaseOptions, bindings_from_split
from modularml.results.eval_results import FitResults
from modularml.training import AppliedLoss


class FitOptions(PhaseOptions, total=False):
    """Arguments of a `FitPhase` that may be omitted."""

    freeze_after_fit: bool


class FitPhase(ExperimentPhase):
    """Fit nodes whose models have ``fit(features, targets)`` on all rows at once.

    Parameters
    ----------
    label : str
    input_sources : list of InputBinding
        One for each input of each head node, without samplers.
    losses : list of AppliedLoss, optional
        Computed after fitting.
    active_nodes : list of node or label, optional
        Nodes to fit; their upstream nodes run too. None fits all nodes that can be fitted.
    freeze_after_fit : bool
        Whether fitted nodes are frozen, so that later phases do not change them.
    callbacks : list of Callback, optional
    accelerator : Accelerator or str, optional
        Device and processes the phase runs on.

    Examples
    --------
    >>> import numpy as np
    >>> import modularml as mml
    >>> from sklearn.linear_model import Ridge
    >>> experiment = mml.Experiment("demo", seed=0)
    >>> a, b, noise = np.random.default_rng(0).normal(size=(3, 60))
    >>> rows = {"a": a, "b": b, "y": a + b + noise}
    >>> fs = mml.FeatureSet.from_dict("rows", rows, ["a", "b"], "y")
    >>> fs.split_random({"train": 0.8, "test": 0.2})
    >>> graph = mml.ModelGraph([mml.ModelNode("ridge", Ridge(), fs)])
    >>> phase = mml.FitPhase.from_split("fit", split="train")
    >>> results = experiment.run_phase(phase)
    >>> experiment.predict(fs["test"]).shape
    (12, 1)
    """

    results_class = FitResults

    def __init__(
        self,
        label: str,
        *,
        input_sources: list[InputBinding],
        losses: list[AppliedLoss] | None = None,
        freeze_after_fit: bool = True,
        **options: Unpack[PhaseOptions],
    ) -> None:
        super().__init__(label, input_sources=input_sources, losses=losses, **options)
        self.freeze_after_fit = freeze_after_fit

    @classmethod
    def from_split(
        cls,
        label: str,
        *,
        split: str,
        losses: list[AppliedLoss] | None = None,
        **options: Unpack[FitOptions],
    ) -> FitPhase:
        """Create a phase that reads one split; see `TrainPhase.from_split`."""
        bindings = bindings_from_split(label, split, None, options.get("active_nodes"))
        return cls(label, input_sources=bindings, losses=losses, **options)

    def to_fit(self, graph: ModelGraph) -> list[Any]:
        """Return the nodes that are fitted."""
        return to_fit(graph._running(self.active_nodes))

    def check(self, graph: ModelGraph) -> None:
        """Check the phase against the graph, and that some model has ``fit``."""
        super().check(graph)
        nodes = to_fit(graph._running(self.active_nodes), even_frozen=True)
        graph.check_weights(self.losses, learners((), nodes))

    def step_of(self, feed: BatchFeed) -> Callable[[ExecutionContext], None]:
        """Return the step of the only batch: fit the nodes, then compute outputs."""
        graph = self.graph()
        run, nodes = super().step_of(feed), self.to_fit(graph)

        def step(ctx: ExecutionContext) -> None:
            with graph.shapes_of_fits(nodes):
                run(ctx)
            for node in nodes if self.freeze_after_fit else ():
                node.freeze()

        return step
