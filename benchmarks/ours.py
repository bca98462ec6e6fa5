"""The same jobs through modularml, every batch recorded (its default)."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from benchmarks.cases import LEARNING_RATE, Data
from modularml import (
    AppliedLoss,
    ConcatNode,
    Experiment,
    FeatureSet,
    InputBinding,
    Loss,
    ModelGraph,
    ModelNode,
    Optimizer,
    TrainPhase,
)
from modularml.callbacks import Callback
from modularml.samplers import SimpleSampler


def columns(data: Data) -> dict[str, Any]:
    """Name the columns: one a number for tables, one a sequence for sequences."""
    found: dict[str, Any] = {}
    for name, values in data.items():
        if values.shape[1] == 1:
            found[name] = values[:, 0]
        else:
            found |= {f"{name}{i}": values[:, i] for i in range(values.shape[1])}
    return found


def keys(found: dict[str, Any], name: str) -> list[str]:
    """Return the keys of the columns that one table or sequence became."""
    return [key for key in found if key == name or key.removeprefix(name).isdigit()]


def encoder(label: str, fs: FeatureSet, inputs: list[str], models: Any) -> ModelNode:
    """Return a node of shape (n, 16) -> (n, 32)."""
    model = models.SequentialMLP(output_shape=(32,), n_layers=2, hidden_dim=64)
    return ModelNode(label, model, fs.reference(features=inputs, targets="y"))


def nodes(kind: str, fs: FeatureSet, found: dict[str, Any], backend: str) -> list[Any]:
    """Return the nodes of a case, the one with the loss labelled ``head``."""
    models = import_module(f"modularml.models.{backend}")
    if kind in ("mlp", "cnn"):
        model: Any = models.SequentialMLP(n_layers=3, hidden_dim=64)
        if kind == "cnn":
            model = models.SequentialCNN(hidden_dim=16, kernel_size=3, padding=1, pooling=2)
        return [ModelNode("head", model, fs.reference(features=keys(found, "x"), targets="y"))]
    a, b = (encoder(name, fs, keys(found, name), models) for name in ("a", "b"))
    both = ConcatNode("both", [a, b], concat_axis=0, concat_axis_targets="first")
    return [a, b, both, ModelNode("head", models.SequentialMLP(n_layers=2, hidden_dim=64), both)]


class OurJob:
    """A training phase with its data, graph and experiment, ready to run.

    Parameters
    ----------
    kind : str
        Of the case.
    data : dict of str to ndarray
    batch_size : int
    sgd : bool
        Plain SGD in place of Adam.
    shuffle : bool
    backend : str
        ``torch`` or ``tensorflow``.
    """

    def __init__(
        self,
        kind: str,
        data: Data,
        *,
        batch_size: int,
        sgd: bool = False,
        shuffle: bool = True,
        backend: str = "torch",
    ) -> None:
        self.experiment = Experiment("bench", registration_policy="overwrite")
        found = columns(data)
        inputs = [key for key in found if key != "y"]
        fs = FeatureSet.from_dict("rows", found, feature_keys=inputs, target_keys="y")
        made = nodes(kind, fs, found, backend)
        name, rate = ("sgd", 0.05) if sgd else ("adam", LEARNING_RATE)
        optimizer = Optimizer(name, opt_kwargs={"lr": rate}, backend=backend)
        self.graph = ModelGraph(made, optimizer=optimizer)
        if kind == "frozen":
            self.graph.freeze(["a", "b"])
        mse = Loss("mse", backend=backend)
        self.losses = [AppliedLoss(mse, on="head", inputs=["outputs", "targets"])]
        sampler = SimpleSampler(batch_size=batch_size, shuffle=shuffle, seed=0)
        self.sources = [
            InputBinding.for_training(node=node, sampler=sampler, upstream=fs)
            for node in made
            if node.label in ("a", "b") or len(made) == 1
        ]

    def build(self, weights: Sequence[Any] | None = None) -> OurJob:
        """Build the graph and, where given, take over a hand-written model's weights."""
        import torch

        self.graph.build()
        if weights is not None:
            with torch.no_grad():
                for mine, given in zip(self.weights(), weights, strict=True):
                    mine.copy_(given)
        return self

    def run(
        self,
        epochs: int,
        *,
        recording: str = "all",
        callbacks: list[Callback] | None = None,
        compile: bool = False,
    ) -> list[float]:
        """Train on and return the mean loss of each epoch."""
        phase = TrainPhase(
            "train",
            input_sources=self.sources,
            losses=self.losses,
            n_epochs=epochs,
            callbacks=callbacks,
            result_recording=recording,
            compile=compile,
        )
        results = self.experiment.run_phase(
            phase, show_training_progress=False, show_sampler_progress=False
        )
        return results.metrics().where(name="train_loss", batch=None).values()

    def weights(self) -> list[Any]:
        """Return the weights, in the order of the hand-written model's parameters."""
        found = [self.graph.get_node(name) for name in ("a", "b", "head") if name in self._labels()]
        return [p for node in found for p in node.model.parameters()]

    def _labels(self) -> set[str]:
        return self.graph.node_labels
