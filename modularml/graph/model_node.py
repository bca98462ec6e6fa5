"""A model as a node of a graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from modularml._typing import Columns, Shape
from modularml.backends import Backend, BackendAdapter, adapter_for, backend_of
from modularml.backends.accelerator import Accelerator
from modularml.config import decode, encode
from modularml.data.batch import Batch, RoleData, SampleData, as_numpy
from modularml.data.execution import ExecutionContext, Flow
from modularml.errors import (
    ConfigError,
    GraphError,
    NotFittedError,
    OptimizerNotSetError,
    ShapeError,
)
from modularml.graph.casting import value_dtype
from modularml.graph.learned import LearnedRows
from modularml.graph.node import ComputeNode, UpstreamLike
from modularml.models.base import BaseModel
from modularml.models.wrap import wrap_model
from modularml.training import AppliedLoss, Optimizer

__all__ = ["ModelNode"]


class ModelNode(ComputeNode):
    """One model that reads from one FeatureSet or node.

    Parameters
    ----------
    label : str
    model : BaseModel, torch.nn.Module, a class of one of them, or a scikit-learn estimator
    upstream_ref : FeatureSet, FeatureSetReference, node or label
    optimizer : Optimizer, optional
        Moves this node alone; not needed where the graph has one.
    accelerator : Accelerator or str, optional
        Where this node alone runs, whatever the device of the phase.
    targets : str or list of str, optional
        Target columns that the node predicts: it is compared with these alone, and its outputs are
        unscaled as these. Where none are named, those count that a loss pairs with its outputs, or
        else all that its inputs have. Several outputs of one target, such as quantiles, are each
        unscaled where it is named here; scores of classes never are.
    node_id, register
        Used when a node is rebuilt.

    Raises
    ------
    ConfigError
        If `model` belongs to no known framework.
    GraphError
        If the upstream cannot be read from.
    """

    max_upstream_refs = 1

    def __init__(
        self,
        label: str,
        model: BaseModel | Any,
        upstream_ref: UpstreamLike,
        optimizer: Optimizer | None = None,
        *,
        accelerator: Accelerator | str | None = None,
        targets: Columns = None,
        node_id: str | None = None,
        register: bool = True,
    ) -> None:
        self.accelerator = Accelerator.from_value(accelerator)
        self._model = wrap_model(model)
        if optimizer is not None and not isinstance(optimizer, Optimizer):
            raise ConfigError(f"optimizer must be an Optimizer, got {optimizer!r}")
        if optimizer is not None and not adapter_for(self._model.backend).gradients:
            raise ConfigError(
                f"node {label!r} holds a {self._model.backend.value} model, which learns without "
                "an optimizer; leave it away"
            )
        self._optimizer = optimizer
        self._freeze = False
        self._drives: Any = None
        if isinstance(upstream_ref, list | tuple | dict):
            raise GraphError(
                f"node {label!r} reads one input, got {len(upstream_ref)}. Write one of several "
                "inputs as several nodes: one for each input, such as ModelNode('a', branch_a, "
                "fs.reference(features='a')), a ConcatNode('both', ['a', 'b']), a ModelNode for "
                "the layers after it; one of several outputs as a trunk and a head for each"
            )
        self.targets = targets
        self.paired: tuple[tuple[str, ...], bool] | None = None
        super().__init__(label, [upstream_ref], node_id=node_id, register=register)

    # -- what it is ---------------------------------------------------------------------------

    @property
    def model(self) -> BaseModel:
        """The wrapped model."""
        return self._model

    @property
    def optimizer(self) -> Optimizer | None:
        """The node's own optimizer."""
        return self._optimizer

    @property
    def upstream_ref(self) -> Any:
        """Reference to what this node reads from."""
        return self._upstream_refs[0]

    @property
    def backend(self) -> Backend:
        """The framework of the model."""
        return self._model.backend

    @property
    def reads_flat(self) -> bool:
        """Whether columns of unlike shape are put side by side in one row: for an estimator."""
        return self._model.reads_flat

    @property
    def input_shape(self) -> Shape | None:
        """Shape of one sample going in; None while an estimator above is not fitted."""
        return self._known(self._model.input_shape)

    @property
    def output_shape(self) -> Shape | None:
        """Shape of one sample coming out; None where only a fit can tell."""
        return self._known(self._model.output_shape)

    @property
    def is_built(self) -> bool:
        """Whether shapes are known and weights exist."""
        return self._model.is_built

    @property
    def is_frozen(self) -> bool:
        """Whether training leaves this node as it is."""
        return self._freeze

    @property
    def learned_from(self) -> LearnedRows:
        """Rows that the weights, or the estimator, learned from, also before a load."""
        return self._model.learned_from or LearnedRows()

    @property
    def has_weights(self) -> bool:
        """Whether training could change this node."""
        return bool(self.parameters())

    def parameters(self) -> dict[str, Any]:
        """Return by name what an optimizer may move once the node is not frozen."""
        return adapter_for(self.backend).parameters(self._model.module)

    # -- build --------------------------------------------------------------------------------

    def build_model(
        self,
        input_shape: Shape | None = None,
        output_shape: Shape | None = None,
        *,
        force: bool = False,
    ) -> None:
        """Make the model's layers, and the node's own optimizer.

        Raises
        ------
        ShapeError
            If the model cannot take samples of this shape; the node is named.
        """
        try:
            self._model.build(input_shape, output_shape, force=force)
        except ShapeError as error:
            raise ShapeError(f"node {self.label!r}: {error}") from error
        if self._freeze:
            adapter_for(self.backend).set_frozen(self._model.module, True)
        if self.accelerator is not None:
            self.move_to(self.accelerator.resolve(self.backend))
        if force:
            self._model.learned_from = None
            if self._optimizer is not None:
                self._optimizer.reset()
        self.build_optimizer()

    def move_to(self, device: Any) -> None:
        """Move weights to a device."""
        adapter_for(self.backend).move(self._model.module, device)

    def build_optimizer(self, more: Mapping[str, Any] | None = None) -> None:
        """Make the node's own optimizer over its parameters, where it is not over them yet.

        It moves `more` parameters by name too: those of the losses on this node.
        """
        optimizer = self._optimizer
        if optimizer is None:
            return
        known = adapter_for(self.backend).all_parameters(self._model.module)
        moving = {id(p) for p in self.parameters().values()} | optimizer.held
        named = {name: p for name, p in known.items() if id(p) in moving}
        if named := {**named, **(more or {})}:
            owner = f"node {self.label!r}"
            optimizer.build_for(named, self.backend, owner, self._drives, list(known))
            self._drives = optimizer.instance

    def build_from(
        self, shapes: Sequence[Shape | None], wanted: Shape | None, *, force: bool = False
    ) -> Shape | None:
        """Build for this input and return the output's shape."""
        if shapes[0] is None:
            return self._model.build_unread(wanted, force=force)
        self.build_model(shapes[0], wanted, force=force)
        return self.output_shape

    def reset_weights(self, seed: int | None = None) -> None:
        """Draw new weights and forget the optimizer's moments."""
        self._model.reset_weights(seed)
        self._model.learned_from = None
        if self._optimizer is not None:
            self._optimizer.reset()
            self.build_optimizer()

    def load_weights(self, source: Any) -> None:
        """Take over the weights of another node or model, and build for its shapes if need be.

        Parameters
        ----------
        source : ModelNode, BaseModel, or dict of str to array
            Such as ``ModelGraph.load("old.mg.mml").get_node("encoder")``.

        Raises
        ------
        ConfigError, ShapeError
            If names or shapes of weights are not those of this model; nothing is changed then.
        """
        model = source.model if isinstance(source, ModelNode) else source
        learned = getattr(model, "learned_from", None)
        if isinstance(model, BaseModel):
            if not self.is_built:
                self.build_model(model.input_shape, model.output_shape)
            model = model.get_weights()
        if not isinstance(model, Mapping):
            raise TypeError(f"source must be a node, model or dict of weights, got {source!r}")
        if not self.is_built:
            raise GraphError(f"node {self.label!r} has not been built; call graph.build() first")
        self._model.set_weights(dict(model))
        self._model.learned_from = learned

    def freeze(self) -> None:
        """Keep the node as it is from now on; it runs in evaluation mode."""
        self._freeze = True
        if self.is_built:
            adapter_for(self.backend).set_frozen(self._model.module, True)

    def unfreeze(self) -> None:
        """Let training change the node again."""
        self._freeze = False
        if self.is_built:
            adapter_for(self.backend).set_frozen(self._model.module, False)

    # -- run ----------------------------------------------------------------------------------

    def operation(self, adapter: BackendAdapter) -> Callable[..., Any]:
        """Return the model as a function of one tensor."""
        module: Callable[..., Any] = self._model.module
        return module

    def check_fitted(self) -> None:
        """Refuse to be asked for outputs before there is something learned to give them."""
        if not self._model.is_fitted:
            raise NotFittedError(
                f"node {self.label!r} has not been fitted; run a FitPhase on it first"
            )

    def flow(self, domain: str, parts: Sequence[Flow]) -> Flow:
        """Pass on what the upstream has."""
        return parts[0]

    def forward_single(self, batch: Any, **kwargs: Any) -> Any:
        """Send samples through the model, with gradients.

        Parameters
        ----------
        batch : SampleData, RoleData or Batch
            Features as tensors or arrays.
        **kwargs
            Passed on to the model.

        Returns
        -------
        SampleData, RoleData or Batch
            As came in, with outputs in place of features.
        """
        if isinstance(batch, Batch):
            return Batch(
                self.forward_single(batch.role_data, **kwargs), batch.role_weights, batch.role_masks
            )
        if isinstance(batch, RoleData):
            return RoleData(
                {role: self.forward_single(data, **kwargs) for role, data in batch.items()}
            )
        if not isinstance(batch, SampleData):
            raise TypeError(
                f"node {self.label!r} takes SampleData, RoleData or Batch, got "
                f"{type(batch).__name__}"
            )
        self.check_fitted()
        return batch.with_outputs(self._model.module(self._tensor(batch), **kwargs))

    __call__ = forward_single

    def train_step(self, ctx: ExecutionContext, losses: list[AppliedLoss]) -> None:
        """Move this node's weights once, with its own optimizer; see `ModelGraph.train_step`.

        Nodes that it reads from run too and keep their weights.

        Raises
        ------
        GraphError
            If the node is frozen.
        OptimizerNotSetError
            If it has no optimizer.
        """
        if self._freeze:
            raise GraphError(f"node {self.label!r} is frozen; unfreeze() it to train it")
        if self._optimizer is None:
            raise OptimizerNotSetError(
                f"node {self.label!r} has no optimizer; give it one, or train the graph"
            )
        self._graph()._step(ctx, losses, [self], training=True, only=self)

    def eval_step(self, ctx: ExecutionContext, losses: list[AppliedLoss] | None = None) -> None:
        """Send the step's data through, without gradients.

        Raises
        ------
        GraphError
            If the node is not frozen.
        """
        if not self._freeze:
            raise GraphError(
                f"node {self.label!r} is not frozen; freeze() it, or use the graph's eval_step"
            )
        self._graph().eval_step(ctx, losses or [], active_nodes=[self])

    def fit_step(self, ctx: ExecutionContext, losses: list[AppliedLoss] | None = None) -> None:
        """Fit this node on all rows of a step, and send them through.

        Raises
        ------
        GraphError
            If the node is frozen, or its model has no ``fit(features, targets)``.
        """
        if self._freeze:
            raise GraphError(f"node {self.label!r} is frozen; unfreeze() it to fit it")
        self._graph()._step(ctx, losses or (), [self], training=False, fits=[self])

    # -- config and state ---------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        """Return label, model, upstream and optimizer as plain data."""
        return {**super().get_config(), "frozen": self._freeze, "paired": encode(self.paired)}

    @classmethod
    def from_config(cls, config: dict[str, Any], *, register: bool = True) -> ModelNode:
        """Make a node from its config, with new weights."""
        node: ModelNode = super().from_config(
            {name: value for name, value in config.items() if name not in ("frozen", "paired")},
            register=register,
        )
        node.paired = decode(config.get("paired"))
        if config.get("frozen"):
            node.freeze()
        return node

    def get_state(self) -> dict[str, Any]:
        """Return weights, optimizer moments and whether the node is frozen."""
        return {
            "model": self._model.get_state(),
            "optimizer": None if self._optimizer is None else self._optimizer.get_state(),
            "frozen": self._freeze,
            **({"learned_from": self.learned_from.get_state()} if self.learned_from else {}),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go back to what `get_state` returned."""
        self._model.set_state(state["model"])
        if self._optimizer is not None and state["optimizer"] is not None:
            self._optimizer.set_state(state["optimizer"])
        learned = state.get("learned_from")
        self._model.learned_from = None if learned is None else self.learned_from.restored(learned)
        if state["frozen"] != self._freeze:
            (self.freeze if state["frozen"] else self.unfreeze)()

    def _params(self) -> dict[str, Any]:
        return {
            "label": self.label,
            "model": self._model,
            "upstream_ref": self.upstream_ref,
            "optimizer": self._optimizer,
            "accelerator": self.accelerator,
            "targets": self.targets,
        }

    def _tensor(self, data: SampleData) -> Any:
        value = data.features if data.features is not None else data.outputs
        if value is None:
            raise GraphError(f"node {self.label!r} was given samples without features")
        adapter, module = adapter_for(self.backend), self._model.module
        own = backend_of(value) is self.backend
        if own and adapter.writes_input(module):
            value = adapter.concat([value], 0)
        if own and not hasattr(value, "numpy"):  # traced by its framework
            return value
        values = as_numpy(value)
        dtype = value_dtype(adapter, module, values, f"input of {self.label}")
        if own:
            return value if dtype in (None, value.dtype) else adapter.cast(value, dtype)
        return adapter.from_numpy(values, dtype=dtype, device=adapter.device_of(module))

    def _graph(self) -> Any:
        graph = self.context.model_graph
        if graph is None or self.node_id not in graph.nodes:
            raise GraphError(f"node {self.label!r} is in no ModelGraph; make one first")
        return graph

    def _known(self, shape: Shape | None) -> Shape | None:
        if shape is None and not self.is_built:
            raise GraphError(f"node {self.label!r} has not been built; call graph.build()")
        return shape
