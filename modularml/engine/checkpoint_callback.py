"""Keeping states at the hooks that a Checkpointing names, in memory or in files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modularml.engine.callback import Callback, ExperimentCallback
from modularml.engine.checkpointing import Checkpointing
from modularml.engine.run_state import Start, phase_state
from modularml.errors import ConfigError
from modularml.io.names import check_label, folder_at, inside

__all__ = ["CheckpointCallback", "ExperimentCheckpointCallback", "folder_of", "own_folder"]

_LAST = 1_000_000
_SUFFIX = ".ckpt.mml"


def _at(hook: str) -> Any:
    def on(self: Any, *, phase: Any, experiment: Any, exec_ctx: Any = None, **facts: Any) -> None:
        """Keep the state, where this hook is asked for."""
        self._keep(hook, phase, experiment, exec_ctx)

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

    def on_phase_start(self, *, phase: Any, experiment: Any, **facts: Any) -> None:
        """Start with nothing kept, in a folder that is there."""
        self.checkpointing.reset()
        if self.checkpointing.mode == "disk":
            folder_of(self.checkpointing, experiment._checkpoint_dir, phase.label)
        self._keep("phase_start", phase, experiment)

    on_epoch_start, on_epoch_end = _at("epoch_start"), _at("epoch_end")
    on_batch_start, on_batch_end = _at("batch_start"), _at("batch_end")
    on_phase_end = _at("phase_end")

    def _keep(self, hook: str, phase: Any, experiment: Any, ctx: Any = None) -> None:
        key: int | str = hook if ctx is None else ctx.epoch_idx
        if hook.startswith("batch"):
            key = f"{ctx.epoch_idx}.{ctx.batch_idx}"
        kept = self.checkpointing
        due = kept.should_save(hook)
        if kept.mode == "memory":
            if due:
                kept.record_memory(key, phase_state(phase))
            return
        self._is_due |= due and phase.is_main
        if not self._is_due or not phase.is_between_moves:  # gradients are in no file: wait
            return
        self._is_due = False
        folder = folder_of(kept, experiment._checkpoint_dir, phase.label)
        path = inside(folder, f"{check_label(self._name(hook, phase, ctx))}{_SUFFIX}")
        meta = {"phase": phase.label, "hook": hook, "key": key}
        at = Start.behind(hook, phase)
        best = [c.best_epoch for c in phase.callbacks if hasattr(c, "best_epoch")]
        kept.record_disk(key, experiment._keep_run(path, kept.overwrite, meta, at), spare=best)

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


def _of(hook: str) -> Any:
    def on(self: Any, *, experiment: Any, phase: Any = None, phase_group: Any = None) -> None:
        """Keep the state, where this hook is asked for."""
        self._keep(hook, experiment, (phase or phase_group).label)

    return on


class ExperimentCheckpointCallback(ExperimentCallback):
    """Keeps the experiment's state at the ends of phases and groups.

    Parameters
    ----------
    checkpointing : Checkpointing
    """

    def __init__(self, checkpointing: Checkpointing) -> None:
        super().__init__("checkpointing", execution_order=_LAST)
        self.checkpointing = checkpointing

    on_phase_start, on_phase_end = _of("phase_start"), _of("phase_end")
    on_group_start, on_group_end = _of("group_start"), _of("group_end")

    def _keep(self, hook: str, experiment: Any, label: str) -> None:
        kept = self.checkpointing
        if not kept.should_save(hook):
            return
        key = f"{label}_{hook}"
        if kept.mode == "memory":
            kept.record_memory(key, experiment.get_state())
            return
        named = kept.name_template is not None
        name = check_label(kept.format_name(label=label) if named else key)
        folder = folder_of(kept, getattr(experiment, "_checkpoint_dir", None), "")
        path = inside(folder, f"{name}{_SUFFIX}")
        meta = {"hook": hook, "key": key}
        kept.record_disk(key, experiment._keep_run(path, kept.overwrite, meta, None))


def own_folder(
    checkpointing: Checkpointing, experiment: Any, label: str, labels: Sequence[str] = ()
) -> None:
    """Make the folder for files, for this run alone, and see that names can be a file's.

    Raises
    ------
    ConfigError
        If there is no folder, another run writes to it, or a label gives no file's name.
    """
    folder = folder_of(checkpointing, experiment._checkpoint_dir, label)
    named = checkpointing.name_template is not None
    for own in labels or [label]:
        facts = {"phase": own, "label": own, "epoch": 0, "batch": 0}
        check_label(checkpointing.format_name(**facts) if named else own or "a")
    if experiment._runner is not None:
        experiment._runner.owned.add(folder)


def folder_of(checkpointing: Checkpointing, parent: Path | None, label: str) -> Path:
    """Return the folder for files, made where it is not there.

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
