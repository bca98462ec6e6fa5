"""Callbacks that save checkpoints at the hooks named by a Checkpointing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from modularml.engine.callback import Callback, ExperimentCallback
from modularml.engine.checkpointing import Checkpointing
from modularml.engine.monitoring import direction
from modularml.engine.run_state import phase_state
from modularml.errors import ConfigError
from modularml.io.names import check_label, folder_at, inside

_LAST = 1_000_000
_SUFFIX = ".ckpt.mml"


def _phase_hook(hook: str) -> Any:
    def on(self: Any, *, phase: Any, experiment: Any, exec_ctx: Any = None, **facts: Any) -> None:
        """Save the state if this hook is in `save_on`."""
        self._save(hook, phase, experiment, exec_ctx, facts.get("results"))

    return on


class CheckpointCallback(Callback):
    """Records the graph's state in a `Checkpointing`, after all other callbacks.

    Parameters
    ----------
    checkpointing : Checkpointing
    """

    changes_weights = False

    def __init__(self, checkpointing: Checkpointing) -> None:
        super().__init__("checkpointing", execution_order=_LAST)
        self.checkpointing = checkpointing
        self._is_due = False
        if any(hook.startswith("batch") for hook in checkpointing.save_on):
            for hook in ("batch_start", "batch_end"):
                setattr(self, f"on_{hook}", partial(_phase_hook(hook), self))

    def on_phase_start(self, *, phase: Any, experiment: Any, **facts: Any) -> None:
        """Start with no saved states; create the folder for files."""
        self.checkpointing.reset()
        if self.checkpointing.mode == "disk":
            checkpoint_folder(self.checkpointing, experiment._checkpoint_dir, phase.label)
        self._save("phase_start", phase, experiment)

    on_epoch_start, on_epoch_end = _phase_hook("epoch_start"), _phase_hook("epoch_end")
    on_phase_end = _phase_hook("phase_end")

    def _save(
        self, hook: str, phase: Any, experiment: Any, ctx: Any = None, results: Any = None
    ) -> None:
        key: int | str = hook if ctx is None else ctx.epoch_idx
        if hook.startswith("batch"):
            key = f"{ctx.epoch_idx}.{ctx.batch_idx}"
        checkpointing = self.checkpointing
        due = checkpointing.should_save(hook)
        if due and checkpointing.monitor is not None:
            greater = is_greater_better(checkpointing, phase.callbacks)
            score = results._metrics.epoch_values(checkpointing.monitor).get(ctx.epoch_idx)
            due = checkpointing.rank(key, score, greater=greater)
        if checkpointing.mode == "memory":
            if due:
                checkpointing.record_memory(key, phase_state(phase))
            return
        self._is_due |= due and phase.is_main
        if not self._is_due or not phase.has_no_pending_gradients:  # gradients are not saved
            return
        self._is_due = False
        folder = checkpoint_folder(checkpointing, experiment._checkpoint_dir, phase.label)
        path = inside(folder, f"{check_label(self._name(hook, phase, ctx))}{_SUFFIX}")
        meta = {"phase": phase.label, "hook": hook, "key": key}
        start = phase.position.record(hook)
        best_epochs = [c.best_epoch for c in phase.callbacks if hasattr(c, "best_epoch")]
        checkpointing.record_disk(
            key,
            experiment._save_run_checkpoint(path, checkpointing.overwrite, meta, start),
            spare=best_epochs,
        )

    def _name(self, hook: str, phase: Any, ctx: Any) -> str:
        epoch = 0 if ctx is None else ctx.epoch_idx
        batch = 0 if ctx is None else ctx.batch_idx
        if self.checkpointing.name_template is not None:
            return self.checkpointing.format_name(phase=phase.label, epoch=epoch, batch=batch)
        if ctx is None:
            return hook
        start = "" if len(self.checkpointing.save_on) == 1 else f"{hook}-"
        end = f"_batch_{batch:06d}" if hook.startswith("batch") else ""
        return f"{start}epoch_{epoch:04d}{end}"


def is_greater_better(checkpointing: Checkpointing, callbacks: Sequence[Callback]) -> bool:
    """Return whether greater values of the monitored metric are better.

    Raises
    ------
    ConfigError
        If the metric does not tell, and `monitor_mode` is not given.
    """
    if checkpointing.monitor_mode is not None:
        return checkpointing.monitor_mode == "max"
    greater = direction(checkpointing.monitor or "", callbacks)
    if greater is None:
        raise ConfigError(
            f"whether greater values of {checkpointing.monitor!r} are better is not known; pass "
            "Checkpointing(monitor_mode='min' or 'max')"
        )
    return greater


def _experiment_hook(hook: str) -> Any:
    def on(self: Any, *, experiment: Any, phase: Any = None, phase_group: Any = None) -> None:
        """Save the state if this hook is in `save_on`."""
        self._save(hook, experiment, (phase or phase_group).label)

    return on


class ExperimentCheckpointCallback(ExperimentCallback):
    """Saves the experiment's state at the ends of phases and groups.

    Parameters
    ----------
    checkpointing : Checkpointing
    """

    def __init__(self, checkpointing: Checkpointing) -> None:
        super().__init__("checkpointing", execution_order=_LAST)
        self.checkpointing = checkpointing

    on_phase_start, on_phase_end = _experiment_hook("phase_start"), _experiment_hook("phase_end")
    on_group_start, on_group_end = _experiment_hook("group_start"), _experiment_hook("group_end")

    def _save(self, hook: str, experiment: Any, label: str) -> None:
        checkpointing = self.checkpointing
        if not checkpointing.should_save(hook):
            return
        key = f"{label}_{hook}"
        if checkpointing.mode == "memory":
            checkpointing.record_memory(key, experiment.get_state())
            return
        has_template = checkpointing.name_template is not None
        name = check_label(checkpointing.format_name(label=label) if has_template else key)
        folder = checkpoint_folder(checkpointing, getattr(experiment, "_checkpoint_dir", None), "")
        path = inside(folder, f"{name}{_SUFFIX}")
        meta = {"hook": hook, "key": key}
        checkpointing.record_disk(
            key, experiment._save_run_checkpoint(path, checkpointing.overwrite, meta, None)
        )


def reserve_folder(
    checkpointing: Checkpointing, experiment: Any, label: str, labels: Sequence[str] = ()
) -> None:
    """Create a folder for this run alone, and check the names of its files.

    Raises
    ------
    ConfigError
        If there is no folder, another run writes to it, or a label is not a valid file name.
    """
    folder = checkpoint_folder(checkpointing, experiment._checkpoint_dir, label)
    has_template = checkpointing.name_template is not None
    for name in labels or [label]:
        fields = {"phase": name, "label": name, "epoch": 0, "batch": 0}
        check_label(checkpointing.format_name(**fields) if has_template else name or "a")
    if experiment._runner is not None:
        experiment._runner.owned.add(folder)


def checkpoint_folder(checkpointing: Checkpointing, parent: Path | None, label: str) -> Path:
    """Return the folder of checkpoint files; create it if needed.

    Raises
    ------
    ConfigError
        If neither the checkpointing nor the experiment has one.
    """
    folder: Path | None = checkpointing.directory
    if folder is None and parent is not None:
        folder = parent / check_label(label, "folder's name") if label else parent
    if folder is None:
        raise ConfigError(
            "checkpoints on disk need a folder; pass Checkpointing(directory=...), or call "
            "experiment.set_checkpoint_dir(path)"
        )
    return folder_at(folder)
