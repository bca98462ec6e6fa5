"""Callbacks for a `Runner`: early stopping and checkpoints, in files of data without code."""

from __future__ import annotations

import json
import math
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as save_arrays

from modularml._optional import loaded, require
from modularml.config import decode_items, tagged
from modularml.errors import ConfigError, DataError, UnknownNameError
from modularml.io.atomic import write_file
from modularml.loops.attachments import accumulate
from modularml.loops.runner import State, look_up


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


TREE = "modularml.tree"


def write_safely(obj: Any, path: str | Path) -> None:
    """Write an object to a file from which it can be read without running code.

    Parameters
    ----------
    obj : object
        None, bool, int, float, str, tensors, arrays, objects whose ``state_dict()`` is made of
        these, and dicts, lists and tuples of them.
    path : path-like
        Its folder is created if missing. An existing file is replaced atomically.

    Raises
    ------
    ConfigError
        If a part has another type; the message names it.
    MMLError
        If the file cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> path = Path(tempfile.mkdtemp()) / "best.json"
    >>> write_safely({"loss": 0.25, "epochs": (3, 4)}, path)
    >>> read_saved(path)
    {'loss': 0.25, 'epochs': (3, 4)}
    """
    path = Path(path)
    tensors: dict[str, Any] = {}
    tree = json.dumps(_without_tensors(obj, (), tensors))
    torch = loaded("torch")
    data = tree.encode("utf-8") + b"\n"
    if torch is not None and any(isinstance(value, torch.Tensor) for value in tensors.values()):
        values = {
            name: value if isinstance(value, torch.Tensor) else torch.tensor(value)
            for name, value in tensors.items()
        }
        data = bytes(require("safetensors.torch").save(values, {TREE: tree}))
    elif tensors:
        data = bytes(save_arrays(tensors, {TREE: tree}))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, [data], overwrite=True, verify=read_saved)


def read_saved(path: str | Path) -> Any:
    """Read a file of `write_safely` or of a `checkpoint`, without running code.

    Parameters
    ----------
    path : path-like
        Its suffix does not matter.

    Returns
    -------
    object
        The saved object, or its ``state_dict``. NumPy scalars are returned as Python numbers.

    Raises
    ------
    DataError
        If the file is neither JSON nor safetensors.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = write_safely({"epoch": 3}, f"{folder}/state")
    ...     read_saved(f"{folder}/state")
    {'epoch': 3}
    """
    path = Path(path)
    with path.open("rb") as file:
        start = file.read(8)
    try:
        if b"\0" not in start:  # safetensors start with a length, JSON is text
            return _with_tensors(json.loads(path.read_text("utf-8")), {})
        with safe_open(path, framework="np") as opened:
            text = (opened.metadata() or {}).get(TREE)
        kind = "pt" if text is None or '{"$tensor": ' in text else "np"
        if kind == "pt":
            require("torch", purpose="to read tensors")
        with safe_open(path, framework=kind) as opened:
            names = opened.keys()
            tensors = {name: opened.get_tensor(name) for name in names}
        return tensors if text is None else _with_tensors(json.loads(text), tensors)
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path.name} holds neither JSON nor safetensors: {error}") from error


def _without_tensors(value: Any, path: tuple[str, ...], tensors: dict[str, Any]) -> Any:
    """Return a value as JSON, with its tensors and arrays moved to `found`."""
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, np.generic) and value.dtype.kind in "biuf":
        return _without_tensors(value.item(), path, tensors)
    if type(value) is float:
        return value if math.isfinite(value) else {"$float": repr(value)}
    if type(value) in (list, tuple) or isinstance(value, dict):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        items = {key: _without_tensors(v, (*path, str(key)), tensors) for key, v in pairs}
        inner = items if isinstance(value, dict) else [*items.values()]
        return tagged(value, inner, lambda key: _without_tensors(key, path, tensors))
    torch = loaded("torch")
    name = base = ".".join(path) or "value"
    while name in tensors:
        name = f"{base}~{len(tensors)}"
    if torch is not None and isinstance(value, torch.Tensor) and value.layout is torch.strided:
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"$tensor": name}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.dtype.itemsize <= 8:
        tensors[name] = np.ascontiguousarray(value).reshape(value.shape)
        return {"$array": name}
    if callable(getattr(value, "state_dict", None)):
        return _without_tensors(value.state_dict(), path, tensors)
    place = f" at {' > '.join(path)}" if path else ""
    raise ConfigError(
        f"a {type(value).__name__}{place} cannot be saved as data; pass tensors, arrays, plain "
        "data or an object with state_dict, or pass using=, a function of the object and the "
        "path that saves it"
    )


def _with_tensors(tree: Any, tensors: dict[str, Any]) -> Any:
    """Return the original value of `_without_tensors`."""
    if isinstance(tree, dict) and len(tree) == 1:
        tag, inner = next(iter(tree.items()))
        if tag == "$float":
            return float(inner)
        if tag in ("$tensor", "$array"):
            return tensors[inner] if tag == "$tensor" else np.asarray(tensors[inner])
    return decode_items(tree, lambda item: _with_tensors(item, tensors))
