"""The node that holds a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

from modularml._typing import Columns, Shape
from modularml.backends import BackendAdapter, adapter_for
from modularml.backends.accelerator import Accelerator
from modularml.backends.layouts import (
    InputLayout,
    InputShape,
    arranged_call,
    arrangement,
    laid_out,
    shapes_of,
)
from modularml.config import decode, encode
from modularml.data.execution_context import ExecutionContext
from modularml.data.lineage import ColumnLineage, MergedColumns
from modularml.errors import (
    ConfigError,
    GraphError,
    NotFittedError,
    OptimizerNotSetError,
    ShapeError,
)
from modularml.graph.calling import call_directly, call_model
from modularml.graph.lineage import source_columns_of
from modularml.graph.node import UpstreamLike
from modularml.graph.weighted_node import WeightedNode
from modularml.models.base import BaseModel
from modularml.models.layered import wrap_model
from modularml.training import AppliedLoss, Optimizer

Pairing: TypeAlias = tuple[tuple[str, ...], bool, tuple[str, ...]]
"""Columns that a loss compares outputs with, whether these are class scores, and what each block
of outputs predicts."""


class ModelNode(WeightedNode):
    """A node that applies a model to one or several FeatureSets or nodes.

    Parameters
    ----------
    label : str
    model : BaseModel, torch.nn.Module, a class of one of them, or a scikit-learn estimator
    upstream_ref : FeatureSet, FeatureSetReference, node or label, or a list or dict of them
        Inputs of the model. Those of a list are passed in order (``forward(a, b)`` of torch, the
        inputs of a Keras model), those of a dict by name: as keyword arguments in torch, by the
        names of its inputs in Keras. Each is cast to the dtype that the model needs for it. Rows of
        several FeatureSets are matched as in a `MergeNode`.
    optimizer : Optimizer, optional
        Trains this node alone; not needed if the graph has an optimizer.
    accelerator : Accelerator or str, optional
        Device of this node, which overrides that of the phase.
    targets : str or list of str, optional
        Target columns that the node predicts: it is compared with these alone, and its outputs are
        unscaled with their scalers. By default those that a loss compares with its outputs, or else
        all targets of its inputs. Several outputs of one target, such as quantiles, are each
        unscaled if the target is named here; class scores never are. Required if several inputs
        have different targets.
    mask_as : str, optional
        Argument of the model's ``forward`` (torch) or ``call`` (Keras) that receives the mask of
        the padded columns which the node reads, directly or through other nodes: booleans of shape
        ``(n, *steps)``, true for data. A node with several inputs reads the mask as one of them.
    input_layout : {'channels_first', 'flat', 'time_first'}, optional
        Shape in which the model reads one input: ``(channels, time)``, all values on one axis, or
        ``(time, channels)``. By default, samples get the shape that the model declares (a
        `keras.Input`, ``input_shape=``, a first layer `nn.Linear`, `nn.Conv1d` or `nn.GRU`) if only
        axes of length 1 differ, and are else passed as they are, channels first.
    node_id, register
        Used when a node is rebuilt.

    Raises
    ------
    ConfigError
        If `model` belongs to no known framework.
    GraphError
        If the upstream cannot be read from.

    Examples
    --------
    >>> import numpy as np
    >>> from modularml import FeatureSet, ModelGraph, ModelNode
    >>> from torch import nn
    >>> fs = FeatureSet.from_dict("rows", {"x": np.zeros(5), "y": np.zeros(5)}, "x", "y")
    >>> encoder = ModelNode("encoder", nn.Linear(1, 8), fs)
    >>> head = ModelNode("head", nn.LazyLinear(1), encoder)
    >>> ModelGraph([encoder, head]).build()
    >>> encoder.output_shape, head.output_shape
    ((8,), (1,))
    """

    max_upstream_refs = 1
    """Overridden in instances with several inputs."""

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
        input_layout: InputLayout | None = None,
        node_id: str | None = None,
        register: bool = True,
    ) -> None:
        self.accelerator = Accelerator.from_value(accelerator)
        self._model = wrap_model(model)
        if optimizer is not None and not isinstance(optimizer, Optimizer):
            raise ConfigError(f"optimizer must be an Optimizer, got {optimizer!r}")
        kind, gradients = self._model.backend.value, adapter_for(self._model.backend).gradients
        if optimizer is not None and not gradients:
            raise ConfigError(
                f"node {label!r} holds a {kind} model, which learns without an optimizer; omit it"
            )
        self._optimizer = optimizer
        self._freeze = self._held = False
        self._framework_optimizer: Any = None
        for name, value, instead, why in (
            (
                "mask_as",
                mask_as,
                "add the mask as another input: fs.reference(features='mask')",
                "which takes no mask",
            ),
            (
                "input_layout",
                input_layout,
                "put it on nodes before this one, or reshape the inputs in the model",
                "which reads flat rows anyway; omit it",
            ),
        ):
            if value is not None and isinstance(upstream_ref, list | tuple | dict):
                raise ConfigError(
                    f"{name} is for one input, and node {label!r} reads several; {instead}"
                )
            if value is not None and not gradients:
                raise ConfigError(
                    f"{name} is for torch and Keras; node {label!r} holds a {kind} model, {why}"
                )
        self.targets, self.mask_as, self.input_layout = targets, mask_as, input_layout
        self.paired: Pairing | None = None
        refs: Any = upstream_ref
        self.input_names: list[str] | None = None
        if isinstance(upstream_ref, Mapping):
            self.input_names, refs = list(map(str, upstream_ref)), list(upstream_ref.values())
        self.reads_several = isinstance(refs, list | tuple)
        refs = list(refs) if self.reads_several else [refs]
        if self.reads_several and not self._model.reads_several:
            raise GraphError(
                f"node {label!r} holds a {self._model.shown_name}, which reads one input, got "
                f"{len(refs)}; put a ConcatNode('both', [...], flatten=True) before it"
            )
        self.max_upstream_refs = len(refs)
        super().__init__(label, refs, node_id=node_id, register=register)

    def __getstate__(self) -> dict[str, Any]:
        """Drop the framework's optimizer, which is rebuilt on demand, and the phase's freezing."""
        frozen = {"_freeze": self.is_frozen, "_held": False}
        return {**vars(self), "_framework_optimizer": None, **frozen}

    # -- properties ---------------------------------------------------------------------------

    def _facts(self) -> dict[str, str]:
        facts = {"model": self._model.shown_name}
        if self.is_built:
            total, trainable = adapter_for(self.backend).count_parameters(self._model.module)
            facts["parameters"] = f"{total:,}, {0 if self.is_frozen else trainable:,} trainable"
        return {**facts, **super()._facts()}

    @property
    def optimizer(self) -> Optimizer | None:
        """The node's own optimizer."""
        return self._optimizer

    @property
    def upstream_ref(self) -> Any:
        """Reference to the input of this node; a list or dict of references for several."""
        return self._arranged(self._upstream_refs)

    @property
    def reads_flat(self) -> bool:
        """Whether columns of different shapes are concatenated into one row, as for estimators."""
        return self._model.reads_flat

    @property
    def input_shape(self) -> InputShape | None:
        """Shape of one input sample; a tuple or dict of shapes for several inputs.

        None while an upstream estimator is not fitted.
        """
        shape: Any = self._known(self._model.input_shape)
        return (
            shape
            if self.input_names is None or shape is None
            else {name: shape[name] for name in self.input_names}
        )

    @property
    def input_shapes(self) -> list[Shape | None]:
        """Shape of one sample of each input, in order; None if not known yet."""
        shape = self.input_shape
        return [None] * len(self._upstream_refs) if shape is None else list(shapes_of(shape))

    @property
    def output_shape(self) -> Shape | None:
        """Shape of one output sample; None if only a fit determines it."""
        return self._known(self._model.output_shape)

    # -- build --------------------------------------------------------------------------------

    def build_from(
        self, shapes: Sequence[Shape | None], wanted: Shape | None, *, force: bool = False
    ) -> Shape | None:
        """Build for this input and return the output's shape."""
        if None in shapes:
            return self._model.build_unread(wanted, force=force)
        shape = self._arranged(shapes)
        if self.input_layout is not None:
            shape = laid_out(shape, self.input_layout)
        elif not self.reads_several:
            declared = self._model.declared_input(shape)
            if declared not in (None, shape):
                with suppress(ShapeError):  # else it is built for the shape as it comes
                    self.build_model(declared, wanted, force=force)
                    return self.output_shape
        self.build_model(tuple(shape) if isinstance(shape, list) else shape, wanted, force=force)
        return self.output_shape

    def arranged(self, adapter: BackendAdapter, call: Callable[..., Any], shape: Shape) -> Any:
        """Return a function that calls a model with samples of `shape` in its own layout."""
        target = self._model.input_shape
        if self.reads_several or target is None:
            return call
        return arranged_call(adapter, call, arrangement(shape, target, self.input_layout), target)

    # -- run ----------------------------------------------------------------------------------

    def operation(self, adapter: BackendAdapter) -> Callable[..., Any]:
        """Return the model as a function of its tensors."""
        module: Callable[..., Any] = self._model.module
        return module

    def check_fitted(self) -> None:
        """Raise unless the model is fitted."""
        if not self._model.is_fitted:
            raise NotFittedError(
                f"node {self.label!r} has not been fitted; run a FitPhase on it first"
            )

    def flow(self, domain: str, parts: Sequence[ColumnLineage]) -> ColumnLineage:
        """Return the lineage of the input; for several, targets and tags of the first."""
        if len(parts) == 1:
            return parts[0]
        if domain == "features":
            return MergedColumns(tuple(parts), self._refuse_features)
        columns = {
            (leaf.source.ref.node_label, leaf.columns): None
            for part in parts
            for leaf in source_columns_of(part)
        }
        if domain == "targets" and self.targets is None and len(columns) > 1:
            raise GraphError(
                f"node {self.label!r} reads several inputs with different targets, "
                f"{[name for _, own in columns for name in own]}; name those it predicts with "
                "ModelNode(..., targets=...), or omit the others from their references "
                "(fs.reference(targets=[]))"
            )
        return next((part for part in parts if part is not None), None)

    def forward_single(self, batch: Any, **kwargs: Any) -> Any:
        """Send samples through the model, with gradients.

        Parameters
        ----------
        batch : SampleData, RoleData, Batch, tensor or ndarray, or a list or dict of them
            Features; a list or dict for several inputs.
        **kwargs
            Passed to the model.

        Returns
        -------
        SampleData, RoleData, Batch or tensor
            Of the same kind as the input, with outputs instead of features.
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
                f"node {self.label!r} needs the mask of its input as {self.mask_as!r}; pass it: "
                f"node(batch, {self.mask_as}=mask), booleans that are true for data"
            )
        return call_directly(self, given, lambda values: call_model(self, values, kwargs))

    __call__ = forward_single

    def train_step(self, ctx: ExecutionContext, losses: list[AppliedLoss]) -> None:
        """Update this node's weights once, with its optimizer; see `ModelGraph.train_step`.

        Upstream nodes run too and keep their weights.

        Raises
        ------
        GraphError
            If the node is frozen.
        OptimizerNotSetError
            If it has no optimizer.
        """
        if self.is_frozen:
            raise GraphError(f"node {self.label!r} is frozen; unfreeze() it to train it")
        if self._optimizer is None:
            raise OptimizerNotSetError(
                f"node {self.label!r} has no optimizer; give it one, or train the graph"
            ).with_code("MML-406")
        self._graph()._step(ctx, losses, [self], training=True, only=self)

    def eval_step(self, ctx: ExecutionContext, losses: list[AppliedLoss] | None = None) -> None:
        """Compute outputs for the data of a step, without gradients.

        Raises
        ------
        GraphError
            If the node is not frozen.
        """
        if not self.is_frozen:
            raise GraphError(
                f"node {self.label!r} is not frozen; freeze() it, or use the graph's eval_step"
            )
        self._graph().eval_step(ctx, losses or [], active_nodes=[self])

    def fit_step(self, ctx: ExecutionContext, losses: list[AppliedLoss] | None = None) -> None:
        """Fit this node on all rows of a step, and compute its outputs.

        Raises
        ------
        GraphError
            If the node is frozen, or its model has no ``fit(features, targets)``.
        """
        if self.is_frozen:
            raise GraphError(f"node {self.label!r} is frozen; unfreeze() it to fit it")
        self._graph()._step(ctx, losses or (), [self], training=False, fits=[self])

    # -- config and state ---------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        """Return label, model, upstream and optimizer as plain data."""
        return {**super().get_config(), "frozen": self._freeze, "paired": encode(self.paired)}

    @classmethod
    def from_config(cls, config: dict[str, Any], *, register: bool = True) -> ModelNode:
        """Build a node from its config, with new weights."""
        node: ModelNode = super().from_config(
            {name: value for name, value in config.items() if name not in ("frozen", "paired")},
            register=register,
        )
        node.paired = _pairing(decode(config.get("paired")))
        if config.get("frozen"):
            node.freeze()
        return node

    def get_state(self) -> dict[str, Any]:
        """Return weights, optimizer moments and the frozen flag."""
        names, is_scores, labels = self.paired or ((), False, ())
        paired = [list(names), is_scores, *([list(labels)] if labels else [])]
        return {
            "model": self._model.get_state(),
            "optimizer": None if self._optimizer is None else self._optimizer.get_state(),
            "frozen": self._freeze,
            **({"learned_from": self.learned_from.get_state()} if self.learned_from else {}),
            **({} if self.paired is None else {"paired": paired}),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_state` returned."""
        self._model.set_state(state["model"])
        if self._optimizer is not None and state["optimizer"] is not None:
            self._optimizer.set_state(state["optimizer"])
        learned = state.get("learned_from")
        self._model.learned_from = None if learned is None else self.learned_from.restored(learned)
        if state.get("paired") is not None:
            self.paired = _pairing(state["paired"])
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
            "input_layout": self.input_layout,
        }

    def _arranged(self, values: Sequence[Any]) -> Any:
        """Return one value per input in the form of the inputs: single, list or dict."""
        if self.input_names is not None:
            return dict(zip(self.input_names, values, strict=True))
        return list(values) if self.reads_several else values[0]

    def _refuse_features(self, values: Any) -> Any:
        raise GraphError(
            f"node {self.label!r} reads several inputs, which do not form one features tensor; "
            "name a column, such as 'features.x'"
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
            raise GraphError(f"node {self.label!r} is in no ModelGraph; create one first")
        return graph

    def _known(self, shape: Shape | None) -> Shape | None:
        if shape is None and not self.is_built:
            raise GraphError(f"node {self.label!r} has not been built; call graph.build()")
        return shape


def _pairing(value: Any) -> Pairing | None:
    """Return a stored pairing; labels of blocks are missing in older files."""
    if value is None:
        return None
    names, is_scores, *labels = value
    return tuple(map(str, names)), bool(is_scores), tuple(map(str, *labels)) if labels else ()
