"""A small run with checkpoints; ``python -m tests.older_run FOLDER`` writes those of a version."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import modularml as mm
from modularml.models.torch import SequentialMLP

QUIET = {"show_training_progress": False, "show_sampler_progress": False}


def older_run(folder: Path) -> mm.Experiment:
    """Return an experiment that fits a line, with nothing in it that version 0.1.0 lacked."""
    with mm.ExperimentContext().activate():
        x = np.linspace(-1, 1, 48, dtype=np.float32)
        fs = mm.FeatureSet.from_dict("line", {"x": x, "y": 2 * x + 1}, "x", "y")
        fs.split_random({"train": 0.75, "val": 0.25}, seed=1)
        node = mm.ModelNode("net", SequentialMLP(n_layers=1), fs)
        mm.ModelGraph([node], optimizer=mm.Optimizer("adam", opt_kwargs={"lr": 0.01}))
        loss = mm.AppliedLoss(mm.Loss("mse"), on="net", inputs=["outputs", "targets"])
        val = mm.Evaluation.from_split("val", split="val", metrics=[mm.EvalLossMetric(loss=loss)])
        train = mm.TrainPhase.from_split(
            "train",
            split="train",
            sampler=mm.SimpleSampler(batch_size=8, shuffle=True, seed=0),
            losses=[loss],
            n_epochs=4,
            callbacks=[val, mm.EarlyStopping(patience=9, restore_best=False)],
            checkpointing=mm.Checkpointing(mode="disk", save_on="epoch_end"),
        )
        made = mm.Experiment.from_active_context("older", seed=0, audit="off")
        made.set_checkpoint_dir(folder)
        made.execution_plan.add_phase(train)
        return made


if __name__ == "__main__":
    older_run(Path(sys.argv[1])).run(**QUIET)
