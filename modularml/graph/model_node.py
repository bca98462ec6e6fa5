"""A model as a node of a graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from modularml._typing import Columns, Shape
from modularml.backends import Backend, BackendAdapter, adapter_for, backend_of
from modularml.backends.accelerator import Accelerator
from modularml.backends.input_shapes import InputShape, shapes_of
from modularml.config import decode, encode
from modularml.data.batch import as_numpy
from modularml.data.execution import ExecutionContext
from modularml.data.lineage import ColumnLineage, MergedColumns, SourceColumns
from modularml.errors import (
    ConfigError,
    GraphError,
    NotFittedError,
    OptimizerNotSetError,
    ShapeError,
)
from modularml.graph.calling import call_by_hand
from modularml.graph.casting import value_dtypes
from modularml.graph.learned import LearnedRows
from modularml.graph.lineage import source_columns_of
from modularml.graph.node import ComputeNode, UpstreamLike
from modularml.models.base import BaseModel
from modularml.models.wrap import wrap_model
from modularml.training import AppliedLoss, Optimizer

__all__ = ["ModelNode"]


class ModelNode(ComputeNode):
    """One model that reads from a FeatureSet or node, or from several.

    Parameters
    ----------
    label : str
    model : BaseModel, torch.nn.Module, a class of one of them, or a scikit-learn estimator
    upstream_ref : FeatureSet, FeatureSetReference, node or label, or a list or dict of them
        What the model reads. It gets those of a list in their order (``forward(a, b)`` of torch,
        the inputs of a Keras model), those of a dict by name: as keyword arguments in torch, by
        the names of its inputs in Keras. Each is cast to the dtype that its own place in the model
        needs. Rows of several FeatureSets belong together as those of a `MergeNode` do.
    optimizer : Optimizer, optional
        Moves this node alone; not needed where the graph has one.
    accelerator : Accelerator or str, optional
        Where this node alone runs, whatever the device of the phase.
    targets : str or list of str, optional
        Target columns that the node predicts: it is compared with these alone, and its outputs are
        unscaled as these. Where none are named, those count that a loss pairs with its outputs, or
        else all that its inputs have. Several outputs of one target, such as quantiles, are each
        unscaled where it is named here; scores of classes never are. To be named where inputs come
        with targets of their own each.
    mask_as : str, optional
        Argument of the model's ``forward`` (torch) or ``call`` (Keras) that is given the mask of
        the padded columns which the node reads, directly or through other nodes: booleans of shape
        ``(n, *steps)``, true where there is data. A node of several inputs reads it as one of them.
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
    """As many as were given; an instance that reads several inputs says so itself."""

    def __init__(
        self,
        label: str,
        model: BaseModel | Any,
        upstream_ref: UpstreamLike | Sequence[UpstreamLike] | Mapping[str, UpstreamLike],
        optimizer: Optimizer | None = None,
        *,
        accelerator: Accelerator | str | None = None,
        targets: Columns = None,
        mask_as: str | None = None,
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
                "an optimizer; omit it"
            )
        self._optimizer = optimizer
        self._freeze = False
        self._drives: Any = None
        if mask_as is not None and isinstance(upstream_ref, list | tuple | dict):
            raise ConfigError(
                f"mask_as is for one input, and node {label!r} reads several; give the mask as one "
                "more of them: fs.reference(features='mask')"
            )
        if mask_as is not None and not adapter_for(self._model.backend).gradients:
            raise ConfigError(
                f"mask_as is for torch and Keras; node {label!r} holds a "
                f"{self._model.backend.value} model, which takes no mask"
            )
        self.targets, self.mask_as = targets, mask_as
        self.paired: tuple[tuple[str, ...], bool] | None = None
        refs: Any = upstream_ref
        self.input_names: list[str] | None = None
        if isinstance(upstream_ref, Mapping):
            self.input_names, refs = list(map(str, upstream_ref)), list(upstream_ref.values())
        self.reads_several = isinstance(refs, list | tuple)
        if not isinstance(refs, list | tuple):
            refs = [refs]
        if self.reads_several and not self._model.reads_several:
            raise GraphError(
                f"node {label!r} holds a {self._model.shown_name}, which reads one input, got "
                f"{len(refs)}; put a ConcatNode('both', [...], flatten=True) before it"
            )
        self.max_upstream_refs = len(refs)
        super().__init__(label, refs, node_id=node_id, register=register)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the framework's optimizer, which is made again where it is needed."""
        return {**vars(self), "_drives": None}

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
        """Reference to what this node reads from; a list or dict of them where it reads several."""
        return self._arranged(self._upstream_refs)

    @property
    def backend(self) -> Backend:
        """The framework of the model."""
        return self._model.backend

    @property
    def reads_flat(self) -> bool:
        """Whether columns of unlike shape are put side by side in one row: for an estimator."""
        return self._model.reads_flat

    @property
    def input_shape(self) -> InputShape | None:
        """Shape of one sample going in; a tuple or dict of shapes where the node reads several.

        None while an estimator above is not fitted.
        """
        shape: Any = self._known(self._model.input_shape)
        return (
            shape
            if self.input_names is None or shape is None
            else {name: shape[name] for name in self.input_names}
        )

    @property
    def input_shapes(self) -> list[Shape | None]:
        """Shape of one sample of each input, in order; None where it is not known yet."""
        shape = self.input_shape
        return [None] * len(self._upstream_refs) if shape is None else list(shapes_of(shape))

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
        input_shape: InputShape | None = None,
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
        if None in shapes:
            return self._model.build_unread(wanted, force=force)
        own = self._arranged(shapes)
        self.build_model(tuple(own) if isinstance(own, list) else own, wanted, force=force)
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
        """Return the model as a function of its tensors."""
        module: Callable[..., Any] = self._model.module
        return module

    def check_fitted(self) -> None:
        """Refuse to be asked for outputs before there is something learned to give them."""
        if not self._model.is_fitted:
            raise NotFittedError(
                f"node {self.label!r} has not been fitted; run a FitPhase on it first"
            )

    def flow(self, domain: str, parts: Sequence[ColumnLineage]) -> ColumnLineage:
        """Pass on what the upstream has; of several, targets and tags of the first with any."""
        if len(parts) == 1:
            return parts[0]
        if domain == "features":
            return MergedColumns(tuple(parts), self._refuse_features)
        columns = {
            (leaf.source.ref.node_label, leaf.columns): None
            for part in parts
            if isinstance(part, SourceColumns | MergedColumns)
            for leaf in source_columns_of(part)
        }
        if domain == "targets" and self.targets is None and len(columns) > 1:
            raise GraphError(
                f"node {self.label!r} reads several inputs with targets of their own, "
                f"{[name for _, own in columns for name in own]}; say which it predicts with "
                "ModelNode(..., targets=...), or leave the others out of their references "
                "(fs.reference(targets=[]))"
            )
        return next((part for part in parts if part is not None), None)

    def forward_single(self, batch: Any, **kwargs: Any) -> Any:
        """Send samples through the model, with gradients.

        Parameters
        ----------
        batch : SampleData, RoleData, Batch, tensor or ndarray, or a list or dict of them
            Features; a list or dict where the node reads several inputs.
        **kwargs
            Passed on to the model.

        Returns
        -------
        SampleData, RoleData, Batch or tensor
            As came in, with outputs in place of features.
        """
        if self.input_names is not None and isinstance(batch, dict):
            if batch.keys() != set(self.input_names):
                raise GraphError(f"node {self.label!r} reads {self.input_names}, got {list(batch)}")
            batch = [batch[name] for name in self.input_names]
        given = list(batch) if isinstance(batch, list | tuple) else [batch]
        if len(given) != len(self._upstream_refs):
            raise GraphError(
                f"node {self.label!r} reads {len(self._upstream_refs)} input(s), got {len(given)}"
            )
        self.check_fitted()
        if self.mask_as is not None and self.mask_as not in kwargs:
            raise GraphError(
                f"node {self.label!r} is given the mask of its input as {self.mask_as!r}; pass it: "
                f"node(batch, {self.mask_as}=mask), booleans that are true where there is data"
            )
        return call_by_hand(self, given, lambda values: self._output_of(values, kwargs))

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
            **({} if self.paired is None else {"paired": [list(self.paired[0]), self.paired[1]]}),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go back to what `get_state` returned."""
        self._model.set_state(state["model"])
        if self._optimizer is not None and state["optimizer"] is not None:
            self._optimizer.set_state(state["optimizer"])
        learned = state.get("learned_from")
        self._model.learned_from = None if learned is None else self.learned_from.restored(learned)
        if state.get("paired") is not None:
            names, is_scores = state["paired"]
            self.paired = tuple(map(str, names)), bool(is_scores)
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
            "mask_as": self.mask_as,
        }

    def _output_of(self, values: list[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return what the model makes of a tensor or array for each input."""
        adapter, module = adapter_for(self.backend), self._model.module
        call: Callable[..., Any] = partial(module, **kwargs)
        if self.reads_several:
            call = adapter.spread(call, self.input_names)
        tensors = self._tensors(values)
        return call(tensors if self.reads_several else tensors[0])

    def _tensors(self, values: list[Any]) -> list[Any]:
        """Return values as tensors that the model reads."""
        adapter, module = adapter_for(self.backend), self._model.module
        own = [backend_of(value) is self.backend for value in values]
        if adapter.writes_input(module):
            pairs = zip(values, own, strict=True)
            values = [adapter.concat([v], 0) if mine else v for v, mine in pairs]
        if all(own) and not all(hasattr(v, "numpy") for v in values):  # traced by its framework
            return values
        arrays = [as_numpy(value) for value in values]
        shape = self._arranged([a.shape[1:] for a in arrays])
        dtypes = value_dtypes(adapter, module, arrays, shape, f"input of {self.label}")
        device = adapter.device_of(module)
        return [
            (value if dtype in (None, value.dtype) else adapter.cast(value, dtype))
            if mine
            else adapter.from_numpy(array, dtype=dtype, device=device)
            for value, mine, array, dtype in zip(values, own, arrays, dtypes, strict=True)
        ]

    def _arranged(self, values: Sequence[Any]) -> Any:
        """Return what there is for each input as it was given: alone, as a list or as a dict."""
        if self.input_names is not None:
            return dict(zip(self.input_names, values, strict=True))
        return list(values) if self.reads_several else values[0]

    def _refuse_features(self, values: Any) -> Any:
        raise GraphError(
            f"node {self.label!r} reads several inputs, which are no one tensor of features; name "
            "a column, such as 'features.x'"
        )

    def _check_upstream(self, label: str, refs: Sequence[Any]) -> None:
        super()._check_upstream(label, refs)
        if len(refs) < (self.max_upstream_refs or 1):
            raise GraphError(
                f"node {label!r} reads {self.max_upstream_refs} inputs, got {len(refs)}"
            )

    def _graph(self) -> Any:
        graph = self.context.model_graph
        if graph is None or self.node_id not in graph.nodes:
            raise GraphError(f"node {self.label!r} is in no ModelGraph; make one first")
        return graph

    def _known(self, shape: Shape | None) -> Shape | None:
        if shape is None and not self.is_built:
            raise GraphError(f"node {self.label!r} has not been built; call graph.build()")
        return shape
