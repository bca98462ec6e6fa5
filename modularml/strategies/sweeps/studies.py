"""Optuna's studies: the storage of a sweep, its samplers, and the order of its trials."""

from __future__ import annotations

import hashlib
import inspect
import itertools
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from modularml._optional import require
from modularml.errors import ConfigError
from modularml.experiment import Experiment
from modularml.experiment.resume import config_hash
from modularml.io.randomness import derived_seed
from modularml.strategies.sweeps.space import Choice, Dimension

ERROR, SECONDS, RESUMED = "error", "seconds", "resumed"
"""Names of attributes of trials."""
_GRIDS = ("GridSampler", "BruteForceSampler")
"""Samplers that end the study themselves, which they can only in Optuna's own loop."""

_IDENTITY = "modularml"
"""Name of the attribute of a study that holds the identity of its sweep."""
_studies: WeakValueDictionary[tuple[str, str | None], Any] = WeakValueDictionary()
"""Studies of this process by name and URL of the storage, for callbacks that report to them."""


def _optuna() -> Any:
    with warnings.catch_warnings():  # its progress bars, which are not used, look for widgets
        warnings.filterwarnings("ignore", "IProgress not found")
        return require("optuna", purpose="to run sweeps")


@contextmanager
def _quiet() -> Iterator[None]:
    """Log only warnings of Optuna within a block."""
    logging = _optuna().logging
    before = logging.get_verbosity()
    logging.set_verbosity(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.set_verbosity(before)


def storage_url(storage: Any) -> str | None:
    """Return the URL of a storage that other processes can open; None for others.

    Parameters
    ----------
    storage : str, Path or storage of Optuna or None
        A path is that of a SQLite file.

    Raises
    ------
    ConfigError
        If it is none of these, or the folder of the file does not exist.
    """
    if isinstance(storage, str | Path):
        if "://" in str(storage):
            return str(storage)
        path = Path(storage).expanduser().absolute()
        if not path.parent.is_dir():
            raise ConfigError(
                f"storage={str(storage)!r}: folder {str(path.parent)!r} does not exist; create it "
                "first, or choose another"
            )
        return f"sqlite:///{path.as_posix()}"
    if storage is not None and not isinstance(storage, _optuna().storages.BaseStorage):
        raise ConfigError(
            "storage must be None (in memory), the path of a SQLite file such as 'sweep.db', a URL "
            f"or a storage of Optuna, got {storage!r:.80}"
        )
    backend = getattr(storage, "_backend", storage)  # a cached storage wraps the real one
    url = getattr(backend, "url", None)
    return url if isinstance(url, str) else None


def open_study(storage: Any, label: str, direction: str, sampler: Any, pruner: Any) -> Any:
    """Create a study, or open the one of this label in a storage.

    Raises
    ------
    ConfigError
        If the storage cannot be opened.
    """
    optuna = _optuna()
    arguments = {
        "storage": storage_url(storage) or storage,
        "study_name": None if storage is None else label,
        "direction": direction,
        "sampler": sampler,
        "pruner": pruner or optuna.pruners.NopPruner(),
    }
    with _quiet():
        try:
            study = optuna.create_study(**arguments, load_if_exists=True)
            if study.direction.name.lower() != direction and not study.get_trials(deepcopy=False):
                optuna.delete_study(study_name=label, storage=arguments["storage"])
                study = optuna.create_study(**arguments)
        except Exception as error:
            reason = str(error).partition("\n")[0]  # the SQL follows
            raise ConfigError(
                f"storage={storage!r} cannot be opened: {type(error).__name__}: {reason}"
            ) from error
    return study


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
        name = f"{build.__module__}:{getattr(build, '__qualname__', type(build).__name__)}"
        parts["build"] = name
        with suppress(OSError, TypeError):
            parts["build"] = f"{name}\n{inspect.getsource(build)}"
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


def register_study(study: Any, url: str | None) -> None:
    """Let callbacks in this process report to a study."""
    _studies[study.study_name, url] = study


def check_proposals(
    space: Mapping[str, Dimension] | None, n_trials: int | None, sampler: Any, pruner: Any
) -> None:
    """Refuse samplers and pruners that are not Optuna's, and a missing number of trials.

    Raises
    ------
    ConfigError
        If an argument is not as described in `Sweep`.
    """
    for name, value, base, example in (
        ("sampler", sampler, "BaseSampler", "TPESampler()"),
        ("pruner", pruner, "BasePruner", "MedianPruner()"),
    ):
        if value is None:
            continue
        if not isinstance(value, getattr(getattr(_optuna(), f"{name}s"), base)):
            raise ConfigError(
                f"{name} must be one of optuna.{name}s, such as optuna.{name}s.{example}, got "
                f"{value!r:.80}"
            )
    if type(sampler).__name__ in _GRIDS:
        raise ConfigError(
            f"sampler={type(sampler).__name__}() is not supported: a space whose settings are all "
            "lists is a grid by itself; omit sampler and n_trials"
        )
    if n_trials is None and (sampler is not None or _grid(space, n_trials) is None):
        raise ConfigError(
            "n_trials is needed: only a grid, whose settings are all lists, has an end of its own; "
            "pass, for example, n_trials=50"
        )


def report(
    study: str, url: str | None, trial_id: int, value: float, step: int, pruner: Any = None
) -> bool:
    """Report a value of a trial; return whether the pruner ends the trial.

    Parameters
    ----------
    study : str
        Name of the study.
    url : str or None
        Of its storage, for other processes than the one that opened it.
    trial_id : int
        Optuna's id of the trial.
    value : float
        NaN is not reported.
    step : int
        0-based epoch or fold.
    pruner : optuna.pruners.BasePruner, optional
        For other processes: a storage does not hold it.
    """
    if math.isnan(value):
        return False
    optuna = _optuna()
    if (study, url) not in _studies:
        with _quiet():
            _opened[0:] = [optuna.load_study(study_name=study, storage=url, pruner=pruner)]
        register_study(_opened[0], url)
    trial = optuna.trial.Trial(_studies[study, url], trial_id)
    reported = trial._cached_frozen_trial.intermediate_values
    if step not in reported:
        trial.report(value, step)
    elif step < max(reported):  # of a trial that was cut off later: it was not ended here
        return False
    if not trial.should_prune():
        return False
    trial.set_user_attr("pruned_at", step)
    return True


_opened: list[Any] = []
"""The study that a worker process has opened last."""


def is_prune_request(error: BaseException) -> bool:
    """Return whether an error is Optuna's own way to end a trial."""
    return isinstance(error, _optuna().TrialPruned)


def is_pruned(trial: Any) -> bool:
    """Return whether `report` has ended a trial, in this process or another."""
    current = _optuna().trial.Trial(trial.study, trial._trial_id)
    return "pruned_at" in current.user_attrs


def importances(study: Any, seed: int) -> dict[str, float]:
    """Return the share of each parameter in the variance of the objective, by fANOVA.

    Raises
    ------
    ConfigError
        If fewer than two trials are complete, or all have the same value.
    """
    optuna = _optuna()
    complete = study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])
    if len(complete) < 2 or len({trial.value for trial in complete}) < 2:
        raise ConfigError(
            f"importances need at least two complete trials with different values, the sweep has "
            f"{len(complete)} complete ones"
        )
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=seed % 2**32)
    found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: float(share) for name, share in found.items()}


class TrialQueue:
    """The trials of a study: which come next, and what became of them.

    The seed of a trial, and of the default sampler that proposes it, follow from its number. A
    trial that a process has left unfinished is continued under its number with its settings, so
    that a resumed sweep proposes the same.

    Parameters
    ----------
    study : optuna.Study
    seed : int
    n_trials : int or None
        None for the whole grid, or until the sampler ends the study.
    space : dict of str to Dimension, or None
        None if a function suggests the values.
    sampler : optuna.samplers.BaseSampler, optional
        By default TPE, or the grid; see `Sweep`.
    """

    def __init__(
        self,
        study: Any,
        seed: int,
        n_trials: int | None,
        space: Mapping[str, Dimension] | None,
        sampler: Any,
    ) -> None:
        self.study, self.seed, self.space, self.sampler = study, seed, space, sampler
        self.grid = None if sampler is not None else _grid(space, n_trials)
        self.n_trials = n_trials or 0 if self.grid is None else len(self.grid)
        states = _optuna().trial.TrialState
        self._best: float | None = None
        self._n_asked = len(self._trials())
        self._unfinished = self._trials(states.RUNNING)
        self._n_enqueued = len(self._trials(states.WAITING))

    @property
    def is_adaptive(self) -> bool:
        """Whether proposals depend on the values of earlier trials."""
        names = ("RandomSampler", "QMCSampler")
        return self.grid is None and type(self.sampler).__name__ not in names

    def done(self) -> list[Any]:
        """Return the trials that have ended."""
        return [trial for trial in self._trials() if trial.state.is_finished()]

    def missing(self) -> int:
        """Return how many trials are to be run by this process."""
        n_new = max(0, self.n_trials - self._n_asked)
        return n_new + len(self._unfinished) + self._n_enqueued

    def ask(self) -> Any:
        """Return the next trial, with suggested values if there is a space."""
        number = self._unfinished[0].number if self._unfinished else self._n_asked
        if self.sampler is None:
            seed = derived_seed(self.seed, "sampler", number) % 2**32
            self.study.sampler = _optuna().samplers.TPESampler(seed=seed)
        if self._unfinished:
            frozen = self._unfinished.pop(0)
            trial = _optuna().trial.Trial(self.study, frozen._trial_id)
            trial.set_user_attr(RESUMED, True)
            if self.sampler is None:  # values that it has are not drawn again; the others follow
                for name, distribution in frozen.distributions.items():
                    self.study.sampler.sample_independent(self.study, frozen, name, distribution)
        else:
            if self._n_enqueued:  # by a process that ended before it asked
                self._n_enqueued -= 1
            else:
                self._n_asked += 1
                if self.grid is not None:
                    self.study.enqueue_trial(self.grid[number])
            trial = self.study.ask()
        for path, dimension in (self.space or {}).items():
            dimension.draw(trial, path)
        return trial

    @property
    def best_value(self) -> float | None:
        """The best value so far; None if no trial is complete."""
        if self._best is None:
            complete = self._trials(_optuna().trial.TrialState.COMPLETE)
            self._best = self.study.best_value if complete else None
        return self._best

    def is_best(self, value: float) -> bool:
        """Return whether a value is better than those of all trials finished before it."""
        sign, best = 1 if self.study.direction.name == "MAXIMIZE" else -1, self.best_value
        if best is not None and sign * value <= sign * best:
            return False
        self._best = value
        return True

    def finish(self, trial: Any, state: str, value: float | None = None) -> None:
        """Finish a trial as ``COMPLETE``, with its value, ``PRUNED`` or ``FAIL``."""
        self.study.tell(trial, value, _optuna().trial.TrialState[state])

    def settings(self, trial: Any) -> dict[str, Any]:
        """Return the settings of a trial by path, or its suggested values."""
        if self.space is None:
            return dict(trial.params)
        return {path: self.space[path].value(drawn) for path, drawn in trial.params.items()}

    def _trials(self, *states: Any) -> list[Any]:
        found: list[Any] = self.study.get_trials(deepcopy=False, states=states or None)
        return found


def seconds_of(trial: Any) -> float:
    """Return how long a trial took, in seconds."""
    if SECONDS in trial.user_attrs:
        return float(trial.user_attrs[SECONDS])
    if RESUMED in trial.user_attrs or trial.datetime_complete is None:
        return float("nan")
    return float((trial.datetime_complete - trial.datetime_start).total_seconds())


def _grid(
    space: Mapping[str, Dimension] | None, n_trials: int | None
) -> Sequence[dict[str, Any]] | None:
    """Return all combinations of choices if every setting is one and all are to be tried."""
    if space is None:
        return None
    names = [d.names for d in space.values() if isinstance(d, Choice)]
    size = math.prod(map(len, names))
    if len(names) < len(space) or (n_trials is not None and n_trials < size):
        return None
    return [dict(zip(space, chosen, strict=True)) for chosen in itertools.product(*names)]
