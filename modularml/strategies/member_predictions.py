"""Predictions of several models of one kind for the same rows, and their intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from modularml._typing import Array
from modularml.data.featureset import FeatureSet
from modularml.data.view import FeatureSetView
from modularml.errors import ConfigError, DataError
from modularml.experiment import Experiment
from modularml.experiment.conformal import known_targets
from modularml.graph.predict import Prediction, predictions
from modularml.results.prediction_intervals import Bounds, in_columns, per_group, residuals_of
from modularml.results.scores import Meaning, as_probabilities
from modularml.strategies.variants.variant import Variant


@dataclass(frozen=True, eq=False)
class NodePredictions:
    """Predictions of one node by all members, in the units of its targets.

    Parameters
    ----------
    rows : Prediction
        Names of the outputs and columns of the rows; needs the context of the first member.
    members : dict of str to ndarray, shape (n, n_outputs, ...)
        By label of the member.
    kind : {'values', 'probabilities', 'labels'}
        What the predictions are.
    classes : ndarray, shape (n_classes,), optional
        Labels of the classes, in the order of probabilities.
    """

    rows: Prediction
    members: dict[str, Array]
    kind: str
    classes: Array | None = None

    @cached_property
    def stacked(self) -> Array:
        """Predictions of all members, shape (n_members, n, n_outputs, ...)."""
        return np.stack(list(self.members.values()))

    @property
    def flat(self) -> Array:
        """Predictions of all members as float64, shape (n_members, n, k)."""
        stacked = self.stacked.astype(np.float64)
        return stacked.reshape(*stacked.shape[:2], math.prod(stacked.shape[2:]))

    @property
    def mean(self) -> Array:
        """Mean over members, shape (n, n_outputs, ...); the most frequent of labels."""
        if self.kind == "labels":
            return self.decoded()[0]
        return np.asarray(self.stacked.mean(axis=0, dtype=np.float64))

    @property
    def std(self) -> Array:
        """Standard deviation over members (denominator n - 1); NaN for a single member."""
        if len(self.members) < 2:
            return np.full(self.stacked.shape[1:], np.nan)
        return np.asarray(self.stacked.std(axis=0, ddof=1, dtype=np.float64))

    def bounds(
        self,
        bounds_of: Callable[[Any, Any], Bounds],
        group_by: str | None,
        known_groups: Mapping[str, Array],
    ) -> Bounds:
        """Return bounds in the shape of the mean: of all rows, or by values of a column.

        `bounds_of` takes which rows, and which known rows, are meant.
        """
        shape = self.stacked.shape[1:]
        if group_by is None:
            low, high = bounds_of(slice(None), slice(None))
        else:
            groups = self.rows.by_row(group_by), known_groups[group_by]
            low, high = per_group(*groups, bounds_of, self.flat.shape[1:])
        return low.reshape(shape), high.reshape(shape)

    def member_labels(self) -> Array:
        """Return the most likely class of each member, shape (n_members, n, 1)."""
        stacked = self.stacked
        if self.kind == "labels":
            return stacked
        if self.classes is None:
            raise ConfigError(f"node {self.rows.label!r} predicts no classes; pass decode=False")
        return np.asarray(self.classes[_most_likely(stacked)][..., None])

    def decoded(self) -> tuple[Array, Array]:
        """Return the predicted class and the share of members that vote for it, each (n, 1).

        Of probabilities, the class with the highest mean; of labels, the most frequent one, and the
        first in order of equally frequent ones.
        """
        votes = self.member_labels()
        if self.kind == "labels":
            labels = np.unique(votes)
            counts = np.stack([(votes == label).sum(axis=0) for label in labels])
            chosen = labels[counts.argmax(axis=0)]
        elif self.classes is not None:
            chosen = self.classes[_most_likely(self.mean)][:, None]
        return chosen, (votes == chosen).mean(axis=0)

    def vote_shares(self) -> Array:
        """Return the share of members that vote for each column of probabilities."""
        stacked = self.stacked
        likely = _most_likely(stacked)
        if stacked.shape[2] == 1:
            return np.asarray((likely == 1).mean(axis=0)[:, None])
        return np.asarray((likely[..., None] == np.arange(stacked.shape[2])).mean(axis=0))


def _most_likely(probabilities: Array) -> Array:
    """Return the index of the most likely class; of one column, 1 if it is above a half."""
    if probabilities.shape[-1] == 1:
        return (probabilities[..., 0] > 0.5).astype(np.int64)
    return np.asarray(probabilities.argmax(axis=-1))


def predict_members(
    members: Mapping[str, Experiment],
    data: Any,
    originals: Sequence[FeatureSet],
    *,
    node: Any = None,
    batch_size: int | None = None,
    outputs: Meaning = "auto",
    audit: bool = True,
    allow_missing: bool = False,
) -> list[NodePredictions]:
    """Predict rows with every member; return a node's predictions, or those of each tail.

    Parameters
    ----------
    members : mapping of str to Experiment
        By label, at least one.
    data
        See `ModelGraph.predict`.
    originals : sequence of FeatureSet
        FeatureSets that those of the members are copies of.
    node, batch_size
        See `ModelGraph.predict`.
    outputs : {'auto', 'values', 'logits', 'probabilities'}
        What the outputs are; logits are converted to probabilities before they are averaged.
    audit : bool
        Whether to warn of a split that the first member has learned from.
    allow_missing : bool
        Whether rows with missing features are NaN, with one warning that counts them.
    """
    first: list[Prediction] = []
    values: list[dict[str, Array]] = []
    for experiment in members.values():
        graph = experiment.model_graph
        if graph is None:
            raise ConfigError(f"experiment {experiment.label!r} has no graph to predict with")
        rows = _of_member(data, experiment, originals)
        with experiment.ctx.activate():
            if audit and not first:
                graph._warn_of_learned_rows(rows)
            how = {"allow_missing": allow_missing, "warn_missing": not first}
            predicted = predictions(graph, rows, node=node, batch_size=batch_size, **how)
            values.append({p.label: p.values(decode=p.gives_labels) for p in predicted})
        first = first or predicted
    with next(iter(members.values())).ctx.activate():
        return [
            _of_node(p, {k: v[p.label] for k, v in zip(members, values, strict=True)}, outputs)
            for p in first
        ]


def _of_node(rows: Prediction, values: dict[str, Array], outputs: Meaning) -> NodePredictions:
    """Convert outputs of all members to values, probabilities or labels."""
    classes = rows.class_labels
    shapes = {label: v.shape[1:] for label, v in values.items()}
    if len(set(shapes.values())) > 1:
        raise DataError(
            f"members have outputs of different shapes with node {rows.label!r}: {shapes}. If some "
            "have not seen every class, pass a CVBinding with stratify_by"
        )
    if outputs == "values":
        classes = None
    elif rows.gives_labels or any(v.dtype.kind not in "biuf" for v in values.values()):
        return NodePredictions(rows, values, "labels")
    elif classes is None and outputs == "auto" and rows.is_scores:
        raise ConfigError(
            f"outputs of node {rows.label!r} are scores of several target columns; pass "
            "outputs='values' to average them as they are, or 'probabilities' or 'logits'"
        )
    if classes is None and outputs in ("auto", "values"):
        return NodePredictions(rows, values, "values")
    stacked = np.stack(list(values.values()))
    shares = as_probabilities(stacked.reshape(-1, *stacked.shape[2:]), outputs, rows.label)
    return NodePredictions(
        rows,
        dict(zip(values, shares.reshape(stacked.shape), strict=True)),
        "probabilities",
        classes if classes is None or len(classes) == max(2, stacked.shape[2]) else None,
    )


def _of_member(data: Any, experiment: Experiment, originals: Sequence[FeatureSet]) -> Any:
    """Return rows of the original FeatureSets as rows of the member's copies."""
    if isinstance(data, Mapping):
        return {key: _of_member(value, experiment, originals) for key, value in data.items()}
    if not isinstance(data, FeatureSet | FeatureSetView):
        return data
    view = data.to_view()
    copies = {fs.label: fs for fs in experiment.ctx.available_featuresets.values()}
    fs = copies.get(view.source.label)
    if fs is None or view.source not in originals or fs.n_samples != view.source.n_samples:
        return data
    names = [name for name in view.columns if name in fs.collection.names]
    return FeatureSetView(fs, view.indices, names, view.label)


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Residuals of rows that some members have not learned from.

    Parameters
    ----------
    residuals : ndarray, shape (n, k)
        Targets minus the mean over members that have not learned from the row.
    held_out : ndarray of bool, shape (n, n_members)
        Which members these are.
    groups : dict of str to ndarray, shape (n,)
        Values of columns, by name.
    """

    residuals: Array
    held_out: Array
    groups: dict[str, Array]


@dataclass(frozen=True, eq=False)
class Members:
    """Trained experiments that predict together.

    Parameters
    ----------
    of : dict of str to Experiment
        By label, at least one.
    originals : sequence of FeatureSet
        FeatureSets that those of the members are copies of.
    variants : mapping of str to Variant, optional
        By label, if each member has rows that it has not learned from.
    known : mapping of str to HeldOut, optional
        Residuals of these rows by node label, if the rows are not here.
    audit : {'off', 'warn', 'error'}
        What happens if members are scored on rows that they have learned from.
    """

    of: Mapping[str, Experiment]
    originals: Sequence[FeatureSet] = ()
    variants: Mapping[str, Variant] | None = None
    known: Mapping[str, HeldOut] | None = None
    audit: str = "warn"
    _residuals: dict[Any, dict[str, HeldOut]] = field(default_factory=dict)

    @property
    def first(self) -> Experiment:
        """The first member."""
        return next(iter(self.of.values()))

    @property
    def graph(self) -> Any:
        """The graph of the first member."""
        return self.first.model_graph

    def predict(self, data: Any, **options: Any) -> list[NodePredictions]:
        """Predict rows with every member; see `predict_members`."""
        return predict_members(self.of, data, self.originals, **options)

    def rows_of(self, member: Experiment, data: Any) -> Any:
        """Return rows of the original FeatureSets as rows of a member's copies."""
        return _of_member(data, member, self.originals)

    def held_out(self, node: Any = None, group_by: str | None = None) -> dict[str, HeldOut]:
        """Return residuals of rows that some members have not learned from, by node label.

        Parameters
        ----------
        node
            See `predict_members`.
        group_by : str, optional
            Column whose values are returned too.
        """
        if self.known is not None:
            for label, stored in self.known.items():
                if group_by is not None and group_by not in stored.groups:
                    raise ConfigError(
                        f"the file holds residuals of node {label!r} without {group_by!r}; save it "
                        f"with group_by={group_by!r}, or omit group_by"
                    )
            return dict(self.known)
        key = getattr(node, "label", node), group_by
        if key in self._residuals:
            return self._residuals[key]
        assert self.variants is not None
        folds = [self.variants[label].sides for label in self.of]
        sets = {fs.label: fs for fs in self.first.ctx.available_featuresets.values()}
        pools = {label: sets[label].take(side.pool) for label, side in folds[0].items()}
        data = next(iter(pools.values())) if len(pools) == 1 else pools
        results = {}
        for predicted in predict_members(self.of, data, list(sets.values()), node=node):
            label = predicted.rows.label
            if predicted.kind != "values":
                raise DataError(f"interval needs numeric targets, and {label!r} predicts classes")
            where, rows = predicted.rows.source_rows
            if where not in pools:
                raise ConfigError(
                    f"rows of {where!r} have no CVBinding, so none are held out; pass one in "
                    "bindings="
                )
            held_out = np.column_stack([np.isin(rows, sides[where].val) for sides in folds])
            known = held_out.any(axis=1)
            with self.first.ctx.activate():
                targets = known_targets(predicted.rows)[known]
                groups = {}
                if group_by is not None:
                    groups = {group_by: predicted.rows.by_row(group_by)[known]}
            weights = (held_out / np.maximum(held_out.sum(axis=1, keepdims=True), 1))[known]
            outputs = np.einsum("bnk,nb->nk", predicted.flat[:, known], weights)
            shaped = outputs.reshape(len(outputs), *predicted.stacked.shape[2:])
            residuals = in_columns(residuals_of(targets, shaped, label))
            results[label] = HeldOut(residuals, held_out[known], groups)
        self._residuals[key] = results
        return results
