"""The flatten node."""

from __future__ import annotations

from typing import Any, ClassVar

from modularml.graph.merge import MergeNode, side_by_side
from modularml.graph.node import UpstreamLike

__all__ = ["FlattenNode"]


class FlattenNode(MergeNode):
    """Flatten each sample into one row; columns of different shapes are concatenated.

    Parameters
    ----------
    label : str
    upstream_ref : FeatureSet, FeatureSetReference, node or label
    node_id, register
        Used when a node is rebuilt.

    Examples
    --------
    >>> import numpy as np
    >>> from modularml import FeatureSet, FlattenNode
    >>> rows = {"curve": np.zeros((5, 9)), "mass": np.zeros(5), "y": np.zeros(5)}
    >>> fs = FeatureSet.from_dict("cells", rows, ["curve", "mass"], "y")
    >>> node = FlattenNode("flat", fs)
    """

    min_upstream_refs: ClassVar[int] = 1
    max_upstream_refs = 1

    def __init__(
        self,
        label: str,
        upstream_ref: UpstreamLike,
        *,
        node_id: str | None = None,
        register: bool = True,
    ) -> None:
        super().__init__(label, [upstream_ref], node_id=node_id, register=register)

    @property
    def upstream_ref(self) -> Any:
        """Reference to the input of this node."""
        return self._upstream_refs[0]

    @property
    def reads_flat(self) -> bool:
        """Whether columns of different shapes are concatenated into one row."""
        return True

    def merge_features(self, adapter: Any, values: list[Any]) -> Any:
        """Return samples as rows of numbers."""
        return side_by_side(adapter, values)
