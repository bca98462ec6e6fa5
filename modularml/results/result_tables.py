"""Plots of outputs against targets, and tables that draw them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from modularml._arguments import at_least
from modularml._typing import Array
from modularml._warning import warn
from modularml.data.lineage import ColumnLineage, column_named
from modularml.data.schema import RAW, SampleSchema
from modularml.errors import ConfigError, DataError, ShapeError, UnknownNameError
from modularml.graph.lineage import source_columns_of, units_of
from modularml.graph.unscaling import gives_labels, is_encoded, learned_classes
from modularml.results.scores import Meaning, as_probabilities, default_score
from modularml.results.scoring import (
    Reduce,
    Replicates,
    aggregated,
    check_reduce,
    lacks_target,
    real_steps,
)
from modularml.viz.class_scores import calibration, precision_recall, roc
from modularml.viz.curves import bars
from modularml.viz.predictions import confusion_matrix, parity, residuals
from modularml.viz.style import plain

OF_NUMBERS: dict[str, Callable[..., Any]] = {"parity": parity, "residuals": residuals}
OF_CLASSES: dict[str, Callable[..., Any]] = {
    "confusion": confusion_matrix,
    "roc": roc,
    "precision_recall": precision_recall,
    "calibration": calibration,
}
ARGUMENTS = {"group_by": "groups", "over": "over", "weight_by": "weights", "outputs": "labels"}
"""Arguments of `plot_rows`, and those of the plots that they become."""


@dataclass(frozen=True, eq=False)
class ComparedRows:
    """Targets and outputs of one node for some rows, in original units.

    Parameters
    ----------
    label : str
        Of the node.
    true, out : ndarray, shape (n, ...)
    mask : ndarray of bool, shape of `true`, optional
        True for the steps of padded targets that are data.
    column : callable
        Returns the values of a column for each row, from its name and that of the argument.
    targets : dict of str to str
        Units of the target columns by key; "" if unknown.
    schemas : list of SampleSchema
        Of the FeatureSets that the targets come from.
    classes : list, optional
        Classes in the order of the scores; None if the targets are numbers.
    are_classes, are_labels : bool
        Whether the targets are classes, and whether the outputs are labels.
    blocks : tuple of str
        What each block of outputs predicts, such as mean and variance.
    meaning : {'auto', 'values', 'logits', 'probabilities'}
        What the outputs are.
    """

    label: str
    true: Array
    out: Array
    mask: Array | None
    column: Callable[[str, str], Array]
    targets: dict[str, str]
    schemas: list[SampleSchema]
    classes: list[Any] | None
    are_classes: bool
    are_labels: bool
    blocks: tuple[str, ...] = ()
    meaning: Meaning = "auto"

    @classmethod
    def of(
        cls,
        node: Any,
        flow: ColumnLineage,
        true: Array,
        out: Array,
        blocks: tuple[str, ...] = (),
        **parts: Any,
    ) -> ComparedRows:
        """Return the rows of a node whose targets have a lineage, in its active context."""
        leaves = source_columns_of(flow)
        schemas = [leaf.source.ref.resolve().collection.schema for leaf in leaves]
        raw = {
            schema[f"{name.rpartition('.')[0]}.{RAW}"].dtype.kind
            for leaf, schema in zip(leaves, schemas, strict=True)
            for name in leaf.columns
        }
        if true.dtype.kind == "O" and raw <= set("biuf"):  # as some values are missing
            true = true.astype(np.float64)
        scores = true[:1].size == 1 and out[:1].size > 1 and not blocks
        are_classes = true.dtype.kind in "OU" or scores or classifies(node, flow)
        labels = learned_classes(node, flow) if are_classes else None
        return cls(
            label=str(getattr(node, "label", node)),
            true=true,
            out=out,
            targets=units_of(flow),
            schemas=schemas,
            classes=None if labels is None else labels.tolist(),
            are_classes=are_classes,
            are_labels=are_classes and (gives_labels(node) or out.dtype.kind not in "biuf"),
            blocks=blocks,
            **parts,
        )

    def points(self) -> tuple[str, Array]:
        """Return outputs, of distributions their mean or middle quantile, and the name of it."""
        if not self.blocks:
            return "", self.out
        place = self.blocks.index("mean") if "mean" in self.blocks else len(self.blocks) // 2
        values = self.out.reshape(len(self.out), len(self.blocks), -1)[:, place]
        fits = values.size == self.true.size
        return self.blocks[place], values.reshape(self.true.shape) if fits else values

    def named(self, name: str) -> str:
        """Return a column's name with its unit."""
        for schema in self.schemas:
            if (full := column_named(name, schema)) is not None:
                raw = f"{full.rpartition('.')[0]}.{RAW}"
                unit = schema[raw if raw in schema.columns else full].unit
                return f"{schema[full].key} ({unit})" if unit else schema[full].key
        return name

    @classmethod
    def joined(cls, parts: Mapping[str, ComparedRows]) -> ComparedRows:
        """Return the rows of all folds, with their labels in a column ``fold``."""
        first, *others = rows = list(parts.values())
        if strange := [part.classes for part in others if part.classes != first.classes]:
            raise ConfigError(
                f"folds have learned different classes, {first.classes} and {strange[0]}, so their "
                "scores cannot be drawn together; pass a CVBinding with stratify_by"
            )
        if any(part.true.shape[1:] != first.true.shape[1:] for part in others):
            raise ShapeError("folds have targets of different shapes; draw one fold at a time")

        def column(name: str, argument: str) -> Array:
            if name == "fold":
                return np.repeat(list(parts), [len(part.true) for part in rows])
            return np.concatenate([part.column(name, argument) for part in rows])

        masks = [part.mask for part in rows if part.mask is not None]
        return replace(
            first,
            true=np.concatenate([part.true for part in rows]),
            out=np.concatenate([part.out for part in rows]),
            mask=np.concatenate(masks) if masks else None,
            column=column,
        )


def classifies(node: Any, flow: ColumnLineage) -> bool:
    """Return whether a node's outputs are class scores or labels."""
    paired = getattr(node, "paired", None)
    encoded = any(map(is_encoded, source_columns_of(flow)))
    is_classifier = default_score(getattr(node, "model", None)) == "accuracy"
    return is_classifier or encoded or (paired is not None and bool(paired[1]))


def plot_rows(
    rows: ComparedRows,
    kind: str | None = None,
    *,
    target: str | None = None,
    group_by: str | None = None,
    over: str | None = None,
    weight_by: str | None = None,
    outputs: Meaning | None = None,
    per: str | None = None,
    reduce: Reduce = "mean",
    **options: Any,
) -> Any:
    """Draw outputs against targets; see `EvalResults.plot`."""
    check_reduce(reduce, per)
    kinds, others = (OF_CLASSES, OF_NUMBERS) if rows.are_classes else (OF_NUMBERS, OF_CLASSES)
    kind = next(iter(kinds)) if kind is None else kind
    if kind in others:
        what, not_what = ("classes", "numbers")[:: 1 if rows.are_classes else -1]
        raise ConfigError(
            f"kind={kind!r} is for {not_what}, and the targets of node {rows.label!r} are "
            f"{what}; kinds for these are {', '.join(kinds)}"
        )
    if kind not in kinds:
        raise UnknownNameError("plot kind", kind, kinds)
    asked = {"group_by": group_by, "over": over, "weight_by": weight_by, "outputs": outputs}
    _check_options(kind, {**{k: v for k, v in asked.items() if v is not None}, **options})
    if per is not None and weight_by is not None:
        raise ConfigError("weights of replicates are ambiguous; omit weight_by or per")
    columns = {
        ARGUMENTS[name]: rows.column(value, name)
        for name, value in asked.items()
        if name != "outputs" and value is not None
    }
    if not len(rows.true):
        raise DataError(f"there are no rows of node {rows.label!r} to draw")
    samples = None if per is None else Replicates(per, rows.column(per, "per"), reduce)
    if rows.are_classes:
        if target is not None:
            raise ConfigError(f"target={target!r} is for several targets that are numbers; omit it")
        data = _class_data(rows, kind, outputs, _steps(rows, rows.out, columns, samples))
    else:
        name, out = rows.points()
        data = _number_data(rows, target, _steps(rows, out, columns, samples))
        if name and kind == "parity":
            data["name"] = name
        if kind == "residuals" and (column := group_by or over) is not None:
            data["x"] = plain(rows.named(column))
    return (OF_NUMBERS | OF_CLASSES)[kind](**{**data, **options})


def _check_options(kind: str, asked: Mapping[str, Any]) -> None:
    """Refuse options that a kind does not take."""
    both, names = OF_NUMBERS | OF_CLASSES, {v: k for k, v in ARGUMENTS.items() if k != "outputs"}
    taken = {k: [*inspect.signature(f).parameters][2:] for k, f in both.items()}
    for name in asked:
        taking = [k for k, allowed in taken.items() if ARGUMENTS.get(name, name) in allowed]
        if not taking or name in ("groups", "weights"):
            raise UnknownNameError(
                f"option of kind={kind!r}", name, [names.get(a, a) for a in taken[kind]]
            )
        if kind not in taking:
            raise ConfigError(f"{name} is for kind={' or '.join(map(repr, taking))}, not {kind!r}")


Steps: TypeAlias = tuple[Array, Array, dict[str, Any]]


def _steps(
    rows: ComparedRows, out: Array, columns: Mapping[str, Array], samples: Replicates | None
) -> Steps:
    """Return targets, outputs and columns: one row per step that is no padding, or per sample."""
    true, mask, spread = rows.true, rows.mask, dict(columns)
    if mask is not None:
        true, out = real_steps(true, out, mask)
        holds = mask[:, 0] if true.ndim > 1 else mask
        index = np.repeat(np.arange(len(mask)), holds.reshape(len(mask), -1).sum(axis=1))
        spread = {
            k: v.reshape(holds.shape)[holds] if v.size == holds.size else v[index]
            for k, v in columns.items()
        }
    if samples is None:
        return true, out, spread
    if mask is not None:
        raise ConfigError(f"replicates (per={samples.name!r}) of padded targets cannot be averaged")
    groups = next(iter(spread.values()), None)
    true, out, _, groups = aggregated(samples, true, out, ~lacks_target(true, None), groups)
    return true, out, dict.fromkeys(spread, groups)


def _number_data(rows: ComparedRows, target: str | None, steps: Steps) -> dict[str, Any]:
    """Return the arguments of a plot of one target."""
    true, out, spread = steps
    keys = list(rows.targets)
    n, at = true.shape[1] if true.ndim > 1 else 1, 0
    if target is not None and target not in keys:
        raise UnknownNameError("target", target, keys)
    if len(keys) != n:
        if target is not None or len(keys) > 1:
            raise ConfigError(
                f"targets {keys} of node {rows.label!r} are not columns of its outputs; "
                "select one with ModelNode(targets=)"
            )
        key, n = keys[0] if keys else "", 1
    else:
        if target is None and n > 1:
            raise ConfigError(f"node {rows.label!r} predicts {keys}; pass target= one of them")
        key = keys[0] if target is None else target
        at = keys.index(key)
    if out.size != true.size:
        raise ShapeError(
            f"outputs of node {rows.label!r} have shape {out.shape[1:]}, and its targets "
            f"{true.shape[1:]}; kinds that compare numbers need one output for each target"
        )
    true, out = (v.reshape(len(v), n, -1)[:, at] for v in (true, out))
    data: dict[str, Any] = {"y_true": true.ravel(), "y_pred": out.ravel()}
    for name, values in spread.items():
        data[name] = values.ravel() if values.size == true.size else np.repeat(values, true[0].size)
    if key:
        data["unit"], data["target"] = plain(rows.targets[key]), plain(key)
    return data


def _class_data(
    rows: ComparedRows, kind: str, outputs: Meaning | None, steps: Steps
) -> dict[str, Any]:
    """Return the arguments of a plot of classes."""
    true, out, spread = steps
    if true[0].size != 1:
        raise ConfigError(
            f"targets of node {rows.label!r} have shape {true.shape[1:]}, not one class per row; "
            "select one with ModelNode(targets=)"
        )
    true, classes, flat = true.reshape(-1), rows.classes, out.reshape(len(out), -1)
    if rows.are_labels:
        if kind != "confusion":
            raise ConfigError(
                f"kind={kind!r} needs class scores, and node {rows.label!r} gives labels; use "
                "ScikitModelWrapper(model, output_method='predict_proba')"
            )
        return _known(rows, {"y_true": true, "y_pred": flat[:, 0]})
    names = classes if classes and len(classes) == max(2, flat.shape[1]) else None
    names = list(range(max(2, flat.shape[1]))) if names is None else names
    known = ~lacks_target(true, None)
    if strange := sorted({str(v) for v in true[known].tolist() if v not in names}):
        raise DataError(
            f"outputs of node {rows.label!r} are scores of the classes {names}, and the targets "
            f"hold {strange[:3]}; leave out rows of other classes"
        )
    scores = _probabilities(rows, flat, kind, outputs)
    if kind != "confusion":
        return {"y_true": true, "y_score": scores, "labels": names, **spread}
    wide = np.hstack([1 - scores, scores]) if scores.shape[1] == 1 else scores
    predicted = np.array(names, dtype=object)[np.nan_to_num(wide).argmax(axis=1)]
    predicted[np.isnan(wide).any(axis=1)] = None
    return _known(rows, {"y_true": true, "y_pred": predicted, "labels": names})


def _probabilities(rows: ComparedRows, flat: Array, kind: str, outputs: Meaning | None) -> Array:
    """Return probabilities of each class, NaN in rows of outputs that are not finite.

    A single column is drawn as it is where only the order of scores counts.
    """
    meaning = outputs or rows.meaning
    if meaning not in ("auto", "logits", "probabilities"):
        raise ConfigError(
            f"outputs must be 'auto', 'logits' or 'probabilities' for class scores, got {meaning!r}"
        )
    scores = np.full(flat.shape, np.nan)
    good = np.isfinite(flat).all(axis=1)
    if flat.shape[1] == 1 and meaning == "auto" and kind in ("roc", "precision_recall"):
        scores[good] = flat[good]
    elif good.any():
        scores[good] = as_probabilities(flat[good], meaning, rows.label)
    return scores


def _known(rows: ComparedRows, data: dict[str, Any]) -> dict[str, Any]:
    """Leave out rows without a class or prediction, with a warning that counts them."""
    known = ~(pd.isna(data["y_true"]) | pd.isna(data["y_pred"]))
    if not known.all():
        warn(f"{(~known).sum()} rows of node {rows.label!r} lack a class and are left out")
    return {**data, "y_true": data["y_true"][known], "y_pred": data["y_pred"][known]}


class ScoreTable(pd.DataFrame):
    """Scores of rows, with a plot of these rows.

    Selections and copies are ordinary frames, without it; the plots of pandas are those of
    ``pandas.DataFrame(table)``.
    """

    @classmethod
    def of(cls, table: pd.DataFrame, rows: Mapping[str, ComparedRows], **how: Any) -> ScoreTable:
        """Return a table with the rows of each node, and options of its plots."""
        new = cls(table)
        object.__setattr__(new, "_drawn", (dict(rows), how))
        return new

    @property
    def _rows(self) -> dict[str, ComparedRows]:
        """The rows of each node that was scored; empty if they are not here."""
        return dict(self.__dict__.get("_drawn", ({},))[0])

    @property
    def _unit(self) -> str:
        """Unit of the targets; "" if they have several, or it is unknown."""
        units = {unit for part in self._rows.values() for unit in part.targets.values()}
        return units.pop() if len(units) == 1 else ""

    def plot(  # type: ignore[override]
        self, kind: str | None = None, *, node: Any = None, path: Any = None, **options: Any
    ) -> Any:
        """Draw outputs against targets of the evaluated rows, in original units.

        Parameters
        ----------
        kind : str, optional
            ``parity`` or ``residuals`` of numbers; ``confusion``, ``roc``, ``precision_recall`` or
            ``calibration`` of classes.
        node : GraphNode or str, optional
            Which node, if several were evaluated.
        path : path-like, optional
            Where to save the figure.
        **options
            See `EvalResults.plot`. Replicates are reduced as for the scores.

        Raises
        ------
        ConfigError
            If the table was computed from scaled values (``unscale=False``), or read from a file.
        UnknownNameError
            If there is no such kind, option, column or node.
        """
        rows, how = self.__dict__.get("_drawn", ({}, {}))
        if not rows:
            raise ConfigError(
                "this table has no rows to draw: they are drawn by the table that evaluate() "
                "returned, with unscale=True; call it again"
            )
        name = getattr(node, "label", node)
        if name is None and len(rows) > 1:
            raise ConfigError(f"several nodes were evaluated, pass node= one of {list(rows)}")
        if name is not None and name not in rows:
            raise UnknownNameError("node", name, rows)
        return plot_rows(rows[name or next(iter(rows))], kind, path=path, **(how | options))


class ImportanceTable(pd.DataFrame):
    """Importances of features, with a plot of them; see `ScoreTable`."""

    def plot(  # type: ignore[override]
        self, *, n_largest: int = 30, title: str = "", path: Any = None
    ) -> Any:
        """Draw the importances as bars, largest on top, with the value of each permutation.

        Parameters
        ----------
        n_largest : int
            How many are drawn.
        title : str
        path : path-like, optional
            Where to save the figure.
        """
        at_least(1, n_largest=n_largest)
        shown = self.sort_values("mean", ascending=False, kind="stable").head(n_largest)
        parts = zip(shown["column"], shown["element"], shown["values"], strict=True)
        values = {c if pd.isna(e) else f"{c}[{e}]": drops for c, e, drops in parts}
        label = plain(self.attrs["label"])
        if len(self) > len(shown):
            label += f"\n{len(shown)} largest of {len(self)}"
        return bars(values, x=label, title=title, path=path)
