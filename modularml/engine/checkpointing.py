"""Checkpointing settings: when to save, under which names, how many to keep."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any, Literal

from modularml._arguments import at_least
from modularml.config import Configurable
from modularml.engine.callback import PHASE_HOOKS
from modularml.errors import ConfigError
from modularml.io.names import is_label

PHASE_SAVE_ON = frozenset(hook.removeprefix("on_") for hook in PHASE_HOOKS[:-1])
EXPERIMENT_SAVE_ON = frozenset({"phase_start", "phase_end", "group_start", "group_end"})
_FIELD = re.compile(r"\{([^{}]*)\}")
_EXAMPLE: dict[str, Any] = {"phase": "a", "epoch": 0, "batch": 0, "label": "a", "key": "a"}
_BARE = re.compile(r"[a-z_]+(:0[0-9]{1,2}d)?")


class Checkpointing(Configurable):
    """Save states while a phase or an experiment runs.

    Parameters
    ----------
    mode : {'memory', 'disk'}
    save_on : str or list of str
        On a `TrainPhase`: ``phase_start``, ``phase_end``, ``epoch_start``, ``epoch_end``,
        ``batch_start``, ``batch_end``. On an `Experiment`: those of phases and groups.
    every_n : int
        Save at every n-th occurrence of a hook.
    directory : path-like, optional
        Folder for files.
    name_template : str, optional
        May hold bare ``{phase}``, ``{epoch}``, ``{batch}`` or ``{label}``, each with an optional
        ``:0Nd``.
    max_to_keep : int, optional
        Beyond this number the oldest is dropped, but never the newest, nor that of the best epoch
        of an `EarlyStopping` of the phase; None keeps all.
    overwrite : bool
        Whether a file may replace another.
    monitor : str, optional
        On a `TrainPhase`: save the epochs with the best values of this metric alone.
    monitor_mode : {'min', 'max'}, optional
        Which values are better; by default known from the metric, such as ``val_loss``.
    save_top_k : int
        Number of epochs that are saved with `monitor`. Of equal values the earlier is kept; NaN is
        never among the best.

    Raises
    ------
    ConfigError
        If an argument is not as described.

    Examples
    --------
    >>> best = Checkpointing(monitor="val_loss", save_top_k=3)
    >>> best.mode
    'memory'
    >>> Checkpointing(mode="disk", directory="checkpoints", every_n=5).mode
    'disk'
    """

    def __init__(
        self,
        *,
        mode: Literal["memory", "disk"] = "memory",
        save_on: str | list[str] = "epoch_end",
        every_n: int = 1,
        directory: Path | str | None = None,
        name_template: str | None = None,
        max_to_keep: int | None = None,
        overwrite: bool = True,
        monitor: str | None = None,
        monitor_mode: Literal["min", "max"] | None = None,
        save_top_k: int | None = None,
    ) -> None:
        if mode not in ("memory", "disk"):
            raise ConfigError(f"mode must be 'memory' or 'disk', got {mode!r}")
        at_least(1, every_n=every_n, max_to_keep=max_to_keep, save_top_k=save_top_k)
        hooks = [save_on] if isinstance(save_on, str) else list(save_on)
        if monitor is not None and (hooks != ["epoch_end"] or max_to_keep is not None):
            raise ConfigError(
                "monitor keeps the best epochs: it needs save_on='epoch_end', and save_top_k "
                f"instead of max_to_keep, got save_on={save_on!r} and max_to_keep={max_to_keep!r}"
            )
        if monitor is None and (save_top_k is not None or monitor_mode is not None):
            raise ConfigError("save_top_k and monitor_mode need monitor=, such as 'val_loss'")
        if unknown := set(hooks) - PHASE_SAVE_ON - EXPERIMENT_SAVE_ON or not hooks:
            raise ConfigError(
                f"save_on must name hooks such as 'epoch_end', got {unknown or hooks}"
            )
        self._mode, self._save_on, self._every_n = mode, hooks, every_n
        self._directory = None if directory is None else Path(directory)
        self._name_template, self._overwrite = name_template, overwrite
        self.max_to_keep, self.monitor, self.save_top_k = max_to_keep, monitor, save_top_k
        self.monitor_mode = monitor_mode
        self._scores: dict[int | str, float] = {}
        self._states: dict[int | str, dict[str, Any]] = {}
        self._paths: dict[int | str, Path] = {}
        self._counts: dict[str, int] = {}
        if mode == "memory" and directory is not None:
            raise ConfigError(
                f"directory={str(directory)!r} is for files, and mode='memory' writes none; pass "
                "mode='disk'"
            )
        if name_template is not None:
            self.validate_placeholders(
                name_template,
                frozenset({"phase", "epoch", "batch", "label", "key"}),
                "Checkpointing",
            )
            name = self.format_name(**_EXAMPLE)
            if not is_label(name):
                raise ConfigError(
                    f"name_template {name_template!r} gives names like {name!r}, which are not "
                    "valid file names; use up to 120 letters, digits and . _ = -, a letter or "
                    "digit first"
                )

    mode = property(attrgetter("_mode"), doc="Where states are saved: ``memory`` or ``disk``.")
    save_on = property(lambda self: list(self._save_on), doc="Hooks at which states are saved.")
    every_n = property(attrgetter("_every_n"), doc="Save at every n-th occurrence of a hook.")
    directory = property(attrgetter("_directory"), doc="Folder for files.")
    name_template = property(attrgetter("_name_template"), doc="Template of names.")
    overwrite = property(attrgetter("_overwrite"), doc="Whether a file may replace another.")

    @property
    def saved_keys(self) -> list[int | str]:
        """Keys of the saved states, sorted."""
        return sorted([*self._states, *self._paths], key=lambda key: (isinstance(key, str), key))

    @property
    def scores(self) -> dict[int | str, float]:
        """Values of `monitor` of the saved states, by key, best first."""
        return dict(self._scores)

    @property
    def best_key(self) -> int | str | None:
        """Key of the state with the best value of `monitor`; None if none is saved."""
        return next(iter(self._scores), None)

    def rank(self, key: int | str, score: float | None, *, greater: bool) -> bool:
        """Record the score of a state to be saved, if it is among the best; return whether."""
        if score is None or math.isnan(score):
            return False
        known = {k: s for k, s in self._scores.items() if k != key}
        ranked = sorted({**known, key: score}.items(), key=itemgetter(1), reverse=greater)
        self._scores = dict(ranked[: self.save_top_k or 1])
        return key in self._scores

    def should_save(self, hook: str) -> bool:
        """Count an occurrence of a hook; return whether to save a state now."""
        if hook not in self._save_on:
            return False
        self._counts[hook] = self._counts.get(hook, 0) + 1
        return self._counts[hook] % self._every_n == 0

    def record_memory(self, key: int | str, state: dict[str, Any]) -> None:
        """Save a state in memory; drop the oldest beyond `max_to_keep`."""
        self._states.pop(key, None)
        self._states[key] = state
        self._drop(self._states)

    def record_disk(self, key: int | str, path: Path, *, spare: Collection[Any] = ()) -> None:
        """Register the file of a state; remove the oldest beyond `max_to_keep`.

        Files under the keys in `spare` are not removed.
        """
        self._paths.pop(key, None)
        self._paths[key] = Path(path)
        for dropped in self._drop(self._paths, spare):
            if dropped not in self._paths.values():
                dropped.unlink(missing_ok=True)

    def has_key(self, key: int | str) -> bool:
        """Return whether a state or a file is saved under a key."""
        return key in self._states or key in self._paths

    def get_state(self, key: int | str) -> dict[str, Any] | None:
        """Return the state saved in memory under a key, or None."""
        return self._states.get(key)

    def get_path(self, key: int | str) -> Path | None:
        """Return the file saved under a key, or None."""
        path = self._paths.get(key)
        return path if path is not None and path.exists() else None

    def reset(self) -> None:
        """Forget all states, files and counts (files stay on the disk)."""
        self._states.clear()
        self._paths.clear()
        self._counts.clear()
        self._scores.clear()

    def separate_files(self, label: str) -> None:
        """Write to a subfolder with this label from now on."""
        self._directory = self._directory and self._directory / label

    def disk_state(self) -> dict[str, Any]:
        """Return how often hooks occurred, and the files saved."""
        return {
            "counts": dict(self._counts),
            "files": [[k, p.name] for k, p in self._paths.items()],
            **({} if self.monitor is None else {"scores": [list(s) for s in self._scores.items()]}),
        }

    def set_disk_state(
        self, state: dict[str, Any], folder: Path, newest: Path, key: int | str | None
    ) -> None:
        """Restore what `disk_state` returned.

        Parameters
        ----------
        state : dict
        folder : Path
            Of the files.
        newest : Path
            The file that held the state.
        key : int, str or None
            The key under which it was saved, in its folder; None if it is not of these files.
        """
        folder = folder if key is None else newest.parent
        self._counts = dict(state["counts"])
        self._paths = {k: folder / name for k, name in state["files"]}
        if key is not None:
            self._paths[key] = newest
        self._scores = dict(state.get("scores", ()))
        if self.monitor is not None:
            self._drop(self._paths)

    def format_name(self, **kwargs: Any) -> str:
        """Fill in the template.

        Raises
        ------
        ConfigError
            If there is no template, or a field has no value.
        """
        template = self._name_template
        if template is None:
            raise ConfigError(
                "there is no name_template; attach the Checkpointing or pass name_template="
            )
        fields = [field.partition(":")[0] for field in _FIELD.findall(template)]
        missing = [field for field in fields if field not in kwargs]
        if missing:
            raise ConfigError(f"name_template {template!r} needs values for {missing}")
        return template.format(**kwargs)

    @staticmethod
    def validate_placeholders(template: str, allowed: frozenset[str], context_name: str) -> None:
        """Refuse a template with anything but bare, known fields.

        Raises
        ------
        ConfigError
            If a field is not allowed, or has an attribute, an item or a conversion.
        """
        for field in _FIELD.findall(template):
            if not _BARE.fullmatch(field) or field.partition(":")[0] not in allowed:
                raise ConfigError(
                    f"name_template of {context_name} may hold {sorted(allowed)} (with :0Nd), "
                    f"got {{{field}}}"
                )
        if re.search(r"[{}]", _FIELD.sub("", template)):
            raise ConfigError(f"name_template {template!r} has a brace that does not close")

    def _drop(self, saved: dict[Any, Any], spare: Collection[Any] = ()) -> list[Any]:
        if self.monitor is not None:
            return [saved.pop(key) for key in list(saved) if key not in self._scores]
        n = 0 if self.max_to_keep is None else max(0, len(saved) - self.max_to_keep)
        older = [key for key in list(saved)[:-1] if key not in spare]
        return [saved.pop(key) for key in older[:n]]


def checked_checkpointing(
    value: Any, owner: str, save_on: Collection[str], fields: Collection[str]
) -> Checkpointing | None:
    """Return a `Checkpointing` or None; refuse hooks and template fields that its owner lacks.

    Parameters
    ----------
    value : object
    owner : str
        Such as ``"a TrainPhase"``.
    save_on, fields : collection of str
        The hooks and the fields of the template that it may have.

    Raises
    ------
    TypeError
        If it is neither.
    ConfigError
        If it names others.
    """
    if value is None:
        return None
    if not isinstance(value, Checkpointing):
        raise TypeError(f"checkpointing must be a Checkpointing or None, got {value!r}")
    if unknown := set(value.save_on) - set(save_on):
        raise ConfigError(f"save_on of {owner} may hold {sorted(save_on)}, got {unknown}")
    template = value.name_template or ""
    Checkpointing.validate_placeholders(template, frozenset(fields), owner.split()[-1])
    return value
