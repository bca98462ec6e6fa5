"""References to nodes and to columns of FeatureSets.

References are frozen, hashable and identical in every process. They are resolved in the context of
the running experiment: by id, else by label, so a script finds its nodes again in a new process.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from modularml.config import Configurable
from modularml.context import ExperimentContext
from modularml.data.schema import DOMAINS, SampleSchema

__all__ = [
    "ExperimentNodeReference",
    "FeatureSetColumnReference",
    "FeatureSetReference",
    "GraphNodeReference",
]


@dataclass(frozen=True)
class ExperimentNodeReference(Configurable):
    """A reference to a node by label; the id is a hint valid in this process."""

    may_be_empty = frozenset({"node_id"})  # omitted in files

    node_id: str
    node_label: str

    def resolve(self, ctx: ExperimentContext | None = None) -> Any:
        """Return the node.

        Raises
        ------
        UnknownNameError
            If the context has no such node; the message lists the closest labels.
        """
        ctx = ctx or ExperimentContext.get_active()
        node = ctx._find(node_id=self.node_id)
        return ctx.get_node(label=self.node_label) if node is None else node


@dataclass(frozen=True)
class GraphNodeReference(ExperimentNodeReference):
    """The output of a graph node."""


@dataclass(frozen=True)
class FeatureSetReference(ExperimentNodeReference):
    """A reference to columns of a FeatureSet, by domain, in the order passed.

    Parameters
    ----------
    node_id, node_label : str
        The FeatureSet.
    features, targets, tags : tuple of str
        ``domain.key.rep``, or ``domain.key`` for the newest representation at the time of use.
    on : str or tuple of str, optional
        Key columns for joining rows with those of other sets; see `FeatureSet.reference`. Ignored
        in comparisons of references.
    strict : bool
        Whether a row without a match raises an error.

    Examples
    --------
    >>> from modularml import FeatureSet
    >>> rows = {"a": [1.0], "b": [2.0], "y": [3.0]}
    >>> fs = FeatureSet.from_dict("rows", rows, ["a", "b"], "y", register=False)
    >>> fs.reference(features="b").features
    ('features.b',)
    """

    features: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    on: str | tuple[str, ...] | None = field(default=None, compare=False)
    strict: bool = field(default=False, compare=False)

    def columns(self, domain: str, fs: Any = None) -> tuple[str, ...]:
        """Return full column names of a domain with representations resolved."""
        fs = self.resolve() if fs is None else fs
        schema: SampleSchema = fs.collection.schema
        cache = schema.resolved  # used at the start of every epoch
        if (self, domain) not in cache:
            names = getattr(self, domain)
            cache[self, domain] = tuple(
                n if n.count(".") == 2 else schema.newest(*n.split(".")) for n in names
            )
        return cache[self, domain]

    def all_columns(self, fs: Any = None) -> list[str]:
        """Return full names of all columns: features, targets, tags."""
        fs = self.resolve() if fs is None else fs
        cache = fs.collection.schema.resolved
        if self not in cache:
            cache[self] = tuple(name for d in DOMAINS for name in self.columns(d, fs))
        return list(cache[self])

    def __str__(self) -> str:
        return f"{self.node_label}[{', '.join(self.features)}]"


@dataclass(frozen=True)
class FeatureSetColumnReference(ExperimentNodeReference):
    """A reference to one column; `on` and `strict` as in `FeatureSetReference`.

    Examples
    --------
    >>> from modularml import FeatureSet
    >>> fs = FeatureSet.from_dict("rows", {"a": [1.0], "y": [3.0]}, "a", "y", register=False)
    >>> fs.column_reference("y").key
    'y'
    """

    domain: str = "features"
    key: str = ""
    rep: str | None = None
    on: str | tuple[str, ...] | None = field(default=None, compare=False)
    strict: bool = field(default=False, compare=False)

    @property
    def column(self) -> str:
        """``domain.key.rep``, or ``domain.key`` without a representation."""
        return ".".join(part for part in (self.domain, self.key, self.rep) if part)
