"""How many of the package's functions a job enters, in how many files, and how deep.

``python -m benchmarks.calls`` prints one row a job. Calls are counted with `sys.setprofile`; a
generator that is resumed counts again.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Self

import numpy as np

import modularml as mm
from modularml.strategies import CrossValidation, CVBinding

ROOT = str(Path(mm.__file__).parent)


class Counter:
    """Calls of functions of the package within a ``with`` block."""

    def __init__(self) -> None:
        self.calls = self.depth = self._now = 0
        self.files: set[str] = set()

    def _look(self, frame: FrameType, event: str, _: Any) -> None:
        file = frame.f_code.co_filename
        if not file.startswith(ROOT):
            return
        if event == "call":
            self.calls += 1
            self._now += 1
            self.depth = max(self.depth, self._now)
            self.files.add(file)
        elif event == "return":
            self._now -= 1

    def __enter__(self) -> Self:
        sys.setprofile(self._look)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)


def job() -> tuple[mm.Experiment, mm.TrainPhase, mm.FeatureSet]:
    """Return an experiment whose training phase has 7 batches."""
    from modularml.models.torch import SequentialMLP

    rng = np.random.default_rng(0)
    fs = mm.FeatureSet.from_dict(
        "rows",
        {"a": rng.normal(size=56), "b": rng.normal(size=56), "y": rng.normal(size=56)},
        ["a", "b"],
        "y",
    )
    fs.split_random({"train": 1.0}, seed=0)
    mm.ModelGraph([mm.ModelNode("net", SequentialMLP(), fs)], mm.Optimizer("adam"))
    exp = mm.Experiment.from_active_context("calls", audit="off")
    phase = mm.TrainPhase.from_split(
        "train",
        split="train",
        sampler=mm.SimpleSampler(batch_size=8, seed=0),
        losses=[mm.AppliedLoss(mm.Loss("mse"), "net", ["outputs", "targets"])],
    )
    return exp, phase, fs


QUIET = {"show_training_progress": False, "show_eval_progress": False}


def counted(work: Callable[[], object]) -> Counter:
    """Return what a call enters, when it is made a second time."""
    work()
    with Counter() as counter:
        work()
    return counter


def main() -> None:
    """Print the table."""
    with mm.ExperimentContext().activate(), tempfile.TemporaryDirectory() as folder:
        exp, phase, fs = job()
        step_7 = counted(lambda: exp.run_phase(phase, **QUIET))
        fs.split_random({"long": 1.0}, seed=1)
        jobs: dict[str, Counter] = {
            "run_phase of 7 batches": step_7,
            "Experiment.save": counted(lambda: exp.save(Path(folder) / "e", overwrite=True)),
            "get_features() of one column": counted(lambda: fs.get_features(features="a")),
        }
        folds = CrossValidation(
            bindings=CVBinding("rows", ["long"], train_split_name="train"), n_folds=2, phase=phase
        )
        with Counter() as jobs["two folds of one epoch"]:  # a second run would do nothing
            folds.run(show_fold_progress=False)
    print(f"{'job':32}{'calls':>8}{'files':>8}{'depth':>8}")
    for name, found in jobs.items():
        print(f"{name:32}{found.calls:8}{len(found.files):8}{found.depth:8}")


if __name__ == "__main__":
    main()
