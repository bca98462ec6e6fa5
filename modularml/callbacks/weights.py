"""Averages of weights over training, and unfreezing of nodes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from numbers import Integral
from typing import Any, Literal, Unpack

from modularml.backends import adapter_for
from modularml.data.batch import as_numpy
from modularml.data.execution_context import ExecutionContext
from modularml.engine.callback import Callback, CallbackOptions, registered
from modularml.errors import BackendNotSupportedError, ConfigError
from modularml.graph.model_node import ModelNode
from modularml.io.randomness import unchanged_randomness

Named = dict[str, tuple[Any, Any]]
"""Adapter and parameter by name: ``node.layer.weight``."""


class _WeightAverage(Callback):
    """Base class of averages: they are the weights from the end of an epoch to the next."""

    logs: tuple[str, ...] = ()
    changes_weights = False  # in the hooks of batches
    every: str
    decay: float | None = None
    """Share of the average that is left after an update; None for equal weights."""

    def __init__(
        self, start: float, label: str | None = None, execution_order: int = -1_000
    ) -> None:
        super().__init__(label, execution_order)
        is_share = isinstance(start, float) and 0 <= start < 1
        if not is_share and not (start >= 0 and float(start).is_integer()):
            raise ConfigError(
                "start must be an epoch (0-based), or a share of the epochs from 0 to 1, got "
                f"{start!r}"
            )
        self.start = start
        self._reset()

    def _reset(self) -> None:
        self.n_averaged, self._averages = 0, dict[str, Any]()
        self._trained: dict[str, Any] = {}  # while the weights are the averages
        self._named: Named | None = None
        self._is_restored = False

    def __getstate__(self) -> dict[str, Any]:
        """Omit the parameters, which are found again."""
        return {**vars(self), "_named": None}

    def check_ready(self, experiment: Any, phase: Any = None) -> None:
        """Refuse what cannot be averaged, before a run starts."""
        others = [c for c in phase.callbacks if isinstance(c, _WeightAverage)]
        if len(others) > 1:
            raise ConfigError(
                f"phase {phase.label!r} has {[c.label for c in others]}, and its weights can be "
                "averaged in one way; remove the others"
            )
        for optimizer in experiment.model_graph.moving_optimizers(phase.active_nodes):
            if optimizer.kwargs.get("use_ema"):
                raise ConfigError(
                    f"{self.label!r} and use_ema of {optimizer.name!r} both average the weights; "
                    "omit one of them"
                )

    def on_phase_start(self, *, phase: Any, **facts: Any) -> None:
        """Start without averages.

        Raises
        ------
        BackendNotSupportedError
            If a model has batch normalization whose statistics cannot be estimated anew.
        """
        self._reset()
        graph, feed = phase.graph(), phase.position.feed
        for node in _trained_nodes(graph, phase):
            adapter = adapter_for(node.backend)
            if not adapter.running_statistics(node.model.module):
                continue
            in_one_pass = feed.processes is None and not feed.alternates
            if in_one_pass and adapter.estimates_statistics:
                continue
            raise BackendNotSupportedError(
                f"node {node.label!r} has batch normalization, whose statistics are those of the "
                f"weights that were trained and not of their averages. {self.label!r} estimates "
                "them anew for torch models in one process, whose samplers do not alternate; use "
                "layer or group normalization, or omit the averages"
            )

    def on_epoch_start(self, *, phase: Any, **facts: Any) -> None:
        """Put back the weights that are trained."""
        self._named = None
        self._put_back(phase)

    def on_epoch_end(self, *, phase: Any, exec_ctx: ExecutionContext, **facts: Any) -> None:
        """Replace the weights by their averages, for evaluations and checkpoints."""
        if self._is_due(phase, exec_ctx.epoch_idx, "epoch"):
            self._update(phase)
        if not self._averages:
            return
        named = self._named or _parameters(phase)
        named = {name: named[name] for name in named if name in self._averages}
        nodes = _trained_nodes(phase.graph(), phase)
        statistics = _statistics(nodes)
        self._trained = {}
        for adapter, names in _by_adapter({**named, **statistics}):
            tensors = [{**named, **statistics}[n][1] for n in names]
            self._trained |= dict(zip(names, adapter.copies(tensors), strict=True))
        _assign(named, self._averages)
        if statistics:  # of batch normalization, estimated on the batches of the epoch
            feed, normalized = phase.position.feed, [n for n in nodes if _statistics([n])]
            adapter = adapter_for(normalized[0].backend)
            models = [node.model.module for node in normalized]
            with unchanged_randomness(), feed.plan.modes(), adapter.estimating(models):
                feed.run(exec_ctx.epoch_idx, feed.plan.eval_step())

    def on_phase_end(self, *, phase: Any, **facts: Any) -> None:
        """Keep the averages as the weights."""
        self._trained, self._named = {}, None

    def on_exception(self, *, phase: Any, **facts: Any) -> None:
        """Put back the weights that are trained."""
        self._put_back(phase)

    def get_state(self) -> dict[str, Any]:
        """Return the averages, and the trained weights while the graph has the averages."""
        return {
            "n_averaged": self.n_averaged,
            "averages": _arrays(self._averages),
            "trained": _arrays(self._trained),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore a state from `get_state`."""
        self._reset()
        self.n_averaged = state["n_averaged"]
        self._averages, self._trained = dict(state["averages"]), dict(state["trained"])
        self._is_restored = True

    # -- internals ----------------------------------------------------------------------------

    def _is_due(self, phase: Any, epoch: int, moment: str) -> bool:
        start = self.start if self.start >= 1 else int(self.start * phase.n_epochs)
        return self.every == moment and epoch >= start

    def _update(self, phase: Any) -> None:
        named = self._named = self._named or _parameters(phase)
        for adapter, names in _by_adapter(named):
            new = [n for n in names if _shape(self._averages.get(n)) != _shape(named[n][1])]
            self._averages |= dict(
                zip(new, adapter.copies([named[n][1] for n in new]), strict=True)
            )
            old = [n for n in names if n not in new]
            tensors = [named[n][1] for n in old]
            if self._is_restored:  # arrays, of a checkpoint
                values = adapter.like(tensors, [self._averages[n] for n in old])
                self._averages |= dict(zip(old, values, strict=True))
            share = 1 / (self.n_averaged + 1) if self.decay is None else 1 - self.decay
            adapter.approach([self._averages[n] for n in old], tensors, share)
        self.n_averaged += 1
        self._is_restored = False

    def _put_back(self, phase: Any) -> None:
        if self._trained:
            named = {**_parameters(phase), **_statistics(_trained_nodes(phase.graph(), phase))}
            _assign({n: named[n] for n in named if n in self._trained}, self._trained)
            self._trained = {}


@registered
class EMA(_WeightAverage):
    """Average the weights exponentially; evaluations and the trained graph use the average.

    From the end of each epoch to the start of the next, and after the phase, the weights are
    ``average = decay * average + (1 - decay) * weights``, as of
    `torch.optim.swa_utils.AveragedModel`. Evaluations, early stopping and checkpoints at the end of
    an epoch see them; training continues with its own. ``train_loss`` is that of the trained
    weights.

    Parameters
    ----------
    decay : float
        Between 0 and 1: the share of the average that is left after an update.
    every : {'batch', 'epoch'}
        Whether weights are averaged after each update of the optimizer, or each epoch.
    start : int or float
        Epoch (0-based) from which weights are averaged, or a share of the epochs of the phase.
    label, execution_order
        See `Callback`; it must run before evaluations.

    Raises
    ------
    ConfigError
        If an argument is not as described, or the phase has two averages.
    BackendNotSupportedError
        When the phase starts, if a Keras model has batch normalization. In torch its statistics
        are estimated anew, by a forward pass over the training rows at the end of each epoch.

    Notes
    -----
    With ``every='batch'``, folds and other variants are not trained as one. Parameters of losses
    are not averaged.

    Examples
    --------
    >>> EMA(0.99, every="epoch")
    EMA(decay=0.99, every='epoch', label='EMA')
    """

    def __init__(
        self,
        decay: float = 0.999,
        *,
        every: Literal["batch", "epoch"] = "batch",
        start: float = 0,
        label: str | None = None,
        execution_order: int = -1_000,
    ) -> None:
        if not 0 < decay < 1:
            raise ConfigError(f"decay must be between 0 and 1, got {decay!r}")
        super().__init__(start, label, execution_order)
        self.decay, self.every = decay, every
        self.unused_hooks = () if every == "batch" else ("on_batch_end",)

    def on_batch_end(self, *, phase: Any, exec_ctx: ExecutionContext, **facts: Any) -> None:
        """Average the weights after an update."""
        if self._is_due(phase, exec_ctx.epoch_idx, "batch") and phase.has_no_pending_gradients:
            self._update(phase)


@registered
class SWA(_WeightAverage):
    """Average the weights of the last epochs equally (stochastic weight averaging).

    From the end of each epoch to the start of the next, and after the phase, the weights are the
    mean of those at the ends of the epochs since `start`, as of
    `torch.optim.swa_utils.AveragedModel`. For the rest see `EMA`.

    Parameters
    ----------
    start : int or float
        Epoch (0-based) from which weights are averaged, or a share of the epochs of the phase.
    label, execution_order
        See `Callback`; it must run before evaluations.

    Notes
    -----
    The rate of the method's authors is constant or cyclic while weights are averaged:
    ``LRSchedule(torch.optim.swa_utils.SWALR, schedule_kwargs={"swa_lr": 0.05})`` (Izmailov et al.
    2018, *Averaging Weights Leads to Wider Optima and Better Generalization*, arXiv:1803.05407).

    Examples
    --------
    >>> SWA(start=10)
    SWA(start=10, label='SWA')
    """

    every = "epoch"

    def __init__(
        self, *, start: float = 0.75, label: str | None = None, execution_order: int = -1_000
    ) -> None:
        super().__init__(start, label, execution_order)


def _trained_nodes(graph: Any, phase: Any) -> list[ModelNode]:
    nodes = [n for n in graph._running(phase.active_nodes) if isinstance(n, ModelNode)]
    return [n for n in nodes if not n.is_frozen and adapter_for(n.backend).gradients]


def _parameters(phase: Any) -> Named:
    """Return the parameters that are trained, each once."""
    named: Named = {}
    seen = set[int]()
    for node in _trained_nodes(phase.graph(), phase):
        adapter = adapter_for(node.backend)
        for name, parameter in node.parameters().items():
            if id(parameter) not in seen:
                named[f"{node.label}.{name}"] = adapter, parameter
            seen.add(id(parameter))
    return named


def _statistics(nodes: list[ModelNode]) -> Named:
    return {
        f"{node.label}.{name}": (adapter_for(node.backend), tensor)
        for node in nodes
        for name, tensor in adapter_for(node.backend).running_statistics(node.model.module).items()
    }


def _by_adapter(named: Named) -> Iterator[tuple[Any, list[str]]]:
    for adapter, items in groupby(named.items(), key=lambda item: item[1][0]):
        yield adapter, [name for name, _ in items]


def _assign(named: Named, values: Mapping[str, Any]) -> None:
    for adapter, names in _by_adapter(named):
        adapter.assign([named[n][1] for n in names], [values[n] for n in names])


def _shape(tensor: Any) -> Any:
    return None if tensor is None else tuple(tensor.shape)


def _arrays(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: as_numpy(value).copy() for name, value in values.items()}


@registered
class ProgressiveUnfreezing(Callback):
    """Freeze nodes at first and unfreeze them at given epochs.

    Parameters
    ----------
    at : dict of int to str, node, or list of them
        Nodes by the epoch (0-based) from which they are trained: ``{3: "encoder"}``. They are
        frozen when the phase starts, except those of epoch 0. Other nodes are not changed.
    label, execution_order
        See `Callback`.

    Raises
    ------
    ConfigError
        If an epoch is not an int of at least 0, or a node is named twice.

    Examples
    --------
    >>> ProgressiveUnfreezing({3: "encoder", 6: "stem"}).at
    {3: ['encoder'], 6: ['stem']}
    """

    def __init__(self, at: Mapping[int, Any], **options: Unpack[CallbackOptions]) -> None:
        super().__init__(**options)
        if not isinstance(at, Mapping) or not at:
            raise ConfigError(f"at must map epochs to nodes, got {at!r}")
        if bad := [e for e in at if not isinstance(e, Integral) or isinstance(e, bool) or e < 0]:
            raise ConfigError(
                f"epochs must be ints of at least 0, got {bad[0]!r}; at maps epochs to nodes, as "
                "in {3: 'encoder'}"
            )
        self.at: dict[int, list[str]] = {}
        for epoch, nodes in at.items():
            listed = nodes if isinstance(nodes, list | tuple) else [nodes]
            self.at[epoch] = [node if isinstance(node, str) else node.label for node in listed]
        named = [name for names in self.at.values() for name in names]
        if twice := {name for name in named if named.count(name) > 1}:
            raise ConfigError(f"each node needs one epoch, got several epochs for {sorted(twice)}")

    def check_ready(self, experiment: Any, phase: Any = None) -> None:
        """Refuse nodes that the phase itself freezes."""
        names = {name for names in self.at.values() for name in names}
        if both := names & set(getattr(phase, "freeze", None) or ()):
            raise ConfigError(
                f"phase {phase.label!r} freezes {sorted(both)} to its end, and {self.label!r} "
                "would unfreeze them; omit them in freeze="
            )

    def on_phase_start(self, *, phase: Any, **facts: Any) -> None:
        """Freeze the nodes, except those of epoch 0.

        Raises
        ------
        UnknownNameError
            If a node is not in the graph; nothing is frozen then.
        """
        graph = phase.graph()
        nodes = [graph.get_node(name) for names in self.at.values() for name in names]
        graph.freeze(nodes)
        if 0 in self.at:
            graph.unfreeze(self.at[0])

    def on_epoch_start(self, *, phase: Any, exec_ctx: Any, **facts: Any) -> None:
        """Unfreeze the nodes of this epoch."""
        if names := self.at.get(exec_ctx.epoch_idx):
            phase.graph().unfreeze(names)
