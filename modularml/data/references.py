"""References to nodes and to columns of FeatureSets.

References are frozen, hashable and identical in every process. They are resolved in the context of
the running experiment: by id, else by label, so a script finds its nodes again in a new process.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from modularml._typing import Columns
from modularml.config import Configurable
from modularml.context import ExperimentContext
from modularml.data.schema import DOMAINS, POSITION, SAMPLE_UUIDS, SampleSchema
from modularml.data.selectors import Candidates, as_list, select_one
from modularml.errors import ConfigError, UnknownNameError


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


def reference(
    self: Any,
    columns: list[str] | None = None,
    *,
    features: str | list[str] | None = None,
    targets: str | list[str] | None = None,
    tags: str | list[str] | None = None,
    rep: str | None = None,
    on: Columns = None,
    strict: bool = False,
) -> FeatureSetReference:
    """Return a reference to columns of this set for connecting a graph.

    Parameters
    ----------
    columns : list of str, optional
        Selectors of any domain.
    features, targets, tags : str or list of str, optional
        Selectors within a domain. A domain without selectors is included as a whole; an empty
        list omits it.
    rep : str, optional
        Representation for selectors that name none; None means the newest at the time of use.
    on : str or list of str, optional
        Key columns for joining rows of this set with rows of other sets: one to one, or many
        to one in either order. ``"sample_uuids"`` joins on the row ids, ``"position"`` on the
        row number. Without a key, both sets must hold the same samples.
    strict : bool
        Whether a row without a match raises an error; otherwise such rows are omitted with a
        warning that counts them.

    Raises
    ------
    UnknownNameError
        If there is no such column.
    """
    schema = self.collection.schema
    mentioned = _resolved(self, columns, None, rep)
    chosen = {}
    for domain, selectors in zip(DOMAINS, (features, targets, tags), strict=True):
        names = [name for name in mentioned if name.startswith(f"{domain}.")]
        names += _resolved(self, selectors, domain, rep)
        if selectors is None and not names:
            names = [
                f"{domain}.{key}.{rep}" if rep in schema.reps(domain, key) else f"{domain}.{key}"
                for key in schema.keys(domain)
            ]
        chosen[domain] = tuple(dict.fromkeys(names))
    key = join_key(schema, on)
    return FeatureSetReference(self.node_id, self.label, **chosen, on=key, strict=strict)


def column_reference(
    self: Any,
    column: str | None = None,
    *,
    feature: str | None = None,
    target: str | None = None,
    tag: str | None = None,
    rep: str | None = None,
    on: Columns = None,
    strict: bool = False,
) -> FeatureSetColumnReference:
    """Return a reference to one column; see `reference` for `on` and `strict`.

    Raises
    ------
    ConfigError
        Unless exactly one of `column`, `feature`, `target` and `tag` is given.
    UnknownNameError
        If no column, or more than one, matches.
    """
    arguments = {"columns": column, "features": feature, "targets": target, "tags": tag}
    selectors = {name: value for name, value in arguments.items() if value is not None}
    if len(selectors) != 1:
        raise ConfigError("pass exactly one of column, feature, target and tag")
    names = self._select(**selectors, rep=rep)
    selector = next(iter(selectors.values()))
    specs = [self.collection.schema[name] for name in names]
    if len({spec.key for spec in specs}) > 1:
        raise UnknownNameError("single column", selector, names)
    column_rep = specs[0].rep if rep or _names_rep(selector) else None
    return FeatureSetColumnReference(
        self.node_id,
        self.label,
        specs[0].domain,
        specs[0].key,
        column_rep,
        join_key(self.collection.schema, on),
        strict,
    )


def join_key(schema: SampleSchema, on: Columns) -> str | tuple[str, ...] | None:
    """Check the columns of a join key and return it in hashable form."""
    for name in as_list(on):
        if name not in (SAMPLE_UUIDS, POSITION):
            select_one(schema, name)
    return on if on is None or isinstance(on, str) else tuple(on)


def _resolved(fs: Any, selectors: Columns, domain: str | None, rep: str | None) -> list[str]:
    """Return full names, or ``domain.key`` of selectors that name no representation."""
    if selectors is None:
        return []
    schema = fs.collection.schema
    candidates = Candidates(schema, fs.column_names)
    domains = () if rep is not None else DOMAINS if domain is None else (domain,)
    plain = {key: f"{each}.{key}" for each in domains for key in schema.keys(each)}
    resolved = []
    for selector in as_list(selectors):
        if selector in plain:  # quick for many names
            resolved.append(plain[selector])
            continue
        names = candidates.match(selector, domain, rep)
        is_full = rep is not None or _names_rep(selector)
        resolved += names if is_full else [name.rpartition(".")[0] for name in names]
    return resolved


def _names_rep(selector: str) -> bool:
    """Check whether a selector names a representation."""
    dots = selector.count(".")
    return dots > 1 or (dots == 1 and selector.split(".")[0] not in DOMAINS)
