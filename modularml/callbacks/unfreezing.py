"""Progressive unfreezing of nodes."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any

from modularml.engine.callback import Callback, callback_registry
from modularml.errors import ConfigError

__all__ = ["ProgressiveUnfreezing"]


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

    def __init__(
        self, at: Mapping[int, Any], *, label: str | None = None, execution_order: int = 0
    ) -> None:
        super().__init__(label, execution_order)
        if not isinstance(at, Mapping) or not at:
            raise ConfigError(f"at must map epochs to nodes, got {at!r}")
        if bad := [e for e in at if not isinstance(e, Integral) or isinstance(e, bool) or e < 0]:
            raise ConfigError(
                f"epochs must be ints of at least 0, got {bad[0]!r}; at maps epochs to nodes, as "
                "in {3: 'encoder'}"
            )
        self.at = {epoch: _labels(nodes) for epoch, nodes in at.items()}
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


def _labels(nodes: Any) -> list[str]:
    node_list = nodes if isinstance(nodes, list | tuple) else [nodes]
    return [node if isinstance(node, str) else node.label for node in node_list]


callback_registry.register("ProgressiveUnfreezing", ProgressiveUnfreezing)
