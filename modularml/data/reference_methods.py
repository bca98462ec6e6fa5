"""Referring to columns of a FeatureSet, for wiring a graph."""

from __future__ import annotations

from modularml._typing import Columns
from modularml.context import ExperimentNode
from modularml.data.access import SampleCollectionMixin
from modularml.data.references import FeatureSetColumnReference, FeatureSetReference
from modularml.data.schema import DOMAINS, POSITION, SAMPLE_UUIDS
from modularml.data.selectors import as_list, select_one
from modularml.errors import ConfigError, UnknownNameError

__all__ = ["ReferencesMixin"]


class ReferencesMixin(ExperimentNode, SampleCollectionMixin):
    """References to columns; they resolve when an experiment runs."""

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
        """Refer to columns of this set, for wiring a graph.

        Parameters
        ----------
        columns : list of str, optional
            Selectors of any domain.
        features, targets, tags : str or list of str, optional
            Selectors within a domain. A domain that is not mentioned is included whole; an empty
            list leaves it out.
        rep : str, optional
            Where neither this nor a selector names a representation, the newest one at the time
            of use is meant.
        on : str or list of str, optional
            Columns by whose values rows of this set belong to those of another, where both meet:
            one to one, or many to one in either order. ``"sample_uuids"`` are the ids of the rows,
            ``"position"`` their places. Without it two sets must hold the same samples.
        strict : bool
            Whether a row without a partner is refused; otherwise such rows are left out with a
            warning that counts them.

        Raises
        ------
        UnknownNameError
            If there is no such column.
        """
        mentioned = [n for s in as_list(columns) for n in self._referred(s, None, rep)]
        chosen = {}
        for domain, given in zip(DOMAINS, (features, targets, tags), strict=True):
            own = [name for name in mentioned if name.startswith(f"{domain}.")]
            own += [n for s in as_list(given) for n in self._referred(s, domain, rep)]
            if given is None and not own:
                own = self._whole_domain(domain, rep)
            chosen[domain] = tuple(dict.fromkeys(own))
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
        """Refer to one column of this set; see `reference` for `on` and `strict`.

        Raises
        ------
        ConfigError
            If not exactly one of `column`, `feature`, `target` and `tag` is given.
        UnknownNameError
            If there is no such column, or it is not the only one that fits.
        """
        given = {"columns": column, "features": feature, "targets": target, "tags": tag}
        asked = {name: value for name, value in given.items() if value is not None}
        if len(asked) != 1:
            raise ConfigError("give exactly one of column, feature, target and tag")
        found = self._select(**asked, rep=rep)
        specs = [self.collection.schema[name] for name in found]
        if len({spec.key for spec in specs}) > 1:
            raise UnknownNameError("single column", next(iter(asked.values())), found)
        named = specs[0].rep if rep or _names_rep(next(iter(asked.values()))) else None
        return FeatureSetColumnReference(
            self.node_id, self.label, specs[0].domain, specs[0].key, named, self._key(on), strict
        )

    def _key(self, on: Columns) -> str | tuple[str, ...] | None:
        """Return the columns of a key as a reference holds them."""
        for name in as_list(on):
            if name not in (SAMPLE_UUIDS, POSITION):
                select_one(self.collection.schema, name)
        return on if on is None or isinstance(on, str) else tuple(on)

    def _referred(self, selector: str, domain: str | None, rep: str | None) -> list[str]:
        """Return full names, or ``domain.key`` where the representation is left open."""
        found = self._select(**{domain or "columns": selector}, rep=rep)
        if rep or _names_rep(selector):
            return found
        return [name.rpartition(".")[0] for name in found]

    def _whole_domain(self, domain: str, rep: str | None) -> list[str]:
        """Name every column of a domain, of that representation where it has it."""
        schema = self.collection.schema
        return [
            f"{domain}.{key}.{rep}" if rep in schema.reps(domain, key) else f"{domain}.{key}"
            for key in schema.keys(domain)
        ]


def _names_rep(selector: str) -> bool:
    """Tell whether a selector names a representation."""
    dots = selector.count(".")
    return dots > 1 or (dots == 1 and selector.split(".")[0] not in DOMAINS)
