"""References: a node, or columns of a FeatureSet, as a value that resolves when it is used.

They are frozen, hashable and the same in every process. They resolve in the context of the
experiment that runs: by id, else by label, so a script finds its nodes again in a new process.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from modularml.config import Configurable
from modularml.context import ExperimentContext
from modularml.data.schema import DOMAINS

__all__ = [
    "ExperimentNodeReference",
    "FeatureSetColumnReference",
    "FeatureSetReference",
    "GraphNodeReference",
]


@dataclass(frozen=True)
class ExperimentNodeReference(Configurable):
    """A node, by label; the id is a hint for this process."""

    may_be_empty = frozenset({"node_id"})  # which files leave out

    node_id: str
    node_label: str

    def resolve(self, ctx: ExperimentContext | None = None) -> Any:
        """Return the node.

        Raises
        ------
        UnknownNameError
            If the context has no such node; the closest labels are listed.
        """
        ctx = ctx or ExperimentContext.get_active()
        if ctx.has_node(node_id=self.node_id):
            return ctx.get_node(node_id=self.node_id)
        return ctx.get_node(label=self.node_label)


@dataclass(frozen=True)
class GraphNodeReference(ExperimentNodeReference):
    """The output of a graph node."""


@dataclass(frozen=True)
class FeatureSetReference(ExperimentNodeReference):
    """Columns of a FeatureSet, by domain, in the order the user gave.

    Parameters
    ----------
    node_id, node_label : str
        The FeatureSet.
    features, targets, tags : tuple of str
        ``domain.key.rep``, or ``domain.key`` where the representation was left open: then the
        newest one at the time of use is meant.
    on : str or tuple of str, optional
        Columns by whose values its rows belong to those of other sets; see `FeatureSet.reference`.
        Two references to the same columns are equal whatever this is.
    strict : bool
        Whether a row without a partner is refused.
    """

    features: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    on: str | tuple[str, ...] | None = field(default=None, compare=False)
    strict: bool = field(default=False, compare=False)

    def columns(self, domain: str, fs: Any = None) -> tuple[str, ...]:
        """Return full column names of a domain, open representations resolved."""
        fs = fs or self.resolve()
        schema, given = fs.collection.schema, getattr(self, domain)
        return tuple(n if n.count(".") == 2 else schema.newest(*n.split(".")) for n in given)

    def all_columns(self, fs: Any = None) -> list[str]:
        """Return full names of all columns: features, targets, tags."""
        fs = fs or self.resolve()
        known = fs.collection.schema.resolved  # as this is asked for at the start of every epoch
        if self not in known:
            known[self] = tuple(name for d in DOMAINS for name in self.columns(d, fs))
        return list(known[self])

    def __str__(self) -> str:
        return f"{self.node_label}[{', '.join(self.features)}]"


@dataclass(frozen=True)
class FeatureSetColumnReference(ExperimentNodeReference):
    """One column of a FeatureSet; `on` and `strict` as in `FeatureSetReference`."""

    domain: str = "features"
    key: str = ""
    rep: str | None = None
    on: str | tuple[str, ...] | None = field(default=None, compare=False)
    strict: bool = field(default=False, compare=False)

    @property
    def column(self) -> str:
        """``domain.key.rep``, or ``domain.key`` where the representation was left open."""
        return ".".join(part for part in (self.domain, self.key, self.rep) if part)
