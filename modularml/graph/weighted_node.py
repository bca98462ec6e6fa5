"""Weights of a node, and whether they are trained."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from modularml._typing import Shape
from modularml.backends import Backend, adapter_for
from modularml.backends.input_shapes import InputShape
from modularml.errors import (
    GraphError,
)
from modularml.graph.learned import LearnedRows
from modularml.graph.node import ComputeNode
from modularml.models.base import BaseModel, renamed_in_order
from modularml.training import Optimizer

__all__ = ["WeightedNode"]


class WeightedNode(ComputeNode):
    """A node with a model, whose weights may be frozen."""

    _model: BaseModel
    _optimizer: Optimizer | None
    _freeze: bool
    """Whether the user froze it."""
    _held: bool
    """Whether a phase froze it for its duration."""

    @abstractmethod
    def build_model(
        self, input_shape: InputShape | None = None, output_shape: Shape | None = None
    ) -> None:
        """Build the model's layers."""

    @abstractmethod
    def build_optimizer(self) -> None:
        """Build the node's own optimizer."""

    @property
    def model(self) -> BaseModel:
        """The wrapped model."""
        return self._model

    @property
    def backend(self) -> Backend:
        """The framework of the model."""
        return self._model.backend

    @property
    def is_built(self) -> bool:
        """Whether shapes are known and weights exist."""
        return self._model.is_built

    @property
    def is_frozen(self) -> bool:
        """Whether the node is excluded from training."""
        return self._freeze or self._held

    @property
    def learned_from(self) -> LearnedRows:
        """Rows that the weights or the estimator learned from, including before a load."""
        return self._model.learned_from or LearnedRows()

    @property
    def has_weights(self) -> bool:
        """Whether training could change this node."""
        return bool(self.parameters())

    def parameters(self) -> dict[str, Any]:
        """Return the parameters by name that are trainable if the node is not frozen."""
        return adapter_for(self.backend).parameters(self._model.module)

    def move_to(self, device: Any) -> None:
        """Move weights to a device."""
        adapter_for(self.backend).move(self._model.module, device)

    def reset_weights(self, seed: int | None = None) -> None:
        """Reinitialize the weights and reset the optimizer's moments."""
        self._model.reset_weights(seed)
        self._model.learned_from = None
        if self._optimizer is not None:
            self._optimizer.reset()
            self.build_optimizer()

    def load_weights(self, source: Any) -> None:
        """Copy the weights of another node or model; build for its shapes if need be.

        Parameters
        ----------
        source : ModelNode, BaseModel, or dict of str to array
            Such as ``ModelGraph.load("old.mg.mml").get_node("encoder")``. Between two sequences of
            layers the names may differ: weights then go from layer to layer, in order, such as
            ``fc.0.weight`` to ``layers.0.weight``.

        Raises
        ------
        ConfigError, ShapeError
            If names or shapes of weights differ from this model's; nothing is changed then.
        """
        model = source.model if isinstance(source, WeightedNode) else source
        learned = getattr(model, "learned_from", None)
        if isinstance(model, BaseModel):
            if not self.is_built:
                self.build_model(model.input_shape, model.output_shape)
            model = model.get_weights()
        if not isinstance(model, Mapping):
            raise TypeError(f"source must be a node, model or dict of weights, got {source!r}")
        if not self.is_built:
            raise GraphError(f"node {self.label!r} has not been built; call graph.build() first")
        own = self._model.get_weights()
        weights = model if own.keys() == model.keys() else renamed_in_order(own, model)
        self._model.set_weights(dict(weights))
        self._model.learned_from = learned

    def freeze(self) -> None:
        """Exclude the node from training; it then runs in evaluation mode."""
        self._set_frozen(True, self._held)

    def unfreeze(self) -> None:
        """Include the node in training again, once no phase freezes it."""
        self._set_frozen(False, self._held)

    @contextmanager
    def frozen_within(self) -> Iterator[None]:
        """Freeze the node within a block; its own flag and its state are not changed."""
        before = self._held
        self._set_frozen(self._freeze, True)
        try:
            yield
        finally:
            self._set_frozen(self._freeze, before)

    def _set_frozen(self, own: bool, held: bool) -> None:
        self._freeze, self._held = own, held
        if self.is_built:
            adapter_for(self.backend).set_frozen(self._model.module, self.is_frozen)
