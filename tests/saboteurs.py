"""Callbacks of folds, in whatever process these run: one ends a fold, one counts threads."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from modularml._optional import require
from modularml.callbacks import Callback, MetricResult


class Saboteur(Callback):
    """Raise, die or hang in one fold, as long as a file is there."""

    def __init__(self, how: str, fold: str, flag: str) -> None:
        super().__init__(f"{how}_in_{fold}")
        self.how, self.fold, self.flag = how, fold, flag

    def on_epoch_end(self, *, experiment: Any, **facts: Any) -> None:
        if not experiment.label.endswith(self.fold) or not Path(self.flag).exists():
            return
        if self.how == "raise":
            raise RuntimeError("sabotage")
        if self.how == "die":
            os._exit(3)
        time.sleep(60)


class Threads(Callback):
    """Logs how many threads torch may use where it runs."""

    def on_epoch_end(self, **facts: Any) -> MetricResult:
        return MetricResult("threads", require("torch").get_num_threads())


def shorter(experiment: Any) -> Any:
    """Return a phase with half the epochs: a search that a worker can be sent."""
    found = experiment.execution_plan.get_train_phase("train")
    found.n_epochs = 1
    return found


class Trace(Callback):
    """Touches a file at each epoch, named by fold and process, and waits."""

    def __init__(self, folder: str, seconds: float = 0.1) -> None:
        super().__init__("trace")
        self.folder, self.seconds = folder, seconds

    def on_epoch_end(self, *, experiment: Any, **facts: Any) -> None:
        Path(self.folder, f"{experiment.label}-{os.getpid()}").touch()
        time.sleep(self.seconds)


def count_reads() -> None:
    """Make this process write a line for each experiment that it reads, with its number."""
    from modularml import Experiment

    load = Experiment.load.__func__

    def counted(cls: Any, path: Any, **options: Any) -> Any:
        with Path(os.environ["MML_TEST_READS"]).open("a") as file:
            file.write(f"{os.getpid()}\n")
        return load(cls, path, **options)

    Experiment.load = classmethod(counted)
