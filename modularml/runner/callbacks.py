"""Callbacks for a `Runner`: early stopping and checkpoints."""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modularml.errors import ConfigError, UnknownNameError
from modularml.loops.attachments import accumulate
from modularml.loops.runner import State, look_up
from modularml.loops.saving import write_safely

__all__ = ["checkpoint", "maybe_stop_early", "save"]


def maybe_stop_early(
    patience: int = 5, *, check: str = "better", counter: str = "_counter"
) -> Callable[[State], None]:
    """Create a callback that stops a run without improvement.

    Parameters
    ----------
    patience : int
        The runner is stopped when the counter exceeds this; at least 0.
    check : str
        The counter increases if ``state[check]`` is False, and resets to 0 if it is True.
    counter : str
        The counter is ``state[counter]``.

    Raises
    ------
    ConfigError
        If `patience` is negative.
    KeyError
        When called, if the state has no `check`.

    Examples
    --------
    >>> valid_losses = [0.1, 0.2, 0.3]  # simulate validation batch losses
    >>> batches = range(10)
    >>>
    >>> from modularml.runner import Event, Runner
    >>> from modularml.runner.attachments import MeanReducer
    >>> from modularml.runner.callbacks import maybe_stop_early
    >>>
    >>> trainer = Runner()
    >>> @trainer.on(Event.EPOCH_STARTED)
    ... def print_epoch(state):
    ...     print('Epoch', state['epoch'], 'started')
    ...
    >>> @trainer.on(Event.EPOCH_FINISHED)
    ... def eval_on_valid(state):
    ...     def eval_fn(state):
    ...         state['output'] = state['batch']
    ...     evaluator = Runner()
    ...     evaluator.on(Event.BATCH, eval_fn)
    ...     MeanReducer(name='mean').attach_on(evaluator)
    ...     evaluator.run(valid_losses)
    ...     if state.get('best_loss', float('inf')) > evaluator.state['mean']:
    ...         state['better'] = True
    ...         state['best_loss'] = evaluator.state['mean']
    ...     else:
    ...         state['better'] = False
    ...
    >>> trainer.on(Event.EPOCH_FINISHED, maybe_stop_early(patience=2))
    >>> trainer.run(batches, max_epoch=7)
    Epoch 1 started
    Epoch 2 started
    Epoch 3 started
    Epoch 4 started
    """
    if not isinstance(patience, int) or patience < 0:
        raise ConfigError(f"patience must be an int of at least 0, got {patience!r}")

    def stop_early(state: State) -> None:
        better = look_up(state, check)
        accumulate(state, counter, lambda n: 0 if better else n + 1, 0)
        if state[counter] > patience:
            state["running"] = False

    return stop_early


def checkpoint(
    what: str,
    obj: Any = None,
    *,
    under: Path | None = None,
    at_most: int = 1,
    when: str | None = None,
    using: Callable[[Any, Path], Any] | None = None,
    ext: str = "pkl",
    prefix_fmt: str = "{epoch}_",
    queue_fmt: str = "_saved_{what}",
) -> Callable[[State], None]:
    """Create a callback that saves an object to ``{prefix_fmt}{what}.{ext}``.

    Parameters
    ----------
    what : str
        Name of the object.
    obj : object, optional
        Object to save, ``state[what]`` by default.
    under : path-like, optional
        Folder, the current one by default; created if missing.
    at_most : int
        Number of files to keep, at least 1; older ones are deleted once the new one is written.
    when : str, optional
        Save only if ``state[when]`` is True.
    using : callable, optional
        Called with the object and a `Path` to save it, such as
        ``torch.save``. By default files hold data without code: safetensors if there
        are tensors or arrays, else JSON, whatever `ext` is. An object with a ``state_dict`` is
        saved as that. `modularml.runner.read_saved` reads them.
    ext : str
        Extension of the file name.
    prefix_fmt : str
        Prefix of the file name; keys of the state are replacement fields.
    queue_fmt : str
        The paths of the files are stored in ``state[queue_fmt.format(what=what)]``, oldest first.

    Raises
    ------
    ConfigError
        If an argument is not valid; when called, if the object cannot be saved as data.
    KeyError
        When called, if the state has no `what`, `when` or field of the prefix.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from pprint import pprint
    >>> from modularml.runner import Event, Runner
    >>> from modularml.runner.callbacks import checkpoint
    >>>
    >>> batches = range(3)
    >>> tmp_dir = Path(tempfile.mkdtemp())
    >>> runner = Runner()
    >>> @runner.on(Event.EPOCH_FINISHED)
    ... def store_checkpoint(state):
    ...     state['model'] = 'MODEL'
    ...     state['optimizer'] = 'OPTIMIZER'
    ...
    >>> runner.on(Event.EPOCH_FINISHED, checkpoint('model', under=tmp_dir, at_most=3))
    >>> runner.on(Event.EPOCH_FINISHED, checkpoint('optimizer', under=tmp_dir, at_most=3))
    >>> runner.run(batches, max_epoch=7)
    >>> pprint(sorted(path.name for path in tmp_dir.glob('*.pkl')))
    ['5_model.pkl',
     '5_optimizer.pkl',
     '6_model.pkl',
     '6_optimizer.pkl',
     '7_model.pkl',
     '7_optimizer.pkl']
    """
    if not isinstance(at_most, int) or at_most < 1:
        raise ConfigError(f"at_most must be an int of at least 1 (files), got {at_most!r}")
    if using is not None and not callable(using):
        raise ConfigError(f"using must be a function of an object and a path, got {using!r}")
    try:
        found = [field for _, field, _, _ in string.Formatter().parse(prefix_fmt)]
        names = [field for field in found if field is not None]
        problem = "" if all(f and not f[0].isdigit() for f in names) else "a field has no name"
    except ValueError as error:
        problem = str(error)
    if problem:
        raise ConfigError(
            f"prefix_fmt must be a format like '{{epoch}}_', got {prefix_fmt!r}: {problem}"
        )
    queue = queue_fmt.format(what=what)
    folder = Path("." if under is None else under)
    write = using or write_safely

    def save_checkpoint(state: State) -> None:
        if when is not None and not look_up(state, when):
            return
        prefix = string.Formatter().vformat(prefix_fmt, (), _Fields(state))
        path = folder / f"{prefix}{what}.{ext}"
        saved = look_up(state, what) if obj is None else obj
        folder.mkdir(parents=True, exist_ok=True)
        write(saved, path)
        paths = [old for old in state.get(queue, ()) if old != path] + [path]
        state[queue] = paths[-at_most:]
        for old in paths[:-at_most]:
            old.unlink(missing_ok=True)

    return save_checkpoint


def save(*args: Any, **kwargs: Any) -> Callable[[State], None]:
    """Alias of `checkpoint`."""
    return checkpoint(*args, **kwargs)


class _Fields(dict[str, Any]):
    """The state as replacement fields."""

    def __missing__(self, key: str) -> Any:
        raise UnknownNameError("state key", key, map(str, self))
