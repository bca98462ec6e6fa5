"""Losses applied to nodes, and their inputs."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

from modularml._typing import Shape
from modularml.backends import Backend
from modularml.config import Configurable
from modularml.context import ExperimentNode
from modularml.data.lineage import column_above
from modularml.data.references import (
    ExperimentNodeReference,
    FeatureSetColumnReference,
    FeatureSetReference,
)
from modularml.errors import ConfigError, LossError
from modularml.training.loss import Loss

DOMAINS = ("outputs", "targets", "features", "tags")


@dataclass(frozen=True)
class LossInput:
    """One argument of a loss.

    Parameters
    ----------
    node : str or None
        Label or id of the node; None for the node that the loss is applied on.
    domain : str
        ``outputs``, ``targets``, ``features`` or ``tags``.
    role : str or None
        None for the default role, or the only one.
    column : str or None
        Column of an upstream FeatureSet, instead of a whole domain.
    source : str or None
        Label of that FeatureSet; None for the first that has the column.
    """

    node: str | None
    domain: str
    role: str | None = None
    column: str | None = None
    source: str | None = None

    @classmethod
    def parse(cls, item: Any) -> LossInput:
        """Parse ``outputs``, ``targets.anchor``, ``<node>.outputs``, a column or a reference.

        Whether ``anchor`` is a role or the key of a column is resolved once the roles are known.

        Raises
        ------
        ConfigError
            If the item has none of these forms.
        """
        if isinstance(item, LossInput):
            return item
        if isinstance(item, FeatureSetColumnReference):
            return cls(None, item.domain, None, item.column, item.node_label)
        if isinstance(item, FeatureSetReference):
            raise ConfigError("a loss input must be one column; use fs.column_reference(...)")
        if isinstance(item, ExperimentNodeReference):
            return cls(item.node_label, "outputs")
        if isinstance(item, ExperimentNode):
            return cls(item.label, "outputs")
        if not isinstance(item, str) or not item:
            raise ConfigError(
                f"loss input must be a string or a reference, got {item!r}; {_EXPECTED}"
            )
        return cls._parse_text(item)

    @classmethod
    def _parse_text(cls, item: str) -> LossInput:
        parts = item.split(".")
        if parts[0] in DOMAINS:
            if len(parts) == 3:
                return cls(None, parts[0], None, item)
            return cls(None, parts[0], parts[1] if len(parts) == 2 else None)
        for role_index in (-1, -2):
            if len(parts) > -role_index and parts[role_index] in DOMAINS:
                role = parts[-1] if role_index == -2 else None
                return cls(".".join(parts[:role_index]), parts[role_index], role)
        if len(parts) > 3 and parts[-3] in DOMAINS[1:]:
            return cls(None, parts[-3], None, ".".join(parts[-3:]), ".".join(parts[:-3]))
        if len(parts) <= 2:
            return cls(None, "features", None, item)
        raise ConfigError(f"loss input {item!r} is not valid; {_EXPECTED}")


_EXPECTED = (
    "pass 'outputs', 'targets', 'features' or 'tags', one of these with '.<role>', "
    "'<node label>.outputs', a column of an upstream FeatureSet, or a reference"
)


class AppliedLoss(Configurable):
    """A loss on the output of a node.

    Parameters
    ----------
    loss : Loss
    on : str or GraphNode
        Node that the loss is applied on, or its label or id.
    inputs : list or dict
        Arguments of the loss, by position or keyword. Each item is ``outputs``, ``targets``,
        ``features`` or ``tags`` of the node, one of these with ``.<role>``, another node's as
        ``<label>.outputs``, a column of an upstream FeatureSet by any selector (``rul``,
        ``rul.raw``, ``targets.rul``, optionally prefixed with the FeatureSet's label), or a
        reference. A name that is both a role and a key denotes the role.
    weight : float
        Multiplies the loss.
    label : str, optional
        ``<loss>_<node>`` by default.
    sample_weight : str or FeatureSetColumnReference, optional
        Column of non-negative numbers that weight the mean, ``sum(w * l) / sum(w)``. With several
        roles it is read for the first one.
    class_weight : 'balanced' or dict of label to float, optional
        Weights of the classes in the column that the loss reads, which multiply those of
        `sample_weight`. ``"balanced"`` computes them from the training rows of each run or fold, as
        scikit-learn does. Labels are those that the loss reads, or those before they were encoded.

    Raises
    ------
    ConfigError
        If an input is not valid, the weight is not a finite number, or class weights are not
        numbers of at least 0.

    Notes
    -----
    Class weights apply where nodes learn: in training, and in the ``fit`` of estimators.
    Evaluations of the loss are not weighted by class, as in Keras.

    Examples
    --------
    >>> AppliedLoss(Loss("mse"), on="head", inputs=["outputs", "targets"]).label
    'mse_head'
    """

    def __init__(
        self,
        loss: Loss,
        on: str | ExperimentNode,
        inputs: Sequence[Any] | Mapping[str, Any],
        *,
        weight: float = 1.0,
        label: str | None = None,
        sample_weight: str | FeatureSetColumnReference | None = None,
        class_weight: Literal["balanced"] | Mapping[Any, float] | None = None,
    ) -> None:
        if not isinstance(loss, Loss):
            raise ConfigError(f"loss must be a Loss, got {loss!r}; write Loss({loss!r})")
        if not isinstance(on, str | ExperimentNode | ExperimentNodeReference):
            raise TypeError(f"on must be a node or its label, got a {type(on).__name__}")
        if not isinstance(inputs, list | tuple | dict):
            raise TypeError(f"inputs must be a list or a dict, got a {type(inputs).__name__}")
        if not inputs:
            raise ConfigError(f"inputs of a loss cannot be empty; {_EXPECTED}")
        number: Any = weight
        if not isinstance(number, Real) or not math.isfinite(number):
            raise ConfigError(f"weight must be a finite number, got {weight!r}")
        self.loss, self.weight = loss, float(weight)
        self.on: str = (
            on
            if isinstance(on, str)
            else str(getattr(on, "label", "") or getattr(on, "node_label", ""))
        )
        self.inputs = dict(inputs) if isinstance(inputs, dict) else list(inputs)
        self.label = label if label is not None else f"{loss.name}_{self.on}"
        items = self.inputs.values() if isinstance(self.inputs, dict) else self.inputs
        self.parsed = [LossInput.parse(item) for item in items]
        self.sample_weight = sample_weight
        if not isinstance(sample_weight, str | FeatureSetColumnReference | None):
            raise ConfigError(f"sample_weight must be a column or None, got {sample_weight!r}")
        self.class_weight = dict(class_weight) if isinstance(class_weight, dict) else class_weight
        self._check_class_weight()

    def _check_class_weight(self) -> None:
        given = self.class_weight
        if given is None:
            return
        values: list[Any] = list(given.values()) if isinstance(given, dict) else []
        numbers = [v for v in values if isinstance(v, Real) and not isinstance(v, bool)]
        finite: list[Any] = [v for v in numbers if math.isfinite(v)]
        are_weights = 0 < len(values) == len(finite) and min(finite) >= 0
        if given != "balanced" and not are_weights:
            raise ConfigError(
                "class_weight must be 'balanced', or map labels to finite numbers of at least 0, "
                f"got {given!r}"
            )
        if self.loss.over == "batch":
            raise ConfigError(
                f"class_weight is for losses that are means over samples, and {self.loss.name!r} "
                "is over the batch; give the weights to the loss itself"
            )

    @property
    def is_weighted(self) -> bool:
        """Whether it has sample weights or class weights."""
        return self.sample_weight is not None or self.class_weight is not None

    @property
    def node_id(self) -> str:
        """Label or id of the node, as given."""
        return self.on

    @property
    def keywords(self) -> list[str] | None:
        """Argument names if inputs are keywords; else None."""
        return list(self.inputs) if isinstance(self.inputs, dict) else None

    def call_names(self, fn: Callable[..., Any]) -> list[str] | None:
        """Return the keywords to call a loss with; None for positional inputs.

        A list of outputs and the values to compare them with, in any order, is passed as ``y_pred``
        and ``y_true`` if the loss has these arguments, as Keras losses do.
        """
        domains = [item.domain for item in self.parsed]
        if self.keywords or len(domains) != 2 or domains.count("outputs") != 1:
            return self.keywords
        try:
            arguments = list(inspect.signature(fn).parameters)
        except ValueError:  # a builtin has no signature
            return None
        if arguments[:2] != ["y_true", "y_pred"]:
            return None
        return ["y_pred" if domain == "outputs" else "y_true" for domain in domains]

    @property
    def backend(self) -> Backend:
        """The framework of the loss."""
        return self.loss.backend

    def compute(self, ctx: Any) -> Any:
        """Return the weighted loss of a completed step.

        Parameters
        ----------
        ctx : ExecutionContext
            After ``graph.train_step`` or ``graph.eval_step``.

        Raises
        ------
        LossError
            If the step lacks an input of the loss, or the loss skips padding; or if samples have
            weights and the step was run without this loss.
        UnknownNameError
            If there is no such column.
        """
        layout = ctx.layout
        if layout is None:
            raise LossError("the step has not run yet; pass it to graph.train_step or eval_step")
        if self.label in layout.padded:
            raise LossError(f"loss {self.label!r} reads padded columns; its value is in ctx.losses")
        if self.label not in dict(layout.losses) and self.loss.over != "batch":
            # a step only collects sample weights for its own losses
            sources = ctx.sources(self._node_id_of(layout, self.on))
            if self.is_weighted or any(ctx.weights(source) for source in sources):
                raise LossError(
                    f"loss {self.label!r}: samples have weights, but the step was run without this "
                    "loss; pass it to graph.train_step or eval_step and read ctx.losses"
                )
        args = [self._argument(ctx, item) for item in self.parsed]
        adapter = layout.adapter_of(self._node_id_of(layout, self.on))
        fn = self.loss.resolve(adapter.backend)
        names = self.call_names(fn)
        value = fn(**dict(zip(names, args, strict=True))) if names else fn(*args)
        labels = [label for label, _ in layout.losses]
        weight_sources = dict(zip(labels, layout.weight_sources, strict=True))
        weight_source = weight_sources.get(self.label) if self.loss.over != "batch" else None
        if weight_source is not None:
            weights = ctx.sample_weights(weight_source)
            value = weigh(value, adapter.from_numpy(weights / (weights.mean() or 1.0)))
        return adapter.sample_mean(value) * self.weight

    def _argument(self, ctx: Any, item: LossInput) -> Any:
        layout = ctx.layout
        ran = {name for i, _ in layout.outputs for name in (i, layout.labels.get(i))}
        of_set = None if item.domain == "outputs" or item.node in ran else item.node
        node_name = self.on if of_set is not None else item.node or self.on
        node_id = self._node_id_of(layout, node_name)
        role, column = item.role or ctx.roles(node_id)[0], item.column
        if item.domain != "outputs" and column is None and role not in ctx.roles(node_id):
            role, column = ctx.roles(node_id)[0], f"{item.domain}.{role}"
        if item.domain == "outputs":
            return ctx.output(node_id, role)
        flow = layout.lineages.get((node_id, item.domain))
        if column is not None:
            kind, source = f"input of loss {self.label!r}", item.source or of_set
            flow = column_above(layout.lineages, node_id, column, kind, source)
        values = ctx.column_values(flow, role)
        if values is None:
            why = f"has no {item.domain}" if flow is None else "got no row numbers"
            raise LossError(f"loss {self.label!r}: node {node_name!r} {why}")
        if self.label not in dict(layout.losses) and ctx.held(flow, role) is not None:
            raise LossError(
                f"loss {self.label!r} reads padded columns; run the step with this loss and read "
                "its value from ctx.losses"
            )
        out = ctx.output(node_id, role)
        floating = values.dtype.kind == "f"
        shapes = (tuple(n for n in shape if n != 1) for shape in (values.shape, tuple(out.shape)))
        if len(set(shapes)) == 1:
            values = values.reshape(tuple(out.shape))
        elif values.ndim == 2 and values.shape[1] == 1 and not floating:
            values = values[:, 0]
        return layout.adapter_of(node_id).from_numpy(values, dtype=out.dtype if floating else None)

    def _node_id_of(self, layout: Any, name: str) -> str:
        for node_id, _ in layout.outputs:
            if name in (node_id, layout.labels.get(node_id)):
                return str(node_id)
        raise LossError(f"loss {self.label!r}: node {name!r} did not run in this step")

    def __repr__(self) -> str:
        return (
            f"AppliedLoss({self.loss.name!r} on {self.on!r}, inputs={self.inputs}, "
            f"weight={self.weight})"
        )


def weigh(values: Any, weights: Any) -> Any:
    """Multiply losses, shape (n, ...), by sample weights, shape (n,)."""
    shape = tuple(values.shape)
    if not shape or shape[0] not in (weights.shape[0], None):
        raise LossError(
            f"a loss with sample weights must return one value per sample or element, got "
            f"shape {shape} for {weights.shape[0]} samples; do not reduce it (reduction='none')"
        )
    return values * weights[(..., *[None] * (len(shape) - 1))]


def weigh_steps(adapter: Any, values: Any, weights: Any, steps: Shape, problem: str) -> Any:
    """Multiply losses by the weights of the elements of padded columns.

    Parameters
    ----------
    adapter : BackendAdapter
    values : tensor, shape (n, ...)
        One per element, or one per step.
    weights : tensor, shape (n, ...)
        One per element, equal for all elements of a step, which are on the last axes.
    steps : tuple of int
        Shape of the steps of a sample.
    problem : str
        Start of the error message, before the shape of the values.

    Raises
    ------
    LossError
        If there is not one value per step.
    """
    shape, full = tuple(values.shape)[1:], tuple(weights.shape)[1:]
    if shape != full:
        squeezed, of_steps, of_elements = (
            [n for n in sizes if n != 1] for sizes in (shape, steps, full)
        )
        if not len(values.shape) or squeezed not in (of_steps, of_elements):
            raise LossError(f"{problem} of shape {tuple(values.shape)}, not one per step")
        if squeezed != of_elements:
            weights = adapter.reshape(weights, (*of_steps, -1))[..., 0]
        weights = adapter.reshape(weights, shape)
    return values * weights
