"""What tells one sweep in a storage from another."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

from modularml.errors import ConfigError
from modularml.experiment import Experiment
from modularml.experiment.resume import config_hash
from modularml.strategies.sweeps.space import Choice, Dimension

__all__ = ["check_identity", "identity_of"]

_IDENTITY = "modularml"
"""Name of the attribute of a study that holds the identity of its sweep."""


def identity_of(
    experiment: Experiment | None,
    build: Callable[..., Any] | None,
    space: Mapping[str, Dimension] | None,
    **facts: Any,
) -> dict[str, str]:
    """Return a hash of each part that defines a sweep: experiment, rows, space, and more facts."""
    parts: dict[str, Any] = dict(facts)
    if experiment is not None:
        parts["experiment"] = config_hash(experiment, experiment.execution_plan, ())
        parts["rows"] = experiment._fingerprints()
    if build is not None:
        parts["build"] = _source_of(build)
    if space is not None:
        parts["space"] = {
            path: d.names if isinstance(d, Choice) else repr(d) for path, d in space.items()
        }
    return {
        name: hashlib.sha256(json.dumps(part, sort_keys=True, default=str).encode()).hexdigest()
        for name, part in parts.items()
    }


def check_identity(
    study: Any, identity: Mapping[str, str], seed: int, *, label: str, resume: bool
) -> int:
    """Write the identity of a sweep into a new study, and compare it with that of an older one.

    Returns
    -------
    int
        The seed of the sweep in the study.

    Raises
    ------
    ConfigError
        If the study is of another sweep, or has trials and may not be resumed.
    """
    n_trials = len(study.get_trials(deepcopy=False))
    known = study.user_attrs.get(_IDENTITY)
    where = f"the storage holds, under the label {label!r},"
    how = "choose another label= or storage="
    if known is None and n_trials:
        raise ConfigError(f"{where} a study that is not of a modularml.Sweep; {how}")
    if not n_trials:
        study.set_user_attr(_IDENTITY, {"seed": seed, "parts": dict(identity)})
        return seed
    parts = known["parts"]
    names = sorted(n for n in parts.keys() | identity.keys() if parts.get(n) != identity.get(n))
    if names:
        differ = "differ" if len(names) > 1 else "differs"
        raise ConfigError(f"{where} another sweep: its {', '.join(names)} {differ}; {how}")
    if n_trials and not resume:
        raise ConfigError(
            f"{where} {n_trials} trials of this sweep; run(resume=True) does what is missing. To "
            f"start again, {how}"
        )
    return int(known["seed"])


def _source_of(function: Callable[..., Any]) -> str:
    name = f"{function.__module__}:{getattr(function, '__qualname__', type(function).__name__)}"
    try:
        return f"{name}\n{inspect.getsource(function)}"
    except (OSError, TypeError):
        return name
