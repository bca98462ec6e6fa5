"""Ensembles: one experiment trained several times, whose predictions are combined."""

from __future__ import annotations

import html
import json
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from modularml._arguments import Checked, at_least
from modularml._optional import require
from modularml.config import config_registry
from modularml.errors import ConfigError, NotFittedError, UnknownNameError
from modularml.experiment import Experiment, PhaseGroup
from modularml.io.randomness import derived_seed
from modularml.phases.phase import ExperimentPhase
from modularml.strategies.cross_validation import checked_bindings
from modularml.strategies.ensemble_files import EnsembleFiles
from modularml.strategies.folds import CVBinding, make_bootstraps, make_folds
from modularml.strategies.held_out_checks import (
    audit_variant,
    check_scored_rows,
    learning_inputs,
    logged_figures,
)
from modularml.strategies.member_predictions import Members
from modularml.strategies.predictor import Predictor
from modularml.strategies.variants.runs import VariantRuns
from modularml.strategies.variants.variant import Variant, checked_experiment

if TYPE_CHECKING:
    import pandas as pd

HELD_OUT = {"folds": "held_out", "bootstrap": "out_of_bag"}
"""Names of the splits of rows that a member has not learned from, without bindings."""


class Ensemble(Checked, EnsembleFiles, Predictor):
    """Train an experiment several times and combine the predictions.

    Each member is a separate experiment, as a fold of a `CrossValidation` is: with weights drawn
    from its own seed, and its own optimizers, samplers and callbacks. The original experiment is
    not changed.

    Parameters
    ----------
    experiment : Experiment, optional
        By default that of the active context.
    n : int
        Number of members, at least 2.
    vary : {'seed', 'bootstrap', 'folds'}
        What members differ in, besides the seed of weights and of samplers that have none.
        ``seed``: nothing else; they have the splits and scalers of the experiment. ``bootstrap``:
        training rows, drawn with replacement from the training split. A row that is drawn twice is
        in it twice, so samplers, scalers and estimators count it twice. ``folds``: each member is
        trained on all folds but one, of `n` folds.
    phase : phase or PhaseGroup, optional
        What is run; by default the experiment's plan.
    bindings : CVBinding or list of CVBinding, optional
        For ``folds`` and ``bootstrap``: the rows that are drawn from or split into folds, and their
        groups and strata (whole groups are drawn). By default the split that the plan trains on,
        whose held-out rows are the split ``held_out`` or ``out_of_bag`` of a member. With a
        binding, they are its validation split. For ``bootstrap``, it must be one.
    seed : int
        At least 0. It determines folds, draws and the seeds of members.
    n_jobs, timeout
        See `CrossValidation`.
    label : str
    stacked : bool or 'auto'
        Whether members are trained as one; see `CrossValidation`.

    Raises
    ------
    TypeError
        If there is no experiment, or `phase` is not a phase or group.
    ConfigError
        If another argument is not as described.

    Examples
    --------
    ``Ensemble(experiment, n=10).run().predict(fs["test"])``

    Examples
    --------
    >>> import numpy as np
    >>> import modularml as mml
    >>> from modularml.models.torch import SequentialMLP
    >>> experiment = mml.Experiment("demo", seed=0)
    >>> a, b, noise = np.random.default_rng(0).normal(size=(3, 60)).astype("float32")
    >>> rows = {"a": a, "b": b, "y": a + b + noise}
    >>> fs = mml.FeatureSet.from_dict("rows", rows, ["a", "b"], "y")
    >>> fs.split_random({"train": 0.8, "test": 0.2})
    >>> net = mml.ModelNode("net", SequentialMLP(), fs)
    >>> graph = mml.ModelGraph([net], mml.Optimizer("adam"))
    >>> mse = mml.AppliedLoss(mml.Loss("mse"), on="net", inputs=["outputs", "targets"])
    >>> phase = mml.TrainPhase.from_split(
    ...     "train", split="train", sampler=mml.SimpleSampler(batch_size=16), losses=[mse]
    ... )
    >>> ensemble = mml.Ensemble(experiment, n=3, phase=phase)
    >>> ensemble = ensemble.run(show_progress=False, show_training_progress=False)
    >>> len(ensemble.members)
    3
    """

    def __init__(
        self,
        experiment: Experiment | None = None,
        n: int = 20,
        vary: Literal["seed", "bootstrap", "folds"] = "seed",
        *,
        phase: ExperimentPhase | PhaseGroup | None = None,
        bindings: CVBinding | list[CVBinding] | None = None,
        seed: int = 13,
        n_jobs: int | Literal["auto"] | None = None,
        timeout: float | None = None,
        label: str = "ensemble",
        stacked: Literal["auto"] | bool = "auto",
    ) -> None:
        at_least(2, n=n)
        at_least(0, seed=seed)
        chosen = checked_experiment(experiment, phase)
        if vary == "seed" and bindings is not None:
            raise ConfigError(
                "bindings are for vary='folds' and 'bootstrap'; members of vary='seed' train on "
                "the splits of the experiment. Omit bindings"
            )
        self.bindings = None if bindings is None else checked_bindings(bindings, chosen)
        if vary == "bootstrap" and self.bindings is not None and len(self.bindings) != 1:
            raise ConfigError(
                f"vary='bootstrap' draws rows of one FeatureSet, got {len(self.bindings)} "
                "bindings; pass that of the samples, to which rows of others are joined"
            )
        self.experiment, self.n, self.vary, self.phase = chosen, n, vary, phase
        self.seed, self.n_jobs, self.timeout, self.label = seed, n_jobs, timeout, label
        self.stacked = stacked
        self.failed_members: dict[str, Exception] = {}
        self._runs = VariantRuns(self, "member")
        self._members: Members | None = None

    # -- members ------------------------------------------------------------------------------

    @cached_property
    def variants(self) -> list[Variant]:
        """Labels, seeds and rows of the members; SplitError if rows cannot be split so."""
        if self.vary == "seed":
            seeds = [derived_seed(self.seed, "member", i) % 2**32 for i in range(self.n)]
            return [Variant(f"member_{i}", seed) for i, seed in enumerate(seeds)]
        bindings = self._bindings
        with self.experiment.ctx.activate():
            if self.vary == "bootstrap":
                return make_bootstraps(bindings[0], n=self.n, seed=self.seed)
            graph = self.experiment.model_graph
            options = {"n_folds": self.n, "n_repeats": 1, "seed": self.seed}
            return make_folds(bindings, **options, splitter=None, graph=graph)

    @cached_property
    def _bindings(self) -> list[CVBinding]:
        if self.vary == "seed":
            return []
        if self.bindings is not None:
            return self.bindings
        # the only split that the plan learns from
        learned = learning_inputs(self._runs.plan)
        inputs = dict.fromkeys((s.upstream_ref.node_label, s.split) for _, s in learned)
        if len(inputs) != 1 or next(iter(inputs))[1] is None:
            read = [f"{split or 'all rows'!r} of {label!r}" for label, split in inputs]
            raise ConfigError(
                "bindings must be given unless the plan learns from one split; it learns from "
                f"{read}. Pass bindings=CVBinding(...)"
            )
        ((label, split),) = inputs
        fs: Any = self.experiment.ctx.get_node(label=label)
        held_out = HELD_OUT[self.vary]
        if held_out in fs.available_splits:
            raise ConfigError(
                f"{label!r} has a split {held_out!r}, which members would replace; pass bindings= "
                "with another val_split_name"
            )
        return [CVBinding(fs, [split], train_split_name=split, val_split_name=held_out)]

    @property
    def members(self) -> dict[str, Experiment]:
        """Trained experiments by label: ``member_0``..., or ``fold_0``... ."""
        if self.experiment is None:
            return dict(self._trained.of)
        done = self._runs.done
        return {v.label: done[v.label] for v in self.variants if v.label in done}

    def get_member(self, member: int | str) -> Experiment:
        """Return the experiment of a member, by number or label.

        Raises
        ------
        UnknownNameError
            If there is none, or it has failed or not run.
        """
        members = self.members
        if isinstance(member, int):
            suffix = f"_{member}"
            member = next((label for label in members if label.endswith(suffix)), member)
        if member not in members:
            raise UnknownNameError("member", member, list(members))
        return members[str(member)]

    def run(
        self,
        *,
        show_progress: bool = True,
        resume: Literal["auto"] | None = None,
        **kwargs: Any,
    ) -> Ensemble:
        """Train all members that have not succeeded yet, and return this ensemble.

        Parameters
        ----------
        show_progress : bool
            Whether to show a progress bar over members.
        resume : 'auto', optional
            See `CrossValidation.run`.
        **kwargs
            Display flags, see `Experiment.run_phase`; training bars are off by default.

        Raises
        ------
        ExecutionError
            If all members failed; the first error is its cause.

        Warns
        -----
        FoldFailedWarning
            If some failed: they are in `failed_members`, and `run` tries them again.
        """
        if self.experiment is None:
            raise ConfigError(
                f"ensemble {self.label!r} is from a file, which holds no experiment to run; create "
                "an Ensemble of the experiment"
            )
        quiet = dict.fromkeys(
            ("show_training_progress", "show_eval_progress", "show_sampler_progress"), False
        )
        flags = self._runs.check(resume, {**quiet, **kwargs})
        plan = self._runs.plan
        missing = self._runs.missing(self.variants)
        if missing and self.vary != "seed":
            audit_variant(self.experiment, plan, missing[0])
            check_scored_rows(
                self.experiment,
                plan,
                self._bindings,
                "These rows are held out by members, so intervals from them are too narrow; bind "
                "only the training split, or give the held-out split another name with "
                "val_split_name",
            )
        folder = self.experiment._checkpoint_dir
        if folder is not None:
            # checkpoints record rows and phases, but weights alone depend on the seed
            note, facts = folder / f"{self.label}.json", {"vary": self.vary, "seed": self.seed}
            text = json.dumps(facts)
            if resume is not None and note.exists() and (found := note.read_text("utf-8")) != text:
                raise ConfigError(
                    f"{str(folder)!r} has checkpoints of an ensemble {self.label!r} with {found}, "
                    f"and this has {text}; set another folder or label, or pass resume=None"
                )
            note.write_text(text, "utf-8")
        self._members = None
        self.failed_members = self._runs.run(
            self.variants, show=show_progress, resume=resume, flags=flags
        )
        return self

    # -- predictions --------------------------------------------------------------------------

    @property
    def _trained(self) -> Members:  # type: ignore[override]
        if self._members is None:
            members = self.members
            if not members:
                raise NotFittedError(f"ensemble {self.label!r} has no members; call run() first")
            sets = list(self.experiment.ctx.available_featuresets.values())
            held_out = None if self.vary == "seed" else {v.label: v for v in self.variants}
            self._members = Members(members, sets, held_out, audit=self.experiment.audit)
        return self._members

    def __len__(self) -> int:
        return len(self.members)

    def to_pandas(self) -> pd.DataFrame:
        """Return one row per member: its status, seconds, and the scores that it logged.

        Scores are named as in `CVResults.to_pandas`. Members from a file have none.
        """
        runs = {label: e.history[-1] for label, e in self.members.items() if e.history}
        scores, _, _ = logged_figures({label: run.results for label, run in runs.items()}, "kept")
        rows = {
            label: {"status": "trained", "seconds": run.seconds, **scores.get(label, {})}
            for label, run in runs.items()
        }
        rows |= {label: {"status": "trained"} for label in self.members if label not in runs}
        rows |= {label: {"status": "failed"} for label in self.failed_members}
        frame: pd.DataFrame = require("pandas").DataFrame.from_dict(rows, orient="index")
        return frame.rename_axis("member")

    def __repr__(self) -> str:
        of = "" if self.experiment is None else f" of {self.experiment.label!r}"
        failed = f", {len(self.failed_members)} failed" if self.failed_members else ""
        return (
            f"Ensemble({self.label!r}{of}, vary={self.vary!r}, {len(self.members)} of {self.n} "
            f"members trained{failed})"
        )

    def _repr_html_(self) -> str:
        table = self.to_pandas().to_html(float_format="{:.5g}".format)
        return f"<b>{html.escape(repr(self))}</b>{table}"


config_registry.register("Ensemble", Ensemble)
