"""Rows of folds and of bootstrap members, and the bindings that describe them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from modularml._arguments import Checked
from modularml._typing import Array, Columns, IntArray
from modularml.context import ExperimentContext
from modularml.data.featureset import FeatureSet
from modularml.data.ids import id_array
from modularml.data.lineage import Source
from modularml.data.selectors import as_list, select_one
from modularml.data.split_records import with_series
from modularml.data.table_join import Link, table_of
from modularml.data.view import FeatureSetView
from modularml.errors import ConfigError, DataError, SplitError
from modularml.graph.model_graph import ModelGraph
from modularml.graph.row_matching import links_of, meetings_of
from modularml.io.randomness import derived_seed
from modularml.splitters import FoldSplitter, KFoldSplitter, RandomSplitter
from modularml.splitters.base import check_bins, key_list
from modularml.splitters.dealing import factorise
from modularml.strategies.variants.variant import Sides, Variant


class CVBinding(Checked):
    """Which rows of a FeatureSet are split into folds, how, and the split names.

    Parameters
    ----------
    fs : FeatureSet or str
        The FeatureSet, its label or id.
    source_splits : list of str
        Splits whose rows form the pool; a row in several of them counts once.
    group_by : str or list of str, optional
        Rows with equal values in these columns are never on both sides of a fold; by default
        the windows of one series, if the rows are windows.
    stratify_by : str or list of str, optional
        Folds preserve the proportions of these columns, as far as groups allow.
    train_split_name, val_split_name : str
        Names of the two sides of each fold; splits with these names are replaced within the fold,
        others are unchanged.
    val_size : float, optional
        Share of the pool that each fold validates on; by default ``1 / n_folds``. Rows that no fold
        validates on are trained on in all folds.
    stop_size : float, optional
        Share of each fold's training rows that is held out, by the same groups and strata (the
        latest rows with a `TimeSeriesSplitter`), for early stopping and learning-rate schedules. If
        these monitor a metric of an `Evaluation` on the validation split, they monitor the same
        metric on the held-out rows instead, logged as ``stop_val_loss`` and so on. Scalers are not
        fitted on these rows.
    stop_split_name : str
        Name of the split of these rows in each fold.
    bins : int, optional
        Number of bins for `stratify_by`; see `KFoldSplitter`.

    Raises
    ------
    UnknownNameError
        If there is no such FeatureSet, split or column.
    ConfigError
        If another argument is not as described.

    Examples
    --------
    >>> from modularml import FeatureSet
    >>> rows = {"x": [1.0, 2.0], "y": [1.0, 2.0], "cell": ["a", "b"]}
    >>> fs = FeatureSet.from_dict("rows", rows, "x", "y", "cell", register=False)
    >>> fs.split_random({"train": 0.5, "val": 0.5})
    >>> CVBinding(fs, ["train", "val"], group_by="cell").group_by
    'cell'
    """

    def __init__(
        self,
        fs: str | FeatureSet,
        source_splits: str | list[str],
        *,
        group_by: Columns = None,
        stratify_by: Columns = None,
        train_split_name: str = "train",
        val_split_name: str = "val",
        val_size: float | None = None,
        stop_size: float | None = None,
        stop_split_name: str = "stop",
        bins: int | None = None,
    ) -> None:
        featureset: Any = fs
        if isinstance(fs, str):
            featureset = ExperimentContext.get_active().get_node(fs, enforce_type="FeatureSet")
        if not isinstance(featureset, FeatureSet):
            raise ConfigError(f"fs must be a FeatureSet, its label or id, got {fs!r}")
        names = [train_split_name, val_split_name, *[stop_split_name] * (stop_size is not None)]
        if len(set(names)) < len(names):
            raise ConfigError(f"the splits of a fold need distinct names, got {names}")
        for name, size in (("val_size", val_size), ("stop_size", stop_size)):
            if size is not None and not 0 < size < 1:
                raise ConfigError(f"{name} must be between 0 and 1, exclusive, got {size!r}")
        check_bins(bins, stratify_by, ConfigError)
        self.featureset, self.source_splits = featureset, as_list(source_splits)
        self.group_by, self.stratify_by, self.val_size = group_by, stratify_by, val_size
        self.train_split_name, self.val_split_name = train_split_name, val_split_name
        self.stop_size, self.stop_split_name, self.bins = stop_size, stop_split_name, bins
        if not len(self.pool()):
            raise ConfigError(
                f"source_splits {self.source_splits} of {featureset.label!r} hold no rows"
            )
        for key in key_list(group_by, stratify_by):
            select_one(featureset.collection.schema, key)

    @property
    def groups(self) -> Columns:
        """Columns of `group_by`; by default the series of windows."""
        return self.group_by or self.featureset.kept_together or None

    def pool(self) -> FeatureSetView:
        """Return the rows that are split into folds, in the order of the FeatureSet."""
        fs = self.featureset
        rows = [fs.get_split(name).valid_indices for name in self.source_splits]
        return fs.take(np.unique(np.concatenate([np.empty(0, dtype=np.int64), *rows])), "pool")

    def __repr__(self) -> str:
        names = ("group_by", "stratify_by", "stop_size")
        shown = {name: getattr(self, name) for name in names}
        options = "".join(f", {name}={keys!r}" for name, keys in shown.items() if keys is not None)
        return f"CVBinding({self.featureset.label!r}, {self.source_splits}{options})"


def make_folds(
    bindings: Sequence[CVBinding],
    *,
    n_folds: int,
    n_repeats: int,
    seed: int,
    splitter: FoldSplitter | None,
    graph: ModelGraph | None = None,
) -> list[Variant]:
    """Split the pools of all bindings consistently.

    FeatureSets that share samples, or are grouped by the same columns, are split together, so that
    related rows are held out together. FeatureSets that the graph relates to these by a key, with
    no binding or one without a rule, follow them. Others are split with the same rule and seed:
    equal numbers of rows without groups and strata are split at the same positions.
    """
    folds: list[Variant] = []
    links, leading = _relations(graph), list[CVBinding]()
    for b in bindings:  # that are split; rows of the others follow them
        has_no_rule = all(rule is None for rule in (b.group_by, b.stratify_by, b.val_size))
        related = {x for pair, _ in links if b.featureset.label in pair for x in pair}
        cut = [other for other in leading if other.featureset.label in related]
        if not (has_no_rule and cut) or any(_are_linked(b, other) for other in leading):
            leading.append(b)
    followers = [b for b in bindings if b not in leading]
    groups: list[list[CVBinding]] = []  # that must be split together
    for b in leading:
        linked = [group for group in groups if any(_are_linked(b, other) for other in group)]
        groups = [group for group in groups if group not in linked]
        groups.append([*(other for group in linked for other in group), b])
    for repeat in range(n_repeats):
        cuts = []
        for connected in groups:
            rule = _rule(connected, n_folds, seed + repeat, splitter, repeat)
            cuts.append(_cut(connected, rule, derived_seed(seed + repeat, "stop") % 2**32))
        if len({len(cut) for cut in cuts}) != 1:
            raise ConfigError(
                f"{splitter!r} splits FeatureSets that share neither samples nor groups into "
                f"{[len(cut) for cut in cuts]} folds; their numbers must be equal"
            )
        for parts in zip(*cuts, strict=True):
            sides = {label: side for part in parts for label, side in part.items()}
            sides |= _followed(sides, links, followers)
            fold_seed = derived_seed(seed, len(folds)) % 2**32
            folds.append(Variant(f"fold_{len(folds)}", fold_seed, repeat, sides))
    return folds


def _relations(graph: ModelGraph | None) -> list[tuple[tuple[str, str], Link]]:
    """Return the links between rows of FeatureSets of a graph, with their labels."""
    nodes = [] if graph is None else list(graph.nodes.values())
    sets = {r.node_label: r.resolve() for node in nodes for r in node.feature_refs}
    if len(sets) < 2:
        return []
    labels = list(sets)
    table_index = {
        Source(node.node_id, ref): labels.index(ref.node_label)
        for node in nodes
        for ref in node.feature_refs
    }
    tables = [table_of(fs.to_view()) for fs in sets.values()]
    try:
        links = links_of(meetings_of(nodes, ()), tables, table_index)  # type: ignore[arg-type]
    except DataError:  # refused later if needed: parts of them may be related
        return []
    return [((labels[x.tables[0]], labels[x.tables[1]]), x) for x in links]


def _followed(
    sides: Mapping[str, Sides],
    links: Sequence[tuple[tuple[str, str], Link]],
    followers: Sequence[CVBinding],
) -> dict[str, Sides]:
    """Return the rows of other FeatureSets that are linked to those of a fold."""
    new_sides, sides_of = dict[str, Sides](), dict(sides)
    binding_of = {b.featureset.label: b for b in followers}
    for pair, link in [*links] * len(links):  # repeated for indirect links
        for side, (old, new) in enumerate((pair, pair[::-1])):
            if old not in sides_of or new in sides_of:
                continue
            cut, pool = sides_of[old], binding_of[new].pool().indices if new in binding_of else None
            parts: dict[str, IntArray] = {}
            for part in ("train", "val", "pool", "stop"):
                if (rows := getattr(cut, part)) is None:
                    continue
                keys = link.keys[side].take(pa.array(rows)).drop_null()
                is_linked = pc.is_in(link.keys[1 - side], value_set=keys)
                linked_rows = np.flatnonzero(is_linked.to_numpy(zero_copy_only=False))
                parts[part] = linked_rows if pool is None else np.intersect1d(linked_rows, pool)
            names = {n: getattr(cut, n) for n in ("train_name", "val_name", "stop_name")}
            if new in binding_of:
                names = {
                    n: getattr(binding_of[new], n.replace("_name", "_split_name")) for n in names
                }
            train, val, stop = parts["train"], parts["val"], parts.get("stop")
            sides_of[new] = new_sides[new] = Sides(train, val, parts["pool"], stop=stop, **names)
    return new_sides


def _are_linked(a: CVBinding, b: CVBinding) -> bool:
    if a.groups is not None and key_list(a.groups) == key_list(b.groups):
        return True
    return len(a.pool().take_intersection(b.pool())) > 0


def _rule(
    bindings: Sequence[CVBinding],
    n_folds: int,
    seed: int,
    splitter: FoldSplitter | None,
    repeat: int,
) -> FoldSplitter:
    """Return the splitter of some bindings; they must agree, or follow the first."""
    names = ("group_by", "stratify_by", "bins", "val_size", "stop_size")
    lead, *others = ({name: getattr(b, name) for name in names} for b in bindings)
    for other, binding in zip(others, bindings[1:], strict=True):
        if other not in (lead, dict.fromkeys(names)):
            raise ConfigError(
                f"{binding!r} shares samples or groups with {bindings[0]!r}, so both are split "
                f"together; pass it the same {', '.join(names)}, or none of them"
            )
    if splitter is None:
        keys = {name: lead[name] for name in names[:3]} | {"group_by": bindings[0].groups}
        if (share := lead["val_size"]) is None:
            return KFoldSplitter(n_folds, **keys, seed=seed)
        return _Parts(n_folds, share, keys, seed)
    grouped: Any = with_series(splitter, bindings[0].featureset.kept_together)
    if repeat > 0:
        grouped = type(grouped).from_config({**grouped.get_config(), "seed": grouped.seed + repeat})
    of_fold: FoldSplitter = grouped
    return of_fold


class _Parts(FoldSplitter):
    """Folds that validate on disjoint random parts of equal size."""

    def __init__(self, n_folds: int, share: float, keys: Mapping[str, Any], seed: int) -> None:
        if n_folds * share > 1 + 1e-9:
            raise ConfigError(
                f"{n_folds} folds cannot each validate on {share:g} of the rows, each row at most "
                f"once; val_size may be at most {1 / n_folds:g}"
            )
        ratios = {f"fold_{i}_val": share for i in range(n_folds)}
        rest = 1 - n_folds * share
        if rest > 1e-9:
            ratios["rest"] = rest
        self.n_folds, self.parts = n_folds, RandomSplitter(ratios, **keys, seed=seed)
        self.group_by, self.stratify_by, self.bins = keys.values()

    @property
    def needs(self) -> list[str]:
        return self.parts.needs

    def folds(self, n: int, *, columns: Mapping[str, Array]) -> list[tuple[IntArray, IntArray]]:
        parts = self.parts.assign(n, columns=columns)
        held_out = [parts[f"fold_{i}_val"] for i in range(self.n_folds)]
        return [(np.setdiff1d(np.arange(n), val), val) for val in held_out]


def _cut(bindings: Sequence[CVBinding], rule: FoldSplitter, seed: int) -> list[dict[str, Sides]]:
    """Split pools together by samples, each of which counts once."""
    pools = [binding.pool() for binding in bindings]
    samples = [np.arange(len(pools[0]))]
    if len(pools) > 1:  # numbers in order of first appearance
        ids = np.concatenate([pool.collection.ids[pool.indices] for pool in pools])
        codes = id_array(ids).dictionary_encode().indices.to_numpy().astype(np.int64)
        samples = np.split(codes, np.cumsum([len(pool) for pool in pools])[:-1])
    first = np.unique(np.concatenate(samples), return_index=True)[1]
    columns = {name: _column(pools, name, first) for name in rule.needs}
    for binding, pool, sample_numbers in zip(bindings, pools, samples, strict=True):
        for name in key_list(binding.group_by):
            values, expected = _values(pool, name), columns[name][sample_numbers]
            if ((values != expected) & ((values == values) | (expected == expected))).any():  # noqa: PLR0124
                raise SplitError(
                    f"a sample has another {name!r} in {binding.featureset.label!r} than in "
                    f"{bindings[0].featureset.label!r}; correct one of them"
                )
    folds: list[dict[str, Sides]] = []
    for train, val in rule.folds(len(first), columns=columns):
        if not len(train) or not len(val) or np.bincount(np.append(train, val)).max() > 1:
            raise SplitError(
                f"{rule!r} returned a fold with an empty side, or with rows on both sides"
            )
        stop = np.empty(0, dtype=np.int64)
        if (share := bindings[0].stop_size) is not None:
            stop = rule.hold_back(train, share, columns=columns, seed=seed + len(folds))
        without_stop = np.setdiff1d(train, stop)
        folds.append(
            {
                binding.featureset.label: Sides(
                    pool.indices[np.isin(sample_numbers, without_stop)],
                    pool.indices[np.isin(sample_numbers, val)],
                    pool.indices,
                    binding.train_split_name,
                    binding.val_split_name,
                    None if share is None else pool.indices[np.isin(sample_numbers, stop)],
                    binding.stop_split_name,
                )
                for binding, pool, sample_numbers in zip(bindings, pools, samples, strict=True)
            }
        )
    return folds


def _column(pools: Sequence[FeatureSetView], name: str, first: IntArray) -> Array:
    """Return a column of samples, given their first positions in all pools."""
    parts, start = [], 0
    for pool in pools:
        positions = first[(first >= start) & (first < start + len(pool))] - start
        if len(positions):
            parts.append(_values(pool, name)[positions])
        start += len(pool)
    return np.concatenate(parts)


def _values(pool: FeatureSetView, name: str) -> Array:
    values: Array = pool.column(select_one(pool.collection.schema, name))
    return values


def make_bootstraps(binding: CVBinding, *, n: int, seed: int) -> list[Variant]:
    """Draw the training rows of `n` members from the pool of a binding.

    A row that is drawn several times is in the training split as often, so that samplers, scalers
    and estimators see it as often. Whole groups are drawn if the binding has `group_by`, and as
    many rows as there are of each stratum if it has `stratify_by`. Rows that are not drawn are the
    validation split of the member.

    Raises
    ------
    ConfigError
        If the binding asks for what a bootstrap does not do.
    """
    for name in ("val_size", "stop_size", "bins"):
        if (value := getattr(binding, name)) is not None:
            raise ConfigError(
                f"vary='bootstrap' draws rows with replacement and has no {name}, got {value!r}; "
                "omit it, and split off rows for early stopping before"
            )
    if binding.group_by is not None and binding.stratify_by is not None:
        raise ConfigError(
            "vary='bootstrap' draws whole groups or rows of each stratum, not both; pass group_by "
            "or stratify_by to the CVBinding"
        )
    pool = binding.pool()
    schema = pool.collection.schema
    columns = {
        key: pool.column(select_one(schema, key))
        for key in key_list(binding.group_by, binding.stratify_by)
    }
    groups, strata = (
        factorise(keys, columns).codes if (keys := key_list(names)) else None
        for names in (binding.group_by, binding.stratify_by)
    )
    variants = []
    for i in range(n):
        generator = np.random.default_rng(derived_seed(seed, "bootstrap", i))
        if groups is not None:
            n_groups = int(groups.max()) + 1
            times = np.bincount(generator.integers(n_groups, size=n_groups), minlength=n_groups)
            positions = np.repeat(np.arange(len(pool)), times[groups])
        else:
            codes = np.zeros(len(pool), dtype=np.int64) if strata is None else strata
            parts = [np.flatnonzero(codes == code) for code in range(int(codes.max()) + 1)]
            drawn = [part[generator.integers(len(part), size=len(part))] for part in parts]
            positions = np.sort(np.concatenate(drawn))
        rest = np.setdiff1d(np.arange(len(pool)), positions)
        names = binding.train_split_name, binding.val_split_name
        sides = Sides(pool.indices[positions], pool.indices[rest], pool.indices, *names)
        seed_of_member = derived_seed(seed, "member", i) % 2**32
        label = str(binding.featureset.label)
        variants.append(Variant(f"member_{i}", seed_of_member, sides={label: sides}))
    return variants
