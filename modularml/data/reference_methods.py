"""Methods of a FeatureSet that return references to its columns."""

from __future__ import annotations

from modularml._typing import Columns
from modularml.context import ExperimentNode
from modularml.data.access import SampleCollectionMixin
from modularml.data.references import FeatureSetColumnReference, FeatureSetReference
from modularml.data.schema import DOMAINS, POSITION, SAMPLE_UUIDS
from modularml.data.selectors import Candidates, as_list, select_one
from modularml.errors import ConfigError, UnknownNameError

__all__ = ["ReferencesMixin"]


class ReferencesMixin(ExperimentNode, SampleCollectionMixin):
    """Methods that return references, which are resolved when an experiment runs."""

    def reference(
        self,
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
        mentioned = self._resolved(columns, None, rep)
        chosen = {}
        for domain, selectors in zip(DOMAINS, (features, targets, tags), strict=True):
            names = [name for name in mentioned if name.startswith(f"{domain}.")]
            names += self._resolved(selectors, domain, rep)
            if selectors is None and not names:
                names = self._whole_domain(domain, rep)
            chosen[domain] = tuple(dict.fromkeys(names))
        key = self._key(on)
        return FeatureSetReference(self.node_id, self.label, **chosen, on=key, strict=strict)

    def column_reference(
        self,
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
            self._key(on),
            strict,
        )

    def _key(self, on: Columns) -> str | tuple[str, ...] | None:
        """Check the columns of a join key and return it in hashable form."""
        for name in as_list(on):
            if name not in (SAMPLE_UUIDS, POSITION):
                select_one(self.collection.schema, name)
        return on if on is None or isinstance(on, str) else tuple(on)

    def _resolved(self, selectors: Columns, domain: str | None, rep: str | None) -> list[str]:
        """Return full names, or ``domain.key`` of selectors that name no representation."""
        if selectors is None:
            return []
        schema = self.collection.schema
        candidates = Candidates(schema, self.column_names)
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

    def _whole_domain(self, domain: str, rep: str | None) -> list[str]:
        """Return every column of a domain, in representation `rep` if it exists."""
        schema = self.collection.schema
        return [
            f"{domain}.{key}.{rep}" if rep in schema.reps(domain, key) else f"{domain}.{key}"
            for key in schema.keys(domain)
        ]


def _names_rep(selector: str) -> bool:
    """Check whether a selector names a representation."""
    dots = selector.count(".")
    return dots > 1 or (dots == 1 and selector.split(".")[0] not in DOMAINS)
