"""Searches within a fold: an experiment without the rows that the fold is scored on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from modularml.errors import ConfigError
from modularml.experiment import Experiment
from modularml.strategies.sweeps.folds import SweepFolds
from modularml.strategies.variants.variant import template_of

__all__ = ["inner_experiment"]


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
