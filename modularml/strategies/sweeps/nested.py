"""Sweeps within folds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from modularml.errors import ConfigError, UnknownNameError
from modularml.experiment import Experiment
from modularml.strategies.folds.cross_validation import CrossValidation
from modularml.strategies.folds.cv_binding import (
    CVBinding,
    SelectionWarning,
    selections,
    warn_of_leaks,
    warn_or_refuse,
)
from modularml.strategies.variants.variant import Plan, Variant, template_of

__all__ = ["SweepFolds", "inner_experiment"]


_OPTIONS = ("n_folds", "seed", "splitter", "n_repeats")
_OF_BINDING = (
    "source_splits",
    "group_by",
    "stratify_by",
    "train_split_name",
    "val_split_name",
    "val_size",
    "stop_size",
    "stop_split_name",
    "bins",
)


class SweepFolds:
    """The folds of each trial, by labels of FeatureSets, for any copy of an experiment.

    Parameters
    ----------
    cv : CVBinding, list of CVBinding, dict or CrossValidation
        Bindings get five folds; a dict holds arguments of `CrossValidation`.

    Raises
    ------
    ConfigError
        If it is none of these, or has arguments that a sweep determines itself.
    """

    def __init__(self, cv: Any) -> None:
        if isinstance(cv, CrossValidation):
            if cv.search is not None or cv.phase is not None:
                raise ConfigError("cv of a sweep runs the whole plan without a search; omit both")
            cv = {name: getattr(cv, name) for name in ("bindings", *_OPTIONS)}
        if isinstance(cv, CVBinding | list | tuple):
            cv = {"bindings": cv}
        if not isinstance(cv, Mapping) or "bindings" not in cv:
            raise ConfigError(
                "cv must be a CVBinding, a list of them, a dict of arguments of CrossValidation "
                f"with 'bindings', or a CrossValidation, got {cv!r:.80}"
            )
        for name in cv:
            if name not in ("bindings", *_OPTIONS):
                raise UnknownNameError("argument of cv", name, ["bindings", *_OPTIONS])
        given = cv["bindings"]
        bindings = list(given) if isinstance(given, list | tuple) else [given]
        if not bindings or not all(isinstance(binding, CVBinding) for binding in bindings):
            raise ConfigError(f"bindings of cv must be CVBinding objects, got {given!r:.80}")
        self.bindings = {
            b.featureset.label: {name: getattr(b, name) for name in _OF_BINDING} for b in bindings
        }
        self.options = {name: cv[name] for name in _OPTIONS if name in cv}

    def val_names(self) -> list[str]:
        """Return the names of the splits that folds are scored on."""
        return sorted({str(binding["val_split_name"]) for binding in self.bindings.values()})

    def split_names(self, label: str) -> set[str]:
        """Return the names of the splits of a FeatureSet that folds replace."""
        binding = self.bindings.get(label)
        if binding is None:
            return set()
        names = ["train_split_name", "val_split_name"]
        names += ["stop_split_name"] * (binding["stop_size"] is not None)
        return {str(binding[name]) for name in names}

    def folds(self, experiment: Experiment) -> list[Variant]:
        """Return the folds of an experiment."""
        bindings: Any = self._bound(experiment)
        return CrossValidation(experiment=experiment, bindings=bindings, **self.options).folds

    def check(self, experiment: Experiment, plan: Plan) -> None:
        """Warn of phases that learn or select by rows that trials are judged by; or refuse."""
        bindings = self._bound(experiment)
        warn_of_leaks(experiment, plan, bindings)
        if selected := selections(experiment, plan, bindings):
            warn_or_refuse(
                experiment,
                f"{'; '.join(selected)}. Trials are judged by these rows, so their values are too "
                "optimistic; pass, for example, stop_size=0.15 to CVBinding, which holds out "
                "training rows of each fold for this",
                SelectionWarning,
            )

    def describe(self) -> dict[str, Any]:
        """Return what defines the folds, as plain text."""
        return {"bindings": self.bindings, **{k: repr(v) for k, v in self.options.items()}}

    def _bound(self, experiment: Experiment) -> list[CVBinding]:
        with experiment.ctx.activate():
            return [CVBinding(label, **options) for label, options in self.bindings.items()]


def inner_experiment(experiment: Experiment, folds: SweepFolds | None) -> Experiment:
    """Return a copy of a fold's experiment, none of whose splits hold rows it is scored on.

    Without inner folds, the rows held out for stopping (`CVBinding(stop_size=)`) take the place of
    the validation split.

    Parameters
    ----------
    experiment : Experiment
        Of a fold; that of none is copied as it is.
    folds : SweepFolds or None
        Of the trials of the search.

    Raises
    ------
    ConfigError
        If a phase or evaluation would read no other rows, or reads whole FeatureSets.
    """
    inner = template_of(experiment, experiment.execution_plan)
    inner._checkpoint_dir = experiment._checkpoint_dir
    replaced: dict[str, set[str]] = {}
    for label, side in experiment._sides.items():
        fs: Any = inner.ctx.get_node(label=label)
        state = fs.get_state()
        rows = {name: fs.get_split(name).valid_indices for name in fs.available_splits}
        splits = {name: some[~np.isin(some, side.val)] for name, some in rows.items()}
        if side.stop is not None and folds is None:
            splits[side.val_name] = side.stop
        state["splits"] |= splits
        fs.set_state(state)
        replaced[label] = set() if folds is None else folds.split_names(label)
    for reader, label, split in _inputs(inner):
        if label in replaced and split not in replaced[label]:
            _check_rows(inner, reader, label, split)
    return inner


def _inputs(experiment: Experiment) -> Iterator[tuple[str, str, str | None]]:
    """Yield the label of each phase and evaluation, with the FeatureSet and split it reads."""
    for phase in experiment.execution_plan.flatten():
        evaluations = [getattr(callback, "eval_phase", None) for callback in phase.callbacks]
        for reader in (phase, *filter(None, evaluations)):
            for source in reader.input_sources:
                yield reader.label, source.upstream_ref.node_label, source.split


def _check_rows(experiment: Experiment, reader: str, label: str, split: str | None) -> None:
    fs: Any = experiment.ctx.get_node(label=label)
    if split is not None and len(fs.get_split(split)):
        return
    rows = "all rows" if split is None else f"{split!r}"
    raise ConfigError(
        f"{reader!r} reads {rows} of {label!r}, which the fold is scored on, so a search must not "
        f"use them. Pass cv=CVBinding({label!r}, [...]) to the Sweep, which judges trials by folds "
        f"of the training rows, or stop_size= to the CVBinding of {label!r}, which holds out rows "
        "for this" + ("" if split is not None else "; name the split that is read")
    )
